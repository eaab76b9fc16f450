"""Half the classes are rare: prioritized draws find them, and flipped labels come out on top."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memstore
from experiments.experiment import Trial
from experiments.imbalanced_digits import (
    ARMS,
    BATCH,
    CLASSES,
    FLIPPED_SHARE,
    HARDEST_SHARE,
    RARE_CLASSES,
    RARE_SHARE,
    TEST_PER_CLASS,
    ImbalancedDigitsExperiment,
    Split,
)
from memstore.learner import Dataset, load_dataset

EXPERIMENT = ImbalancedDigitsExperiment()
STEPS, SEEDS = 200, 2


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What three seeds of three arms measured, half as many steps as in the full run."""
    found: dict[str, list[dict[str, Any]]] = {"uniform": [], "prioritized": [], "prioritized-flipped": []}
    for arm, measured in found.items():
        for seed in range(SEEDS):
            measured.append(EXPERIMENT.run(Trial(arm, seed, STEPS), tmp_path_factory.mktemp("trial")))
    return found


def test_rare_classes_are_rare_in_training_alone(data: Dataset) -> None:
    split = Split.of(data, 0.0, np.random.default_rng(0))
    trained = np.bincount(data.y[split.train], minlength=CLASSES)
    left = np.bincount(data.y) - TEST_PER_CLASS
    assert np.bincount(data.y[split.test]).tolist() == [TEST_PER_CLASS] * CLASSES
    assert trained[RARE_CLASSES:].tolist() == left[RARE_CLASSES:].tolist()
    assert trained[:RARE_CLASSES].tolist() == [round(RARE_SHARE * n) for n in left[:RARE_CLASSES]]
    assert np.intersect1d(split.train, split.test).size == 0
    assert np.array_equal(split.label, data.y[split.train])


def test_flipped_labels_are_wrong_and_everything_else_is_the_same(data: Dataset) -> None:
    clean, noisy = (Split.of(data, share, np.random.default_rng(5)) for share in (0.0, FLIPPED_SHARE))
    assert np.array_equal(clean.train, noisy.train)
    assert np.array_equal(clean.test, noisy.test)
    assert noisy.flipped.sum() == round(FLIPPED_SHARE * len(noisy.train))
    assert np.array_equal(noisy.label != clean.label, noisy.flipped)
    assert noisy.label.min() >= 0
    assert noisy.label.max() < CLASSES


def test_balanced_draws_come_from_all_classes_alike(tmp_path: Path) -> None:
    EXPERIMENT.run(Trial("balanced", 0, 50), tmp_path)
    with memstore.open(tmp_path / "memory.db", create=False) as memory:
        episodes = memory.recall_temporal(0, 2**40)
    draws = Counter[str]()
    for episode in episodes:
        draws[episode.domain] += episode.replay_count
    assert draws == dict.fromkeys(map(str, range(CLASSES)), 50 * BATCH // CLASSES)


def test_prioritized_draws_go_to_the_rare_classes(results: Mapping[str, list[dict[str, Any]]]) -> None:
    for uniform, prioritized in zip(results["uniform"], results["prioritized"], strict=True):
        share = uniform["rare_share"]
        # Of so many draws; without replacement in a batch it is a little less.
        error = np.sqrt(share * (1 - share) / (STEPS * BATCH))
        assert abs(uniform["rare_draws"] - share) < 4 * error
        assert prioritized["rare_draws"] > share + 4 * error


def test_prioritized_draws_learn_the_rare_classes_sooner(results: Mapping[str, list[dict[str, Any]]]) -> None:
    rare = {arm: np.array([found["rare_accuracy"] for found in results[arm]]) for arm in results}
    tested = TEST_PER_CLASS * RARE_CLASSES
    # Two shares of the same test examples: that of their difference is at most that of two independent ones.
    error = np.sqrt(2 * 0.25 / tested / SEEDS)
    assert np.mean(rare["prioritized"] - rare["uniform"]) > 2 * error


def test_the_hardest_episodes_are_rich_in_flipped_labels(results: Mapping[str, list[dict[str, Any]]]) -> None:
    for found in results["prioritized-flipped"]:
        assert found["flipped_share"] == pytest.approx(FLIPPED_SHARE, abs=0.001)
        hardest = round(HARDEST_SHARE * 705)
        error = np.sqrt(FLIPPED_SHARE * (1 - FLIPPED_SHARE) / hardest)
        assert found["flipped_among_hardest"] > FLIPPED_SHARE + 4 * error
    assert all(found["flipped_among_hardest"] == 0 for found in results["prioritized"])


def holding(**changed: float) -> list[bool]:
    """Which findings hold, in order, when the arms come out so far above uniform draws at 0.7 and 0.6 with noise."""
    above = {"prioritized": 0.05, "balanced": 0.05, "reweighted": 0.06, "prioritized-flipped": -0.02} | changed
    results = {}
    for arm, settings in ARMS.items():
        for seed in range(4):
            accuracy = (0.6 if settings.flipped else 0.7) + above.get(arm, 0.0) + 0.001 * seed * len(arm)
            results[Trial(arm, seed, 100)] = {
                "accuracies": [0.5, accuracy],
                "accuracy": accuracy,
                "rare_accuracy": accuracy - 0.2,
                "rare_share": 0.05 + 0.001 * seed,
                "rare_draws": 0.05 + above.get("draws", 0.1),
                "flipped_share": settings.flipped,
                "flipped_among_hardest": above.get("hardest", 0.8) + 0.01 * seed,
            }
    report = EXPERIMENT.report(results)
    assert all(len(row) == len(table.columns) for table in report.tables for row in table.rows)
    assert [len(series.y) for figure in report.figures for series in figure.series] == [len(ARMS)] * 2 + [2] * 4
    return [finding.holds for finding in report.findings]


def test_findings_hold_only_where_they_do() -> None:
    assert holding() == [True] * 6
    worse = {"prioritized": -0.01, "prioritized-flipped": 0.01}
    assert holding(**worse, balanced=-0.01, draws=0.0, hardest=0.1) == [False] * 6
    assert holding(prioritized=0.02)[2] is False
    assert holding(reweighted=-0.01)[2] is False


def test_every_trial_is_listed_once() -> None:
    full, quick = (EXPERIMENT.trials(quick=quick, seeds=None) for quick in (False, True))
    assert len(full) == len(set(full)) == 20 * 6
    assert len(quick) == len(set(quick)) == 3 * 6
    assert quick[0].size < full[0].size
    assert {trial.seed for trial in EXPERIMENT.trials(quick=False, seeds=2)} == {0, 1}
