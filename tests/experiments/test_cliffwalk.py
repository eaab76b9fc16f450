"""The Blind Cliffwalk is that of the paper, and prioritized draws through the memory do what the paper says."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import mannwhitneyu

from experiments import tabular
from experiments.bias import BATCH, BIAS_ARMS, TRUE_VALUE, biased_value
from experiments.cliffwalk import ARMS, EPSILON, CliffwalkExperiment
from experiments.experiment import Finding, Trial
from experiments.tabular import Cliffwalk, Floats, Transition, updates_to_convergence

EXPERIMENT = CliffwalkExperiment()


def run(trial: Trial, folder: Path) -> dict[str, Any]:
    """Run a trial in a folder of its own."""
    own = folder / f"{trial.arm}-{trial.seed}-{trial.size}"
    own.mkdir()
    return EXPERIMENT.run(trial, own)


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, int], list[int]]:
    """Updates to convergence of each arm and size, three seeds."""
    folder = tmp_path_factory.mktemp("walks")
    return {
        (arm, n): [run(Trial(arm, seed, n), folder)["updates"] for seed in range(3)] for arm in ARMS for n in (4, 8)
    }


@pytest.mark.parametrize("n", [2, 3, 6])
def test_the_memory_holds_every_transition_of_every_action_sequence(n: int) -> None:
    walk = Cliffwalk.of(n, np.random.default_rng(0))
    assert len(walk.transitions) == 2 ** (n + 1) - 2
    assert sum(step.reward for step in walk.transitions) == 1
    # Half the sequences that reach a state go on, half end there.
    visits = Counter((step.state, step.next_state) for step in walk.transitions)
    for state in range(n):
        assert visits[state, n] == (2 if state == n - 1 else 2 ** (n - 1 - state))
        assert state == n - 1 or visits[state, state + 1] == 2 ** (n - 1 - state)


def test_the_right_action_takes_turns_and_the_order_is_random() -> None:
    walk, other = (Cliffwalk.of(5, np.random.default_rng(seed)) for seed in (0, 1))
    right = {
        step.state: step.action for step in walk.transitions if step.next_state == step.state + 1 and step.state < 4
    }
    assert right == {0: 0, 1: 1, 2: 0, 3: 1}
    assert walk.transitions != other.transitions
    assert sorted(walk.transitions) == sorted(other.transitions)


@pytest.mark.parametrize("n", [2, 5])
def test_the_true_values_are_those_that_no_transition_changes(n: int) -> None:
    walk = Cliffwalk.of(n, np.random.default_rng(0))
    assert max(abs(walk.error(walk.truth, step)) for step in walk.transitions) < 1e-12
    assert walk.truth.max() == 1


class NumpyProportional:
    """What the memory should do: (|error| + epsilon) / sum; one never measured counts as the largest measured."""

    def __init__(self, walk: Cliffwalk, rng: np.random.Generator) -> None:
        self._walk, self._rng = walk, rng
        self._errors = np.full(len(walk.transitions), np.nan)
        self._top, self._chosen = 0.0, 0

    @contextmanager
    def commit(self) -> Iterator[None]:
        yield

    def draw(self, values: Floats) -> Transition:
        priority = np.where(np.isnan(self._errors), self._top or 1.0, self._errors + EPSILON)
        self._chosen = self._rng.choice(len(priority), p=priority / priority.sum())
        return self._walk.transitions[self._chosen]

    def take_error(self, error: float) -> None:
        self._errors[self._chosen] = error
        self._top = max(self._top, error + EPSILON)


def test_through_the_memory_updates_follow_the_law_of_a_reference_in_numpy(tmp_path: Path) -> None:
    reference = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        walk = Cliffwalk.of(4, rng)
        reference.append(updates_to_convergence(walk, walk.initial_values(rng), NumpyProportional(walk, rng)))
    stored = [run(Trial("proportional", seed, 4), tmp_path)["updates"] for seed in range(6)]
    assert mannwhitneyu(stored, reference).pvalue > 1e-3


def test_draws_in_one_transaction_are_those_of_a_commit_for_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = run(Trial("proportional", 3, 3), tmp_path)
    monkeypatch.setattr(tabular, "STEPS_PER_COMMIT", 1)
    (tmp_path / "single").mkdir()
    assert run(Trial("proportional", 3, 3), tmp_path / "single")["updates"] == together["updates"]


@pytest.mark.parametrize("n", [4, 8])
def test_prioritized_draws_save_updates(updates: Mapping[tuple[str, int], list[int]], n: int) -> None:
    # Were the arms alike, all seeds of one would come before all of the other in 1 of 20 cases, at each size.
    assert max(updates["proportional", n]) < min(updates["uniform", n])
    assert np.median(updates["oracle", n]) < np.median(updates["greedy", n]) < np.median(updates["proportional", n])


def test_they_save_more_the_rarer_the_reward(updates: Mapping[tuple[str, int], list[int]]) -> None:
    ratios = [np.median(updates["uniform", n]) / np.median(updates["proportional", n]) for n in (4, 8)]
    assert 1 < ratios[0] < ratios[1]
    assert ratios[1] >= 5


@pytest.mark.parametrize("arm", ["alpha1-beta0", "alpha1-beta1"])
def test_weights_remove_the_bias_of_prioritized_draws(arm: str, tmp_path: Path) -> None:
    steps, seeds = 200, 2
    values = [run(Trial(arm, seed, steps), tmp_path)["value"] for seed in range(seeds)]
    # An average of stochastic approximation over N draws has variance noise / (slope^2 N): the noise of one draw
    # and the slope of the mean step at the fixed point. Priorities there: 9 x 1 and 9; without weights 9 x 2.5 and 7.5.
    noise, slope = (1.0, 10 / 18) if BIAS_ARMS[arm][1] else (0.75 * 2.5**2 + 0.25 * 7.5**2, 2.0)
    error = np.sqrt(noise / slope**2 / (BATCH * steps / 2) / seeds)
    expected = TRUE_VALUE if BIAS_ARMS[arm][1] else biased_value(1.0)
    assert abs(np.mean(values) - expected) < 4 * error
    assert 4 * error < 0.1


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
def test_the_biased_value_is_where_prioritized_steps_cancel(alpha: float) -> None:
    rewards, value = np.array([0.0] * 9 + [10.0]), biased_value(alpha)
    assert abs(np.sum(np.abs(rewards - value) ** alpha * (rewards - value))) < 1e-9
    assert biased_value(0.0) == TRUE_VALUE


def report_of(uniform: Mapping[int, int], value: float) -> dict[str, Finding]:
    """Findings when uniform draws need so many updates, all others 100, and every bias arm learns the value."""
    results: dict[Trial, Mapping[str, Any]] = {}
    for seed in range(3):
        for n, count in uniform.items():
            for arm in ARMS:
                found = {"updates": count if arm == "uniform" else 100, "seconds": 2.0, "store_seconds": 1.0}
                results[Trial(arm, seed, n)] = found | {"converged": True}
        results |= {Trial(arm, seed, 500): {"value": value + 0.001 * seed} for arm in BIAS_ARMS}
    report = EXPERIMENT.report(results)
    assert all(len(row) == len(table.columns) for table in report.tables for row in table.rows)
    return {finding.claim: finding for finding in report.findings}


def test_findings_hold_only_where_they_do() -> None:
    good = report_of({2: 90, 4: 200, 6: 400, 8: 500, 10: 800}, 2.5)
    assert [finding.holds for finding in good.values()] == [True] * 4 + [True, False] * 2  # 2.5 is biased
    bad = report_of({4: 100, 6: 90, 8: 499, 10: 799}, 0.9995)
    assert [finding.holds for finding in bad.values()] == [False] * 4 + [False, True] * 2
    assert "n = 8: 5.0" in bad["the ratio grows with every state from n = 4 on"].measured


def test_every_trial_is_listed_once() -> None:
    full, quick = (EXPERIMENT.trials(quick=quick, seeds=None) for quick in (False, True))
    assert len(full) == len(set(full)) == 10 * (9 * 4 + 5)
    assert len(quick) == len(set(quick)) == 3 * (3 * 4 + 2)
    assert {trial.seed for trial in EXPERIMENT.trials(quick=True, seeds=2)} == {0, 1}
