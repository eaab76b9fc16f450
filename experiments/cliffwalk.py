"""The Blind Cliffwalk: how many updates prioritized draws save, and the bias that importance weights remove.

Schaul et al. 2016, "Prioritized Experience Replay" (arXiv:1511.05952), sections 3.1, 3.4 and appendix B.1.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

import memstore
from experiments.bias import BIAS_ARMS, bias_findings, bias_table, replayed_value
from experiments.experiment import Finding, Report, Trial
from experiments.tabular import (
    CONVERGED,
    MOST_UPDATES,
    Cliffwalk,
    GreedyReplay,
    OracleReplay,
    ProportionalReplay,
    Replay,
    Stopwatch,
    Transition,
    UniformReplay,
    updates_to_convergence,
)
from memstore.figures.figure import Figure, Series, TableData

EPSILON = 1e-4
"""Epsilon of the priorities."""
ARMS = ("uniform", "proportional", "greedy", "oracle")
STORED_ARMS = ("uniform", "proportional")
"""Arms that draw from the memory. The others are numpy references."""

FULL = (tuple(range(2, 11)), tuple(BIAS_ARMS), 500)
QUICK = ((4, 6, 8), ("alpha1-beta0", "alpha1-beta1"), 300)
"""Numbers of states, arms of the bias check, and its steps."""


class CliffwalkExperiment:
    """The size of a trial is its number of states. In the bias check it is the number of steps."""

    name: ClassVar[str] = "cliffwalk"
    title: ClassVar[str] = "Blind Cliffwalk: updates until the values have converged"
    source: ClassVar[str] = "Schaul et al. 2016, Prioritized Experience Replay, arXiv:1511.05952, 3.4 and app. B.1"

    def trials(self, *, quick: bool, seeds: int | None) -> list[Trial]:
        """Return every arm at every size for each of 10 seeds, or of 3 if quick."""
        numbers = range(seeds if seeds is not None else 3 if quick else 10)
        sizes, bias_arms, steps = QUICK if quick else FULL
        settings = [(arm, n) for n in sizes for arm in ARMS] + [(arm, steps) for arm in bias_arms]
        return [Trial(arm, seed, size) for arm, size in settings for seed in numbers]

    def run(self, trial: Trial, folder: Path) -> dict[str, Any]:
        """Return the number of updates and the seconds of a walk; in the bias check, the learned value."""
        rng = np.random.default_rng((trial.seed, trial.size))
        settings: dict[str, Any] = {"strategy": memstore.PrioritizedLoss(1.0), "epsilon": EPSILON}
        with memstore.open(folder / "memory.db", seed=int(rng.integers(2**31)), **settings) as memory:
            if trial.arm in BIAS_ARMS:
                alpha, beta = BIAS_ARMS[trial.arm]
                return {"value": replayed_value(memory, alpha, beta, trial.size)}
            return _walk_trial(trial, memory, rng)

    def report(self, results: Mapping[Trial, Mapping[str, Any]]) -> Report:
        """Return the updates, the time in the store, the bias, and the findings on the published claims."""
        walks = _by_arm_and_size(results, ARMS, "updates")
        sizes = sorted({n for _, n in walks})
        speedup = {n: _median(walks["uniform", n]) / _median(walks["proportional", n]) for n in sizes}
        values = {arm: found for (arm, _), found in _by_arm_and_size(results, tuple(BIAS_ARMS), "value").items()}
        unfinished = sum(not found.get("converged", True) for found in results.values())
        notes = [
            "Updates are counted, not seconds: the store adds its own time, shown apart.",
            "Bands and brackets of the updates are the smallest and the largest over seeds.",
            "The arms share their seeds, so the values of the bias check deviate together.",
            "This is a tabular, deterministic case with one reward. With neural networks and in control no prioritized "
            "variant beats uniform draws consistently (Panahi et al. 2024, arXiv:2407.09702).",
        ]
        if unfinished:
            notes.append(f"{unfinished} trials were stopped at {MOST_UPDATES} updates, before they had converged.")
        return Report(
            tables=(_updates_table(walks, sizes, speedup), _store_table(results, sizes), bias_table(values)),
            figures=(_figure(walks, sizes),),
            findings=(*_speedup_findings(speedup), *bias_findings(values)),
            notes=tuple(notes),
        )


def _walk_trial(trial: Trial, memory: memstore.EpisodicMemory, rng: np.random.Generator) -> dict[str, Any]:
    walk = Cliffwalk.of(trial.size, rng)
    values = walk.initial_values(rng)
    whole, store = Stopwatch(), Stopwatch()
    replay: Replay
    if trial.arm in STORED_ARMS:
        columns = zip(Transition._fields, zip(*walk.transitions, strict=True), strict=True)
        memory.extend({name: np.array(column) for name, column in columns})
        replay = (UniformReplay if trial.arm == "uniform" else ProportionalReplay)(memory, store)
    else:
        replay = (GreedyReplay if trial.arm == "greedy" else OracleReplay)(walk)
    with whole:
        updates = updates_to_convergence(walk, values, replay)
    return {
        "updates": updates,
        "converged": walk.distance(values) < CONVERGED,
        "seconds": whole.seconds,
        "store_seconds": store.seconds,
    }


def _by_arm_and_size(
    results: Mapping[Trial, Mapping[str, Any]], arms: tuple[str, ...], measure: str
) -> dict[tuple[str, int], list[float]]:
    found: dict[tuple[str, int], list[float]] = {}
    for trial in sorted(results):
        if trial.arm in arms:
            found.setdefault((trial.arm, trial.size), []).append(results[trial][measure])
    return found


def _transitions_of(n: int) -> int:
    return (2 << n) - 2


def _median(values: list[float]) -> float:
    return float(np.median(values))


def _updates_table(
    walks: Mapping[tuple[str, int], list[float]], sizes: list[int], speedup: Mapping[int, float]
) -> TableData:
    def cell(values: list[float]) -> str:
        return f"{_median(values):,.0f} [{min(values):,.0f} .. {max(values):,.0f}]"

    return TableData(
        title="Updates to convergence, median [smallest .. largest] over seeds",
        columns=("states", "transitions", *ARMS, "uniform / proportional"),
        rows=tuple(
            (str(n), f"{_transitions_of(n):,}", *(cell(walks[arm, n]) for arm in ARMS), f"{speedup[n]:.1f}")
            for n in sizes
        ),
    )


def _store_table(results: Mapping[Trial, Mapping[str, Any]], sizes: list[int]) -> TableData:
    updates, seconds, whole = (
        {key: sum(found) for key, found in _by_arm_and_size(results, STORED_ARMS, measure).items()}
        for measure in ("updates", "store_seconds", "seconds")
    )

    def cells(arm: str, n: int) -> tuple[str, str]:
        each = seconds[arm, n] / updates[arm, n]
        return f"{1000 * each:.3f} ms", f"{100 * seconds[arm, n] / whole[arm, n]:.0f} %"

    return TableData(
        title="Time in the store: of one update, and its share of the whole",
        columns=("states", *(name for arm in STORED_ARMS for name in (arm, f"{arm}, share"))),
        rows=tuple((str(n), *cells("uniform", n), *cells("proportional", n)) for n in sizes),
    )


def _figure(walks: Mapping[tuple[str, int], list[float]], sizes: list[int]) -> Figure:
    return Figure(
        name="updates",
        title="Blind Cliffwalk: updates to convergence",
        x_label="transitions in the memory",
        y_label="updates",
        kind="lines",
        log_x=True,
        log_y=True,
        series=tuple(
            Series(
                label=arm,
                x=tuple(float(_transitions_of(n)) for n in sizes),
                y=tuple(_median(walks[arm, n]) for n in sizes),
                low=tuple(float(min(walks[arm, n])) for n in sizes),
                high=tuple(float(max(walks[arm, n])) for n in sizes),
            )
            for arm in ARMS
        ),
    )


def _speedup_findings(speedup: Mapping[int, float]) -> list[Finding]:
    larger = {n: ratio for n, ratio in speedup.items() if n >= 4}
    shown = ", ".join(f"n = {n}: {ratio:.1f}" for n, ratio in larger.items())
    ratios = list(larger.values())
    findings = [
        Finding("uniform needs more updates than proportional at every n >= 4", shown, min(ratios) > 1),
        Finding("the ratio grows with every state from n = 4 on", shown, ratios == sorted(set(ratios))),
    ]
    for n, least in ((8, 5), (10, 8)):
        if n in speedup:
            claim = f"at n = {n} uniform needs at least {least} times the updates of proportional"
            findings.append(Finding(claim, f"{speedup[n]:.1f}", speedup[n] >= least))
    return findings
