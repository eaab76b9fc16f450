"""The backend for SQLite files.

Files are in WAL mode. Writers begin IMMEDIATE, readers DEFERRED. Bulk work goes to the driver's own cursors.
"""

from __future__ import annotations

import functools
import json
import sqlite3
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event
from sqlalchemy.pool import NullPool

from memstore.config import Durability
from memstore.errors import MemstoreError, StoreBusy, StoreUnavailable, StoreWarning
from memstore.printable import visible
from memstore.storage.address import sqlite_path
from memstore.storage.backends import layout, locks, log, old_readers, replacing, still
from memstore.storage.backends.base import Backend, Columns, Failure, Progress, TransactionState, Watch
from memstore.storage.backends.clauses import quoted, update_one
from memstore.storage.backends.dataversion import DataVersion
from memstore.storage.backends.expressions import SQLiteExpressions
from memstore.storage.backends.filesystem import network_filesystem, network_warning
from memstore.storage.backends.samefile import OpenFiles, hard_links, links_warning
from memstore.storage.backends.watched import WatchedConnection
from memstore.storage.files import size_of, unused
from memstore.storage.newfile import Partial, written_whole
from memstore.storage.refusals import Wanted, refused
from memstore.storage.schema import buffer
from memstore.storage.statements import Trace

MINIMUM_VERSION = (3, 38, 0)
"""memstore needs at least this version of SQLite."""

LARGE = 1 << 20
"""A large value has at least this many bytes. After its insert, a second statement frees memory: ``insert_large``."""

CACHE_KIB = 64 * 1024
"""A connection keeps this many KiB of pages in memory."""

BACKUP_PAGES = 4096
"""A copy takes this many pages between two reports of progress."""

LOOK_AHEAD = 0.001
"""A write within this many seconds after the last check of the files skips the check.

That halves its cost for ``add`` of one episode.
"""

_CODES = {
    sqlite3.SQLITE_BUSY: Failure.BUSY,
    sqlite3.SQLITE_LOCKED: Failure.BUSY,
    sqlite3.SQLITE_FULL: Failure.FULL,
    sqlite3.SQLITE_IOERR_WRITE: Failure.FULL,  # a disk that a quota or RLIMIT_FSIZE makes full
    sqlite3.SQLITE_READONLY: Failure.READ_ONLY,
    sqlite3.SQLITE_CORRUPT: Failure.CORRUPT,
    sqlite3.SQLITE_CONSTRAINT: Failure.CORRUPT,  # memstore's writes break no constraint unless counters went back
    sqlite3.SQLITE_MISMATCH: Failure.CORRUPT,
    sqlite3.SQLITE_NOTADB: Failure.NOT_A_DATABASE,
    sqlite3.SQLITE_CANTOPEN: Failure.UNAVAILABLE,
    sqlite3.SQLITE_PERM: Failure.UNAVAILABLE,
    sqlite3.SQLITE_AUTH: Failure.UNAVAILABLE,
    sqlite3.SQLITE_IOERR: Failure.DEVICE,
    sqlite3.SQLITE_IOERR_SHORT_READ: Failure.CORRUPT,
    sqlite3.SQLITE_IOERR_CORRUPTFS: Failure.CORRUPT,
}


