"""Figures as PNG, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memstore.figures.figure import Figure, Series
from memstore.figures.text import interval_of, number

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555", "#b8a800")
"""Okabe and Ito's colours, which colour-blind people can tell apart."""

WIDTH, LINES_HEIGHT, BAR_HEIGHT = 8.0, 4.6, 0.34
"""These are the width of a figure, the height of a figure of lines, and the height of one bar, in inches."""
DPI = 150
"""An inch has this many pixels."""
LABEL_POINTS = 11.0
"""Two labels at line ends have at least this distance, in points (1/72 inch)."""
MOST_ERROR_BARS = 12
"""Number of points up to which a line has error bars; with more points it has a shaded band."""


def draw(figure: Figure, path: Path) -> None:
    """Write the figure to ``path`` as a PNG.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    draw_panels([figure], path)


def draw_panels(figures: Sequence[Figure], path: Path) -> None:
    """Write one or more figures to ``path`` as a PNG, one below the other.

    Raises
    ------
    ImportError
        matplotlib is not installed.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure as Canvas

    heights = [_height(figure) for figure in figures]
    # Labels may be names that users gave, so a "$" in them must not begin a formula.
    with rc_context({"text.parse_math": False}):
        canvas = Canvas(figsize=(WIDTH, sum(heights)), dpi=DPI, layout="constrained")
        panels = canvas.subfigures(len(figures), squeeze=False, height_ratios=heights)[:, 0]
        drawn = [(_draw_panel(panel, figure), figure) for panel, figure in zip(panels, figures, strict=True)]
        for axes, figure in drawn:
            if figure.kind == "lines":
                _label_line_ends(canvas, axes, figure)
        canvas.savefig(path)


def _height(figure: Figure) -> float:
    bars = len(figure.series) * len(figure.series[0].x)
    return LINES_HEIGHT if figure.kind == "lines" else 1.2 + BAR_HEIGHT * bars


def _draw_panel(panel: Any, figure: Figure) -> Any:
    """Draw one figure in its part of the canvas, and return its axes."""
    axes = panel.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(figure.title, loc="left", fontsize=11, fontweight="bold")
    if figure.kind == "bars":
        _bars(axes, figure)
        if len(figure.series) > 1:
            panel.legend(frameon=False, loc="outside lower center", ncols=len(figure.series))
    else:
        _lines(axes, figure)
    return axes


def _bars(axes: Any, figure: Figure) -> None:
    several = len(figure.series)
    thickness = 0.8 / several
    for number_of_series, series in enumerate(figure.series):
        places = [i + (number_of_series - (several - 1) / 2) * thickness for i in range(len(series.x))]
        axes.barh(places, series.y, thickness * 0.9, color=COLOURS[number_of_series], label=series.label)
        for i, (place, y) in enumerate(zip(places, series.y, strict=True)):
            interval = interval_of(series, i)
            tip = y if interval is None else max(y, interval[1])
            if interval is not None:
                spread = [[y - interval[0]], [interval[1] - y]]
                axes.errorbar(y, place, xerr=spread, color="black", capsize=2.5, linewidth=1, capthick=1)
            axes.annotate(number(y), (max(tip, 0), place), (5, 0), textcoords="offset points", va="center", fontsize=9)
    axes.set_yticks(range(len(figure.series[0].x)), [str(x) for x in figure.series[0].x])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.set_xlabel(figure.y_label)
    axes.set_ylabel(figure.x_label)
    axes.margins(x=0.08, y=0.02)
    if figure.log_y:
        axes.set_xscale("log")


def _lines(axes: Any, figure: Figure) -> None:
    seen = set()
    for colour, series in zip(COLOURS, figure.series, strict=False):
        x = [float(one) for one in series.x]
        few = len(x) <= MOST_ERROR_BARS
        # A line on top of an equal one is dashed, so that both are seen.
        style = "--" if series.y in seen else "-"
        seen.add(series.y)
        axes.plot(x, series.y, style, color=colour, linewidth=1.8, marker="o" if few else None, markersize=4)
        _intervals(axes, x, series, colour, few)
    axes.set(xlabel=figure.x_label, ylabel=figure.y_label)
    axes.set(xscale="log" if figure.log_x else "linear", yscale="log" if figure.log_y else "linear")
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
    positions = sorted({float(x) for series in figure.series for x in series.x})
    if len(positions) <= MOST_ERROR_BARS:
        axes.set_xticks(positions)
        axes.set_xticks([], minor=True)
    axes.grid(alpha=0.25, linewidth=0.6)


def _intervals(axes: Any, x: list[float], series: Series, colour: str, few: bool) -> None:
    known = [(x[i], series.y[i], *found) for i in range(len(x)) if (found := interval_of(series, i)) is not None]
    if not known:
        return
    at, y, low, high = zip(*known, strict=True)
    if few:
        below = [a - b for a, b in zip(y, low, strict=True)]
        above = [b - a for a, b in zip(y, high, strict=True)]
        axes.errorbar(at, y, yerr=[below, above], fmt="none", color=colour, capsize=3, linewidth=1)
    else:
        axes.fill_between(at, low, high, color=colour, alpha=0.18, linewidth=0)


def _label_line_ends(canvas: Any, axes: Any, figure: Figure) -> None:
    """Write each series' label beside its last point. A label that is too near the one below moves up."""
    canvas.draw_without_rendering()
    ends = []
    for colour, series in zip(COLOURS, figure.series, strict=False):
        point = (float(series.x[-1]), series.y[-1])
        ends.append((axes.transData.transform(point)[1] * 72 / DPI, point, series.label, colour))
    free = -float("inf")
    for height, point, label, colour in sorted(ends):
        place = max(height, free)
        free = place + LABEL_POINTS
        axes.annotate(
            label, point, (7, place - height), textcoords="offset points", va="center", color=colour, fontsize=9.5
        )
