"""Tables, targets and JSON."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

import memstore
from benchmarks import cases
from benchmarks.measure import Results, Timing

MILLION, BASE = 1_000_000, 10_000
K = 256


@dataclass(frozen=True)
class Target:
    """One of the speeds that must hold; ``value`` is None where it was not measured."""

    name: str
    unit: str
    limit: float
    value: float | None
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        """None where it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    @property
    def text(self) -> str:
        """As printed."""
        limit = f"{'<=' if self.at_most else '>='} {self.limit:g} {self.unit}".rstrip()
        if self.value is None:
            return f"  [dim]not measured  {self.name} {limit}[/dim]"
        verdict = "[green]met[/green]   " if self.met else "[red]MISSED[/red]"
        return f"  {verdict}  {self.name} {limit}: {self.value:.3g} {self.unit}".rstrip()


def environment() -> dict[str, str]:
    """What the figures depend on, without names or paths."""
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "numpy": version("numpy"),
        "sqlalchemy": version("sqlalchemy"),
        "memstore": memstore.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
    }


def targets(results: Results) -> list[Target]:
    """Issue 2, "What must hold", 6."""
    return list(_targets(results))


def _targets(results: Results) -> Iterator[Target]:
    def median(case: str, rows: int, contender: str) -> float | None:
        timing = results.timing(case, rows, K, contender)
        return None if timing is None else timing.median

    def mean(case: str, rows: int, contender: str) -> float | None:
        timing = results.timing(case, rows, K, contender)
        return None if timing is None else timing.mean

    for contender in (cases.COLD, cases.WARM):
        drawn = median("draw", MILLION, contender)
        yield Target(f"draw of 256 at 1M ({contender})", "ms", 2, _over(drawn, 1e-3))
        growth = _over(drawn, median("draw", BASE, contender))
        yield Target(f"draw of 256 at 1M, over that at 10k ({contender})", "", 1.5, growth)
        by_hand = median("draw", MILLION, cases.ORDER_BY)
        yield Target(f"{cases.ORDER_BY} at 1M, over draw ({contender})", "x", 50, _over(by_hand, drawn), at_most=False)
    for case in ("extend", "extend, never measured"):
        for baseline in (cases.BY_HAND, cases.TUNED):
            rate = _over(mean(case, MILLION, baseline), mean(case, MILLION, cases.MEMSTORE))
            yield Target(f"{case}, rows/s at 1M, over {baseline}", "x", 0.8, rate, at_most=False)
    for case in ("update", "update, losses redrawn"):
        yield Target(f"{case}, 256 at 1M", "ms", 8, _over(median(case, MILLION, cases.MEMSTORE), 1e-3))
    yield Target("open and first draw at 1M", "ms", 100, results.fact("open", MILLION, "total"))
    peak, budget = results.fact("memory", MILLION, "peak"), results.fact("memory", MILLION, "cache budget")
    above = None if peak is None or budget is None else peak - budget
    yield Target("peak memory at 1M beyond the cache budget", "MiB", 150, above)


def _over(value: float | None, by: float | None) -> float | None:
    return None if value is None or by is None else value / by


def show(console: Console, results: Results, wanted: list[Target]) -> None:
    """Print everything."""
    table = Table(title="x: how many times as long as memstore in the first line of the group")
    for name in ("case", "rows", "batch", "contender"):
        table.add_column(name, no_wrap=True, justify="right" if name in ("rows", "batch") else "left")
    for name in ("rounds", "median ms", "p95 ms", "cpu ms", "episodes/s", "x median", "x throughput"):
        table.add_column(name, no_wrap=True, justify="right")
    before: Timing | None = None
    for timing in results.timings:
        if before is not None and before.group != timing.group:
            table.add_section()
        table.add_row(*_cells(timing, results.reference(timing)))
        before = timing
    if results.timings:
        console.print(table)

    facts = Table(title="Fresh processes")
    for name in ("case", "rows", "figure", "value"):
        facts.add_column(name, justify="right" if name in ("rows", "value") else "left")
    for fact in results.facts:
        facts.add_row(fact.case, f"{fact.rows:,}", fact.name, f"{fact.value:.1f} {fact.unit}")
    if results.facts:
        console.print(facts)

    console.print("Targets")
    for target in wanted:
        console.print(target.text, highlight=False)


def _cells(timing: Timing, reference: Timing | None) -> list[str]:
    ratios = ["1", "1"]
    if reference is not None:
        ratios = [_ratio(timing.median / reference.median), _ratio(timing.mean / reference.mean)]
    return [
        timing.case,
        f"{timing.rows:,}",
        str(timing.batch),
        timing.contender,
        str(len(timing.seconds)),
        f"{timing.median * 1e3:.3f}",
        f"{timing.p95 * 1e3:.3f}",
        f"{timing.median_cpu * 1e3:.3f}",
        f"{timing.batch / timing.mean:,.0f}",
        *ratios,
    ]


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.0f}"


def as_json(results: Results, wanted: list[Target]) -> dict[str, Any]:
    """Everything, for a file."""
    return {
        "environment": environment(),
        "timings": [
            {
                "case": t.case,
                "rows": t.rows,
                "batch": t.batch,
                "contender": t.contender,
                "rounds": len(t.seconds),
                "median": t.median,
                "p95": t.p95,
                "median_cpu": t.median_cpu,
                "mean": t.mean,
                "times_median": (r := results.reference(t)) and t.median / r.median,
                "times_mean": r and t.mean / r.mean,
            }
            for t in results.timings
        ],
        "facts": [asdict(fact) for fact in results.facts],
        "targets": [
            {"name": t.name, "limit": t.limit, "at_most": t.at_most, "value": t.value, "unit": t.unit, "met": t.met}
            for t in wanted
        ],
    }
