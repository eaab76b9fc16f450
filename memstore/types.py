"""The public types: names for the types of arguments, frozen records, batches of numpy arrays."""

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
    """An array or scalar of numpy, or of another library: a tensor, a column of a data frame."""

    def __array__(self) -> np.ndarray[Any, Any]: ...


T = TypeVar("T")

MaybeNone: TypeAlias = Any
"""Stands for None where a type checker need not ask for a test of it, because the caller knows which case it is."""

Payload: TypeAlias = Mapping[str, object]
"""The fields of an episode by name: arrays, tensors, numbers, str, bytes, or mappings of such.

For several episodes at once each field has one row an episode: an array of shape (n, ...), or a list of n values.
"""

Each: TypeAlias = T | Sequence[T] | SupportsArray
"""One value for all episodes, or a sequence with one value for each."""

Ids: TypeAlias = SupportsIndex | Sequence[SupportsIndex] | SupportsArray
"""One episode id, or several: whole numbers, in one dimension. An empty sequence stands for no episode."""

Losses: TypeAlias = SupportsFloat | Sequence[SupportsFloat] | SupportsArray
"""One loss for all episodes, or a loss for each: finite and at least 0. A tensor is detached."""

Time: TypeAlias = SupportsFloat | datetime | SupportsArray
"""One moment: seconds (of any clock), a datetime with a time zone, or a ``numpy.datetime64``, which is UTC."""

Seconds: TypeAlias = SupportsFloat | timedelta | np.timedelta64
"""A duration: a number of seconds, a timedelta or a ``numpy.timedelta64``."""

Tags: TypeAlias = Iterable[str]
"""Tags of one episode; a tag that is given twice counts once."""

Extra: TypeAlias = object
"""Any JSON value: None, true or false, numbers, text, lists, mappings; scalars and arrays of numpy and PyTorch too."""

Steps: TypeAlias = SupportsIndex | tuple[SupportsIndex, SupportsIndex]
"""One step of a trainer, or the first and the last of several, both inclusive."""

Vector: TypeAlias = SupportsFloat | Sequence[object] | SupportsArray
"""The numbers of one field of a payload, in any shape."""

Places: TypeAlias = Sequence[SupportsIndex] | SupportsArray
"""Rows of a batch, counted from 0, or a mask that has one flag a row."""

TrainerState: TypeAlias = Mapping[str, object]
"""The state of a trainer: nested dicts, lists and tuples of arrays, tensors, numbers, str, bytes and None."""

Normalize: TypeAlias = Literal["buffer", "batch"]
"""Importance weights are scaled by the smallest probability of the buffer, or by that of the batch."""


class ReplayStrategy(enum.StrEnum):
    """The built-in strategies by name."""

    UNIFORM = "uniform"
    PRIORITIZED_LOSS = "prioritized_loss"
    PRIORITIZED_RECENCY = "prioritized_recency"
    MIXED = "mixed"
    DOMAIN_BALANCED = "domain_balanced"


class EvictionPolicy(enum.StrEnum):
    """The eviction policies by name: what leaves when the memory is at capacity.

    Each name stands for a class (``Fifo``, ``LowestLoss``, ``LargestDomain``, ``Reservoir``, ``ReservoirLoss``,
    ``Refuse`` for ``none``), which says what it does.
    """

    FIFO = "fifo"
    LOWEST_LOSS = "lowest_loss"
    LARGEST_DOMAIN = "largest_domain"
    RESERVOIR = "reservoir"
    RESERVOIR_LOSS = "reservoir_loss"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class ReplayMetadata:
    """The part of an episode that replays change, as of the read.

    Attributes
    ----------
    episode_id : int
    loss : float or None
        Last measured loss. None if it was never measured.
    domain : str
    timestamp : float
        Seconds, as given to ``add``.
    replay_count : int
        Number of loss updates.
    last_replayed_at : float or None
        Seconds since the epoch of the last loss update.
    """

    episode_id: int
    loss: float | None
    domain: str
    timestamp: float
    replay_count: int
    last_replayed_at: float | None = None


