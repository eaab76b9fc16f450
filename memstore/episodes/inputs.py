"""Checks of the arguments of callers, which become columns before any transaction starts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from memstore.config import check_choice, check_float, check_int, check_name
from memstore.episodes.extras import extra_json
from memstore.errors import ConfigError, InvalidValue, PayloadError
from memstore.types import Ids, Losses
from memstore.values.foreign import as_numpy, is_arraylike, is_tensor
from memstore.values.shown import shown
from memstore.values.times import check_time, check_times, is_zoneless

P = ParamSpec("P")
T = TypeVar("T")

MAX_COUNT = 2**31
"""One call may ask for at most this many episodes."""

UPDATE_ADVICE = "update takes on_invalid='skip' to write the valid ones"
EXTEND_ADVICE = "give None for what was never measured"


@dataclass(frozen=True, slots=True)
class Offer:
    """Episodes offered to the buffer, as columns of equal length. A loss that was never measured is NaN."""

    blobs: list[bytes]
    domains: list[str]
    timestamps: list[float]
    loss: NDArray[np.float64]
    levels: list[int | None]
    keys: list[str | None]
    tags: list[tuple[str, ...]]
    extras: list[str | None]

    def take(self, places: list[int]) -> Offer:
        """Return the offers at these places."""
        columns = (getattr(self, field.name) for field in fields(self))
        taken: Any = (c[places] if isinstance(c, np.ndarray) else [c[i] for i in places] for c in columns)
        return Offer(*taken)


def make_offer(blobs: list[bytes], now: float, given: Mapping[str, Any], *, one: bool) -> Offer:
    """Make columns of equal length from the keywords of a call.

    Parameters
    ----------
    blobs : list of bytes
        One encoded payload for each episode.
    now : float
        Timestamp of an episode without one, in seconds.
    given : mapping
        All keywords, by name.
    one : bool
        True if each keyword is the value of one episode. Otherwise it is one value for all, or one for each.

    Raises
    ------
    InvalidValue
        An argument is refused. The message has the keyword, the value, and the expected type or range.
    """
    count = len(blobs)
    if isinstance(given["key"], str) and count > 1:
        raise InvalidValue(f"key names one episode, and there are {count}: give a sequence of {count} keys")

    def each(what: str, check: Callable[[str, Any], Any], checks: Checks | None = None) -> list[Any]:
        def known(value: Any) -> Any:
            return None if value is None else check(what, value)

        return [known(given[what])] if one else _each(what, given[what], count, known, checks)

    return Offer(
        blobs=blobs,
        domains=[_name("domain", given["domain"])] if one else _domains(given["domain"], count),
        timestamps=[now if at is None else at for at in each("timestamp", check_time, check_times)],
        loss=_loss(given["loss"]) if one else _initial_losses(given["loss"], count),
        levels=each("level", _level),
        keys=each("key", _name),
        tags=[_distinct(_listed(given["tags"]))] if one else _tags(given["tags"], count),
        extras=each("extra", lambda _, value: extra_json(value)),
    )


def check_ids(ids: Ids) -> NDArray[np.int64]:
    """Return episode ids, one or several, as a flat int64 array.

    Raises
    ------
    InvalidValue
        The ids are not whole numbers in one dimension.
    """
    try:
        array = np.atleast_1d(np.asarray(as_numpy("episode ids", ids)))
    except (PayloadError, ValueError, TypeError) as exc:
        raise InvalidValue(f"episode ids must be integers in one dimension, got {shown(ids)}") from exc
    if array.size == 0:
        return np.empty(0, np.int64)
    if array.dtype.kind not in "iu" or array.ndim != 1:
        raise InvalidValue(f"episode ids must be integers in one dimension, got {array.dtype} of shape {array.shape}")
    if array.dtype.kind == "u" and int(array.max()) >= 2**63:
        raise InvalidValue(f"{int(array.max())} is no episode id: ids are below 2**53")
    return array.astype(np.int64)


def check_count(value: Any, name: str = "count") -> int:
    """Return a number of episodes, checked to lie between 1 and ``MAX_COUNT``. ``name`` is the argument's name."""
    return _valid(check_int, name, value, minimum=1, maximum=MAX_COUNT)


