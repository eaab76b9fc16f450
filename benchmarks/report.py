"""Tables, targets and JSON."""

from __future__ import annotations

import functools
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from rich.console import Console
from rich.table import Table

import memstore
from benchmarks import cases, conditions, history
from benchmarks.measure import Results, Timing

MILLION, BASE = 1_000_000, 10_000
RATIO = "time, ratio of medians"
K = 256


@dataclass(frozen=True)
class Target:
    """A speed that must hold; ``value`` is None if it was not measured."""

    name: str
    unit: str
    limit: float
    value: float | None
    at_most: bool = True

    @property
    def met(self) -> bool | None:
        """True if the target is met; None if it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.limit if self.at_most else self.value >= self.limit

    @property
    def text(self) -> str:
        """The target as a line of the report."""
        limit = f"{'<=' if self.at_most else '>='} {self.limit:g} {self.unit}".rstrip()
        if self.value is None:
            return f"  [dim]not measured  {self.name} {limit}[/dim]"
        verdict = "[green]met[/green]   " if self.met else "[red]MISSED[/red]"
        return f"  {verdict}  {self.name} {limit}: {self.value:.3g} {self.unit}".rstrip()


def environment() -> dict[str, str]:
    """Return the versions and the machine on which the figures depend, without names or paths."""
    return {
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "sqlalchemy": version("sqlalchemy"),
        "memstore": memstore.__version__,
        "system": f"{platform.system()} {platform.machine()}",
        "cpus": str(os.cpu_count()),
        "load": f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown",
    }


def targets(results: Results) -> list[Target]:
    """Return the targets, with their values if they were measured."""
    return [
        *_sqlite(results),
        *_postgres(results),
        *_history(results, "sqlite", 200),
        *_history(results, "postgres", 400),
        *_conditions(results),
    ]


def _sqlite(results: Results) -> Iterator[Target]:
    find = functools.partial(_timing, results, "sqlite")
    for contender in (cases.COLD, cases.WARM):
        drawn = find("draw", contender)
        yield Target(f"draw of 256 at 1M ({contender})", "ms", 2, _over(drawn, 1e-3))
        growth = _over(drawn, find("draw", contender, rows=BASE))
        yield Target(f"draw of 256 at 1M, over that at 10k ({contender})", "", 1.5, growth)
        by_hand = find("draw", cases.ORDER_BY)
        yield Target(f"{cases.ORDER_BY} at 1M, over draw ({contender})", "x", 50, _over(by_hand, drawn), at_most=False)
    for case in ("extend", "extend, never measured"):
        for baseline in ("by hand, SQLite's defaults", "by hand, memstore's pragmas"):
            rate = _over(find(case, baseline, mean=True), find(case, cases.MEMSTORE, mean=True))
            yield Target(f"{case}, rows/s at 1M, over {baseline}", "x", 0.8, rate, at_most=False)
    for case in ("update", "update, losses redrawn"):
        yield Target(f"{case}, 256 at 1M", "ms", 8, _over(find(case, cases.MEMSTORE), 1e-3))
    yield Target("open and first draw at 1M", "ms", 100, results.fact("sqlite", "open", MILLION, "total"))
    peak, budget = (results.fact("sqlite", "memory", MILLION, name) for name in ("peak", "cache budget"))
    above = None if peak is None or budget is None else peak - budget
    yield Target("peak memory at 1M beyond the cache budget", "MiB", 150, above)


def _postgres(results: Results) -> Iterator[Target]:
    find = functools.partial(_timing, results, "postgres")
    for contender in (cases.COLD, cases.WARM):
        yield Target(f"postgres: draw of 256 at 1M ({contender})", "ms", 6, _over(find("draw", contender), 1e-3))
    yield Target("postgres: update, 256 at 1M", "ms", 8, _over(find("update", cases.MEMSTORE), 1e-3))
    rate = _over(K, find("extend", cases.MEMSTORE, mean=True))
    yield Target("postgres: extend by 256 at 1M", "rows/s", 40_000, rate, at_most=False)


def _history(results: Results, database: str, answer: float) -> Iterator[Target]:
    find = functools.partial(_timing, results, database)
    cost = _over(find("history, update", history.WITH), find("history, update", history.WITHOUT))
    yield Target(f"{database}: update and its history, over update without, at 5M events", "x", 1.4, cost)
    for name in history.CONDITIONS:
        yield Target(f"{database}: draw of 256 at 1M ({name})", "ms", 10, _over(find("history, draw", name), 1e-3))
    for name in history.ANSWERS:
        taken = results.timing(database, "history, answer", MILLION, 1, name)
        yield Target(
            f"{database}: {name} at 5M events", "ms", answer, _over(None if taken is None else taken.median, 1e-3)
        )


def _conditions(results: Results) -> Iterator[Target]:
    ratios = [fact for fact in results.facts if fact.case.startswith("conditions") and fact.name == RATIO]
    for key in dict.fromkeys((fact.database, fact.rows) for fact in ratios):
        worst = max((fact for fact in ratios if (fact.database, fact.rows) == key), key=lambda fact: fact.value)
        name = f"{key[0]}: {worst.case} of {key[1]:,}, over no condition (the worst)"
        yield Target(name, "x", conditions.LIMIT, worst.value)


def conditions_table(results: Results) -> Iterator[str]:
    """Yield the README's table in Markdown: the ratio of each draw, and the larger cost of the first two uses."""
    keys = dict.fromkeys((f.database, f.rows) for f in results.facts if f.case.startswith("conditions"))
    for database, rows in keys:
        yield (
            f"| {database}, {rows:,} rows: share that passes | "
            + " | ".join(f"{s} %" for s in conditions.SHARES)
            + " |"
        )
        yield "|---" * (len(conditions.SHARES) + 1) + "|"
        for name in conditions.STRATEGIES:
            find = functools.partial(_condition, results, database, rows, name)
            yield f"| {name} | " + " | ".join(f"{find(s, RATIO):.1f}" for s in conditions.SHARES) + " |"
        costs = [
            max(_condition(results, database, rows, name, s, use) for name in conditions.STRATEGIES for use in _USES)
            for s in conditions.SHARES
        ]
        yield "| the dearest use, once, ms | " + " | ".join(f"{cost:,.0f}" for cost in costs) + " |"


