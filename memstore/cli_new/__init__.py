"""The ``memstore`` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import click
from rich.console import Console

from memstore.config import shown_address
from memstore.errors import ConfigError, MemstoreError
from memstore.experiments.experiment import EXPERIMENTS
from memstore.types import EvictionPolicy, ReplayStrategy
from memstore.version import __version__

P = ParamSpec("P")

EXIT_PROBLEMS = 1
EXIT_USAGE = 2
EXIT_ERROR = 3

EXIT_CODES = "Exit codes: 0 done, 1 check found problems, 2 wrong usage or settings, 3 the database refused."


def _reporting(command: Callable[P, None]) -> Callable[P, None]:
    """Turn memstore's errors into one line and an exit code; anything else is a bug and keeps its traceback."""

    @wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            command(*args, **kwargs)
        except MemstoreError as exc:
            click.echo(f"memstore: {exc}", err=True)
            sys.exit(EXIT_USAGE if isinstance(exc, ConfigError) else EXIT_ERROR)
        except KeyboardInterrupt:
            click.echo("memstore: interrupted; everything committed so far is kept", err=True)
            sys.exit(130)

    return run


@click.group(epilog=EXIT_CODES, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="memstore")
def main() -> None:
    """A persistent experience-replay memory: train through it, look into it, keep it sound.

    DB is a file such as run.db, or a database URL.
    """