def as_losses(values: Losses, count: int) -> NDArray[np.float64]:
    """Return ``count`` numbers as a float64 copy. A single number stands for all. The range is not checked.

    A tensor is detached, because a loss often comes with its graph.
    """
    try:
        values = as_numpy("loss", values)
        # A list that mixes bools or texts with numbers would become numbers, and a mask would be lost.
        if isinstance(values, np.ma.MaskedArray) or (isinstance(values, (list, tuple)) and _not_a_number(values)):
            raise TypeError("not a number among them")
        array = np.asarray(values)
        if array.dtype.kind not in "iuf":
            if array.dtype.kind != "O" or _not_a_number(array.ravel()):
                raise TypeError(f"dtype {array.dtype}")
            array = array.astype(np.float64)
    except PayloadError as exc:
        raise InvalidValue(str(exc)) from None
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidValue(f"losses must be real numbers, got {_one_wrong(values)}") from exc
    if array.ndim > 1 or (array.ndim == 1 and len(array) != count):
        raise InvalidValue(f"expected one loss per episode ({count}), got an array of shape {array.shape}")
    with np.errstate(over="ignore"):
        # The addition turns -0.0 into 0.0. It also makes a copy, so the caller's array is never shared.
        return np.broadcast_to(array, count).astype(np.float64) + 0.0


_NO_NUMBERS = (bool, np.bool_, str, bytes, type(None), complex, np.datetime64, np.timedelta64)


def _not_a_number(values: Iterable[Any]) -> bool:
    return any(
        issubclass(kind, _NO_NUMBERS) or kind.__name__ in ("NAType", "NaTType") for kind in set(map(type, values))
    ) or any(isinstance(value, np.ndarray) and value.dtype.kind not in "iuf" for value in values)


def _one_wrong(values: Any) -> str:
    """Return a text with the first value that is no number, and its index if there are several values."""
    if isinstance(values, np.ndarray) and values.dtype.kind == "O":
        values = values.ravel().tolist()
    wrong = next((v for v in values if _not_a_number([v])), values) if isinstance(values, (list, tuple)) else values
    at = f" at index {next(i for i, v in enumerate(values) if v is wrong)}" if wrong is not values else ""
    return f"{shown(wrong)}{at}"


