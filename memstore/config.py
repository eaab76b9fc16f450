"""Settings: what ``open`` accepts, checked before anything is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from memstore.errors import ConfigError

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
    """``value`` as a Python int (numpy integers included) within bounds."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    number = int(value.__index__())
    if not minimum <= number <= maximum:
        raise ConfigError(f"{name} must be between {minimum} and {maximum}, got {number}")
    return number


def check_float(
    name: str, value: Any, *, minimum: float = 0.0, maximum: float = math.inf, exclusive: bool = False
) -> float:
    """``value`` as a finite Python float within bounds; ``exclusive`` leaves out the minimum itself."""
    if isinstance(value, (bool, str, bytes)):
        raise ConfigError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"{name} must be a number that fits a float, got a {type(value).__name__}") from None
    if not math.isfinite(number) or not minimum <= number <= maximum or (exclusive and number == minimum):
        bound = "greater than" if exclusive else "at least"
        above = "" if maximum == math.inf else f", at most {maximum:g}"
        raise ConfigError(f"{name} must be finite and {bound} {minimum:g}{above}, got {number!r}")
    return number


def check_name(what: str, value: Any, *, most: int = MAX_NAME_BYTES) -> str:
    """``value`` as a text that both databases store unchanged."""
    if not isinstance(value, str):
        raise ConfigError(f"{what} must be a str, got {value!r} ({type(value).__name__})")
    try:
        encoded = value.encode()
    except UnicodeEncodeError as exc:
        raise ConfigError(f"{what} {value!r} holds a lone surrogate and cannot be stored as text") from exc
    if not encoded or b"\0" in encoded or len(encoded) > most:
        raise ConfigError(
            f"{what} must be 1 to {most} bytes of UTF-8 without NUL, got {value[:40]!r} ({len(encoded)} bytes)"
        )
    return value


def check_durability(value: Any) -> Durability:
    """``"process"`` (survives kill -9) or ``"power"`` (survives power loss too)."""
    if value not in get_args(Durability):
        raise ConfigError(f"durability must be 'process' or 'power', got {value!r}")
    durability: Durability = value
    return durability
