"""What can be asked for: columns of episodes and of their history, conditions on them, and constants.

Conditions are data. They reach a database only through ``sql``, as bound parameters; their text,
``str(condition)``, is what ``parser.parse`` reads.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal, NoReturn

import numpy as np

from memstore.errors import InvalidValue
from memstore.values.foreign import number as number_in
from memstore.values.shown import shown
from memstore.values.times import check_limit

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
        return check_limit(where, value)
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


Source = Literal["episode", "metadata", "history"]

MAX_PATH = 16
TYPES = {"float": "number", "text": "text", "flag": "flag"}
"""What the types of places in extra are called."""


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A column; compare it to make a ``Condition``.

    Attributes
    ----------
    name : str
    kind : "int", "float", "text" or "flag"
    source : "episode", "metadata" or "history"
        Where it is kept: what never changes, the replay metadata, the replay history.
    nullable : bool
        Whether it may be missing.
    about : str
        What it holds, in one line.
    """

    name: str
    kind: Kind
    source: Source
    nullable: bool = False
    about: str = ""
    is_time: bool = False
    path: tuple[str | int, ...] = ()

    def __eq__(self, value: object) -> Condition:  # type: ignore[override]
        return Comparison(self, "==", None if value is None else self._constant(value))

    def __ne__(self, value: object) -> Condition:  # type: ignore[override]
        return Not(self.__eq__(value))

    def __lt__(self, value: Any) -> Condition:
        return Comparison(self, "<", self._ordered(value))

    def __le__(self, value: Any) -> Condition:
        return Comparison(self, "<=", self._ordered(value))

    def __gt__(self, value: Any) -> Condition:
        return Comparison(self, ">", self._ordered(value))

    def __ge__(self, value: Any) -> Condition:
        return Comparison(self, ">=", self._ordered(value))

    def in_(self, values: Iterable[Any]) -> Condition:
        """Whether the column is one of the values (none of them: nothing passes)."""
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise InvalidValue(f"{self}.in_() takes several values, got {shown(values)}")
        return In(self, tuple(dict.fromkeys(self._constant(value) for value in values)))

    def between(self, low: Any, high: Any) -> Condition:
        """Whether the column is at least ``low`` and at most ``high``."""
        return self.__ge__(low) & self.__le__(high)

    def is_missing(self) -> Condition:
        """Whether there is no value."""
        return Comparison(self, "==", None)

    def is_known(self) -> Condition:
        """Whether there is a value."""
        return ~self.is_missing()

    @property
    def missing(self) -> str:
        """How the text of a condition says that there is no value."""
        return "missing"

    @property
    def descending(self) -> Descending:
        """For ``order_by``: largest first."""
        return Descending(self)

    def __hash__(self) -> int:
        return hash(str(self))

    def __bool__(self) -> NoReturn:
        raise InvalidValue(f"the column {self} has no truth value; compare it, for example {self} > 1")

    def __str__(self) -> str:
        return self.name + "".join(f"[{json.dumps(step, ensure_ascii=False)}]" for step in self.path)

    def __repr__(self) -> str:
        return f"<column {self}>"

    def _ordered(self, value: object) -> Constant:
        constant = self._constant(value)
        if isinstance(constant, bool):
            raise InvalidValue(f"{self} is true or false and has no order; compare with ==")
        return constant

    def _constant(self, value: object) -> Constant:
        return constant_of(str(self), self.kind, value, is_time=self.is_time)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ExtraColumn(Column):
    """A place in the ``extra`` JSON of an episode: ``col.extra["policy"]["version"]``.

    A comparison looks only at values of the constant's type (number, text, true or false): others are missing to it.
    For an order, a group or an aggregate say which type is meant: ``.number``, ``.text`` or ``.flag``.

    Whole numbers from -2**63 to 2**63 - 1 are compared, grouped and sorted exactly, also among fractions:
    1 is 1.0, and 2**53 + 1 is not 2.0**53. A stored number beyond counts as the nearest float64, and a whole constant
    beyond is refused: keep unsigned 64-bit identifiers as texts. In answers a number is a float, or an int where no
    float is equal to it; ``arrays()`` and data frames round that to float64. Means and sums are of float64.
    """

    typed: bool = False

    def __getitem__(self, step: str | int) -> ExtraColumn:
        if isinstance(step, bool) or not (isinstance(step, str) or hasattr(step, "__index__")):
            raise InvalidValue(f"extra is looked into by str (of an object) or int (of a list), got {shown(step)}")
        checked = text_constant("a key of extra", step) if isinstance(step, str) else int(step.__index__())
        if isinstance(checked, int) and not 0 <= checked < 2**31:
            raise InvalidValue(f"an index into a list in extra must be between 0 and 2**31 - 1, got {checked}")
        if len(self.path) >= MAX_PATH:
            raise InvalidValue(f"a path into extra has at most {MAX_PATH} steps")
        return replace(self, path=(*self.path, checked), typed=False)

    @property
    def missing(self) -> str:
        """Nothing at all, or no value of the type that is meant."""
        return f"not {TYPES[self.kind]}" if self.typed else "missing"

    def _as(self, kind: Kind) -> ExtraColumn:
        return replace(self, kind=kind, typed=True)

    @property
    def number(self) -> ExtraColumn:
        """The value where it is a number."""
        return self._as("float")

    @property
    def text(self) -> ExtraColumn:
        """The value where it is a text."""
        return self._as("text")

    @property
    def flag(self) -> ExtraColumn:
        """The value where it is true or false."""
        return self._as("flag")

    def __eq__(self, value: object) -> Condition:  # type: ignore[override]
        return Column.__eq__(self if value is None else self._for(value), value)

    def __lt__(self, value: Any) -> Condition:
        return Column.__lt__(self._for(value), value)

    def __le__(self, value: Any) -> Condition:
        return Column.__le__(self._for(value), value)

    def __gt__(self, value: Any) -> Condition:
        return Column.__gt__(self._for(value), value)

    def __ge__(self, value: Any) -> Condition:
        return Column.__ge__(self._for(value), value)

    def in_(self, values: Iterable[Any]) -> Condition:
        """Whether the value is one of these, all of one type."""
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise InvalidValue(f"{self}.in_() takes several values, got {shown(values)}")
        listed = list(values)
        return Column.in_(self._for(listed[0]) if listed else self.number, listed)

    def _for(self, value: object) -> ExtraColumn:
        if self.typed:
            return self
        if isinstance(value, str):
            return self.text
        return self.flag if isinstance(value, (bool, np.bool_)) else self.number

    __hash__ = Column.__hash__