@main.command(epilog="Example:  memstore train --db run.db    (kill it, run it again: it continues)")
@click.option("--db", required=True, metavar="DB", help="Where the memory is, or is to be made.")
@click.option(
    "--dataset",
    default="digits",
    show_default=True,
    metavar="NAME|FILE.npz",
    help="scikit-learn's bundled digits, or an .npz with arrays x, y and optionally domain.",
)
@click.option(
    "--strategy", type=click.Choice([s.value for s in ReplayStrategy]), help="How replay is drawn.  [default: uniform]"
)
@click.option(
    "--eviction",
    type=click.Choice([e.value for e in EvictionPolicy]),
    help="What leaves at capacity.  [default: reservoir]",
)
@click.option("--capacity", type=int, metavar="N", help="Episodes kept, at most.  [default: 200]")
@click.option("--alpha", type=float, help="Exponent of the prioritized strategies.  [default: 0.6]")
@click.option(
    "--replay-ratio",
    type=float,
    metavar="R",
    help="Replayed examples per new one.  [default: 1, 10 new and 10 replayed]",
)
@click.option(
    "--retrieval",
    type=click.Choice(["draw", "mir"]),
    help="Replay what is drawn, or of more drawn what a step on the new examples would harm most.  [default: draw]",
)
@click.option("--ewc/--no-ewc", default=None, help="Elastic weight consolidation.  [default: off, but for stable]")
@click.option(
    "--preset",
    type=click.Choice(["default", "fast", "stable", "prioritized", "balanced"]),
    help="Replay settings of this preset; single options override it.",
)
@click.option("--seed", type=int, help="Of weights, stream order and draws.  [default: 0]")
@click.option("--fresh", is_flag=True, help="Drop a former run in DB first.")
@click.option("--no-replay", is_flag=True, help="Train only the arm without replay; DB is not touched.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@_reporting
def train(
    db: str, dataset: str, fresh: bool, no_replay: bool, as_json: bool, preset: str | None, **settings: Any
) -> None:
    """Learn a dataset task by task, in one pass, replaying through the memory.

    Every step is one commit of new episodes, replayed losses and weights. Killed at any point and started again with
    the same command, it continues from the last commit and ends with the same weights, bit for bit: compare the
    digests. The table at the end shows the accuracy on each task, and the same without replay.
    """
    from memstore import cli_report
    from memstore.learner import run_baseline, run_training, training_config

    where = shown_address(db)
    config = training_config(preset, **settings)
    baseline = run_baseline(config, dataset=dataset)
    if no_replay:
        result = None
    else:
        with cli_report.training_progress(where) as on_progress:
            result = run_training(db, config, dataset=dataset, fresh=fresh, on_progress=on_progress)
    if as_json:
        click.echo(json.dumps({"replay": result and result.to_dict(), "no_replay": baseline.to_dict()}, indent=2))
    else:
        cli_report.print_training(where, result, baseline)


@main.command(epilog="Example:  memstore experiment split-digits --quick")
@click.argument("name", metavar="NAME", type=click.Choice(list(EXPERIMENTS)))
@click.option("--out", metavar="DIR", help="Where results and report go.  [default: NAME, or NAME-quick]")
@click.option("--quick", is_flag=True, help="The version of seconds: fewer arms and seeds.")
@click.option("--seeds", type=int, metavar="N", help="Seeds for each arm.  [default: the experiment's own number]")
@click.option("--jobs", type=int, default=1, show_default=True, metavar="N", help="Trials at a time.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@_reporting
def experiment(name: str, out: str | None, quick: bool, seeds: int | None, jobs: int, as_json: bool) -> None:
    """Repeat an experiment whose outcome is published, through the memory, and print what comes of it. NAME is one of

    \b
    split-digits       what replay keeps of earlier tasks, and what a crash costs
    cliffwalk          how many updates prioritized draws save, and their bias
    imbalanced-digits  what draws do for rare classes, and for wrong labels

    Tables, figures and findings, whether they hold or not, go to DIR as report.txt and report.json, figures also as
    PNG where matplotlib is installed. Every finished trial is kept: stopped or killed, the same command continues.
    """
    from memstore import cli_report
    from memstore.experiments.experiment import experiment_named
    from memstore.experiments.report import JSON, TEXT
    from memstore.experiments.runner import run_experiment

    folder = Path(out or (f"{name}-quick" if quick else name))
    with cli_report.experiment_progress(folder) as on_progress:
        run_experiment(experiment_named(name), folder, quick=quick, seeds=seeds, jobs=jobs, on_progress=on_progress)
    click.echo((folder / (JSON if as_json else TEXT)).read_text(encoding="utf-8"), nl=False)


@main.command(epilog="Example:  memstore stats run.db --json")
@click.argument("db")
@click.option("--buffer", metavar="NAME", help="One buffer; default: all of them.")
@click.option("--exact", is_flag=True, help="Scan the losses instead of using the sampling index's half-octaves.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@_reporting
def stats(db: str, buffer: str | None, exact: bool, as_json: bool) -> None:
    """Show the health of each buffer: size, losses, domains, replays, disk."""
    from memstore import cli_report

    found = list(_each_buffer(db, buffer, lambda memory: memory.stats(exact=exact)))
    if as_json:
        click.echo(json.dumps([item.to_dict() for item in found], indent=2))
    else:
        for item in found:
            cli_report.print_stats(item)


@main.command(epilog="Example:  memstore check run.db && echo sound")
@click.argument("db")
@click.option("--buffer", metavar="NAME", help="One buffer; default: all of them.")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@_reporting
def check(db: str, buffer: str | None, as_json: bool) -> None:
    """Verify every invariant: pages, positions, bounds, counts, sums, checksums, orphans.

    Reads everything once and changes nothing. Exit code 1 when something is wrong.
    """
    reports = _each_buffer(db, buffer, lambda memory: (memory.name, memory.check()))
    if as_json:
        click.echo(
            json.dumps(
                [
                    {"buffer": name, "ok": r.ok, "episodes": r.episodes, "problems": r.problems, "notes": r.notes}
                    for name, r in reports
                ],
                indent=2,
            )
        )
    else:
        console = Console()
        for name, report in reports:
            verdict = "sound" if report.ok else f"{len(report.problems)} problems"
            console.print(f"buffer {name!r}: {report.episodes:,} episodes, {verdict}", markup=False)
            for problem in report.problems:
                console.print(f"  problem: {problem}", markup=False)
        for note in dict.fromkeys(note for _, report in reports for note in report.notes):
            console.print(f"note: {note}", markup=False)
    if not all(report.ok for _, report in reports):
        sys.exit(EXIT_PROBLEMS)


@main.command(epilog="Example:  memstore upgrade run.db")
@click.argument("db")
@click.option("--no-backup", is_flag=True, help="Do not copy a SQLite file first.")
@_reporting
def upgrade(db: str, no_backup: bool) -> None:
    """Bring the tables of an older memstore up to date, in one transaction.

    Stop the processes that use the database first. A SQLite file is copied before; the copy's name is printed.
    """
    from memstore.upgrade import upgrade as upgrade_database

    where = shown_address(db)
    done = upgrade_database(db, backup=not no_backup)
    if done.before == done.after:
        click.echo(f"{where} is up to date (schema {done.after})")
        return
    click.echo(f"{where}: schema {done.before} -> {done.after}")
    if done.backup is not None:
        click.echo(f"the database as it was: {done.backup}")


def _each_buffer(db: str, buffer: str | None, ask: Callable[[Any], Any]) -> list[Any]:
    import memstore

    answers = []
    for name in [buffer] if buffer is not None else memstore.buffers(db):
        with memstore.open(db, buffer=name, create=False, cache_bytes=0) as memory:
            answers.append(ask(memory))
    return answers


if __name__ == "__main__":
    main()
