"""The program that ``versions`` starts for each version of memstore: calls on one memory, each of them timed.

Its own imports must not lead to memstore, which comes from the folder of the version. It uses only names that all
versions have. Standard input asks for one call a line, and standard output answers with its times.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

ADDED, DRAWN, FEW = 32, 256, 32
"""Episodes that a loop adds; episodes that it draws and updates; and episodes of a small draw."""
ADD, DRAW, UPDATE = f"add {ADDED}", f"draw {DRAWN}", f"update {DRAWN}"
LOOP = (ADD, DRAW, UPDATE)
"""The calls of a training loop, in their order."""
DRAW_FEW, OTHER_ALPHA, ON_LOSS = f"draw {FEW}", f"draw {DRAWN}, another alpha", f"draw {DRAWN}, condition on loss"
ADD_ONE, EXTEND = "add one", f"extend by {DRAWN}"
MEAN_LOSS, LARGEST_LOSSES, ONE_EPISODE = "mean loss", "ten largest losses", "one episode"
FOLD, REPLAY_MANY, FREEZE = "fold", "replay many", "set the capacity to the size"
ALPHA, ANOTHER_ALPHA = 0.6, 1.0
HIGH_LOSS = 1.0
"""Losses are lognormal(-1, 1), so one episode in six has a larger one."""
FILL_BATCH = 16_384
"""Episodes that one commit adds when a database is filled, and that it replays to fill a window."""


class Trainer:
    """The calls of a trainer. Each method prepares one, and returns the part that is timed."""

    def __init__(self, memstore: Any, memory: Any, domains: int) -> None:
        self.memory, self.rng, self.domains = memory, np.random.default_rng(7), domains
        self.batch: Any = None
        self.fold: Callable[[], Any] = getattr(memory, "fold", lambda: None)
        mean_loss = memory.query().aggregate(mean=memstore.mean(memstore.col.loss))
        largest_losses = memory.query().order_by("-loss").limit(10)
        self.calls: dict[str, Callable[[], Callable[[], Any]]] = {
            ADD: partial(self.extend, ADDED),
            DRAW: lambda: self.draw,
            UPDATE: self.update,
            DRAW_FEW: partial(self.draw_after_update, FEW),
            OTHER_ALPHA: partial(self.draw_after_update, DRAWN, alpha=ANOTHER_ALPHA),
            ON_LOSS: partial(self.draw_after_update, DRAWN, where=memstore.col.loss > HIGH_LOSS),
            ADD_ONE: self.add_one,
            EXTEND: partial(self.extend, DRAWN),
            MEAN_LOSS: lambda: mean_loss.all,
            LARGEST_LOSSES: lambda: largest_losses.all,
            ONE_EPISODE: lambda: partial(memory.get, int(self.rng.integers(1, len(memory) + 1))),
            FOLD: lambda: self.fold,
            REPLAY_MANY: self.replay_many,
            FREEZE: lambda: partial(memory.configure, capacity=len(memory)),
        }

    def fill(self, rows: int) -> None:
        """Add episodes in large commits."""
        for start in range(0, rows, FILL_BATCH):
            self.extend(min(FILL_BATCH, rows - start))()

    def extend(self, count: int) -> Callable[[], Any]:
        """Add new episodes in one commit."""
        payload = {"input": self.rng.random((count, 16), np.float32), "target": self.rng.random((count, 4), np.float32)}
        domain = [f"domain-{number}" for number in self.rng.integers(0, self.domains, count).tolist()]
        return partial(self.memory.extend, payload, domain=domain, loss=self.losses(count))

    def add_one(self) -> Callable[[], Any]:
        """Add one episode in a commit."""
        payload = {"input": self.rng.random(16, np.float32), "target": self.rng.random(4, np.float32)}
        return partial(self.memory.add, payload, domain="domain-0", loss=float(self.losses(1)[0]))

    def losses(self, count: int) -> Any:
        """Return new losses, which have nothing to do with the old ones."""
        return self.rng.lognormal(-1.0, 1.0, count)

    def draw(self) -> None:
        """Draw a batch by priority, with its payloads, and keep it for the update."""
        self.batch = self.memory.sample(DRAWN)

    def update(self) -> Callable[[], Any]:
        """Update the batch drawn last."""
        if self.batch is None:
            self.draw()
        return partial(self.memory.update, self.batch, loss=self.losses(DRAWN))

    def replay_many(self) -> Callable[[], Any]:
        """Update so many episodes that a few calls fill a window."""
        ids = np.arange(1, min(FILL_BATCH, len(self.memory)) + 1)
        return partial(self.memory.update, ids, loss=self.losses(len(ids)))

    def draw_after_update(self, count: int, **options: Any) -> Callable[[], Any]:
        """Draw after an update, as a training loop does: what a draw keeps must first be brought up to date."""
        self.update()()
        self.draw()
        return partial(self.memory.sample, count, **options)


def _timed(work: Callable[[], Any]) -> tuple[Any, tuple[float, float]]:
    """Return the result, and the seconds of wall-clock and processor time."""
    start, cpu = time.perf_counter(), time.process_time()
    result = work()
    return result, (time.perf_counter() - start, time.process_time() - cpu)


def _fold_counter(memstore: Any, stack: ExitStack) -> Callable[[], int]:
    """Return the number of folds so far, which is always 0 in a version without folds."""
    testing = getattr(memstore, "testing", None)
    if testing is None or "folds" not in testing.Counts.__dataclass_fields__:
        return lambda: 0
    counts = stack.enter_context(testing.counting())
    return lambda: int(counts.folds)


def answer() -> None:
    """Open a memory and fill it, then make the calls that standard input asks for, until it ends."""
    import memstore

    asked = json.loads(sys.stdin.readline())
    if not Path(memstore.__file__).resolve().is_relative_to(Path(asked["root"]).resolve()):
        sys.exit(f"memstore comes from {memstore.__file__}, not from {asked['root']}")
    with ExitStack() as stack:
        folds = _fold_counter(memstore, stack)
        memory, opening = _timed(partial(memstore.open, asked["address"], seed=1, **asked["settings"]))
        stack.enter_context(memory)
        trainer = Trainer(memstore, memory, asked["domains"])
        trainer.fill(asked["rows"])
        _, first_draw = _timed(trainer.draw)
        print(json.dumps([hasattr(memory, "fold"), opening, first_draw]), flush=True)
        for line in sys.stdin:
            work, before = trainer.calls[json.loads(line)](), folds()
            print(json.dumps("prepared"), flush=True)
            sys.stdin.readline()
            _, cost = _timed(work)
            print(json.dumps([*cost, folds() - before]), flush=True)


if __name__ == "__main__":
    answer()
