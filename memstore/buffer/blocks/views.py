"""Views: for a law and a test, one sum a block, computed from contents and kept current with them.

The buffer's own alpha is a view like any other; it is just always there. A view notices what changed by the stamps of
the blocks, computes the sums of those anew from their whole content, and never adds to a sum or subtracts from it. So
its numbers are a function of the contents, whatever happened in between, and whether the view was there or not.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import Heads
from memstore.buffer.blocks.opened import Opened, cut
from memstore.buffer.blocks.slots import Flags, Floats, Ints, Slots
from memstore.buffer.blocks.weights import Law, steps_of

CHUNK = 512
"""Blocks that are opened at once where all are: 2 MB, and 5 MB of what is computed from them."""

KEPT = 8
"""Views that are kept besides the buffer's own, those used last."""

PLACE_BITS = 7
"""The place of an episode is that of its block, shifted by this, plus its slot."""


class Test(Protocol):
    """A condition on episodes; equal ones let the same episodes pass, so it is hashable."""

    def passing(self, slots: Slots, domains: Ints) -> Flags:
        """Return which pass. It must be a function of each slot alone, and of what never changes of its episode."""


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What may be drawn of each block of a copy: how many, how many of them never measured, and the sum of the rest.

    ``live`` counts what passes the test and is not excluded, ``gaps`` the never measured ones of these. Without a law
    there are no sums. ``steps`` are the cumulative sums behind ``sums``, as bytes, None where they are not kept.
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
    steps: list[bytes | None]
    keeps_steps: bool

    @classmethod
    def of(cls, copy: Copy, law: Law | None, test: Test | None, *, keeps_steps: bool = False) -> View:
        """Compute a view from all contents."""
        none, zero = np.zeros(0, np.int64), np.zeros(0)
        return cls(law, test, none, none, none, none, none, zero, none, [], keeps_steps).current(copy)

    @classmethod
    def stored(cls, copy: Copy, law: Law, sums: Floats, unit: Ints) -> View:
        """Return the view of all episodes whose sums were stored beside the heads of this copy; nothing is opened."""
        heads, none = copy.heads, np.zeros(0, np.int64)
        counts = heads["live"].astype(np.int64), heads["gaps"].astype(np.int64)
        steps: list[bytes | None] = [None] * len(copy)
        return cls(law, None, none, heads["name"].copy(), heads["stamp"].copy(), *counts, sums, unit, steps, True)

    @property
    def key(self) -> tuple[Law | None, Test | None]:
        """What tells a view from others."""
        return self.law, self.test

    def current(self, copy: Copy) -> View:
        """Return the view of this copy: what is known stays where the stamps are the same."""
        heads = copy.heads
        moved = self if np.array_equal(self.name, heads["name"]) else self._rearranged(heads)
        stale = np.flatnonzero(moved.stamp != heads["stamp"])
        if not len(stale):
            return moved
        fresh = replace(
            moved,
            stamp=heads["stamp"].copy(),
            live=moved.live.copy(),
            gaps=moved.gaps.copy(),
            sums=moved.sums.copy(),
            unit=moved.unit.copy(),
            steps=moved.steps.copy() if moved.keeps_steps else [],
        )
        fresh._compute(copy, stale)
        return fresh

    def without(self, copy: Copy, places: Ints) -> View:
        """Return the view in which these episodes of its copy have the weight 0 too: for a draw, or for leases."""
        excluded = np.union1d(self.excluded, places)
        fresh = replace(
            self,
            excluded=excluded,
            live=self.live.copy(),
            gaps=self.gaps.copy(),
            sums=self.sums.copy(),
            unit=self.unit.copy(),
            steps=self.steps.copy(),
        )
        fresh._compute(copy, np.unique(places >> PLACE_BITS))
        return fresh

    def allowed(self, opened: Opened, domains: Ints) -> Flags | None:
        """Return which slots may be drawn; None for all."""
        allowed = None
        if self.test is not None:
            allowed = self.test.passing(opened.slots, domains[opened.blocks][opened.ordinal])
        if len(self.excluded):
            slot = np.arange(len(opened.slots)) - opened.start[opened.ordinal]
            place = (opened.blocks[opened.ordinal] << PLACE_BITS) + slot
            outside = ~np.isin(place, self.excluded)
            allowed = outside if allowed is None else allowed & outside
        return allowed

    def log2_weights(self, opened: Opened, domains: Ints, unmeasured: float) -> Floats:
        """Return logarithms of the weights of all slots, -inf for what may not be drawn."""
        loss = opened.slots["loss"]
        log2 = np.zeros(len(loss)) if self.law is None else self.law.log2(loss)
        log2[np.isnan(loss)] = unmeasured
        allowed = self.allowed(opened, domains)
        if allowed is not None:
            log2[~allowed] = -np.inf
        return log2

    def steps_in(self, copy: Copy, blocks: Ints) -> tuple[Floats, Ints]:
        """Return the steps of these blocks, one after the other, and how many each one has."""
        if not self.keeps_steps:
            return self._steps(copy.open(blocks), copy.domains)
        known = [self.steps[place] for place in blocks.tolist()]
        if None in known:
            missing = blocks[[steps is None for steps in known]]
            for place, steps in zip(missing.tolist(), cut(*self._steps(copy.open(missing), copy.domains)), strict=True):
                self.steps[place] = steps
            known = [self.steps[place] for place in blocks.tolist()]
        count: Ints = copy.heads["live"][blocks].astype(np.int64)
        return np.frombuffer(b"".join(known)), count

    def _steps(self, opened: Opened, domains: Ints) -> tuple[Floats, Ints]:
        steps, _ = steps_of(opened.grid(self.log2_weights(opened, domains, -np.inf), -np.inf))
        return opened.ungrid(steps), opened.count

    def _rearranged(self, heads: Heads) -> View:
        """Bring the numbers to where their blocks stand now; those of new blocks are zero, with a stamp of nothing."""
        names, old = heads["name"], len(self.name)
        if np.array_equal(names[:old], self.name):
            source = np.concatenate([np.arange(old), np.full(len(names) - old, -1)])
        else:
            at = np.minimum(np.searchsorted(self.name, names), old - 1)
            source = np.where(self.name[at] == names, at, -1)
        stamp, live, gaps, unit = (
            np.append(values, fill)[source]
            for values, fill in ((self.stamp, -1), (self.live, 0), (self.gaps, 0), (self.unit, 0))
        )
        steps = [*self.steps, None]
        return replace(
            self,
            name=names.copy(),
            stamp=stamp,
            live=live,
            gaps=gaps,
            sums=np.append(self.sums, 0.0)[source],
            unit=unit,
            steps=[steps[at] for at in source.tolist()] if self.keeps_steps else [],
        )

    def _compute(self, copy: Copy, blocks: Ints) -> None:
        """Set the numbers of these blocks, in arrays that nobody else has."""
        if self.law is None and self.test is None:
            gone = np.bincount(self.excluded >> PLACE_BITS, minlength=len(copy)) if len(self.excluded) else 0
            self.live[:] = copy.heads["live"] - gone
            return
        for start in range(0, len(blocks), CHUNK):
            self._compute_chunk(copy, copy.open(blocks[start : start + CHUNK]))

    def _compute_chunk(self, copy: Copy, opened: Opened) -> None:
        log2 = self.log2_weights(opened, copy.domains, np.nan)
        missing = np.isnan(log2)
        if self.test is None and not len(self.excluded):
            self.live[opened.blocks], self.gaps[opened.blocks] = opened.count, copy.heads["gaps"][opened.blocks]
        else:
            self.live[opened.blocks] = np.bincount(opened.ordinal[log2 != -np.inf], minlength=len(opened))
            self.gaps[opened.blocks] = np.bincount(opened.ordinal[missing], minlength=len(opened))
        if self.law is None:
            return
        log2[missing] = -np.inf
        steps, unit = steps_of(opened.grid(log2, -np.inf))
        self.sums[opened.blocks] = steps[:, -1] if steps.shape[1] else 0.0
        self.unit[opened.blocks] = unit
        if self.keeps_steps:
            for place, content in zip(opened.blocks.tolist(), cut(opened.ungrid(steps), opened.count), strict=True):
                self.steps[place] = content


class Views:
    """The views of a process of one buffer: the buffer's own, and a few others, those used last.

    Which ones are there changes how long a draw takes, and nothing of what is drawn. A view that was computed in a
    transaction that is rolled back does no harm: no block of another content has its stamps.
    """

    def __init__(self, law: Law) -> None:
        self.law = law
        self._kept: OrderedDict[tuple[Law | None, Test | None], View] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, copy: Copy, law: Law | None = None, test: Test | None = None) -> View:
        """Return the view of this copy."""
        key = (law, test)
        with self._lock:
            known = self._kept.get(key)
        own = key == (self.law, None)
        view = View.of(copy, law, test, keeps_steps=own) if known is None else known.current(copy)
        with self._lock:
            self._kept[key] = view
            self._kept.move_to_end(key)
            others = [other for other in self._kept if other != (self.law, None)]
            for other in others[:-KEPT]:
                del self._kept[other]
        return view

    def put(self, view: View) -> None:
        """Take over a view that was made in another way."""
        with self._lock:
            self._kept[view.key] = view

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._kept.clear()

    def after_fork(self) -> None:
        """Start anew in a child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._kept = OrderedDict()
