"""``python -m benchmarks``: memstore beside what one would write by hand, in one run."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.cases import CASES, Bench
from benchmarks.measure import Budget, Results
from benchmarks.report import as_json, environment, show, targets


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
    parser.add_argument("--rows", type=_numbers, help="sizes of the database (default: 10000,100000,1000000)")
    parser.add_argument("--batch", type=_numbers, help="batch sizes of draws; the others use the largest (32,256)")
    parser.add_argument("--seconds", type=float, help="time for memstore in each group of contenders (default: 2)")
    parser.add_argument("--rounds", type=int, help="at most so many rounds (default: 200)")
    parser.add_argument("--only", type=_cases, default=list(CASES), help=f"any of {','.join(CASES)}")
    parser.add_argument("--quick", action="store_true", help="2,000 rows and few rounds: checks that everything runs")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures to a file")
    parser.add_argument("--folder", type=Path, help="where the databases live while it runs (default: a temporary one)")
    parser.add_argument("--strict", action="store_true", help="exit with 1 when a measured target is missed")
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Run; returns the exit code."""
    options = _parser().parse_args(arguments)
    rows = options.rows or ([2000] if options.quick else [10_000, 100_000, 1_000_000])
    batches = options.batch or [32, 256]
    budget = Budget(
        seconds=options.seconds or (0.1 if options.quick else 2.0),
        max_rounds=options.rounds or (5 if options.quick else 200),
    )
    console = Console(width=None if sys.stdout.isatty() else 160)
    console.print("  ".join(f"{name} {value}" for name, value in environment().items()), highlight=False)
    results = Results()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    for size in rows:
        with tempfile.TemporaryDirectory(prefix="memstore-benchmarks-", dir=options.folder) as folder:
            with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
                measured = Bench(Path(folder), size, batches, budget, progress).run(options.only)
            results.timings += measured.timings
            results.facts += measured.facts
    results.timings.sort(key=lambda t: [CASES.index(t.case.split()[0].rstrip(",")), t.case])
    wanted = targets(results)
    show(console, results, wanted)
    if options.json:
        options.json.write_text(json.dumps(as_json(results, wanted), indent=1) + "\n")
    return int(options.strict and any(target.met is False for target in wanted))


if __name__ == "__main__":
    sys.exit(main())
