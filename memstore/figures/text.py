"""Tables and figures as plain text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from memstore.errors import InvalidValue
from memstore.figures.figure import Figure, Series, TableData

BAR_WIDTH = 50
"""The longest bar has this many characters."""
PLOT_WIDTH, PLOT_HEIGHT = 68, 17
"""A figure of lines has this width and height, in characters."""
MARKS = "o+x*#@%&"
"""The points of each series have one of these characters."""


def number(value: float) -> str:
    """Return a value as figures show it: with three digits, or without decimals from 1,000 on. Counts are whole."""
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:#.3g}".rstrip(".")


def table(data: TableData) -> str:
    """Return the table, with the first column to the left and the others to the right; no line break at its end."""
    rows = [data.columns, *data.rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(_padded, row, widths, range(len(row)))).rstrip() for row in rows]
    return "\n".join([data.title, lines[0], "─" * max(map(len, lines)), *lines[1:]])


def _padded(cell: str, width: int, column: int) -> str:
    return cell.rjust(width) if column else cell.ljust(width)


def figure(data: Figure) -> str:
    """Return the figure as text, without a line break at its end.

    Raises
    ------
    InvalidValue
        A logarithmic axis has a value that is not above 0.
    """
    return _bars(data) if data.kind == "bars" else _lines(data)


def interval_of(series: Series, i: int) -> tuple[float, float] | None:
    """Return the interval around the i-th y; None if there is none or if an end is not finite."""
    if not series.low:
        return None
    low, high = series.low[i], series.high[i]
    return (low, high) if math.isfinite(low) and math.isfinite(high) else None


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    log: bool

    @classmethod
    def over(cls, values: Sequence[float], log: bool) -> _Axis:
        low, high = min(values), max(values)
        if log and low <= 0:
            raise InvalidValue(f"a logarithmic axis needs values above 0, got {low}")
        return cls(low, high if high > low else low + 1, log)

    def cell(self, value: float, cells: int) -> int:
        """Return the cell, 0 .. cells - 1, in which the value falls; the nearest cell for a value outside."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return round((at - low) / (high - low) * (cells - 1))


def _tick(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _bars(data: Figure) -> str:
    ends = [end for s in data.series for i in range(len(s.y)) for end in interval_of(s, i) or ()]
    values = [y for s in data.series for y in s.y]
    axis = _Axis.over([*values, *ends] if data.log_y else [0.0, *values, *ends], data.log_y)
    several = len(data.series) > 1
    rows = [
        (f"{x}  {s.label}" if several else str(x), _bar(axis, s, i))
        for i, x in enumerate(data.series[0].x)
        for s in data.series
    ]
    width = max(len(label) for label, _ in rows)
    return "\n".join([f"{data.title} ({data.y_label})", *(f"{label.ljust(width)}  {bar}" for label, bar in rows)])


def _bar(axis: _Axis, series: Series, i: int) -> str:
    y = series.y[i]
    base, tip = sorted((axis.cell(axis.low if axis.log else 0.0, BAR_WIDTH), axis.cell(y, BAR_WIDTH)))
    filled = tip - base + 1 if axis.log or y else 0
    cells = [" "] * base + ["█"] * filled + [" "] * (BAR_WIDTH - base - filled)
    interval = interval_of(series, i)
    if interval is None:
        return f"{''.join(cells)} {number(y)}"
    left, right = (axis.cell(end, BAR_WIDTH) for end in interval)
    cells[left : right + 1] = "├" + "─" * (right - left - 1) + "┤" if right > left else "│"
    return f"{''.join(cells)} {number(y)} ({number(interval[0])} .. {number(interval[1])})"


def _lines(data: Figure) -> str:
    xs = _Axis.over([float(x) for s in data.series for x in s.x], data.log_x)
    ys = _Axis.over([y for s in data.series for y in s.y], data.log_y)
    grid = [[" "] * PLOT_WIDTH for _ in range(PLOT_HEIGHT)]
    for mark, series in zip(MARKS, data.series, strict=False):
        for x, y in zip(series.x, series.y, strict=True):
            grid[PLOT_HEIGHT - 1 - ys.cell(y, PLOT_HEIGHT)][xs.cell(float(x), PLOT_WIDTH)] = mark
    top, bottom, left, right = (_tick(end) for end in (ys.high, ys.low, xs.low, xs.high))
    margin = max(len(top), len(bottom))
    ticks = {0: top, PLOT_HEIGHT - 1: bottom}
    lines = [f"{ticks.get(i, '').rjust(margin)} │{''.join(row)}".rstrip() for i, row in enumerate(grid)]
    foot = left + data.x_label.center(PLOT_WIDTH - len(left) - len(right)) + right
    legend = "   ".join(f"{mark} {s.label}" for mark, s in zip(MARKS, data.series, strict=False))
    scale = " and ".join(name for name, log in (("x", data.log_x), ("y", data.log_y)) if log)
    title = f"{data.title} ({data.y_label}{f'; {scale} logarithmic' if scale else ''})"
    indent = " " * (margin + 2)
    return "\n".join([title, *lines, f"{' ' * margin} └{'─' * PLOT_WIDTH}", f"{indent}{foot}", f"{indent}{legend}"])
