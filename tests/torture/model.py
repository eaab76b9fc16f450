"""Operations that a model repeats, and a process that does them until it is killed.

Every operation is a function of its number and of the state before it, so a model says exactly what the database must
hold after each one. A killed process may have committed one operation more than it acknowledged, and no part of
another.
"""

from __future__ import annotations

import copy
import os
import signal
import struct
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import memstore
from memstore import EpisodicMemory

SETTINGS: dict[str, dict[str, Any]] = {
    "none": {"capacity": 10**6, "eviction": "none"},
    "fifo": {"capacity": 60, "eviction": "fifo"},
}


@dataclass
class Model:
    """What the memory must hold after ``operation`` operations."""

    capacity: int
    operation: int = 0
    inserted: int = 0
    events: int = 0
    checkpoint: int = 0
    live: dict[int, tuple[float | None, int]] = field(default_factory=dict)

    def step(self, memory: EpisodicMemory | None) -> None:
        """Do the next operation here, and in the memory if one is given; each is one commit."""
        number = self.operation = self.operation + 1
        rng = np.random.default_rng(number)
        match number % 5:
            case 0 if self.live:
                gone = rng.choice(list(self.live), 1).tolist()
                if memory is not None:
                    memory.delete(gone)
                del self.live[gone[0]]
            case 1 | 2:
                self._extend(memory, number, int(rng.integers(1, 9)))
            case 3:
                self._update(memory, number, rng)
            case _ if memory is None:
                self._block(memory, number, rng)
            case _:
                with memory.transaction():
                    self._block(memory, number, rng)

    def _block(self, memory: EpisodicMemory | None, number: int, rng: np.random.Generator) -> None:
        self._extend(memory, number, 2)
        self._update(memory, number, rng)
        self.checkpoint = number
        if memory is not None:
            memory.save_checkpoint("run", {"operation": number, "weights": np.full(50, number)})

    def _extend(self, memory: EpisodicMemory | None, number: int, count: int) -> None:
        ids = list(range(self.inserted + 1, self.inserted + count + 1))
        losses = [None if i % 3 == 0 else number / 7 for i in ids]
        if memory is not None:
            found = memory.extend(
                {"number": np.array(ids), "noise": np.repeat(np.array(ids)[:, None], 40, axis=1)},
                loss=losses,
                domain=[f"d{i % 4}" for i in ids],
                timestamp=[float(i) for i in ids],
                tags=[[f"t{i % 2}"] for i in ids],
                key=[f"k{i}" for i in ids],
            )
            assert found.tolist() == ids
        self.inserted += count
        self.live |= {i: (loss, 0) for i, loss in zip(ids, losses, strict=True)}
        for i in sorted(self.live)[: max(len(self.live) - self.capacity, 0)]:
            del self.live[i]

    def _update(self, memory: EpisodicMemory | None, number: int, rng: np.random.Generator) -> None:
        ids = rng.choice(sorted(self.live), min(12, len(self.live)), replace=False).tolist()
        losses = rng.lognormal(0, 3, len(ids)).tolist()
        if memory is not None:
            memory.sample(8)
            assert len(memory.update(ids, loss=losses, step=number).updated) == len(ids)
        self.events += len(ids)
        self.live |= {i: (loss, self.live[i][1] + 1) for i, loss in zip(ids, losses, strict=True)}

    def facts(self) -> tuple[Any, ...]:
        """Comparable with those of a memory."""
        return self.inserted, self.events, self.checkpoint, self.live


def facts(memory: EpisodicMemory) -> tuple[Any, ...]:
    """What a memory holds; every payload is read, verified and compared with its id."""
    found = memory.recall_temporal(0, 1e18)
    for episode in found:
        assert episode.payload["number"] == episode.id and (episode.payload["noise"] == episode.id).all()
        assert episode.timestamp == episode.id and episode.key == f"k{episode.id}"
        assert episode.domain == f"d{episode.id % 4}" and episode.tags == (f"t{episode.id % 2}",)
    stats = memory.stats()
    checkpoint = memory.load_checkpoint("run") if memory.checkpoints() else {"operation": 0, "weights": np.zeros(50)}
    assert (np.asarray(checkpoint["weights"]) == checkpoint["operation"]).all()
    live = {episode.id: (episode.loss, episode.replay_count) for episode in found}
    return stats.total_inserted, stats.total_events, checkpoint["operation"], live


def victim(path: str, model: Model, acknowledge: int, limit: int) -> None:
    """Work until killed, or up to ``limit`` operations; never returns."""
    try:
        memory = memstore.open(path, seed=model.operation, create=False)
        for _ in range(limit):
            model.step(memory)
            os.write(acknowledge, struct.pack("<q", model.operation))
        os.kill(os.getpid(), signal.SIGKILL)
    except BaseException as exc:
        os.write(2, f"the victim failed by itself: {exc!r}\n".encode())
    os._exit(1)


def strike(path: str, model: Model, delay: float, limit: int = 10**6, least: int = 1) -> int:
    """Start a victim, kill it ``delay`` seconds after ``least`` acknowledgements; the last operation acknowledged."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        victim(path, copy.deepcopy(model), writing, limit)
    os.close(writing)
    acknowledged = b""
    while len(acknowledged) < 8 * least and (chunk := os.read(reading, 8)):
        acknowledged += chunk
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the victim ended by itself"
    while chunk := os.read(reading, 1 << 16):
        acknowledged += chunk
    os.close(reading)
    whole = len(acknowledged) // 8 * 8
    return int(struct.unpack("<q", acknowledged[whole - 8 : whole])[0]) if whole else model.operation
