"""What callers pass, checked and turned into columns before any transaction starts."""

from __future__ import annotations

import datetime
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.config import check_int, check_name
from memstore.episodes import Offer
from memstore.errors import ConfigError, InvalidValue

MAX_COUNT = 2**31

# An escaped NUL in JSON text: the backslash before it is itself not escaped.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def make_offer(
    blobs: list[bytes],
    now: float,
    *,
    domain: Any,
    loss: Any,
    timestamp: Any,
    level: Any,
    tags: Any,
    key: Any,
    extra: Any,
) -> Offer:
    """Columns of equal length from keywords that are each one value or one per episode.

    Raises
    ------
    InvalidValue
        Naming the keyword, the value, and what was expected.
    """
    count = len(blobs)
    if isinstance(key, str) and count > 1:
        raise InvalidValue(f"key names one episode, and there are {count}: give a sequence of {count} keys")
    return Offer(
        blobs=blobs,
        domains=_domains(domain, count),
        timestamps=_each("timestamp", timestamp, count, lambda v: now if v is None else check_time("timestamp", v)),
        loss=_initial_losses(loss, count),
        levels=_each("level", level, count, lambda v: None if v is None else _int("level", v)),
        keys=_each("key", key, count, lambda v: None if v is None else _name("key", v)),
        tags=_tags(tags, count),
        extras=_each("extra", extra, count, _json),
    )


def check_time(what: str, value: Any) -> float:
    """Seconds from a number or an aware datetime."""
    if isinstance(value, datetime.datetime):
        if value.tzinfo is None:
            raise InvalidValue(f"{what} {value!r} has no time zone; use datetime.now(timezone.utc) or seconds")
        return value.timestamp()
    if isinstance(value, (bool, str, bytes)):
        raise InvalidValue(f"{what} must be seconds or an aware datetime, got {value!r}")
    try:
        seconds = float(value)
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidValue(f"{what} must be seconds or an aware datetime, got {_shown(value)}") from exc
    if not math.isfinite(seconds):
        raise InvalidValue(f"{what} must be finite, got {seconds!r}")
    return seconds


def check_ids(ids: Any) -> NDArray[np.int64]:
    """Episode ids, one or many, as a flat int64 array; numpy scalars and integer arrays of any width included."""
    array = np.atleast_1d(np.asarray(ids))
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise InvalidValue(f"episode ids must be integers in one dimension, got {array.dtype} of shape {array.shape}")
    if array.dtype.kind == "u" and int(array.max()) >= 2**63:
        raise InvalidValue(f"{int(array.max())} is no episode id: ids are below 2**53")
    return array.astype(np.int64)


def check_count(value: Any) -> int:
    """Number of episodes asked for."""
    try:
        return check_int("count", value, minimum=1, maximum=MAX_COUNT)
    except ConfigError as exc:
        raise InvalidValue(str(exc)) from None


def as_losses(values: Any, count: int) -> NDArray[np.float64]:
    """``count`` numbers as float64, unchecked for range; a single number serves for all."""
    try:
        # A list that mixes them with numbers would turn them into numbers, and a mask would be lost.
        if isinstance(values, np.ma.MaskedArray) or (isinstance(values, (list, tuple)) and _not_a_number(values)):
            raise TypeError("not a number among them")
        array = np.asarray(values)
        if array.dtype.kind not in "iuf":
            if array.dtype.kind != "O" or _not_a_number(array.ravel()):
                raise TypeError(f"dtype {array.dtype}")
            array = array.astype(np.float64)
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidValue(f"losses must be real numbers, got {_shown(values)}") from exc
    if array.ndim > 1 or (array.ndim == 1 and len(array) != count):
        raise InvalidValue(f"expected one loss per episode ({count}), got an array of shape {array.shape}")
    with np.errstate(over="ignore"):
        # Adding zero turns -0.0 into 0.0; a copy, so that the caller's array is never aliased.
        return np.broadcast_to(array, count).astype(np.float64) + 0.0


def _not_a_number(values: Iterable[Any]) -> bool:
    return any(issubclass(kind, (bool, np.bool_, str, bytes, type(None))) for kind in set(map(type, values)))


