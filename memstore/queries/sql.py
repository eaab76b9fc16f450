"""Writes conditions as SQL. Every constant becomes a bound parameter, and every column is one that memstore knows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, FromClause, Select, and_, exists, false, func, or_, select, true
from sqlalchemy.sql.elements import Grouping

from memstore.buffer.overlay import live_episode, replay_metadata_now
from memstore.buffer.snapshot import Snapshot
from memstore.episodes.log import events_of
from memstore.errors import InvalidValue
from memstore.queries.columns import (
    MAX_INT,
    OPERATORS,
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
    Over,
    check_columns,
    tested_columns,
)
from memstore.storage.schema import (
    domain,
    episode,
    episode_tag,
    event_group,
    id_range,
    replay_event,
)
from memstore.values.shown import shown

FEW = 1000
"""Up to this many episodes, their events are looked up one by one. For more, the history is read."""

_v, _g = replay_event.c, event_group.c


@dataclass(frozen=True, slots=True)
class Scope:
    """Live episodes, or the events of the history, in one snapshot. It gives columns and conditions their SQL.

    In the history, an event keeps the id and the domain of its episode. The episode's other columns are missing once it
    has left the memory.

    Attributes
    ----------
    snapshot : Snapshot
    over : "episodes" or "history"
        The rows of the scope.
    used : tuple of Column
        The columns that may be asked for; they decide which tables are joined.
    where : Condition
        The test that rows must pass.
    after : int or None
        Only episodes with a larger id are in the scope. Then the database looks for them by id, and by no other index.
        None if every id is in the scope, and every index may serve.
    episode, metadata : FromClause
        What stands for the tables of episodes and of replay metadata.
    """

    snapshot: Snapshot
    over: Over
    used: tuple[Column, ...]
    where: Condition
    episode: FromClause
    metadata: FromClause
    after: int | None = None

    @classmethod
    def of(
        cls, snapshot: Snapshot, over: Over, columns: Iterable[Column], where: Condition, *, after: int | None = None
    ) -> Scope:
        """Make the scope of the rows that pass ``where``, for these columns.

        Raises
        ------
        InvalidValue
            If live episodes are asked for a column of the history.
        """
        every = (*columns, *tested_columns(where))
        used = tuple({column.name_and_kind: column for column in every}.values())
        check_columns(used, over)
        names = {column.name for column in used if column.source == "metadata"}
        if "rise" in names:
            names |= {"loss", "lowest_loss"}
        among = next((ids for ids in map(_wanted_ids, conjuncts(where)) if ids is not None), None)
        metadata = replay_metadata_now(snapshot, names, among)
        # Replay metadata are of live episodes only, so an episode that is joined with them is live.
        live = episode if names and over == "episodes" else live_episode(snapshot)
        return cls(snapshot, over, used, where, live, metadata, after)

    def _uses(self, source: str) -> bool:
        # The table of episodes is not read for an id alone, because the metadata have it too.
        return any(column.source == source for column in self.used if column.name != "id" or source != "episode")

    @property
    def _id(self) -> ColumnElement[int]:
        if self.over == "history":
            return _v.episode_id
        return self.metadata.c.episode_id if self._uses("metadata") else self.episode.c.id

    def expression(self, column: Column) -> ColumnElement[Any]:
        """Write the column as SQL. A domain becomes its id."""
        match column.name:
            case "id":
                return self._id
            case "domain":
                if self.over == "history":
                    return _v.domain_id
                domains = self.episode.c.domain_id
                return domains if self.after is None else domains + 0  # a sum, because no index can serve it
            case "age":
                return self.snapshot.newest_possible() + 1 - (self.episode.c.id if self.over == "history" else self._id)
            case "rise":
                return self.metadata.c.loss - self.metadata.c.lowest_loss
            case "event":
                return _v.id
        if isinstance(column, ExtraColumn) and (column.path or column.typed):
            extra, kind = self.episode.c.extra, column.kind if column.typed else "any"
            return self.snapshot.backend.json_value(extra, column.path, kind)
        tables = {"episode": self.episode, "metadata": self.metadata}
        table = tables.get(column.source, event_group if column.name in _g else replay_event)
        return table.c[column.name]

    def real(self, column: Column) -> ColumnElement[Any]:
        """Write the numbers of a column in a form that can be added up. Those in extra become float64."""
        if isinstance(column, ExtraColumn):
            return self.snapshot.backend.json_value(self.episode.c.extra, column.path, "real")
        return self.expression(column)

    def sortable(self, column: Column, expression: ColumnElement[Any]) -> ColumnElement[Any]:
        """Write the expression that sorts the column alike in both databases: texts by code points, domains by name."""
        if column.name == "domain":
            expression = select(domain.c.name).where(domain.c.id == expression).scalar_subquery()
        return self.snapshot.backend.by_code_point(expression) if column.kind == "text" else expression

    def identity(self) -> ColumnElement[int]:
        """Write the id of a row. Rows have ids in the order in which they came."""
        return _v.id if self.over == "history" else self._id

    def select(self, *values: ColumnElement[Any], order: Column | None = None) -> Select[Any]:
        """Write the query for values of the rows that pass. ``order`` is the column that sorts them first."""
        if self.over == "history":
            tables, own = self._event_tables(), and_(*self._event_tests())
        else:
            tables, own = self._episode_tables(order)
        return select(*values).select_from(tables).where(own, self.condition(self.where))

    def ids(self) -> Select[Any]:
        """Write the query for the ids of the rows that pass."""
        return self.select(self.identity())

    def _episode_tables(self, order: Column | None) -> tuple[FromClause, ColumnElement[bool]]:
        """Return the tables of live episodes, and the test that a row belongs to the buffer.

        The test is a range of ids. It is on ``buffer_id`` only if an index that begins with the buffer is wanted (loss,
        timestamp). Otherwise the database would choose that index for the buffer alone, and look up every row.
        """
        wanted = {order.name} if order is not None else set()
        wanted |= {name for name in map(_indexed_column, conjuncts(self.where)) if name is not None}
        if "id" in wanted or self.after is not None:
            wanted = set()
        buffer_id, e, m = self.snapshot.state.buffer_id, self.episode.c, self.metadata.c
        by_time = e.buffer_id == buffer_id
        if not self._uses("metadata"):
            return self.episode, by_time if "timestamp" in wanted else self._own_ids(e.id)
        own = m.buffer_id == buffer_id if "loss" in wanted else self._own_ids(m.episode_id)
        if not self._uses("episode"):
            return self.metadata, own
        tables = self.metadata.join(self.episode, e.id == m.episode_id)
        return tables, and_(own, by_time) if "timestamp" in wanted else own

    def _own_ids(self, ids: ColumnElement[int]) -> ColumnElement[bool]:
        """Write the test that an id belongs to the buffer, and is above ``after``."""
        low, high = id_range(self.snapshot.state.buffer_id)
        # One lower bound: of two, SQLite looks up the first, and tests the other row by row.
        return ids.between(low if self.after is None else max(low, self.after + 1), high)

    def _event_tables(self) -> FromClause:
        tables: FromClause = replay_event
        if any(column.name in _g for column in self.used if column.source == "history"):
            tables = tables.join(event_group, _g.id == _v.group_id)
        if any(column.source == "episode" and column.name not in ("id", "domain") for column in self.used):
            tables = tables.outerjoin(self.episode, self.episode.c.id == _v.episode_id)
        if self._uses("metadata"):
            tables = tables.outerjoin(self.metadata, self.metadata.c.episode_id == _v.episode_id)
        return tables

    def _event_tests(self) -> Iterator[ColumnElement[bool]]:
        """Yield tests that narrow the events to those that can pass.

        The history does not show events that it does not record, and events that it has forgotten. Both stay in the log
        until the fold.

        Events are numbered as they are committed, so the events of some steps or of some hours have nearly consecutive
        numbers. The indexes on time and on step give the range. The events of a few episodes are found by their chains.
        """
        low, high = id_range(self.snapshot.state.buffer_id)
        low += self.snapshot.state.counters.history_from
        yield _v.unrecorded.is_(None)
        tests = conjuncts(self.where)
        known = [test for test in tests if isinstance(test, (Comparison, In))]
        dated = [self.condition(test) for test in known if test.column.name in ("at", "step")]
        if dated:
            own = _g.buffer_id == self.snapshot.state.buffer_id
            query = select(func.min(_g.id), func.max(_g.id + _g["count"] - 1)).where(own, *dated)
            first, last = self.snapshot.conn.execute(query).one()
            low, high = (low, low - 1) if first is None else (max(low, first), last)
        yield _v.id >= low
        yield _v.id <= high
        for test in tests:
            episodes = _wanted_ids(test)
            if episodes and len(episodes) <= FEW:
                yield self.snapshot.backend.one_of(_v.id, events_of(self.snapshot, episodes) or [0])

    def condition(self, condition: Condition) -> ColumnElement[bool]:
        """Write the condition as SQL."""
        match condition:
            case AllOf():
                parts = (~part for part in _fold(~part for part in condition.conditions))
                return _join(and_, true(), [self.condition(part) for part in parts])
            case AnyOf():
                return _join(or_, false(), [self.condition(part) for part in _fold(condition.conditions)])
            case Not(Comparison(column, "==", None)):
                return self.expression(column).is_not(None)
            case Not():
                return self.condition(condition.condition).is_not(true())
            case HasTag():
                return self._has_tag(condition.tag)
            case In():
                return self._is_in(condition.column, condition.values)
            case Comparison():
                return self._compare(condition.column, condition.operator, condition.value)
        raise InvalidValue(f"expected a condition such as col.loss > 1, got {shown(condition)}")

    def _has_tag(self, tag: str) -> ColumnElement[bool]:
        t = episode_tag.c
        return exists().where(t.buffer_id == self.snapshot.state.buffer_id, t.tag == tag, t.episode_id == self._id)

    def _is_in(self, column: Column, values: tuple[Constant, ...]) -> ColumnElement[bool]:
        expression, backend = self.expression(column), self.snapshot.backend
        if column.kind == "flag":
            return or_(false(), *(self._compare(column, "==", value) for value in values))
        if isinstance(column, ExtraColumn) and column.kind == "float":
            numbers = [value for value in values if isinstance(value, (int, float))]
            if len(numbers) < 2:
                return expression == backend.number(numbers[0]) if numbers else false()
            return backend.one_number_of(expression, numbers)
        if column.name == "domain":
            codes = [self.snapshot.state.domain_code(str(value)) for value in values]
            first = self.snapshot.first_id
            values = tuple(first + code for code in codes if code is not None)
        elif column.kind in ("int", "float"):
            values = tuple(holdable(column, values))
        if len(values) < 2:
            return expression == values[0] if values else false()
        return backend.one_of(expression, values)

    def _compare(self, column: Column, operator: Operator, value: Constant) -> ColumnElement[bool]:
        expression = self.expression(column)
        if value is None:
            return expression.is_(None)
        if isinstance(value, bool):
            return expression.is_(true() if value else false())
        if operator == "==":
            return self._is_in(column, (value,))
        compare: Callable[[ColumnElement[Any], Any], ColumnElement[bool]] = OPERATORS[operator]
        if column.name == "domain":
            by_name = compare(self.snapshot.backend.by_code_point(domain.c.name), value)
            own = domain.c.buffer_id == self.snapshot.state.buffer_id
            return expression.in_(select(domain.c.id).where(own, by_name))
        if column.kind == "text":
            return compare(self.snapshot.backend.by_code_point(expression), value)
        assert isinstance(value, (int, float))
        if isinstance(column, ExtraColumn):
            return compare(expression, self.snapshot.backend.number(value))
        operator, value = comparable(column, operator, value)
        compared: ColumnElement[bool] = OPERATORS[operator](expression, value)
        return compared


class _Bracketed(Grouping[bool]):
    """Brackets that SQLAlchemy keeps. It looks through its own ``Grouping``, and flattens an "or" inside an "or"."""

    inherit_cache = True
    operator = None


def _join(
    join: Callable[..., ColumnElement[bool]], empty: ColumnElement[bool], tests: list[ColumnElement[bool]]
) -> ColumnElement[bool]:
    """Join any number of tests as a tree of chains of ``WIDTH``. In SQLite, one chain is as deep as it is long."""
    while len(tests) > WIDTH:
        tests = [_Bracketed(join(*tests[i : i + WIDTH])) for i in range(0, len(tests), WIDTH)]
    return join(empty, *tests)


def _fold(conditions: Iterable[Condition]) -> Iterator[Condition]:
    """Yield conditions that are joined by "or". All tests that one column equals a value become a single ``In``."""
    values: dict[tuple[str, str], tuple[Column, dict[Constant, None]]] = {}
    for condition in conditions:
        equal = _equality(condition)
        if equal is None:
            yield condition
        else:
            column, constants = equal
            values.setdefault(column.name_and_kind, (column, {}))[1].update(dict.fromkeys(constants))
    for column, distinct in values.values():
        yield In(column, tuple(distinct))


def conjuncts(condition: Condition) -> tuple[Condition, ...]:
    """Return the conditions that must all hold."""
    return condition.conditions if isinstance(condition, AllOf) else (condition,)


def _equality(condition: Condition) -> tuple[Column, tuple[Constant, ...]] | None:
    """Return the column and the values if the condition says that the column has one of some values."""
    match condition:
        case In(column, values):
            return column, values
        case Comparison(column, "==", value) if value is not None:
            return column, (value,)
    return None


def _indexed_column(condition: Condition) -> str | None:
    """Return the column of a single test that an index could serve."""
    match condition:
        case Not(Comparison(column, "==", None)) | In(column) | Comparison(column):
            return column.name
    return None


def _wanted_ids(condition: Condition) -> list[int] | None:
    """Return the ids if the condition says that the id is one of some values."""
    equal = _equality(condition)
    return _integers(equal[1]) if equal is not None and equal[0].name == "id" else None


def comparable(column: Column, operator: Operator, value: int | float) -> tuple[Operator, int | float]:
    """Return an operator (not ``==``) and a value that the column can hold, for the same test.

    The value becomes a neighbour that the column can hold: 2.5 lies between 2 and 3, and a value beyond all integers
    is replaced by the last one.
    """
    near = math.floor(max(min(value, MAX_INT), -MAX_INT)) if column.kind == "int" else float(value)
    if near < value:
        operator = ">" if operator in (">", ">=") else "<="
    elif near > value:
        operator = ">=" if operator in (">", ">=") else "<"
    return operator, near


def holdable(column: Column, values: Iterable[Constant]) -> list[int] | list[float]:
    """Return the numbers that a column of this kind can hold; a value is equal to no other number."""
    if column.kind == "int":
        return _integers(values)
    return [float(value) for value in values if isinstance(value, (int, float)) and float(value) == value]


def _integers(values: Iterable[Constant]) -> list[int]:
    """Return the constants that an integer column can hold."""
    numbers = (value for value in values if isinstance(value, (int, float)) and abs(value) <= MAX_INT)
    return [int(value) for value in numbers if value == int(value)]
