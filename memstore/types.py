"""The public types: names for the types of arguments, immutable records, and batches of numpy arrays."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import ItemsView, Iterable, KeysView, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, Protocol, SupportsFloat, SupportsIndex, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray


class SupportsArray(Protocol):
    """An array or scalar of numpy or of another library, such as a tensor or a column of a data frame."""

    def __array__(self) -> np.ndarray[Any, Any]: ...


T = TypeVar("T")

MaybeNone: TypeAlias = Any
"""This stands for None in places where a type checker should not demand a test, because the caller knows the case."""

Payload: TypeAlias = Mapping[str, object]
"""A payload has the fields of an episode by name: arrays, tensors, numbers, str, bytes, or mappings of these.

For n episodes at once, each field has one row for each episode: an array of shape (n, ...), or a list of n values.
"""

Each: TypeAlias = T | Sequence[T] | SupportsArray
"""This is one value for all episodes, or a sequence with one value for each."""

Ids: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | SupportsArray
"""These are one episode id, or several: whole numbers, in one dimension. An empty sequence stands for no episode."""

Losses: TypeAlias = SupportsFloat | Sequence[SupportsFloat] | SupportsArray
"""These are one loss for all episodes, or a loss for each. A loss is finite and at least 0. A tensor is detached."""

Time: TypeAlias = SupportsFloat | datetime | SupportsArray
"""A moment is seconds of any clock, a datetime with a time zone, or a ``numpy.datetime64`` (read as UTC)."""

Seconds: TypeAlias = SupportsFloat | timedelta | np.timedelta64
"""A duration is a number of seconds, a timedelta, or a ``numpy.timedelta64``."""

Tags: TypeAlias = Iterable[str]
"""These are the tags of one episode. A tag that is given twice counts once."""

Extra: TypeAlias = object
"""This is any JSON value: None, bool, number, text, list, mapping. Values of numpy and PyTorch are allowed."""

Steps: TypeAlias = SupportsIndex | tuple[SupportsIndex, SupportsIndex]
"""These are one step of a trainer, or the first and the last step of a range, both inclusive."""

Vector: TypeAlias = SupportsFloat | Sequence[object] | SupportsArray
"""These are the numbers of one field of a payload, in any shape."""

Places: TypeAlias = Sequence[SupportsIndex] | SupportsArray
"""These are rows of a batch: numbers counted from 0, or a mask with one flag for each row."""

TrainerState: TypeAlias = Mapping[str, object]
"""The state of a trainer is nested dicts, lists and tuples of arrays, tensors, numbers, str, bytes and None."""

Normalize: TypeAlias = Literal["buffer", "batch"]
"""Importance weights are scaled by the smallest probability of the whole buffer, or by that of the batch."""


class ReplayStrategy(enum.StrEnum):
    """The built-in strategies by name."""

    UNIFORM = "uniform"
    PRIORITIZED_LOSS = "prioritized_loss"
    PRIORITIZED_RECENCY = "prioritized_recency"
    MIXED = "mixed"
    DOMAIN_BALANCED = "domain_balanced"


class EvictionPolicy(enum.StrEnum):
    """The eviction policies by name. A policy decides which episodes leave when the memory is at capacity.

    Each name stands for a class: ``Fifo``, ``LowestLoss``, ``LargestDomain``, ``Reservoir``, ``ReservoirLoss``, and
    ``Refuse`` for ``none``. The docstring of the class describes the policy.
    """

    FIFO = "fifo"
    LOWEST_LOSS = "lowest_loss"
    LARGEST_DOMAIN = "largest_domain"
    RESERVOIR = "reservoir"
    RESERVOIR_LOSS = "reservoir_loss"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ReplayMetadata:
    """The replay metadata of one episode at the moment of the read. Later replays do not change this object.

    Attributes
    ----------
    episode_id : int
        Id of the episode, as returned by ``add``.
    loss : float or None
        Last measured loss, finite and at least 0. None if it was never measured.
    domain : str
        Domain of the episode.
    timestamp : float
        Seconds, as given to ``add``.
    replay_count : int
        Number of loss updates.
    last_replayed_at : float or None
        Time of the last loss update, in seconds since 1970 (UTC). None if there was none.
    """

    episode_id: int
    loss: float | None
    domain: str
    timestamp: float
    replay_count: int
    last_replayed_at: float | None = None


@dataclass(frozen=True, slots=True)
class Episode:
    """One live episode at the moment of the read: the facts that were added, and its replay metadata.

    Later replays do not change this object.

    Attributes
    ----------
    id : int
        Id of the episode, below 2**53. Ids grow in the order of insertion.
    domain : str
        Domain of the episode.
    timestamp : float
        Seconds, as given to ``add``.
    level : int or None
        Level, as given to ``add``.
    key : str or None
        Idempotency key, as given to ``add``.
    extra : JSON value or None
        Additional data, as given to ``add``.
    age : int
        Number of episodes that were inserted from this one on, itself included. The newest episode has age 1.
    loss, lowest_loss : float or None
        The last and the smallest measured loss. None if the loss was never measured.
    replay_count : int
        Number of loss updates.
    last_replayed_at : float or None
        Time of the last loss update, in seconds since 1970 (UTC). None if there was none.
    tags : tuple of str
        Tags in the order in which they were given.
    payload : dict or None
        Payload with the nesting that it was added with. The arrays belong to the caller. None if the payload was not
        read: ``get`` and ``recall`` read payloads, and a query does not. Comparisons of episodes leave it out.
    """

    id: int
    domain: str
    timestamp: float
    level: int | None
    key: str | None
    extra: Any = field(hash=False)
    age: int
    loss: float | None
    lowest_loss: float | None
    replay_count: int
    last_replayed_at: float | None
    tags: tuple[str, ...]
    payload: dict[str, Any] | MaybeNone = field(default=None, compare=False)

    @property
    def rise(self) -> float | None:
        """Rise of the loss above its lowest value, ``loss - lowest_loss``. None if the loss was never measured."""
        return None if self.loss is None or self.lowest_loss is None else self.loss - self.lowest_loss


@dataclass(frozen=True, slots=True)
class Match:
    """An episode that ``recall`` found, and the Euclidean distance between its field and the query."""

    episode: Episode
    distance: float


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Episodes that were drawn together, all from one snapshot. Row ``i`` of every array belongs to ``ids[i]``.

    ``len(batch)`` is the number of rows, and ``batch["x"]`` is a field of the payload. A batch cannot be iterated,
    because readers would disagree on the result: rows or fields. The arrays belong to the caller: writing to them
    changes no stored and no cached data.

    Attributes
    ----------
    ids : int64, shape (n,)
        Ids of the episodes, in the order drawn.
    payload : dict
        Payload with the nesting that it was added with. A field of fixed shape is one array of shape (n, ...). A ragged
        field is a list of n arrays. Text and bytes are lists of n values.
    loss : float64, shape (n,)
        Last measured loss, NaN where the loss was never measured.
    domain : str array, shape (n,)
        Domain of each episode.
    age : int64, shape (n,)
        Number of episodes that were inserted from the row's own on, itself included. The newest episode has age 1.
    replay_count : int64, shape (n,)
        Number of loss updates.
    probability : float64, shape (n,), or None
        Probability P(i) that the first draw picks the row. None if that needs a scan and
        ``sample(..., exact_probability=True)`` did not ask for one.
    weight : float64, shape (n,)
        Importance weight ``(P(i) / P_min) ** -beta`` (Schaul et al. 2016, section 3.4). At most 1, except for rounding.
    strategy : str
        Name of the strategy that drew the batch.
    lease : str or None
        Token of the lease that holds the episodes for this consumer. None for a batch of ``sample``.
    group : int64, shape (n,), or None
        Number of the group that each row belongs to: 0, 1, ... None unless ``sample_groups`` drew the batch.

    Examples
    --------
    >>> batch = memory.sample(32, beta=0.4)
    >>> losses = train(batch["x"], batch["y"], batch.weight)
    >>> memory.update(batch, loss=losses)
    """

    ids: NDArray[np.int64]
    payload: dict[str, Any]
    loss: NDArray[np.float64]
    domain: NDArray[np.str_]
    age: NDArray[np.int64]
    replay_count: NDArray[np.int64]
    probability: NDArray[np.float64] | None
    weight: NDArray[np.float64]
    strategy: str
    lease: str | None = None
    group: NDArray[np.int64] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    __iter__ = None
    __reversed__ = None

    def __getitem__(self, field_name: str) -> Any:
        if field_name not in self.payload:
            raise KeyError(f"the payload has no field {field_name!r:.60}, but {', '.join(self.payload)!s:.300}")
        return self.payload[field_name]

    def take(self, rows: Places) -> Batch:
        """Return a batch with only these rows, in the given order.

        The new batch keeps the token of the lease. The lease still covers all rows of the original batch, so an update
        of a part releases all of them.

        Parameters
        ----------
        rows : sequence of int, or bool mask of shape (n,)
        """
        chosen = np.arange(len(self.ids))[np.asarray(rows)]
        columns = {name: getattr(self, name) for name in self.__slots__}
        arrays = {name: values[chosen] for name, values in columns.items() if isinstance(values, np.ndarray)}
        return dataclasses.replace(self, payload=_rows(self.payload, chosen), **arrays)

    def keys(self) -> KeysView[str]:
        """Return the names of the payload's top-level fields. With this method, ``dict(batch)`` works."""
        return self.payload.keys()

    def items(self) -> ItemsView[str, Any]:
        """Return the names and values of the payload's top-level fields."""
        return self.payload.items()