@dataclass(frozen=True, slots=True)
class TagsColumn:
    """The tags of an episode: ``col.tags.has("hard")``."""

    def has(self, tag: str) -> Condition:
        """Whether the episode carries the tag."""
        return HasTag(text_constant("tag", tag))

    def __str__(self) -> str:
        return "tags"


@dataclass(frozen=True, slots=True)
class Descending:
    """A column by which to order, largest first."""

    column: Column


@dataclass(frozen=True, slots=True)
class Columns:
    """Every column, as attributes: ``memstore.col.loss``."""

    id: Column = field(default=Column("id", "int", "episode", about="the episode's id; ids grow in insertion order"))
    domain: Column = field(default=Column("domain", "text", "episode", about="what the episode belongs to"))
    timestamp: Column = field(
        default=Column("timestamp", "float", "episode", about="seconds, as given to add", is_time=True)
    )
    level: Column = field(default=Column("level", "int", "episode", True, "as given to add"))
    key: Column = field(default=Column("key", "text", "episode", True, "idempotency key"))
    extra: ExtraColumn = field(default=ExtraColumn("extra", "text", "episode", True, "JSON, as given to add"))
    tags: TagsColumn = field(default=TagsColumn())
    age: Column = field(default=Column("age", "int", "episode", about="episodes inserted since, 1 for the newest"))
    loss: Column = field(default=Column("loss", "float", "metadata", True, "last measured loss"))
    lowest_loss: Column = field(default=Column("lowest_loss", "float", "metadata", True, "smallest loss ever measured"))
    rise: Column = field(default=Column("rise", "float", "metadata", True, "loss - lowest_loss: what was forgotten"))
    replay_count: Column = field(default=Column("replay_count", "int", "metadata", about="number of loss updates"))
    last_replayed_at: Column = field(
        default=Column("last_replayed_at", "float", "metadata", True, "seconds, of the last loss update", True)
    )
    event: Column = field(default=Column("event", "int", "history", about="number of the event; grows with time"))
    what: Column = field(
        default=Column(
            "what", "text", "history", about="replayed, evicted, deleted, consolidated, exhausted or resized"
        )
    )
    reason: Column = field(default=Column("reason", "text", "history", True, "by which rule an episode left"))
    at: Column = field(default=Column("at", "float", "history", about="seconds, of the event", is_time=True))
    step: Column = field(default=Column("step", "int", "history", True, "the trainer's step, as given to update"))
    consumer: Column = field(default=Column("consumer", "text", "history", True, "who did it"))
    strategy: Column = field(default=Column("strategy", "text", "history", True, "what drew the batch"))
    loss_before: Column = field(default=Column("loss_before", "float", "history", True, "loss until the event"))
    loss_after: Column = field(default=Column("loss_after", "float", "history", True, "loss from the event on"))
    probability: Column = field(
        default=Column("probability", "float", "history", True, "of the episode's draw, as in the batch")
    )
    weight: Column = field(default=Column("weight", "float", "history", True, "importance weight, as in the batch"))

    def __getitem__(self, name: str) -> Column | TagsColumn:
        if name not in NAMES:
            raise InvalidValue(no_column(name))
        found: Column | TagsColumn = getattr(self, name)
        return found

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(no_column(name))


NAMES: tuple[str, ...] = tuple(Columns.__dataclass_fields__)


def no_column(name: object) -> str:
    """Say that no column has this name, which one may be meant, and which there are."""
    near = difflib.get_close_matches(name[:60], NAMES, 1) if isinstance(name, str) else []
    meant = f"did you mean {near[0]}? " if near else ""
    return f"there is no column {name!r:.60}; {meant}the columns are {', '.join(NAMES)}"


col = Columns()
"""The columns of a query: ``(col.loss > 2) & col.domain.in_(["math"])``."""

EPISODE_COLUMNS: tuple[Column, ...] = tuple(
    column
    for column in (getattr(col, name) for name in NAMES)
    if isinstance(column, Column) and column.source != "history"
)
HISTORY_COLUMNS: tuple[Column, ...] = tuple(
    column
    for column in (getattr(col, name) for name in NAMES)
    if isinstance(column, Column) and column.source == "history"
)
