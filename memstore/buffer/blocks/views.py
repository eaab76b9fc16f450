"""Views: for a law and a test, one sum a block, computed from contents and kept current with them.

The sums of the buffer's own law stand in the heads. For another alpha, and for a condition, a view has some of its own.
It notices by stamps which blocks have changed, computes their sums again from their whole content, and never adds
to a sum or subtracts from it. So its numbers are a function of the contents, whatever happened in between, and whether
the view was there or not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import Heads
from memstore.buffer.blocks.pages import Opened
from memstore.buffer.blocks.slots import PLACE_BITS, SLOTS, Flags, Floats, Ints, Slots, among, distinct
from memstore.buffer.blocks.weights import Law, steps_of

KEPT = 8
"""Views that are kept, those used last."""


class Test(Protocol):
    """A condition on episodes; equal ones let the same episodes pass, so it is hashable."""

    def passing(self, slots: Slots, domains: Ints) -> Flags:
        """Flag the slots that pass, by each slot alone, and by facts of its episode that never change."""

    def reach(self, heads: Heads) -> tuple[Flags, Flags]:
        """Flag the blocks that may hold an episode that passes, and the blocks in which every episode passes."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """The part of each block that may be drawn: how many episodes, how many never measured, and the sum of the others.

    ``live`` counts what passes the test and is not excluded, ``gaps`` the never measured ones of these. Without a law
    there are no sums.
    """

    law: Law | None
    test: Test | None
    excluded: Ints
    name: Ints
    stamp: Ints
    live: Ints
    gaps: Ints
    sums: Floats
    unit: Ints

    @classmethod
    def of(cls, copy: Copy, law: Law | None, test: Test | None = None) -> View:
        """Return the view of a copy: by its heads where they tell, else computed from all contents."""
        heads, none = copy.heads, np.zeros(0, np.int64)
        if test is None and law in (None, copy.pages.law):
            live, gaps, unit = (heads[name].astype(np.int64) for name in ("live", "gaps", "unit"))
            return cls(law, None, none, heads["name"], heads["stamp"], live, gaps, heads["sum"], unit)
        return cls(law, test, none, none, none, none, none, np.zeros(0), none).current(copy)

    def current(self, copy: Copy) -> View:
        """Return the view of this copy: what is known stays where the stamps are the same."""
        heads = copy.heads
        moved = self if np.array_equal(self.name, heads["name"]) else self._rearranged(heads)
        stale = np.flatnonzero(moved.stamp != heads["stamp"])
        if not len(stale):
            return moved
        fresh = replace(moved._own(), stamp=heads["stamp"].copy())
        fresh._compute(copy, stale)
        return fresh

    def without(self, copy: Copy, places: Ints) -> View:
        """Return the view in which these episodes of its copy have the weight 0 too: for a draw, or for leases."""
        fresh = replace(self._own(), excluded=distinct(np.concatenate([self.excluded, places])))
        fresh._compute(copy, distinct(places >> PLACE_BITS))
        return fresh

    def allowed(self, blocks: Opened, domains: Ints) -> Flags:
        """Return which cells may be drawn."""
        allowed = blocks.used
        if self.test is not None:
            slots = blocks.slots
            allowed[allowed] = self.test.passing(slots, domains[blocks.blocks][blocks.ordinal])
        row = np.searchsorted(blocks.blocks, self.excluded >> PLACE_BITS)
        inside = np.flatnonzero(row < len(blocks))
        inside = inside[blocks.blocks[row[inside]] == self.excluded[inside] >> PLACE_BITS]
        allowed[row[inside], self.excluded[inside] & ((1 << PLACE_BITS) - 1)] = False
        return allowed

    def log2_weights(self, blocks: Opened, domains: Ints, unmeasured: float) -> Floats:
        """Return logarithms of the weights in all cells, -inf for what may not be drawn."""
        assert self.law is not None
        log2 = self.law.log2(blocks.loss)
        log2[np.isnan(log2)] = unmeasured
        log2[~self.allowed(blocks, domains)] = -np.inf
        return log2

    def steps_in(self, copy: Copy, block: Ints) -> tuple[Floats, Ints, Ints]:
        """Return where cumulative weights of these blocks stand: an array, and for each its beginning and length."""
        count: Ints = copy.heads["live"][block].astype(np.int64)
        if self.test is None and self.law == copy.pages.law and not len(self.excluded):
            pages = copy.paged(block)
            return copy.pages.steps.reshape(-1), pages * SLOTS, count
        blocks, ordinal = np.unique(block, return_inverse=True)
        steps, _ = steps_of(self.log2_weights(copy.open(blocks), copy.domains, -np.inf))
        return steps.reshape(-1), ordinal * SLOTS, count

    def _own(self) -> View:
        """Return a view with arrays of its own."""
        live, gaps, unit = (array.copy() for array in (self.live, self.gaps, self.unit))
        return replace(self, live=live, gaps=gaps, sums=self.sums.copy(), unit=unit)

    def _rearranged(self, heads: Heads) -> View:
        """Bring the numbers to where their blocks stand now; those of new blocks are zero, with a stamp of nothing."""
        names, old = heads["name"], len(self.name)
        if np.array_equal(names[:old], self.name):
            source = np.concatenate([np.arange(old), np.full(len(names) - old, -1)])
        else:
            known, at = among(names, self.name)
            source = np.where(known, at, -1)
        stamp, live, gaps, unit = (
            np.append(values, fill)[source]
            for values, fill in ((self.stamp, -1), (self.live, 0), (self.gaps, 0), (self.unit, 0))
        )
        sums = np.append(self.sums, 0.0)[source]
        return replace(self, name=names.copy(), stamp=stamp, live=live, gaps=gaps, sums=sums, unit=unit)

    def _compute(self, copy: Copy, blocks: Ints) -> None:
        """Set the numbers of these blocks, in arrays that nobody else has: from the heads, if they tell the numbers."""
        heads = copy.heads[blocks]
        some, every = heads["live"] > 0, np.ones(len(blocks), np.bool_)
        if self.test is not None:
            reached, every = self.test.reach(heads)
            some &= reached
        for array in (self.live, self.gaps, self.sums, self.unit):
            array[blocks[~some]] = 0
        whole, rest = blocks[some & every], blocks[some & ~every]
        if self.law is None:
            gone = np.bincount(self.excluded >> PLACE_BITS, minlength=len(copy))
            self.live[whole] = (copy.heads["live"] - gone)[whole]
        elif self.law == copy.pages.law and not len(self.excluded):
            for array, name in ((self.live, "live"), (self.gaps, "gaps"), (self.sums, "sum"), (self.unit, "unit")):
                array[whole] = copy.heads[name][whole]
        else:
            rest = blocks[some]
        for opened in copy.chunks(rest):
            self._count(copy, opened)

    def _count(self, copy: Copy, opened: Opened) -> None:
        blocks = opened.blocks
        if self.law is None:
            self.live[blocks] = self.allowed(opened, copy.domains).sum(axis=1)
            return
        log2 = self.log2_weights(opened, copy.domains, np.nan)
        missing = np.isnan(log2)
        self.gaps[blocks] = missing.sum(axis=1)
        self.live[blocks] = (log2 != -np.inf).sum(axis=1)
        log2[missing] = -np.inf
        steps, self.unit[blocks] = steps_of(log2)
        self.sums[blocks] = steps[:, -1]


class Views:
    """The views of a process of one buffer that heads do not tell, those used last.

    The kept views decide how long a draw takes, and never its result. A view that was computed in a
    transaction that is rolled back does no harm: no block of another content has its stamps.
    """

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[Law | None, Test | None], View] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, copy: Copy, law: Law | None = None, test: Test | None = None) -> View:
        """Return the view of this copy."""
        if test is None and law in (None, copy.pages.law):
            return View.of(copy, law)
        key = (law, test)
        with self._lock:
            known = self._kept.get(key)
        # Equal tests may know of different snapshots: this one knows of the snapshot of the copy.
        view = View.of(copy, law, test) if known is None else replace(known, test=test).current(copy)
        with self._lock:
            self._kept[key] = view
            self._kept.move_to_end(key)
            while len(self._kept) > KEPT:
                self._kept.popitem(last=False)
        return view

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()

    def after_fork(self) -> None:
        """Start empty in a child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._kept = OrderedDict()
