"""Aggregates: single numbers computed from many rows, and their SQL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import BigInteger, ColumnElement, Double, case, cast, func, literal

from memstore.errors import InvalidValue
from memstore.queries.columns import NAMES, Column, ExtraColumn, no_column
from memstore.queries.sql import Scope
from memstore.values.shown import shown

LARGEST, SMALLEST = 1e290, 1e-300
"""Values beyond +-``LARGEST`` are cut to it, so that no sum overflows. Sums below ``SMALLEST`` have the mean 0."""


@dataclass(frozen=True, slots=True)
class Aggregate:
    """One number computed from many rows. ``count``, ``mean``, ``minimum``, ``maximum`` and ``total`` make it."""

    function: Literal["count", "avg", "min", "max", "sum"]
    column: Column | None = None


def count(column: Column | None = None) -> Aggregate:
    """Count the rows, or only the rows that have a value in the column."""
    return Aggregate("count", None if column is None else check_column(column))


def mean(column: Column) -> Aggregate:
    """Compute the mean of the known values; None if there are none.

    A value beyond +-1e290 counts as +-1e290. If the sum of the values is within 1e-300 of 0, the mean is 0.

    Raises
    ------
    InvalidValue
        If the column does not hold numbers.
    """
    return Aggregate("avg", _check_number("mean", column))


def minimum(column: Column) -> Aggregate:
    """Find the smallest of the known values; None if there are none. ``InvalidValue`` if they are not numbers."""
    return Aggregate("min", _check_number("minimum", column))


def maximum(column: Column) -> Aggregate:
    """Find the largest of the known values; None if there are none. ``InvalidValue`` if they are not numbers."""
    return Aggregate("max", _check_number("maximum", column))


def total(column: Column) -> Aggregate:
    """Add up the known values; None if there are none.

    In a sum of floats, a value beyond +-1e290 counts as +-1e290.

    Raises
    ------
    InvalidValue
        If the column does not hold numbers, or holds ids or numbers of events: their sum means nothing.
    """
    if isinstance(column, Column) and column.name in ("id", "event"):  # besides, the sum may not fit in 64 bits
        raise InvalidValue(f"the sum of col.{column.name} means nothing; count() counts rows")
    return Aggregate("sum", _check_number("total", column))


def _check_number(function: str, given: Any) -> Column:
    column = check_typed(check_column(given))
    if column.kind not in ("int", "float"):
        raise InvalidValue(f"{function}() needs a column of numbers; {column} holds values of the kind {column.kind}")
    return column


def check_column(column: Any) -> Column:
    """Return the column, or raise ``InvalidValue`` if it is not one. For a name, the message has the column meant."""
    if isinstance(column, str):
        advice = f"write col.{column}" if column in NAMES else no_column(column)
        raise InvalidValue(f"expected a column such as col.loss, got the text {column!r:.60}: {advice}")
    if not isinstance(column, Column):
        raise InvalidValue(f"expected a column such as col.loss, got {shown(column)}")
    return column


def check_typed(column: Column) -> Column:
    """Return the column, or raise ``InvalidValue`` if it is a place in extra without a type."""
    if isinstance(column, ExtraColumn) and not column.typed:
        raise InvalidValue(f"say which type of {column} you mean: .number, .text or .flag")
    return column


def aggregate_kind(aggregate: Aggregate) -> Any:
    """Return the kind of the number: that of the column, or "int" for a count and "float" for a mean."""
    if aggregate.column is None or aggregate.function == "count":
        return "int"
    return "float" if aggregate.function == "avg" else aggregate.column.kind


def row_value(scope: Scope, aggregate: Aggregate) -> ColumnElement[Any]:
    """Write the SQL for the value that each row adds to the aggregate."""
    if aggregate.column is None:
        return literal(1)
    return scope.real(aggregate.column) if aggregate.function in ("avg", "sum") else scope.expression(aggregate.column)


def aggregate_sql(aggregate: Aggregate, value: ColumnElement[Any]) -> ColumnElement[Any]:
    """Write the SQL for the aggregate of these values."""
    if aggregate.column is None or aggregate.function in ("count", "min", "max"):
        number: ColumnElement[Any] = getattr(func, aggregate.function)(value)
        return number
    if aggregate.function == "sum" and aggregate.column.kind == "int":
        return cast(func.sum(value), BigInteger())  # in PostgreSQL the sum is a numeric
    # avg() is not used, because PostgreSQL's avg() also sums squares, and an overflow there is an error.
    bounded = func.sum(case((value > LARGEST, LARGEST), (value < -LARGEST, -LARGEST), else_=cast(value, Double())))
    if aggregate.function == "sum":
        return bounded
    # In PostgreSQL a quotient that is too small for a float is an error.
    return case((func.abs(bounded) < SMALLEST, 0.0), else_=bounded / func.nullif(func.count(value), 0))
