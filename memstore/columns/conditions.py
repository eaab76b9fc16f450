"""Conditions on rows, and the constants they compare with.

Conditions are data. They reach a database only through ``predicates``, as bound parameters; their text,
``str(condition)``, is what ``phrases.parse`` reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np

from memstore.errors import InvalidValue
from memstore.foreign import number as number_in
from memstore.shown import shown
from memstore.times import check_time

if TYPE_CHECKING:
    from memstore.columns.columns import Column

Kind = Literal["int", "float", "text", "flag"]
Constant = bool | int | float | str | None
Operator = Literal["==", "<", "<=", ">", ">="]

MAX_INT = 2**62
MAX_DEPTH = 100
"""Levels of nested conditions; a database refuses expressions nested much deeper."""


class Condition:
    """A test that each row passes or not; combine with ``&``, ``|`` and ``~``.

    A missing value passes no comparison, and ``~`` is the exact complement: a row passes one of ``c`` and ``~c``.
    """

    __slots__ = ()

    def __and__(self, other: Condition) -> Condition:
        return _joined(AllOf, self, other)

    def __or__(self, other: Condition) -> Condition:
        return _joined(AnyOf, self, other)

    def __invert__(self) -> Condition:
        return self.condition if isinstance(self, Not) else Not(self)

    def __bool__(self) -> NoReturn:
        raise InvalidValue(
            "a condition has no truth value; combine with & | ~ in place of and, or, not, and write "
            "(col.loss > 1) & (col.loss < 2) in place of 1 < col.loss < 2"
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Condition) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __repr__(self) -> str:
        return f"<{self}>"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison(Condition):
    """``column operator value``; the value None with ``==`` means that the column has none."""

    column: Column
    operator: Operator
    value: Constant

    def __str__(self) -> str:
        if self.value is None:
            return f"{self.column} is {self.column.missing}"
        return f"{self.column} {'=' if self.operator == '==' else self.operator} {_literal(self.value)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class In(Condition):
    """Whether the column is one of the values."""

    column: Column
    values: tuple[Constant, ...]

    def __str__(self) -> str:
        return f"{self.column} in ({', '.join(map(_literal, self.values))})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HasTag(Condition):
    """Whether the episode carries the tag."""

    tag: str

    def __str__(self) -> str:
        return f"tags has {_literal(self.tag)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AllOf(Condition):
    """Whether every one of the conditions holds."""

    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        return " and ".join(map(_grouped, self.conditions))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AnyOf(Condition):
    """Whether one of the conditions holds."""

    conditions: tuple[Condition, ...]

    def __str__(self) -> str:
        return " or ".join(map(_grouped, self.conditions))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Not(Condition):
    """Whether the condition does not hold."""

    condition: Condition

    def __str__(self) -> str:
        return f"not {_grouped(self.condition)}"


def _grouped(condition: Condition) -> str:
    return f"({condition})" if isinstance(condition, (AllOf, AnyOf, Not)) else str(condition)


def _joined(kind: type[AllOf] | type[AnyOf], one: Condition, other: object) -> Condition:
    if not isinstance(other, Condition):
        raise InvalidValue(f"conditions combine with conditions, got {shown(other)}; are there brackets around each?")
    parts = (part.conditions if isinstance(part, kind) else (part,) for part in (one, other))
    joined = kind(tuple(condition for part in parts for condition in part))
    if depth(joined) > MAX_DEPTH:
        raise InvalidValue(f"conditions are nested more than {MAX_DEPTH} deep")
    return joined


def depth(condition: Condition) -> int:
    """Levels of nesting, 1 for a single comparison."""
    if isinstance(condition, Not):
        return 1 + depth(condition.condition)
    if isinstance(condition, (AllOf, AnyOf)):
        return 1 + max(map(depth, condition.conditions))
    return 1


def conditions_within(condition: Condition) -> Iterable[Comparison | In | HasTag]:
    """The single tests that a condition is made of, in order."""
    if isinstance(condition, Not):
        yield from conditions_within(condition.condition)
    elif isinstance(condition, (AllOf, AnyOf)):
        for part in condition.conditions:
            yield from conditions_within(part)
    elif isinstance(condition, (Comparison, In, HasTag)):
        yield condition


def _literal(value: Constant) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return (
        {None: "missing", True: "true", False: "false"}[value]
        if value is None or value is True or value is False
        else repr(value)
    )


def constant_of(where: str, kind: Kind, value: object, *, is_time: bool = False) -> Constant:
    """The value as a plain Python constant of this kind.

    Raises
    ------
    InvalidValue
        When it is of another kind, not finite, or no text that a database stores.
    """
    if is_time:
        return check_time(where, value)
    if kind == "text":
        return text_constant(where, value)
    plain = value.item() if isinstance(value, (np.generic, np.ndarray)) and value.shape == () else value
    if kind == "flag":
        if isinstance(plain, bool):
            return plain
        raise InvalidValue(f"{where} is true or false, got {shown(value)}")
    number = number_in(plain)
    if number is None:
        raise InvalidValue(f"{where} is a number, got {shown(value)}")
    if isinstance(number, float) and not math.isfinite(number):
        raise InvalidValue(f"{where} must be compared with a finite number, got {number!r}")
    if isinstance(number, int) and not -MAX_INT <= number <= MAX_INT:
        raise InvalidValue(f"{where} must be compared with a number between -2**62 and 2**62")
    return number


def text_constant(where: str, value: object) -> str:
    """The value as a text that both databases take."""
    if not isinstance(value, str):
        raise InvalidValue(f"{where} is a text, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValue(f"{where}: {shown(value)} holds a lone surrogate, which is no text") from None
    if "\0" in value:
        raise InvalidValue(f"{where}: a text holds no NUL character, got {shown(value)}")
    return str(value)
