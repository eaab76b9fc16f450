"""Draws of indices: uniform, and in proportion to weights, both without replacement."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memstore.errors import InvalidValue


def uniform(rng: np.random.Generator, total: int, count: int) -> NDArray[np.int64]:
    """Draw ``count`` distinct indices below ``total``, or all when fewer."""
    total = checked_count(total)
    return rng.choice(total, min(checked_count(count), total), replace=False)


def by_priority(rng: np.random.Generator, weights: ArrayLike, count: int) -> NDArray[np.int64]:
    """Draw ``count`` distinct indices one after the other, each in proportion to the weights that remain."""
    w = np.asarray(weights, np.float64)
    if w.ndim != 1 or not np.all(np.isfinite(w)) or np.any(w < 0):
        raise InvalidValue("weights must be one row of finite numbers >= 0")
    if not np.any(w):
        return uniform(rng, len(w), count)
    # The smallest of exponential clocks with these rates, in logs so that no weight over- or underflows.
    with np.errstate(divide="ignore"):
        clocks = np.log(rng.standard_exponential(len(w))) - np.log(w)
    return np.argsort(clocks, kind="stable")[: min(checked_count(count), np.count_nonzero(w))]


def checked_count(value: Any) -> int:
    """Return the value as an int, 0 or more."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or value < 0:
        raise InvalidValue(f"a count must be an integer, 0 or more, got {value!r}")
    return int(value)
