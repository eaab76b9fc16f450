"""The two things that a strategy works with: a request, and the pool of episodes that it draws from.

A draw goes by *places*: numbers that say where an episode stands in the copy of the blocks.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.slots import PLACE_BITS, Floats, Ints
from memstore.buffer.blocks.views import View
from memstore.buffer.blocks.weights import Law as BlockLaw
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.draws.aged import aged, log2_total
from memstore.draws.conditions import Flags, Passing
from memstore.draws.even import balanced, domain_counts, uniform
from memstore.draws.knowledge import Knowledge
from memstore.draws.laws import AgeLaw, Law, LossLaw
from memstore.draws.weighted import Masses, least_log2, weighted
from memstore.queries.columns import EVERY, Column, Condition


@dataclass(frozen=True, slots=True)
class Request:
    """A request for episodes.

    Parameters
    ----------
    count : int
        Number of episodes wanted. Without replacement, a pool with fewer episodes left gives them all.
    rng : numpy.random.Generator
        Source of all random numbers.
    taken : int64 array
        Places that must not be drawn: their episodes are leased, or were drawn before.
    replacement : bool
        True if an episode may be drawn twice.
    exact : bool
        True if the draw may look at all episodes to compute the probabilities.
    weighted : bool
        True if the caller wants importance weights.
    """

    count: int
    rng: np.random.Generator
    taken: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    replacement: bool = False
    exact: bool = False
    weighted: bool = False

    def after(self, drawn: Ints, count: int) -> Request:
        """Return the request for ``count`` more episodes after these places were drawn."""
        taken = self.taken if self.replacement else np.concatenate([self.taken, drawn])
        return replace(self, count=count, taken=taken)


@dataclass(frozen=True, slots=True)
class Pool:
    """The episodes of one snapshot that a draw chooses from.

    Parameters
    ----------
    condition : Condition
        The condition that episodes must pass. It is ``EVERY`` if the pool is the whole buffer.
    known : Knowledge
        The lists and views that the process keeps.
    keep : bool
        True if the snapshot shows only committed data. The process then keeps the lists that it reads.
    """

    snapshot: Snapshot
    condition: Condition
    known: Knowledge
    keep: bool
    test: Passing | None
    _views: dict[BlockLaw | None, View] = field(default_factory=dict, compare=False)
    _masses: dict[LossLaw, Masses] = field(default_factory=dict, compare=False)

    @classmethod
    def of(cls, snapshot: Snapshot, condition: Condition | None, known: Knowledge, *, keep: bool) -> Pool:
        """Return the pool of the episodes that pass a condition."""
        condition = EVERY if condition is None else condition
        test = Passing.of(snapshot, condition, lambda facts: known.facts(snapshot, facts, keep=keep).ids)
        return cls(snapshot, condition, known, keep, test)

    @property
    def copy(self) -> Copy:
        """The blocks of the snapshot."""
        return self.snapshot.state.blocks

    def view(self, law: LossLaw | None = None, taken: Ints | None = None) -> View:
        """Return the view of the episodes in the pool, with sums by this law, without the places that are taken."""
        own = None if law is None else law.of_blocks
        view = self._views.get(own)
        if view is None:  # a view of 1M episodes takes 50 us, and a draw needs it several times
            view = self._views[own] = self.known.views.get(self.copy, own, self.test)
        return view if taken is None or not len(taken) else view.without(self.copy, taken)

    def masses(self, law: LossLaw) -> Masses:
        """Return the masses of the episodes in the pool."""
        masses = self._masses.get(law)
        if masses is None:
            masses = self._masses[law] = Masses.of(self.view(law), law.top)
        return masses

    @property
    def live(self) -> int:
        """Number of episodes in the pool."""
        return self.copy.live if self.test is None else int(self.view().live.sum())

    def passing(self, places: Ints) -> Flags:
        """Flag the places with episodes in the pool."""
        if self.test is None:
            return np.ones(len(places), np.bool_)
        slots = self.copy.read(places)
        return self.test.passing(slots, self.copy.domains[places >> PLACE_BITS])

    def episodes(self, places: Ints) -> Rows:
        """Return the episodes at these places."""
        return Rows.of(self.copy.read(places), self.copy.domains[places >> PLACE_BITS])

    def everyone(self) -> Rows:
        """Return all episodes in the pool, in the order of their places. The time is proportional to their number."""
        view, domains, parts = self.view(), self.copy.domains, []
        for opened in self.copy.chunks(np.flatnonzero(view.live > 0)):
            rows = Rows.of(opened.slots, domains[opened.blocks][opened.ordinal])
            parts.append(rows if self.test is None else rows.take(view.allowed(opened, domains)[opened.used]))
        return Rows.join(parts)

    def among(self, condition: Condition | None) -> Pool:
        """Return the pool of the same snapshot with another condition."""
        return Pool.of(self.snapshot, condition, self.known, keep=self.keep)

    def labels(self, by: Column, ids: Ints) -> Ints:
        """Return a label of the value of each of these live episodes in a column of facts, -1 for those without one."""
        return self.known.facts(self.snapshot, EVERY, by, keep=self.keep).labels_of(ids)

    def draw(self, law: Law, request: Request) -> Ints:
        """Draw places in proportion to the weights that the law gives their episodes."""
        if law.alpha == 0:
            return self.draw_evenly(request)
        copy, rng, count, replacement = self.copy, request.rng, request.count, request.replacement
        if isinstance(law, LossLaw):
            view = self.view(law, request.taken)
            masses = None if len(request.taken) else self.masses(law)
            return weighted(copy, view, law.top, rng, count, replacement=replacement, masses=masses)
        view = self.view(None, request.taken)
        return aged(copy, view, law.ages, self.snapshot.domains_of, rng, count, replacement=replacement)

    def draw_evenly(self, request: Request) -> Ints:
        """Draw places that all have the same probability."""
        view = self.view(None, request.taken)
        return uniform(self.copy, view, request.rng, request.count, replacement=request.replacement)

    def domains(self) -> tuple[Ints, Ints]:
        """Return the ascending numbers of the domains with episodes in the pool, and how many episodes each has."""
        return domain_counts(self.copy, self.view())

    def draw_balanced(self, request: Request, domains: Ints, shares: Floats) -> Ints:
        """Draw places by shares of these domains, evenly inside a domain, in random order."""
        view = self.view(None, request.taken)
        left, _ = domain_counts(self.copy, view)
        own = shares[np.searchsorted(domains, left)]
        return balanced(self.copy, view, request.rng, request.count, own, replacement=request.replacement)

    def log2_total(self, law: Law, *, exact: bool) -> float | None:
        """Return log2 of the sum of all weights. None if that needs all episodes and ``exact`` is false."""
        if law.alpha == 0:
            return float(np.log2(self.live))
        if isinstance(law, LossLaw):
            return self.masses(law).log2_total
        youngest, oldest = law.ages.span(self.copy)
        if exact or (self.test is None and oldest - youngest + 1 == self.live):
            return log2_total(self.copy, self.view(), law.ages)
        return None

    def log2_least(self, law: Law) -> float:
        """Return log2 of the smallest weight in the whole buffer. The condition does not matter."""
        if isinstance(law, AgeLaw):
            return -law.alpha * float(np.log2(law.ages.span(self.copy)[1]))
        return least_log2(self.copy, law.of_blocks, law.top)
