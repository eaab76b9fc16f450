"""A condition in front of a draw: what of it the strata know, and the test for the rest.

Conditions on the domain choose strata, and so do those on the loss, by its half-octaves. What else is asked is tested
on the candidates of a draw; where few pass, the draw is finished from the population of those that do.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from memstore.columns import AllOf, AnyOf, Column, Comparison, Condition, HasTag, In, Not, conditions_within
from memstore.columns import col as columns
from memstore.population import Demand, Population, Populations
from memstore.predicates import Scope, conjuncts
from memstore.schema import UNMEASURED, replay_metadata
from memstore.snapshot import COLUMNS, Rows, Snapshot, rows_of
from memstore.strata import FALL_BEFORE_MOVE, Ints, bucket_of

_m = replay_metadata.c


@dataclass(frozen=True, slots=True)
class FilteredSnapshot(Snapshot):
    """A snapshot in which only the episodes that pass a condition are there to be drawn."""

    condition: Condition
    populations: Populations
    keep_population: bool
    _strata: Ints
    _rest: Condition | None
    _found: list[Rows] = field(default_factory=list)

    @classmethod
    def of(cls, snapshot: Snapshot, condition: Condition, populations: Populations, *, keep: bool) -> FilteredSnapshot:
        """The snapshot behind this condition."""
        strata, rest = _admitted(snapshot, condition)
        return cls(snapshot.conn, snapshot.backend, snapshot.state, condition, populations, keep, strata, rest)

    @property
    def live(self) -> int:
        """Number of live episodes in the strata that the condition admits."""
        return int(self.state.strata.count[self._strata].sum())

    @property
    def is_filtered(self) -> bool:
        """Yes."""
        return True

    @property
    def is_whole(self) -> bool:
        """Whether every episode of the admitted strata passes."""
        return self._rest is None

    @property
    def is_scanned(self) -> bool:
        """Whether every episode that passes is known already."""
        return bool(self._found)

    def occupied(self) -> Ints:
        return self._strata

    def passing(self, rows: Rows) -> NDArray[np.bool_]:
        admitted = np.isin(rows.stratum, self._strata)
        if self._rest is None or not admitted.any():
            return admitted
        if is_settled(self.condition) and self.populations.tells_of_few(Demand(self.condition), self.live):
            few = self.scan().ids
            at = np.minimum(np.searchsorted(few, rows.ids), len(few) - 1)
            return few[at] == rows.ids if len(few) else np.zeros(len(rows), np.bool_)
        scope = Scope.of(self, "episodes", (), self._rest, by_id=True)
        tables, condition = scope.rows(self._rest)
        among = self.backend.one_of(scope.identity(), np.unique(rows.ids[admitted]).tolist())
        query = select(scope.identity()).select_from(tables).where(condition, among)
        passing: NDArray[np.bool_] = admitted & np.isin(rows.ids, list(self.conn.scalars(query)))
        return passing

    def scan(self) -> Rows:
        if not self._found:
            self._found.append(self._matching())
        return self._found[0]

    def complete(self, rows: Rows) -> Rows:
        return self.looked_up(rows.ids)

    def _matching(self) -> Rows:
        if is_settled(self.condition):
            demand = Demand(self.condition)
            return population_rows(self, self.populations.get(self, demand, keep=self.keep_population))
        if self._rest is None:
            ids = self.state.strata.ids(self._strata).tolist()
            found = self.backend.select(self.conn, replay_metadata, COLUMNS, "stratum_id", ids)
            return self.state.possible(rows_of(self.state, sorted(found)))
        scope = Scope.of(self, "episodes", (columns.loss,), self.condition)
        tables, condition = scope.rows(self.condition)
        query = select(*(_m[name] for name in COLUMNS)).select_from(tables).where(condition).order_by(_m.episode_id)
        return self.state.possible(rows_of(self.state, [tuple(row) for row in self.conn.execute(query)]))


def population_rows(snapshot: Snapshot, population: Population) -> Rows:
    """The population as rows whose domain and loss are known, and nothing else: ``complete`` them when drawn."""
    strata = snapshot.state.strata
    some = np.zeros(len(snapshot.state.domain_names) + 1, np.int64)
    some[strata.domain] = np.arange(len(strata))
    unknown = np.zeros(len(population.ids), np.int64)
    return Rows(population.ids, population.loss, unknown, some[population.domain], unknown - 1, unknown)


def is_settled(condition: Condition) -> bool:
    """Whether what passes can change only by episodes that come and go."""
    return all(
        isinstance(test, HasTag) or (test.column.source == "episode" and test.column.name != "age")
        for test in conditions_within(condition)
    )


def _admitted(snapshot: Snapshot, condition: Condition) -> tuple[Ints, Condition | None]:
    """Occupied strata that may hold episodes that pass, and what is left to test in them."""
    strata = snapshot.state.strata
    occupied = strata.occupied()
    admitted = np.ones(len(occupied), np.bool_)
    rest = []
    for test in conjuncts(condition):
        if _is_about(test, columns.domain):
            codes = np.array([_holds(test, name) for name in ["", *snapshot.state.domain_names]])
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
    return occupied[admitted], AllOf(tuple(rest)) if rest else None


def _reached(buckets: Ints, test: Comparison, epsilon: float) -> NDArray[np.bool_]:
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


def _holds(condition: Condition, text: str) -> bool:
    """Whether a condition about one text column holds for this text."""
    match condition:
        case AllOf():
            return all(_holds(part, text) for part in condition.conditions)
        case AnyOf():
            return any(_holds(part, text) for part in condition.conditions)
        case Not():
            return not _holds(condition.condition, text)
        case In():
            return text in condition.values
        case Comparison(value=str(value)):
            return {
                "==": text == value,
                "<": text < value,
                "<=": text <= value,
                ">": text > value,
                ">=": text >= value,
            }[condition.operator]
    return False
