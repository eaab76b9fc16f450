"""An experiment of no time at all, for tests of whatever is around one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments.experiment import Finding, Report, Trial
from memstore.figures.figure import TableData
from tests.support.hostile import TERMINAL


class SmallExperiment:
    """Two trials that return their seed."""

    name = "cliffwalk"
    title = "Small"
    source = TERMINAL["wide"]

    def trials(self, *, quick: bool, seeds: int | None) -> list[Trial]:
        """Two, whatever is asked for."""
        return [Trial("only", seed) for seed in range(2)]

    def run(self, trial: Trial, folder: Path) -> dict[str, Any]:
        """The seed."""
        return {"seed": trial.seed}

    def report(self, results: Mapping[Trial, Mapping[str, Any]]) -> Report:
        """A table of names that should reach no terminal as they are."""
        rows = tuple((name, text) for name, text in TERMINAL.items() if "\n" not in text)
        return Report((TableData("Names", ("name", "text"), rows),), (), (Finding("they hold", "2 ± 0", True),), ())
