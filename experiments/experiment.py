"""The parts of an experiment: independent trials, the numbers that each measures, and the report on all of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from memstore.errors import ConfigError
from memstore.figures.figure import Figure, TableData


@dataclass(frozen=True, slots=True, order=True)
class Trial:
    """One independent run.

    Attributes
    ----------
    arm : str
        Name of the tried method, such as "reservoir-200".
    seed : int
        Seed of everything random in the trial.
    size : int
        A second axis, such as the number of states; 0 without one.
    """

    arm: str
    seed: int
    size: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """A published or expected claim, the measured numbers, and whether the claim holds."""

    claim: str
    measured: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Report:
    """The results of all trials; ``notes`` are formulas and caveats."""

    tables: tuple[TableData, ...]
    figures: tuple[Figure, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


class Experiment(Protocol):
    """An experiment of independent trials. Its name, title and source may be class attributes."""

    @property
    def name(self) -> str:
        """Its name on the command line."""
        ...

    @property
    def title(self) -> str:
        """A title of one line."""
        ...

    @property
    def source(self) -> str:
        """The paper and section that it reproduces."""
        ...

    def trials(self, *, quick: bool, seeds: int | None) -> list[Trial]:
        """Return the trials to run, each once; ``seeds`` replaces the number of seeds for each arm."""
        ...

    def run(self, trial: Trial, folder: Path) -> dict[str, Any]:
        """Run one trial, with its database in the empty ``folder``; return its numbers in a form that JSON can hold."""
        ...

    def report(self, results: Mapping[Trial, Mapping[str, Any]]) -> Report:
        """Return the report on the results of every trial."""
        ...


EXPERIMENTS: dict[str, tuple[str, str]] = {
    "split-digits": ("experiments.split_digits", "SplitDigitsExperiment"),
    "cliffwalk": ("experiments.cliffwalk", "CliffwalkExperiment"),
    "imbalanced-digits": ("experiments.imbalanced_digits", "ImbalancedDigitsExperiment"),
}
"""Module and class of each experiment, which is imported only if it is run."""


def experiment_named(name: str) -> Experiment:
    """Return the experiment of this name.

    Raises
    ------
    ConfigError
        There is no such experiment.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"experiment must be one of {', '.join(EXPERIMENTS)}, got {name!r}")
    module, made = EXPERIMENTS[name]
    experiment: Experiment = getattr(import_module(module), made)()
    return experiment