def _rows(field: Any, chosen: NDArray[np.int64]) -> Any:
    if isinstance(field, dict):
        return {name: _rows(value, chosen) for name, value in field.items()}
    return field[chosen] if isinstance(field, np.ndarray) else [field[row] for row in chosen]


@dataclass(frozen=True, slots=True, eq=False)
class UpdateResult:
    """The outcome of one ``update``. Each distinct id that was given is in one of three arrays.

    Attributes
    ----------
    updated : int64 array, shape (n,)
        Ids of the episodes with a newly written loss.
    missing : int64 array, shape (n,)
        Ids of episodes that are not live, because they were evicted or deleted. Ids are never reused, so the update
        touched no other episode in their place.
    rejected : int64 array, shape (n,)
        Ids with a loss that is NaN, infinite or negative. They only occur with ``on_invalid="skip"``.
    """

    updated: NDArray[np.int64]
    missing: NDArray[np.int64]
    rejected: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"UpdateResult(updated={len(self.updated)}, missing={len(self.missing)}, rejected={len(self.rejected)})"


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """The rule by which ``consolidate`` keeps episodes. A limit of None removes nothing.

    The importance of an episode is a weighted mean, in [0, 1], of three numbers:

    - hardness, ``loss / (1 + loss)``. It is 1 for an episode that was never measured, because the model has not
      learned such an episode yet.
    - recency, ``2 ** -(age / half_life)``. Here the age is the number of later insertions: 0 for the newest episode.
      No clock is involved. Recent episodes show the present state of the stream.
    - use, ``replay_count / (1 + replay_count)``. The strategy keeps choosing these episodes. Under draws by loss, they
      stay hard or are forgotten again and again. Under uniform draws, use balances the recency that old episodes lose.

    Attributes
    ----------
    max_age : float or None
        Seconds. Episodes with an older timestamp leave.
    max_episodes : int or None
        Number of episodes to keep. The least important episodes leave, and the oldest first among equals.
    min_importance : float or None
        In [0, 1]. Less important episodes leave.
    consolidate_similar : bool or float or None
        Tolerance for near-identical episodes, at least 0 and below 1. True stands for 0.001. Of near-identical episodes
        the most important one stays, and the oldest among equals. Two episodes are near-identical under two
        conditions. First, their domains, all shapes, and all values that are not floating-point numbers are equal.
        Second, the Euclidean distance between all their floating-point numbers is at most the tolerance times the
        larger of the two norms. NaN and infinite values are compared bit by bit.
    hardness, recency, use : float
        Weights of the three numbers, each at least 0. Their sum need not be 1.
    half_life : float or None
        Number of insertions after which recency has halved. None stands for the capacity.

    Examples
    --------
    >>> memory.consolidate(RetentionPolicy(max_age=30 * 86400, consolidate_similar=True), dry_run=True)
    """

    max_age: float | None = None
    max_episodes: int | None = None
    min_importance: float | None = None
    consolidate_similar: bool | float | None = None
    hardness: float = 0.5
    recency: float = 0.3
    use: float = 0.2
    half_life: float | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """Numbers of the episodes that ``consolidate`` removed, or would remove with ``dry_run``.

    An episode counts for the first reason that holds, in the order of the attributes.

    Attributes
    ----------
    too_old : int
        Episodes older than ``max_age``.
    unimportant : int
        Episodes below ``min_importance``.
    similar : int
        Episodes that are near-identical to a more important one.
    over_count : int
        Episodes beyond ``max_episodes``.
    kept : int
        Live episodes that stay.
    dry_run : bool
        True if the episodes were only counted.
    """

    too_old: int
    unimportant: int
    similar: int
    over_count: int
    kept: int
    dry_run: bool

    @property
    def removed(self) -> int:
        """Number of episodes that left, over all reasons."""
        return self.too_old + self.unimportant + self.similar + self.over_count


