"""The settings of a buffer as typed values, read from the ``buffer`` row and written to it.

Only this module parses them: when a state is loaded, and again only if the row has changed settings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol, TypeVar

from memstore.config import MAX_EPSILON, History, SamplesPerInsert
from memstore.payload.signature import Signature
from memstore.storage import stored
from memstore.types import EvictionPolicy

T = TypeVar("T")

COLUMNS = ("capacity", "epsilon", "alpha", "strategy", "eviction", "max_replays", "limiter", "history", "seed")
"""These columns hold the settings, in the order of the row's checksum. The checksum has the signature before them."""


EVERYTHING = History()
"""A NULL in the row stands for this history, which records everything and keeps it for ever."""


class StoredStrategy(Protocol):
    """The part of a strategy that this room needs. The classes are in ``draws.strategies``, in a room above."""

    def to_json(self) -> str:
        """Return the text that the row stores."""


ReadStrategy = Callable[[str], StoredStrategy]
"""A function that makes a strategy from its stored text, or raises ``StoreCorrupt``; see ``State.load``."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The settings that all processes with this buffer share.

    Attributes
    ----------
    capacity : int
        Largest number of live episodes.
    epsilon : float
        Number that is added to a loss to make a priority.
    alpha : float
        Exponent of the weights that blocks have sums of.
    strategy : StoredStrategy
        Strategy that ``sample`` draws by.
    eviction : EvictionPolicy
        Rule that decides which episodes leave at capacity.
    seed : int
        Key of the reservoir's random numbers.
    max_replays : int or None
        Number of replays after which an episode leaves. None for no limit.
    limiter : SamplesPerInsert or None
        Rule that keeps draws and adds in step. None for no limiter.
    history : History
        Rule by which events are recorded and deleted.
    signature : Signature or None
        Fields of the payloads. None before the first add.
    """

    capacity: int
    epsilon: float
    alpha: float
    strategy: StoredStrategy
    eviction: EvictionPolicy
    seed: int
    max_replays: int | None = None
    limiter: SamplesPerInsert | None = None
    history: History = EVERYTHING
    signature: Signature | None = None

    def columns(self) -> dict[str, Any]:
        """Return the columns of the row. The history ``EVERYTHING`` is stored as NULL."""
        return {
            "capacity": self.capacity,
            "epsilon": self.epsilon,
            "alpha": self.alpha,
            "strategy": self.strategy.to_json(),
            "eviction": self.eviction.value,
            "max_replays": self.max_replays,
            "limiter": None if self.limiter is None else self.limiter.to_json(),
            "history": None if self.history == EVERYTHING else self.history.to_json(),
            "seed": self.seed,
            "signature": None if self.signature is None else self.signature.to_json(),
        }


@lru_cache(maxsize=64, typed=True)
def read_settings(number: int, read_strategy: ReadStrategy, signature: Any, *values: Any) -> Settings:
    """Parse the settings of a buffer from its signature and the values of ``COLUMNS``.

    Raises
    ------
    StoreCorrupt
        A value is impossible. The message names it.
    """
    row = dict(zip(COLUMNS, values, strict=True))

    def column(name: str, read: Callable[..., T], *bounds: float) -> T:
        return read(row[name], f"buffer {number}: its {name}", *bounds)

    def known(name: str, read: Callable[..., T], *bounds: float) -> T | None:
        return None if row[name] is None else column(name, read, *bounds)

    epsilon = column("epsilon", stored.real)
    if not 0 < epsilon <= MAX_EPSILON:
        raise stored.damaged(f"buffer {number}: its epsilon", f"cannot be {epsilon!r}")
    return Settings(
        capacity=column("capacity", stored.whole, 1),
        epsilon=epsilon,
        alpha=column("alpha", stored.real, 0.0),
        strategy=read_strategy(column("strategy", stored.text)),
        eviction=column("eviction", _eviction),
        seed=column("seed", stored.whole),
        max_replays=known("max_replays", stored.whole, 1),
        limiter=known("limiter", _built(SamplesPerInsert)),
        history=known("history", _built(History)) or EVERYTHING,
        signature=None if signature is None else Signature.from_json(stored.text(signature, "the buffer's signature")),
    )


def _eviction(value: Any, what: str) -> EvictionPolicy:
    if value not in list(EvictionPolicy):
        raise stored.damaged(what, f"policy is unknown: {value!r:.40}")
    return EvictionPolicy(value)


def _built(kind: Callable[..., T]) -> Callable[[Any, str], T]:
    return lambda value, what: stored.built(what, value, lambda document: kind(**document))
