"""Draws without weights: every episode alike, or so many of each domain; ranks first, so nothing is rejected."""

from __future__ import annotations

import numpy as np

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.slots import PLACE_BITS, Floats, Ints
from memstore.buffer.blocks.views import View
from memstore.draws.arithmetic import spread
from memstore.draws.weighted import nth


def uniform(copy: Copy, view: View, rng: np.random.Generator, wanted: int, *, replacement: bool = False) -> Ints:
    """Draw places, all that the view allows alike; without replacement all of them where they are fewer."""
    total = int(view.live.sum())
    if not total:
        return np.zeros(0, np.int64)
    ranks = rng.integers(0, total, wanted) if replacement else rng.choice(total, min(wanted, total), replace=False)
    return _at(copy, view, np.arange(len(copy)), ranks)


def domain_counts(copy: Copy, view: View) -> tuple[Ints, Ints]:
    """Return the domains with episodes that the view allows, ascending, and how many each has."""
    order = copy.directory.order
    domains = copy.domains[order]
    first = np.flatnonzero(np.diff(domains, prepend=-1))
    counts = np.add.reduceat(view.live[order], first) if len(first) else view.live[:0]
    return domains[first][counts > 0], counts[counts > 0]


def balanced(
    copy: Copy, view: View, rng: np.random.Generator, wanted: int, shares: Floats, *, replacement: bool = False
) -> Ints:
    """Draw places with a quota for each domain, all of a domain alike, in random order.

    Parameters
    ----------
    shares : array
        Of the domains that ``domain_counts`` names; 0 for those that are not to be drawn.
    """
    _, sizes = domain_counts(copy, view)
    possible = np.where(shares > 0, sizes, 0)
    quotas = spread(rng, wanted, shares, np.where(possible > 0, wanted, 0) if replacement else possible)
    some = np.flatnonzero(quotas)
    if not len(some):
        return np.zeros(0, np.int64)
    ranks = _ranks(rng, sizes[some], quotas[some], replacement)
    ranks += np.repeat((np.cumsum(sizes) - sizes)[some], quotas[some])
    return _at(copy, view, copy.directory.order, ranks[rng.permutation(len(ranks))])


def _ranks(rng: np.random.Generator, sizes: Ints, quotas: Ints, replacement: bool) -> Ints:
    """Draw so many numbers below each size; without replacement they differ."""
    if replacement or quotas.max() == 1:
        # With 10,000 domains and a batch of 256, one call and not 256.
        return rng.integers(0, np.repeat(sizes, quotas))
    drawn = [rng.choice(n, k, replace=False) for n, k in zip(sizes.tolist(), quotas.tolist(), strict=True)]
    return np.concatenate(drawn)


def _at(copy: Copy, view: View, order: Ints, rank: Ints) -> Ints:
    """Return the places of these ranks among all that the view allows, counted in this order of blocks."""
    count = view.live[order]
    ends = np.cumsum(count)
    at = np.searchsorted(ends, rank, side="right")
    block, rest = order[at], rank - (ends - count)[at]
    if view.test is None and not len(view.excluded):
        return (block << PLACE_BITS) + rest
    blocks, ordinal = np.unique(block, return_inverse=True)
    return (block << PLACE_BITS) + nth(view.allowed(copy.open(blocks), copy.domains), ordinal, rest)
