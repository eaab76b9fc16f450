"""Replay on a stream in which half the classes are rare: the effect of prioritized and balanced draws, and of noise.

After Schaul et al. 2016, "Prioritized Experience Replay" (arXiv:1511.05952), section 6 and appendix B.3, on digits
instead of MNIST.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

import memstore
from experiments.experiment import Finding, Report, Trial
from experiments.summary import Interval, compare, mean_interval
from memstore.figures.figure import Figure, Series, TableData
from memstore.learner import MLP, Dataset, load_dataset
from memstore.learner.job.metrics import accuracy

Ints = NDArray[np.int64]

CLASSES, RARE_CLASSES = 10, 5
RARE_SHARE = 0.05
"""Share of the examples of a rare class that is kept."""
TEST_PER_CLASS = 44
"""Test examples of each class."""
FLIPPED_SHARE = 0.2
"""Share of the training labels that the noisy arms flip."""
HARDEST_SHARE = 0.1
"""Share of the episodes that count as the hardest."""

LAYERS, LEARNING_RATE, MOMENTUM = (64, 100, CLASSES), 0.15, 0.6
"""The step size of `memstore train`; of 0.02, 0.05, 0.1 and 0.15 uniform draws do best with it (seeds 100 .. 105)."""
BATCH, STEPS, MEASURE_EVERY = 20, 400, 50
"""Size of a batch, steps of a trial, and steps between two measurements."""


@dataclass(frozen=True, slots=True)
class Arm:
    """How batches are drawn, whether a loss is divided by the share of its class, and the share of wrong labels."""

    strategy: memstore.Strategy
    reweighted: bool = False
    flipped: float = 0.0


ARMS = {
    "uniform": Arm(memstore.Uniform()),
    "prioritized": Arm(memstore.PrioritizedLoss(1.0)),
    "balanced": Arm(memstore.DomainBalanced()),
    "reweighted": Arm(memstore.Uniform(), reweighted=True),
    "uniform-flipped": Arm(memstore.Uniform(), flipped=FLIPPED_SHARE),
    "prioritized-flipped": Arm(memstore.PrioritizedLoss(1.0), flipped=FLIPPED_SHARE),
}
CLEAN = tuple(name for name, arm in ARMS.items() if not arm.flipped)
FLIPPED = tuple(name for name, arm in ARMS.items() if arm.flipped)


@dataclass(frozen=True, slots=True, eq=False)
class Split:
    """Training rows with few of the classes 0 .. 4 and some labels flipped, and a balanced test set.

    Attributes
    ----------
    train, test : int64 arrays
        Row numbers of the dataset; the training rows are in random order.
    label : int64 array, shape (len(train),)
        Labels that the learner is given.
    flipped : bool array, shape (len(train),)
        True where the label is not the true one.
    """

    train: Ints
    test: Ints
    label: Ints
    flipped: NDArray[np.bool_]

    @classmethod
    def of(cls, data: Dataset, flipped_share: float, rng: np.random.Generator) -> Split:
        """Draw a split."""
        train, test = [], []
        for label in range(CLASSES):
            rows = rng.permutation(np.flatnonzero(data.y == label))
            kept = rows[TEST_PER_CLASS:]
            test.append(rows[:TEST_PER_CLASS])
            train.append(kept[: round(RARE_SHARE * len(kept))] if label < RARE_CLASSES else kept)
        rows = rng.permutation(np.concatenate(train))
        flipped = np.zeros(len(rows), bool)
        flipped[rng.choice(len(rows), round(flipped_share * len(rows)), replace=False)] = True
        # Each of the other classes has the same chance.
        others = (data.y[rows] + rng.integers(1, CLASSES, len(rows))) % CLASSES
        return cls(rows, np.concatenate(test), np.where(flipped, others, data.y[rows]), flipped)


def train(
    memory: memstore.EpisodicMemory,
    model: MLP,
    class_weight: NDArray[np.float64],
    steps: int,
    test: tuple[NDArray[np.float32], Ints],
) -> list[float]:
    """Learn from batches drawn from the memory, and write their losses back; return accuracies on the test set.

    They are measured every ``MEASURE_EVERY`` steps. All classes have the same weight, as in the test set.
    """
    accuracies = []
    for step in range(1, steps + 1):
        batch = memory.sample(BATCH)
        losses = model.step(batch["x"], batch["y"], class_weight[batch["y"]])
        memory.update(batch, loss=losses, step=step)
        if step % MEASURE_EVERY == 0:
            accuracies.append(accuracy(model.predict(test[0]), test[1]))
    return accuracies


class ImbalancedDigitsExperiment:
    """The size of a trial is its number of steps."""

    name: ClassVar[str] = "imbalanced-digits"
    title: ClassVar[str] = "Digits with the classes 0 to 4 cut to 5 %, tested on all classes alike"
    source: ClassVar[str] = "Schaul et al. 2016, Prioritized Experience Replay, arXiv:1511.05952, 6 and app. B.3"

    def trials(self, *, quick: bool, seeds: int | None) -> list[Trial]:
        """Return every arm for each of 20 seeds; if quick, of 3 seeds with half the steps."""
        steps = STEPS // 2 if quick else STEPS
        numbers = range(seeds if seeds is not None else 3 if quick else 20)
        return [Trial(arm, seed, steps) for arm in ARMS for seed in numbers]

    def run(self, trial: Trial, folder: Path) -> dict[str, Any]:
        """Return accuracies, the replays of each class, and the share of flipped labels among the hardest episodes.

        The split and the first weights depend on the seed alone, so that trials of one seed are pairs.
        """
        arm = ARMS[trial.arm]
        data = load_dataset("digits")
        split = Split.of(data, arm.flipped, np.random.default_rng(trial.seed))
        counts = np.bincount(split.label, minlength=CLASSES)
        class_weight = len(split.label) / (CLASSES * counts) if arm.reweighted else np.ones(CLASSES)
        model = MLP(LAYERS, learning_rate=LEARNING_RATE, momentum=MOMENTUM, seed=trial.seed)
        x, y = data.x[split.test], data.y[split.test]
        with memstore.open(folder / "memory.db", strategy=arm.strategy, seed=trial.seed) as memory:
            examples = {"x": data.x[split.train], "y": split.label}
            ids = memory.extend(examples, domain=[str(label) for label in split.label])
            accuracies = train(memory, model, class_weight, trial.size, (x, y))
            stored = memory.metadata(ids)
        return {
            "accuracies": accuracies,
            "accuracy": accuracies[-1],
            "rare_accuracy": accuracy(model.predict(x[y < RARE_CLASSES]), y[y < RARE_CLASSES]),
            **_looked_up(stored, split),
        }

    def report(self, results: Mapping[Trial, Mapping[str, Any]]) -> Report:
        """Return the accuracies, the draws, the cost of noise, and the findings on the published claims."""
        measured = _Measured(results)
        return Report(
            tables=(_accuracy_table(measured), _noise_table(measured)),
            figures=(_bars(measured), _curves(measured)),
            findings=_findings(measured),
            notes=(
                f"All arms take the same number of steps, of {BATCH} examples each, with the same step size: the one "
                "that suits uniform draws best.",
                "Draws are prioritized without importance weights (alpha 1, beta 0), as in the paper.",
                "Flipped labels make the rare classes less rare: the wrong labels fall on all classes alike.",
                "Losses are as of the last replay. Differences are between trials of the same seed.",
            ),
        )


def _looked_up(stored: list[memstore.ReplayMetadata], split: Split) -> dict[str, float]:
    """Return the memory's record: which episodes were replayed, and which were hardest when last replayed."""
    # The memory does not know how hard an episode is that was never replayed.
    losses = np.array([-1.0 if episode.loss is None else episode.loss for episode in stored])
    replays = np.array([episode.replay_count for episode in stored])
    hardest = np.argsort(-losses, kind="stable")[: round(HARDEST_SHARE * len(losses))]
    rare = split.label < RARE_CLASSES
    return {
        "rare_share": float(rare.mean()),
        "rare_draws": float(replays[rare].sum() / replays.sum()),
        "flipped_share": float(split.flipped.mean()),
        "flipped_among_hardest": float(split.flipped[hardest].mean()),
    }


