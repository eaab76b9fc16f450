"""Numbers of many rows: what ``aggregate`` takes, and its SQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import BigInteger, ColumnElement, Double, case, cast, func, literal

from memstore.errors import InvalidValue
from memstore.queries import NAMES, Column, ExtraColumn, no_column
from memstore.queries.sql import Scope

LARGEST, SMALLEST = 1e290, 1e-300
"""As many of the former as a database can hold add up to a float, and a mean of the latter is not 0."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One number of many rows; made by ``count``, ``mean``, ``minimum``, ``maximum`` and ``total``."""

    function: Literal["count", "avg", "min", "max", "sum"]
    column: Column | None = None


def count(column: Column | None = None) -> Aggregate:
    """Number of rows, or of those where the column is known."""
    return Aggregate("count", None if column is None else column_given(column))


def mean(column: Column) -> Aggregate:
    """Mean of the known values, missing where there is none.

    What is beyond 1e290 counts as that, and values whose sum is within 1e-300 of 0 have the mean 0.
    """
    return Aggregate("avg", _number("mean", column))


def minimum(column: Column) -> Aggregate:
    """Smallest of the known values."""
    return Aggregate("min", _number("minimum", column))


def maximum(column: Column) -> Aggregate:
    """Largest of the known values."""
    return Aggregate("max", _number("maximum", column))


def total(column: Column) -> Aggregate:
    """Sum of the known values, missing where there is none; of fractions, what is beyond 1e290 counts as that."""
    if isinstance(column, Column) and column.name in ("id", "event"):  # nor need it fit 64 bits
        raise InvalidValue(f"the sum of col.{column.name} means nothing; count() counts rows")
    return Aggregate("sum", _number("total", column))


def _number(what: str, given: Any) -> Column:
    column = column_given(given)
    if typed(column).kind not in ("int", "float"):
        raise InvalidValue(f"{what}() needs numbers, and {column} is a {column.kind}")
    return column


def column_given(column: Any) -> Column:
    """The column; what is none is refused, a text with the name that may be meant."""
    if isinstance(column, str):
        advice = f"write col.{column}" if column in NAMES else no_column(column)
        raise InvalidValue(f"expected a column such as col.loss, got the text {column!r:.60}: {advice}")
    if not isinstance(column, Column):
        raise InvalidValue(f"expected a column such as col.loss, got {column!r:.80}")
    return column


def typed(column: Column) -> Column:
    """The column, refused where the type of its values is open."""
    if isinstance(column, ExtraColumn) and not column.typed:
        raise InvalidValue(f"say which type of {column} is meant: .number, .text or .flag")
    return column


def aggregate_shape(aggregate: Aggregate) -> tuple[Any, bool]:
    """Kind of the numbers, and whether they may be missing."""
    if aggregate.function == "count":
        return "int", False
    assert aggregate.column is not None
    return ("float" if aggregate.function == "avg" else aggregate.column.kind), True


def summand(scope: Scope, aggregate: Aggregate) -> ColumnElement[Any]:
    """What of each row the aggregate is of."""
    if aggregate.column is None:
        return literal(1)
    return scope.real(aggregate.column) if aggregate.function in ("avg", "sum") else scope.expression(aggregate.column)


def aggregated(aggregate: Aggregate, value: ColumnElement[Any]) -> ColumnElement[Any]:
    """The aggregate of these values as SQL."""
    if aggregate.column is None or aggregate.function in ("count", "min", "max"):
        number: ColumnElement[Any] = getattr(func, aggregate.function)(value)
        return number
    if aggregate.function == "sum" and aggregate.column.kind == "int":
        return cast(func.sum(value), BigInteger())  # PostgreSQL makes a numeric of it
    # Not avg(): PostgreSQL's sums squares as well, and an overflow is an error there.
    bounded = func.sum(case((value > LARGEST, LARGEST), (value < -LARGEST, -LARGEST), else_=cast(value, Double())))
    if aggregate.function == "sum":
        return bounded
    # A quotient too small for a float is an error in PostgreSQL.
    return case((func.abs(bounded) < SMALLEST, 0.0), else_=bounded / func.nullif(func.count(value), 0))
