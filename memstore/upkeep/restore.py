"""``restore`` puts a verified backup in the place of a database, and keeps the old database."""

from __future__ import annotations

import os
import stat
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import URL, Connection, select

from memstore.buffer.counters import buffer_names
from memstore.errors import ConfigError, NotAMemstore, SchemaTooNew, StoreCorrupt, StoreFull, StoreUnavailable
from memstore.storage.address import parse_url, sqlite_path
from memstore.storage.backends.base import Backend, Progress
from memstore.storage.database import Database
from memstore.storage.files import unused
from memstore.storage.newfile import Partial, check_free, partial_file, written_whole
from memstore.storage.schema import buffer
from memstore.storage.upgrade import HEAD, ensure_schema, known_revisions, schema_version
from memstore.storage.upgrade import upgrade as upgrade_tables
from memstore.upkeep.backup import Address, copy_rows, fill, fill_file
from memstore.upkeep.check import check

PATIENCE = 2.0
"""A restore waits this many seconds for others to close the database. They rarely do, so the wait is short."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a ``restore``.

    Attributes
    ----------
    buffers : dict of str to int
        Buffers that the database has now, with their numbers of live episodes.
    replaced : Path or None
        File that holds the old database. It opens like any memstore, unless it was damaged. None if there was no
        database.
    upgraded_from : str or None
        Schema revision of the backup, if it was an older one. The backup itself is not changed.
    """

    buffers: dict[str, int]
    replaced: Path | None
    upgraded_from: str | None


def restore(
    backup: Address,
    database: Address,
    *,
    force: bool = False,
    keep: str | os.PathLike[str] | None = None,
    busy_timeout: float = PATIENCE,
    on_progress: Progress | None = None,
) -> Restored:
    """Put a backup in the place of a database, and keep the old database. No process may have the database open.

    The backup is only read. A copy of it is verified as a whole: its pages, and every invariant of every buffer. This
    happens before anything is touched, and again in the final place. The call is atomic: if it is killed at any moment,
    the database is the old one or equal to the backup, each with its log. The same call then finishes the work.

    Onto a file: the copy is made beside it, and the old log is folded into the old file. Then, in one step, the old
    file gets the name ``run.db.replaced-DATE-TIME``, and the copy gets the name, mode and owner of the old file. If
    there is no file, the backup is simply copied.

    Onto a server: memstore's tables are emptied and filled in one transaction. Other tables are not touched. Before
    that, the old rows are copied to the file ``DATABASE.replaced-DATE-TIME.db``.

    Parameters
    ----------
    backup : path or URL
        A backup by ``memstore.backup``, or any other memstore. An older schema is upgraded in the copy.
    database : path or URL
        Database to replace.
    force : bool
        True replaces a file even if it seems to be no database. On a server, True continues while other sessions of
        memstore are connected (to another schema, for example).
    keep : path, optional
        Folder for the old rows of a server. The default is the current folder. An old file stays in its own folder.
    busy_timeout : float
        Seconds to wait for others to close the database.
    on_progress : callable, optional
        Function that is called with the number of parts done and the number of all parts.

    Raises
    ------
    StoreBusy
        The database is open, in this process or another one. Even an open connection that only reads counts.
    StoreCorrupt
        The backup is damaged. Nothing was changed.
    NotAMemstore, SchemaTooNew, SchemaTooOld, StoreUnavailable, StoreFull, ConfigError
        The backup or the database is of another kind than expected, or cannot be read or written. Nothing was changed.
    """
    target = parse_url(database)
    told = on_progress or (lambda done, total: None)
    file = sqlite_path(target)
    if file is not None and keep is not None:
        raise ConfigError(f"keep= is for servers: the old file stays beside {file}; leave keep= out")
    with closing(Database(parse_url(backup), busy_timeout=busy_timeout)) as origin:
        origin.backend.only_read = True
        source = _Backup(origin, _revision(origin), told)
        if file is not None:
            return _onto_file(source, file.resolve(), force, busy_timeout)
        return _onto_server(source, target, Path("." if keep is None else keep), force, busy_timeout)


@dataclass(frozen=True, slots=True)
class _Backup:
    """A backup that is opened only for reading, with its schema revision, and the function that reports progress."""

    database: Database
    revision: str
    told: Progress

    @property
    def upgraded_from(self) -> str | None:
        return None if self.revision == HEAD else self.revision