@dataclass(frozen=True, slots=True)
class ReplayStats:
    """The contents and the past of a buffer in numbers, all from one snapshot.

    A replay is one loss written by ``update``. "Ever" means since the buffer was created, over all processes.

    Attributes
    ----------
    buffer : str
        Name of the buffer.
    buffer_size : int
        Number of live episodes now.
    capacity : int
        Largest number of live episodes that the settings allow.
    total_inserted : int
        Number of episodes ever added. It includes the episodes that a reservoir turned away. A repeated key adds
        nothing.
    total_evicted : int
        Number of episodes that were ever added and are no longer live. It counts every reason: evicted, turned away,
        deleted, consolidated, or replayed ``max_replays`` times.
    total_replays : int
        Number of replays of the episodes that are live now. It falls when replayed episodes leave.
    total_events : int
        Number of replays ever, those of episodes that have left included. It never falls. It does not count
        departures, and does not depend on the settings of the history.
    unmeasured : int
        Number of live episodes that were never measured.
    avg_loss : float
        Mean loss of the live episodes that have one. 0.0 if none has.
    max_priority : float
        Largest priority (loss + epsilon) ever measured, 1.0 before any. Never-measured episodes are drawn with it.
    loss_quantiles : dict of str to float
        Losses at ``"5%"``, ``"25%"``, ``"50%"``, ``"75%"`` and ``"95%"`` of the measured live episodes. Empty if there
        are none.
    loss_quantiles_exact : bool
        True if quantiles and histogram are computed from all losses. Otherwise they are computed from the losses of 512
        blocks of the sampling index, evenly spaced.
    loss_histogram : tuple of (float, float, int)
        Lower and upper loss of each bin, and its number of measured live episodes. The 12 bins are equal steps of the
        logarithm. Losses of 0 count in the first bin.
    domain_distribution : dict of str to int
        Number of live episodes of each domain that has any.
    strategy : str
        Name of the strategy that this handle draws by.
    alpha : float
        Exponent of the stored weight sums. It is the exponent of the buffer's strategy.
    epsilon : float
        Number that is added to a loss to make a priority.
    eviction : str
        Name of the eviction policy.
    max_replays : int or None
        Number of replays after which an episode leaves. None for no limit.
    leased : int
        Number of live episodes that some consumer holds now.
    limiter : dict or None
        Settings of the buffer's limiter. Under ``drawn`` stands the number of episodes drawn since it was set. That
        count began in balance with the episodes added before. None without a limiter.
    signature : str or None
        Fields of the payloads. None before the first add.
    cache : dict of str to float
        Figures of this handle's payload cache since it was opened. See ``PayloadCache.stats``.
    bytes_on_disk : dict of str to int
        Bytes that the whole database occupies, by part. All its buffers are included.
    schema_version : str
        Revision of the tables.
    revision : int
        Number of writes to the buffer ever. Each call that changes the buffer counts one.
    unfolded : int
        Number of entries of the log since the last fold: adds, replays and departures. Queries over the whole buffer
        take longer the more there are. ``memory.fold()`` makes it 0.
    unfolded_bytes : int
        Bytes of the payloads that were added since the last fold. In a full buffer, about as many bytes of payloads
        that have left wait for deletion.
    notes : tuple of str
        Reasons that keep the database from shrinking, such as a reader of an old snapshot. A reader is named if its
        name is known.
    """

    buffer: str
    buffer_size: int
    capacity: int
    total_inserted: int
    total_evicted: int
    total_replays: int
    total_events: int
    unmeasured: int
    avg_loss: float
    max_priority: float
    loss_quantiles: dict[str, float]
    loss_quantiles_exact: bool
    loss_histogram: tuple[tuple[float, float, int], ...]
    domain_distribution: dict[str, int]
    strategy: str
    alpha: float
    epsilon: float
    eviction: str
    max_replays: int | None
    leased: int
    limiter: dict[str, float] | None
    signature: str | None
    cache: dict[str, float]
    bytes_on_disk: dict[str, int]
    schema_version: str
    revision: int
    unfolded: int = 0
    unfolded_bytes: int = 0
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain dicts, lists and numbers, ready for ``json.dumps``."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The findings of ``check``.

    Attributes
    ----------
    episodes : int
        Number of live episodes that were examined.
    problems : tuple of str
        Broken invariants, one sentence each. Empty if every invariant holds.
    notes : tuple of str
        Facts that are worth knowing and are no damage.
    seconds : float
        Duration of the examination, in seconds.
    unchecked : tuple of str
        Parts that could not be read, or could not be compared with anything.
    """

    episodes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    seconds: float = 0.0
    unchecked: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """True if every invariant holds."""
        return not self.problems
