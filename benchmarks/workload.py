"""The data that every contender stores: payloads of 80 bytes, four domains, lognormal losses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

import memstore
from memstore.config import UNCHANGED, Unchanged

DOMAINS = ("algebra", "biology", "chemistry", "dynamics")
INPUTS, TARGETS = 16, 4
"""Floats in the two fields of a payload."""
ALPHA, EPSILON = memstore.PrioritizedLoss().alpha, 1e-6
FILL_BATCH = 16_384
"""Episodes that one commit adds when a database is filled."""
CACHE_BYTES = 2**30
"""Bytes of a cache with room for every payload, so that "warm" means that all are cached."""


@dataclass(frozen=True)
class Episodes:
    """Some episodes in the form that a trainer holds. A loss that was never measured is NaN."""

    inputs: NDArray[np.float32]
    targets: NDArray[np.float32]
    domain: list[str]
    loss: NDArray[np.float64]
    timestamp: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.loss)

    @property
    def payload(self) -> dict[str, NDArray[np.float32]]:
        """The payload in memstore's form."""
        return {"input": self.inputs, "target": self.targets}

    @property
    def blobs(self) -> list[bytes]:
        """The same 80 bytes for each episode as memstore stores, made as fast as memstore makes them."""
        packed = np.concatenate([self.inputs, self.targets], axis=1)
        blobs: list[bytes] = packed.view(f"V{packed.shape[1] * 4}").ravel().tolist()
        return blobs

    @property
    def losses(self) -> list[float | None]:
        """The losses, with None in place of NaN."""
        return [None if value != value else value for value in self.loss.tolist()]


class Workload:
    """A reproducible stream of episodes."""

    def __init__(self, seed: int = 7) -> None:
        self.rng = np.random.default_rng(seed)
        self._made = 0

    def episodes(self, count: int, *, measured: bool = True) -> Episodes:
        """Return the next episodes."""
        rng = self.rng
        start, self._made = self._made, self._made + count
        return Episodes(
            inputs=rng.random((count, INPUTS), np.float32),
            targets=rng.random((count, TARGETS), np.float32),
            domain=[DOMAINS[code] for code in rng.integers(0, len(DOMAINS), count).tolist()],
            loss=self.losses(count) if measured else np.full(count, np.nan),
            timestamp=1.7e9 + np.arange(start, start + count, dtype=np.float64),
        )

    def losses(self, count: int) -> NDArray[np.float64]:
        """Return losses as a trainer measures them over a whole data set."""
        return self.rng.lognormal(-1.0, 1.0, count)

    def drifted(self, loss: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return losses as measured after a step: a little lower, with noise. A loss never measured gets a new one."""
        again = np.where(np.isnan(loss), self.losses(len(loss)), loss)
        return again * np.exp(self.rng.normal(-0.05, 0.3, len(loss)))

    def chunks(self, rows: int) -> Iterator[Episodes]:
        """Yield ``rows`` episodes in large batches."""
        for start in range(0, rows, FILL_BATCH):
            yield self.episodes(min(FILL_BATCH, rows - start))

    def all(self, rows: int) -> Episodes:
        """Return the same episodes in one piece."""
        parts = list(self.chunks(rows))
        return Episodes(
            np.concatenate([part.inputs for part in parts]),
            np.concatenate([part.targets for part in parts]),
            [name for part in parts for name in part.domain],
            np.concatenate([part.loss for part in parts]),
            np.concatenate([part.timestamp for part in parts]),
        )


def open_memory(
    address: str, *, cache_bytes: int, capacity: int | Unchanged = UNCHANGED, seed: int = 1
) -> memstore.EpisodicMemory:
    """Open the memory under test."""
    return memstore.open(
        address, capacity=capacity, strategy="prioritized_loss", alpha=ALPHA, cache_bytes=cache_bytes, seed=seed
    )


def extend(memory: memstore.EpisodicMemory, episodes: Episodes) -> None:
    """Add episodes in one commit through the public API. Either all losses are measured or none."""
    loss = None if np.isnan(episodes.loss[0]) else episodes.loss
    memory.extend(episodes.payload, domain=episodes.domain, loss=loss, timestamp=episodes.timestamp)


def fill(memory: memstore.EpisodicMemory, workload: Workload, rows: int, progress: Progress) -> None:
    """Add ``rows`` episodes."""
    task = progress.add_task(f"fill {rows:,} rows: memstore", total=rows)
    for episodes in workload.chunks(rows):
        extend(memory, episodes)
        progress.advance(task, len(episodes))
