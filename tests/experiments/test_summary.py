"""Means, intervals and paired tests, against tables and scipy's own test."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import ttest_rel

from experiments.summary import compare, mean_interval
from memstore.errors import InvalidValue


def test_the_interval_is_students() -> None:
    interval = mean_interval([1.0, 2.0, 3.0])
    # t(0.975, 2) = 4.3027, from any table; s = 1.
    assert (interval.mean, interval.n) == (2.0, 3)
    assert interval.half_width == pytest.approx(4.3027 / math.sqrt(3), abs=1e-4)
    assert interval.low == pytest.approx(2 - interval.half_width)


def test_a_single_value_has_no_interval() -> None:
    interval = mean_interval([0.5])
    assert (interval.mean, interval.low, interval.high, interval.n) == (0.5, -math.inf, math.inf, 1)
    assert f"{interval:.1f}" == "0.5 ± ?"


def test_an_interval_prints_both_numbers_in_the_same_format() -> None:
    interval = mean_interval([0.86, 0.88])
    assert f"{interval:.1%}" == "87.0% ± 12.7%"
    assert f"{100 * interval:+.1f}" == "+87.0 ± 12.7"
    assert str(interval) == "0.87 ± 0.127"


@pytest.mark.parametrize("n", [2, 3, 20])
def test_the_comparison_is_the_paired_t_test(n: int) -> None:
    rng = np.random.default_rng(n)
    first, second = rng.standard_normal(n), rng.standard_normal(n) + 0.5
    found, expected = compare(first, second), ttest_rel(first, second)
    assert found.p == pytest.approx(expected.pvalue)
    ends = expected.confidence_interval(0.95)
    assert (found.difference.low, found.difference.high) == pytest.approx((ends.low, ends.high))
    assert found.difference.n == n


def test_pairing_sees_what_the_seeds_hide() -> None:
    seeds = 10 * np.random.default_rng(0).standard_normal(20)
    noise = 0.1 * np.random.default_rng(1).standard_normal(20)
    assert compare(seeds + 0.2 + noise, seeds).difference.low > 0
    assert compare(seeds + 0.2 + noise, seeds[::-1]).difference.low < 0


def test_differences_without_spread() -> None:
    assert compare([1.0, 2.0], [1.0, 2.0]).p == 1.0
    assert compare([1.0, 2.0], [0.5, 1.5]).p == 0.0
    assert compare([1.0], [0.0]).p == 1.0
    assert compare([1.0], [0.0]).difference.low == -math.inf


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf], [[1.0, 2.0]]])
def test_what_has_no_mean_is_refused(values: list[float]) -> None:
    with pytest.raises(InvalidValue, match="one finite value or more"):
        mean_interval(values)


def test_pairs_must_be_complete() -> None:
    with pytest.raises(InvalidValue, match="got 2 and 1"):
        compare([1.0, 2.0], [1.0])
