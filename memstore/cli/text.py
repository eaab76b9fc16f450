"""Words, numbers and times for a terminal, and back. A name that a user gave must not steer or fill the terminal."""

from __future__ import annotations

import json
import math
import re
import time
from datetime import datetime
from typing import Any

import numpy as np

from memstore.printable import visible as visible

MOST_CHARACTERS = 60
"""Characters after which a text is cut."""
MISSING = "-"
"""Text for a value that is None."""

_EARLIEST, _LATEST = 1e8, 2.5e11
"""Range of seconds since 1970 that are shown as dates, 1973 .. 9892. A number outside is not such a time."""

_AGE = re.compile(r"(\d+(?:\.\d+)?)\s*([smhdw])(?:\s+ago)?")
_SECONDS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}
"""Each unit of an age has this many seconds."""


def shown(text: str, most: int = MOST_CHARACTERS) -> str:
    """Return the text in one line of at most about ``most`` characters: control characters escaped, the end cut."""
    escaped = visible(text[: most + 1])
    return escaped if len(escaped) <= most else escaped[: most - 1] + "…"


def number(value: float) -> str:
    """Return a measured number with four digits; counts and ids are whole."""
    return str(value) if isinstance(value, int) else f"{value:.4g}"


def moment(seconds: float) -> str:
    """Return the local date and time; the number itself if it cannot be seconds since 1970."""
    if _EARLIEST <= seconds < _LATEST:
        return f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M:%S}"
    return f"{seconds:.15g}"


def value_text(value: Any, *, is_time: bool = False, most: int = MOST_CHARACTERS) -> str:
    """Return one value of a row, of any type, in one line."""
    if value is None:
        return MISSING
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return moment(value) if is_time else number(value)
    return shown(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), most)


def size_text(size: float) -> str:
    """Return a number of bytes in B, KiB, MiB or GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024 or unit == "GiB":
            break
        size /= 1024
    return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"


def parse_moment(text: str) -> float:
    """Return seconds since 1970.

    Parameters
    ----------
    text : str
        Seconds since 1970, an ISO time (local without an offset), or an age such as ``10m`` or ``3d ago``.

    Raises
    ------
    ValueError
        The text is none of these.
    """
    age = _AGE.fullmatch(text.strip())
    if age is not None:
        return time.time() - float(age[1]) * _SECONDS[age[2]]
    try:
        seconds = float(text)
    except ValueError:
        try:
            return datetime.fromisoformat(text.strip()).timestamp()
        except (ValueError, OverflowError, OSError):
            seconds = math.nan
    if not math.isfinite(seconds):
        raise ValueError(
            f"{shown(text)!r} is not a time; give seconds, an ISO time such as 2026-01-31T12:00, or an age such as "
            "10m, 2h or '3d ago'"
        )
    return seconds


def json_ready(value: Any) -> Any:
    """Return the value for standard JSON: arrays become lists, numbers that are not finite null."""
    if isinstance(value, np.ndarray):
        return json_ready(value.tolist())
    if isinstance(value, dict):
        return {name: json_ready(part) for name, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
