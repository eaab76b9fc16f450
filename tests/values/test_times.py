"""Times and durations of every kind and unit, against whole numbers."""

from __future__ import annotations

import datetime
import sys
from fractions import Fraction
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memstore.config import check_int, check_seconds
from memstore.errors import ConfigError, InvalidValue
from memstore.values.times import check_limit, check_time, check_times

UNITS = {
    "W": Fraction(604800),
    "D": Fraction(86400),
    "h": Fraction(3600),
    "m": Fraction(60),
    "s": Fraction(1),
    "ms": Fraction(1, 10**3),
    "us": Fraction(1, 10**6),
    "ns": Fraction(1, 10**9),
    "ps": Fraction(1, 10**12),
    "fs": Fraction(1, 10**15),
    "as": Fraction(1, 10**18),
}


EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


def nearest(exact: Fraction) -> float:
    """The float nearest to a fraction: Python divides whole numbers so."""
    return exact.numerator / exact.denominator


@given(st.sampled_from(sorted(UNITS)), st.integers(-(2**63) + 1, 2**63 - 1), st.sampled_from([1, 7, 25]))
def test_datetime64_is_the_nearest_float(unit: str, count: int, step: int) -> None:
    """As a scalar, as an array of no dimension, and in an array."""
    exact = count * step * UNITS[unit]
    value = np.array([count], np.int64).view(f"M8[{step}{unit}]")
    if abs(exact) > 10**11:
        for refused in (value[0], value[0:1].reshape(())):
            with pytest.raises(InvalidValue, match="looks like"):
                check_time("t", refused)
        return
    assert check_time("t", value[0]) == check_time("t", value.reshape(())) == nearest(exact)
    assert check_times("t", value) == [nearest(exact)]


@pytest.mark.parametrize(
    ("text", "unit", "seconds"),
    [
        ("2026", "Y", 1767225600.0),
        ("2026-11", "M", 1793491200.0),
        ("1969", "Y", -31536000.0),
        ("0001", "Y", -62135596800.0),
        ("5138-01", "M", 99972403200.0),
        ("2026-11-28T10:20:30", "ns", 1795861230.0),
        ("1970-01-01", "as", 0.0),
    ],
)
def test_calendar_units(text: str, unit: str, seconds: float) -> None:
    assert check_time("t", np.array(text, f"M8[{unit}]")) == seconds


@given(st.datetimes(datetime.datetime(1, 1, 2), datetime.datetime(5000, 1, 1)))
def test_the_same_instant_of_other_libraries(moment: datetime.datetime) -> None:
    aware = moment.replace(tzinfo=datetime.UTC)
    microseconds = (aware - EPOCH) // datetime.timedelta(microseconds=1)
    seconds = nearest(Fraction(microseconds, 10**6))
    east = aware.astimezone(datetime.timezone(datetime.timedelta(hours=5, minutes=30))) if moment.year > 1 else aware
    assert check_time("t", aware) == check_time("t", east) == check_time("t", np.datetime64(moment, "us")) == seconds
    if 1700 < moment.year < 2200:
        assert check_time("t", pd.Timestamp(aware)) == seconds


def test_pandas_and_pyarrow() -> None:
    import pyarrow as pa

    fine = pd.Timestamp("2026-11-28T10:20:30.123456789", tz="Europe/Berlin")
    exact = nearest(Fraction(1795857630123456789, 10**9))
    assert check_time("t", fine) == exact
    assert check_time("t", pa.scalar(fine, pa.timestamp("ns", "UTC"))) == exact
    for naive in (fine.tz_localize(None), pa.scalar(datetime.datetime(2026, 1, 1)), datetime.datetime(2026, 1, 1)):
        with pytest.raises(InvalidValue, match="no time zone"):
            check_time("t", naive)


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (np.datetime64("NaT", "s"), "NaT"),
        (np.datetime64("NaT"), "NaT"),
        (pd.NaT, "NaT"),
        (np.zeros(1, "M8").reshape(()), "without a unit"),
        (np.True_, r"bool\[\]|np.True_"),
        (True, "True"),
        (np.array(True), "bool"),
        ("2026-11-28", "2026"),
        (b"1", "bytes"),
        (np.array("5"), "U1"),
        (datetime.date(2026, 1, 1), "date"),
        (datetime.timedelta(1), "timedelta"),
        (np.timedelta64(1, "s"), "timedelta"),
        ([1.0], "a list of 1"),
        (np.array([1.0]), r"float64\[1\]"),
        (1j, "complex"),
        (None, "None"),
        (float("nan"), "finite"),
        (10**400, "nanoseconds"),
        (1.8e12, "looks like milliseconds: divide by 1000"),
        (-1.8e12, "looks like milliseconds"),
        (1.8e15, "looks like microseconds: divide by 1e6"),
        (1_800_000_000_000_000_000, "looks like nanoseconds: divide by 1e9"),
        (np.datetime64(10**9, "Y"), "beyond the year 5138"),
        (np.datetime64(5139, "Y"), "looks like"),
    ],
)
def test_what_is_no_time(value: Any, part: str) -> None:
    with pytest.raises(InvalidValue, match=part):
        check_time("t", value)


def test_the_end_of_a_span_may_be_anywhere() -> None:
    assert check_limit("end", 1e18) == 1e18 and check_limit("end", np.datetime64(1, "D")) == 86400.0
    assert check_limit("end", 10**400) == sys.float_info.max and check_limit("start", -(10**400)) == -sys.float_info.max
    for wrong in (float("nan"), float("inf"), float("-inf"), "1", True):
        with pytest.raises(InvalidValue):
            check_limit("end", wrong)


def test_a_clock_of_ones_own_counts_as_it_likes() -> None:
    for step in (0, 1, -1, 10**6, 10**11, np.int64(5), np.float32(0.5), np.array(7), np.uint8(3)):
        assert check_time("t", step) == float(step)


@given(st.sampled_from(sorted(UNITS)), st.integers(0, 10**6))
def test_durations(unit: str, count: int) -> None:
    assert check_seconds("max_age", np.array(count).astype(f"m8[{unit}]")) == nearest(count * UNITS[unit])
    assert check_seconds("max_age", datetime.timedelta(microseconds=count)) == nearest(Fraction(count, 10**6))
    assert check_seconds("max_age", pd.Timedelta(count, "ns")) == nearest(Fraction(count, 10**9))


@pytest.mark.parametrize(
    "value",
    [
        np.timedelta64(1, "M"),
        np.timedelta64(1, "Y"),
        np.timedelta64(1),
        np.timedelta64("NaT", "s"),
        pd.NaT,
        datetime.timedelta(-1),
        np.datetime64(1, "s"),
        np.True_,
        "1",
    ],
)
def test_what_is_no_duration(value: Any) -> None:
    with pytest.raises(ConfigError, match="max_age"):
        check_seconds("max_age", value)


@pytest.mark.parametrize(
    "value", [True, np.True_, np.array(True), np.timedelta64(1, "s"), np.datetime64(1, "s"), 1.0, "1"]
)
def test_what_is_no_integer(value: Any) -> None:
    with pytest.raises(ConfigError, match="must be an integer"):
        check_int("level", value, minimum=0)
