"""Conditions on a draw. The slots tell the replay metadata of an episode, and lists of ids tell its facts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.blocks.heads import Heads
from memstore.buffer.blocks.slots import Floats, Ints, Slots, among
from memstore.buffer.snapshot import Rows, Snapshot
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
from memstore.queries.sql import comparable, conjuncts, holdable

Flags = NDArray[np.bool_]

COLUMNS: dict[str, Callable[[Rows], Ints | Floats]] = {
    "id": lambda rows: rows.ids,
    "loss": lambda rows: rows.loss,
    "lowest_loss": lambda rows: rows.lowest,
    "rise": lambda rows: rows.loss - rows.lowest,
    "replay_count": lambda rows: rows.replay_count,
    "last_replayed_at": lambda rows: rows.last_replayed_at,
}
"""The slots tell these columns. A missing value is NaN."""

TOLD = frozenset({*COLUMNS, "domain", "age"})
"""These columns of an episode are known from its slot and its block."""

BOUNDS = {"id": ("first", "last"), "loss": ("least", "largest")}
"""A head has these bounds of the known values of a column."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Listed(Condition):
    """A condition on facts, with the ascending ``ids`` of all live episodes that pass, and of some that have left."""

    condition: Condition
    ids: Ints

    def _write(self) -> str:
        return str(self.condition)


def is_told(condition: Condition) -> bool:
    """True if slots and blocks decide the condition."""
    return all(not isinstance(test, HasTag) and test.column.name in TOLD for test in conditions_within(condition))


def is_settled(condition: Condition) -> bool:
    """True if an episode that passes once always passes. Only arrivals and departures then change the list."""
    return all(
        isinstance(test, HasTag) or (test.column.source == "episode" and test.column.name != "age")
        for test in conditions_within(condition)
    )


def resolved(condition: Condition, newest: int) -> Condition:
    """Write tests of ages as tests of ids, which do not change with each newcomer. ``newest`` is the id with age 1."""
    if all(isinstance(test, HasTag) or test.column.name != "age" for test in conditions_within(condition)):
        return condition  # as it is: its text was written before
    match condition:
        case AllOf(parts) | AnyOf(parts):
            return type(condition)(tuple(resolved(part, newest) for part in parts))
        case Not(part):
            return Not(resolved(part, newest))
        case Comparison(column, op, int() | float() as value) if op != "==":
            op, value = comparable(column, op, value)
            return Comparison(col.id, _MIRRORED[op], newest + 1 - value)
        case Comparison(column, _, int() | float() as value):
            return resolved(In(column, (value,)), newest)
        case In(column, values):
            return In(col.id, tuple(newest + 1 - value for value in holdable(column, values)))
    return Comparison(col.id, "==", None)  # no age is missing, and no id


def listed(condition: Condition, ids_of: Callable[[Condition], Ints]) -> Condition:
    """Replace the parts on facts that slots do not tell. Of parts that are joined, one list replaces all."""
    if is_told(condition):
        return condition
    match condition:
        case Not(part):
            return Not(listed(part, ids_of))
        case AllOf(parts) | AnyOf(parts):
            join = type(condition)
            told = tuple(part for part in parts if is_told(part))
            facts = tuple(part for part in parts if not is_told(part) and is_settled(part))
            mixed = tuple(listed(part, ids_of) for part in parts if not is_told(part) and not is_settled(part))
            known = (Listed(join(facts), ids_of(join(facts))),) if facts else ()
            return join((*told, *known, *mixed))
    return Listed(condition, ids_of(condition))


def passes(condition: Condition, rows: Rows, names: Sequence[str]) -> Flags:
    """Flag the episodes that pass, by the same rules as the databases: a missing value passes no comparison.

    Parameters
    ----------
    condition : Condition
        As ``resolved`` and ``listed`` return it.
    names : sequence of str
        The names of the domains, in the order of their numbers.
    """
    match condition:
        case AllOf(parts) | AnyOf(parts):
            return _joined(condition, (passes(part, rows, names) for part in parts), len(rows))
        case Not(part):
            return ~passes(part, rows, names)
        case Listed():
            return among(rows.ids, condition.ids)[0]
        case Comparison(column) | In(column) if column.name == "domain":
            return _of_domains(condition, names)[rows.domain]
        case Comparison(column, _, None):
            return np.isnan(COLUMNS[column.name](rows)) if column.nullable else np.zeros(len(rows), np.bool_)
        case Comparison(column, "==", value):
            return passes(In(column, (value,)), rows, names)
        case Comparison(column, op, int() | float() as value):
            op, value = comparable(column, op, value)
            return np.asarray(OPERATORS[op](COLUMNS[column.name](rows), value), np.bool_)
        case In(column, wanted):
            values = COLUMNS[column.name](rows)
            return np.isin(values, np.array(holdable(column, wanted), values.dtype))
    raise TypeError(f"slots do not tell {condition}")


