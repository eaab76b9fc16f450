"""Values and names of users in a message: short, whatever they are."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from datetime import date, timedelta
from itertools import islice
from typing import cast

import numpy as np

MOST_NAMES = 10
LONGEST = 60
"""Characters of one value."""

_SAFE = (bool, float, np.generic, date, timedelta, type(None))
"""Types that are short in full; no foreign ``__repr__`` is ever called, which may raise, or take a second."""


def shown(value: object) -> str:
    """A value with its type, such as ``'abc' (str)``, ``a list of 3``, ``an array of float32[4,2]``."""
    kind = type(value).__name__[:LONGEST]
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an int of {value.bit_length()} bits"
    if isinstance(value, (str, bytes)):
        return f"{_cut(repr(value[:LONGEST]), len(value))} ({kind})"
    if isinstance(value, (*_SAFE, int)) and not isinstance(value, np.void):
        return f"{_cut(repr(value))} ({kind})"
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if isinstance(shape, tuple) and dtype is not None:
        return f"{_cut(f'{dtype}{list(shape)}')} ({kind})"
    if type(value) in (list, tuple, dict):
        return _collection(kind, cast(Collection[object], value))
    return f"a value of type {kind}"


def _collection(kind: str, value: Collection[object]) -> str:
    """How many there are; of one, what it is: somebody wrote ``["a"]`` for ``"a"``."""
    inner = next(iter(value)) if len(value) == 1 else None
    return f"a {kind} of {len(value)}" + (f", {_cut(repr(inner[:LONGEST]))}" if isinstance(inner, str) else "")


def listed(names: Iterable[object], most: int = MOST_NAMES) -> str:
    """The first names, and how many more there are; ``none`` where there is none."""
    names = list(names)
    texts = [_cut(repr(name[:LONGEST]) if isinstance(name, (str, bytes)) else shown(name)) for name in names[:most]]
    more = len(names) - len(texts)
    text = ", ".join(texts) or "none"
    return text + (f" and {more:,} more" if more > 0 else "")


def described(parts: Iterable[object], count: int, most: int = MOST_NAMES) -> str:
    """The first of ``count`` parts as they print, and how many more there are."""
    text = ", ".join(_cut(str(part)) for part in islice(parts, most))
    return text + (f" and {count - most:,} more" if count > most else "")


def _cut(text: str, length: int = 0) -> str:
    longer = len(text) > LONGEST or length > LONGEST
    return f"{text[: LONGEST - 4]}..." if longer else text
