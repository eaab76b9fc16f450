"""The cost of a durable learner: ten learning calls with a checkpoint in each, in the last, in none; and in RAM."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np

from benchmarks.bench import Bench
from memstore.learner import MemoryOnlineLearner, OnlineExample, OnlineLearnerConfig

CALLS = 10
"""Learning calls that are timed together."""
NEW = 10
"""New examples of each call."""
MODELS = {"8k parameters": (64, 100, 10), "85k parameters": (64, 256, 256, 10)}
CONFIG = OnlineLearnerConfig(
    learning_rate=0.01, momentum=0.6, batch_size=2 * NEW, replay_ratio=1.0, replay_strategy="uniform", capacity=2000
)
EVERY: dict[str, int | None] = {
    "a checkpoint in every call": 1,
    "a checkpoint in the last of ten": CALLS,
    "a commit in every call, no checkpoint": None,
}
IN_MEMORY = "the training alone, in memory"

Calls = list[list[OnlineExample]]


def learning(bench: Bench) -> None:
    """Measure ten learning calls of 10 new and 10 replayed examples, by how often they make a checkpoint."""
    for name, layers in MODELS.items():
        _measure(bench, f"learning, {name}", replace(CONFIG, layers=layers))


def _measure(bench: Bench, case: str, config: OnlineLearnerConfig) -> None:
    labels = [f"learning-{number}" for number in range(len(EVERY))]
    with ExitStack() as stack:
        contenders: dict[str, Callable[[Calls], Any]] = {}
        for label, (name, every) in zip(labels, EVERY.items(), strict=True):
            memory = stack.enter_context(config.open_memory(bench.place.address(label)))
            learner = MemoryOnlineLearner(memory, config.default_model(), replace(config, checkpoint_every=every))
            contenders[name] = functools.partial(_learn, learner)
        contenders[IN_MEMORY] = _in_memory(config)
        bench.measure(case, CALLS * NEW, _calls(), contenders)
    bench.place.drop(labels)


def _learn(learner: MemoryOnlineLearner, calls: Calls) -> None:
    for call in calls:
        learner.learn_batch(call)


def _calls() -> Callable[[], Calls]:
    rng, numbers = np.random.default_rng(5), count()

    def prepare() -> Calls:
        x = rng.random((CALLS, NEW, 64), np.float32)
        y = rng.integers(0, 10, (CALLS, NEW))
        return [
            [OnlineExample(str(next(numbers)), x[call, row], y[call, row]) for row in range(NEW)]
            for call in range(CALLS)
        ]

    return prepare


def _in_memory(config: OnlineLearnerConfig) -> Callable[[Calls], None]:
    """Return the same steps on as many examples, with replayed examples from a ring of arrays."""
    model, rng = config.default_model(), np.random.default_rng(6)
    kept_x, kept_y = np.zeros((config.capacity, 64), np.float32), np.zeros(config.capacity, np.int64)
    added = 0

    def run(calls: Calls) -> None:
        nonlocal added
        for call in calls:
            x, y = np.stack([example.input for example in call]), np.stack([example.target for example in call])
            chosen = rng.integers(0, max(1, min(added, config.capacity)), NEW)
            model.step(np.concatenate([x, kept_x[chosen]]), np.concatenate([y, kept_y[chosen]]))
            places = (added + np.arange(NEW)) % config.capacity
            kept_x[places], kept_y[places] = x, y
            added += NEW

    return run