def reach(condition: Condition, heads: Heads, names: Sequence[str]) -> tuple[Flags, Flags]:
    """Flag the blocks that may hold an episode that passes, and the blocks in which every episode passes.

    The parameters are those of ``passes``, with heads in the place of rows.
    """
    match condition:
        case AllOf(parts) | AnyOf(parts):
            reached = [reach(part, heads, names) for part in parts]
            some, every = (_joined(condition, (flags[i] for flags in reached), len(heads)) for i in (0, 1))
            return some, every
        case Not(part):
            some, every = reach(part, heads, names)
            return ~every, ~some
        case Comparison(column) | In(column) if column.name == "domain":
            flags = _of_domains(condition, names)[heads["domain"]]
            return flags, flags
        case Comparison(column, op, int() | float() as value) if column.name in BOUNDS and op != "==":
            op, value = comparable(column, op, value)
            low, high = (heads[name] for name in BOUNDS[column.name])
            nearer, farther = (high, low) if op in (">", ">=") else (low, high)
            some, every = (np.asarray(OPERATORS[op](bound, value), np.bool_) for bound in (nearer, farther))
            return some, every & (heads["gaps"] == 0) if column.nullable else every
        case Comparison(column, "==", int() | float() as value):
            return reach(In(column, (value,)), heads, names)
        case In(column, values) if column.name in BOUNDS:
            low, high = (heads[name] for name in BOUNDS[column.name])
            numbers = np.array(holdable(column, values) or np.nan)
            return (low <= numbers.max()) & (high >= numbers.min()), np.zeros(len(heads), np.bool_)
    return np.ones(len(heads), np.bool_), np.zeros(len(heads), np.bool_)


@dataclass(frozen=True, slots=True)
class Passing:
    """A condition as the test of a view. Equal conditions are equal tests, in any snapshot.

    Everything that decides if an episode passes is in its slot, or never changes.

    Attributes
    ----------
    key : str
        The condition as a text.
    condition : Condition
        The condition as ``passes`` takes it.
    names : sequence of str
        The names of the domains.
    """

    key: str
    condition: Condition = field(compare=False)
    names: Sequence[str] = field(compare=False)

    @classmethod
    def of(cls, snapshot: Snapshot, condition: Condition, ids_of: Callable[[Condition], Ints]) -> Passing | None:
        """Return the test of a condition in a snapshot. None if every episode passes.

        Parameters
        ----------
        ids_of : callable
            Returns the ids of all episodes that pass a condition on facts.
        """
        if not conjuncts(condition):
            return None
        condition = resolved(condition, snapshot.newest_possible())
        return cls(str(condition), listed(condition, ids_of), snapshot.state.domain_names)

    def reach(self, heads: Heads) -> tuple[Flags, Flags]:
        """Flag the blocks that may hold passing episodes, and the blocks in which all pass."""
        return reach(self.condition, heads, self.names)

    def passing(self, slots: Slots, domains: Ints) -> Flags:
        """Flag the slots that pass."""
        return passes(self.condition, Rows.of(slots, domains), self.names)


_MIRRORED: dict[Operator, Operator] = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
"""A limit on ages becomes a limit on ids with this operator, because an age falls when the id rises."""


def _of_domains(condition: Comparison | In, names: Sequence[str]) -> Flags:
    """Return a flag for each number of a domain: True if its name passes. No domain has the number 0."""
    match condition:
        case In(_, values):
            return np.array([False, *(name in values for name in names)])
        case Comparison(_, op, str(value)):
            return np.array([False, *(OPERATORS[op](name, value) for name in names)])
    return np.zeros(len(names) + 1, np.bool_)  # the domain is never missing


def _joined(condition: AllOf | AnyOf, parts: Iterable[Flags], count: int) -> Flags:
    """Join the flags of the parts of a condition."""
    every = isinstance(condition, AllOf)
    flags, join = np.full(count, every), np.logical_and if every else np.logical_or
    for part in parts:
        flags = join(flags, part)
    return flags
