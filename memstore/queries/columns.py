"""Columns of episodes and of the history, conditions on them, and the constants in conditions.

A condition is data. It reaches a database only through ``sql``, with its constants as bound parameters. Its text,
``str(condition)``, can be read again by ``parser.parse``.
"""

from __future__ import annotations

import difflib
import json
import math
import operator
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any, ClassVar, Literal, NoReturn

import numpy as np

from memstore.errors import InvalidValue
from memstore.values.foreign import number as number_in
from memstore.values.shown import shown
from memstore.values.times import check_limit

Kind = Literal["int", "float", "text", "flag"]
Constant = bool | int | float | str | None
Operator = Literal["==", "<", "<=", ">", ">="]
Over = Literal["episodes", "history"]
Source = Literal["episode", "metadata", "history"]

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "==": operator.eq,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
"""Each operator has this function, for values, arrays, columns, and expressions of SQL."""

MAX_INT = 2**62
"""Whole numbers in columns have at most this absolute value."""

LEAST, GREATEST = -(2**63), 2**63 - 1
"""Whole numbers between these two are compared exactly. Databases have no exact type for others."""

WIDTH = 8
"""SQL joins this many tests in one chain. More tests become a tree of chains, one level deeper for each factor of 8."""

MAX_DEPTH = 100
"""A condition has at most this many levels. SQLite takes 1,000, and one level here is at most ``WIDTH`` there."""

MAX_SIZE = 30_000
"""A condition has at most this many comparisons. SQLite takes 32,766 parameters in a statement, PostgreSQL 65,535."""

LOOK_UP = 20
"""A comparison of a place in extra counts as this many comparisons. It takes 3 ms to write one in SQL."""

MAX_PATH = 16
"""A path into extra has at most this many steps."""

TYPES = {"float": "number", "text": "text", "flag": "flag"}
"""Places in extra have these kinds. The text of a condition has these words for them."""


