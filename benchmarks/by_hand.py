"""Code that one would write by hand: one table with three indexes, no history and no sampling index."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks.workload import INPUTS, TARGETS, Episodes, Workload

Floats = NDArray[np.float64]
Drawn = tuple[NDArray[np.int64], Floats, dict[str, NDArray[np.float32]]]

INDEXES = """
CREATE INDEX episode_loss ON episode (loss);
CREATE INDEX episode_timestamp ON episode (timestamp);
CREATE INDEX episode_domain_timestamp ON episode (domain, timestamp);
"""
EVICT = "DELETE FROM episode WHERE id IN (SELECT id FROM episode WHERE loss IS NOT NULL ORDER BY loss, id LIMIT {})"
REPLAYED_AT = 1.7e9
"""Time of every update, in seconds since 1970."""


class ByHand(ABC):
    """The same operations, on a table of one's own."""

    name: str
    """As in the report."""

    def fill(self, workload: Workload, rows: int, progress: Progress) -> None:
        """Insert ``rows`` episodes."""
        task = progress.add_task(f"fill {rows:,} rows: by hand", total=rows)
        for episodes in workload.chunks(rows):
            self.extend(episodes)
            progress.advance(task, len(episodes))

    @abstractmethod
    def extend(self, episodes: Episodes) -> None:
        """Insert in one commit."""

    @abstractmethod
    def replace_easiest(self, episodes: Episodes) -> None:
        """Insert, and delete as many rows with the smallest losses, in one commit."""

    @abstractmethod
    def draw(self, count: int) -> Drawn:
        """Draw ids, losses and payloads in proportion to (loss + epsilon) ** alpha, without replacement."""

    @abstractmethod
    def update(self, ids: NDArray[np.int64], loss: Floats) -> None:
        """Write losses back in one commit, without history."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


def as_arrays(found: list[tuple[Any, ...]]) -> Drawn:
    """Return rows of (id, loss, payload) as the arrays that a trainer needs."""
    ids, loss, blobs = zip(*found, strict=True)
    packed = np.frombuffer(b"".join(blobs), np.float32).reshape(len(blobs), INPUTS + TARGETS)
    payload = {"input": packed[:, :INPUTS].copy(), "target": packed[:, INPUTS:].copy()}
    return np.array(ids, np.int64), np.array(loss, np.float64), payload
