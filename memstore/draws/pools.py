"""The three pools: the whole buffer, chosen strata, and the episodes that pass another condition.

A later engine may replace the strata. Then only this module and ``candidates`` change; no strategy does.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memstore.buffer.snapshot import Located, Snapshot
from memstore.buffer.blocks.slots import Ints
from memstore.draws.arithmetic import is_in, power_sum, where_in
from memstore.draws.candidates import AgeCandidates, LossCandidates, stored_total
from memstore.draws.conditions import Episodes, Flags, chosen_strata, is_kept, is_settled, is_told, parted
from memstore.draws.knowledge import Populations
from memstore.draws.laws import AgeLaw, Law, LossLaw
from memstore.draws.pool import Pool, Request
from memstore.draws.population import Demand, Population
from memstore.draws.rejection import KNOWN_YIELD, POOR_YIELD, Filter, draw, even_ranks
from memstore.queries.columns import EVERY, Condition
from memstore.queries.sql import Scope, conjuncts


def pool_of(snapshot: Snapshot, condition: Condition | None, known: Populations, *, keep: bool) -> Pool:
    """Return the pool of the episodes that pass a condition.

    Parameters
    ----------
    known : Populations
        The lists that the process keeps for conditions.
    keep : bool
        True if the snapshot shows only committed data. The process may then keep the lists that it reads.
    """
    condition = EVERY if condition is None else condition
    strata, rest = chosen_strata(snapshot, condition)
    kind = Filtered if conjuncts(rest) else Chosen if conjuncts(condition) else Whole
    return kind(snapshot, condition, strata, rest, known, keep)


@dataclass(eq=False)
class Whole:
    """The pool of all live episodes.

    ``strata`` holds the indices of the occupied strata, in (domain, bucket) order. ``rest`` is the part of the
    condition that the choice of strata does not test.
    """

    snapshot: Snapshot
    condition: Condition
    strata: Ints
    rest: Condition
    known: Populations
    keep: bool
    _list: Population | None = None

    @cached_property
    def live(self) -> int:
        """Number of episodes in the strata."""
        return int(self.snapshot.state.strata.count[self.strata].sum())

    @cached_property
    def ages(self) -> tuple[int, int]:
        """The ages of the newest and of the oldest live episode of the buffer."""
        newest, oldest = self.snapshot.age(np.array([self.snapshot.newest_id(), self.snapshot.oldest_id()]))
        return int(newest), int(oldest)

    def scan(self) -> Population:
        if self._list is None:
            self._list = self._listed()
        return self._list

    def find_all(self, demand: Demand) -> Population:
        if not is_settled(demand.condition):
            return demand.read(self.snapshot)
        return self.known.get(self.snapshot, demand, keep=self.keep)

    def passing(self, rows: Located) -> Flags:
        return np.isin(rows.stratum, self.strata)

    def episodes(self, rows: Located) -> Episodes:
        return Episodes(rows.ids, rows.loss, rows.replay_count, self.snapshot.state.strata.domain[rows.stratum])

    def draw(self, law: Law, request: Request) -> Located:
        sieve = self._filter(law)
        if isinstance(law, LossLaw):
            return draw(LossCandidates(self, law, self.strata, sieve), request)
        return draw(AgeCandidates(self, law, self.ages, sieve), request)

    def draw_evenly(self, request: Request) -> Located:
        return self.snapshot.locate(*self._even_places(request, self.strata))

    def domains(self) -> tuple[Ints, Ints]:
        strata = self.snapshot.state.strata
        domains, where = np.unique(strata.domain[self.strata], return_inverse=True)
        return domains, np.bincount(where, strata.count[self.strata], len(domains)).astype(np.int64)

    def draw_quotas(self, request: Request, quotas: Ints) -> Located:
        domain = self.snapshot.state.strata.domain[self.strata]  # ascending
        edges = np.flatnonzero(np.diff(domain, prepend=-1, append=-1))
        places = [
            self._even_places(request.of(int(quotas[at])), self.strata[edges[at] : edges[at + 1]])
            for at in np.flatnonzero(quotas)
        ]
        order = request.rng.permutation(int(quotas.sum()))
        strata, positions = (np.concatenate(column) for column in zip(*places, strict=True))
        return self.snapshot.locate(strata[order], positions[order])

    def log2_total(self, law: Law, *, exact: bool) -> float | None:
        total = self._stored_total(law)
        if total is None and (exact or self._list is not None):
            return self.scan().log2_total(law)
        return total

    def log2_least(self, law: Law) -> float:
        if isinstance(law, AgeLaw):
            return -law.alpha * float(np.log2(self.ages[1]))
        least = self.snapshot.smallest_loss()
        loss = np.array([np.nan if least is None else least])
        return min(float(law.log2_weight(np.zeros(1, np.int64), loss)[0]), 0.0)

    def _listed(self) -> Population:
        """Return all episodes of the pool, from the lists that the process keeps, or by a scan."""
        settled, changing = parted(self.condition, is_kept)
        if conjuncts(changing) and not self._is_followed:
            return Demand(self.condition).read(self.snapshot)
        found = self.find_all(Demand(settled))
        return found.take(self._told(found, changing)) if conjuncts(changing) else found

    def _filter(self, law: Law) -> Filter | None:
        """Return the additional test that candidates for this law must pass; None if there is none."""
        return None

    def _stored_total(self, law: Law) -> float | None:
        """Return log2 of the sum of all weights. None if that needs a list."""
        if isinstance(law, AgeLaw):
            youngest, oldest = self.ages
            whole = oldest - youngest + 1 == self.live  # true if no episode between the two has left
            return float(np.log2(power_sum(youngest, oldest, law.alpha))) if whole else None
        return float(np.log2(self.live)) if law.alpha == 0 else stored_total(self.snapshot, self.strata, law)

    def _even_places(self, request: Request, strata: Ints) -> tuple[Ints, Ints]:
        """Return places in these strata, all with the same probability. Ranks are drawn, so nothing is rejected."""
        sizes = self.snapshot.state.strata.count[strata]
        ends = np.cumsum(sizes)
        ranks = even_ranks(request, int(sizes.sum()), self._taken_ranks(request.taken, strata, ends - sizes))
        inside = np.searchsorted(ends, ranks, side="right")
        return strata[inside], ranks - (ends - sizes)[inside]

    def _taken_ranks(self, taken: Located, strata: Ints, starts: Ints) -> Ints:
        if not len(taken):
            return taken.ids
        start_of = np.full(len(self.snapshot.state.strata), -1)
        start_of[strata] = starts
        start = start_of[taken.stratum]
        return np.unique((start + taken.position)[start >= 0])

    @cached_property
    def _is_followed(self) -> bool:
        """True if the history keeps the list of the pool current. Later draws then need no scan."""
        tests = conjuncts(self.condition)
        if not all(is_settled(test) or is_told(test) for test in tests):
            return False
        return self.snapshot.settings.history.is_complete

    def _told(self, episodes: Episodes, condition: Condition) -> Flags:
        return episodes.passing(condition, self.snapshot.newest_possible(), self.snapshot.state.domain_names)


class Chosen(Whole):
    """The pool of all episodes in some strata.

    A condition on domains chooses such strata, and so does a condition that the loss is known or unknown.
    """

    def _filter(self, law: Law) -> Filter | None:
        return None if isinstance(law, LossLaw) else self._test()

    def _test(self) -> Filter:
        return Filter(self.passing, KNOWN_YIELD if self._is_followed else POOR_YIELD)


class Filtered(Chosen):
    """The pool of the episodes in some strata that pass the rest of a condition.

    Each candidate is tested by the columns of its row, by a list of passing ids, or by a query. If few candidates
    pass, a list of all passing episodes finishes the draw.
    """

    def passing(self, rows: Located) -> Flags:
        passing = super().passing(rows)
        told, asked = parted(self.rest, is_told)
        if conjuncts(told):
            passing &= self._told(self.episodes(rows), told)
        if conjuncts(asked) and passing.any():
            passing[passing] = self._asked(asked, rows.ids[passing])
        return passing

    def draw_evenly(self, request: Request) -> Located:
        return self.draw(LossLaw.of(self.snapshot, 0.0), request)

    def domains(self) -> tuple[Ints, Ints]:
        domains, ends, _ = self.scan().by_domain()
        return domains, np.diff(ends, prepend=0)

    def draw_quotas(self, request: Request, quotas: Ints) -> Located:
        found = self.scan()
        _, ends, order = found.by_domain()
        taken = where_in(found.ids, request.taken.ids)
        chosen = []
        for at in np.flatnonzero(quotas):
            members = order[ends[at - 1] if at else 0 : ends[at]]
            chosen.append(members[even_ranks(request.of(int(quotas[at])), len(members), where_in(members, taken))])
        ids = found.ids[np.concatenate(chosen)]
        return self.snapshot.rows_of(ids[request.rng.permutation(int(quotas.sum()))])

    def _filter(self, law: Law) -> Filter | None:
        return self._test()

    def _stored_total(self, law: Law) -> float | None:
        return None

    def _asked(self, condition: Condition, ids: Ints) -> Flags:
        """Flag the ids that pass, by the list of passing ids if there is one, else by a query."""
        settled, asked = parted(condition, is_settled)
        passing = np.ones(len(ids), np.bool_)
        if conjuncts(settled):
            if self._known_ids is None:
                asked = condition
            else:
                passing = is_in(self._known_ids, ids)
        if conjuncts(asked):
            passing &= self._queried(asked, ids)
        return passing

    @cached_property
    def _known_ids(self) -> Ints | None:
        settled, _ = parted(self.condition, is_kept)
        return self.known.ids(self.snapshot, Demand(settled), keep=self.keep)

    def _queried(self, condition: Condition, ids: Ints) -> Flags:
        snapshot = self.snapshot
        scope = Scope.of(snapshot, "episodes", (), condition, by_id=True)
        among = snapshot.backend.one_of(scope.identity(), np.unique(ids).tolist())
        return np.isin(ids, np.array(snapshot.conn.scalars(scope.ids().where(among)).all(), np.int64))
