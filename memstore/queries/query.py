"""Queries on live episodes and on the replay history, built step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, TypeVar

import numpy as np
from sqlalchemy import ColumnElement, Select, func, select

from memstore.buffer.snapshot import Snapshot
from memstore.config import check_int
from memstore.episodes.recall import tags_of
from memstore.errors import ConfigError, InvalidValue
from memstore.queries.aggregates import Aggregate, aggregate_kind, aggregate_sql, check_column, check_typed, row_value
from memstore.queries.columns import (
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
    Over,
    TagsColumn,
    col,
    conditions_within,
)
from memstore.queries.parser import as_condition
from memstore.queries.records import ReplayEvent
from memstore.queries.results import Field, Result, check_names
from memstore.queries.sql import Scope, conjuncts
from memstore.storage import stored
from memstore.types import Episode
from memstore.values.shown import shown

T = TypeVar("T")
Order = Column | Descending | str
Named = tuple[tuple[str, Column], ...]
Decoder = Callable[[Any], Any]

EXACT_FLOAT = 2**53
"""Every whole number up to this one is a float64."""

_EPISODE = tuple((column.name, column) for column in EPISODE_COLUMNS if column.name != "rise")
"""An ``Episode`` has these fields before its tags, in this order. It computes its rise itself."""


class Read(Protocol):
    """A function that runs work in a snapshot of the memory, and returns its result."""

    def __call__(self, work: Callable[[Snapshot], T]) -> T: ...


@dataclass(frozen=True, slots=True, eq=False)
class Query:
    """A query on one memory. Its methods return new queries; nothing is read before you ask for an answer.

    ``all``, ``result``, ``arrays``, ``ids``, ``count`` and the ``to_`` methods answer, and so does iteration. Each
    answer comes from one consistent snapshot of the committed data, or of the open ``transaction()``. Without
    ``order_by``, rows come in the order of their ids (events: of their numbers; groups: of their columns). Missing
    values come last, texts are sorted by code points, and equal rows by id.
    """

    _read: Read
    _over: Over
    _condition: Condition = EVERY
    _order: tuple[tuple[str | Column, bool], ...] = ()
    _limit: int | None = None
    _selected: Named | None = None
    _groups: Named = ()
    _aggregates: tuple[tuple[str, Aggregate], ...] = ()

    def filter(self, *conditions: Condition | str) -> Query:
        """Keep only the rows that pass all the conditions.

        Parameters
        ----------
        *conditions : Condition or str
            Conditions, or their texts: ``filter("loss > 2", col.level == 3)``.

        Raises
        ------
        InvalidValue
            If a text cannot be read, or if live episodes are asked for a column of the history.
        """
        condition = self._condition
        for given in conditions:
            added = as_condition(given, over=self._over)
            condition = added if condition is EVERY else condition & added
        return replace(self, _condition=condition)

    def order_by(self, *columns: Order) -> Query:
        """Sort the rows.

        Parameters
        ----------
        *columns : Column, Descending or str
            Columns, ``column.descending``, or names of the answer's columns. "-name" sorts the largest values first.

        Raises
        ------
        InvalidValue
            If an argument is none of these. An unknown name is refused when you ask for an answer.
        """
        return replace(self, _order=tuple(map(_order_term, columns)))

    def limit(self, count: int) -> Query:
        """Keep only the first ``count`` rows. ``InvalidValue`` if it is no whole number, or less than 0."""
        try:
            return replace(self, _limit=check_int("limit", count, minimum=0))
        except ConfigError as exc:
            raise InvalidValue(str(exc)) from None

    def select(self, *columns: Column, **named: Column) -> Query:
        """Answer only with these columns, under their own names or under the names given as keywords.

        Raises
        ------
        InvalidValue
            If there is no column, if an argument is not a column, or if a place in extra is given without a name.
        """
        if not (columns or named):
            raise InvalidValue("select() needs at least one column, such as col.loss")
        return replace(self, _selected=_name_columns(columns, named))

    def group_by(self, *columns: Column, **named: Column) -> Query:
        """Answer with one row for each combination of values in these columns.

        ``aggregate`` names the numbers that are computed for each group. Names and errors are those of ``select``.
        """
        return replace(self, _groups=_name_columns(columns, named))

    def aggregate(self, **aggregates: Aggregate) -> Query:
        """Answer with numbers computed from many rows: ``aggregate(n=count(), loss=mean(col.loss))``.

        Raises
        ------
        InvalidValue
            If an argument is not an aggregate.
        """
        for name, given in aggregates.items():
            if not isinstance(given, Aggregate):
                raise InvalidValue(f"{name} must be an aggregate such as count() or mean(column), got {shown(given)}")
        return replace(self, _aggregates=tuple(aggregates.items()))

    def result(self) -> Result:
        """Read the answer, and return it column by column."""
        return self._read(self._answer)

    def all(self) -> list[Any]:
        """Read the answer, and return its rows as frozen dataclasses.

        Returns
        -------
        list
            Of ``Episode`` without payload, or of ``ReplayEvent``. After ``select``, ``group_by`` or ``aggregate``, of
            records with the columns as attributes.
        """
        return self._read(self._records)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.all())

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """Read the answer, and return it as numpy columns. See ``Result.arrays`` for their dtypes."""
        return self.result().arrays()

    def to_pandas(self) -> Any:
        """Read the answer as a pandas ``DataFrame``. ``ConfigError`` if pandas is not installed."""
        return self.result().to_pandas()

    def to_polars(self) -> Any:
        """Read the answer as a polars ``DataFrame``. ``ConfigError`` if polars is not installed."""
        return self.result().to_polars()

    def to_arrow(self) -> Any:
        """Read the answer as a pyarrow ``Table``. ``ConfigError`` if pyarrow is not installed."""
        return self.result().to_arrow()

    def count(self) -> int:
        """Count the rows that pass the filter. The limit is ignored, and nothing else is read."""

        def count_rows(snapshot: Snapshot) -> int:
            scope = Scope.of(snapshot, self._over, (), self._condition)
            return int(snapshot.conn.scalars(scope.select(func.count())).one())

        return self._read(count_rows)

    def ids(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Read the ids of the episodes, in order. The history gives one id for each event.

        Returns
        -------
        int64 array of shape (n,)
        """
        ids: np.ndarray[Any, np.dtype[np.int64]] = self.select(col.id).arrays()["id"]
        return ids

    def __repr__(self) -> str:
        return f"<Query over {self._over}: {str(self._condition) or 'all of them':.300}>"

    # From here on, methods work in a snapshot.

    def _records(self, snapshot: Snapshot) -> list[Any]:
        if self._over == "history" or self._selected or self._groups or self._aggregates:
            return self._answer(snapshot).records()
        rows = replace(self, _selected=_EPISODE)._answer(snapshot).rows
        tags = tags_of(snapshot, [row[0] for row in rows])
        return [Episode(*[*row, tags.get(row[0], ())]) for row in rows]

    def _answer(self, snapshot: Snapshot) -> Result:
        if self._aggregates or self._groups:
            return self._answer_groups(snapshot)
        chosen, record = self._selected, None
        if chosen is None and self._over == "history":
            chosen, record = tuple((field.name, _column(field.name)) for field in fields(ReplayEvent)), ReplayEvent
        elif chosen is None:
            chosen = tuple((column.name, column) for column in EPISODE_COLUMNS)
        columns = tuple(self._field(name, column) for name, column in chosen)
        check_names([name for name, _ in chosen])
        order = [(_order_column(term, dict(chosen)), descending) for term, descending in self._order]
        if self._limit is None or self._over == "history":
            rows = self._rows(snapshot, chosen, self._condition, order)
        else:
            # The ids are chosen first. In one statement, all columns of every row would be read before the sort.
            ids = [row[0] for row in self._rows(snapshot, (("id", col.id),), self._condition, order)]
            found = replace(self, _limit=None)._rows(snapshot, (("id", col.id), *chosen), col.id.in_(ids), [])
            by_id = {row[0]: row[1:] for row in found}
            rows = [by_id[i] for i in ids]
        return Result(columns, rows, record)

    def _rows(
        self, snapshot: Snapshot, outputs: Named, condition: Condition, order: list[tuple[Column, bool]]
    ) -> list[tuple[Any, ...]]:
        columns = [column for _, column in outputs]
        scope = Scope.of(snapshot, self._over, [*columns, *(column for column, _ in order)], condition)
        keys = [scope.sortable(column, scope.expression(column)) for column, _ in order]
        # The keys are selected too: SQLite sorts a union by indexes only if it is asked for what it sorts by.
        values = [*(_selectable(scope, column) for column in columns), *keys]
        query = scope.select(*values, order=order[0][0] if order else None)
        known = {column for part in conjuncts(condition) for column in _known_columns(part)}
        for key, (column, descending) in zip(keys, order, strict=True):
            nullable = self._may_be_missing(column) and str(column) not in known
            query = _sort(query, key, descending, nullable)
        query = query.order_by(scope.identity()).limit(self._limit)
        return _decoded_rows(snapshot, query, [_decoder(snapshot, column) for column in columns])

    def _answer_groups(self, snapshot: Snapshot) -> Result:
        groups = [(name, check_typed(column)) for name, column in self._groups]
        aggregates = self._aggregates
        outputs = [self._field(name, column) for name, column in groups]
        outputs += [Field(name, aggregate_kind(part), part.function != "count") for name, part in aggregates]
        check_names([field.name for field in outputs])
        used = [column for _, column in groups] + [part.column for _, part in aggregates if part.column is not None]
        scope = Scope.of(snapshot, self._over, used, self._condition)
        values = [scope.expression(column) for _, column in groups]
        values += [row_value(scope, part) for _, part in aggregates]
        # The subquery gives the values names. A place in JSON has parameters, so that SQL does not know two mentions of
        # it as the same expression.
        named = [value.label(f"value_{i}") for i, value in enumerate(values)]
        inner = list(scope.select(*named).subquery().c)
        keys = {name: value for (name, _), value in zip(groups, inner, strict=False)}
        numbers = {
            name: aggregate_sql(part, value)
            for (name, part), value in zip(aggregates, inner[len(groups) :], strict=True)
        }
        query = select(*keys.values(), *numbers.values()).group_by(*keys.values())
        for term, descending in self._order:
            name = (
                term
                if isinstance(term, str)
                else next((n for n, c in groups if c.name_and_kind == term.name_and_kind), str(term))
            )
            if name not in keys and name not in numbers:
                raise InvalidValue(f"groups can be sorted by {', '.join([*keys, *numbers])}, not by {name!r:.60}")
            value = numbers[name] if name in numbers else scope.sortable(dict(groups)[name], keys[name])
            query = _sort(query, value, descending, True)
        for name, column in groups:
            query = _sort(query, scope.sortable(column, keys[name]), False, self._may_be_missing(column))
        decoders = [_decoder(snapshot, column) for _, column in groups]
        decoders += [_aggregate_decoder(snapshot, part) for _, part in aggregates]
        return Result(tuple(outputs), _decoded_rows(snapshot, query.limit(self._limit), decoders))

    def _field(self, name: str, column: Column) -> Field:
        untyped = isinstance(column, ExtraColumn) and not column.typed
        return Field(name, "json" if untyped else column.kind, self._may_be_missing(column))

    def _may_be_missing(self, column: Column) -> bool:
        """True if rows may lack the column. In the history, an episode that has left has only its id."""
        of_episode = self._over == "history" and column.source != "history" and column.name != "id"
        return column.nullable or of_episode


