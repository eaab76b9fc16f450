"""What queries answer with: frozen records of episodes, events and domains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class EpisodeSummary:
    """What is known of a live episode without its payload and tags.

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
        Episodes inserted since, counting itself: the newest has age 1.
    loss, lowest_loss : float or None
        The last and the smallest measured loss; None when it was never measured.
    rise : float or None
        ``loss - lowest_loss``: what was forgotten of it.
    replay_count : int
        Number of loss updates.
    last_replayed_at : float or None
        Seconds since the epoch.
    """

    id: int
    domain: str
    timestamp: float
    level: int | None
    key: str | None
    extra: Any
    age: int
    loss: float | None
    lowest_loss: float | None
    rise: float | None
    replay_count: int
    last_replayed_at: float | None


@dataclass(frozen=True, slots=True)
class ReplayEvent:
    """One event of the replay history: an episode was replayed, or it left.

    Attributes
    ----------
    event : int
        Number of the event; events of a buffer are numbered in the order of their commits.
    id : int
        The episode, live or not.
    domain : str or None
        None only in histories recorded by memstore before schema 0003, of episodes that had left.
    what : str
        ``replayed``, or how it left: ``evicted`` (at capacity), ``deleted``, ``consolidated``, ``exhausted``
        (``max_replays`` reached), ``resized`` (the capacity was lowered).
    reason : str or None
        The rule by which it left: the eviction policy, or the limit of the retention policy.
    at : float
        Seconds since the epoch, by the clock of the process that wrote it.
    step : int or None
        The trainer's step, as given to ``update``.
    consumer : str or None
        Who replayed it, or made it leave.
    strategy : str or None
        What drew the batch; None when ``update`` was given ids.
    loss_before, loss_after : float or None
        None where it was never measured; nothing comes after a departure.
    probability, weight : float or None
        As in the batch that drew it.
    """

    event: int
    id: int
    domain: str | None
    what: str
    reason: str | None
    at: float
    step: int | None
    consumer: str | None
    strategy: str | None
    loss_before: float | None
    loss_after: float | None
    probability: float | None
    weight: float | None


@dataclass(frozen=True, slots=True, eq=False)
class LossTrend:
    """How the losses measured by replays went, oldest first; arrays of equal length.

    Attributes
    ----------
    domain : str or None
        None: all domains together.
    step : float64 array
        The last step of each point; NaN where ``update`` was given none.
    at : float64 array
        Seconds since the epoch, of the last replay of each point.
    replays : int64 array
    loss : float64 array
        Mean of the losses measured.
    """

    domain: str | None
    step: NDArray[np.float64]
    at: NDArray[np.float64]
    replays: NDArray[np.int64]
    loss: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ReplayShare:
    """What a domain has of the memory, and of the replays.

    Attributes
    ----------
    domain : str
    episodes : int
    episode_share : float
        Of the live episodes; 0 in an empty memory.
    unmeasured : int
        Episodes whose loss was never measured.
    mean_loss : float or None
        Of the measured ones.
    replays : int
        Ever, of episodes that have left too; not those while the history was off.
    replay_share : float
        Of all replays.
    target : float or None
        Share of the draws that the strategy gives the domain now; None where that needs a scan (by recency; by loss
        with another alpha than the buffer's).
    """

    domain: str
    episodes: int
    episode_share: float
    unmeasured: int
    mean_loss: float | None
    replays: int
    replay_share: float
    target: float | None
