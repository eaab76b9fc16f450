"""A condition in front of a draw: what of it the strata know, and the test for the rest.

Conditions on the domain choose strata, and so do those on the loss, by its half-octaves. What else is asked is tested
on the candidates of a draw: by what their rows tell, by a list of ids that pass, or by a query. Where few pass, the
draw is finished from the population of those that do.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from sqlalchemy import select

from memstore.buffer.snapshot import Rows, Snapshot
from memstore.buffer.strata import FALL_BEFORE_MOVE, Floats, Ints, bucket_of
from memstore.draws.knowledge import Populations
from memstore.draws.population import Demand, Population
from memstore.draws.told import Facts, Flags, is_settled, is_told, text_holds
from memstore.episodes.log import history_of
from memstore.queries.columns import AllOf, Column, Comparison, Condition, HasTag, Not, conditions_within
from memstore.queries.columns import col as columns
from memstore.queries.sql import Scope, conjuncts
from memstore.storage.schema import UNMEASURED

EVERYTHING = AllOf(())


@dataclass(frozen=True, slots=True)
class Drawable(Snapshot):
    """What a draw is from: a snapshot, and the condition that an episode must pass; ``EVERYTHING`` lets all pass."""

    condition: Condition
    populations: Populations
    keep_population: bool
    _strata: Ints
    _rest: Condition
    _population: list[Population] = field(default_factory=list)
    _passing: list[Ints | None] = field(default_factory=list)

    @classmethod
    def of(cls, snapshot: Snapshot, condition: Condition | None, populations: Populations, *, keep: bool) -> Drawable:
        """The snapshot behind this condition."""
        condition = EVERYTHING if condition is None else condition
        strata, rest = _admitted(snapshot, condition)
        return cls(snapshot.conn, snapshot.backend, snapshot.state, condition, populations, keep, strata, rest)

    @property
    def live(self) -> int:
        """Number of live episodes in the strata that the condition admits."""
        return int(self.state.strata.count[self._strata].sum())

    @property
    def is_filtered(self) -> bool:
        """Whether a condition stands in front."""
        return bool(conjuncts(self.condition))

    @property
    def is_whole(self) -> bool:
        """Whether every episode of the admitted strata passes."""
        return not conjuncts(self._rest)

    @property
    def is_listed(self) -> bool:
        """Whether this draw has listed every episode that passes."""
        return bool(self._population)

    @property
    def is_followed(self) -> bool:
        """Whether a list of what passes is kept, and brought up to date from the history, in place of a scan a draw."""
        tests = conjuncts(self.condition)
        if not all(is_settled(test) or is_told(test) for test in tests):
            return False
        return history_of(self.settings).is_complete

    def occupied(self) -> Ints:
        """Strata that may hold something to draw, in (domain, bucket) order."""
        return self._strata

    def passing(self, rows: Rows) -> Flags:
        """Which rows may be drawn."""
        passing: Flags = np.isin(rows.stratum, self._strata)
        told, asked = _parted(self._rest, is_told)
        if conjuncts(told):
            domain = self.state.strata.domain[rows.stratum]
            passing &= self._facts(rows.ids, rows.loss, rows.replay_count, domain).passing(told)
        if conjuncts(asked) and passing.any():
            passing[passing] = self._asked(asked, rows.ids[passing])
        return passing

    def population(self) -> Population:
        """Every episode that passes, in id order: by a scan where it is not known from earlier draws."""
        if not self._population:
            self._population.append(self._listed())
        return self._population[0]

    def known(self, demand: Demand) -> Population:
        """A population of a settled condition, of the whole buffer, from what the process knows."""
        return self.populations.get(self, demand, keep=self.keep_population)

    def _asked(self, condition: Condition, ids: Ints) -> Flags:
        settled, asked = _parted(condition, is_settled)
        passing = np.ones(len(ids), np.bool_)
        if conjuncts(settled):
            if not self._passing:  # one answer a draw
                self._passing.append(self._known())
            known = self._passing[0]
            if known is None:
                asked = condition
            else:
                passing = _contained(known, ids)
        if conjuncts(asked):
            passing &= self._queried(asked, ids)
        return passing

    def _known(self) -> Ints | None:
        settled, _ = _parted(self.condition, _is_kept)
        return self.populations.passing(self, Demand(settled), keep=self.keep_population)

    def _queried(self, condition: Condition, ids: Ints) -> Flags:
        scope = Scope.of(self, "episodes", (), condition, by_id=True)
        tables, passing = scope.rows(condition)
        among = self.backend.one_of(scope.identity(), np.unique(ids).tolist())
        query = select(scope.identity()).select_from(tables).where(passing, among)
        return np.isin(ids, np.array(self.conn.scalars(query).all(), np.int64))

    def _listed(self) -> Population:
        settled, changing = _parted(self.condition, _is_kept)
        if not conjuncts(changing):
            return self.known(Demand(settled))
        if not self.is_followed:
            return Demand(self.condition).read(self)
        some = self.known(Demand(settled))
        facts = self._facts(some.ids, some.loss, some.replay_count, some.domain)
        return some.take(np.flatnonzero(facts.passing(changing)))

    def _facts(self, ids: Ints, loss: Floats, replay_count: Ints, domain: Ints) -> Facts:
        return Facts(ids, loss, replay_count, domain, self.newest_possible(), self.state.domain_names)


def population_rows(snapshot: Snapshot, population: Population) -> Rows:
    """The population as rows whose domain and loss are known, and nothing of where they stand."""
    strata = snapshot.state.strata
    some = np.zeros(len(snapshot.state.domain_names) + 1, np.int64)
    some[strata.domain] = np.arange(len(strata))
    unknown = np.zeros(len(population.ids), np.int64)
    return Rows(population.ids, population.loss, unknown, some[population.domain], unknown - 1, unknown)


def _is_kept(test: Condition) -> bool:
    """Whether a list is kept of what passes; a limit on ids may be another in every draw, and rows tell it."""
    return is_settled(test) and (not is_told(test) or _is_about(test, columns.domain))


def _parted(condition: Condition, kind: Callable[[Condition], bool]) -> tuple[Condition, Condition]:
    """What must all hold, as those parts that are of this kind and the others."""
    parts = conjuncts(condition)
    return AllOf(tuple(part for part in parts if kind(part))), AllOf(tuple(part for part in parts if not kind(part)))


def _contained(ids: Ints, wanted: Ints) -> Flags:
    """Which of the wanted are among ``ids``, which ascend."""
    if not len(ids):
        return np.zeros(len(wanted), np.bool_)
    flags: Flags = ids[np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)] == wanted
    return flags


def _admitted(snapshot: Snapshot, condition: Condition) -> tuple[Ints, Condition]:
    """Occupied strata that may hold episodes that pass, and what is left to test in them."""
    strata = snapshot.state.strata
    occupied = strata.occupied()
    admitted = np.ones(len(occupied), np.bool_)
    rest = []
    for test in conjuncts(condition):
        if _is_about(test, columns.domain):
            codes = np.array([text_holds(test, name) for name in ["", *snapshot.state.domain_names]])
            admitted &= codes[strata.domain[occupied]]
            continue
        measured = strata.bucket[occupied] != UNMEASURED
        inner, expected = (test.condition, False) if isinstance(test, Not) else (test, True)
        if isinstance(inner, Comparison) and inner.column.name == "loss" and inner.value is None:
            admitted &= measured != expected
            continue
        if isinstance(test, Comparison) and test.column.name == "loss":
            admitted &= measured & _reached(strata.bucket[occupied], test, snapshot.settings.epsilon)
        rest.append(test)
    return occupied[admitted], AllOf(tuple(rest))


def _reached(buckets: Ints, test: Comparison, epsilon: float) -> Flags:
    """Buckets that may hold losses which pass: a row stands in the bucket of its loss, or a little above."""
    assert isinstance(test.value, (int, float))
    if test.value < 0:
        return np.ones(len(buckets), np.bool_)
    limit = int(bucket_of(np.array([float(test.value)]), epsilon)[0])
    enough = buckets >= limit if test.operator in (">", ">=", "==") else np.ones(len(buckets), np.bool_)
    if test.operator in ("<", "<=", "=="):
        enough = enough & (buckets < limit + FALL_BEFORE_MOVE)
    return enough


def _is_about(condition: Condition, column: Column) -> bool:
    return all(
        not isinstance(test, HasTag) and test.column.name == column.name for test in conditions_within(condition)
    )
