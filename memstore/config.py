"""Settings: what ``open`` accepts, checked before anything is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, cast, get_args

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


@dataclass(frozen=True, slots=True)
class Settings:
    """What the ``buffer`` row stores and every process that opens the buffer shares."""

    capacity: int
    epsilon: float
    alpha: float
    strategy: str
    eviction: str
    max_replays: int | None
    limiter: str | None
    history: str | None
    seed: int


def check_int(name: str, value: Any, *, minimum: int, maximum: int = 2**62) -> int:
    """``value`` as a Python int (integers of numpy and PyTorch included) within bounds."""
    whole = number(value)
    if not isinstance(whole, int):
        raise ConfigError(f"{name} must be an integer, got {shown(value)}")
    if not minimum <= whole <= maximum:
        raise ConfigError(f"{name} must be between {minimum} and {maximum}, got {shown(whole)}")
    return whole


def check_float(
    name: str, value: Any, *, minimum: float = 0.0, maximum: float = math.inf, exclusive: bool = False
) -> float:
    """``value`` as a finite Python float within bounds; ``exclusive`` leaves out the minimum itself."""
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
    """A duration in seconds: a number, a ``timedelta`` or a ``timedelta64``, converted exactly."""
    try:
        return check_float(name, seconds_of(name, value), exclusive=exclusive)
    except InvalidValue as exc:
        raise ConfigError(str(exc)) from None


def check_name(what: str, value: Any, *, most: int = MAX_NAME_BYTES) -> str:
    """``value`` as a text that both databases store unchanged."""
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
    """``value`` when it is one of these texts."""
    if not isinstance(value, str) or value not in choices:
        raise ConfigError(f"{name} must be {' or '.join(map(repr, choices))}, got {shown(value)}")
    return value


def check_durability(value: Any) -> Durability:
    """``"process"`` (survives kill -9) or ``"power"`` (survives power loss too)."""
    return cast(Durability, check_choice("durability", value, get_args(Durability)))
