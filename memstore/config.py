"""Settings and addresses: what ``open`` accepts, checked before anything is touched."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from memstore.errors import ConfigError

Durability = Literal["process", "power"]

DEFAULT_CAPACITY = 1_000_000
DEFAULT_EPSILON = 1e-6
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
    seed: int


def parse_url(target: str | os.PathLike[str] | URL) -> URL:
    """Database address from a path or an SQLAlchemy URL.

    Parameters
    ----------
    target : str, path or URL
        ``run.db``, ``/data/run.db``, ``sqlite:///run.db``.

    Raises
    ------
    ConfigError
        When it is no address, an in-memory database, or a database memstore does not know.
    """
    if isinstance(target, URL):
        url = target
    elif isinstance(target, os.PathLike) or "://" not in target:
        path = os.fspath(target)
        if not path:
            raise ConfigError("the database path is empty; give a file such as 'run.db'")
        url = URL.create("sqlite", database=path)
    else:
        try:
            url = make_url(target)
        except (ArgumentError, ValueError):
            # The cause would repeat the whole string, password included.
            raise ConfigError("not a database URL; expected a path or e.g. sqlite:///run.db") from None
    if url.get_backend_name() == "sqlite" and _is_in_memory(url):
        raise ConfigError("memstore keeps its data: give a file instead of an in-memory SQLite database")
    return url


def _is_in_memory(url: URL) -> bool:
    database = url.database or ":memory:"
    return ":memory:" in database or "mode=memory" in database or url.query.get("mode") == "memory"


def sqlite_path(url: URL) -> Path | None:
    """The file behind a SQLite URL, None for other databases and for ``file:`` URIs."""
    if url.get_backend_name() != "sqlite" or url.database is None or url.database.startswith("file:"):
        return None
    return Path(url.database)


def check_int(name: str, value: Any, *, minimum: int, maximum: int = 2**62) -> int:
    """``value`` as a Python int (numpy integers included) within bounds."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ConfigError(f"{name} must be an integer, got {value!r} ({type(value).__name__})")
    number = int(value.__index__())
    if not minimum <= number <= maximum:
        raise ConfigError(f"{name} must be between {minimum} and {maximum}, got {number}")
    return number


def check_float(name: str, value: Any, *, minimum: float = 0.0, exclusive: bool = False) -> float:
    """``value`` as a finite Python float not below (or above, when exclusive) the minimum."""
    if isinstance(value, (bool, str, bytes)):
        raise ConfigError(f"{name} must be a number, got {value!r}")
    try:
        number = float(value)
    except (TypeError, ValueError) as exc:
        raise ConfigError(f"{name} must be a number, got {value!r}") from exc
    if not math.isfinite(number) or number < minimum or (exclusive and number == minimum):
        bound = "greater than" if exclusive else "at least"
        raise ConfigError(f"{name} must be finite and {bound} {minimum:g}, got {number!r}")
    return number


def check_name(what: str, value: Any) -> str:
    """``value`` as a text that both databases store unchanged."""
    if not isinstance(value, str):
        raise ConfigError(f"{what} must be a str, got {value!r} ({type(value).__name__})")
    try:
        encoded = value.encode()
    except UnicodeEncodeError as exc:
        raise ConfigError(f"{what} {value!r} holds a lone surrogate and cannot be stored as text") from exc
    if not encoded or b"\0" in encoded or len(encoded) > MAX_NAME_BYTES:
        raise ConfigError(
            f"{what} must be 1 to {MAX_NAME_BYTES} bytes of UTF-8 without NUL, got {value[:40]!r} "
            f"({len(encoded)} bytes)"
        )
    return value


def check_durability(value: Any) -> Durability:
    """``"process"`` (survives kill -9) or ``"power"`` (survives power loss too)."""
    if value not in get_args(Durability):
        raise ConfigError(f"durability must be 'process' or 'power', got {value!r}")
    durability: Durability = value
    return durability
