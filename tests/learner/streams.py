"""A small stream and learners that use every part of the state: what resumes is compared bit for bit."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import memstore
from memstore.learner import (
    BatchCount,
    ConsolidationScheduler,
    CurriculumConfig,
    MemoryOnlineLearner,
    Model,
    OnlineExample,
    OnlineLearnerConfig,
    TorchModel,
)

STEPS = 40
INPUTS, HIDDEN, CLASSES = 5, 8, 3

CONFIG = OnlineLearnerConfig(
    layers=(INPUTS, HIDDEN, CLASSES),
    optimizer="adam",
    learning_rate=0.02,
    batch_size=6,
    replay_ratio=1.5,
    replay_strategy="mixed",
    capacity=60,
    retrieval="mir",
    retrieval_candidates=12,
    ewc=True,
    ewc_lambda=50.0,
    ewc_samples=10,
    scheduler=ConsolidationScheduler(BatchCount(7)),
    integrate_steps=2,
    consolidate_similar=0.3,
    curriculum=CurriculumConfig(examples_per_level=30, min_examples_before_advance=10, advance_loss_threshold=0.9),
    seed=5,
)


def require_torch() -> None:
    """Skip the test where there is no torch, unless one is required."""
    if not os.environ.get("MEMSTORE_REQUIRE_TORCH"):
        pytest.importorskip("torch")


def torch_model() -> TorchModel:
    """A network with state beyond its parameters: dropout draws, running statistics, Adam's averages."""
    import torch

    # Threads of an earlier process of the same machine may sum in another order.
    torch.set_num_threads(1)
    torch.manual_seed(3)
    module = torch.nn.Sequential(
        torch.nn.Linear(INPUTS, HIDDEN),
        torch.nn.BatchNorm1d(HIDDEN),
        torch.nn.ReLU(),
        torch.nn.Dropout(0.3),
        torch.nn.Linear(HIDDEN, CLASSES),
    )
    return TorchModel(module, torch.optim.AdamW(module.parameters(), lr=0.01, amsgrad=True))


def model(kind: str) -> Any:
    """A new model: ``"numpy"`` or ``"torch"``."""
    return torch_model() if kind == "torch" else CONFIG.default_model()


def batch(step: int, level: int) -> list[OnlineExample]:
    """The new examples of a step, a function of its number alone, and of the curriculum's level."""
    rng = np.random.default_rng(step)
    return [
        OnlineExample(
            f"{step}-{i}",
            rng.standard_normal(INPUTS).astype(np.float32),
            rng.integers(0, CLASSES),
            domain=f"d{step % 3}",
            level=level,
            tags=("odd",) if step % 2 else (),
        )
        for i in range(4)
    ]


def take_up(learner: MemoryOnlineLearner) -> int:
    """Bring the learner to the last checkpoint, or to the beginning; how many steps are done."""
    if learner.config.checkpoint_name in learner.memory.checkpoints():
        learner.load_state()
    else:
        learner.notes = {"step": 0}
    return int(learner.notes["step"])


def step(learner: MemoryOnlineLearner) -> int:
    """Learn the next batch; how many steps are done."""
    number: int = learner.notes["step"]
    learner.notes["step"] = number + 1
    learner.learn_batch(batch(number, learner.stats.current_level))
    return number + 1


def run(learner: MemoryOnlineLearner) -> None:
    """Take the run up and finish it."""
    done = take_up(learner)
    while done < STEPS:
        done = step(learner)
    learner.save_state()


def under_former_names(memory: memstore.EpisodicMemory, name: str) -> None:
    """Turn a learner's checkpoint into one of an earlier version: with ``strategy`` and ``alpha``."""
    state = memory.load_checkpoint(name)
    config = state["config"]
    config["strategy"] = config.pop("replay_strategy")
    config["alpha"] = config.pop("priority_alpha") or 0.6
    if "options" in state["notes"]:
        state["notes"]["options"].update(config)
    memory.save_checkpoint(name, state)


def facts(learner: MemoryOnlineLearner) -> dict[str, Any]:
    """Everything that must be equal after a resume: nothing but the times of the clock is left out."""
    memory = learner.memory
    live = memory.recall_temporal(0, 1e18)
    trained: Model = learner.model
    return {
        "model": _plain(trained.state_dict()),
        "progress": {
            "stats": learner.stats.to_dict(),
            "scheduler": learner.progress.scheduler.to_dict(),
            "curriculum": learner.progress.curriculum and learner.progress.curriculum.to_dict(),
            "ewc": learner.progress.ewc and _plain(learner.progress.ewc.to_dict()),
        },
        "notes": learner.notes["step"],
        "generator": memory.rng.bit_generator.state,
        "events": memory.stats().total_events,
        "inserted": memory.stats().total_inserted,
        "live": [
            (e.id, e.key, e.domain, e.level, e.tags, e.loss, e.replay_count, e.payload["input"].tobytes()) for e in live
        ],
    }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value


def opened(path: str | os.PathLike[str], kind: str, every: int | None = 1) -> MemoryOnlineLearner:
    """A learner on the memory at ``path``, made when it is not there yet; close its memory."""
    config = replace(CONFIG, checkpoint_every=every)
    return MemoryOnlineLearner(config.open_memory(path), model(kind), config)


def straight(path: str | os.PathLike[str], kind: str, every: int | None = 1) -> dict[str, Any]:
    """The facts of a run that nothing interrupts."""
    with opened(path, kind, every) as learner:
        run(learner)
        found = facts(learner)
    learner.memory.close()
    return found
