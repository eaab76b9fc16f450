"""kill -9 at random points, and a write-ahead log cut at random bytes: always a whole prefix of what was acknowledged.

Every operation is a function of its number and of the state before it, so a model says exactly what the database must
hold after each one. A killed writer may have committed one operation more than it acknowledged, and no part of another.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event
from sqlalchemy.pool import Pool

import memstore
from memstore import EpisodicMemory

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the victim is a forked child"),
    # Python 3.12 and later warn when a process with threads forks; the victim uses none of them.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

FACTOR = 10 if os.environ.get("MEMSTORE_TORTURE") == "full" else 1
KILLS = 20 * FACTOR
CUTS = 100 * FACTOR
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
    live = {episode.id: (episode.loss, episode.metadata.replay_count) for episode in found}
    return stats.total_inserted, stats.total_events, checkpoint["operation"], live


@pytest.fixture
def small_log() -> Iterator[None]:
    """Checkpoint the log within every few commits, so that kills fall into checkpoints too."""

    def apply(connection: Any, *_: Any) -> None:
        connection.execute("PRAGMA wal_autocheckpoint = 12")

    event.listen(Pool, "checkout", apply)
    yield
    event.remove(Pool, "checkout", apply)


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


@pytest.mark.parametrize("log", ["large log", "small log"])
@pytest.mark.parametrize("eviction", SETTINGS)
def test_kill(tmp_path: Path, request: pytest.FixtureRequest, eviction: str, log: str) -> None:
    """One file, killed again and again: everything acknowledged is there, and at most one operation more."""
    if log == "small log":
        request.getfixturevalue("small_log")
    path = str(tmp_path / "run.db")
    memstore.open(path, **SETTINGS[eviction]).close()
    model = Model(capacity=SETTINGS[eviction]["capacity"])
    dice = random.Random(f"{eviction} {log}")
    extra = 0
    for kill in range(KILLS // 2 if eviction == "none" else KILLS - KILLS // 2):
        # The number of operations decides as well: on a busy machine none may follow within the time.
        acknowledged = strike(path, model, dice.uniform(0.0, 0.04), least=dice.randint(1, 8))
        assert acknowledged > model.operation, "nothing was done before the kill"
        while model.operation < acknowledged:
            model.step(None)
        with memstore.open(path, create=False) as memory:
            found = facts(memory)
            if found != model.facts():
                model.step(None)
                extra += 1
            assert found == model.facts(), f"kill {kill}, after operation {acknowledged}"
            report = memory.check()
            assert report.ok, report.problems
    assert model.operation > 3 * KILLS // 2
    print(f"{eviction}, {log}: {model.operation} operations, {extra} committed but not acknowledged")


def test_kill_before_the_acknowledgement_then_retry(tmp_path: Path) -> None:
    """A key makes the retry of whatever was not acknowledged a no-op."""
    path = str(tmp_path / "run.db")
    memstore.open(path).close()
    dice = random.Random(2)
    keys: list[str] = []
    for turn in range(10 * FACTOR):
        pid = os.fork()
        if pid == 0:
            with memstore.open(path) as memory:
                for number in range(10_000):
                    memory.add({"number": number}, key=f"{turn}-{number}")
            os._exit(0)
        time.sleep(dice.uniform(0.02, 0.09))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with memstore.open(path) as memory:
            before = len(memory)
            done = before - len(keys)
            ids = memory.extend({"number": np.arange(done + 3)}, key=[f"{turn}-{n}" for n in range(done + 3)])
            keys += [f"{turn}-{n}" for n in range(done + 3)]
            assert len(memory) == before + 3 == len(keys)
            assert [episode.payload["number"] for episode in memory.get_many(ids)] == list(range(done + 3))
            assert memory.check().ok


@pytest.mark.parametrize("eviction", SETTINGS)
def test_cut_log(tmp_path: Path, eviction: str) -> None:
    """Power loss: the log ends at any byte, or in garbage. What is left is what some prefix of the commits made."""
    original = tmp_path / "original.db"
    memstore.open(original, **SETTINGS[eviction]).close()
    model = Model(capacity=SETTINGS[eviction]["capacity"])
    strike(str(original), model, 20.0 if FACTOR > 1 else 0.6, limit=120)
    log = Path(f"{original}-wal").read_bytes()
    states = [copy.deepcopy(model.facts())]
    for _ in range(121):
        model.step(None)
        states.append(copy.deepcopy(model.facts()))

    dice = random.Random(eviction)
    seen = set()
    for cut in range(CUTS // 2):
        target = tmp_path / f"copy{cut}.db"
        shutil.copyfile(original, target)
        length = dice.randrange(len(log) + 1)
        tail = dice.randbytes(dice.randrange(1, 9000)) if cut % 2 else b""
        Path(f"{target}-wal").write_bytes(log[:length] + tail)
        with memstore.open(target, create=False) as memory:
            found = facts(memory)
            assert found in states, f"cut at byte {length} of {len(log)}, {len(tail)} bytes of garbage"
            seen.add(states.index(found))
            report = memory.check()
            assert report.ok, report.problems
            before = len(memory)
            memory.extend({"number": np.arange(3), "noise": np.zeros((3, 40), np.int64)}, loss=1.0)
            assert eviction == "fifo" or len(memory) == before + 3
            assert memory.check().ok
        for file in tmp_path.glob(f"{target.name}*"):
            file.unlink()
    assert len(seen) > CUTS // 8