@dataclass(frozen=True, slots=True)
class Episode:
    """One live episode: what was added, and what replays have changed since, as of the read.

    Attributes
    ----------
    id : int
    domain : str
    timestamp : float
        Seconds, as given to ``add``.
    level : int or None
    key : str or None
    extra : JSON value or None
    age : int
        Number of episodes inserted since, this one included: the newest has age 1.
    loss, lowest_loss : float or None
        The last and the smallest measured loss. None if the loss was never measured.
    replay_count : int
        Number of loss updates.
    last_replayed_at : float or None
        Seconds since the epoch of the last loss update.
    tags : tuple of str
        In the order in which they were given.
    payload : dict or None
        Nested as it was added; arrays are the caller's own. None if payloads were not read: a query does not read them,
        ``get`` and ``recall`` do. It never changes, and does not count where episodes are compared.
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
        """``loss - lowest_loss``: how much of the best result was forgotten. None if the loss was never measured."""
        return None if self.loss is None or self.lowest_loss is None else self.loss - self.lowest_loss


@dataclass(frozen=True, slots=True)
class Match:
    """An episode that was recalled by likeness, and the Euclidean distance of its field from the query."""

    episode: Episode
    distance: float


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Episodes drawn together; row ``i`` of every array belongs to ``ids[i]``.

    ``len(batch)`` is the number of rows, ``batch["x"]`` a field of the payload. A batch does not iterate: its length
    is that of its rows, and one would expect its fields. Arrays are the caller's own: writing to them changes nothing
    that is stored or cached.

    Attributes
    ----------
    ids : int64, shape (n,)
    payload : dict
        Nested as it was added. A fixed-shape field is one array of shape (n, ...); a ragged one a list of n arrays;
        text and bytes a list of n.
    loss : float64, shape (n,)
        NaN where the loss was never measured.
    domain : str array, shape (n,)
    age : int64, shape (n,)
        Number of episodes inserted since, the row's own included: the newest has age 1.
    replay_count : int64, shape (n,)
    probability : float64, shape (n,), or None
        Probability that the first draw picks the row. None if that needs a scan and
        ``sample(..., exact_probability=True)`` did not ask for one.
    weight : float64, shape (n,)
        Importance weight, at most 1 up to rounding.
    strategy : str
        Name of the strategy that drew the batch.
    lease : str or None
        Token of the lease that holds the episodes for this consumer. None for a batch that was sampled.
    group : int64, shape (n,), or None
        Number of the group that each row belongs to: 0, 1, ... None unless ``sample_groups`` drew the batch.
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
        """Return the batch of these rows alone, in their order.

        A lease stays the lease of all rows: updating a part of a leased batch releases the whole.
        """
        chosen = np.arange(len(self.ids))[np.asarray(rows)]
        columns = {
            name: getattr(self, name)[chosen] for name in ("ids", "loss", "domain", "age", "replay_count", "weight")
        }
        for name in ("probability", "group"):
            values = getattr(self, name)
            columns[name] = None if values is None else values[chosen]
        return dataclasses.replace(self, payload=_rows(self.payload, chosen), **columns)

    def keys(self) -> KeysView[str]:
        """Return the names of the payload's top-level fields; so ``dict(batch)`` works."""
        return self.payload.keys()

    def items(self) -> ItemsView[str, Any]:
        """Return names and values of the payload's top-level fields."""
        return self.payload.items()


def _rows(field: Any, chosen: NDArray[np.int64]) -> Any:
    if isinstance(field, dict):
        return {name: _rows(value, chosen) for name, value in field.items()}
    return field[chosen] if isinstance(field, np.ndarray) else [field[row] for row in chosen]


