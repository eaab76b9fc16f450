"""Conditions as SQL: every constant is a bound parameter, every column one of the known ones."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, FromClause, and_, exists, false, func, or_, select, true
from sqlalchemy.sql import operators
from sqlalchemy.sql.elements import Grouping

from memstore.buffer.snapshot import Snapshot
from memstore.episodes.log import events_of
from memstore.errors import InvalidValue
from memstore.queries import (
    MAX_INT,
    WIDTH,
    AllOf,
    AnyOf,
    Column,
    Comparison,
    Condition,
    Constant,
    ExtraColumn,
    HasTag,
    In,
    Not,
    Operator,
    conditions_within,
)
from memstore.storage.schema import (
    domain,
    episode,
    episode_tag,
    event_group,
    first_id,
    id_range,
    replay_event,
    replay_metadata,
)
from memstore.values.shown import shown

Over = Literal["episodes", "history"]

FEW = 1000
"""Episodes whose events are looked up one by one; those of more are found by reading the history."""

_e, _m, _v, _g = episode.c, replay_metadata.c, replay_event.c, event_group.c
_OPERATORS: dict[str, Callable[[ColumnElement[Any], Any], ColumnElement[bool]]] = {
    "<": operators.lt,
    "<=": operators.le,
    ">": operators.gt,
    ">=": operators.ge,
}
_EXPRESSIONS: dict[str, ColumnElement[Any]] = {
    "timestamp": _e.timestamp,
    "level": _e.level,
    "key": _e.key,
    "extra": _e.extra,
    "loss": _m.loss,
    "lowest_loss": _m.lowest_loss,
    "rise": _m.loss - _m.lowest_loss,
    "replay_count": _m.replay_count,
    "last_replayed_at": _m.last_replayed_at,
    "event": _v.id,
    "what": _g.what,
    "reason": _g.reason,
    "at": _g.at,
    "step": _g.step,
    "consumer": _g.consumer,
    "strategy": _g.strategy,
    "loss_before": _v.loss_before,
    "loss_after": _v.loss_after,
    "probability": _v.probability,
    "weight": _v.weight,
}


@dataclass(frozen=True, slots=True)
class Scope:
    """Live episodes, or the events of the history, in one snapshot: what columns and conditions mean there.

    In the history, what belongs to the episode itself is missing once it has left; its id and domain stay.
    """

    snapshot: Snapshot
    over: Over
    used: tuple[Column, ...]
    by_id: bool = False

    @classmethod
    def of(
        cls, snapshot: Snapshot, over: Over, columns: Iterable[Column], condition: Condition, *, by_id: bool = False
    ) -> Scope:
        """The scope in which these columns and this condition can be asked for.

        ``by_id`` says that few ids will be asked for besides, and that no other index is of use.
        """
        tested = (test.column for test in conditions_within(condition) if not isinstance(test, HasTag))
        used = tuple({(str(column), column.kind): column for column in (*columns, *tested)}.values())
        for column in used:
            if column.source == "history" and over != "history":
                raise InvalidValue(f"{column} belongs to the history: ask query('history') for it")
        return cls(snapshot, over, used, by_id)

    def _uses(self, source: str) -> bool:
        # An id alone is no reason to read the episode: the metadata have it too.
        return any(column.source == source for column in self.used if column.name != "id" or source != "episode")

    @property
    def _id(self) -> ColumnElement[int]:
        if self.over == "history":
            return _v.episode_id
        return _m.episode_id if self._uses("metadata") else _e.id

    def expression(self, column: Column) -> ColumnElement[Any]:
        """The column as SQL; a domain as its id."""
        match column.name:
            case "id":
                return self._id
            case "domain":
                if self.over == "history":
                    return _v.domain_id
                return _e.domain_id + 0 if self.by_id else _e.domain_id  # a sum, which no index holds
            case "age":
                return self.snapshot.newest_possible() + 1 - (_e.id if self.over == "history" else self._id)
        if isinstance(column, ExtraColumn) and (column.path or column.typed):
            return self.snapshot.backend.json_value(_e.extra, column.path, column.kind if column.typed else "any")
        return _EXPRESSIONS[column.name]

    def real(self, column: Column) -> ColumnElement[Any]:
        """The numbers of a column as what can be added up: those in extra as float64."""
        if isinstance(column, ExtraColumn):
            return self.snapshot.backend.json_value(_e.extra, column.path, "real")
        return self.expression(column)

    def sortable(self, column: Column, expression: ColumnElement[Any]) -> ColumnElement[Any]:
        """What to sort the column's values by so that both databases agree: texts by their code points."""
        if column.name == "domain":
            expression = select(domain.c.name).where(domain.c.id == expression).scalar_subquery()
        return self.snapshot.backend.by_code_point(expression) if column.kind == "text" else expression

    def identity(self) -> ColumnElement[int]:
        """What tells rows apart, in the order in which they came."""
        return _v.id if self.over == "history" else self._id

    def rows(self, condition: Condition, order: Column | None = None) -> tuple[FromClause, ColumnElement[bool]]:
        """The joined tables that hold what is used, and which of their rows pass; ``order`` is what they go by first.

        Rows are the buffer's own by their ids, unless an index serves that begins with the buffer: by loss, by time.
        Databases would choose it for its beginning alone, and look up all rows one by one.
        """
        passing = self.condition(condition)
        tables: FromClause
        if self.over == "episodes":
            guides = {order.name} if order is not None else set()
            guides |= {name for name in map(_tested, conjuncts(condition)) if name is not None}
            if "id" in guides or self.by_id:
                guides = set()
            if not self._uses("metadata"):
                return episode, and_(self._own(_e.id, _e.buffer_id if "timestamp" in guides else None), passing)
            own = self._own(_m.episode_id, _m.buffer_id if "loss" in guides else None)
            if not self._uses("episode"):
                return replay_metadata, and_(own, passing)
            if "timestamp" in guides:
                own = and_(own, _e.buffer_id == self.snapshot.state.buffer_id)
            return replay_metadata.join(episode, _e.id == _m.episode_id), and_(own, passing)
        tables = replay_event
        if {column.name for column in self.used} & {"what", "reason", "at", "step", "consumer", "strategy"}:
            tables = tables.join(event_group, _g.id == _v.group_id)
        if any(column.source == "episode" and column.name not in ("id", "domain") for column in self.used):
            tables = tables.outerjoin(episode, _e.id == _v.episode_id)
        if self._uses("metadata"):
            tables = tables.outerjoin(replay_metadata, _m.episode_id == _v.episode_id)
        return tables, and_(*self._span(condition), passing)

    def _own(self, row_id: ColumnElement[int], buffer_id: ColumnElement[int] | None) -> ColumnElement[bool]:
        if buffer_id is not None:
            return buffer_id == self.snapshot.state.buffer_id
        return row_id.between(*id_range(self.snapshot.state.buffer_id))

    def _span(self, condition: Condition) -> Iterator[ColumnElement[bool]]:
        """Where in the history the events are that can pass: by the chains of episodes, the indexes on time and step.

        Events are numbered as they are committed, so those of some steps, or of some hours, stand almost together.
        """
        low, high = id_range(self.snapshot.state.buffer_id)
        tests = conjuncts(condition)
        grouped = [self.condition(test) for test in tests if _tests(test, "at", "step")]
        if grouped:
            own = (_g.buffer_id == self.snapshot.state.buffer_id, *grouped)
            query = select(func.min(_g.id), func.max(_g.id + _g["count"] - 1)).where(*own)
            first, last = self.snapshot.conn.execute(query).one()
            low, high = (low, low - 1) if first is None else (first, last)
        yield _v.id >= low
        yield _v.id <= high
        for test in tests:
            episodes = _equal(test, "id")
            if episodes and len(episodes) <= FEW:
                yield self.snapshot.backend.one_of(_v.id, events_of(self.snapshot, episodes) or [0])

    def condition(self, condition: Condition) -> ColumnElement[bool]:
        """The condition as SQL."""
        match condition:
            case AllOf():
                parts = (~part for part in _folded(~part for part in condition.conditions))
                return _joined(and_, true(), [self.condition(part) for part in parts])
            case AnyOf():
                return _joined(or_, false(), [self.condition(part) for part in _folded(condition.conditions)])
            case Not(Comparison(column, "==", None)):
                return self.expression(column).is_not(None)
            case Not():
                return self.condition(condition.condition).is_not(true())
            case HasTag():
                return self._tagged(condition.tag)
            case In():
                return self._in(condition.column, condition.values)
            case Comparison():
                return self._compared(condition.column, condition.operator, condition.value)
        raise InvalidValue(f"expected a condition such as col.loss > 1, got {shown(condition)}")

    def _tagged(self, tag: str) -> ColumnElement[bool]:
        t = episode_tag.c
        return exists().where(t.buffer_id == self.snapshot.state.buffer_id, t.tag == tag, t.episode_id == self._id)

    def _in(self, column: Column, values: tuple[Constant, ...]) -> ColumnElement[bool]:
        expression, backend = self.expression(column), self.snapshot.backend
        if column.kind == "flag":
            return or_(false(), *(self._compared(column, "==", value) for value in values))
        if isinstance(column, ExtraColumn) and column.kind == "float":
            numbers = [value for value in values if isinstance(value, (int, float))]
            if len(numbers) < 2:
                return expression == backend.number(numbers[0]) if numbers else false()
            return backend.one_number_of(expression, numbers)
        if column.name == "domain":
            codes = [self.snapshot.state.domain_code(str(value)) for value in values]
            first = first_id(self.snapshot.state.buffer_id)
            values = tuple(first + code for code in codes if code is not None)
        elif column.kind == "int":
            values = tuple(_whole(values))
        elif column.kind == "float":
            values = tuple(float(v) for v in values if isinstance(v, (int, float)) and float(v) == v)
        if len(values) < 2:
            return expression == values[0] if values else false()
        return backend.one_of(expression, values)

    def _compared(self, column: Column, operator: Operator, value: Constant) -> ColumnElement[bool]:
        expression = self.expression(column)
        if value is None:
            return expression.is_(None)
        if isinstance(value, bool):
            return expression.is_(true() if value else false())
        if operator == "==":
            return self._in(column, (value,))
        if column.name == "domain":
            named = _OPERATORS[operator](self.snapshot.backend.by_code_point(domain.c.name), value)
            own = domain.c.buffer_id == self.snapshot.state.buffer_id
            return expression.in_(select(domain.c.id).where(own, named))
        if column.kind == "text":
            return _OPERATORS[operator](self.snapshot.backend.by_code_point(expression), value)
        assert isinstance(value, (int, float))
        if isinstance(column, ExtraColumn):
            return _OPERATORS[operator](expression, self.snapshot.backend.number(value))
        # What the column cannot hold lies between two values that it can; beyond all integers, the last will do.
        near = math.floor(max(min(value, MAX_INT), -MAX_INT)) if column.kind == "int" else float(value)
        if near < value:
            operator = ">" if operator in (">", ">=") else "<="
        elif near > value:
            operator = ">=" if operator in (">", ">=") else "<"
        return _OPERATORS[operator](expression, near)


