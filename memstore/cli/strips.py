"""Lines in a terminal. Each line has a separate strip, with the same axes, so that none hides another.

The core depends on no plotting package, so the code stands here. It draws with braille, eight dots to a character, or
with three heights of ASCII characters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from memstore.cli.pictures import Floats
from memstore.figures.figure import Figure, Series

Dots = NDArray[np.bool_]

WIDTH = 79
"""The drawing has this width in characters."""
LEAST_HEIGHT, MOST_HEIGHT, SCREEN = 3, 12, 18
"""These are the least and the largest height of a strip, and the height of all strips together, in characters.

The last one holds while there are few strips.
"""

LONGEST_NAME = 18
"""The name of a line is cut after this many characters."""

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
"""The dots of a braille character have these bits, by row and column.

See https://www.unicode.org/charts/PDF/U2800.pdf.
"""
_LEVELS = "'-."
"""In ASCII, these characters stand for a dot at the top, in the middle and at the bottom."""


def strips(figure: Figure, encoding: str | None) -> str:
    """Return a figure of lines as text of 79 columns, in ASCII if the encoding has no braille.

    A logarithmic y axis begins at the smallest value above 0. Values that are not above 0 are drawn there.
    """
    braille = _has_braille(encoding)
    low, high = _ends(np.concatenate([np.array(one.y, np.float64) for one in figure.series]), figure.log_y)
    left, right = _ends(np.concatenate([np.array(one.x, np.float64) for one in figure.series]), False)
    names = [_cut(one.label, LONGEST_NAME) for one in figure.series]
    ticks = [f"{end:.3g}" for end in (high, low)]
    margin = max(map(len, [*names, *(f"  {tick}" for tick in ticks)]))
    width = WIDTH - margin - 3
    height = min(max(SCREEN // len(names), LEAST_HEIGHT), MOST_HEIGHT)
    bar, corner, dash, tick = "│└─┤" if braille else "|+-+"
    lines = [f"{figure.title} ({figure.y_label}{', logarithmic' if figure.log_y else ''})"]
    for name, series in zip(names, figure.series, strict=True):
        dots = _dots(series, (left, right), (low, high), figure.log_y, (height, width), braille)
        texts = list(_braille(dots) if braille else _ascii(dots))
        marks = [(ticks[0], tick), (name, bar), *[("", bar)] * (height - 3), (ticks[1], tick)]
        lines += [f"{text.rjust(margin)} {sign}{row}".rstrip() for (text, sign), row in zip(marks, texts, strict=True)]
        lines.append(f"{' ' * margin} {bar}")
    lines[-1] = f"{' ' * margin} {corner}{dash * width}"
    ends = f"{left:,.6g}", f"{right:,.6g}"
    foot = ends[0] + figure.x_label.center(width - len(ends[0]) - len(ends[1])) + ends[1]
    return "\n".join([*lines, f"{' ' * (margin + 2)}{foot}"])


def _cut(name: str, longest: int) -> str:
    return name if len(name) <= longest else f"{name[: longest - 2]}.."


def _has_braille(encoding: str | None) -> bool:
    try:
        "⣿│└─┤".encode(encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _ends(values: Floats, log: bool) -> tuple[float, float]:
    known = values[np.isfinite(values) & ((values > 0) | (not log))]
    low, high = (float(known.min()), float(known.max())) if len(known) else (1.0, 1.0)
    return low, high if high > low else low + 1


def _dots(
    series: Series,
    across: tuple[float, float],
    upward: tuple[float, float],
    log: bool,
    size: tuple[int, int],
    braille: bool,
) -> Dots:
    """Return the dots of a line, True where it is drawn: its points, and straight lines between them."""
    height, width = size
    rows, columns = (4 * height, 2 * width) if braille else (len(_LEVELS) * height, width)
    x, y = np.array(series.x, np.float64), np.array(series.y, np.float64)
    known = np.isfinite(x) & np.isfinite(y)
    low, high = upward
    y = np.clip(y, low, high)
    if log:
        y, low, high = np.log(y), math.log(low), math.log(high)
    column = np.rint((x - across[0]) / (across[1] - across[0]) * (columns - 1))[known]
    row = np.rint((high - y) / (high - low) * (rows - 1))[known]
    found = np.zeros((rows, columns), np.bool_)
    if not len(column):
        return found
    at = np.arange(int(column[0]), int(column[-1]) + 1)
    last = None
    for place, middle in zip(at.tolist(), np.rint(np.interp(at, column, row)).astype(int).tolist(), strict=True):
        step = middle if last is None else last + (middle > last) - (middle < last)
        found[min(step, middle) : max(step, middle) + 1, place] = True
        last = middle
    return found


def _braille(dots: Dots) -> Iterator[str]:
    for top in range(0, len(dots), 4):
        codes = sum(dots[top + i, j::2] * _DOTS[i][j] for i in range(4) for j in range(2))
        yield "".join(chr(0x2800 + code) if code else " " for code in np.asarray(codes).tolist())


def _ascii(dots: Dots) -> Iterator[str]:
    for top in range(0, len(dots), len(_LEVELS)):
        part: Sequence[Sequence[bool]] = dots[top : top + len(_LEVELS)].T.tolist()
        yield "".join(_mark(column) for column in part)


def _mark(column: Sequence[bool]) -> str:
    if sum(column) > 1:
        return "|"
    return _LEVELS[list(column).index(True)] if any(column) else " "
