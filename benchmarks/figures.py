"""The figures of two versions side by side: a table in Markdown, and the aims that this checkout must reach."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks import trainer
from benchmarks.report import Target

LOOP, LOOP_WITHOUT_FOLDS, LOOP_RATE = "loop", "loop without folds", "loops, folds included"
LONGEST, LOG, FOLD = "longest pause of the loops", "SQLite's log, a loop", "a full fold"
EXTEND_RATE, AT_CAPACITY = "extend, rows", "loop at capacity"
MANY_DOMAINS_LOOP, MANY_DOMAINS_DRAW = "loop, 10,000 domains", f"{trainer.DRAW}, 10,000 domains"
PLACES = {"sqlite": "SQLite", "postgres": "PostgreSQL"}
FASTER = {"sqlite": 4.0, "postgres": 3.0}
"""How many times as many loops a second as version 8ed6a6f makes, which had rows of tables for what blocks hold now."""


@dataclass(frozen=True)
class Compared:
    """The values of one figure: those of the other version, and those of this checkout.

    Attributes
    ----------
    unit : str
        Either ``ms`` or ``KiB``: less is better. Or a rate that ends with ``/s``: more is better.
    cpu : (float, float) or None
        Median processor time of the two versions, and of the servers that work for them, in milliseconds.
    """

    database: str
    rows: int
    name: str
    unit: str
    other: tuple[float, ...]
    here: tuple[float, ...]
    cpu: tuple[float, float] | None = None

    @property
    def better(self) -> float | None:
        """How many times as good the median of this checkout is; None without another."""
        other, here = quantile(self.other, 0.5), quantile(self.here, 0.5)
        if other is None or here is None:
            return None
        return here / other if self.unit.endswith("/s") else other / here

    @property
    def cells(self) -> list[float | None]:
        """Median and 95th percentile of the other version; the two of this checkout; the ratios."""
        quantiles = [
            quantile(values, share) if share == 0.5 or len(values) > 1 else None
            for values in (self.other, self.here)
            for share in (0.5, 0.95)
        ]
        return [*quantiles, self.better, self.cpu[0] / self.cpu[1] if self.cpu else None]

    def as_json(self) -> dict[str, Any]:
        """Return the figure for a JSON file."""
        names = ("other_p50", "other_p95", "here_p50", "here_p95", "better", "better_cpu")
        about = {name: getattr(self, name) for name in ("database", "rows", "name", "unit")}
        return about | {"rounds": len(self.here), "cpu": self.cpu} | dict(zip(names, self.cells, strict=True))


def quantile(values: Sequence[float], share: float) -> float | None:
    """Return the quantile; None if there are no values."""
    return float(np.quantile(values, share)) if values else None


def table(compared: Sequence[Compared], commit: str) -> Iterator[str]:
    """Yield the lines of a table in Markdown for each database and size. Ratios above 1 favour this checkout."""
    for key in dict.fromkeys((one.database, one.rows) for one in compared):
        yield f"| {PLACES[key[0]]}, {key[1]:,} rows | {commit:.8}: p50 | p95 | here: p50 | p95 | better | processor |"
        yield "|---" * 7 + "|"
        for one in compared:
            if (one.database, one.rows) == key:
                numbers = [
                    *map(_number, one.cells[:4]),
                    *(number and f"{number}x" for number in map(_number, one.cells[4:])),
                ]
                yield f"| {one.name}, {one.unit} | {' | '.join(numbers)} |"
        yield ""


def _number(value: float | None) -> str:
    """Return three significant digits, without an exponent."""
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".rstrip(".")


def aims(compared: Sequence[Compared]) -> list[Target]:
    """Return the speeds that this checkout must have, for each database and size that was measured."""
    keys = dict.fromkeys((one.database, one.rows) for one in compared)
    found = {(one.database, one.rows, one.name): one for one in compared}
    return [
        aim for key in keys for aim in _aims(key, {name: one for (*at, name), one in found.items() if (*at,) == key})
    ]


def _aims(key: tuple[str, int], found: dict[str, Compared]) -> Iterator[Target]:
    def here(name: str, share: float = 0.5) -> float:
        value = quantile(found[name].here, share)
        assert value is not None
        return value

    where = f"{PLACES[key[0]]}, {key[1]:,} rows"
    yield Target(f"{where}: {LOOP_RATE}", "x", FASTER[key[0]], found[LOOP_RATE].better, at_most=False)
    yield Target(f"{where}: {EXTEND_RATE}", "x", 1.5, found[EXTEND_RATE].better, at_most=False)
    for name, limit in ((trainer.DRAW, 2.0), (trainer.DRAW_FEW, 0.5), (trainer.ADD_ONE, 0.4)):
        yield Target(f"{where}: {name}", "ms", limit, here(name))
    for name in (MANY_DOMAINS_DRAW, trainer.OTHER_ALPHA, trainer.ON_LOSS):
        yield Target(f"{where}: {name}, over {trainer.DRAW}", "x", 2.0, here(name) / here(trainer.DRAW))
    ratio = here(LOOP_WITHOUT_FOLDS, 0.95) / here(LOOP_WITHOUT_FOLDS)
    yield Target(f"{where}: p95 of a {LOOP_WITHOUT_FOLDS}, over its p50", "x", 2.0, ratio)
