"""The main job. It learns a dataset task by task, in one pass, with replay. A kill at any point loses nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import URL

from memstore.config import check_int
from memstore.errors import ConfigError, StoreUnavailable
from memstore.learner.config import OnlineLearnerConfig
from memstore.learner.example import OnlineExample
from memstore.learner.job.data import Dataset, Task, load_dataset, split_tasks, stream
from memstore.learner.job.metrics import accuracy, average_accuracy, backward_transfer, forgetting
from memstore.learner.learner import MemoryOnlineLearner
from memstore.learner.models.mlp import MLP
from memstore.learner.state import LearnerState
from memstore.memory import EpisodicMemory
from memstore.memory import open as open_memory
from memstore.opening import drop

NEW_PER_STEP = 10
"""Each step learns this many new examples."""
CHECKPOINT = "train"
"""The checkpoint of a run has this name."""


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """The progress of a run.

    Attributes
    ----------
    step, steps : int
        Committed steps, and the steps of the whole run.
    task : str
        Domain of the last step. Before the first step, domain of the next one.
    loss : float or None
        Mean loss of the last step, over new and replayed examples. None before the first step.
    accuracy : float
        Present accuracy, 0 to 1, on the test examples of all tasks met so far.
    buffer_size : int
        Live episodes in the memory.
    draws : dict of str to int
        Replayed examples of each domain since the run began, restarts included.
    """

    step: int
    steps: int
    task: str
    loss: float | None
    accuracy: float
    buffer_size: int
    draws: dict[str, int]


@dataclass(frozen=True, slots=True)
class TrainResult:
    """The result of a finished run.

    Attributes
    ----------
    dataset : str
        Name of the dataset, or path of its file.
    replay : bool
        False for the run without replay.
    tasks : tuple of str
        Domains in the order of the stream.
    matrix : tuple of tuple of float
        ``matrix[t][l]`` is the test accuracy, 0 to 1, on task l after training on tasks 0 .. t.
    steps : int
        Steps of the whole run.
    draws : dict of str to int
        Replayed examples of each domain.
    digest : str
        SHA-256 of the final weights, as hex.
    resumed_at : int
        Step from which this call continued the run; equal to ``steps`` if the run was finished already.
    """

    dataset: str
    replay: bool
    tasks: tuple[str, ...]
    matrix: tuple[tuple[float, ...], ...]
    steps: int
    draws: dict[str, int]
    digest: str
    resumed_at: int = 0

    @property
    def accuracy(self) -> dict[str, float]:
        """Final test accuracy of each task."""
        return dict(zip(self.tasks, self.matrix[-1], strict=True))

    @property
    def average(self) -> float:
        """Mean of the final accuracies over the tasks."""
        return average_accuracy(self.matrix)

    @property
    def forgetting(self) -> float:
        """`metrics.FORGETTING_FORMULA`."""
        return forgetting(self.matrix)

    @property
    def backward_transfer(self) -> float:
        """`metrics.BACKWARD_TRANSFER_FORMULA`."""
        return backward_transfer(self.matrix)

    @property
    def already_finished(self) -> bool:
        """True if this call found the run finished and trained nothing."""
        return self.resumed_at == self.steps

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain dicts, lists and numbers."""
        derived = ("accuracy", "average", "forgetting", "backward_transfer")
        return asdict(self) | {name: getattr(self, name) for name in derived}


def training_config(preset: str | None = None, **settings: Any) -> OnlineLearnerConfig:
    """Return the settings of a training run: those made for the digits, or a preset, with some of them replaced.

    Parameters
    ----------
    preset : str, optional
        A preset of `OnlineLearnerConfig`. Its learning rate and momentum are not used, because they hardly move the
        weights in the few steps of one short pass.
    **settings
        Settings of `OnlineLearnerConfig` to replace. None leaves a setting as it is.
    """
    base = DIGITS
    if preset is not None:
        base = replace(OnlineLearnerConfig.preset(preset), learning_rate=DIGITS.learning_rate, momentum=DIGITS.momentum)
    return replace(base, **{name: value for name, value in settings.items() if value is not None})


DIGITS = OnlineLearnerConfig(
    learning_rate=0.15,
    momentum=0.6,
    batch_size=2 * NEW_PER_STEP,
    replay_ratio=1.0,
    replay_strategy="uniform",
    eviction="reservoir",
    capacity=200,
    beta=0.0,
)
"""These settings suit the digits: a uniform sample of 200 examples, and one replayed example for each new one."""


