"""``python -m benchmarks``: memstore beside code that one would write by hand, in one run.

With ``--against COMMIT``: this checkout beside another commit, in one run; the result is a table in Markdown.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.against import compare
from benchmarks.bench import Bench
from benchmarks.cases import CASES, LARGEST_ONLY, run
from benchmarks.figures import aims, table
from benchmarks.measure import Budget, Results
from benchmarks.places import Place, SqlitePlace, postgres
from benchmarks.report import Target, as_json, environment, show, show_targets, targets
from tests.support.binaries import NoPostgres


def _numbers(text: str) -> list[int]:
    numbers = [int(part.replace("_", "")) for part in text.split(",")]
    if min(numbers) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give positive numbers, separated by commas")
    return numbers


def _cases(text: str) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(CASES):
        raise argparse.ArgumentTypeError(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(CASES)}")
    return names


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "--database",
        choices=("sqlite", "postgres", "both"),
        default="both",
        help="where to measure (default: both, if a PostgreSQL server can be had)",
    )
    parser.add_argument("--url", help="a running PostgreSQL server, instead of one of the benchmarks' own")
    parser.add_argument(
        "--against",
        metavar="COMMIT",
        help="measure a training loop, its calls, opening and queries, in this checkout and in this commit, in turns",
    )
    parser.add_argument(
        "--rows", type=_numbers, help="sizes of the database (default: 10000,100000,1000000; with --against 100000)"
    )
    parser.add_argument("--batch", type=_numbers, help="batch sizes of draws; the others use the largest (32,256)")
    parser.add_argument("--seconds", type=float, help="time for memstore in each group of contenders (default: 2)")
    parser.add_argument("--rounds", type=int, help="largest number of rounds (default: 200)")
    parser.add_argument("--only", type=_cases, default=list(CASES), help=f"any of {','.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="1,000 rows and few rounds: checks that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    parser.add_argument("--folder", type=Path, help="where SQLite's files live meanwhile (default: a temporary one)")
    parser.add_argument("--strict", action="store_true", help="exit with code 1 when a measured target is missed")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks; return the exit code."""
    options = _parser().parse_args(arguments)
    usual = [100_000] if options.against else [10_000, 100_000, 1_000_000]
    rows = options.rows or ([1000] if options.quick else usual)
    batches = options.batch or [32, 256]
    budget = Budget(
        seconds=options.seconds or (0.1 if options.quick else 2.0),
        max_rounds=options.rounds or (3 if options.quick else 200),
    )
    console = Console(width=None if sys.stdout.isatty() else 180)
    console.print("  ".join(f"{name} {value}" for name, value in environment().items()), highlight=False)
    results = Results()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with ExitStack() as stack:
        places = _places(options, stack, console)
        databases = [place.describe() for place in places]
        console.print(*databases, sep="\n", highlight=False)
        if options.against:
            compared = compare(places, options.against, rows, budget)
            for line in table(compared, options.against):
                console.print(line, highlight=False, soft_wrap=True)
            show_targets(console, wanted := aims(compared))
            _write(options.json, {"databases": databases, "compared": [one.as_json() for one in compared]})
            return _exit_code(options, wanted)
        for size, place in itertools.product(rows, places):
            names = [name for name in options.only if size == max(rows) or name not in LARGEST_ONLY]
            with (
                Progress(*columns, console=Console(stderr=True), transient=True) as progress,
                closing(Bench(place, size, batches, budget, progress)) as bench,
            ):
                run(bench, names)
            results.timings += bench.results.timings
            results.facts += bench.results.facts
    order = list(CASES)
    results.timings.sort(key=lambda t: (order.index(t.case.split()[0].rstrip(",")), t.case, t.rows))
    wanted = targets(results)
    show(console, results, wanted)
    _write(options.json, as_json(results, wanted, databases))
    return _exit_code(options, wanted)


def _exit_code(options: argparse.Namespace, wanted: list[Target]) -> int:
    return int(options.strict and any(target.met is False for target in wanted))


def _write(file: Path | None, figures: dict[str, Any]) -> None:
    if file is not None:
        file.write_text(json.dumps(figures, indent=1) + "\n")


def _places(options: argparse.Namespace, stack: ExitStack, console: Console) -> list[Place]:
    """Return the places to measure at. Without a PostgreSQL server, ``both`` means SQLite, and a note says so."""
    places: list[Place] = []
    if options.database != "postgres":
        folder = tempfile.TemporaryDirectory(prefix="memstore-benchmarks-", dir=options.folder)
        places.append(SqlitePlace(Path(stack.enter_context(folder))))
    if options.database != "sqlite":
        try:
            places.append(stack.enter_context(postgres(options.url)))
        except (ImportError, NoPostgres) as exc:
            if options.database == "postgres" or options.url:
                sys.exit(f"no PostgreSQL: {exc}")
            console.print(f"PostgreSQL is left out: {exc}", highlight=False)
    return places


if __name__ == "__main__":
    sys.exit(main())