_USES = ("first use", "second use")


def _condition(results: Results, database: str, rows: int, name: str, share: int, figure: str) -> float:
    return results.fact(database, f"conditions, {name}, {share} % pass", rows, figure) or float("nan")


def _timing(
    results: Results, database: str, case: str, contender: str, *, rows: int = MILLION, mean: bool = False
) -> float | None:
    """Return the median, or the mean, in seconds; None if it was not measured."""
    timing = results.timing(database, case, rows, K, contender)
    if timing is None:
        return None
    return timing.mean if mean else timing.median


def _over(value: float | None, by: float | None) -> float | None:
    return None if value is None or by is None else value / by


def show(console: Console, results: Results, wanted: list[Target]) -> None:
    """Print everything."""
    table = Table(title="x: how many times as long as memstore in the first line of the group")
    for name in ("database", "case", "rows", "batch", "contender"):
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

    facts = Table(title="Other figures")
    for name in ("database", "case", "rows", "figure", "value"):
        facts.add_column(name, justify="right" if name in ("rows", "value") else "left")
    for fact in results.facts:
        facts.add_row(fact.database, fact.case, f"{fact.rows:,}", fact.name, f"{fact.value:,.1f} {fact.unit}".rstrip())
    if results.facts:
        console.print(facts)

    for line in conditions_table(results):
        console.print(line, highlight=False, soft_wrap=True)
    show_targets(console, wanted)


def show_targets(console: Console, wanted: list[Target]) -> None:
    """Print the targets, a line each."""
    console.print("Targets")
    for target in wanted:
        console.print(target.text, highlight=False, soft_wrap=True)


def _cells(timing: Timing, reference: Timing | None) -> list[str]:
    ratios = ["1", "1"]
    if reference is not None:
        ratios = [_ratio(timing.median / reference.median), _ratio(timing.mean / reference.mean)]
    return [
        timing.database,
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


def as_json(results: Results, wanted: list[Target], databases: list[str]) -> dict[str, Any]:
    """Return everything, for a JSON file."""
    return {
        "environment": environment(),
        "databases": databases,
        "timings": [
            {
                "database": t.database,
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