@dataclass(frozen=True, slots=True, eq=False)
class UpdateResult:
    """The outcome of one ``update``: each distinct id that was given stands in one of three arrays.

    Attributes
    ----------
    updated : int64 array
        Ids whose losses were written.
    missing : int64 array
        Ids that are no longer live (evicted or deleted meanwhile); nothing else was touched in their place.
    rejected : int64 array
        Ids whose loss was NaN, infinite or negative, under ``on_invalid="skip"``.
    """

    updated: NDArray[np.int64]
    missing: NDArray[np.int64]
    rejected: NDArray[np.int64]

    def __repr__(self) -> str:
        return f"UpdateResult(updated={len(self.updated)}, missing={len(self.missing)}, rejected={len(self.rejected)})"


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """The rule by which ``consolidate`` keeps episodes. A limit of None removes nothing.

    Importance is a weighted mean, in [0, 1], of three things:

    - hardness, ``loss / (1 + loss)``, 1 for an episode that was never measured: such episodes are not learned yet;
    - recency, ``2 ** -(age / half_life)``, where age counts insertions and is 0 for the newest; no clock is asked:
      recent episodes show what the stream is like now;
    - use, ``replay_count / (1 + replay_count)``: the strategy keeps choosing these episodes. Under draws by loss they
      stay hard or are forgotten again and again. Under uniform draws use makes up for what old episodes lose by age.

    Attributes
    ----------
    max_age : float or None
        Seconds. Episodes whose timestamp lies further back leave.
    max_episodes : int or None
        If more episodes are left, the least important leave, the oldest first among equals.
    min_importance : float or None
        In [0, 1]. Episodes that are less important leave.
    consolidate_similar : bool or float or None
        Of near-identical episodes the most important stays, the oldest among equals. The number is the tolerance, at
        least 0 and below 1; True stands for 0.001. Two episodes are near-identical if their domain, every shape and
        every value that is no floating-point number are equal, and the Euclidean distance between all their
        floating-point numbers is at most the tolerance times the larger of the two norms. Values that are NaN or
        infinite are compared bit by bit.
    hardness, recency, use : float
        Weights of the three, each >= 0. Their sum need not be 1.
    half_life : float or None
        Number of insertions after which recency has halved. None stands for the capacity.
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
    """How many episodes ``consolidate`` removed, or with ``dry_run`` would remove.

    An episode counts for the first reason that holds, in the order of the attributes.
    """

    too_old: int
    unimportant: int
    similar: int
    over_count: int
    kept: int
    dry_run: bool

    @property
    def removed(self) -> int:
        """Number of episodes that left, for whatever reason."""
        return self.too_old + self.unimportant + self.similar + self.over_count


@dataclass(frozen=True, slots=True)
class ReplayStats:
    """What a buffer holds and what happened to it, as of one snapshot; ``to_dict()`` is JSON-serialisable.

    A replay is one loss written by ``update``. "Ever" counts since the buffer was created, over all processes.

    Attributes
    ----------
    buffer : str
        Name of the buffer.
    buffer_size : int
        Live episodes now.
    capacity : int
        Largest number of live episodes that the settings allow.
    total_inserted : int
        Episodes ever added, also those that a reservoir turned away. A repeated key adds nothing.
    total_evicted : int
        Episodes that were ever added and are no longer live, for whatever reason: evicted, turned away, deleted,
        consolidated, or replayed ``max_replays`` times.
    total_replays : int
        Replays of the episodes that are live now. It falls when replayed episodes leave.
    total_events : int
        Replays ever, also of episodes that have left. It never falls. It does not count departures, and does not
        depend on what the history records.
    unmeasured : int
        Live episodes whose loss was never measured.
    avg_loss : float
        Mean loss of the live episodes that have one, 0.0 if none has.
    max_priority : float
        Largest priority (loss + epsilon) ever measured, 1.0 before any. Never-measured episodes are drawn with it.
    loss_quantiles : dict of str to float
        Losses at ``"5%"``, ``"25%"``, ``"50%"``, ``"75%"`` and ``"95%"`` of the measured live episodes; empty if there
        are none.
    loss_quantiles_exact : bool
        True if quantiles and histogram are those of the losses themselves. Otherwise each loss stands at the mean of
        its half-octave of priority in its domain.
    loss_histogram : tuple of (float, float, int)
        Lower and upper loss of each bin, and its number of measured live episodes. The 12 bins are equal steps of the
        logarithm; losses of 0 count in the first.
    domain_distribution : dict of str to int
        Live episodes of each domain that has any.
    strategy : str
        Name of the strategy that this handle draws by.
    alpha : float
        Exponent of the weights whose sums are stored, which is that of the buffer's strategy.
    epsilon : float
        What is added to a loss to make a priority.
    eviction : str
        Name of the eviction policy.
    max_replays : int or None
        Replays after which an episode leaves; None for no limit.
    leased : int
        Live episodes that some consumer holds now.
    limiter : dict or None
        Settings of the buffer's limiter, and under ``drawn`` how many episodes were drawn since it was set. That count
        began in balance with the episodes added before. None without a limiter.
    signature : str or None
        Fields of the payloads; None before the first add.
    cache : dict of str to float
        The payload cache of this handle since it was opened: see ``PayloadCache.stats``.
    bytes_on_disk : dict of str to int
        Bytes that the whole database occupies, all its buffers, by part.
    schema_version : str
        Revision of the tables.
    revision : int
        Writes to the buffer, ever: each call that changes it counts one.
    notes : tuple of str
        What keeps the database from shrinking, such as a reader of an old snapshot, with its name where that is known.
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
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as plain dicts, lists and numbers."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The findings of ``check``.

    Attributes
    ----------
    episodes : int
        Live episodes examined.
    problems : tuple of str
        Empty when every invariant holds.
    notes : tuple of str
        Facts that are worth knowing and are no damage.
    seconds : float
        How long it took.
    unchecked : tuple of str
        What could not be looked at, or could not be compared with anything.
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
