"""Lines in a terminal: each on a strip of its own, on common axes, in 80 columns and any encoding."""

from __future__ import annotations

import math

import pytest

from memstore.cli.strips import WIDTH, strips
from memstore.figures.figure import Figure, Series

X = tuple(float(i) for i in range(101))
FALLING = tuple(math.exp(-i / 10) for i in range(101))


def figure(*lines: tuple[float, ...], log: bool = False, x: tuple[float, ...] = X) -> Figure:
    """Lines named a, b, c ..."""
    series = tuple(Series("abcdefgh"[i], x[: len(y)], y) for i, y in enumerate(lines))
    return Figure("trend", "mean loss", "step", "loss", "lines", series, log_y=log)


def heights(text: str, strip: int, height: int) -> list[float]:
    """How high the line stands in each character's column, from ASCII: 0 at the bottom of its strip."""
    lines = text.split("\n")[1 + strip * (height + 1) :][:height]
    rows = [line[line.index("+" if "+" in line else "|") + 1 :] for line in lines]
    found = []
    for column in range(max(map(len, rows))):
        levels = [
            3 * (height - 1 - i) + {"'": 2, "-": 1, ".": 0, "|": 1}[row[column]]
            for i, row in enumerate(rows)
            if column < len(row) and row[column] != " "
        ]
        found.append(sum(levels) / len(levels))
    return found


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252", None, "no such"])
@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_every_line_fits_and_can_be_written(encoding: str | None, count: int) -> None:
    text = strips(figure(*[FALLING] * count, log=True), encoding)
    if encoding != "utf-8":
        text.encode("ascii")
    lines = text.split("\n")
    assert max(map(len, lines)) <= WIDTH and len(lines) <= 36
    assert "logarithmic" in lines[0] and "step" in lines[-1] and lines[-1].endswith("100")
    assert all(any(line.split()[:1] == [name] for line in lines) for name in "abcdefgh"[:count])


def test_an_exponential_is_straight_on_a_logarithmic_axis() -> None:
    straight = heights(strips(figure(FALLING, log=True), "ascii"), 0, 12)
    bent = heights(strips(figure(FALLING), "ascii"), 0, 12)
    middle = len(straight) // 2
    assert straight[0] == bent[0] == 35 and straight[-1] == 0
    assert abs(straight[middle] - 17.5) <= 1.5 and bent[middle] <= 1


def test_strips_share_their_axes() -> None:
    text = strips(figure((1.0,) * 101, (3.0,) * 101, (2.0,) * 51), "ascii")
    low, high, half = (heights(text, i, 6) for i in range(3))
    assert set(low) == {0} and set(high) == {17} and len(half) < len(low) * 0.55
    assert all(abs(at - 8.5) <= 1 for at in half if at)


@pytest.mark.parametrize(
    "lines", [((0.0, 0.0),), ((0.0, 5.0, 1e-8),), ((math.nan, 1.0),), ((1e300, 1e-300),), ((2.0,),), ((),)], ids=str
)
@pytest.mark.parametrize("log", [False, True])
def test_hostile_values_are_drawn_somehow(lines: tuple[tuple[float, ...], ...], log: bool) -> None:
    for encoding in ("utf-8", "ascii"):
        assert max(map(len, strips(figure(*lines, log=log), encoding).split("\n"))) <= WIDTH
