"""Arithmetic of draws: whole slots from fractions, sums of very many or very large terms."""

from __future__ import annotations

import numpy as np

from memstore.buffer.blocks.slots import Floats, Ints


def spread(rng: np.random.Generator, count: int, shares: Floats, limits: Ints) -> Ints:
    """Return whole slots in proportion to shares.

    No entry gets more slots than its limit. The other entries share the slots that are left over. Systematic sampling
    over a random order gives the fractional slots (Madow 1949). So each entry gets its share exactly on average, and
    is never more than one slot away from it.
    """
    slots = np.zeros(len(shares), np.int64)
    open_ = (limits > 0) & (shares > 0)
    while True:
        left = min(count - int(slots.sum()), int(limits[open_].sum()))
        if left <= 0:
            return slots
        ideal = np.where(open_, shares, 0.0) / shares[open_].sum() * left
        full = open_ & (ideal >= limits)
        if not full.any():
            break
        # This comes before any rounding, so that the other entries share the slots that these cannot take.
        slots[full] = limits[full]
        open_ &= ~full
    given = np.floor(ideal + 1e-9).astype(np.int64)
    order = rng.permutation(len(shares))
    fractions = np.cumsum(np.maximum(ideal - given, 0.0)[order])
    # The exact sum is a whole number. Rounding errors must not make one slot more or less.
    fractions[-1] = round(fractions[-1])
    steps = np.floor(np.minimum(fractions, fractions[-1]) + rng.random())
    given[order] += np.diff(steps, prepend=0.0).astype(np.int64)
    whole: Ints = slots + given
    return whole


def log2_sum(log2_values: Floats, factors: Floats | Ints | float = 1.0) -> float:
    """Return ``log2(sum(factors * 2 ** log2_values))`` without overflow."""
    top = log2_values.max()
    return float(top + np.log2((factors * np.exp2(log2_values - top)).sum()))


def power_sum(first: int, last: int, alpha: float) -> float:
    """Return ``sum(n ** -alpha for n in first .. last)``, by the Euler-Maclaurin formula beyond the first 64 terms."""
    head = np.arange(first, min(last, first + 63) + 1, dtype=np.float64)
    total = float((head**-alpha).sum())
    m, n = float(first + 64), float(last)
    if n < m:
        return total
    ratio = np.log(n / m)
    integral = ratio if alpha == 1 else m ** (1 - alpha) * np.expm1((1 - alpha) * ratio) / (1 - alpha)
    slope = alpha * (m ** (-alpha - 1) - n ** (-alpha - 1)) / 12
    third = alpha * (alpha + 1) * (alpha + 2) * (m ** (-alpha - 3) - n ** (-alpha - 3)) / 720
    return total + float(integral + (m**-alpha + n**-alpha) / 2 + slope - third)


def random_keys(rng: np.random.Generator, log2_weight: Floats) -> Floats:
    """Return base-2 logarithms of keys ``Exp(1) / weight``.

    The smallest keys, smallest first, are successive sampling in one pass (Efraimidis and Spirakis 2006, "Weighted
    random sampling with a reservoir"; their key ``u ** (1 / w)`` is ``exp(-key)`` of this one).
    """
    # The ziggurat algorithm of numpy may return zero, once in 2**53.
    clocks = np.maximum(rng.exponential(size=len(log2_weight)), np.finfo(np.float64).tiny)
    keys: Floats = np.log2(clocks) - log2_weight
    return keys


def smallest_keys(rng: np.random.Generator, log2_weight: Floats, wanted: int) -> Ints:
    """Return the places of the ``wanted`` smallest ``random_keys``, smallest first."""
    return np.argsort(random_keys(rng, log2_weight), kind="stable")[:wanted]
