"""What memstore hands out: frozen records, and batches of numpy arrays."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import ItemsView, KeysView
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
    """The mutable part of an episode.

    Attributes
    ----------
    episode_id : int
    loss : float or None
        Last measured loss; None when it was never measured.
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
    """One stored experience, with its replay metadata as of the read."""

    id: int
    payload: dict[str, Any]
    domain: str
    timestamp: float
    level: int | None
    tags: tuple[str, ...]
    key: str | None
    extra: Any
    metadata: ReplayMetadata

    @property
    def loss(self) -> float | None:
        """Last measured loss, None when never measured."""
        return self.metadata.loss


@dataclass(frozen=True, slots=True)
class Match:
    """An episode recalled by similarity, and its Euclidean distance from the query."""

    episode: Episode
    distance: float


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Episodes drawn together; row ``i`` of every array belongs to ``ids[i]``.

    Arrays are the caller's own: writing to them changes nothing that is stored or cached.

    Attributes
    ----------
    ids : int64, shape (n,)
    payload : dict
        Nested as it was added. A fixed-shape field is one array of shape (n, ...); a ragged one a list of n arrays;
        text and bytes a list of n.
    loss : float64, shape (n,)
        NaN where never measured.
    domain : str array, shape (n,)
    age : int64, shape (n,)
        Episodes inserted since, counting itself: the newest has age 1.
    replay_count : int64, shape (n,)
    probability : float64, shape (n,), or None
        Probability that the first draw picks the row; None where that needs a scan that was not asked for
        (``sample(..., exact_probability=True)``).
    weight : float64, shape (n,)
        Importance weight, at most 1 (at most 1 up to rounding).
    strategy : str
        Name of the strategy that drew the batch.
    lease : str or None
        Token of the lease that holds the episodes for this consumer; None for a batch that was sampled.
    group : int64, shape (n,), or None
        Which group of the batch each row belongs to: 0, 1, ... (``sample_groups``).
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

    # Its length is that of its rows, and its fields are what one would iterate over: the two must not be confused.
    __iter__ = None

    def __getitem__(self, field_name: str) -> Any:
        return self.payload[field_name]

    def take(self, rows: Any) -> Batch:
        """The batch of these rows alone, in their order (indices, or a mask of n).

        A lease is still that of all rows: updating a part of a leased batch releases the whole.
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
    """What one ``update`` did; the three id arrays partition the ids given, each distinct id once.

    Attributes
    ----------
    updated : int64 array
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
    """What ``consolidate`` keeps. A limit of None removes nothing.

    Importance is a weighted mean, in [0, 1], of three things:

    - hardness, ``loss / (1 + loss)``, 1 for a never-measured episode: what is not learned yet;
    - recency, ``2 ** -(age / half_life)``, age in insertions, 0 for the newest (clocks decide nothing): what the
      stream is like now;
    - use, ``replay_count / (1 + replay_count)``: what the strategy keeps choosing. Under draws by loss that is what
      stays hard or is forgotten again and again; under uniform draws it offsets recency for the old that last.

    Attributes
    ----------
    max_age : float or None
        Seconds; episodes whose timestamp lies further back leave.
    max_episodes : int or None
        Beyond it the least important leave, the oldest first among equals.
    min_importance : float or None
        In [0, 1]; what is less important leaves.
    consolidate_similar : bool or float or None
        Of near-identical episodes the most important stays, the oldest among equals; True is a tolerance of 0.001.
        Two are near-identical when their domain, every shape and every value that is no floating-point number are
        equal, and the Euclidean distance between all their floating-point numbers is at most the tolerance, below 1,
        times the larger of the two norms. Values that are NaN or infinite are compared bit by bit.
    hardness, recency, use : float
        Weights of the three, >= 0; their sum need not be 1.
    half_life : float or None
        Insertions after which recency has halved; None: as many as the capacity.
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
    """What ``consolidate`` removed, or with ``dry_run`` would remove; the reasons are disjoint, in this order."""

    too_old: int
    unimportant: int
    similar: int
    over_count: int
    kept: int
    dry_run: bool

    @property
    def removed(self) -> int:
        """Total of the reasons."""
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
        """As plain dicts, lists and numbers."""
        return dataclasses.asdict(self)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What ``check`` found.

    Attributes
    ----------
    episodes : int
        Live episodes examined.
    problems : tuple of str
        Empty when every invariant holds.
    notes : tuple of str
        Facts worth knowing that are no damage.
    seconds : float
        How long it took.
    unchecked : tuple of str
        What could not be looked at, or not be compared with anything.
    """

    episodes: int
    problems: tuple[str, ...]
    notes: tuple[str, ...] = field(default=())
    seconds: float = 0.0
    unchecked: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every invariant holds."""
        return not self.problems
