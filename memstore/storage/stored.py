"""Checks of values from the database, made where they are read. A wrong type or range raises ``StoreCorrupt``.

STRICT tables and constraints hold for every writer that uses the database. They do not stop flipped bits and editors.
"""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Double, Select, Table
from sqlalchemy.exc import MultipleResultsFound, NoResultFound

from memstore.errors import MemstoreError, StoreCorrupt

T = TypeVar("T")

LARGEST = 2**63 - 1

UNREADABLE = (
    *(
        ValueError,
        TypeError,
        LookupError,
        AttributeError,
        ArithmeticError,
        AssertionError,
        RecursionError,
        struct.error,
    ),
    *(NoResultFound, MultipleResultsFound),
)
"""The reading of damaged data may end in one of these exceptions."""

# These are the folders of memstore and of the code that it calls: Python's library, and installed packages.
_KNOWN = (str(Path(__file__).resolve().parents[1]), str(Path(os.__file__).resolve().parent), "<")
_INSTALLED = ("site-packages", "dist-packages")


def damaged(what: str, why: str, *, episode_id: int | None = None) -> StoreCorrupt:
    """Return the error that names the damaged row."""
    return StoreCorrupt(
        f"{what} {why}; run 'memstore check', or restore a backup: memstore restore BACKUP DB", episode_id=episode_id
    )


def onward(last: Any, before: Any, what: str) -> Any:
    """Return the last key of a page, checked to lie beyond the previous page. A damaged index may lead in a circle."""
    if before is not None and not last > before:
        raise damaged(what, f"come back to {last!r:.40} after {before!r:.40}")
    return last


def paged(
    conn: Connection, query: Select[Any], key: ColumnElement[int], size: int, what: str, after: int
) -> Iterator[list[Any]]:
    """Yield the rows of a query with a ``key`` above ``after``, ``size`` at a time, in the order of the key.

    The key is the first column. The rows of a page may be deleted before the next one is read. The query itself has no
    lower limit on the key: of two such limits SQLite uses the first, and would walk from there for every page.
    """
    query = query.order_by(key).limit(size)
    while rows := list(conn.execute(query.where(key > after))):
        yield rows
        if len(rows) < size:
            return
        after = onward(rows[-1][0], after, what)


def arrays(table: Table, names: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[NDArray[Any]]:
    """Return rows of a table, read with these columns, as arrays: int64 with 0 for NULL, or float64 with NaN for it."""
    what, columns = f"table {table.name}", zip(*rows, strict=True) if rows else ((),) * len(names)
    found: list[NDArray[Any]] = []
    for name, values in zip(names, columns, strict=True):
        nullable = table.c[name].nullable
        if isinstance(table.c[name].type, Double):
            found.append(reals(values, what, nullable=bool(nullable)))
        else:
            found.append(wholes(values, what, unknown=0 if nullable else None))
    return found


def parsed(text: Any, what: str, *, episode_id: int | None = None) -> Any:
    """Return the value of a stored JSON text."""
    try:
        return json.loads(text, parse_constant=_refused)
    except (ValueError, TypeError, RecursionError) as exc:
        raise damaged(what, f"is no JSON ({_brief(exc)})", episode_id=episode_id) from exc


def extra(text: Any, episode_id: int) -> Any:
    """Return the value of an episode's extra JSON."""
    return parsed(text, f"episode {episode_id}: its extra", episode_id=episode_id)


def built(what: str, text: Any, make: Callable[[Any], T]) -> T:
    """Return the object that ``make`` builds from a stored JSON text."""
    document = parsed(text, what)
    try:
        return make(document)
    except UNREADABLE as exc:
        raise damaged(what, f"cannot be read ({_brief(exc)})") from exc


def whole(value: Any, what: str, low: int = 0, high: int = LARGEST) -> int:
    """Return the value if it is a whole number within these bounds."""
    if type(value) is not int or not low <= value <= high:
        raise damaged(what, f"is no whole number from {low} to {high}: {value!r:.40}")
    return value


def real(value: Any, what: str, low: float = -math.inf) -> float:
    """Return the value if it is a finite number, at least ``low``."""
    if type(value) is not float or not math.isfinite(value) or value < low:
        raise damaged(what, f"is no number: {value!r:.40}")
    return value


def text(value: Any, what: str) -> str:
    """Return the value if it is a text."""
    if type(value) is not str:
        raise damaged(what, f"is no text: {value!r:.40}")
    return value


def wholes(values: Iterable[Any], what: str, *, unknown: int | None = None) -> NDArray[np.int64]:
    """Return a column of whole numbers. If NULL is allowed, ``unknown`` replaces it."""
    column = list(values)
    array = np.array(column)
    if array.dtype == np.int64:  # only whole numbers get this type
        return array
    kinds = set(map(type, column))
    if unknown is not None and type(None) in kinds:
        column = [unknown if value is None else value for value in column]
        kinds.discard(type(None))
    if not kinds <= {int}:
        raise damaged(what, "holds a value that is no whole number")
    return np.array(column, np.int64)


def reals(values: Iterable[Any], what: str, *, nullable: bool = True) -> NDArray[np.float64]:
    """Return a column of numbers, with NaN for NULL."""
    column = list(values)
    if not set(map(type, column)) <= ({float, type(None)} if nullable else {float}):
        raise damaged(what, "holds a value that is no number")
    return np.array(column, np.float64)  # None becomes NaN


def nullable(values: NDArray[np.float64]) -> list[float | None]:
    """Return floats as the database takes them: None for NaN."""
    unknown = np.isnan(values)
    if not unknown.any():
        return list(values.tolist())
    return [None if none else value for value, none in zip(values.tolist(), unknown.tolist(), strict=True)]


def named(names: Sequence[str], number: int, what: str) -> str:
    """Return the name with this number, counted from 1."""
    return names[whole(number, what, 1, len(names)) - 1]


def unreadable(exc: Exception, describe: Callable[[], str]) -> StoreCorrupt | None:
    """Return the error for work that ended in ``exc`` because it read damaged data. None if ``exc`` itself is right.

    This is the last resort, because every column is checked in its own place. An exception from a user's own code that
    memstore called comes out as it is.
    """
    if isinstance(exc, MemstoreError) or not isinstance(exc, UNREADABLE) or _is_foreign(exc):
        return None
    return StoreCorrupt(
        f"{describe()} holds what cannot be read ({_brief(exc)}): it is damaged, or this is a bug in memstore; "
        "run 'memstore check', and report it where that finds nothing"
    )


def _is_foreign(exc: BaseException) -> bool:
    """True if the traceback has code that belongs neither to memstore nor to an installed library."""
    trace = exc.__traceback__
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if not file.startswith(_KNOWN) and not any(folder in file for folder in _INSTALLED):
            return True
        trace = trace.tb_next
    return False


def _brief(exc: BaseException) -> str:
    return f"{type(exc).__name__}: {exc}"[:120]


def _refused(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")
