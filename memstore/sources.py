"""Where candidates come from: strata for losses, octaves of age for recency, plain ranks for uniform draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memstore.draws import Groups, unchosen
from memstore.shares import log2_sum
from memstore.snapshot import Rows, Snapshot
from memstore.strata import Floats, Ints, log2_priority


class _Source:
    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot

    def passing(self, rows: Rows) -> NDArray[np.bool_]:
        return self.snapshot.passing(rows)

    def complete(self, rows: Rows) -> Rows:
        return self.snapshot.complete(rows)


class LossSource(_Source):
    """Strata as groups; weight is priority ** alpha."""

    def __init__(self, snapshot: Snapshot, alpha: float) -> None:
        super().__init__(snapshot)
        strata = snapshot.state.strata
        self.alpha = alpha
        self.top = snapshot.state.counters.top_priority
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

    def scan(self) -> tuple[Rows, Floats]:
        rows = self.snapshot.scan()
        return rows, self._weights(rows)

    def _weights(self, rows: Rows) -> Floats:
        return self.alpha * log2_priority(rows.loss, self.snapshot.settings.epsilon, self.top)


class AgeSource(_Source):
    """Octaves of age as groups; weight is age ** -alpha; ages whose episode is gone are no candidates."""

    def __init__(self, snapshot: Snapshot, alpha: float) -> None:
        super().__init__(snapshot)
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

    def scan(self) -> tuple[Rows, Floats]:
        rows = self.snapshot.scan()
        return rows, self._weights(rows)

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


def uniform_rows(rng: np.random.Generator, rows: Rows, count: int, taken: Rows, replacement: bool) -> Rows:
    """Rows drawn uniformly from these, outside ``taken``."""
    if replacement:
        return rows.take(rng.integers(0, len(rows), count))
    free = np.flatnonzero(~np.isin(rows.ids, taken.ids))
    return rows.take(rng.choice(free, min(count, len(free)), replace=False))


def age_span(snapshot: Snapshot) -> tuple[int, int]:
    """Ages of the newest and of the oldest live episode."""
    newest, oldest = snapshot.age(np.array([snapshot.newest_id(), snapshot.oldest_id()]))
    return int(newest), int(oldest)
