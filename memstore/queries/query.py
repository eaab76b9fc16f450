"""Composable queries over live episodes and over the replay history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from sqlalchemy import ColumnElement, Select, func, select

from memstore.buffer.snapshot import Snapshot
from memstore.config import check_int
from memstore.episodes.recall import tags_of
from memstore.errors import ConfigError, InvalidValue
from memstore.queries import (
    EPISODE_COLUMNS,
    EVERY,
    GREATEST,
    LEAST,
    Column,
    Comparison,
    Condition,
    Descending,
    ExtraColumn,
    HasTag,
    In,
    Not,
    TagsColumn,
    col,
    conditions_within,
)
from memstore.queries.aggregates import Aggregate, aggregate_shape, aggregated, column_given, summand, typed
from memstore.queries.parser import as_condition
from memstore.queries.records import ReplayEvent
from memstore.queries.results import Field, Result
from memstore.queries.sql import Over, Scope, conjuncts
from memstore.storage import stored
from memstore.storage.schema import first_id
from memstore.types import Episode
from memstore.values.shown import shown

T = TypeVar("T")
Order = Column | Descending | str
EXACT_FLOAT = 2**53
"""Every whole number up to this is a float."""

_EPISODE = tuple((column.name, column) for column in EPISODE_COLUMNS if column.name != "rise")
"""The fields of an ``Episode`` before its tags, in order; an episode computes its rise."""


class Read(Protocol):
    """How a query reaches its snapshot."""

    def __call__(self, work: Callable[[Snapshot], T]) -> T: ...


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """A question to one memory; every method returns another query, and nothing is read until an answer is asked for.

    Each answer is from one consistent snapshot. Without ``order_by`` rows come in the order of ids (events, groups);
    missing values sort last, texts by code points, and ties by id.
    """

    _read: Read
    over: Over
    condition: Condition = EVERY
    order: tuple[tuple[str | Column, bool], ...] = ()
    most: int | None = None
    selected: tuple[tuple[str, Column], ...] | None = None
    groups: tuple[tuple[str, Column], ...] = ()
    aggregates: tuple[tuple[str, Aggregate], ...] = ()

    def filter(self, *conditions: Condition | str) -> Query:
        """Keep only rows that pass every condition, or text of one: ``filter("loss > 2", col.level == 3)``."""
        found = self.condition
        for given in conditions:
            condition = as_condition(given, over=self.over)
            found = condition if found is EVERY else found & condition
        return replace(self, condition=found)

    def order_by(self, *columns: Order) -> Query:
        """Sort by columns, ``column.descending``, or names of the answer's columns ("-name": largest first)."""
        return replace(self, order=tuple(self._sorted(column) for column in columns))

    def limit(self, count: int) -> Query:
        """Keep only the first rows."""
        try:
            return replace(self, most=check_int("limit", count, minimum=0))
        except ConfigError as exc:
            raise InvalidValue(str(exc)) from None

    def select(self, *columns: Column, **named: Column) -> Query:
        """Answer with these columns alone, under their own names or those given."""
        if not (columns or named):
            raise InvalidValue("select() needs at least one column, such as col.loss")
        return replace(self, selected=self._outputs(columns, named))

    def group_by(self, *columns: Column, **named: Column) -> Query:
        """One row for each combination of values; ``aggregate`` says what is to be known of it."""
        return replace(self, groups=self._outputs(columns, named))

    def aggregate(self, **aggregates: Aggregate) -> Query:
        """Answer with numbers of many rows: ``aggregate(n=count(), loss=mean(col.loss))``."""
        for name, given in aggregates.items():
            if not isinstance(given, Aggregate):
                raise InvalidValue(f"{name} must be count(), mean(column) ..., got {shown(given)}")
        return replace(self, aggregates=tuple(aggregates.items()))

    def result(self) -> Result:
        """The answer, column by column."""
        return self._read(self._answered)

    def all(self) -> list[Any]:
        """The answer as frozen dataclasses: ``Episode`` without payload, ``ReplayEvent``, or rows of chosen columns."""
        return self._read(self._records)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.all())

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The answer as numpy columns; see ``Result.arrays``."""
        return self.result().arrays()

    def to_pandas(self) -> Any:
        """The answer as a pandas ``DataFrame``."""
        return self.result().to_pandas()

    def to_polars(self) -> Any:
        """The answer as a polars ``DataFrame``."""
        return self.result().to_polars()

    def to_arrow(self) -> Any:
        """The answer as a pyarrow ``Table``."""
        return self.result().to_arrow()

    def count(self) -> int:
        """How many rows pass the filter, whatever the limit; nothing but their number is read."""

        def work(snapshot: Snapshot) -> int:
            tables, passing = Scope.of(snapshot, self.over, (), self.condition).rows(self.condition)
            return int(snapshot.conn.scalars(select(func.count()).select_from(tables).where(passing)).one())

        return self._read(work)

    def ids(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Ids of the episodes, in order (in the history: one for each event)."""
        ids: np.ndarray[Any, np.dtype[np.int64]] = self.select(col.id).arrays()["id"]
        return ids

    def __repr__(self) -> str:
        return f"<Query over {self.over}: {str(self.condition) or 'all of them':.300}>"

    def _sorted(self, given: Order) -> tuple[str | Column, bool]:
        if isinstance(given, Descending):
            return given.column, True
        if isinstance(given, str):
            return given.removeprefix("-"), given.startswith("-")
        if not isinstance(given, Column):
            raise InvalidValue(f"order_by takes columns, column.descending or names, got {shown(given)}")
        return given, False

    def _outputs(self, columns: tuple[Column, ...], named: dict[str, Column]) -> tuple[tuple[str, Column], ...]:
        for column in columns:
            if isinstance(column, ExtraColumn) and column.path:
                raise InvalidValue(f"{column} needs a name: write name=col.{column}")
        return (
            *((column.name, column) for column in map(column_given, columns)),
            *((name, column_given(column)) for name, column in named.items()),
        )

    # From here on in a snapshot

    def _records(self, snapshot: Snapshot) -> list[Any]:
        if self.over == "history" or self.selected or self.groups or self.aggregates:
            return self._answered(snapshot).records()
        rows = replace(self, selected=_EPISODE)._answered(snapshot).rows
        tags = tags_of(snapshot, [row[0] for row in rows])
        return [Episode(*[*row, tags.get(row[0], ())]) for row in rows]

    def _answered(self, snapshot: Snapshot) -> Result:
        if self.aggregates or self.groups:
            return self._grouped(snapshot)
        chosen, record = self.selected, None
        if chosen is None and self.over == "history":
            chosen, record = tuple((field.name, _column(field.name)) for field in fields(ReplayEvent)), ReplayEvent
        elif chosen is None:
            chosen = tuple((column.name, column) for column in EPISODE_COLUMNS)
        outputs = dict(chosen)
        order = [(_resolved(given, outputs), down) for given, down in self.order]
        if self.most is None or self.over == "history":
            rows = self._rows(snapshot, chosen, self.condition, order)
        else:
            # First which, then what: else every row is looked up in full before it is sorted.
            ids = [row[0] for row in self._rows(snapshot, (("id", col.id),), self.condition, order)]
            by_id = replace(self, most=None)._rows(snapshot, (("id", col.id), *chosen), col.id.in_(ids), [])
            known = {row[0]: row[1:] for row in by_id}
            rows = [known[i] for i in ids]
        columns = tuple(self._field(name, column) for name, column in chosen)
        return Result(columns, rows, record)

    def _rows(
        self,
        snapshot: Snapshot,
        outputs: tuple[tuple[str, Column], ...],
        condition: Condition,
        order: list[tuple[Column, bool]],
    ) -> list[tuple[Any, ...]]:
        columns = [column for _, column in outputs]
        scope = Scope.of(snapshot, self.over, [*columns, *(column for column, _ in order)], condition)
        tables, passing = scope.rows(condition, order[0][0] if order else None)
        query = select(*(_selectable(scope, column) for column in columns)).select_from(tables).where(passing)
        certain = {column for part in conjuncts(condition) for column in _certain(part)}
        for column, down in order:
            missing = self._may_be_missing(column) and str(column) not in certain
            query = _ordered(query, scope.sortable(column, scope.expression(column)), down, missing)
        query = query.order_by(scope.identity()).limit(self.most)
        decoders = [_decoder(snapshot, column) for column in columns]
        return [
            tuple(value if decode is None else decode(value) for value, decode in zip(row, decoders, strict=True))
            for row in snapshot.conn.execute(query)
        ]

    def _grouped(self, snapshot: Snapshot) -> Result:
        groups = [(name, typed(column)) for name, column in self.groups]
        used = [column for _, column in groups] + [a.column for _, a in self.aggregates if a.column is not None]
        scope = Scope.of(snapshot, self.over, used, self.condition)
        tables, passing = scope.rows(self.condition)
        # Named within: a place in JSON has parameters, and with those two mentions of it are two expressions.
        named = [scope.expression(column).label(f"group_{i}") for i, (_, column) in enumerate(groups)]
        named += [summand(scope, aggregate).label(f"value_{i}") for i, (_, aggregate) in enumerate(self.aggregates)]
        inner = select(*named).select_from(tables).where(passing).subquery()
        keys = {name: inner.c[f"group_{i}"] for i, (name, _) in enumerate(groups)}
        numbers = {
            name: aggregated(aggregate, inner.c[f"value_{i}"]) for i, (name, aggregate) in enumerate(self.aggregates)
        }
        query = select(*keys.values(), *numbers.values()).group_by(*keys.values())
        for given, down in self.order:
            name = given if isinstance(given, str) else next((n for n, c in groups if _same(c, given)), str(given))
            if name in numbers:
                query = _ordered(query, numbers[name], down, True)
            elif name in keys:
                query = _ordered(query, scope.sortable(dict(groups)[name], keys[name]), down, True)
            else:
                raise InvalidValue(f"groups can be sorted by {', '.join([*keys, *numbers])}, not by {name!r:.60}")
        for name, column in groups:
            query = _ordered(query, scope.sortable(column, keys[name]), False, self._may_be_missing(column))
        decoders = [_decoder(snapshot, column) for _, column in groups]
        decoders += [_aggregate_decoder(snapshot, aggregate) for _, aggregate in self.aggregates]
        rows = [
            tuple(value if decode is None else decode(value) for value, decode in zip(row, decoders, strict=True))
            for row in snapshot.conn.execute(query.limit(self.most))
        ]
        outputs = [self._field(name, column) for name, column in groups]
        outputs += [Field(name, *aggregate_shape(aggregate)) for name, aggregate in self.aggregates]
        return Result(tuple(outputs), rows)

    def _field(self, name: str, column: Column) -> Field:
        open_type = isinstance(column, ExtraColumn) and not column.typed
        return Field(name, "json" if open_type else column.kind, self._may_be_missing(column))

    def _may_be_missing(self, column: Column) -> bool:
        """In the history everything of an episode that has left is, but its id."""
        left = self.over == "history" and column.source != "history" and column.name != "id"
        return column.nullable or left


