"""Work on whole databases: copy one while others write, and give space back to the disk."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Table, func, select, tuple_

from memstore.buffer.counters import buffer_names
from memstore.config import DEFAULT_BUSY_TIMEOUT
from memstore.errors import ConfigError
from memstore.storage import stored
from memstore.storage.address import parse_url, shown_url, sqlite_path
from memstore.storage.backends.base import Backend, Progress
from memstore.storage.database import Database
from memstore.storage.newfile import check_free, written_whole
from memstore.storage.schema import metadata
from memstore.storage.upgrade import ensure_schema
from memstore.upkeep.folding import fold_buffers

ROWS, BLOBS = 4096, 64
"""A copy takes this many rows at a time: ``BLOBS`` of a table with payloads, ``ROWS`` of another table."""

Address = str | os.PathLike[str] | URL


@dataclass(frozen=True, slots=True)
class Vacuumed:
    """The bytes that the database occupied, by part, before and after a ``vacuum``."""

    before: dict[str, int]
    after: dict[str, int]


def backup(
    source: Address,
    destination: Address,
    *,
    busy_timeout: float = DEFAULT_BUSY_TIMEOUT,
    on_progress: Progress | None = None,
) -> None:
    """Copy a whole database as it is at one moment, while others go on writing.

    The copy holds buffers, history and checkpoints, and opens like any memstore. ``restore`` puts it in the place of a
    database. From file to file, pages are copied. Otherwise rows are copied, so a backup can move a run from a file to
    a PostgreSQL server, and back.

    Parameters
    ----------
    source : path or URL
    destination : path or URL
        A file that does not exist, or a PostgreSQL database without a buffer. The copy appears as a whole or not at
        all. The copy of a file has the same mode and, if that is allowed, the same owner.
    busy_timeout : float
        Seconds to wait for locks of others.
    on_progress : callable, optional
        Function that is called with the number of parts done and the number of all parts.

    Raises
    ------
    ConfigError
        There is something at the destination, or its folder does not exist. If several backups go to one destination at
        the same time, one succeeds.
    StoreFull, StoreCorrupt, SchemaTooOld ...
        The copy cannot be made. Nothing of it remains.
    """
    told = on_progress or (lambda done, total: None)
    target = parse_url(destination)
    file = sqlite_path(target)
    if file is not None:
        check_free(file)
    with closing(Database(parse_url(source), busy_timeout=busy_timeout)) as origin:
        ensure_schema(origin, create=False)
        if file is None:
            origin.in_read(lambda read: fill(target, read, origin.backend, busy_timeout, told))
            return
        with written_whole(file, sqlite_path(origin.backend.url)) as partial:
            fill_file(origin, partial, busy_timeout, told)


def vacuum(target: Address, *, busy_timeout: float = DEFAULT_BUSY_TIMEOUT) -> Vacuumed:
    """Give the space of deleted rows back.

    First each buffer is folded, so that departed episodes have no rows. Then SQLite writes the whole file again. In
    that time no other connection may write or hold a snapshot. PostgreSQL frees the space for new rows, and waits for
    no other session.

    Parameters
    ----------
    target : path or URL
    busy_timeout : float
        Seconds to wait for locks of others.

    Raises
    ------
    StoreBusy
        A SQLite file is still in use after ``busy_timeout`` seconds, or somebody writes to a buffer all that time.
    StoreCorrupt
        A buffer is too damaged to be folded. Nothing was changed in it.
    """
    with closing(Database(parse_url(target), busy_timeout=busy_timeout)) as database:
        ensure_schema(database, create=False)
        before = database.in_read(database.backend.size)
        fold_buffers(database)
        database.outside(database.backend.vacuum)
        return Vacuumed(before, database.in_read(database.backend.size))


def fill_file(origin: Database, empty: Path, busy_timeout: float, told: Progress) -> None:
    """Copy a database into an empty file."""
    if not origin.outside(lambda engine: origin.backend.copy_file(engine, empty, told)):
        target = URL.create("sqlite", database=str(empty))
        origin.in_read(lambda read: fill(target, read, origin.backend, busy_timeout, told))


def fill(target: URL, read: Connection, reader: Backend, busy_timeout: float, told: Progress) -> None:
    """Copy all rows that a snapshot sees into a database without a buffer."""
    with closing(Database(target, durability="power", busy_timeout=busy_timeout)) as copy:
        ensure_schema(copy)
        backend = copy.backend

        def write(written: Connection) -> None:
            backend.lock_schema(written)  # until the end, no other process makes a buffer or begins such a copy
            if buffer_names(written):
                raise ConfigError(f"{shown_url(target)} holds buffers, and a backup never overwrites")
            copy_rows(read, reader, written, backend, told)

        copy.in_write(write)
        if sqlite_path(target) is not None:
            copy.outside(backend.vacuum)  # this moves the log into the file


def copy_rows(read: Connection, reader: Backend, written: Connection, writer: Backend, told: Progress) -> None:
    """Copy every row of every table from one open transaction to another."""
    tables = metadata.sorted_tables
    total = sum(read.scalars(select(func.count()).select_from(table)).one() for table in tables)
    done = 0
    for table in tables:
        last: Sequence[Any] | None = None
        while rows := _next_rows(read, table, last):
            columns = {name: list(values) for name, values in zip(table.c.keys(), zip(*rows, strict=True), strict=True)}
            writer.insert(written, table, columns)
            reached = [columns[column.name][-1] for column in table.primary_key]
            last = stored.onward(reached, last, f"the rows of {table.name}")
            done += len(rows)
            told(done, total)
    writer.set_last_buffer(written, max(reader.last_buffer(read), writer.last_buffer(written)))


def _next_rows(read: Connection, table: Table, last: Sequence[Any] | None) -> list[Any]:
    key = list(table.primary_key)
    query = select(table).order_by(*key).limit(BLOBS if "data" in table.c else ROWS)
    if last is not None:
        query = query.where(tuple_(*key) > tuple_(*last))
    return list(read.execute(query))
