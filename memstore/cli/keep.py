"""The commands that keep a database sound: check, upgrade, backup, vacuum."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from memstore.cli.common import (
    EXIT_FOUND,
    all_buffers_option,
    as_json_option,
    each_buffer,
    print_json,
    reporting,
)
from memstore.cli.text import size_text, visible
from memstore.config import shown_address
from memstore.copying import backup as copy_database
from memstore.copying import vacuum as vacuum_database


@click.command(epilog="Example:  memstore check run.db && echo sound")
@click.argument("db")
@all_buffers_option
@as_json_option
@reporting
def check(db: str, buffer: str | None, as_json: bool) -> None:
    """Verify every invariant: pages, positions, bounds, counts, sums, checksums, orphans.

    Reads everything once and changes nothing. Exit code 1 when something is wrong.
    """
    reports = each_buffer(db, buffer, lambda memory: (memory.name, memory.check()))
    if as_json:
        print_json([{"buffer": name, "ok": r.ok} | dataclasses.asdict(r) for name, r in reports])
    else:
        for name, report in reports:
            verdict = "sound" if report.ok else f"{len(report.problems)} problems"
            click.echo(f"buffer {name!r}: {report.episodes:,} episodes, {verdict}, {report.seconds:.1f} s")
            for problem in report.problems:
                click.echo(f"  problem: {visible(problem)}")
            for what in report.unchecked:
                click.echo(f"  not checked: {visible(what)}")
        for note in dict.fromkeys(note for _, report in reports for note in report.notes):
            click.echo(f"note: {visible(note)}")
    if not all(report.ok for _, report in reports):
        sys.exit(EXIT_FOUND)


@click.command(epilog="Example:  memstore upgrade run.db")
@click.argument("db")
@click.option("--no-backup", is_flag=True, help="Do not copy a SQLite file first.")
@as_json_option
@reporting
def upgrade(db: str, no_backup: bool, as_json: bool) -> None:
    """Bring the tables of an older memstore up to date, in one transaction.

    Stop the processes that use the database first. A SQLite file is copied before; the copy's name is printed.
    """
    from memstore.upgrade import upgrade as upgrade_database

    where = shown_address(db)
    done = upgrade_database(db, backup=not no_backup)
    copy = None if done.backup is None else str(done.backup)
    if as_json:
        print_json({"before": done.before, "after": done.after, "backup": copy})
    elif done.before == done.after:
        click.echo(f"{where} is up to date (schema {done.after})")
    else:
        click.echo(f"{where}: schema {done.before} -> {done.after}")
        if copy is not None:
            click.echo(f"the database as it was: {copy}")


@click.command(epilog="Example:  memstore backup run.db copy.db")
@click.argument("db")
@click.argument("to")
@as_json_option
@reporting
def backup(db: str, to: str, as_json: bool) -> None:
    """Copy the database as it is at one moment, while others go on writing.

    TO is a file that does not exist, or a PostgreSQL database without a buffer; DB may be of the other kind.
    """
    with _progress("copying") as on_progress:
        copy_database(db, to, on_progress=on_progress)
    source, copy = shown_address(db), shown_address(to)
    if as_json:
        print_json({"source": source, "copy": copy})
    else:
        click.echo(f"{visible(source)} is copied to {visible(copy)}")


@click.command(epilog="Example:  memstore vacuum run.db")
@click.argument("db")
@as_json_option
@reporting
def vacuum(db: str, as_json: bool) -> None:
    """Give back what deleted rows still hold.

    A SQLite file is written anew, for which nobody else may be writing; PostgreSQL frees the space for new rows.
    """
    done = vacuum_database(db)
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    for part, before in done.before.items():
        click.echo(f"{part}: {size_text(before)} -> {size_text(done.after.get(part, 0))}")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr; yields what to call with what is done, and the whole."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    out = Console(stderr=True)
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, whole: bar.update(task, completed=done, total=whole)
