"""Tests that the replay metadata of an episode answers, without a query: on its id, age, loss, replays and domain."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.strata import Floats, Ints
from memstore.queries.columns import AllOf, AnyOf, Comparison, Condition, HasTag, In, Not, conditions_within

Flags = NDArray[np.bool_]

TOLD = frozenset({"id", "age", "loss", "replay_count", "domain"})
"""Columns that a drawn row knows."""

_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Facts:
    """Columns of some episodes; ``domain`` holds places in ``names`` counted from 1, a loss is NaN where missing."""

    ids: Ints
    loss: Floats
    replay_count: Ints
    domain: Ints
    newest: int
    names: Sequence[str]

    def passing(self, condition: Condition) -> Flags:
        """Which of the episodes pass, as the databases would say."""
        match condition:
            case AllOf():
                return self._all(True, np.logical_and, condition.conditions)
            case AnyOf():
                return self._all(False, np.logical_or, condition.conditions)
            case Not():
                return ~self.passing(condition.condition)
            case In(column) | Comparison(column) if column.name == "domain":
                holds = np.array([False, *(text_holds(condition, name) for name in self.names)])
                return np.asarray(holds[self.domain], np.bool_)
            case In(column, values):
                return np.isin(self._column(column.name), np.array(values, np.float64))
            case Comparison(column, _, None):
                return np.isnan(self.loss) if column.name == "loss" else np.zeros(len(self.ids), np.bool_)
            case Comparison(column, op, value):
                return np.asarray(_OPERATORS[op](self._column(column.name), value), np.bool_)
        raise TypeError(f"not told by replay metadata: {condition}")

    def _all(self, start: bool, join: Callable[[Flags, Flags], Flags], parts: Sequence[Condition]) -> Flags:
        flags = np.full(len(self.ids), start)
        for part in parts:
            flags = join(flags, self.passing(part))
        return flags

    def _column(self, name: str) -> Ints | Floats:
        match name:
            case "id":
                return self.ids
            case "age":
                return self.newest + 1 - self.ids
            case "loss":
                return self.loss
        return self.replay_count


def is_told(condition: Condition) -> bool:
    """Whether ``Facts`` answer the whole condition."""
    return all(not isinstance(test, HasTag) and test.column.name in TOLD for test in conditions_within(condition))


def is_settled(condition: Condition) -> bool:
    """Whether what passes can change only by episodes that come and go."""
    return all(
        isinstance(test, HasTag) or (test.column.source == "episode" and test.column.name != "age")
        for test in conditions_within(condition)
    )


def text_holds(condition: Condition, text: str) -> bool:
    """Whether a condition about one text column holds for this text."""
    match condition:
        case AllOf():
            return all(text_holds(part, text) for part in condition.conditions)
        case AnyOf():
            return any(text_holds(part, text) for part in condition.conditions)
        case Not():
            return not text_holds(condition.condition, text)
        case In():
            return text in condition.values
        case Comparison(value=str(value)):
            return bool(_OPERATORS[condition.operator](text, value))
    return False