def _order_term(given: Order) -> tuple[str | Column, bool]:
    if isinstance(given, Descending):
        return given.column, True
    if isinstance(given, str):
        return given.removeprefix("-"), given.startswith("-")
    if not isinstance(given, Column):
        raise InvalidValue(f"order_by takes columns, column.descending or names, got {shown(given)}")
    return given, False


def _name_columns(columns: tuple[Column, ...], named: dict[str, Column]) -> Named:
    for column in columns:
        if isinstance(column, ExtraColumn) and column.path:
            raise InvalidValue(f"{column} needs a name: write name=col.{column}")
    return (
        *((column.name, column) for column in map(check_column, columns)),
        *((name, check_column(column)) for name, column in named.items()),
    )


def _order_column(term: str | Column, outputs: dict[str, Column]) -> Column:
    if isinstance(term, Column):
        return check_typed(term)
    return check_typed(outputs[term] if term in outputs else _column(term))


def _column(name: str) -> Column:
    found = col[name]
    if isinstance(found, TagsColumn):
        raise InvalidValue("tags cannot be selected or sorted by; use them in a condition: col.tags.has(...)")
    return found


def _selectable(scope: Scope, column: Column) -> ColumnElement[Any]:
    # A place in extra without a type is read with all of extra, and looked up in Python.
    return scope.expression(col.extra if isinstance(column, ExtraColumn) and not column.typed else column)