class Condition:
    """A test that a row passes or fails. Combine conditions with ``&``, ``|`` and ``~``.

    A missing value passes no comparison. ``~`` is the exact complement: each row passes either ``c`` or ``~c``.

    Attributes
    ----------
    depth : int
        Levels of nesting. A single comparison has 1.
    size : int
        Number of comparisons. A comparison of a place in extra counts as 20.

    Raises
    ------
    InvalidValue
        When a condition is made that has more than 100 levels or 30,000 comparisons.
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
                f"a condition has at most {MAX_SIZE:,} comparisons, or {MAX_SIZE // LOOK_UP:,} of places in extra; "
                "use col.x.in_([...]), which counts as one with any number of values"
            )
        for name, value in (("depth", depth), ("size", size)):
            object.__setattr__(self, name, value)  # the classes are frozen dataclasses

    def __reduce__(self) -> tuple[type[Condition], tuple[object, ...]]:
        return type(self), tuple(getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]

    def __and__(self, other: Condition) -> Condition:
        return _combine(AllOf, self, other)

    def __or__(self, other: Condition) -> Condition:
        return _combine(AnyOf, self, other)

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
        except AttributeError:  # the text may be long, and every draw needs it, so it is written only once
            object.__setattr__(self, "_text", self._write())
        return self._text

    def __repr__(self) -> str:
        return f"<{self}>"

    def _write(self) -> str:
        raise NotImplementedError


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Comparison(Condition):
    """The test ``column operator value``. With ``==`` and None it is the test that the value is missing."""

    column: Column
    operator: Operator
    value: Constant

    def __post_init__(self) -> None:
        self._measure(1, LOOK_UP if self.column.path else 1)

    def _write(self) -> str:
        if self.value is None:
            return f"{self.column} is {self.column.missing}"
        return f"{self.column} {'=' if self.operator == '==' else self.operator} {_literal(self.value)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class In(Condition):
    """The test that the column has one of the values."""

    column: Column
    values: tuple[Constant, ...]

    def __post_init__(self) -> None:
        self._measure(1, LOOK_UP if self.column.path else 1)

    def _write(self) -> str:
        return f"{self.column} in ({', '.join(map(_literal, self.values))})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class HasTag(Condition):
    """The test that the episode has the tag."""

    tag: str

    def _write(self) -> str:
        return f"tags has {_literal(self.tag)}"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class _Joined(Condition):
    conditions: tuple[Condition, ...]
    word: ClassVar[str]

    def __post_init__(self) -> None:
        deepest = max((condition.depth for condition in self.conditions), default=0)
        self._measure(_levels(len(self.conditions)) + deepest, sum(condition.size for condition in self.conditions))

    def _write(self) -> str:
        return f" {self.word} ".join(map(_in_brackets, self.conditions))


class AllOf(_Joined):
    """The test that all the conditions hold."""

    __slots__ = ()
    word = "and"


class AnyOf(_Joined):
    """The test that at least one of the conditions holds."""

    __slots__ = ()
    word = "or"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Not(Condition):
    """The test that the condition does not hold."""

    condition: Condition

    def __post_init__(self) -> None:
        self._measure(1 + self.condition.depth, self.condition.size)

    def _write(self) -> str:
        return f"not {_in_brackets(self.condition)}"


def _in_brackets(condition: Condition) -> str:
    return f"({condition})" if isinstance(condition, (AllOf, AnyOf, Not)) else str(condition)


def _combine(kind: type[AllOf] | type[AnyOf], one: Condition, other: object) -> Condition:
    if not isinstance(other, Condition):
        raise InvalidValue(
            f"conditions can be combined only with conditions, got {shown(other)}; put brackets around each comparison"
        )
    parts = [part.conditions if isinstance(part, kind) else (part,) for part in (one, other)]
    # The size comes from the two halves alone. To count all parts again would take n * n steps for a chain of n joins.
    joined = object.__new__(kind)
    object.__setattr__(joined, "conditions", (*parts[0], *parts[1]))
    inner = (part.depth - (_levels(len(part.conditions)) if isinstance(part, kind) else 0) for part in (one, other))
    joined._measure(_levels(len(joined.conditions)) + max(inner), one.size + other.size)
    return joined


def _levels(count: int) -> int:
    levels, joined = 1, WIDTH
    while joined < count:
        levels, joined = levels + 1, joined * WIDTH
    return levels


EVERY = AllOf(())
"""Every row passes this condition."""


def conditions_within(condition: Condition) -> Iterator[Comparison | In | HasTag]:
    """Yield the single tests in a condition, from left to right."""
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
    return repr(value).lower() if isinstance(value, bool) else repr(value)


def constant_of(where: str, kind: Kind, value: object, *, is_time: bool = False) -> Constant:
    """Return the value as a plain Python constant of this kind.

    Parameters
    ----------
    where : str
        The name of the column, for messages.
    kind : {"int", "float", "text", "flag"}
        The kind of the column. A number may be an int or a float for both kinds of numbers.
    value : object
        A Python value, or the scalar of another library.
    is_time : bool
        True if the column holds times. Then a datetime is taken too, and becomes seconds.

    Raises
    ------
    InvalidValue
        If the value is of another kind, if it is not finite, or if databases cannot store it.
    """
    if is_time:
        return check_limit(where, value)
    if kind == "text":
        return text_constant(where, value)
    plain = value.item() if isinstance(value, (np.generic, np.ndarray)) and value.shape == () else value
    if kind == "flag":
        if isinstance(plain, bool):
            return plain
        raise InvalidValue(f"{where} needs True or False, got {shown(value)}")
    number = number_in(plain)
    if number is None:
        raise InvalidValue(f"{where} needs a number, got {shown(value)}")
    if isinstance(number, float) and not math.isfinite(number):
        raise InvalidValue(f"{where} must be compared with a finite number, got {number!r}")
    if isinstance(number, int) and not LEAST <= number <= GREATEST:
        raise InvalidValue(
            f"{where} must be compared with a whole number between -2**63 and 2**63 - 1; store larger ones as texts"
        )
    return number


def text_constant(where: str, value: object) -> str:
    """Return the value as a text that both databases can store.

    Raises
    ------
    InvalidValue
        If the value is not a text, or holds a lone surrogate or a NUL character.
    """
    if not isinstance(value, str):
        raise InvalidValue(f"{where} needs a text, got {shown(value)}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise InvalidValue(f"{where}: {shown(value)} holds a lone surrogate; a text cannot hold one") from None
    if "\0" in value:
        raise InvalidValue(f"{where}: a text cannot hold a NUL character, got {shown(value)}")
    return str(value)


@dataclass(frozen=True, slots=True, eq=False)
class Column:
    """A column. Compare it with a value to make a ``Condition``.

    Attributes
    ----------
    name : str
    kind : "int", "float", "text" or "flag"
    source : "episode", "metadata" or "history"
        Where the value is stored: in the episode, which never changes, in the replay metadata, or in the history.
    nullable : bool
        True if a value may be missing.
    about : str
        The meaning of the column, in a few words.
    is_time : bool
        True if the column holds seconds. It may be compared with a datetime.
    path : tuple of str and int
        The place in extra, for a column of extra.
    """

    name: str
    kind: Kind
    source: Source
    nullable: bool = False
    about: str = ""
    is_time: bool = False
    path: tuple[str | int, ...] = ()

    def __eq__(self, value: object) -> Condition:  # type: ignore[override]
        if value is None:
            return self.is_missing()
        column = self._typed_for(value)
        return Comparison(column, "==", column._constant(value))

    def __ne__(self, value: object) -> Condition:  # type: ignore[override]
        return Not(self.__eq__(value))

    def __lt__(self, value: Any) -> Condition:
        return self._compare("<", value)

    def __le__(self, value: Any) -> Condition:
        return self._compare("<=", value)

    def __gt__(self, value: Any) -> Condition:
        return self._compare(">", value)

    def __ge__(self, value: Any) -> Condition:
        return self._compare(">=", value)

    def in_(self, values: Iterable[Any]) -> Condition:
        """Make the condition that the column has one of the values. Without values, no row passes.

        Raises
        ------
        InvalidValue
            If a value is of another type than the column, or, for a place in extra, of another type than the first.
        """
        if isinstance(values, (str, bytes)) or not isinstance(values, Iterable):
            raise InvalidValue(f"{self}.in_() takes a list of values, got {shown(values)}")
        constants = list(values)
        column = self._typed_for(constants[0]) if constants else self
        return In(column, tuple(dict.fromkeys(column._constant(value) for value in constants)))

    def between(self, low: Any, high: Any) -> Condition:
        """Make the condition that the column is at least ``low`` and at most ``high``."""
        return self.__ge__(low) & self.__le__(high)

    def is_missing(self) -> Condition:
        """Make the condition that there is no value."""
        return Comparison(self, "==", None)

    def is_known(self) -> Condition:
        """Make the condition that there is a value."""
        return ~self.is_missing()

    @property
    def name_and_kind(self) -> tuple[str, str]:
        """Two texts that identify this column. The kind is one of them, because a place in extra may have several."""
        return str(self), self.kind

    @property
    def missing(self) -> str:
        """The word for a missing value in the text of a condition."""
        return "missing"

    @property
    def descending(self) -> Descending:
        """This column as an argument of ``order_by`` that sorts the largest values first."""
        return Descending(self)

    def __hash__(self) -> int:
        return hash(str(self))

    def __bool__(self) -> NoReturn:
        raise InvalidValue(f"the column {self} has no truth value; compare it, for example {self} > 1")

    def __str__(self) -> str:
        return self.name + "".join(f"[{json.dumps(step, ensure_ascii=False)}]" for step in self.path)

    def __repr__(self) -> str:
        return f"<column {self}>"

    def _typed_for(self, value: object) -> Column:
        """Return this column, with the type of the value if its own type is open."""
        return self

    def _compare(self, operator: Operator, value: object) -> Condition:
        column = self._typed_for(value)
        constant = column._constant(value)
        if isinstance(constant, bool):
            raise InvalidValue(f"{self} is True or False, which have no order; compare it with ==")
        return Comparison(column, operator, constant)

    def _constant(self, value: object) -> Constant:
        return constant_of(str(self), self.kind, value, is_time=self.is_time)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class ExtraColumn(Column):
    """A place in the ``extra`` JSON of an episode: ``col.extra["policy"]["version"]``.

    A comparison only sees values that have the type of its constant (number, text, or true and false). A value of
    another type counts as missing. To sort, group or aggregate, say which type you mean: ``.number``, ``.text`` or
    ``.flag``.

    Whole numbers from -2**63 to 2**63 - 1 are compared, grouped and sorted exactly, also with fractions: 1 is 1.0, and
    2**53 + 1 is not 2.0**53. A stored number beyond these counts as the nearest float64. A whole constant beyond these
    is refused; store unsigned 64-bit identifiers as texts. In answers, a number is a float, or an int if no float is
    equal to it. ``arrays()`` and data frames round such an int to float64. Means and sums use float64.
    """

    typed: bool = False

    def __getitem__(self, step: str | int) -> ExtraColumn:
        if isinstance(step, bool) or not (isinstance(step, str) or hasattr(step, "__index__")):
            raise InvalidValue(
                f"a step into extra is a str (key of an object) or an int (list index), got {shown(step)}"
            )
        checked = text_constant("a key of extra", step) if isinstance(step, str) else int(step.__index__())
        if isinstance(checked, int) and not 0 <= checked < 2**31:
            raise InvalidValue(f"an index into a list in extra must be between 0 and 2**31 - 1, got {checked}")
        if len(self.path) >= MAX_PATH:
            raise InvalidValue(f"a path into extra has at most {MAX_PATH} steps")
        return replace(self, path=(*self.path, checked), typed=False)

    @property
    def missing(self) -> str:
        """The words for a missing value in the text of a condition; with a type, for a value of another type too."""
        return f"not {TYPES[self.kind]}" if self.typed else "missing"

    def _as(self, kind: Kind) -> ExtraColumn:
        return replace(self, kind=kind, typed=True)

    @property
    def number(self) -> ExtraColumn:
        """The value if it is a number; other values count as missing."""
        return self._as("float")

    @property
    def text(self) -> ExtraColumn:
        """The value if it is a text; other values count as missing."""
        return self._as("text")

    @property
    def flag(self) -> ExtraColumn:
        """The value if it is true or false; other values count as missing."""
        return self._as("flag")

    def _typed_for(self, value: object) -> ExtraColumn:
        if self.typed:
            return self
        if isinstance(value, str):
            return self.text
        return self.flag if isinstance(value, (bool, np.bool_)) else self.number


@dataclass(frozen=True, slots=True)
class TagsColumn:
    """The tags of an episode: ``col.tags.has("hard")``."""

    def has(self, tag: str) -> Condition:
        """Make the condition that the episode has the tag."""
        return HasTag(text_constant("a tag", tag))

    def __str__(self) -> str:
        return "tags"


@dataclass(frozen=True, slots=True)
class Descending:
    """A column in ``order_by`` by which the largest values come first."""

    column: Column


@dataclass(frozen=True, slots=True)
class Columns:
    """All columns, as attributes: ``memstore.col.loss``."""

    id: Column = Column("id", "int", "episode", about="the episode's id; ids grow in insertion order")
    domain: Column = Column("domain", "text", "episode", about="the domain of the episode")
    timestamp: Column = Column("timestamp", "float", "episode", about="seconds, as given to add", is_time=True)
    level: Column = Column("level", "int", "episode", True, "as given to add")
    key: Column = Column("key", "text", "episode", True, "idempotency key")
    extra: ExtraColumn = ExtraColumn("extra", "text", "episode", True, "JSON, as given to add")
    tags: TagsColumn = TagsColumn()
    age: Column = Column("age", "int", "episode", about="episodes inserted since, 1 for the newest")
    loss: Column = Column("loss", "float", "metadata", True, "last measured loss")
    lowest_loss: Column = Column("lowest_loss", "float", "metadata", True, "smallest loss ever measured")
    rise: Column = Column("rise", "float", "metadata", True, "loss - lowest_loss: how much was forgotten")
    replay_count: Column = Column("replay_count", "int", "metadata", about="number of loss updates")
    last_replayed_at: Column = Column(
        "last_replayed_at", "float", "metadata", True, "time of the last loss update, in seconds", True
    )
    event: Column = Column("event", "int", "history", about="number of the event; grows with time")
    what: Column = Column(
        "what", "text", "history", about="replayed, evicted, deleted, consolidated, exhausted or resized"
    )
    reason: Column = Column("reason", "text", "history", True, "the rule by which an episode left")
    at: Column = Column("at", "float", "history", about="time of the event, in seconds", is_time=True)
    step: Column = Column("step", "int", "history", True, "the trainer's step, as given to update")
    consumer: Column = Column("consumer", "text", "history", True, "who replayed the episode or made it leave")
    strategy: Column = Column("strategy", "text", "history", True, "the strategy that drew the batch")
    loss_before: Column = Column("loss_before", "float", "history", True, "loss until the event")
    loss_after: Column = Column("loss_after", "float", "history", True, "loss from the event on")
    probability: Column = Column("probability", "float", "history", True, "probability of the draw, as in the batch")
    weight: Column = Column("weight", "float", "history", True, "importance weight, as in the batch")

    def __getitem__(self, name: str) -> Column | TagsColumn:
        if name not in NAMES:
            raise InvalidValue(no_column(name))
        found: Column | TagsColumn = getattr(self, name)
        return found

    def __getattr__(self, name: str) -> NoReturn:
        raise AttributeError(no_column(name))


NAMES: tuple[str, ...] = tuple(Columns.__dataclass_fields__)
"""The names of all columns, ``tags`` included."""


def no_column(name: object) -> str:
    """Write the message that no column has this name, with the name that may be meant and the names of all columns."""
    near = difflib.get_close_matches(name[:60], NAMES, 1) if isinstance(name, str) else []
    meant = f"did you mean {near[0]}? " if near else ""
    return f"there is no column {name!r:.60}; {meant}the columns are {', '.join(NAMES)}"


col = Columns()
"""``col`` has the columns for conditions and queries: ``(col.loss > 2) & col.domain.in_(["math"])``."""

_SELECTABLE = [column for column in (getattr(col, name) for name in NAMES) if isinstance(column, Column)]

EPISODE_COLUMNS: tuple[Column, ...] = tuple(column for column in _SELECTABLE if column.source != "history")
"""Live episodes have these columns, and ``tags``."""

HISTORY_COLUMNS: tuple[Column, ...] = tuple(column for column in _SELECTABLE if column.source == "history")
"""The columns that only the history has."""


def tested_columns(condition: Condition) -> Iterator[Column]:
    """Yield the columns that the condition tests, from left to right."""
    return (test.column for test in conditions_within(condition) if not isinstance(test, HasTag))


def check_columns(columns: Iterable[Column], over: Over) -> None:
    """Raise ``InvalidValue`` if live episodes are asked for a column that only the history has."""
    for column in columns:
        if column.source == "history" and over != "history":
            raise InvalidValue(
                f"{column} belongs to the history, not to live episodes: use query('history'), or --history"
            )
