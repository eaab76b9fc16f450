"""The commands that keep a database sound: check, fold, upgrade, backup, restore, vacuum."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from memstore.cli.common import ALL_BUFFERS, DB, EXIT_FOUND, command, console, open_buffer, print_json
from memstore.cli.text import size_text, visible
from memstore.opening import buffers, examine
from memstore.storage.address import shown_address
from memstore.upkeep.backup import backup as copy_database
from memstore.upkeep.backup import vacuum as vacuum_database
from memstore.upkeep.restore import restore as restore_database


@command("memstore check run.db && echo sound", DB, ALL_BUFFERS)
def check(db: str, buffer: str | None, as_json: bool) -> None:
    """Verify that a database is sound.

    The command checks pages, blocks, bounds, counts, sums, checksums and orphans. It reads everything once, changes
    nothing, and prints how many seconds that took. Its exit code is 1 if it finds a problem. A buffer that is too
    damaged to be opened is examined as far as it can be read.
    """
    reports = [(name, examine(db, name)) for name in ([buffer] if buffer is not None else buffers(db))]
    if as_json:
        print_json([{"buffer": name, "ok": r.ok} | dataclasses.asdict(r) for name, r in reports])
    else:
        for name, report in reports:
            count = len(report.problems)
            verdict = "sound" if report.ok else f"{count} problem{'s' if count > 1 else ''}"
            click.echo(f"buffer {name!r}: {report.episodes:,} episodes, {verdict}, {report.seconds:.1f} s")
            for problem in report.problems:
                click.echo(f"  problem: {visible(problem)}")
            for what in report.unchecked:
                click.echo(f"  not checked: {visible(what)}")
        for note in dict.fromkeys(note for _, report in reports for note in report.notes):
            click.echo(f"note: {visible(note)}")
    if not all(report.ok for _, report in reports):
        sys.exit(EXIT_FOUND)


@command(
    "memstore fold run.db",
    DB,
    click.option(
        "--buffer",
        "names",
        metavar="NAME",
        multiple=True,
        help="Fold this buffer; may be given several times.  [default: all of them]",
    ),
)
def fold(db: str, names: tuple[str, ...], as_json: bool) -> None:
    """Bring the tables up to date with the log, and delete the rows of departed episodes.

    A write of memstore appends to a log and to nothing else. The tables that you read with sqlite3 or psql follow by
    themselves after some thousand entries, and when a process closes its memory. This command does it now, while others
    go on: views and queries get quick, and the space of departed episodes is free for new ones (memstore vacuum gives
    it back to the disk). It changes nothing that is drawn, and it may be run at any time.

    It holds the write lock of one buffer at a time, about a second for 100,000 entries.
    """
    told = []
    for name in names or buffers(db):
        begun = time.perf_counter()
        with open_buffer(db, name) as memory:
            entries = memory.fold()
        told.append({"buffer": name, "entries": entries, "seconds": time.perf_counter() - begun})
        if as_json:
            continue
        if entries:
            click.echo(f"buffer {name!r}: {entries:,} log entries folded in {told[-1]['seconds']:.1f} s")
        else:
            click.echo(f"buffer {name!r}: the tables are at the end of the log already")
    if as_json:
        print_json(told)


@command(
    "memstore upgrade run.db",
    DB,
    click.option("--no-backup", is_flag=True, help="Make no copy of a SQLite file first."),
)
def upgrade(db: str, no_backup: bool, as_json: bool) -> None:
    """Bring the tables of an older memstore up to date.

    This is one transaction. First stop the processes that use the database. A SQLite file is copied before the upgrade.
    The name of the copy is printed. A bar on a terminal shows how many episodes are converted. If the command is
    killed, the database is as it was; run it again.
    """
    from memstore.storage.upgrade import upgrade as upgrade_database

    where = shown_address(db)
    with _progress("converting") as on_progress:
        done = upgrade_database(db, backup=not no_backup, on_progress=on_progress)
    copy = None if done.backup is None else str(done.backup)
    if as_json:
        print_json({"before": done.before, "after": done.after, "backup": copy})
    elif done.before == done.after:
        click.echo(f"{where} is up to date (schema {done.after})")
    else:
        click.echo(f"{where}: schema {done.before} -> {done.after}")
        if copy is not None:
            click.echo(f"the database as it was: {copy}")


@command("memstore backup run.db copy.db", DB, click.argument("to"))
def backup(db: str, to: str, as_json: bool) -> None:
    """Copy a database while others go on writing.

    The copy is the database as it is at one moment. TO is a file that does not exist yet, or a PostgreSQL database
    without a buffer. DB may be of the other kind. The copy of a file gets its permissions. To put a copy back, use
    memstore restore.
    """
    with _progress("copying") as on_progress:
        copy_database(db, to, on_progress=on_progress)
    source, copy = shown_address(db), shown_address(to)
    if as_json:
        print_json({"source": source, "copy": copy})
    else:
        click.echo(f"{visible(source)} is copied to {visible(copy)}")


@command(
    "memstore restore copy.db run.db",
    click.argument("backup"),
    DB,
    click.option(
        "--keep",
        metavar="FOLDER",
        help="Folder for the replaced content of a PostgreSQL database.  [default: this folder]",
    ),
    click.option("--force", is_flag=True, help="Replace DB even if it does not seem to be a memstore."),
)
def restore(backup: str, db: str, keep: str | None, force: bool, as_json: bool) -> None:
    """Put a backup in the place of a database.
    First stop the processes that use DB: while one of them has it open, the command refuses. BACKUP is only read, and
    it is verified before DB is touched. The former content of DB stays beside it as DB.replaced-DATE-TIME; that of a
    PostgreSQL database goes to a file of such a name.

    If the command is killed, DB is either as it was or as BACKUP is; run it again. Do not use cp instead: a file copied
    over run.db mixes with the log beside it (run.db-wal), a copy of run.db alone lacks the commits in its log, and
    deleting the log deletes commits.
    """
    with _progress("copying") as on_progress:
        done = restore_database(backup, db, force=force, keep=keep, on_progress=on_progress)
    source, where = shown_address(backup), shown_address(db)
    if as_json:
        shown = dataclasses.asdict(done) | {"replaced": None if done.replaced is None else str(done.replaced)}
        print_json({"backup": source, "database": where} | shown)
        return
    held = ", ".join(f"{visible(name)} ({count:,} episodes)" for name, count in done.buffers.items()) or "no buffer"
    click.echo(f"{visible(where)} is now what {visible(source)} is: {held}, all sound")
    if done.upgraded_from is not None:
        click.echo(f"the backup has schema {done.upgraded_from} of an older memstore; the copy was upgraded")
    if done.replaced is not None:
        click.echo(f"the database as it was: {visible(str(done.replaced))}")


@command("memstore vacuum run.db", DB)
def vacuum(db: str, as_json: bool) -> None:
    """Free the space that deleted rows still occupy.

    First all buffers are folded (see memstore fold), so that departed episodes have no rows. A SQLite file is then
    written again. In that time no other process may write, or be in the middle of a query. PostgreSQL
    frees the space for new rows. The printed sizes are in B, KiB, MiB or GiB (1 KiB = 1,024 bytes).
    """
    done = vacuum_database(db)
    if as_json:
        print_json(dataclasses.asdict(done))
        return
    for part, before in done.before.items():
        click.echo(f"{part}: {size_text(before)} -> {size_text(done.after.get(part, 0))}")


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on stderr; yield the function to call with the work done and the whole work."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    out = console(stderr=True)
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, whole: bar.update(task, completed=done, total=whole)
