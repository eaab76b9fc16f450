"""Frozen records of events and domains, as answers to queries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class ReplayEvent:
    """One event of the replay history: an episode was replayed, or it left.

    Attributes
    ----------
    event : int
        Number of the event. The events of a buffer are numbered in the order of their commits.
    id : int
        Id of the episode, which may have left since.
    domain : str or None
        Domain of the episode. None only for an episode that left before schema 0003, which stores domains with events.
    what : str
        Kind of the event: ``replayed``, or a kind of departure: ``evicted`` (at capacity), ``deleted``,
        ``consolidated``, ``exhausted`` (``max_replays`` reached), ``resized`` (the capacity was lowered).
    reason : str or None
        Rule by which the episode left: the eviction policy, or the limit of the retention policy.
    at : float
        Seconds since the epoch, by the clock of the process that wrote it.
    step : int or None
        The trainer's step, as given to ``update``.
    consumer : str or None
        Name of the consumer that replayed the episode, or made it leave.
    strategy : str or None
        Name of the strategy that drew the batch. None if ``update`` was given ids.
    loss_before, loss_after : float or None
        Loss before and after the event. None if it was never measured. A departure has no loss after it.
    probability, weight : float or None
        Probability and importance weight in the batch that drew the episode. None without a draw.
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
    """Mean losses in the course of the replays, oldest first. The arrays have one entry for each point.

    Attributes
    ----------
    domain : str or None
        None stands for all domains together.
    step : float64 array, shape (n,)
        The last step of each point. NaN if ``update`` was given none.
    at : float64 array, shape (n,)
        Time of the last replay of each point, in seconds since the epoch.
    replays : int64 array, shape (n,)
        Number of replays that the point stands for.
    loss : float64 array, shape (n,)
        Mean of the losses that these replays measured.
    """

    domain: str | None
    step: NDArray[np.float64]
    at: NDArray[np.float64]
    replays: NDArray[np.int64]
    loss: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ReplayShare:
    """Share of one domain in the live episodes, and in the replays.

    Attributes
    ----------
    domain : str
    episodes : int
    episode_share : float
        Share of the live episodes, from 0 to 1; 0 in an empty memory.
    unmeasured : int
        Number of live episodes whose loss was never measured.
    mean_loss : float or None
        Mean loss of the measured ones. None if there are none.
    replays : int
        All replays there ever were, also of episodes that have left; replays while the history was off do not count.
    replay_share : float
        Share of all replays, from 0 to 1.
    target : float or None
        Share of the draws that the strategy gives the domain now. None if only a scan could tell: for draws by recency,
        and for draws by loss with another alpha than the buffer's.
    """

    domain: str
    episodes: int
    episode_share: float
    unmeasured: int
    mean_loss: float | None
    replays: int
    replay_share: float
    target: float | None
