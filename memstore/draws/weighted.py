"""Draws in proportion to weight from a view of the copy: exact, and nothing is rejected.

A block is chosen by its sum, a slot in it by its steps. Without replacement, repeats are skipped in the order of the
proposals, which is successive sampling (Plackett 1975; Luce 1959). Before the next round what was drawn gets the weight
0 in the draw's own view, so one dominating weight costs one round. How many random numbers a round takes follows from
how many episodes are wanted and how many may be drawn, and from nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.pages import Opened, reached
from memstore.buffer.blocks.slots import PLACE_BITS, Flags, Floats, Ints
from memstore.buffer.blocks.views import View
from memstore.buffer.blocks.weights import Law, in_largest_unit
from memstore.draws.arithmetic import random_keys
from memstore.testing import count

ROUNDS = 8
"""Rounds of proposals, before keys decide: those cost a pass over all episodes, and always suffice."""

SCAN_SHARE = 4
"""A draw of more than one in this many episodes goes by keys at once: the pass costs no more than the draw."""

Weigh = Callable[[Opened], Floats]
"""Base-2 logarithms of the weights in all cells, -inf for what may not be drawn."""


@dataclass(frozen=True, slots=True)
class Masses:
    """The masses that a draw chooses from: cumulative sums of weights and of counts, in one unit.

    Attributes
    ----------
    ends : array
        Cumulative sums of the weights of measured episodes, block after block.
    gaps : array
        Cumulative counts of the never measured ones, all of the weight ``gap_weight``; empty if there is none.
    unit : int
        Base-2 logarithm of the unit of ``ends`` and ``gap_weight``.
    """

    ends: Floats
    gaps: Ints
    gap_weight: float
    unit: int

    @classmethod
    def of(cls, view: View, top: float) -> Masses:
        """Sum up a view, with ``top`` the priority of the never measured."""
        assert view.law is not None
        unmeasured = view.law.log2_unmeasured(top)
        if not view.gaps.any():
            sums, unit = in_largest_unit(view.sums, view.unit)
            return cls(np.cumsum(sums), view.gaps[:0], 0.0, unit)
        sums, unit = in_largest_unit(view.sums, view.unit, unmeasured)
        return cls(np.cumsum(sums), np.cumsum(view.gaps), float(np.exp2(unmeasured - unit)), unit)

    @property
    def measured(self) -> float:
        """Sum of the weights of the measured ones."""
        return float(self.ends[-1]) if len(self.ends) else 0.0

    @property
    def total(self) -> float:
        """Sum of all weights."""
        return self.measured + (int(self.gaps[-1]) * self.gap_weight if len(self.gaps) else 0.0)

    @property
    def log2_total(self) -> float:
        """Base-2 logarithm of the sum of all weights, in no unit."""
        return self.unit + float(np.log2(self.total))


def weighted(
    copy: Copy,
    view: View,
    top: float,
    rng: np.random.Generator,
    wanted: int,
    *,
    replacement: bool = False,
    masses: Masses | None = None,
) -> Ints:
    """Draw places in proportion to weight.

    Parameters
    ----------
    view : View
        Of this copy, with a law.
    top : float
        Priority of the never measured episodes.
    wanted : int
        How many; without replacement all that may be drawn, where they are fewer.
    masses : Masses, optional
        Those of the view, if the caller knows them.
    """
    law = view.law
    assert law is not None
    left = int(view.live.sum())
    masses = Masses.of(view, top) if masses is None else masses
    if replacement:
        return _proposed(copy, view, masses, rng, wanted if left else 0)
    wanted = min(wanted, left)
    places: list[Ints] = []
    for number in range(ROUNDS if wanted * SCAN_SHARE < left else 0):
        if not wanted:
            break
        count("rounds")
        if number:
            view = view.without(copy, places[-1])
            masses = Masses.of(view, top)
        proposed = _proposed(copy, view, masses, rng, proposals(wanted, number))
        fresh = proposed[np.sort(np.unique(proposed, return_index=True)[1])][:wanted]
        places.append(fresh)
        wanted -= len(fresh)
    if wanted:
        if places:
            view = view.without(copy, places[-1])
        unmeasured = law.log2_unmeasured(top)
        last = by_keys(copy, view, rng, wanted, lambda opened: view.log2_weights(opened, copy.domains, unmeasured))
        places.append(last)
    return np.concatenate(places) if places else np.zeros(0, np.int64)


def proposals(wanted: int, number: int) -> int:
    """Return how many places the round of this number proposes, so that a second one is seldom and a third one rare."""
    return wanted + wanted // 8 + 8 if number == 0 else 4 * wanted + 32


def _proposed(copy: Copy, view: View, masses: Masses, rng: np.random.Generator, number: int) -> Ints:
    """Propose so many places, independently, in proportion to weight: two random numbers each."""
    if not number:
        return np.zeros(0, np.int64)
    which, inside = rng.random((2, number))
    target = which * masses.total
    measured = target < masses.measured
    places = np.empty(number, np.int64)
    if measured.any():
        block = choose(masses.ends, target[measured])
        places[measured] = (block << PLACE_BITS) + _slots(copy, view, block, inside[measured])
    if not measured.all():
        places[~measured] = _unmeasured(copy, view, masses.gaps, inside[~measured])
    return places


def choose(ends: Floats, target: Floats) -> Ints:
    """Return the step of the cumulative sum that holds each target, never one of height zero."""
    last = int(np.searchsorted(ends, ends[-1]))
    chosen: Ints = np.minimum(np.searchsorted(ends, target, side="right"), last)
    return chosen


def _slots(copy: Copy, view: View, block: Ints, inside: Floats) -> Ints:
    """Choose a slot of each block in proportion to weight."""
    steps, start, number = view.steps_in(copy, block)
    total = steps[start + number - 1]
    # Below the total: the slot has a step above the target, so it has a weight.
    target = np.minimum(inside * total, np.nextafter(total, 0.0))
    return reached(steps, start, number, target)


def _unmeasured(copy: Copy, view: View, ends: Ints, inside: Floats) -> Ints:
    """Choose never measured episodes, all alike."""
    total = int(ends[-1])
    rank = np.minimum((inside * total).astype(np.int64), total - 1)
    block = np.searchsorted(ends, rank, side="right")
    blocks, ordinal = np.unique(block, return_inverse=True)
    opened = copy.open(blocks)
    flags = view.allowed(opened, copy.domains) & np.isnan(opened.loss)
    return (block << PLACE_BITS) + nth(flags, ordinal, rank - (ends - view.gaps)[block])


def nth(flags: Flags, row: Ints, rank: Ints) -> Ints:
    """Return the column of the ``rank``-th flag that is set, counted from 0, in each of these rows."""
    _, columns = np.nonzero(flags)
    count = flags.sum(axis=1)
    found: Ints = columns[(np.cumsum(count) - count)[row] + rank]
    return found


def least_log2(copy: Copy, law: Law, top: float) -> float:
    """Return the logarithm of the least weight of a live episode, by heads: importance weights are relative to it."""
    least = copy.heads["least"].min(initial=np.inf)
    measured = float(law.log2(np.array([least]))[0]) if np.isfinite(least) else np.inf
    unmeasured = law.log2_unmeasured(top) if copy.heads["gaps"].any() else np.inf
    return min(measured, unmeasured)


def by_keys(copy: Copy, view: View, rng: np.random.Generator, wanted: int, weigh: Weigh) -> Ints:
    """Draw without replacement by one pass over all that may be drawn: those with the smallest ``Exp(1) / weight``.

    Successive sampling (Efraimidis and Spirakis 2006), smallest first. One exponential for each that may be drawn, in
    the order of blocks and slots. A chunk of blocks is in memory at a time.
    """
    count("listed")
    best, places = np.zeros(0), np.zeros(0, np.int64)
    for opened in copy.chunks(np.flatnonzero(view.live > 0)):
        log2 = weigh(opened)
        row, slot = np.nonzero(log2 > -np.inf)
        best = np.concatenate([best, random_keys(rng, log2[row, slot])])
        places = np.concatenate([places, (opened.blocks[row] << PLACE_BITS) + slot])
        if len(best) > wanted:
            kept = np.argpartition(best, wanted - 1)[:wanted]
            best, places = best[kept], places[kept]
    return places[np.argsort(best, kind="stable")]
