"""Candidates that the sampling index proposes to a weighted draw: from strata by loss, from octaves by age."""

from __future__ import annotations

import numpy as np

from memstore.buffer.snapshot import Located, Snapshot
from memstore.buffer.blocks.slots import Floats, Ints
from memstore.draws.arithmetic import is_in, log2_sum
from memstore.draws.laws import AgeLaw, Law, LossLaw
from memstore.draws.pool import Pool
from memstore.draws.rejection import Bins, Filter, Listing


class _Candidates:
    """The part that both kinds of candidates have in common."""

    bins: Bins
    acceptance: float

    def __init__(self, pool: Pool, law: Law, sieve: Filter | None) -> None:
        self.pool = pool
        self.law = law
        self.filter = sieve
        self.live = pool.live

    def listing(self) -> Listing:
        found, law = self.pool.scan(), self.law
        return Listing(found.ids, found.weight(law), lambda: law.log2_weight(found.ids, found.loss))

    def rows_of(self, ids: Ints) -> Located:
        return self.pool.snapshot.rows_of(ids)


class LossCandidates(_Candidates):
    """Candidates for a law of losses. The bins are strata."""

    def __init__(self, pool: Pool, law: LossLaw, strata: Ints, sieve: Filter | None) -> None:
        super().__init__(pool, law, sieve)
        self.strata, everything = strata, pool.snapshot.state.strata
        self.bins = Bins(everything.count[strata], law.log2_bound(everything, strata))
        accepted = stored_total(pool.snapshot, strata, law)
        if accepted is None:
            self.acceptance = octave_acceptance(law.alpha)
        else:
            self.acceptance = float(np.exp2(accepted - log2_sum(self.bins.log2_bound, self.bins.count)))

    def fetch(self, bins: Ints, positions: Ints) -> tuple[Located, Ints, Floats]:
        rows = self.pool.snapshot.locate(self.strata[bins], positions)
        return rows, np.arange(len(rows)), self.law.log2_weight(rows.ids, rows.loss)

    def places(self, rows: Located) -> tuple[Ints, Ints]:
        bin_of = np.empty(len(self.pool.snapshot.state.strata), np.int64)
        bin_of[self.strata] = np.arange(len(self.strata))
        return bin_of[rows.stratum], rows.position


class AgeCandidates(_Candidates):
    """Candidates for a law of ages. The bins are octaves of age. No row exists at the age of an episode that left."""

    def __init__(self, pool: Pool, law: AgeLaw, ages: tuple[int, int], sieve: Filter | None) -> None:
        super().__init__(pool, law, sieve)
        youngest, oldest = ages
        edges = 2 ** np.arange(oldest.bit_length() + 1, dtype=np.int64)
        self.first = np.clip(edges[:-1], youngest, None)
        sizes = np.maximum(np.minimum(edges[1:], oldest + 1) - self.first, 0)
        self.bins = Bins(sizes, -law.alpha * np.log2(self.first))
        self.acceptance = octave_acceptance(law.alpha) * pool.live / (oldest - youngest + 1)

    def fetch(self, bins: Ints, positions: Ints) -> tuple[Located, Ints, Floats]:
        snapshot = self.pool.snapshot
        ids = snapshot.newest_possible() + 1 - (self.first[bins] + positions)
        found = snapshot.find(ids)
        ordinal = np.flatnonzero(is_in(found.ids, ids))
        rows = found.take(np.searchsorted(found.ids, ids[ordinal]))
        return rows, ordinal, self.law.log2_weight(rows.ids, rows.loss)

    def places(self, rows: Located) -> tuple[Ints, Ints]:
        age = self.pool.snapshot.age(rows.ids)
        bins = np.searchsorted(2 ** np.arange(len(self.first), dtype=np.int64), age, side="right") - 1
        return bins, age - self.first[bins]


def stored_total(snapshot: Snapshot, strata: Ints, law: LossLaw) -> float | None:
    """Return log2 of the total weight of these strata, from stored sums. None if the sums are for another alpha."""
    if law.alpha != snapshot.settings.alpha:
        return None
    everything = snapshot.state.strata
    return log2_sum(law.log2_bound(everything, strata), everything.weight_sum[strata])


def octave_acceptance(alpha: float) -> float:
    """Return the share of candidates that are accepted when log weights lie evenly in the octave below the bound.

    It is the mean of ``2 ** (-alpha * u)`` for ``u`` uniform on [0, 1]: ``(1 - 2 ** -alpha) / (alpha * ln 2)``.
    """
    return float(-np.expm1(-alpha * np.log(2)) / (alpha * np.log(2))) if alpha else 1.0
