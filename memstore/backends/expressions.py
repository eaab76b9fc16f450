"""The parts of a query that databases write differently."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Numeric,
    Table,
    Text,
    bindparam,
    case,
    cast,
    collate,
    func,
    literal,
    null,
    select,
)
from sqlalchemy import any_ as any_of
from sqlalchemy.dialects.postgresql import ARRAY, JSON
from sqlalchemy.types import TypeEngine

LARGEST = 1.7976931348623157e308


class Expressions(ABC):
    """What a query says in the database's own words; values are bound parameters throughout."""

    @abstractmethod
    def one_of(self, expression: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
        """Whether the expression is one of any number of values of one type."""

    @abstractmethod
    def by_code_point(self, text: ColumnElement[Any]) -> ColumnElement[Any]:
        """The text, compared and sorted by code points."""

    @abstractmethod
    def json_value(self, document: ColumnElement[Any], path: Sequence[str | int], kind: str) -> ColumnElement[Any]:
        """What stands at the path in a JSON text, if it is a ``"float"``, ``"text"`` or ``"flag"``, else NULL.

        Of kind ``"any"`` something that is not NULL where anything stands there that is not null.
        """


class SQLiteExpressions(Expressions):
    """SQLite: lists as JSON texts, JSON by ``json_each``."""

    def one_of(self, expression: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
        listed = func.json_each(json.dumps(list(values))).table_valued("value")
        return expression.in_(select(listed.c.value))

    def by_code_point(self, text: ColumnElement[Any]) -> ColumnElement[Any]:
        return text  # the bytes of UTF-8 sort alike

    def json_value(self, document: ColumnElement[Any], path: Sequence[str | int], kind: str) -> ColumnElement[Any]:
        # Not json_extract: its paths cannot name a key with a quote in it, and compare escapes as they are written.
        value: ColumnElement[Any] = func.json_extract(document, "$")
        sort: ColumnElement[Any] = func.json_type(document)
        conditions = []
        for step in path:
            # Of a scalar json_each would make a row, and of a text an error.
            inside = case((sort.in_(("object", "array")), value))
            level = func.json_each(inside).table_valued("key", "value", "type", joins_implicitly=True)
            value, sort = level.c.value, level.c.type
            conditions.append(level.c.key == literal(step, Integer() if isinstance(step, int) else Text()))
        found: dict[str, ColumnElement[Any]] = {
            "float": case((sort.in_(("integer", "real")), cast(value, Double())), else_=null()),
            "text": case((sort == "text", cast(value, Text())), else_=null()),
            "flag": case((sort == "true", 1), (sort == "false", 0), else_=null()),
            "any": case((sort != "null", 1), else_=null()),
        }
        types: dict[str, TypeEngine[Any]] = {"float": Double(), "text": Text(), "flag": Boolean(), "any": Integer()}
        chosen = found[kind]
        if path:
            chosen = select(chosen).where(*conditions).scalar_subquery()
        chosen.type = types[kind]
        return chosen


class PostgresExpressions(Expressions):
    """PostgreSQL: lists as arrays, JSON by operators that look at types."""

    def one_of(self, expression: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
        kind: TypeEngine[Any] = Text()
        if not isinstance(values[0], str):
            kind = Double() if any(isinstance(value, float) for value in values) else BigInteger()
        return expression == any_of(bindparam(None, list(values), ARRAY(kind)))

    def by_code_point(self, text: ColumnElement[Any]) -> ColumnElement[Any]:
        return collate(text, "C")

    def json_value(self, document: ColumnElement[Any], path: Sequence[str | int], kind: str) -> ColumnElement[Any]:
        value: ColumnElement[Any] = cast(document, JSON())
        for step in path:
            value = value.op("->", return_type=JSON())(literal(step, Integer() if isinstance(step, int) else Text()))
        sort = func.json_typeof(value)
        plain = value.op("#>>", return_type=Text())(literal([], ARRAY(Text())))
        if kind == "any":
            return case((sort != "null", literal(1)), else_=null())
        if kind == "text":
            return case((sort == "string", plain), else_=null())
        if kind == "flag":
            return case((sort == "boolean", cast(plain, Boolean())), else_=null())
        number = cast(plain, Numeric())
        return case(
            (sort != "number", null()),
            # An int of Python has any size; a cast of more than a float holds would be an error.
            (number > cast(literal(LARGEST), Numeric()), literal(float("inf"), Double())),
            (number < cast(literal(-LARGEST), Numeric()), literal(float("-inf"), Double())),
            else_=cast(plain, Double()),
        )


@cache
def accumulation(table: Table, added: tuple[str, ...], columns: tuple[str, ...]) -> str:
    """What an INSERT does about rows that are there: add some columns, set the others where they are given."""
    key = [column.name for column in table.primary_key]
    changes = [
        f'"{name}" = {table.name}."{name}" + excluded."{name}"'
        if name in added
        else f'"{name}" = coalesce(excluded."{name}", {table.name}."{name}")'
        for name in columns
        if name not in key
    ]
    names = ", ".join(f'"{name}"' for name in key)
    return f" ON CONFLICT ({names}) DO UPDATE SET {', '.join(changes)}"
