"""Conditions on rows, and the constants they compare with.

Conditions are data. They reach a database only through ``predicates``, as bound parameters; their text,
``str(condition)``, is what ``phrases.parse`` reads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal, NoReturn

import numpy as np

from memstore.errors import InvalidValue
from memstore.values.foreign import number as number_in
from memstore.values.shown import shown
from memstore.values.times import check_time

if TYPE_CHECKING:
    from memstore.queries.columns import Column

Kind = Literal["int", "float", "text", "flag"]
Constant = bool | int | float | str | None
Operator = Literal["==", "<", "<=", ">", ">="]

MAX_INT = 2**62
"""No column of whole numbers holds anything beyond."""

LEAST, GREATEST = -(2**63), 2**63 - 1
"""Whole numbers between them are compared exactly; databases have no exact type for larger ones."""

WIDTH = 8
"""Tests that SQL joins in one chain; more of them make a tree of chains, a level deeper for each factor of 8."""

MAX_DEPTH = 100
"""Levels of a condition: SQLite takes expressions of 1,000 levels, and each of these is at most ``WIDTH`` there."""

MAX_SIZE = 30_000
"""Comparisons in a condition: SQLite takes 32,766 parameters in a statement, PostgreSQL 65,535 ..."""

LOOK_UP = 20
"""... and a comparison of a place in extra counts as so many: each is a look-up of its own, 3 ms to put into SQL."""


class Condition:
    """A test that each row passes or not; combine with ``&``, ``|`` and ``~``.

    A missing value passes no comparison, and ``~`` is the exact complement: a row passes one of ``c`` and ``~c``.

    Attributes
    ----------
    depth : int
        Levels of nesting, 1 for a single comparison.
    size : int
        Comparisons that it makes; one of a place in extra counts as 20.
    """

    __slots__ = ("_text", "depth", "size")

    depth: int
    size: int
    _text: str

    def __post_init__(self) -> None:
        self._measure(1, 1)

    def _measure(self, depth: int, size: int) -> None:
        if depth > MAX_DEPTH:
            raise InvalidValue(f"conditions are nested more than {MAX_DEPTH} deep")
        if size > MAX_SIZE:
            raise InvalidValue(
                f"a condition makes at most {MAX_SIZE:,} comparisons, or {MAX_SIZE // LOOK_UP:,} of places in extra; "
                "col.x.in_([...]) with any number of values is one"
            )
        for name, value in (("depth", depth), ("size", size)):
            object.__setattr__(self, name, value)  # the classes are frozen dataclasses

    def __reduce__(self) -> tuple[type[Condition], tuple[object, ...]]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

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

    def __str__(self) -> str:
        try:
            return self._text
        except AttributeError:  # written once: draws look it up every time, and it may be long
            object.__setattr__(self, "_text", self._written())
        return self._text

    def __repr__(self) -> str:
        return f"<{self}>"

    def _written(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison(Condition):
    """``column operator value``; the value None with ``==`` means that the column has none."""

    column: Column
    operator: Operator
    value: Constant

    def __post_init__(self) -> None:
        self._measure(1, LOOK_UP if self.column.path else 1)

    def _written(self) -> str:
        if self.value is None:
            return f"{self.column} is {self.column.missing}"
        return f"{self.column} {'=' if self.operator == '==' else self.operator} {_literal(self.value)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class In(Condition):
    """Whether the column is one of the values."""

    column: Column
    values: tuple[Constant, ...]

    def __post_init__(self) -> None:
        self._measure(1, LOOK_UP if self.column.path else 1)

    def _written(self) -> str:
        return f"{self.column} in ({', '.join(map(_literal, self.values))})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HasTag(Condition):
    """Whether the episode carries the tag."""

    tag: str

    def _written(self) -> str:
        return f"tags has {_literal(self.tag)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AllOf(Condition):
    """Whether every one of the conditions holds."""

    conditions: tuple[Condition, ...]

    def __post_init__(self) -> None:
        self._measure(*_joint(self.conditions))

    def _written(self) -> str:
        return " and ".join(map(_grouped, self.conditions))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class AnyOf(Condition):
    """Whether one of the conditions holds."""

    conditions: tuple[Condition, ...]

    def __post_init__(self) -> None:
        self._measure(*_joint(self.conditions))

    def _written(self) -> str:
        return " or ".join(map(_grouped, self.conditions))


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Not(Condition):
    """Whether the condition does not hold."""

    condition: Condition

    def __post_init__(self) -> None:
        self._measure(1 + self.condition.depth, self.condition.size)

    def _written(self) -> str:
        return f"not {_grouped(self.condition)}"


def _grouped(condition: Condition) -> str:
    return f"({condition})" if isinstance(condition, (AllOf, AnyOf, Not)) else str(condition)


def _joined(kind: type[AllOf] | type[AnyOf], one: Condition, other: object) -> Condition:
    if not isinstance(other, Condition):
        raise InvalidValue(f"conditions combine with conditions, got {shown(other)}; are there brackets around each?")
    parts = [part.conditions if isinstance(part, kind) else (part,) for part in (one, other)]
    joined = object.__new__(kind)  # measured by its two halves, so that a chain of n joins takes no n * n steps
    object.__setattr__(joined, "conditions", (*parts[0], *parts[1]))
    inner = (part.depth - (_levels(len(part.conditions)) if isinstance(part, kind) else 0) for part in (one, other))
    joined._measure(_levels(len(joined.conditions)) + max(inner), one.size + other.size)
    return joined


def _joint(conditions: tuple[Condition, ...]) -> tuple[int, int]:
    """Depth and size of these conditions together."""
    deepest = max((condition.depth for condition in conditions), default=0)
    return _levels(len(conditions)) + deepest, sum(condition.size for condition in conditions)


def _levels(count: int) -> int:
    levels, joined = 1, WIDTH
    while joined < count:
        levels, joined = levels + 1, joined * WIDTH
    return levels


EVERY = AllOf(())
"""What every row passes."""


def conditions_within(condition: Condition) -> Iterator[Comparison | In | HasTag]:
    """The single tests that a condition is made of, in order."""
    pending = [condition]
    while pending:
        part = pending.pop()
        if isinstance(part, Not):
            pending.append(part.condition)
        elif isinstance(part, (AllOf, AnyOf)):
            pending += reversed(part.conditions)
        elif isinstance(part, (Comparison, In, HasTag)):
            yield part


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
    if isinstance(number, int) and not LEAST <= number <= GREATEST:
        raise InvalidValue(
            f"{where} must be compared with a whole number between -2**63 and 2**63 - 1; larger ones are kept and "
            "compared exactly as texts"
        )
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
