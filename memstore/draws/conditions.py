"""Conditions on a draw, sorted by who can test them: the strata, a drawn row, or only a query.

Conditions on the domain choose strata. Conditions on the loss choose strata by half-octaves of priority.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.snapshot import Snapshot
from memstore.buffer.strata import FALL_BEFORE_MOVE, Floats, Ints, bucket_of
from memstore.queries.columns import OPERATORS, AllOf, AnyOf, Comparison, Condition, HasTag, In, Not, conditions_within
from memstore.queries.sql import conjuncts
from memstore.storage.schema import UNMEASURED

Flags = NDArray[np.bool_]

TOLD = frozenset({"id", "age", "loss", "replay_count", "domain"})
"""The columns that are known of a drawn row without a query."""


@dataclass(frozen=True, slots=True)
class Episodes:
    """Some episodes as columns. A loss that was never measured is NaN. Domains are numbers, counted from 1."""

    ids: Ints
    loss: Floats
    replay_count: Ints
    domain: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def passing(self, condition: Condition, newest: int, names: Sequence[str]) -> Flags:
        """Flag the episodes that pass, by the same rules as the databases.

        Parameters
        ----------
        condition : Condition
            It may use only the columns in ``TOLD``.
        newest : int
            The id that was given out last. Ages count from it.
        names : sequence of str
            The names of the domains, in the order of their numbers.
        """

        def joined(start: bool, join: Callable[[Flags, Flags], Flags], parts: Sequence[Condition]) -> Flags:
            flags = np.full(len(self), start)
            for part in parts:
                flags = join(flags, self.passing(part, newest, names))
            return flags

        match condition:
            case AllOf():
                return joined(True, np.logical_and, condition.conditions)
            case AnyOf():
                return joined(False, np.logical_or, condition.conditions)
            case Not():
                return ~self.passing(condition.condition, newest, names)
            case In(column, values) if column.name == "domain":
                return np.array([False, *(name in values for name in names)])[self.domain]
            case Comparison(column, op, str(value)):
                return np.array([False, *(OPERATORS[op](name, value) for name in names)])[self.domain]
            case In(column, values):
                return np.isin(self._column(column.name, newest), np.array(values, np.float64))
            case Comparison(column, _, None):
                return np.isnan(self.loss) & (column.name == "loss")
            case Comparison(column, op, value):
                return np.asarray(OPERATORS[op](self._column(column.name, newest), value), np.bool_)
        raise TypeError(f"not told by replay metadata: {condition}")

    def _column(self, name: str, newest: int) -> Ints | Floats:
        if name == "age":
            return newest + 1 - self.ids
        column: Ints | Floats = getattr(self, "ids" if name == "id" else name)
        return column


def is_told(condition: Condition) -> bool:
    """True if drawn rows can be tested without a query."""
    return all(not isinstance(test, HasTag) and test.column.name in TOLD for test in conditions_within(condition))


def is_settled(condition: Condition) -> bool:
    """True if an episode that passes once always passes. Only arrivals and departures then change the list."""
    return all(
        isinstance(test, HasTag) or (test.column.source == "episode" and test.column.name != "age")
        for test in conditions_within(condition)
    )


def is_kept(condition: Condition) -> bool:
    """True if the process keeps a list of the episodes that pass.

    It keeps no list for limits on ids. Such limits may change in every draw, and the id of a drawn row is known.
    """
    return is_settled(condition) and (not is_told(condition) or _is_about_domains(condition))


def parted(condition: Condition, kind: Callable[[Condition], bool]) -> tuple[Condition, Condition]:
    """Split a condition into the parts of this kind and the other parts. An episode passes if it passes both."""
    parts = conjuncts(condition)
    return AllOf(tuple(part for part in parts if kind(part))), AllOf(tuple(part for part in parts if not kind(part)))


def chosen_strata(snapshot: Snapshot, condition: Condition) -> tuple[Ints, Condition]:
    """Return the occupied strata that may hold passing episodes, and the rest of the condition, still to be tested."""
    strata = snapshot.state.strata
    occupied = strata.occupied()
    none = np.zeros(len(occupied), np.int64)
    one_each = Episodes(none, np.full(len(none), np.nan), none, strata.domain[occupied])
    chosen = np.ones(len(occupied), np.bool_)
    rest = []
    for test in conjuncts(condition):
        if _is_about_domains(test):
            chosen &= one_each.passing(test, 0, snapshot.state.domain_names)
            continue
        measured = strata.bucket[occupied] != UNMEASURED
        inner, expected = (test.condition, False) if isinstance(test, Not) else (test, True)
        if isinstance(inner, Comparison) and inner.column.name == "loss" and inner.value is None:
            chosen &= measured != expected
            continue
        if isinstance(test, Comparison) and test.column.name == "loss":
            chosen &= measured & _reached(strata.bucket[occupied], test, snapshot.settings.epsilon)
        rest.append(test)
    return occupied[chosen], AllOf(tuple(rest))


def _reached(buckets: Ints, test: Comparison, epsilon: float) -> Flags:
    """Flag the buckets that may hold passing losses. A row stands in the bucket of its loss, or a little above."""
    assert isinstance(test.value, (int, float))
    enough = np.ones(len(buckets), np.bool_)
    if test.value < 0:
        return enough
    limit = int(bucket_of(np.array([float(test.value)]), epsilon)[0])
    if test.operator in (">", ">=", "=="):
        enough &= buckets >= limit
    if test.operator in ("<", "<=", "=="):
        enough &= buckets < limit + FALL_BEFORE_MOVE
    return enough


def _is_about_domains(condition: Condition) -> bool:
    return all(not isinstance(test, HasTag) and test.column.name == "domain" for test in conditions_within(condition))
