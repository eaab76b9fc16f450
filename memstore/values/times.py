"""Converts times and durations to seconds. Each becomes the nearest float, and is rounded only once."""

from __future__ import annotations

import datetime
import math
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from memstore.errors import InvalidValue
from memstore.values.foreign import is_arraylike, is_flag, is_tensor, number
from memstore.values.shown import shown

MAX_SECONDS = 1e11
"""A time is at most this, in the year 5138. A larger number is taken for milliseconds, which reach it in 1973."""

_PER_SECOND = {"ms": 10**3, "us": 10**6, "ns": 10**9, "ps": 10**12, "fs": 10**15, "as": 10**18}
"""A second has this many of each unit."""

_SECONDS = {"s": 1, "m": 60, "h": 3600, "D": 86400, "W": 7 * 86400}
"""Each unit has this many seconds."""

_SCALES = ((1e17, "nanoseconds", "1e9"), (1e14, "microseconds", "1e6"), (0.0, "milliseconds", "1000"))
"""A time may have these units by mistake. Each has the least number for which it is likely, a name, and a divisor."""

_LONGEST_CALENDAR = 10**6
"""numpy converts this many years or months from 1970 to days without an overflow, far beyond MAX_SECONDS."""


def check_time(what: str, value: Any) -> float:
    """Return a time in seconds.

    Parameters
    ----------
    what : str
        The name of the argument, for messages.
    value : number, aware datetime or datetime64
        A number may come from any clock, or from a step counter. A ``datetime64`` of any unit is UTC, as numpy defines.

    Raises
    ------
    InvalidValue
        If the value is none of these, or if it looks like milliseconds (beyond +-1e11).
    """
    return _check_seconds(what, _seconds(what, value))


def check_limit(what: str, value: Any) -> float:
    """Return the beginning or the end of a span of time in seconds. Unlike in ``check_time``, it may have any size.

    A buffer may hold larger times that an earlier memstore accepted, and a span must find them. Besides, ``1e18`` is
    common for an open end. A number beyond the largest float becomes that float.

    Raises
    ------
    InvalidValue
        If the value is no time, or is not finite.
    """
    seconds = _seconds(what, value)
    if isinstance(seconds, float) and not math.isfinite(seconds):
        raise InvalidValue(f"{what} must be finite, got {seconds!r}")
    largest = sys.float_info.max
    return float(min(max(seconds, -largest), largest))


def _seconds(what: str, value: Any) -> int | float:
    if hasattr(value, "as_py"):  # a scalar of pyarrow
        value = value.as_py()
    if isinstance(value, (np.ndarray, np.generic)) and value.ndim == 0 and value.dtype.kind == "M":
        return _instants(what, np.asarray(value).reshape(1))[0]
    if isinstance(value, datetime.datetime):
        return _aware(what, value)
    seconds = number(value)
    if seconds is None:
        raise InvalidValue(f"{what} must be seconds, an aware datetime or a datetime64, got {shown(value)}")
    return seconds


def check_times(what: str, values: Any) -> list[float | None]:
    """Return several times in seconds, as ``check_time`` does for each. None stays None."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "M":
        return [_check_seconds(what, seconds) for seconds in _instants(what, values)]
    return [None if value is None else check_time(what, value) for value in values]


def is_duration(value: object) -> bool:
    """True if the value is a duration with a unit: a ``timedelta`` or a ``timedelta64``."""
    return isinstance(value, (datetime.timedelta, np.timedelta64)) or (
        isinstance(value, np.ndarray) and value.dtype.kind == "m"
    )


def seconds_of(what: str, value: Any) -> Any:
    """Return a ``timedelta`` or a ``timedelta64`` in seconds. Other values stay as they are, for ``check_float``.

    Raises
    ------
    InvalidValue
        If a ``timedelta64`` is NaT, or has a unit that is no number of seconds (years, months, none).
    """
    if isinstance(value, datetime.timedelta):
        if hasattr(value, "to_timedelta64"):  # a Timedelta of pandas, which has nanoseconds
            return seconds_of(what, value.to_timedelta64())
        return value.total_seconds() if value == value else value
    if is_duration(value) and np.ndim(value) == 0:
        unit, step = np.datetime_data(value.dtype)
        if np.isnat(value) or unit in ("generic", "Y", "M"):
            raise InvalidValue(f"{what} is {shown(value)}, which has no length in seconds; use weeks to attoseconds")
        return _to_seconds([int(np.asarray(value).astype(np.int64))], unit, step)[0]
    return value


def _aware(what: str, value: datetime.datetime) -> float:
    if value != value:
        raise InvalidValue(f"{what} is NaT, which is no time; give seconds, or leave it out")
    if value.tzinfo is None:
        raise InvalidValue(f"{what} {shown(value)} has no time zone; use datetime.now(timezone.utc) or seconds")
    if hasattr(value, "to_datetime64"):  # a Timestamp of pandas, which has nanoseconds
        return _instants(what, np.asarray(value.to_datetime64()).reshape(1))[0]
    return value.timestamp()


def _instants(what: str, values: npt.NDArray[Any]) -> list[float]:
    """Return the seconds since 1970 for an array of ``datetime64``. Each is rounded once."""
    unit, step = np.datetime_data(values.dtype)
    if np.isnat(values).any():
        raise InvalidValue(f"{what} is NaT, which is no time; give seconds, or leave it out")
    if unit == "generic":
        raise InvalidValue(f"{what} is a datetime64 without a unit; write np.datetime64(..., 's')")
    if unit in ("Y", "M"):
        counts = values.astype(np.int64)
        if np.abs(counts.astype(np.float64)).max(initial=0) * step > _LONGEST_CALENDAR:
            raise InvalidValue(f"{what} is {shown(values.flat[0])}, beyond the year 5138")
        values, unit, step = values.astype("datetime64[D]"), "D", 1
    return _to_seconds(values.astype(np.int64).ravel().tolist(), unit, step)


def _to_seconds(counts: Sequence[int], unit: str, step: int) -> list[float]:
    if unit in _SECONDS:
        return [float(count * step * _SECONDS[unit]) for count in counts]
    # Python divides ints of any size, and rounds the result correctly and once.
    return [count * step / _PER_SECOND[unit] for count in counts]


def _check_seconds(what: str, seconds: int | float) -> float:
    if isinstance(seconds, float) and not math.isfinite(seconds):
        raise InvalidValue(f"{what} must be finite, got {seconds!r}")
    if abs(seconds) > MAX_SECONDS:
        unit, divisor = next((unit, by) for least, unit, by in _SCALES if abs(seconds) >= least)
        raise InvalidValue(
            f"{what} must be seconds, and {shown(seconds)} looks like {unit}: divide by {divisor} "
            f"(the largest time is {MAX_SECONDS:g}, the year 5138)"
        )
    return float(seconds)


def is_zoneless(value: object) -> bool:
    """True if the value is a foreign column of times without a time zone, such as a pandas Series."""
    return (
        is_arraylike(value)
        and not is_tensor(value)
        and not is_flag(value)
        and str(getattr(value, "dtype", "")).startswith("datetime64")
        and getattr(getattr(value, "dtype", None), "tz", None) is None
    )
