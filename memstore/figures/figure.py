"""The content of a figure or a table, independent of how it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a figure, or one row of bars.

    Attributes
    ----------
    label : str
        Name of the series.
    x : tuple of str or float
        Names of the bars, or positions of the points.
    y : tuple of float
        Heights.
    low, high : tuple of float
        Ends of the interval around each y; empty without intervals.
    """

    label: str
    x: tuple[str | float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure. ``name`` is the name of its file, without the ending."""

    name: str
    title: str
    x_label: str
    y_label: str
    kind: Literal["bars", "lines"]
    series: tuple[Series, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True)
class TableData:
    """A table of texts; each row has one text for each column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
