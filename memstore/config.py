"""Settings that users give, and the checks of them. The checks run before any data is touched."""

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
"""A commit survives the death of the process, or also the loss of power."""

DEFAULT_CAPACITY = 1_000_000
"""A new buffer holds at most this many live episodes unless ``capacity`` is given."""

DEFAULT_EPSILON = 1e-6
"""This is added to a loss to make a priority, unless ``epsilon`` is given."""

MAX_EPSILON = 1e100
"""This is the largest ``epsilon`` that a buffer accepts."""

DEFAULT_CACHE_BYTES = 256 * 2**20
"""A handle caches at most this many bytes of payloads, and as many of blocks, unless ``cache_bytes`` is given."""

DEFAULT_BUSY_TIMEOUT = 30.0
"""A call waits this many seconds for the locks of others unless ``busy_timeout`` is given."""

MAX_NAME_BYTES = 1024
"""A name, such as that of a buffer or a domain, has at most this many bytes of UTF-8."""


class Unchanged(enum.Enum):
    """The type of ``UNCHANGED``, its only value."""

    UNCHANGED = enum.auto()

    def __repr__(self) -> str:
        return "UNCHANGED"


UNCHANGED: Final = Unchanged.UNCHANGED
"""This value leaves a stored setting as it is. A new buffer gets the default of the setting."""


def check_int(name: str, value: Any, *, minimum: int, maximum: int = 2**62) -> int:
    """Return ``value`` as a Python int within bounds. Integers of numpy and PyTorch are accepted."""
    whole = number(value)
    if not isinstance(whole, int):
        raise ConfigError(f"{name} must be an integer, got {shown(value)}")
    if not minimum <= whole <= maximum:
        raise ConfigError(f"{name} must be between {minimum} and {maximum}, got {shown(whole)}")
    return whole


def check_float(
    name: str, value: Any, *, minimum: float = 0.0, maximum: float = math.inf, exclusive: bool = False
) -> float:
    """Return ``value`` as a finite Python float within bounds. ``exclusive`` refuses the minimum itself."""
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
    """The rule for the replay history: which events it records, and how long it keeps them.

    A replay and a departure (eviction, deletion ...) are one event each. The tally behind ``loss_trend`` and
    ``replay_share`` counts every replay, recorded or not, unless ``record`` is 0.

    Parameters
    ----------
    record : float
        Share of the episodes with recorded events, in [0, 1]: 1 records all, 0 none. A hash of the id decides. So the
        history of an episode is recorded as a whole or not at all.
    max_events : int, optional
        Number of events to keep, at least 1. New events replace older ones. At most a quarter more, or 64 more, are
        kept for a time. The default keeps all.
    max_age : float or timedelta, optional
        Age in seconds from which events may be deleted, in the same way. The default keeps all.

    Raises
    ------
    ConfigError
        A value is out of its range.

    Examples
    --------
    >>> memory.configure(history=History(record=0.1, max_events=1_000_000))
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
    """A limiter that keeps the number of episodes drawn near ``ratio`` times the number added, as that of Reverb does.

    With ``ahead = ratio * added - drawn``, draws wait while ``ahead <= ratio * min_size - error_buffer``, and adds wait
    while ``ahead >= ratio * min_size + error_buffer``. Each side looks before it counts its batch, so each may
    overshoot by one batch. The two sides never wait for each other at the same time, for any sizes of their batches.
    (Cassirer et al. 2021, "Reverb: a framework for experience replay". Its ``SampleToInsertRatio`` counts before it
    looks.)

    Parameters
    ----------
    ratio : float > 0
        Average number of draws for each episode added.
    min_size : int
        Number of live episodes from which draws are allowed, at least 1. With fewer live episodes no add waits.
    error_buffer : float > 0, optional
        Number of draws that either side may be ahead. The default is ``ratio * min_size``. It never allows more than
        ``ratio`` draws for each episode.

    Raises
    ------
    ConfigError
        A value is out of its range.

    Examples
    --------
    >>> memory.configure(limiter=SamplesPerInsert(ratio=4.0, min_size=1000))
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
        """Return the number of draws from which the next draw has to wait."""
        assert self.error_buffer is not None
        return self.ratio * (added - self.min_size) + self.error_buffer if live >= self.min_size else 0.0

    def may_add(self, live: int, added: int, drawn: int) -> bool:
        """True if the next add need not wait."""
        assert self.error_buffer is not None
        return live < self.min_size or self.ratio * (added - self.min_size) - drawn < self.error_buffer

    def to_json(self) -> str:
        """Return the text that the ``buffer`` row stores."""
        return json.dumps(asdict(self), sort_keys=True)
