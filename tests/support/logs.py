"""A buffer's blocks as handles have them, and random programs for its log."""

from __future__ import annotations

from typing import Any

import numpy as np

from memstore import EpisodicMemory
from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import HEAD
from memstore.buffer.snapshot import Snapshot, State

SHARES = {"extend": 0.35, "update": 0.4, "delete": 0.1, "fold": 0.05, "store": 0.05, "undone": 0.05}
"""What a random program does, and how often."""


def contents(copy: Copy) -> list[bytes]:
    """Everything that a copy holds, but stamps and tokens: nothing that is drawn depends on these."""
    columns = [copy.heads[name].tobytes() for name in HEAD.names or () if name not in ("stamp", "token")]
    return [*columns, copy.directory.order.tobytes(), *copy.open(np.arange(len(copy))).contents()]


def known(state: State) -> list[Any]:
    """All that a state says of its buffer."""
    rows = [state.rows["name"].tobytes(), state.rows["token"].tobytes()]
    return [contents(state.blocks), state.counters, state.domain_names, rows]


def followed(memory: EpisodicMemory) -> list[Any]:
    """What the handle knows after it has followed the others."""
    return memory._session.read(lambda snapshot: known(snapshot.state))


def loaded(memory: EpisodicMemory) -> list[Any]:
    """What a process knows that has just opened the buffer."""
    return memory._session.read(lambda snapshot: known(snapshot.state.reload(snapshot.conn, snapshot.backend)))


def store_blocks(memory: EpisodicMemory) -> None:
    """Write the rows of the blocks alone, as a write does that has more of them than the cache holds."""

    def work(snapshot: Snapshot) -> None:
        snapshot.state.must_store = True

    memory._session.write(work)


def act(memory: EpisodicMemory, rng: np.random.Generator, what: str | None = None) -> None:
    """Change the buffer: in this way of ``SHARES``, or in one at random."""
    ids = np.arange(1, memory._session.committed.counters.inserted + 2)
    some = rng.choice(ids, min(len(ids), int(rng.integers(1, 12))))
    match what or str(rng.choice(list(SHARES), p=list(SHARES.values()))):
        case "extend":
            size = int(rng.integers(1, 10))
            loss = rng.lognormal(0, 2, size)
            domains = [f"d{of}" for of in rng.integers(0, 3, size)]
            tags = [["t"] if flag else [] for flag in rng.random(size) < 0.3]
            given: dict[str, Any] = {"domain": domains, "loss": loss if rng.random() < 0.7 else None, "tags": tags}
            memory.extend({"x": rng.random((size, 2))}, **given)
        case "update":
            memory.update(some, loss=rng.lognormal(0, 2, len(some)))
        case "delete":
            memory.delete(some[:4])
        case "fold":
            memory.fold()
        case "store":
            store_blocks(memory)
        case _:
            undone(memory, rng)


def undone(memory: EpisodicMemory, rng: np.random.Generator) -> None:
    """Begin a transaction with a savepoint that is rolled back, a fold in it included."""

    class Undone(Exception):
        pass

    with memory.transaction():
        memory.extend({"x": rng.random((2, 2))}, domain="d1", loss=rng.random(2))
        try:
            with memory.transaction():
                memory.update([1, 2, 3, 4], loss=rng.random(4))
                memory.fold()
                memory.delete([1])
                raise Undone
        except Undone:
            memory.add({"x": np.zeros(2)}, domain="d0")
