"""Shows values and names of users in messages. The text is short for any value."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import date, timedelta
from itertools import islice
from typing import cast

import numpy as np

MOST_NAMES = 10
"""A list in a message shows at most this many names."""

LONGEST = 60
"""One value in a message has at most this many characters."""

_SAFE = (bool, float, np.generic, date, timedelta, type(None))
"""These types have a short ``repr``. The ``repr`` of other types is never called: it may raise, or take a second."""


def shown(value: object) -> str:
    """Show a value and its type, such as ``'abc' (str)``, ``a list of 3``, ``float32[4, 2] (ndarray)``."""
    kind = type(value).__name__[:LONGEST]
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an int of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)):
        return f"{_cut(repr(value[:LONGEST]), len(value))} ({kind})"
    if isinstance(value, (*_SAFE, int)) and not isinstance(value, np.void):
        return f"{_cut(repr(value))} ({kind})"
    if isinstance(value, type):  # somebody may have written ``Uniform`` for ``Uniform()``
        return f"the class {value.__name__[:LONGEST]}"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"{_cut(f'{dtype}{list(shape)}')} ({kind})"
    if type(value) in (list, tuple, dict):
        return _collection(kind, cast(Collection[object], value))
    return f"a value of type {kind}"


def _collection(kind: str, value: Collection[object]) -> str:
    """Show the number of elements, and a single text itself: somebody may have written ``["a"]`` for ``"a"``."""
    inner = next(iter(value)) if len(value) == 1 else None
    return f"a {kind} of {len(value)}" + (f", {_cut(repr(inner[:LONGEST]))}" if isinstance(inner, str) else "")


def listed(names: Iterable[object], most: int = MOST_NAMES) -> str:
    """List the first names, and the number of the others; ``none`` if there are no names."""
    names = list(names)
    texts = [_cut(repr(name[:LONGEST]) if isinstance(name, (str, bytes)) else shown(name)) for name in names[:most]]
    more = len(names) - len(texts)
    text = ", ".join(texts) or "none"
    return text + (f" and {more:,} more" if more > 0 else "")


def first_of(parts: Iterable[object], count: int, most: int = MOST_NAMES) -> str:
    """List the first ``most`` of ``count`` parts as ``str`` writes them, and the number of the others."""
    text = ", ".join(_cut(str(part)) for part in islice(parts, most))
    return text + (f" and {count - most:,} more" if count > most else "")


def _cut(text: str, length: int = 0) -> str:
    longer = len(text) > LONGEST or length > LONGEST
    return f"{text[: LONGEST - 4]}..." if longer else text