def _resolved(given: str | Column, outputs: dict[str, Column]) -> Column:
    if isinstance(given, Column):
        return typed(given)
    return typed(outputs[given] if given in outputs else _column(given))


def _column(name: str) -> Column:
    found = col[name]
    if isinstance(found, TagsColumn):
        raise InvalidValue("tags can be asked for (col.tags.has(...)), not selected or sorted by")
    return found


def _same(one: Column, other: Column) -> bool:
    return (str(one), one.kind) == (str(other), other.kind)


def _selectable(scope: Scope, column: Column) -> ColumnElement[Any]:
    # What stands at a path without a type is looked up in the whole, here.
    return scope.expression(col.extra if isinstance(column, ExtraColumn) and not column.typed else column)


def _decoder(snapshot: Snapshot, column: Column) -> Callable[[Any], Any] | None:
    if column.name == "domain":
        names, first = snapshot.state.domain_names, first_id(snapshot.state.buffer_id) + 1
        return lambda value: None if value is None else names[value - first]
    if isinstance(column, ExtraColumn) and not column.typed:
        return lambda value: None if value is None else _looked_up(stored.parsed(value, "an extra"), column.path)
    return _number_in_json if isinstance(column, ExtraColumn) and column.kind == "float" else None


def _aggregate_decoder(snapshot: Snapshot, aggregate: Aggregate) -> Callable[[Any], Any] | None:
    if aggregate.column is None or aggregate.function not in ("min", "max"):
        return None
    return _decoder(snapshot, aggregate.column)


def _number_in_json(value: Any) -> float | int | None:
    """A float, or an int where no float is equal to it."""
    if value is None:
        return None
    number = float(value)
    return int(value) if abs(number) >= EXACT_FLOAT and LEAST <= value <= GREATEST and int(value) != number else number


def _looked_up(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            value = value[step] if isinstance(value, list) and step < len(value) else None
    return value


def _ordered(query: Select[Any], expression: ColumnElement[Any], down: bool, nullable: bool) -> Select[Any]:
    directed = expression.desc() if down else expression.asc()
    # Only where it matters: PostgreSQL uses no index for an order that puts missing values elsewhere than it does.
    return query.order_by(directed.nulls_last() if nullable else directed)


def _certain(condition: Condition) -> Iterator[str]:
    """Columns that are known in every row that passes; of places in extra no index knows anything."""
    if any(isinstance(test, HasTag) or isinstance(test.column, ExtraColumn) for test in conditions_within(condition)):
        return
    if isinstance(condition, In) or (isinstance(condition, Comparison) and condition.value is not None):
        yield str(condition.column)
    if isinstance(condition, Not) and isinstance(condition.condition, Comparison) and condition.condition.value is None:
        yield str(condition.condition.column)
