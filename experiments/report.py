"""A report in files: text, JSON and, with matplotlib, a PNG of every figure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from textwrap import fill
from typing import Any

from experiments.experiment import Experiment, Finding, Report, Trial
from memstore.figures import text
from memstore.figures.png import draw

TEXT, JSON = "report.txt", "report.json"
LINE = 110
"""Characters in a line of the text."""


def write_report(
    folder: Path,
    experiment: Experiment,
    report: Report,
    results: Mapping[Trial, Mapping[str, Any]],
    header: Mapping[str, Any],
) -> None:
    """Write ``report.txt``, ``report.json`` and the figures that can be drawn into ``folder``.

    ``header`` holds what all the results have in common, see `Results`.
    """
    drawn = _draw(folder, report)
    (folder / TEXT).write_text(as_text(experiment, report, results, header, drawn), encoding="utf-8")
    document = {
        **header,
        "title": experiment.title,
        "source": experiment.source,
        **asdict(report),
        "trials": [{**asdict(trial), "result": dict(result)} for trial, result in results.items()],
    }
    (folder / JSON).write_text(json.dumps(_finite(document), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def as_text(
    experiment: Experiment,
    report: Report,
    results: Mapping[Trial, Mapping[str, Any]],
    header: Mapping[str, Any],
    drawn: bool,
) -> str:
    """Return the text of ``report.txt``."""
    seeds = sorted({trial.seed for trial in results})
    versions = ", ".join(f"{name} {version}" for name, version in header["versions"].items())
    about = [
        f"{experiment.name}: {experiment.title}",
        f"after {experiment.source}",
        f"{'quick version' if header['quick'] else 'full version'}, {len(results)} trials, "
        f"{len(seeds)} seeds ({_spans(seeds)}); {versions}",
    ]
    figures = [
        f"{text.figure(figure)}\n{f'as PNG: {figure.name}.png' if drawn else 'as PNG: pip install memstore[plot]'}"
        for figure in report.figures
    ]
    findings = ["Findings", *(_finding(finding) for finding in report.findings)]
    notes = ["Notes", *(fill(note, LINE, initial_indent="- ", subsequent_indent="  ") for note in report.notes)]
    parts = ["\n".join(about), *map(text.table, report.tables), *figures]
    parts += ["\n".join(part) for part in (findings, notes) if len(part) > 1]
    return "\n\n".join(parts) + "\n"


def _draw(folder: Path, report: Report) -> bool:
    try:
        for figure in report.figures:
            draw(figure, folder / f"{figure.name}.png")
    except ImportError:
        return False
    return True


def _finding(finding: Finding) -> str:
    verdict = "holds" if finding.holds else "DOES NOT HOLD"
    indent = " " * 15
    claim = fill(finding.claim, LINE, initial_indent=f"{verdict:<15}", subsequent_indent=indent)
    return claim + "\n" + fill(finding.measured, LINE, initial_indent=indent, subsequent_indent=indent)


def _spans(numbers: list[int]) -> str:
    """Return ``0 .. 4, 7`` for 0, 1, 2, 3, 4, 7."""
    spans: list[list[int]] = []
    for value in numbers:
        if spans and value == spans[-1][1] + 1:
            spans[-1][1] = value
        else:
            spans.append([value, value])
    return ", ".join(str(low) if low == high else f"{low} .. {high}" for low, high in spans)


def _finite(value: Any) -> Any:
    """Return the value with null in place of infinity, which is the end of an interval of a single value."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
