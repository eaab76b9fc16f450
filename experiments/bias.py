"""The bias of prioritized draws, and how importance weights remove it.

Schaul et al. 2016, "Prioritized Experience Replay" (arXiv:1511.05952), section 3.4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

import memstore
from experiments.experiment import Finding
from experiments.summary import Interval, mean_interval
from memstore.figures.figure import TableData

REWARDS = np.array([0.0] * 9 + [10.0])
"""Rewards of the stored episodes."""
TRUE_VALUE = 1.0
"""Mean of the rewards."""
BIAS_ARMS = {
    "alpha0-beta0": (0.0, 0.0),
    "alpha0.5-beta0": (0.5, 0.0),
    "alpha1-beta0": (1.0, 0.0),
    "alpha0.5-beta1": (0.5, 1.0),
    "alpha1-beta1": (1.0, 1.0),
}
"""Arms of the bias check, with the alpha and beta of each."""
BATCH, STEP_SIZE, START = 128, 0.1, 5.0
"""Size of a batch, step size, and the value at the start."""


def replayed_value(memory: memstore.EpisodicMemory, alpha: float, beta: float, steps: int) -> float:
    """Learn the value of one terminal state from prioritized draws; return its average over the second half.

    The memory holds 9 episodes of reward 0 and one of reward 10, so the true value is 1. Each step draws a batch
    with replacement, moves the value by the weighted mean error, and writes all |errors| back.

    With beta = 0 the expected step is 0 where sum(|r - v|^alpha (r - v)) = 0, see `biased_value`; with beta = 1
    the weights cancel the priorities and it is 0 at the mean reward.
    """
    strategy = memstore.PrioritizedLoss(alpha)
    value, path = START, []
    ids = memory.extend({"reward": REWARDS}, loss=np.abs(REWARDS - value))
    for _ in range(steps):
        batch = memory.sample(BATCH, strategy=strategy, beta=beta, replacement=True)
        value += STEP_SIZE * float(np.mean(batch.weight * (batch["reward"] - value)))
        memory.update(ids, loss=np.abs(REWARDS - value))
        path.append(value)
    return float(np.mean(path[steps // 2 :]))


def biased_value(alpha: float) -> float:
    """Return the value that prioritized draws without weights converge to: 9 v^(1+alpha) = (10 - v)^(1+alpha)."""
    return float(10 / (1 + 9 ** (1 / (1 + alpha))))


def bias_table(values: Mapping[str, list[float]]) -> TableData:
    """Return the mean value of each arm beside the one that theory gives."""
    rows = []
    for arm, (alpha, beta) in BIAS_ARMS.items():
        if arm in values:
            found = mean_interval(values[arm])
            expected = TRUE_VALUE if beta else biased_value(alpha)
            rows.append((f"{alpha:g}", f"{beta:g}", _shown(found), f"{expected:.3f}"))
    return TableData(
        title=f"Value learned by prioritized draws where the true one is {TRUE_VALUE:g}, mean and 95 % interval",
        columns=("alpha", "beta", "value", "by theory"),
        rows=tuple(rows),
    )


def bias_findings(values: Mapping[str, list[float]]) -> list[Finding]:
    """Return True if every arm that should be biased is biased, and no other arm is.

    The limit is four standard errors over few seeds: with 10 seeds an unbiased value lies outside once in 320 times.
    """
    findings = []
    for arm, found in values.items():
        alpha, beta = BIAS_ARMS[arm]
        interval = mean_interval(found)
        error = float(np.std(found, ddof=1) / np.sqrt(len(found))) if len(found) > 1 else math.inf
        measured = f"{_shown(interval)}, standard error {error:.4f}"
        if beta:
            claim = f"with alpha = {alpha:g}, beta = 1 returns the value to 1, within four standard errors"
            findings.append(Finding(claim, measured, abs(interval.mean - TRUE_VALUE) <= 4 * error < math.inf))
        elif alpha:
            claim = f"alpha = {alpha:g} without weights biases the value: 1 is outside the interval"
            findings.append(Finding(claim, measured, not interval.low <= TRUE_VALUE <= interval.high))
    return findings


def _shown(interval: Interval) -> str:
    return f"{interval.mean:.3f} [{interval.low:.3f} .. {interval.high:.3f}]"