class _Measured:
    """Results as arrays over the seeds."""

    def __init__(self, results: Mapping[Trial, Mapping[str, Any]]) -> None:
        self._results = results
        self._trials = sorted(results)

    def __call__(self, arm: str, what: str) -> NDArray[np.float64]:
        """Return one row for each seed, in the order of the seeds."""
        return np.array([self._results[trial][what] for trial in self._trials if trial.arm == arm])

    def interval(self, arm: str, what: str) -> Interval:
        """Return the mean over seeds."""
        return mean_interval(self(arm, what))

    def curve(self, arm: str) -> list[Interval]:
        """Return the mean accuracy over seeds, at each time it was measured."""
        return [mean_interval(column) for column in self(arm, "accuracies").T]


def _accuracy_table(measured: _Measured) -> TableData:
    columns = {
        "accuracy, all classes": "accuracy",
        "accuracy, rare classes": "rare_accuracy",
        "rare classes, of draws": "rare_draws",
        "of episodes": "rare_share",
    }
    return TableData(
        title="True labels: mean and 95 % interval over seeds",
        columns=("draws", *columns),
        rows=tuple((arm, *(_percent(measured.interval(arm, what)) for what in columns.values())) for arm in CLEAN),
    )


def _noise_table(measured: _Measured) -> TableData:
    columns = {
        "accuracy, all classes": "accuracy",
        "accuracy, rare classes": "rare_accuracy",
        "flipped, of the hardest 10 %": "flipped_among_hardest",
        "of episodes": "flipped_share",
    }
    return TableData(
        title=f"{100 * FLIPPED_SHARE:.0f} % of the labels flipped: mean and 95 % interval over seeds",
        columns=("draws", *columns),
        rows=tuple((arm, *(_percent(measured.interval(arm, what)) for what in columns.values())) for arm in FLIPPED),
    )