def _onto_file(source: _Backup, file: Path, force: bool, busy_timeout: float) -> Restored:
    there, origin = os.path.lexists(file), sqlite_path(source.database.backend.url)
    if not there:
        check_free(file)
    elif origin is not None and origin.samefile(file):
        raise ConfigError(f"{file} is the backup itself; give the database that the backup must replace")
    with partial_file(file, file if there else origin) as partial:
        if not there and partial.mode is not None:
            partial.mode |= stat.S_IRUSR | stat.S_IWUSR  # a backup may be read-only, but a database must be writable
        buffers = _prepared(source, partial)
        with closing(Database(URL.create("sqlite", database=str(file)), busy_timeout=busy_timeout)) as database:
            backend = database.backend
            replaced = database.outside(lambda _: backend.put_in_place(partial, force=force))
            ensure_schema(database, create=False)
            if missing := buffers.keys() - database.in_read(buffer_names):
                raise StoreCorrupt(f"{file} lacks the buffers {sorted(missing)} of the backup; was it replaced again?")
    return Restored(buffers, replaced, source.upgraded_from)


def _onto_server(source: _Backup, target: URL, folder: Path, force: bool, busy_timeout: float) -> Restored:
    with partial_file(folder / f"{_stem(target)}.restored") as partial:
        buffers = _prepared(source, partial)
        with (
            closing(Database(target, durability="power", busy_timeout=busy_timeout)) as database,
            closing(Database(URL.create("sqlite", database=str(partial.path)), busy_timeout=busy_timeout)) as copy,
        ):
            ensure_schema(database)
            reader, writer = copy.backend, database.backend

            def refill(read: Connection, written: Connection) -> Path | None:
                return _refill(read, reader, written, writer, folder, force, source.told)

            replaced = copy.in_read(lambda read: database.in_write(lambda written: refill(read, written)))
    return Restored(buffers, replaced, source.upgraded_from)


def _refill(
    read: Connection, reader: Backend, written: Connection, writer: Backend, folder: Path, force: bool, told: Progress
) -> Path | None:
    """Empty and fill the tables of a server. Return the file with the old rows, None if there were none."""
    writer.lock_schema(written)
    writer.lock_tables(written, force=force)
    kept = None
    if buffer_names(written):
        kept = unused(folder / f"{_stem(writer.url)}.replaced-{time.strftime('%Y%m%d-%H%M%S')}", ".db")
        with written_whole(kept) as partial:
            fill(URL.create("sqlite", database=str(partial)), written, writer, writer.busy_timeout, told)
    try:
        writer.empty(written)
        copy_rows(read, reader, written, writer, told)
        _verified(written, writer, writer.describe())
    except BaseException:
        if kept is not None:  # the tables still hold these rows
            kept.unlink(missing_ok=True)
        raise
    return kept


def _prepared(source: _Backup, partial: Partial) -> dict[str, int]:
    """Copy the backup into the file, upgrade and verify the copy, and return its buffers with their sizes."""
    origin = source.database.backend
    where = f"the backup {origin.describe()}"
    fill_file(source.database, partial.path, origin.busy_timeout, source.told)
    copy = Database(URL.create("sqlite", database=str(partial.path)), busy_timeout=origin.busy_timeout)
    try:
        if source.upgraded_from is not None:
            upgrade_tables(partial.path, backup=False, on_progress=source.told)
        return copy.in_read(lambda conn: _verified(conn, copy.backend, where))
    except (StoreFull, StoreUnavailable):
        raise  # the copy could not be written, which is no fault of the backup
    except Exception as exc:  # a damaged file may make its statements raise anything
        if isinstance(exc, StoreCorrupt) and exc.__cause__ is None:
            raise
        raise StoreCorrupt(f"{where} is not sound, nothing was changed: {exc.__cause__ or exc}") from exc
    finally:
        copy.close()


def _revision(origin: Database) -> str:
    """Return the schema revision of a backup that can be restored."""
    backend = origin.backend
    if not backend.exists():
        raise StoreUnavailable(f"the backup {backend.describe()} does not exist; nothing was changed")
    revision = origin.in_read(lambda conn: schema_version(conn, shared=backend.shared))
    if revision is None:
        raise NotAMemstore(f"the backup {backend.describe()} is empty and holds no memstore; nothing was changed")
    if revision not in known_revisions():
        raise SchemaTooNew(
            f"the backup {backend.describe()} has schema revision {revision!r}: a newer memstore wrote it; nothing was "
            "changed; run: pip install -U memstore"
        )
    if revision != HEAD and backend.shared:  # a copy of a file keeps the old tables, and a copy of a server does not
        ensure_schema(origin, create=False)
    return revision


def _verified(conn: Connection, backend: Backend, where: str) -> dict[str, int]:
    """Return the buffers of a database, with their numbers of episodes. Raise ``StoreCorrupt`` if one is damaged."""
    found = {}
    for number, name in conn.execute(select(buffer.c.id, buffer.c.name).order_by(buffer.c.id)):
        report = check(conn, backend, number)
        if not report.ok:
            problems = "; ".join(report.problems[:3]) + (" ..." if len(report.problems) > 3 else "")
            raise StoreCorrupt(
                f"{where} is not sound, nothing was changed: buffer {name!r}: {problems}. Restore an older backup"
            )
        found[name] = report.episodes
    return found


def _stem(url: URL) -> str:
    return (url.database or "database").replace("/", "_")
