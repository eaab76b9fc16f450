"""What runs in processes of its own; imports little, because each of them imports it anew."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

import memstore
from tests.sharing.records import Extend, Record, Update, new_loss, offer, origin

STRATEGIES = (None, "uniform", "prioritized_recency", "domain_balanced", "mixed")
SHARED = 40
"""Episodes of writer 0 that every writer adds: the key lets in one of them."""


def varied(rng: np.random.Generator, count: int) -> list[float | None]:
    """Losses over several octaves; one in eight never measured."""
    return [None if rng.random() < 1 / 8 else loss for loss in rng.lognormal(0, 1, count).tolist()]


def churn(url: str, number: int, stop: Any, permits: Any, committed: Any) -> int:
    """Add and update, one commit per permit, until told to stop. Returns the number of commits."""
    rng = np.random.default_rng(number)
    commits = 0
    with memstore.open(url, create=False, seed=number) as memory:
        while True:
            permits.acquire()
            if stop.is_set():
                return commits
            if commits % 3 == 0:
                memory.extend(**offer(number, range(8 * commits, 8 * commits + 8)) | {"loss": varied(rng, 8)})
            else:
                batch = memory.sample(24, strategy="uniform" if commits % 2 else None)
                memory.update(batch, loss=rng.lognormal(0, 1, len(batch)))
            commits += 1
            committed.release()


def turns_after(start: Any, turns: int, *, together: bool) -> Iterator[int]:
    """Yield the turns when all processes are there, and each turn again if they go on ``together``."""
    start.wait(60)
    for turn in range(turns):
        if together:
            start.wait(60)
        yield turn


def write(url: str, writer: int, turns: int, start: Any, path: str, *, together: bool = False) -> None:
    """Extend by 16 again and again; now and then what was added already."""
    with ExitStack() as stack:
        memory = stack.enter_context(memstore.open(url, create=False, seed=writer))
        record = stack.enter_context(Record(path))

        def extend(number: int, sequences: range) -> None:
            record.invoke(Extend(number, sequences.start, len(sequences)))
            record.ok(ids=memory.extend(**offer(number, sequences)).tolist())

        for turn in turns_after(start, turns, together=together):
            extend(writer, range(16 * turn, 16 * turn + 16))
            if turn % 10 == 4:
                extend(writer, range(16 * (turn - 2), 16 * (turn - 1)))
            if turn < SHARED // 4:
                extend(0, range(1000 + 4 * turn, 1004 + 4 * turn))


def learn(url: str, learner: int, turns: int, start: Any, path: str, *, together: bool = False) -> None:
    """Sample 32 by every strategy in turn, and write losses back. The losses tell who, when and where."""
    name = Path(path).stem
    with ExitStack() as stack:
        memory = stack.enter_context(memstore.open(url, create=False, seed=100 + learner, consumer=name))
        record = stack.enter_context(Record(path))
        for turn in turns_after(start, turns, together=together):
            batch = memory.sample(32, strategy=STRATEGIES[turn % len(STRATEGIES)])
            inserted = {i + age - 1 for i, age in zip(batch.ids.tolist(), batch.age.tolist(), strict=True)}
            assert len(inserted) == 1, "ages of two moments in one batch"
            losses = new_loss(learner, turn, len(batch))
            seen = batch.ids.tolist(), origin(batch), batch.loss.tolist(), batch.replay_count.tolist()
            record.invoke(Update(learner, turn, inserted.pop(), *seen, losses))
            result = memory.update(batch, loss=losses, step=turn)
            record.ok(updated=result.updated.tolist(), missing=result.missing.tolist())
