"""The arms of split-digits: how each is trained, and which numbers it returns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments.crash import Accuracies, train_until_killed, without_episodes
from memstore.learner.config import OnlineLearnerConfig
from memstore.learner.job.data import load_dataset, split_tasks, stream
from memstore.learner.job.metrics import accuracy
from memstore.learner.job.train import (
    NEW_PER_STEP,
    TrainProgress,
    TrainResult,
    run_baseline,
    run_training,
    training_config,
)

FINE_TUNE = "fine-tune"
SAME_SAMPLES = "same-samples"
RESERVOIR = "reservoir-200"
BALANCED = "balanced-200"
FIFO = "fifo-200"
LOSS = "loss-200"
MIR = "mir-200"
EWC_REPLAY = "reservoir-200+ewc"
EWC_ALONE = "ewc"
JOINT = "joint"
JOINT_SAME_SAMPLES = "joint, same samples"
RESUMED = "killed, resumed"
EMPTIED = "killed, emptied"

EWC_LAMBDA, EWC_ALONE_LAMBDA = 0.1, 10_000.0
"""Strength of elastic weight consolidation beside replay and alone.

These values had the best final average accuracy on seeds 100 .. 119, which no trial uses, among 0, 0.1, 0.3, 1, 3 and
among 1, 10 ... 10 ** 5. Beside replay, 0 .. 3 do not differ by more than chance.
"""

_EWC = {"ewc": True, "consolidation_interval": 100}
REPLAY: dict[str, dict[str, Any]] = {
    "reservoir-50": {"capacity": 50},
    "reservoir-100": {"capacity": 100},
    RESERVOIR: {},
    BALANCED: {"replay_strategy": "domain_balanced", "eviction": "largest_domain"},
    FIFO: {"eviction": "fifo"},
    LOSS: {"replay_strategy": "prioritized_loss", "eviction": "lowest_loss"},
    "reservoir-loss-200": {"replay_strategy": "prioritized_loss", "eviction": "reservoir_loss"},
    MIR: {"retrieval": "mir"},
    EWC_REPLAY: {**_EWC, "ewc_lambda": EWC_LAMBDA},
    EWC_ALONE: {**_EWC, "ewc_lambda": EWC_ALONE_LAMBDA, "replay_ratio": 0.0},
}
"""Settings in which each arm with a memory differs from `training_config`. The number in a name is the capacity."""

TWICE = (SAME_SAMPLES, JOINT_SAME_SAMPLES)
"""Arms that train twice on every batch, so that they see as many examples as replay does."""
ARMS = (FINE_TUNE, SAME_SAMPLES, *REPLAY, JOINT, JOINT_SAME_SAMPLES, RESUMED, EMPTIED)

CURVE_EVERY = 4
"""Steps between two points of a curve."""
KILLED_TASK = 2
"""Number of the task, from 0, in which a run is killed."""


def train_arm(arm: str, seed: int, folder: Path) -> dict[str, Any]:
    """Train one arm, with its databases in ``folder``.

    Returns
    -------
    dict
        ``average`` and ``final`` accuracies and the weights' ``digest``. Arms that meet the tasks in order also have
        ``matrix``, ``forgetting`` and ``backward_transfer``. Arms with a memory also have its ``capacity``, the
        ``curve`` of accuracies over steps, and the step at which they were ``killed``.
    """
    config = training_config(seed=seed, **REPLAY.get(arm, {}))
    repeats = 2 if arm in TWICE else 1
    if arm in (JOINT, JOINT_SAME_SAMPLES):
        return _train_jointly(config, repeats)
    if arm in (FINE_TUNE, SAME_SAMPLES):
        return _numbers(run_baseline(config, repeats=repeats))
    if arm in (RESUMED, EMPTIED):
        return _train_and_kill(config, folder, emptied=arm == EMPTIED)
    return _train_through_memory(folder / "run.db", config, {})


def _train_jointly(config: OnlineLearnerConfig, repeats: int) -> dict[str, Any]:
    """Train on all tasks at once: the same examples in random order, in as many batches."""
    data = load_dataset("digits")
    tasks = split_tasks(data, config.seed)
    rows = np.random.default_rng(config.seed).permutation(np.concatenate([task.train for task in tasks]))
    model = config.default_model()
    for chunk in np.array_split(rows, len(stream(tasks, NEW_PER_STEP))):
        for _ in range(repeats):
            model.step(data.x[chunk], data.y[chunk])
    final = [accuracy(model.predict(data.x[task.test]), data.y[task.test]) for task in tasks]
    return {"average": float(np.mean(final)), "final": final, "digest": model.digest()}


def _train_and_kill(config: OnlineLearnerConfig, folder: Path, *, emptied: bool) -> dict[str, Any]:
    """Kill a run in the middle of its third task and finish it, with its memory or with an empty one."""
    steps = stream(split_tasks(load_dataset("digits"), config.seed), NEW_PER_STEP)
    during = [step for step, (task, _) in enumerate(steps) if task == KILLED_TASK]
    db = folder / "run.db"
    curve = train_until_killed(db, config, during[len(during) // 2])
    if emptied:
        db = without_episodes(db, folder / "empty.db", config)
    return _train_through_memory(db, config, curve)


def _train_through_memory(db: Path, config: OnlineLearnerConfig, curve: Accuracies) -> dict[str, Any]:
    result = run_training(db, config, on_progress=_recorder(curve))
    thinned = [[step, curve[step]] for step in sorted(curve) if step and step % CURVE_EVERY == 0]
    return {**_numbers(result), "capacity": config.capacity, "curve": thinned, "killed": result.resumed_at}


def _recorder(curve: Accuracies) -> Callable[[TrainProgress], None]:
    def record(progress: TrainProgress) -> None:
        curve[progress.step] = progress.accuracy

    return record


def _numbers(result: TrainResult) -> dict[str, Any]:
    return {
        "average": result.average,
        "final": list(result.accuracy.values()),
        "digest": result.digest,
        "matrix": [list(row) for row in result.matrix],
        "forgetting": result.forgetting,
        "backward_transfer": result.backward_transfer,
    }