def _decoded_rows(snapshot: Snapshot, query: Select[Any], decoders: list[Decoder | None]) -> list[tuple[Any, ...]]:
    """Return the first columns of the rows, as many as there are decoders."""
    return [
        tuple(value if decode is None else decode(value) for value, decode in zip(row, decoders, strict=False))
        for row in snapshot.conn.execute(query)
    ]


def _decoder(snapshot: Snapshot, column: Column) -> Decoder | None:
    if column.name == "domain":
        names, first = snapshot.state.domain_names, snapshot.first_id + 1
        return lambda value: None if value is None else names[value - first]
    if isinstance(column, ExtraColumn) and not column.typed:
        return lambda value: None if value is None else _look_up(stored.parsed(value, "an extra"), column.path)
    return _number_in_json if isinstance(column, ExtraColumn) and column.kind == "float" else None


def _aggregate_decoder(snapshot: Snapshot, aggregate: Aggregate) -> Decoder | None:
    if aggregate.column is None or aggregate.function not in ("min", "max"):
        return None
    return _decoder(snapshot, aggregate.column)


def _number_in_json(value: Any) -> float | int | None:
    """Return the number as a float, or as an int if no float is equal to it."""
    if value is None:
        return None
    number = float(value)
    return int(value) if abs(number) >= EXACT_FLOAT and LEAST <= value <= GREATEST and int(value) != number else number


def _look_up(value: Any, path: Iterable[str | int]) -> Any:
    for step in path:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            value = value[step] if isinstance(value, list) and step < len(value) else None
    return value


def _sort(query: Select[Any], expression: ColumnElement[Any], descending: bool, nullable: bool) -> Select[Any]:
    directed = expression.desc() if descending else expression.asc()
    # NULLS LAST only if a value may be missing: with it, PostgreSQL uses no index of the usual order.
    return query.order_by(directed.nulls_last() if nullable else directed)


def _known_columns(condition: Condition) -> Iterator[str]:
    """Yield the columns that have a value in every row that passes. Places in extra have no index, and are left out."""
    if any(isinstance(test, HasTag) or isinstance(test.column, ExtraColumn) for test in conditions_within(condition)):
        return
    if isinstance(condition, In) or (isinstance(condition, Comparison) and condition.value is not None):
        yield str(condition.column)
    if isinstance(condition, Not) and isinstance(condition.condition, Comparison) and condition.condition.value is None:
        yield str(condition.condition.column)