def run_training(
    db: str | os.PathLike[str] | URL,
    config: OnlineLearnerConfig | None = None,
    *,
    dataset: str | os.PathLike[str] = "digits",
    buffer: str = "default",
    fresh: bool = False,
    on_progress: Callable[[TrainProgress], None] | None = None,
) -> TrainResult:
    """Train through the memory. A run that was begun before continues after its last commit.

    Every step is one commit of new episodes, replayed losses, weights and the position in the stream. A run that was
    killed and continued ends with the same weights, bit for bit, as one that was not.

    Parameters
    ----------
    db : path or URL
        Address of the memory. It is created if it does not exist.
    config : OnlineLearnerConfig, optional
        Default: `training_config()`. The dataset decides the width of inputs and outputs, and a checkpoint is written
        at every step.
    dataset : str or path
        See `load_dataset`.
    buffer : str
        Name of the buffer in the database.
    fresh : bool
        True starts a new run: a buffer that holds a training run is dropped first.
    on_progress : callable, optional
        Function that is called with the state before the first step, and after every step.

    Raises
    ------
    ConfigError
        The database holds a run with other options, or episodes that are not of a training run.
    """
    data = load_dataset(dataset)
    config = _fit_to_dataset(config or DIGITS, data)
    if fresh:
        _discard(db, buffer)
    with _open(db, buffer, config) as memory:
        model = config.default_model()
        learner = MemoryOnlineLearner(memory, model, config)
        _resume(learner, data)
        return _Run(data, learner, model, config.seed).finish(on_progress)


def run_baseline(
    config: OnlineLearnerConfig | None = None, *, dataset: str | os.PathLike[str] = "digits", repeats: int = 1
) -> TrainResult:
    """Train the same model on the same stream without replay and without a database.

    Parameters
    ----------
    config : OnlineLearnerConfig, optional
        Default: `training_config()`.
    dataset : str or path
        See `load_dataset`.
    repeats : int
        Gradient steps on every batch, one after the other.

    Raises
    ------
    ConfigError
        ``repeats`` is below 1, or there is no such dataset.
    """
    repeats = check_int("repeats", repeats, minimum=1)
    data = load_dataset(dataset)
    config = _fit_to_dataset(config or DIGITS, data)
    tasks = split_tasks(data, config.seed)
    model = config.default_model()
    steps = stream(tasks, NEW_PER_STEP)
    matrix = []
    for step, (task, rows) in enumerate(steps, start=1):
        for start in [*range(0, len(rows), config.batch_size)] * repeats:
            chunk = rows[start : start + config.batch_size]
            model.step(data.x[chunk], data.y[chunk])
        if step == len(steps) or steps[step][0] != task:
            matrix.append(tuple(_accuracies(model, data, tasks)))
    return TrainResult(
        data.name, False, tuple(task.domain for task in tasks), tuple(matrix), len(steps), {}, model.digest()
    )


