"""What an experiment is: independent trials, what one measures, and what they come to together."""

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
        What is tried, "reservoir-200" say.
    seed : int
        Of everything random in it.
    size : int
        A second axis where there is one, such as the number of states.
    """

    arm: str
    seed: int
    size: int = 0


@dataclass(frozen=True, slots=True)
class Finding:
    """A published or expected direction, what was measured, and whether it holds."""

    claim: str
    measured: str
    holds: bool


@dataclass(frozen=True, slots=True)
class Report:
    """What the trials came to; ``notes`` are formulas and caveats."""

    tables: tuple[TableData, ...]
    figures: tuple[Figure, ...]
    findings: tuple[Finding, ...]
    notes: tuple[str, ...]


class Experiment(Protocol):
    """An experiment of independent trials; class attributes do for its name, title and source."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    @property
    def title(self) -> str:
        """One line."""
        ...

    @property
    def source(self) -> str:
        """What it reproduces: paper and section."""
        ...

    def trials(self, *, quick: bool, seeds: int | None) -> list[Trial]:
        """Return the trials to run, each once; ``seeds`` replaces the number of seeds for each arm."""
        ...

    def run(self, trial: Trial, folder: Path) -> dict[str, Any]:
        """Run one trial, its database in the empty ``folder``; return its numbers as JSON takes them."""
        ...

    def report(self, results: Mapping[Trial, Mapping[str, Any]]) -> Report:
        """Return what the results, those of every trial, come to."""
        ...


EXPERIMENTS: dict[str, tuple[str, str]] = {
    "split-digits": ("experiments.split_digits", "SplitDigitsExperiment"),
    "cliffwalk": ("experiments.cliffwalk", "CliffwalkExperiment"),
    "imbalanced-digits": ("experiments.imbalanced_digits", "ImbalancedDigitsExperiment"),
}
"""Module and class of each experiment: imported when it is asked for."""


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
