"""Where candidates come from, and what they weigh: strata for losses, octaves of age, ranks for uniform draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.counters import Counters
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.buffer.strata import Floats, Ints, log2_priority
from memstore.draws.arithmetic import log2_sum
from memstore.draws.filtered import Drawable
from memstore.draws.population import Law, Population
from memstore.draws.rejection import KNOWN_YIELD, POOR_YIELD, Groups, Listing, positions, unchosen
from memstore.storage.schema import SEQUENCE_BITS


@dataclass(frozen=True, slots=True)
class LossLaw:
    """``priority ** alpha`` over that of the largest priority ever measured."""

    alpha: float
    epsilon: float
    top: float

    @classmethod
    def of(cls, snapshot: Snapshot, alpha: float) -> LossLaw:
        """The law in this snapshot."""
        return cls(alpha, snapshot.settings.epsilon, snapshot.state.counters.top_priority)

    def log2_weight(self, ids: Ints, loss: Floats) -> Floats:
        weight: Floats = self.alpha * (log2_priority(loss, self.epsilon, self.top) - np.log2(self.top))
        return weight

    def lasts(self, counters: Counters) -> bool:
        return counters.top_priority == self.top


@dataclass(frozen=True, slots=True)
class AgeLaw:
    """``age ** -alpha``, counted from the id that was given out last."""

    alpha: float
    newest: int

    @classmethod
    def of(cls, snapshot: Snapshot, alpha: float) -> AgeLaw:
        """The law in this snapshot."""
        return cls(alpha, snapshot.newest_possible())

    def log2_weight(self, ids: Ints, loss: Floats) -> Floats:
        return -self.alpha * np.log2(self.newest + 1 - ids)

    def lasts(self, counters: Counters) -> bool:
        return bool(self.newest & (2**SEQUENCE_BITS - 1) == counters.inserted)


class _Source:
    law: Law

    def __init__(self, snapshot: Drawable) -> None:
        self.snapshot = snapshot
        self.poor_yield = KNOWN_YIELD if snapshot.is_followed else POOR_YIELD

    def passing(self, rows: Rows) -> NDArray[np.bool_]:
        return self.snapshot.passing(rows)

    def complete(self, ids: Ints) -> Rows:
        return self.snapshot.looked_up(ids)

    def scan(self) -> Listing:
        some, law = self.snapshot.population(), self.law
        return Listing(some.ids, some.weight(law), lambda: law.log2_weight(some.ids, some.loss))


class LossSource(_Source):
    """Strata as groups; weight is priority ** alpha."""

    def __init__(self, snapshot: Drawable, alpha: float) -> None:
        super().__init__(snapshot)
        strata = snapshot.state.strata
        law = LossLaw.of(snapshot, alpha)
        self.law, self.alpha, self.top = law, alpha, law.top
        self.occupied = snapshot.occupied()
        count = strata.count[self.occupied]
        self.selective = not snapshot.is_whole
        self.groups = Groups(count, alpha * strata.log2_bound(self.occupied, self.top))
        self.acceptance = octave_acceptance(alpha)
        if alpha == snapshot.settings.alpha:
            accepted = log2_sum(self.groups.log2_bound, strata.weight_sum[self.occupied])
            self.acceptance = float(np.exp2(accepted - log2_sum(self.groups.log2_bound, count)))

    def fetch(self, group: Ints, position: Ints) -> tuple[Rows, Ints, Floats]:
        rows = self.snapshot.locate(self.occupied[group], position)
        return rows, np.arange(len(rows)), self._weights(rows)

    def places(self, rows: Rows) -> tuple[Ints, Ints]:
        group_of = np.full(len(self.snapshot.state.strata), -1)
        group_of[self.occupied] = np.arange(len(self.occupied))
        return group_of[rows.stratum], rows.position

    def _weights(self, rows: Rows) -> Floats:
        return self.alpha * log2_priority(rows.loss, self.snapshot.settings.epsilon, self.top)


class AgeSource(_Source):
    """Octaves of age as groups; weight is age ** -alpha; ages whose episode is gone are no candidates."""

    def __init__(self, snapshot: Drawable, alpha: float) -> None:
        super().__init__(snapshot)
        self.law = AgeLaw.of(snapshot, alpha)
        self.alpha = alpha
        self.selective = snapshot.is_filtered
        youngest, oldest = age_span(snapshot)
        edges = 2 ** np.arange(int(oldest).bit_length() + 1, dtype=np.int64)
        self.first = np.clip(edges[:-1], youngest, None)
        sizes = np.maximum(np.minimum(edges[1:], oldest + 1) - self.first, 0)
        self.groups = Groups(sizes, -alpha * np.log2(self.first))
        self.acceptance = octave_acceptance(alpha) * snapshot.live / (oldest - youngest + 1)

    def fetch(self, group: Ints, position: Ints) -> tuple[Rows, Ints, Floats]:
        ids = self.snapshot.of_age(self.first[group] + position)
        found = self.snapshot.find(ids)
        at = np.searchsorted(found.ids, ids)
        ordinal = np.flatnonzero(np.isin(ids, found.ids))
        rows = found.take(at[ordinal])
        return rows, ordinal, self._weights(rows)

    def places(self, rows: Rows) -> tuple[Ints, Ints]:
        age = self.snapshot.age(rows.ids)
        group = np.searchsorted(2 ** np.arange(len(self.first), dtype=np.int64), age, side="right") - 1
        return group, age - self.first[group]

    def _weights(self, rows: Rows) -> Floats:
        return -self.alpha * np.log2(self.snapshot.age(rows.ids))


def octave_acceptance(alpha: float) -> float:
    """Share of candidates accepted when their logarithms are spread evenly over one octave below the bound."""
    return float(-np.expm1(-alpha * np.log(2)) / (alpha * np.log(2))) if alpha else 1.0


def uniform_places(
    snapshot: Snapshot, rng: np.random.Generator, strata: Ints, count: int, taken: Rows, replacement: bool
) -> tuple[Ints, Ints]:
    """Places drawn uniformly from these strata, outside ``taken``: ranks first, so nothing is rejected."""
    sizes = snapshot.state.strata.count[strata]
    ends = np.cumsum(sizes)
    total = int(ends[-1]) if len(ends) else 0
    if replacement:
        ranks = rng.integers(0, total, count)
    else:
        at = np.flatnonzero(np.isin(taken.stratum, strata))
        order = {int(s): i for i, s in enumerate(strata.tolist())} if len(at) else {}
        group = np.array([order[s] for s in taken.stratum[at].tolist()], np.int64)
        gone = np.unique(ends[group] - sizes[group] + taken.position[at])
        ranks = rng.choice(total - len(gone), min(count, total - len(gone)), replace=False)
        ranks = unchosen(np.zeros(len(ranks), np.int64), ranks, {0: gone})
    inside = np.searchsorted(ends, ranks, side="right")
    return strata[inside], ranks - (ends - sizes)[inside]


def listed_places(
    some: Population, rng: np.random.Generator, domain: int, count: int, taken: Rows, replacement: bool
) -> Ints:
    """Places drawn uniformly among the episodes of the ``domain``-th of its domains, outside ``taken``."""
    _, ends, order = some.by_domain()
    members = order[ends[domain - 1] if domain else 0 : ends[domain]]
    if replacement:
        return members[rng.integers(0, len(members), count)]
    gone = positions(members, positions(some.ids, taken.ids))
    ranks = rng.choice(len(members) - len(gone), min(count, len(members) - len(gone)), replace=False)
    return members[unchosen(np.zeros(len(ranks), np.int64), ranks, {0: gone})]


def age_span(snapshot: Snapshot) -> tuple[int, int]:
    """Ages of the newest and of the oldest live episode."""
    newest, oldest = snapshot.age(np.array([snapshot.newest_id(), snapshot.oldest_id()]))
    return int(newest), int(oldest)
