"""What can be asked for: the columns of episodes, of their replay metadata, and of their history."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NoReturn

import numpy as np

from memstore.errors import InvalidValue
from memstore.queries.conditions import (
    Comparison,
    Condition,
    Constant,
    HasTag,
    In,
    Kind,
    Not,
    constant_of,
    text_constant,
)
from memstore.values.shown import shown

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
