"""Tables and figures as text and PNG, and the files of a report."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments.experiment import Finding, Report, Trial
from experiments.report import write_report
from memstore.errors import InvalidValue
from memstore.figures import text
from memstore.figures.figure import Figure, Series, TableData
from memstore.figures.png import draw
from memstore.figures.text import BAR_WIDTH, PLOT_HEIGHT, PLOT_WIDTH

BARS = Figure(
    "bars", "Bars", "", "percent", "bars", (Series("s", ("a", "bb"), (50.0, 100.0), (40.0, 99.0), (60.0, 101.0)),)
)
LINES = Figure(
    "lines",
    "Lines",
    "n",
    "updates",
    "lines",
    (Series("up", (1.0, 10.0, 100.0), (1.0, 10.0, 100.0)), Series("flat", (1.0, 10.0, 100.0), (10.0, 10.0, 10.0))),
    log_x=True,
    log_y=True,
)
REPORT = Report(
    (TableData("Numbers", ("arm", "value"), (("a", "1"), ("long name", "22"))),),
    (BARS, LINES),
    (Finding("up is up", "2 > 1", True), Finding("down is up", "1 < 2", False)),
    ("a caveat",),
)
HEADER = {"experiment": "toy", "quick": False, "seeds": None, "versions": {"python": "3"}, "code": "0"}


class Toy:
    name = "toy"
    title = "a toy"
    source = "nothing"

    def trials(self, *, quick: bool, seeds: int | None) -> list[Trial]:
        return [Trial("a", 0)]

    def run(self, trial: Trial, folder: Path) -> dict[str, Any]:
        return {}

    def report(self, results: Any) -> Report:
        return REPORT


RESULTS = {Trial("a", seed): {"y": seed} for seed in (0, 1, 2, 7)}


def test_a_table_is_aligned() -> None:
    assert text.table(REPORT.tables[0]).splitlines() == [
        "Numbers",
        "arm        value",
        "─" * 16,
        "a              1",
        "long name     22",
    ]


def test_bars_start_at_zero_and_show_their_interval() -> None:
    title, first, second = text.figure(BARS).splitlines()
    assert title == "Bars (percent)"
    # 101 is the last of 50 cells: 40, 50 and 60 fall into cells 19, 24 and 29.
    assert first == f"a   {'█' * 19}├{'─' * 9}┤{' ' * 20} 50.0 (40.0 .. 60.0)"
    assert second.startswith(f"bb  {'█' * 48}├┤ 100")


def test_bars_below_zero_end_at_zero() -> None:
    figure = replace(BARS, series=(Series("s", ("a", "b"), (-1.0, 1.0)),))
    _, below, above = text.figure(figure).splitlines()
    assert below == f"a  {'█' * (BAR_WIDTH // 2)}{' ' * (BAR_WIDTH // 2)} -1.00"
    assert above == f"b  {' ' * (BAR_WIDTH // 2 - 1)}{'█' * (BAR_WIDTH // 2 + 1)} 1.00"


def test_lines_are_straight_where_both_axes_are_logarithmic() -> None:
    title, *rows = text.figure(LINES).splitlines()
    assert title == "Lines (updates; x and y logarithmic)"
    grid = [row.ljust(PLOT_WIDTH + 5)[5:] for row in rows[:PLOT_HEIGHT]]
    middle = PLOT_HEIGHT // 2, (PLOT_WIDTH - 1) // 2 + 1
    assert grid[0][PLOT_WIDTH - 1] == grid[-1][0] == "o"
    assert grid[middle[0]][middle[1]] == grid[middle[0]][0] == grid[middle[0]][PLOT_WIDTH - 1] == "+"
    assert sum(row.count("o") + row.count("+") for row in grid) == 5
    assert rows[0].startswith("100 │") and rows[PLOT_HEIGHT - 1].startswith("  1 │")
    assert rows[-1].strip() == "o up   + flat"


@pytest.mark.parametrize("figure", [replace(BARS, log_y=True), LINES])
def test_a_logarithm_of_zero_is_refused(figure: Figure) -> None:
    with pytest.raises(InvalidValue, match="above 0"):
        text.figure(replace(figure, series=(Series("s", (1.0, 2.0), (0.0, 1.0)),)))


@pytest.mark.parametrize(
    "figure",
    [
        BARS,
        LINES,
        replace(BARS, series=(BARS.series[0], replace(BARS.series[0], label="t"))),
        replace(BARS, series=(replace(BARS.series[0], low=(-math.inf, 1.0), high=(math.inf, 101.0)),)),
        replace(LINES, series=(replace(LINES.series[0], low=(0.5, 5.0, 50.0), high=(2.0, 20.0, 200.0)),)),
        replace(
            LINES, series=(Series("many", tuple(map(float, range(1, 31))), (2.0,) * 30, (1.0,) * 30, (3.0,) * 30),)
        ),
    ],
    ids=["bars", "lines", "two rows of bars", "an interval without end", "error bars", "a band"],
)
def test_a_figure_becomes_a_png_and_a_text(tmp_path: Path, figure: Figure) -> None:
    draw(figure, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert all(len(line) <= 110 for line in text.figure(figure).splitlines())


def test_a_report_says_what_holds_and_what_does_not(tmp_path: Path) -> None:
    write_report(tmp_path, Toy(), REPORT, RESULTS, HEADER)
    written = (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert "holds          up is up\n               2 > 1" in written
    assert "DOES NOT HOLD  down is up\n               1 < 2" in written
    assert "4 seeds (0 .. 2, 7)" in written
    assert "- a caveat" in written
    assert "as PNG: bars.png" in written
    assert {path.name for path in tmp_path.iterdir()} == {"bars.png", "lines.png", "report.json", "report.txt"}
    document = json.loads((tmp_path / "report.json").read_text())
    assert [finding["holds"] for finding in document["findings"]] == [True, False]
    assert document["trials"][3] == {"arm": "a", "seed": 7, "size": 0, "result": {"y": 7}}
    assert document["versions"] == {"python": "3"}


def test_without_matplotlib_the_text_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*filter(lambda name: name.split(".")[0] == "matplotlib", sys.modules), "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    write_report(tmp_path, Toy(), REPORT, RESULTS, HEADER)
    assert "as PNG: pip install memstore[plot]" in (tmp_path / "report.txt").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"report.json", "report.txt"}


def test_an_interval_without_end_is_null_in_json(tmp_path: Path) -> None:
    series = Series("s", ("a",), (1.0,), (-math.inf,), (math.inf,))
    report = replace(REPORT, figures=(replace(BARS, series=(series,)),))
    write_report(tmp_path, Toy(), report, RESULTS, HEADER)
    (figure,) = json.loads((tmp_path / "report.json").read_text())["figures"]
    assert figure["series"][0]["low"] == [None]