def invalid_losses(loss: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Return a mask of the losses that are NaN, infinite or negative."""
    return ~(np.isfinite(loss) & (loss >= 0))


def refuse_invalid(loss: NDArray[np.float64], names: Sequence[int] | None = None, advice: str = UPDATE_ADVICE) -> None:
    """Raise ``InvalidValue`` with the first loss that is NaN, infinite or negative, if there is one."""
    bad = np.flatnonzero(invalid_losses(loss))
    if len(bad):
        at = int(bad[0])
        where = f"episode {names[at]}" if names is not None else f"index {at}"
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise InvalidValue(
            f"loss {loss[at]} of {where}{more} is refused: a loss is finite and >= 0; nothing was written ({advice})"
        )


def _loss(loss: Any) -> NDArray[np.float64]:
    """Return the loss of one new episode, NaN for None."""
    if loss is None:
        return np.full(1, np.nan)
    try:
        return np.array([check_float("loss", as_numpy("loss", loss) if is_tensor(loss) else loss) + 0.0])
    except (ConfigError, PayloadError) as exc:
        raise InvalidValue(f"{exc}; nothing was written ({EXTEND_ADVICE})") from None


def _initial_losses(loss: Any, count: int) -> NDArray[np.float64]:
    if loss is None:
        return np.full(count, np.nan)
    if isinstance(loss, np.ndarray) and loss.dtype.kind == "O" and loss.ndim == 1:
        loss = loss.tolist()
    known = np.ones(count, np.bool_)
    if isinstance(loss, (list, tuple)) and any(value is None for value in loss):
        if len(loss) != count:
            raise InvalidValue(f"expected one loss per episode ({count}), got {len(loss)}")
        known = np.array([value is not None for value in loss])
        loss = [value for value in loss if value is not None]
    result = np.full(count, np.nan)
    try:
        result[known] = as_losses(loss, int(known.sum()))
    except InvalidValue as exc:
        raise InvalidValue(f"{exc}; {EXTEND_ADVICE}") from exc.__cause__
    refuse_invalid(np.where(known, result, 0.0), advice=EXTEND_ADVICE)
    return result


Check = Callable[[Any], Any]
Checks = Callable[[str, Any], list[Any]]


def _each(what: str, value: Any, count: int, check: Check, checks: Checks | None = None) -> list[Any]:
    """Return one checked value for each episode, from one value for all or from a sequence of values.

    If ``checks`` is given, it checks the whole sequence at once.
    """
    if is_zoneless(value) and np.ndim(value):
        raise InvalidValue(f"{what} is a column of times without a time zone; give it one: .dt.tz_localize('UTC')")
    if is_arraylike(value) and np.ndim(value):
        try:
            value = as_numpy(what, value)
        except PayloadError as exc:
            raise InvalidValue(str(exc)) from None
    if not isinstance(value, (list, tuple)) and not (isinstance(value, np.ndarray) and value.ndim):
        return [check(value)] * count
    if len(value) != count:
        raise InvalidValue(f"{what} needs one value, or one per episode ({count}); got {len(value)}")
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufUO":  # tolist() would turn times into bare counts
        value = value.tolist()
    return [check(v) for v in value] if checks is None else checks(what, value)


def _domains(domain: Any, count: int) -> list[str]:
    names = _each("domain", domain, count, lambda v: v, lambda _, values: list(values))
    kinds = set(map(type, names))
    # Many episodes share few names, so each distinct name is checked once.
    for name in dict.fromkeys(names) if all(issubclass(kind, str) for kind in kinds) else names:
        _name("domain", name)
    return names if kinds <= {str} else list(map(str, names))


def _tags(tags: Any, count: int) -> list[tuple[str, ...]]:
    tags = _listed(tags)
    if all(isinstance(tag, str) for tag in tags):
        return [_distinct(tags)] * count
    if len(tags) != count:
        raise InvalidValue(f"tags needs one sequence of str, or one per episode ({count}); got {len(tags)}")
    if any(isinstance(group, str) for group in tags):
        raise InvalidValue("tags mixes str and sequences of str; give one sequence per episode")
    return [_distinct(_listed(group)) for group in tags]


def check_option(name: str, value: Any, *choices: str) -> str:
    """Return the value if it is one of these words."""
    return _valid(check_choice, name, value, choices)


def check_texts(what: str, values: Any) -> list[str]:
    """Return a sequence of names as a list. ``what`` is the word for one name in an error."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable) or getattr(values, "ndim", 1) == 0:
        raise InvalidValue(f"{what}s must be a sequence of str, got {shown(values)}")
    return [str(check_name(what, value)) for value in values]


def _listed(tags: Any) -> list[Any]:
    """Return tags as a list. None stands for no tags."""
    if tags is None:
        return []
    if isinstance(tags, (str, bytes)):
        advice = f"; write ({tags!r:.60},)" if isinstance(tags, str) else ""
        raise InvalidValue(f"tags must be a sequence of str, got {shown(tags)}{advice}")
    if not isinstance(tags, Iterable) or isinstance(tags, Mapping) or getattr(tags, "ndim", 1) == 0:
        raise InvalidValue(f"tags must be a sequence of str, or one such sequence per episode; got {shown(tags)}")
    return list(tags)


def _distinct(tags: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(_name("tag", tag) for tag in tags))


def _name(what: str, value: Any) -> str:
    return str(_valid(check_name, what, value))  # drivers do not know numpy's str


def _level(what: str, value: Any) -> int:
    return _valid(check_int, what, value, minimum=-(2**31), maximum=2**31 - 1)


def _valid(check: Callable[P, T], *args: P.args, **keywords: P.kwargs) -> T:
    """Return the result of a check of settings. Its ``ConfigError`` becomes an ``InvalidValue``."""
    try:
        return check(*args, **keywords)
    except ConfigError as exc:
        raise InvalidValue(str(exc)) from None
