"""Conditions on a draw, sorted by who can test them: the slots, a list of ids, or only a query."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.blocks.heads import Heads
from memstore.buffer.blocks.slots import Floats, Ints, Slots
from memstore.buffer.snapshot import Snapshot
from memstore.draws.arithmetic import is_in
from memstore.queries.columns import (
    OPERATORS,
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    HasTag,
    In,
    Not,
    Operator,
    col,
    conditions_within,
)
from memstore.queries.sql import Scope, conjuncts

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


def resolved(condition: Condition, newest: int) -> Condition:
    """Write limits on ages as limits on ids, which do not change with each newcomer. ``newest`` has age 1."""
    match condition:
        case AllOf(parts):
            return AllOf(tuple(resolved(part, newest) for part in parts))
        case AnyOf(parts):
            return AnyOf(tuple(resolved(part, newest) for part in parts))
        case Not(part):
            return Not(resolved(part, newest))
        case Comparison(column, op, int() | float() as value) if column.name == "age":
            return Comparison(col.id, _MIRRORED[op], newest + 1 - value)
        case In(column, values) if column.name == "age":
            return In(col.id, tuple(newest + 1 - v if isinstance(v, (int, float)) else v for v in values))
    return condition


@dataclass(frozen=True, slots=True)
class Passing:
    """A condition as the test of a view. Equal conditions are equal tests, in any snapshot.

    Each part of the condition is tested in the cheapest way. All that decides if an episode passes is in its slot, or
    never changes, or changes only together with the slot.

    Attributes
    ----------
    key : str
        The condition as a text.
    told : Condition
        The part that slots and domains decide.
    ids : int64 array or None
        Ascending ids of all episodes that pass the part about facts. None if there is no such part.
    asked : callable or None
        Flags the ids that pass the rest, by a query.
    newest, names
        As in ``Episodes.passing``.
    """

    key: str
    told: Condition = field(compare=False)
    ids: Ints | None = field(compare=False)
    asked: Callable[[Ints], Flags] | None = field(compare=False)
    newest: int = field(compare=False)
    names: Sequence[str] = field(compare=False)

    @classmethod
    def of(cls, snapshot: Snapshot, condition: Condition, ids_of: Callable[[Condition], Ints]) -> Passing | None:
        """Return the test of a condition in a snapshot. None if every episode passes.

        Parameters
        ----------
        ids_of : callable
            Returns the ids of all episodes that pass a condition on facts.
        """
        newest = snapshot.newest_possible()
        parts = conjuncts(resolved(condition, newest))
        told = [part for part in parts if is_told(part)]
        settled = [part for part in parts if not is_told(part) and is_settled(part)]
        rest = [part for part in parts if not is_told(part) and not is_settled(part)]
        if not parts:
            return None
        return cls(
            str(AllOf(parts)),
            AllOf(tuple(told)),
            ids_of(AllOf(tuple(settled))) if settled else None,
            partial(_asked, snapshot, AllOf(tuple(rest))) if rest else None,
            newest,
            snapshot.state.domain_names,
        )

    def possible(self, heads: Heads) -> Flags:
        """Flag the blocks that may hold passing episodes, by their domains and bounds."""
        possible: Flags = heads["live"] > 0
        none = np.zeros(len(heads), np.int64)
        one_each = Episodes(none, np.full(len(none), np.nan), none, heads["domain"])
        for test in conjuncts(self.told):
            if all(not isinstance(t, HasTag) and t.column.name == "domain" for t in conditions_within(test)):
                possible &= one_each.passing(test, self.newest, self.names)
            elif isinstance(test, Comparison) and test.value is not None and test.column.name in ("id", "loss"):
                low, high = (heads[name] for name in _BOUNDS[test.column.name])
                possible &= _reached(test, low, high)
        return possible

    def passing(self, slots: Slots, domains: Ints) -> Flags:
        """Flag the slots that pass."""
        passing = Episodes(slots.ids, slots.loss, slots.count, domains).passing(self.told, self.newest, self.names)
        if self.ids is not None:
            passing &= is_in(self.ids, slots.ids)
        if self.asked is not None and passing.any():
            passing[passing] = self.asked(slots.ids[passing])
        return passing


_MIRRORED: dict[Operator, Operator] = {"<": ">", "<=": ">=", ">": "<", ">=": "<=", "==": "=="}
"""A limit on ages becomes a limit on ids with this operator, because an age falls when the id rises."""

_BOUNDS = {"id": ("first", "last"), "loss": ("least", "largest")}
"""A head holds these bounds of a column."""


def _reached(test: Comparison, low: Ints | Floats, high: Ints | Floats) -> Flags:
    """Flag the blocks whose bounds allow a passing value."""
    value = test.value
    assert isinstance(value, (int, float))
    if test.operator == "==":
        return np.asarray((low <= value) & (high >= value), np.bool_)
    return np.asarray(OPERATORS[test.operator](high if test.operator in (">", ">=") else low, value), np.bool_)


def _asked(snapshot: Snapshot, condition: Condition, ids: Ints) -> Flags:
    """Flag the ids that pass, by a query."""
    scope = Scope.of(snapshot, "episodes", (), condition, by_id=True)
    among = snapshot.backend.one_of(scope.identity(), np.sort(ids).tolist())
    found = np.array(snapshot.conn.scalars(scope.ids().where(among)).all(), np.int64)
    return is_in(np.sort(found), ids)