def _bars(measured: _Measured) -> Figure:
    bars = {"all classes": "accuracy", "rare classes": "rare_accuracy"}
    return Figure(
        name="accuracy",
        title="Balanced test accuracy when half the classes are rare",
        x_label="draws",
        y_label="accuracy",
        kind="bars",
        series=tuple(_series(label, ARMS, [measured.interval(arm, bars[label]) for arm in ARMS]) for label in bars),
    )


def _curves(measured: _Measured) -> Figure:
    curves = {arm: measured.curve(arm) for arm in CLEAN}
    return Figure(
        name="learning",
        title="Balanced test accuracy while learning",
        x_label="steps",
        y_label="accuracy",
        kind="lines",
        series=tuple(
            _series(arm, [float(MEASURE_EVERY * (i + 1)) for i in range(len(curve))], curve)
            for arm, curve in curves.items()
        ),
    )


def _series(label: str, x: Iterable[str | float], y: list[Interval]) -> Series:
    known = all(interval.n > 1 for interval in y)
    low, high = (tuple(getattr(interval, end) for interval in y) if known else () for end in ("low", "high"))
    return Series(label, tuple(x), tuple(interval.mean for interval in y), low, high)


def _findings(measured: _Measured) -> tuple[Finding, ...]:
    accuracies = {arm: measured(arm, "accuracy") for arm in ARMS}
    gain = {arm: float(np.mean(accuracies[arm] - accuracies["uniform"])) for arm in CLEAN}
    closed = gain["prioritized"] / gain["reweighted"]
    return (
        _above("prioritized draws beat uniform ones", accuracies["prioritized"], accuracies["uniform"]),
        _above(
            "prioritized draws go to the rare classes more often than their share",
            measured("prioritized", "rare_draws"),
            measured("prioritized", "rare_share"),
        ),
        Finding(
            "prioritized draws close at least half of the gap between uniform and reweighted ones",
            f"{100 * closed:.0f} % of {100 * gain['reweighted']:.1f} points",
            gain["reweighted"] > 0 and closed >= 0.5,
        ),
        _above("balanced draws beat uniform ones", accuracies["balanced"], accuracies["uniform"]),
        _above(
            "flipped labels cost prioritized draws more accuracy than uniform ones",
            accuracies["prioritized"] - accuracies["prioritized-flipped"],
            accuracies["uniform"] - accuracies["uniform-flipped"],
        ),
        _above(
            "with prioritized draws the hardest 10 % are rich in flipped labels",
            measured("prioritized-flipped", "flipped_among_hardest"),
            measured("prioritized-flipped", "flipped_share"),
        ),
    )


def _above(claim: str, first: NDArray[np.float64], second: NDArray[np.float64]) -> Finding:
    """Return the finding that holds when the interval of the paired difference is above 0."""
    comparison = compare(first, second)
    difference = comparison.difference
    shown = f"{_percent(mean_interval(first))} against {_percent(mean_interval(second))}: "
    points = f"{100 * difference.mean:+.1f} points [{100 * difference.low:.1f} .. {100 * difference.high:.1f}]"
    return Finding(claim, f"{shown}{points}, p = {comparison.p:.2g}", difference.low > 0)


def _percent(interval: Interval) -> str:
    return f"{100 * interval.mean:.1f} % [{100 * interval.low:.1f} .. {100 * interval.high:.1f}]"
