"""The parts of a query that each database writes in its own way."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    Double,
    Integer,
    Numeric,
    Text,
    and_,
    bindparam,
    case,
    cast,
    collate,
    false,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
)
from sqlalchemy import any_ as any_of
from sqlalchemy.dialects.postgresql import ARRAY, JSON
from sqlalchemy.types import NullType, TypeEngine

LARGEST = 1.7976931348623157e308
"""This is the largest float64."""

EXACT = 2**63
"""Whole numbers from -EXACT to EXACT - 1 are exact. Others count as the nearest float64, as SQLite reads them."""


class Expressions(ABC):
    """SQL expressions in the words of one database. Every value becomes a bound parameter."""

    @abstractmethod
    def one_of(self, expression: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
        """Test that the expression is one of the values. They may be many, and are all of one type."""

    def by_code_point(self, text: ColumnElement[Any]) -> ColumnElement[Any]:
        """Return the text in a form that is compared and sorted by code points."""
        return text

    @abstractmethod
    def json_value(self, document: ColumnElement[Any], path: Sequence[str | int], kind: str) -> ColumnElement[Any]:
        """Read the value at a path of a JSON text.

        Parameters
        ----------
        document : SQL expression
            The JSON text.
        path : sequence of str and int
            Keys of objects and indexes into lists, from the outside in.
        kind : {"float", "real", "text", "flag", "any"}
            The expected type. If the value is of another type, or missing, the result is NULL.
            "float" is any number; whole numbers of 64 bits stay exact. "real" is any number as float64.
            "any" gives something that is not NULL if any value but null stands at the path.
        """

    def number(self, value: int | float) -> ColumnElement[Any]:
        """Return a constant that can be compared with numbers in JSON."""
        return literal(value)

    def one_number_of(self, expression: ColumnElement[Any], values: Sequence[int | float]) -> ColumnElement[bool]:
        """Test that a number in JSON is one of these numbers."""
        return self.one_of(expression, values)


class SQLiteExpressions(Expressions):
    """SQLite passes lists as JSON texts, and reads JSON by ``json_each``. It sorts texts by their bytes of UTF-8."""

    def one_of(self, expression: ColumnElement[Any], values: Sequence[Any]) -> ColumnElement[bool]:
        listed = func.json_each(json.dumps(list(values))).table_valued("value")
        return expression.in_(select(listed.c.value))

    def json_value(self, document: ColumnElement[Any], path: Sequence[str | int], kind: str) -> ColumnElement[Any]:
        # The path is not given to json_extract: its paths cannot name a key with a quote in it, and they compare
        # escapes as they are written.
        value: ColumnElement[Any] = func.json_extract(document, "$")
        sort: ColumnElement[Any] = func.json_type(document)
        conditions = []
        for step in path:
            # Only objects and lists are opened: json_each makes a row of a scalar, and raises an error for a text.
            inside = case((sort.in_(("object", "array")), value))
            level = func.json_each(inside).table_valued("key", "value", "type", joins_implicitly=True)
            value, sort = level.c.value, level.c.type
            conditions.append(level.c.key == literal(step, Integer() if isinstance(step, int) else Text()))
        found: dict[str, ColumnElement[Any]] = {
            # No cast is needed: SQLite compares integers exactly with floats.
            "float": case((sort.in_(("integer", "real")), value), else_=null()),
            "real": case((sort.in_(("integer", "real")), cast(value, Double())), else_=null()),
            "text": case((sort == "text", cast(value, Text())), else_=null()),
            "flag": case((sort == "true", 1), (sort == "false", 0), else_=null()),
            "any": case((sort != "null", 1), else_=null()),
        }
        chosen = found[kind]
        if path:
            chosen = select(chosen).where(*conditions).scalar_subquery()
        chosen.type = _SQLITE_TYPES[kind]
        return chosen


_SQLITE_TYPES: dict[str, TypeEngine[Any]] = {
    "float": NullType(),  # with Double, a whole number would be sent as a float
    "real": Double(),
    "text": Text(),
    "flag": Boolean(),
    "any": Integer(),
}


class PostgresExpressions(Expressions):
    """PostgreSQL passes lists as arrays, and reads JSON by operators that know its types."""

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
        # An int of Python has any size. To cast one that is too large for a float would be an error.
        above, below = number > _LARGEST, number < -_LARGEST
        if kind == "real":
            ends = ((above, _INFINITY), (below, -_INFINITY))
            return case((sort != "number", null()), *ends, else_=cast(plain, Double()))
        matches = plain.op("~", return_type=Boolean())
        return case(
            (sort != "number", null()),
            (matches(_SHORT), number),  # first, since most numbers are: each of the other cases parses the text again
            (matches(_WHOLE) & number.between(-_EXACT, _EXACT - 1), number),
            (above, _BEYOND),
            (below, -_BEYOND),
            else_=_exact(cast(plain, Double())),
        )

    def number(self, value: int | float) -> ColumnElement[Any]:
        if _is_huge(value):
            return _exact(literal(value, Double()))
        return literal(_decimal(value), Numeric())

    def one_number_of(self, expression: ColumnElement[Any], values: Sequence[int | float]) -> ColumnElement[bool]:
        huge = [value for value in values if _is_huge(value)]
        usual = [_decimal(value) for value in values if not _is_huge(value)]
        found: list[ColumnElement[bool]] = [false()]
        if usual:
            found.append(expression == any_of(bindparam(None, usual, ARRAY(Numeric()))))
        if huge:
            listed = func.unnest(bindparam(None, huge, ARRAY(Double()))).column_valued("huge")
            found.append(expression.in_(select(_exact(listed))))
        return or_(*found)


_LARGEST, _BEYOND = (literal_column(text, Numeric()) for text in (f"{LARGEST!r}::numeric", "1e400::numeric"))
_INFINITY: ColumnElement[float] = literal_column("'Infinity'::float8", Double())
_EXACT = literal_column(f"{EXACT}::numeric", Numeric())
_SHORT, _WHOLE = (literal_column(text, Text()) for text in ("'^-?[0-9]{1,18}$'", "'^-?[0-9]+$'"))


def _is_huge(value: int | float) -> bool:
    return isinstance(value, float) and not -EXACT <= value < EXACT


def _decimal(value: int | float) -> Decimal:
    """Return the number as ``_exact`` gives it. A fraction is below 2**53, and becomes its shortest exact text."""
    return Decimal(int(value)) if value == int(value) else Decimal(repr(value))


def _exact(real: ColumnElement[Any]) -> ColumnElement[Any]:
    """Cast a float8 to a numeric that sorts correctly among whole numbers. PostgreSQL's cast rounds to 15 digits."""
    end: ColumnElement[float] = literal_column("(2::float8 ^ 63)", Double())
    whole = and_(func.abs(real) >= literal_column("2::float8 ^ 53"), real >= -end, real < end)
    return case((whole, cast(cast(real, BigInteger()), Numeric())), else_=cast(cast(real, Text()), Numeric()))
