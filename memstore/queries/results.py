"""What a query found, column by column."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from keyword import iskeyword
from typing import Any, Literal
from unicodedata import is_normalized

import numpy as np
from numpy.typing import NDArray

from memstore.errors import ConfigError, InvalidValue
from memstore.storage import stored

Kind = Literal["int", "float", "text", "flag", "json"]


@dataclass(frozen=True, slots=True)
class Field:
    """Name and type of a column; ``nullable`` says that values may be missing."""

    name: str
    kind: Kind
    nullable: bool


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Rows of plain Python values, None where missing; the types of its columns never depend on what is in them.

    Attributes
    ----------
    fields : tuple of Field
        The columns, in order.
    rows : list of tuple
        int, float, str, bool or None; in a column of kind "json" any JSON value, and among the floats an int where no
        float is equal to it.
    make : callable or None
        Makes the record of a row from its values; None for a frozen dataclass with the columns as attributes.

    Raises
    ------
    InvalidValue
        When two columns have the same name, or a name cannot be that of an attribute.
    """

    fields: tuple[Field, ...]
    rows: list[tuple[Any, ...]]
    make: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        names = self.names
        if len(set(names)) < len(names):
            raise InvalidValue(f"two columns have the same name: {', '.join(names)}; give one of them another")
        for name in names:
            if not _names_an_attribute(name):
                raise InvalidValue(
                    f"{name!r:.80} cannot name a column; use a Python name such as mean_loss, without __"
                )

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns, in order."""
        return tuple(field.name for field in self.fields)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.records())

    def __getitem__(self, name: str) -> NDArray[Any]:
        """One column, as in ``arrays``. ``InvalidValue`` when there is none of this name."""
        if name not in self.names:
            raise InvalidValue(f"there is no column {name!r:.80}; there are {', '.join(self.names)}")
        place = self.names.index(name)
        return _array(self.fields[place], [row[place] for row in self.rows])

    def __repr__(self) -> str:
        return f"<Result of {len(self)} rows: {', '.join(self.names)}>"

    def records(self) -> list[Any]:
        """As frozen dataclasses with the columns as attributes: equal where columns and values are."""
        make = self.make or _row_class(self.names)
        return [make(*row) for row in self.rows]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """As numpy columns.

        Integers are int64, but float64 with NaN in a column where they may be missing (exact up to 2**53); floats are
        float64 with NaN; texts ``StringDType``, with None where they may be missing; true and false are bool, or object
        with None; JSON values are object. numpy finds a None among texts (``== None``), but does not sort it: take the
        known ones first, ``column[column != None]``.

        Raises
        ------
        InvalidValue
            When a value is missing in a column of integers, texts or flags that is not nullable.
        """
        return {field.name: _array(field, values) for field, values in self._columns()}

    def to_pandas(self) -> Any:
        """As a pandas ``DataFrame`` of nullable types: integers stay exact.

        Raises
        ------
        ConfigError
            When pandas is not installed.
        """
        pandas = _package("pandas")
        kinds = {"int": "Int64", "float": "float64", "text": "string", "flag": "boolean", "json": "object"}
        return pandas.DataFrame(
            {field.name: pandas.Series(values, dtype=kinds[field.kind]) for field, values in self._columns()}
        )

    def to_polars(self) -> Any:
        """As a polars ``DataFrame``; JSON values as their text. ``ConfigError`` when polars is not installed."""
        polars = _package("polars")
        kinds = {"int": polars.Int64, "float": polars.Float64, "flag": polars.Boolean}
        columns = [
            polars.Series(field.name, _plain(field, values), dtype=kinds.get(field.kind, polars.String), strict=True)
            for field, values in self._columns()
        ]
        return polars.DataFrame(columns)

    def to_arrow(self) -> Any:
        """As a pyarrow ``Table``; JSON values as their text. ``ConfigError`` when pyarrow is not installed."""
        arrow = _package("pyarrow")
        kinds = {"int": arrow.int64(), "float": arrow.float64(), "flag": arrow.bool_()}
        columns = {
            field.name: arrow.array(_plain(field, values), kinds.get(field.kind, arrow.string()))
            for field, values in self._columns()
        }
        return arrow.table(columns)

    def _columns(self) -> Iterator[tuple[Field, list[Any]]]:
        for place, field in enumerate(self.fields):
            yield field, [row[place] for row in self.rows]


def _array(field: Field, values: list[Any]) -> NDArray[Any]:
    try:
        return _converted(field, values)
    except InvalidValue:
        raise
    except (ValueError, TypeError, OverflowError) as exc:
        raise stored.damaged(f"the column {field.name!r:.80}", f"holds what is no {field.kind}") from exc


def _converted(field: Field, values: list[Any]) -> NDArray[Any]:
    if field.kind == "float" or (field.kind == "int" and field.nullable):
        return np.array([np.nan if value is None else value for value in values], np.float64)
    if not field.nullable and field.kind != "json" and None in values:  # numpy would make 'None' or False of it
        raise InvalidValue(f"a value is missing in the column {field.name!r}, which is not nullable")
    if field.kind == "int":
        return np.array(values, np.int64)
    if field.kind == "text":
        dtype: Any = np.dtypes.StringDType(na_object=None) if field.nullable else np.dtypes.StringDType()
        return np.array(values, dtype)
    if field.kind == "flag" and not field.nullable:
        return np.array(values, np.bool_)
    objects = np.empty(len(values), object)
    for place, value in enumerate(values):  # a list among them is a value, not a dimension
        objects[place] = value
    return objects


def _plain(field: Field, values: list[Any]) -> list[Any]:
    if field.kind == "float":  # an int among them is one that no float is equal to
        return [None if value is None else float(value) for value in values]
    if field.kind != "json":
        return values
    return [None if value is None else json.dumps(value) for value in values]


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"this needs {name}: pip install {name}") from error


def _names_an_attribute(name: str) -> bool:
    # Python normalizes the names in its source, so that others could not be written; those with __ are its own.
    plain = name.isidentifier() and not iskeyword(name)
    return plain and not name.startswith("__") and is_normalized("NFKC", name)


@lru_cache
def _row_class(names: tuple[str, ...]) -> type:
    return dataclasses.make_dataclass("Row", names, frozen=True, slots=True)