class _Run:
    """One run: the stream, and the learner. The learner's notes hold the position and the accuracies so far."""

    def __init__(self, data: Dataset, learner: MemoryOnlineLearner, model: MLP, seed: int) -> None:
        self.data = data
        self.learner = learner
        self.model = model
        self.tasks = split_tasks(data, seed)
        self.stream = stream(self.tasks, NEW_PER_STEP)

    def finish(self, on_progress: Callable[[TrainProgress], None] | None) -> TrainResult:
        """Train the remaining steps and return the result."""
        notes = self.learner.notes
        found: int = notes["position"]
        if on_progress:
            on_progress(self._progress(None))
        while True:
            self._measure()
            if notes["position"] == len(self.stream):
                break
            loss = self._step()
            if on_progress:
                on_progress(self._progress(loss))
        return TrainResult(
            dataset=self.data.name,
            replay=True,
            tasks=tuple(task.domain for task in self.tasks),
            matrix=tuple(tuple(row) for row in notes["matrix"]),
            steps=len(self.stream),
            draws=dict(self.learner.stats.replay_counts),
            digest=self.model.digest(),
            resumed_at=found,
        )

    def _step(self) -> float | None:
        """Learn the next batch of the stream; its commit includes the notes."""
        task, rows = self.stream[self.learner.notes["position"]]
        self.learner.notes["position"] += 1
        return self.learner.learn_batch(
            [
                OnlineExample(str(row), self.data.x[row], self.data.y[row], self.tasks[task].domain)
                for row in rows.tolist()
            ]
        ).loss

    def _measure(self) -> None:
        """Record the accuracies after a task, unless they are recorded. A kill may come between step and record."""
        notes = self.learner.notes
        position = notes["position"]
        done = self.stream[position][0] if position < len(self.stream) else len(self.tasks)
        if len(notes["matrix"]) < done:
            notes["matrix"].append(_accuracies(self.model, self.data, self.tasks))
            self.learner.save_state(CHECKPOINT)

    def _progress(self, loss: float | None) -> TrainProgress:
        position = self.learner.notes["position"]
        task = self.stream[position - 1 if loss is not None or position == len(self.stream) else position][0]
        met = np.concatenate([item.test for item in self.tasks[: task + 1]])
        return TrainProgress(
            step=position,
            steps=len(self.stream),
            task=self.tasks[task].domain,
            loss=loss,
            accuracy=accuracy(self.model.predict(self.data.x[met]), self.data.y[met]),
            buffer_size=len(self.learner.memory),
            draws=dict(self.learner.stats.replay_counts),
        )


def _accuracies(model: MLP, data: Dataset, tasks: Sequence[Task]) -> list[float]:
    return [accuracy(model.predict(data.x[task.test]), data.y[task.test]) for task in tasks]


def _fit_to_dataset(config: OnlineLearnerConfig, data: Dataset) -> OnlineLearnerConfig:
    """Return the configuration with the dataset's widths, classification, and a checkpoint in every commit."""
    layers = (data.x.shape[1], *config.layers[1:-1], len(data.classes))
    return replace(config, layers=layers, head="classification", checkpoint_every=1, checkpoint_name=CHECKPOINT)


def _open(db: str | os.PathLike[str] | URL, buffer: str, config: OnlineLearnerConfig) -> EpisodicMemory:
    """Open the memory of a run with its stored settings, so that `_resume` can name those that differ. Or make one."""
    try:
        found = open_memory(db, buffer=buffer, seed=config.seed, create=False)
    except (ConfigError, StoreUnavailable):
        return config.open_memory(db, buffer=buffer)
    if CHECKPOINT in found.checkpoints():
        return found
    found.close()
    return config.open_memory(db, buffer=buffer)


def _discard(db: str | os.PathLike[str] | URL, buffer: str) -> None:
    """Drop the buffer of a former run; refuse a buffer that holds other episodes."""
    try:
        with open_memory(db, buffer=buffer, create=False) as memory:
            foreign = len(memory) > 0 and CHECKPOINT not in memory.checkpoints()
    except (ConfigError, StoreUnavailable):
        return
    if foreign:
        raise ConfigError(
            f"--fresh would delete the buffer {buffer!r}, which holds episodes that are not of a training run; "
            "choose another file"
        )
    drop(db, buffer)


def _resume(learner: MemoryOnlineLearner, data: Dataset) -> None:
    """Load the last commit of this run into the learner, or begin a run.

    Raises
    ------
    ConfigError
        The database holds a run with other settings or data, or episodes and no run.
    """
    memory = learner.memory
    # The content and the file name identify the dataset. The file may move, but it must not change.
    dataset = f"{Path(data.name).name} ({data.digest()[:16]})"
    if CHECKPOINT not in memory.checkpoints():
        if len(memory):
            raise ConfigError(f"the database holds {len(memory)} episodes, but no training run; choose another file")
        learner.notes = {"options": {"dataset": dataset}, "position": 0, "matrix": []}
        learner.save_state(CHECKPOINT)
        return
    found = LearnerState.from_dict(CHECKPOINT, memory.load_checkpoint(CHECKPOINT))
    differing = found.config.differences(learner.config)
    stored = found.notes.get("options", {}).get("dataset")
    if stored != dataset:
        differing["dataset"] = stored, dataset
    if differing:
        name, (theirs, ours) = next(iter(differing.items()))
        raise ConfigError(
            f"the run in the database has --{name.replace('_', '-')} {theirs}, this command has {ours}; give the same "
            "options to continue it, or --fresh to start a new run"
        )
    learner.load_state(CHECKPOINT)