def invalid_losses(loss: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which are NaN, infinite or negative."""
    return ~(np.isfinite(loss) & (loss >= 0))


def refuse_invalid(loss: NDArray[np.float64], names: Sequence[int] | None = None) -> None:
    """Raise ``InvalidValue`` naming the first loss that is NaN, infinite or negative."""
    bad = np.flatnonzero(invalid_losses(loss))
    if len(bad):
        at = int(bad[0])
        where = f"episode {names[at]}" if names is not None else f"index {at}"
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise InvalidValue(
            f"loss {loss[at]} of {where}{more} is refused: a loss is finite and >= 0; nothing was written "
            "(update takes on_invalid='skip' to write the valid ones)"
        )


def _initial_losses(loss: Any, count: int) -> NDArray[np.float64]:
    if loss is None:
        return np.full(count, np.nan)
    if isinstance(loss, (list, tuple)) and any(value is None for value in loss):
        if len(loss) != count:
            raise InvalidValue(f"expected one loss per episode ({count}), got {len(loss)}")
        known = np.array([value is not None for value in loss])
        result = np.full(count, np.nan)
        result[known] = as_losses([value for value in loss if value is not None], int(known.sum()))
        refuse_invalid(np.where(known, result, 0.0))
        return result
    result = as_losses(loss, count)
    refuse_invalid(result)
    return result


def _each(what: str, value: Any, count: int, check: Callable[[Any], Any]) -> list[Any]:
    if isinstance(value, (list, tuple, np.ndarray)):
        if len(value) != count:
            raise InvalidValue(f"{what} needs one value, or one per episode ({count}); got {len(value)}")
        return [check(v) for v in (value.tolist() if isinstance(value, np.ndarray) else value)]
    return [check(value)] * count


def _domains(domain: Any, count: int) -> list[str]:
    names = _each("domain", domain, count, lambda v: v)
    # Few distinct names stand for many episodes: each is checked once.
    for name in dict.fromkeys(names) if all(isinstance(name, str) for name in names) else names:
        _name("domain", name)
    return names if set(map(type, names)) <= {str} else list(map(str, names))


def _tags(tags: Any, count: int) -> list[tuple[str, ...]]:
    if isinstance(tags, str):
        raise InvalidValue(f"tags must be a sequence of str, got the str {tags!r}; write ({tags!r},)")
    tags = _listed(() if tags is None else tags)
    if all(isinstance(tag, str) for tag in tags):
        return [_distinct(tags)] * count
    if len(tags) != count:
        raise InvalidValue(f"tags needs one sequence of str, or one per episode ({count}); got {len(tags)}")
    if any(isinstance(group, str) for group in tags):
        raise InvalidValue("tags mixes str and sequences of str; give one sequence per episode")
    return [_distinct(_listed(() if group is None else group)) for group in tags]


def _listed(tags: Any) -> list[Any]:
    if not isinstance(tags, Iterable):
        raise InvalidValue(f"tags must be a sequence of str, or one such sequence per episode; got {tags!r:.80}")
    return list(tags)


def _distinct(tags: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_name("tag", tag) for tag in tags))


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.80}"
    except (ValueError, RecursionError):  # an int of more than 4300 digits; nested too deep
        return f"a {type(value).__name__} too long to show"


def _name(what: str, value: Any) -> str:
    try:
        return str(check_name(what, value))  # drivers do not know numpy's str
    except ConfigError as exc:
        raise InvalidValue(str(exc)) from None


def _int(what: str, value: Any) -> int:
    try:
        return check_int(what, value, minimum=-(2**31), maximum=2**31 - 1)
    except ConfigError as exc:
        raise InvalidValue(str(exc)) from None


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"two keys of one object are both {twice!r} as JSON")


def _json(value: Any) -> str | None:
    if value is None:
        return None
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=True)
        json.dumps(value, ensure_ascii=False).encode()  # a lone surrogate is no text, and PostgreSQL's JSON refuses it
        json.loads(text, object_pairs_hook=_check_keys)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidValue(f"extra must be JSON without NaN or infinity, got {_shown(value)}: {exc}") from exc
    if _NUL.search(text):
        raise InvalidValue("extra must not contain NUL characters: PostgreSQL cannot store them")
    return text