class _Bracketed(Grouping[bool]):
    """Brackets that stay: SQLAlchemy flattens an "or" within an "or", looking for the operator through a Grouping."""

    inherit_cache = True
    operator = None


def _joined(
    join: Callable[..., ColumnElement[bool]], empty: ColumnElement[bool], tests: list[ColumnElement[bool]]
) -> ColumnElement[bool]:
    """Any number of tests as a tree of chains of ``WIDTH``: a single chain is as deep for SQLite as it is long."""
    while len(tests) > WIDTH:
        tests = [_Bracketed(join(*tests[i : i + WIDTH])) for i in range(0, len(tests), WIDTH)]
    return join(empty, *tests)


def _folded(conditions: Iterable[Condition]) -> Iterator[Condition]:
    """The same conditions joined by "or"; those that ask whether one column has some value, or another, as one."""
    values: dict[tuple[str, str], tuple[Column, dict[Constant, None]]] = {}
    for condition in conditions:
        match condition:
            case In(column, some):
                pass
            case Comparison(column, "==", value) if value is not None:
                some = (value,)
            case _:
                yield condition
                continue
        values.setdefault((str(column), column.kind), (column, {}))[1].update(dict.fromkeys(some))
    for column, listed in values.values():
        yield In(column, tuple(listed))


def conjuncts(condition: Condition) -> tuple[Condition, ...]:
    """Conditions that must all hold."""
    return condition.conditions if isinstance(condition, AllOf) else (condition,)


def _tested(condition: Condition) -> str | None:
    """The column of a single test for which an index could serve."""
    match condition:
        case Not(Comparison(column, "==", None)) | In(column) | Comparison(column):
            return column.name
    return None


def _tests(condition: Condition, *names: str) -> bool:
    return isinstance(condition, (Comparison, In)) and condition.column.name in names


def _equal(condition: Condition, name: str) -> list[int] | None:
    """The integers of which a column must be one, where the condition says so."""
    if isinstance(condition, In) and condition.column.name == name:
        values: tuple[Constant, ...] = condition.values
    elif isinstance(condition, Comparison) and condition.column.name == name and condition.operator == "==":
        values = (condition.value,)
    else:
        return None
    return _whole(values)


def _whole(values: Iterable[Constant]) -> list[int]:
    """The constants that an integer column can hold."""
    numbers = (value for value in values if isinstance(value, (int, float)) and abs(value) <= MAX_INT)
    return [int(value) for value in numbers if value == int(value)]
