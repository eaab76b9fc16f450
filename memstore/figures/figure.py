"""What a figure or a table holds, however it is drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a figure, or its row of bars.

    Attributes
    ----------
    label : str
    x : tuple of str or float
        Names of the bars, or positions.
    y : tuple of float
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
    """A figure, for PNG and for text; ``name`` is that of the file."""

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
    """A table of texts."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
