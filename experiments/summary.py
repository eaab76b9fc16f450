"""Means over seeds, with intervals, and comparisons of two arms on the same seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.errors import ConfigError, InvalidValue

CONFIDENCE = 0.95
"""Confidence of the intervals."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean of ``n`` values and its 95 % interval by Student's t. The ends are infinite for a single value.

    ``format(interval, spec)`` gives both numbers by the format of a float: ``f"{interval:.1%}"``.
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def half_width(self) -> float:
        """Distance from the mean to each end."""
        return self.high - self.mean

    def __rmul__(self, factor: float) -> Interval:
        """Return the interval in other units; the factor is above 0."""
        return Interval(factor * self.mean, factor * self.low, factor * self.high, self.n)

    def __format__(self, spec: str) -> str:
        spec = spec or ".3g"
        spread = "?" if math.isinf(self.half_width) else f"{self.half_width:{spec.lstrip('+')}}"
        return f"{self.mean:{spec}} ± {spread}"

    def __str__(self) -> str:
        return f"{self}"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Comparison of two arms on the same seeds.

    Attributes
    ----------
    difference : Interval
        Mean and interval of first minus second.
    p : float
        p-value of the two-sided paired t-test that the mean difference is 0. It is 1 if there is a single pair or all
        differences are 0, and 0 if all differences are the same other number.
    """

    difference: Interval
    p: float


def mean_interval(values: Sequence[float] | NDArray[np.float64]) -> Interval:
    """Return the mean and ``mean -+ t(0.975, n - 1) * s / sqrt(n)``, s the sample standard deviation.

    Raises
    ------
    InvalidValue
        There is no value, or a value is NaN or infinite.
    """
    x = _checked(values)
    n = len(x)
    mean = float(x.mean())
    half = _t().ppf((1 + CONFIDENCE) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n) if n > 1 else math.inf
    return Interval(mean, float(mean - half), float(mean + half), n)


def compare(first: Sequence[float] | NDArray[np.float64], second: Sequence[float] | NDArray[np.float64]) -> Comparison:
    """Return the paired comparison of two arms. Values of the same seed are at the same position.

    Raises
    ------
    InvalidValue
        The arms differ in length, are empty, or hold NaN or infinity.
    """
    a, b = _checked(first), _checked(second)
    if len(a) != len(b):
        raise InvalidValue(f"both arms need equally many values, got {len(a)} and {len(b)}")
    difference = mean_interval(a - b)
    n, mean, half = difference.n, difference.mean, difference.half_width
    if n == 1 or not (mean or half):
        return Comparison(difference, 1.0)
    if not half:
        return Comparison(difference, 0.0)
    t = abs(mean) / half * _t().ppf((1 + CONFIDENCE) / 2, n - 1)
    return Comparison(difference, float(2 * _t().sf(t, n - 1)))


def _checked(values: Sequence[float] | NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not x.size or not np.all(np.isfinite(x)):
        raise InvalidValue(f"a mean needs one finite value or more, got {values!r}")
    return x


def _t() -> Any:
    try:
        from scipy.stats import t
    except ImportError as error:
        raise ConfigError("the intervals need scipy: pip install memstore[train]") from error
    return t