class SQLiteBackend(SQLiteExpressions, Backend):
    """A SQLite file."""

    # POSIX locks belong to a process, and SQLite counts them by file. With an inherited connection, a child believes
    # that it holds its parent's locks. It then writes to a log, which the parent removes when it closes the file last.
    # https://sqlite.org/howtocorrupt.html, section 2.6
    fork_safe = False

    mark = "?"
    among = "IN (SELECT value FROM json_each(?))"

    def __init__(self, url: URL, durability: Durability, busy_timeout: float, trace: Trace | None = None) -> None:
        super().__init__(url, durability, busy_timeout, trace)
        self.path = cast(Path, sqlite_path(url))  # in memory is refused where the address is read
        self._first: OpenFiles | None = None

    def create_engine(self) -> Engine:
        if sqlite3.sqlite_version_info < MINIMUM_VERSION:
            wanted = ".".join(map(str, MINIMUM_VERSION))
            raise StoreUnavailable(f"memstore needs SQLite {wanted} or newer, this Python has {sqlite3.sqlite_version}")
        engine = create_engine(
            self.url,
            # The begin event writes BEGIN; the driver must not.
            connect_args={"timeout": self.busy_timeout, "cached_statements": 256, "isolation_level": None},
            poolclass=NullPool,
            pool_reset_on_return=None,
        )
        event.listen(engine, "do_connect", self._open)
        event.listen(engine, "connect", self._set_up)
        return engine

    def _open(self, _dialect: Any, _record: Any, address: Any, options: dict[str, Any]) -> WatchedConnection:
        unlogged = self.only_read or still.needed(self.path)
        seen = still.look(self.path) if unlogged else None
        if seen is not None or self.only_read:
            options = options | {"uri": True}
            address = (f"{self.path.absolute().as_uri()}?{'mode=ro' if seen is None else 'immutable=1'}",)
        connection = WatchedConnection(self.statements, *address, **options)
        connection.seen = seen
        return connection

    def _set_up(self, connection: Any, _record: Any) -> None:
        for pragma in (
            self._patience(),
            f"synchronous = {'FULL' if self.durability == 'power' else 'NORMAL'}",
            f"fullfsync = {'ON' if self.durability == 'power' else 'OFF'}",
            f"cache_size = -{CACHE_KIB}",
            *log.bounds(log.LEAST_PAGES),
            f"temp_store = {'FILE' if self.spills else 'MEMORY'}",
            # Debian's SQLite has it ON. Deleting 2,500 blobs of 8 KB then takes 69 ms and 20 MB of WAL, not 5 ms.
            "secure_delete = OFF",
            # The tables have no foreign keys. A SQLite built with ON would empty child tables when a migration
            # rebuilds a parent.
            "foreign_keys = OFF",
            # A file from somebody else must not run functions in its definitions, and must not lead beyond its pages.
            "trusted_schema = OFF",
            "cell_size_check = ON",
            "mmap_size = 0",
        ):
            connection.execute(f"PRAGMA {pragma}")
        connection.files = OpenFiles(self.path, self.describe(), self._first)
        self._first = self._first or connection.files

    def _patience(self) -> str:
        return f"busy_timeout = {int(self.busy_timeout * 1000)}"

    def begin(self, conn: Connection, *, write: bool) -> None:
        # A DEFERRED transaction that begins to write after another commit fails at once, with any timeout. So writers
        # are IMMEDIATE from the start, and readers never wait.
        driver: WatchedConnection = self.driver(conn)
        if not self.busy_timeout:
            driver.execute(f"PRAGMA {self._patience()}")  # the connection may be older than the hurry
        driver.execute("BEGIN IMMEDIATE" if write else "BEGIN DEFERRED")
        if write:
            log.fit(driver)
            driver.files.look(LOOK_AHEAD)  # this look is under the lock; the promise needs the look after the commit

    def commit(self, conn: Connection) -> None:
        driver: WatchedConnection = self.driver(conn)
        if not self._is_still(driver):
            raise still.changed()
        super().commit(conn)
        driver.files.look()  # a commit into a file that was replaced must not be acknowledged

    def prepare(self, conn: Connection) -> None:
        if self.only_read or still.needed(self.path):
            return
        if "immutable" in self.url.query:  # the file cannot be changed
            self._check_no_log()
        elif self.execute(conn, "PRAGMA journal_mode").fetchone()[0] != "wal":
            # This ignores busy_timeout. Without a retry, 7 of 120 processes that opened the file first failed.
            mode = self.execute(conn, "PRAGMA journal_mode = WAL").fetchone()[0]
            if mode != "wal":  # SQLite raises no error for a database in memory, or without shared memory
                raise StoreUnavailable(f"{self.describe()} cannot use WAL, only {mode!r}; use a local file")
        for warning in self._warnings():
            warnings.warn(visible(warning), StoreWarning, stacklevel=2)

    def is_usable(self, conn: Connection, driver: WatchedConnection) -> bool:
        return super().is_usable(conn, driver) and self._is_still(driver)

    def _is_still(self, driver: WatchedConnection) -> bool:
        """True if a file that is read without a log is as it was when the connection was opened."""
        return driver.seen is None or still.look(self.path) == driver.seen

    def discard(self, conn: Connection, driver: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):
            driver.close()

    def _check_no_log(self) -> None:
        if size_of(f"{self.path}-wal"):
            raise StoreUnavailable(
                f"{self.describe()}: with immutable=1, commits in {self.path.name}-wal would not be read; leave "
                "immutable=1 out"
            )

    def execute(self, conn: Connection, sql: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        cursor: sqlite3.Cursor = self.driver(conn).execute(sql, values)
        return cursor

    def transaction_state(self, conn: Connection) -> TransactionState:
        alive = not conn.invalidated and self.driver(conn).in_transaction
        return TransactionState.OPEN if alive else TransactionState.GONE

    def insert_all(self, conn: Connection, table: Table, columns: Columns, conflict: str = "") -> None:
        if not conflict and any(map(_is_large, columns.values())):
            insert_large(self.driver(conn), table.name, columns)
        else:
            sql = _insert_sql(table.name, tuple(columns)) + conflict
            self.driver(conn).executemany(sql, zip(*columns.values(), strict=True))

    def update(self, conn: Connection, table: Table, key: str, columns: Columns) -> None:
        changed = tuple(name for name in columns if name != key)
        rows = zip(*(columns[name] for name in changed), columns[key], strict=True)
        self.driver(conn).executemany(update_one(self.mark, table.name, changed, key), rows)

    @staticmethod
    def join(table: Table, key: str) -> str:
        return "json_each(?) AS c CROSS JOIN"

    def listed(self, table: Table, key: str, values: Sequence[Any]) -> str:
        return json.dumps(list(values))

    def clock(self, conn: Connection) -> float:
        return time.time()  # all users of a file are on one machine

    def watch(self, engine: Engine, buffer_id: int) -> Watch:
        return DataVersion(engine)

    def _meaning(self, error: BaseException | None) -> Failure | None:
        if isinstance(error, UnicodeDecodeError):
            return Failure.CORRUPT  # the driver could not decode SQLite's message about a damaged definition
        if not isinstance(error, sqlite3.Error):
            return None
        # The low byte is the primary code. Text that cannot be decoded raises an error without a code (seen with
        # flipped bits).
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return Failure.CORRUPT if isinstance(error, sqlite3.OperationalError) else Failure.OTHER
        return _CODES.get(code) or _CODES.get(code & 0xFF, Failure.OTHER)

    def size(self, conn: Connection) -> dict[str, int]:
        return {"database": self.path.stat().st_size, "wal": size_of(f"{self.path}-wal")}

    def _warnings(self) -> Iterator[str]:
        kind = network_filesystem(self.path)
        if kind is not None:
            yield network_warning(self.describe(), kind)
        names = hard_links(self.path)
        if names > 1:
            yield links_warning(self.describe(), names)

    def notes(self, conn: Connection) -> Iterable[str]:
        yield from self._warnings()
        if sqlite3.sqlite_version_info < (3, 51, 3):
            yield (
                f"SQLite {sqlite3.sqlite_version} predates 3.51.3, which fixed a rare corruption when two connections "
                "write and checkpoint at the same moment"
            )

        yield from self.old_readers(conn)

    def old_readers(self, conn: Connection) -> Iterable[str]:
        return old_readers.of_file(self.path.resolve(), self.size(conn)["wal"], log.usual_pages(self.driver(conn)))

    def lock_holder(self) -> str:
        return locks.describe_writer(self.path.resolve())

    def integrity(self, conn: Connection) -> Iterable[str]:
        for (message,) in self.execute(conn, "PRAGMA integrity_check(20)"):
            if message != "ok":
                yield str(message)

    def foreign(self, conn: Connection) -> Iterable[str]:
        return layout.foreign(self._definitions(conn))

    def altered(self, conn: Connection, revision: str) -> Iterable[str]:
        return layout.altered(self._definitions(conn)) if revision == layout.REVISION else ()

    def missing(self, conn: Connection) -> Iterable[str]:
        return layout.missing(self._definitions(conn))

    def _definitions(self, conn: Connection) -> list[layout.Definition]:
        rows = self.execute(conn, "SELECT type, name, tbl_name, sql FROM sqlite_master")
        return [layout.Definition(*row) for row in rows]

    def identity(self) -> str:
        return str(self.path.resolve())

    @property
    def may_create(self) -> bool:
        return not {"mode", "immutable"} & self.url.query.keys()

    def exists(self) -> bool:
        try:
            return self.path.exists()
        except OSError:  # a folder that may not be entered, or a name that is too long: opening the file tells which
            return True

    def refusal(self, what: Wanted) -> MemstoreError | None:
        return refused(self.path, what)

    def put_in_place(self, new: Partial, *, force: bool) -> Path | None:
        return replacing.put_in_place(new, self.path, patience=self.busy_timeout, force=force)

    def backup(self, engine: Engine, label: str) -> Path | None:
        original = self.path.resolve()
        target = unused(Path(f"{original}.{label}"))
        with written_whole(target, original) as partial:
            self.copy_file(engine, partial, lambda done, total: None)
        return target

    def copy_file(self, engine: Engine, target: Path, on_progress: Progress) -> bool:
        # A separate connection reads the committed data, even while the caller's connection holds the write lock. It
        # is in a transaction, so that every step of the copy sees the same snapshot.
        with engine.connect() as conn, closing(sqlite3.connect(target)) as copy:
            source = self.driver(conn)
            copy.execute("PRAGMA journal_mode = OFF")  # a copy that fails is deleted, so it needs no rollback
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            try:
                source.backup(copy, pages=BACKUP_PAGES, progress=lambda _, left, all_: on_progress(all_ - left, all_))
            except sqlite3.Error as exc:
                found = refused(target, "room")  # the copy may be on another disk than the source
                if self.classify(exc) in (Failure.FULL, Failure.DEVICE) and found is not None:
                    raise type(found)(f"{target.parent}: {found}") from exc
                raise
            source.execute("ROLLBACK")
        return True

    def last_buffer(self, conn: Connection) -> int:
        found = self.execute(conn, "SELECT seq FROM sqlite_sequence WHERE name = ?", (buffer.name,)).fetchone()
        return found[0] if found else 0

    def set_last_buffer(self, conn: Connection, number: int) -> None:
        driver = self.driver(conn)
        if not driver.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (number, buffer.name)).rowcount:
            driver.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (buffer.name, number))

    def vacuum(self, engine: Engine) -> None:
        with engine.connect() as conn:
            driver = self.driver(conn)
            self._empty_log(driver, "the file was not rewritten")
            driver.execute("VACUUM")
            self._empty_log(driver, "the file was rewritten, but its log is not empty")

    def _empty_log(self, driver: sqlite3.Connection, so_far: str) -> None:
        if driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise StoreBusy(
                f"{self.describe()}: {so_far}: another connection has read or written for {self.busy_timeout:g} s, so "
                "the log cannot be emptied; end its query or transaction, and try again"
            )


def _is_large(values: Sequence[Any]) -> bool:
    return bool(values) and isinstance(values[-1], (bytes, str)) and len(values[-1]) > LARGE


def insert_large(driver: sqlite3.Connection, table: str, columns: Columns) -> None:
    """Insert rows, and free the memory of the last row.

    A cached statement keeps its values until it gets others. So it is run once more, with NULLs and for no row. Without
    this, a checkpoint of 300 MB stayed in memory until the next checkpoint; with SQLAlchemy's copy it was 2 x 300 MB.
    """
    sql = _insert_sql(table, tuple(columns), "SELECT {} WHERE ?")
    try:
        driver.executemany(sql, ((*row, 1) for row in zip(*columns.values(), strict=True)))
    finally:
        if driver.in_transaction:  # outside a transaction, the statement would have to wait for the write lock
            driver.execute(sql, (*(None for _ in columns), 0))


@functools.cache
def _insert_sql(table: str, columns: tuple[str, ...], how: str = "VALUES ({})") -> str:
    return f"INSERT INTO {table} ({quoted(columns)}) {how.format(', '.join('?' * len(columns)))}"
