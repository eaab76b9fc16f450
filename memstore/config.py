"""Values that users give as settings, and their checks, which run before anything is touched."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal, cast, get_args

from memstore.errors import ConfigError, InvalidValue
from memstore.values.foreign import number
from memstore.values.shown import shown
from memstore.values.times import seconds_of

Durability = Literal["process", "power"]

DEFAULT_CAPACITY = 1_000_000
DEFAULT_EPSILON = 1e-6
MAX_EPSILON = 1e100
DEFAULT_CACHE_BYTES = 256 * 2**20
DEFAULT_BUSY_TIMEOUT = 30.0
MAX_NAME_BYTES = 1024


class Unchanged(enum.Enum):
    """The type of ``UNCHANGED``, its only value."""

    UNCHANGED = enum.auto()

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = Unchanged.UNCHANGED
"""Leaves a setting as it is: in ``configure`` and ``open`` as it is stored, in a new buffer at its default."""


def check_int(name: str, value: Any, *, minimum: int, maximum: int = 2**62) -> int:
    """Return ``value`` as a Python int within bounds; integers of numpy and PyTorch will do."""
    whole = number(value)
    if not isinstance(whole, int):
        raise ConfigError(f"{name} must be an integer, got {shown(value)}")
    if not minimum <= whole <= maximum:
        raise ConfigError(f"{name} must be between {minimum} and {maximum}, got {shown(whole)}")
    return whole


def check_float(
    name: str, value: Any, *, minimum: float = 0.0, maximum: float = math.inf, exclusive: bool = False
) -> float:
    """Return ``value`` as a finite Python float within bounds; ``exclusive`` leaves out the minimum itself."""
    given = number(value)
    if given is None:
        raise ConfigError(f"{name} must be a number, got {shown(value)}")
    try:
        result = float(given)
    except OverflowError:
        raise ConfigError(f"{name} must be a number that fits a float, got {shown(value)}") from None
    if not math.isfinite(result) or not minimum <= result <= maximum or (exclusive and result == minimum):
        bound = "greater than" if exclusive else "at least"
        above = "" if maximum == math.inf else f", at most {maximum:g}"
        raise ConfigError(f"{name} must be finite and {bound} {minimum:g}{above}, got {result!r}")
    return result


def check_seconds(name: str, value: Any, *, exclusive: bool = False) -> float:
    """Return a duration in seconds, converted exactly from a number, a ``timedelta`` or a ``timedelta64``."""
    try:
        return check_float(name, seconds_of(name, value), exclusive=exclusive)
    except InvalidValue as exc:
        raise ConfigError(str(exc)) from None


def check_name(what: str, value: Any, *, most: int = MAX_NAME_BYTES) -> str:
    """Return ``value`` if it is a text that both databases store unchanged."""
    if not isinstance(value, str):
        raise ConfigError(f"{what} must be a str, got {shown(value)}")
    try:
        encoded = value.encode()
    except UnicodeEncodeError as exc:
        raise ConfigError(f"{what} {shown(value)} holds a lone surrogate and cannot be stored as text") from exc
    if not encoded or b"\0" in encoded or len(encoded) > most:
        raise ConfigError(
            f"{what} must be 1 to {most} bytes of UTF-8 without NUL, got {value[:40]!r} ({len(encoded)} bytes)"
        )
    return value


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return ``value`` if it is one of these texts."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} must be {' or '.join(map(repr, choices))}, got {shown(value)}")
    return value


def check_durability(value: Any) -> Durability:
    """Return ``"process"`` (survives kill -9) or ``"power"`` (survives power loss too)."""
    return cast(Durability, check_choice("durability", value, get_args(Durability)))


@dataclass(frozen=True)
class History:
    """What the replay history records, and for how long.

    A replay and a departure (eviction, deletion ...) are one event each. The tally behind ``loss_trend`` and
    ``replay_share`` counts every replay, whatever is recorded, unless ``record`` is 0.

    Parameters
    ----------
    record : float
        Share of the episodes whose events are recorded: 1 all, 0 none. A hash of the id decides, so the history of an
        episode is there as a whole or not at all.
    max_events : int, optional
        At least so many events are kept. Older ones leave as new ones come, before there are a quarter more.
    max_age : float or timedelta, optional
        Seconds after which events may leave, in the same way.

    Raises
    ------
    ConfigError
        One of them is out of its range.
    """

    record: float = 1.0
    max_events: int | None = None
    max_age: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "record", check_float("record", self.record, maximum=1.0))
        if self.max_events is not None:
            object.__setattr__(self, "max_events", check_int("max_events", self.max_events, minimum=1))
        if self.max_age is not None:
            object.__setattr__(self, "max_age", check_seconds("max_age", self.max_age, exclusive=True))

    @property
    def is_complete(self) -> bool:
        """True if every event is recorded."""
        return self.record == 1.0

    def to_json(self) -> str:
        """Return the text that the ``buffer`` row stores."""
        return json.dumps(asdict(self), sort_keys=True)


@dataclass(frozen=True)
class SamplesPerInsert:
    """Keep the number of episodes drawn near ``ratio`` times the number added, as Reverb's limiter does.

    With ``ahead = ratio * added - drawn``, draws wait while ``ahead <= ratio * min_size - error_buffer``, adds wait
    while ``ahead >= ratio * min_size + error_buffer``. Both look before they count their batch, so either may overshoot
    by one batch. The two sides never wait for each other at the same time, whatever the sizes of their batches.
    (Cassirer et al. 2021, "Reverb: a framework for experience replay"; its ``SampleToInsertRatio`` counts before it
    looks.)

    Parameters
    ----------
    ratio : float > 0
        Draws per episode added, on average.
    min_size : int
        While fewer episodes are live, nothing is drawn and no add waits.
    error_buffer : float > 0, optional
        How far either side may be ahead. The default is ``ratio * min_size``: never more draws than ``ratio`` per
        episode.

    Raises
    ------
    ConfigError
        One of them is out of its range.
    """

    ratio: float
    min_size: int = 1
    error_buffer: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", check_float("ratio", self.ratio, exclusive=True))
        object.__setattr__(self, "min_size", check_int("min_size", self.min_size, minimum=1))
        buffer = self.ratio * self.min_size if self.error_buffer is None else self.error_buffer
        object.__setattr__(self, "error_buffer", check_float("error_buffer", buffer, exclusive=True))

    def draws_allowed(self, live: int, added: int) -> float:
        """Return the count of draws at which the next draw has to wait."""
        assert self.error_buffer is not None
        return self.ratio * (added - self.min_size) + self.error_buffer if live >= self.min_size else 0.0

    def may_add(self, live: int, added: int, drawn: int) -> bool:
        """True if the next add need not wait."""
        assert self.error_buffer is not None
        return live < self.min_size or self.ratio * (added - self.min_size) - drawn < self.error_buffer

    def to_json(self) -> str:
        """Return the text that the ``buffer`` row stores."""
        return json.dumps(asdict(self), sort_keys=True)
