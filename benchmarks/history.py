"""The cost of the history in an update, of its answers with five events an episode, and of draws with a condition."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

import memstore
from benchmarks.bench import Bench
from benchmarks.workload import CACHE_BYTES, Workload, open_memory
from memstore import col

EVENTS = 5
"""Per episode."""

UPDATED = 25_000
LEVELS = 100
CONDITIONS: dict[str, memstore.Condition | None] = {
    "no condition": None,
    "level = 7, 1 in 100 passes": col.level == 7,
    "level >= 50, half passes": col.level >= 50,
    "one domain of four": col.domain == "algebra",
}
ANSWERS: dict[str, Callable[[memstore.EpisodicMemory, int], Any]] = {
    "hardest(10)": lambda memory, _: memory.hardest(10),
    "most_replayed(10)": lambda memory, _: memory.most_replayed(10),
    "never_replayed(10)": lambda memory, _: memory.never_replayed(10),
    "forgotten(10)": lambda memory, _: memory.forgotten(10),
    "loss_trend()": lambda memory, _: memory.loss_trend(),
    "replay_share()": lambda memory, _: memory.replay_share(),
    "history(episode=...)": lambda memory, episode: memory.history(episode=episode),
    "history(steps=..., limit=1000)": lambda memory, _: memory.history(steps=1, limit=1000),
    "history(domain=..., limit=1000)": lambda memory, _: memory.history(domain="algebra", limit=1000),
}
WITH, WITHOUT = "update and its history", "update, history off"


def history(bench: Bench) -> None:
    """Measure updates with and without history, ready-made answers, and draws with conditions."""
    labels = ["history", "history-off"]
    with open_memory(bench.place.address(labels[0]), cache_bytes=CACHE_BYTES, capacity=2 * bench.rows) as memory:
        _fill(memory, bench)
    bench.place.copy(*labels)
    with open_memory(bench.place.address(labels[1]), cache_bytes=CACHE_BYTES) as off:
        off.configure(history=None)
        with open_memory(bench.place.address(labels[0]), cache_bytes=CACHE_BYTES) as memory:
            _updates(bench, memory, off)
            _draws(bench, memory)
            _answers(bench, memory)
    bench.place.drop(labels)


def _fill(memory: memstore.EpisodicMemory, bench: Bench) -> None:
    workload, done = Workload(), 0
    task = bench.progress.add_task(
        f"fill {bench.rows:,} rows, {EVENTS * bench.rows:,} events", total=EVENTS * bench.rows
    )
    for episodes in workload.chunks(bench.rows):
        level = (np.arange(done, done + len(episodes)) % LEVELS).tolist()
        memory.extend(episodes.payload, domain=episodes.domain, loss=episodes.loss, level=level)
        done += len(episodes)
    for step, start in enumerate(range(0, EVENTS * bench.rows, UPDATED)):
        count = min(UPDATED, EVENTS * bench.rows - start)
        ids = workload.rng.integers(1, bench.rows + 1, count)
        memory.update(ids, loss=workload.losses(count), step=step)
        bench.progress.advance(task, count)


def _updates(bench: Bench, memory: memstore.EpisodicMemory, off: memstore.EpisodicMemory) -> None:
    def prepare() -> tuple[Any, Any]:
        batch = memory.sample(bench.batch, beta=0.4)
        return batch, bench.workload.drifted(batch.loss)

    contenders: dict[str, Callable[[tuple[Any, Any]], Any]] = {
        WITHOUT: lambda given: off.update(given[0], loss=given[1], step=1),
        WITH: lambda given: memory.update(given[0], loss=given[1], step=1),
    }
    bench.measure("history, update", bench.batch, prepare, contenders)


def _draws(bench: Bench, memory: memstore.EpisodicMemory) -> None:
    """In a training loop: an update comes before each draw, as in one."""

    def prepare() -> int:
        batch = memory.sample(bench.batch)
        memory.update(batch, loss=bench.workload.drifted(batch.loss))
        return bench.batch

    contenders: dict[str, Callable[[int], Any]] = {
        name: functools.partial(_draw, memory, condition) for name, condition in CONDITIONS.items()
    }
    bench.measure("history, draw", bench.batch, prepare, contenders)


def _draw(memory: memstore.EpisodicMemory, condition: memstore.Condition | None, count: int) -> None:
    memory.sample(count, where=condition)


def _answers(bench: Bench, memory: memstore.EpisodicMemory) -> None:
    contenders: dict[str, Callable[[int], Any]] = {
        name: functools.partial(answer, memory) for name, answer in ANSWERS.items()
    }
    bench.measure(
        "history, answer", 1, lambda: int(bench.workload.rng.integers(1, bench.rows + 1)), contenders, most=20
    )
