"""The backend for SQLite files.

Files are in WAL mode. Writers begin IMMEDIATE, readers DEFERRED. Bulk work goes to the driver's own cursors.
"""

from __future__ import annotations

import functools
import itertools
import json
import sqlite3
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any, cast

from sqlalchemy import URL, Connection, Engine, Table, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from memstore.config import Durability
from memstore.errors import StoreBusy, StoreUnavailable, StoreWarning
from memstore.printable import visible
from memstore.storage.address import sqlite_path
from memstore.storage.backends import layout, locks, log, old_readers, replacing, still
from memstore.storage.backends.base import Backend, Columns, Failure, Ints, Located, Progress, TransactionState, Watch
from memstore.storage.backends.dataversion import DataVersion
from memstore.storage.backends.expressions import SQLiteExpressions, accumulation
from memstore.storage.backends.filesystem import network_filesystem, network_warning
from memstore.storage.backends.samefile import hard_links, links_warning, look, note_files
from memstore.storage.backends.watched import WatchedConnection
from memstore.storage.newfile import Partial, written_whole
from memstore.storage.refusals import Refusal, Wanted, refused
from memstore.storage.schema import SEQUENCE_BITS, buffer, replay_metadata, stratum
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

_POSITION_BITS = 43
"""A position has this many bits. A candidate is one integer: the stratum's sequence number above these bits.

So one prepared statement takes any number of candidates as one JSON text, within 15 % of the speed of a VALUES list.
"""
_LOCATE = (
    f"SELECT c.key, m.episode_id, m.loss, m.replay_count FROM json_each(?) AS c "
    f"CROSS JOIN {replay_metadata.name} AS m "
    f"ON m.stratum_id = ? + (c.value >> {_POSITION_BITS}) AND m.position = (c.value & {(1 << _POSITION_BITS) - 1})"
)


class SQLiteBackend(SQLiteExpressions, Backend):
    """A SQLite file."""

    # POSIX locks belong to a process, and SQLite counts them by file. With an inherited connection, a child believes
    # that it holds its parent's locks. It then writes to a log, which the parent removes when it closes the file last.
    # https://sqlite.org/howtocorrupt.html, section 2.6
    fork_safe = False

    def __init__(self, url: URL, durability: Durability, busy_timeout: float, trace: Trace | None = None) -> None:
        super().__init__(url, durability, busy_timeout, trace)
        self.path = cast(Path, sqlite_path(url))  # in memory is refused where the address is read

    def create_engine(self) -> Engine:
        if sqlite3.sqlite_version_info < MINIMUM_VERSION:
            wanted = ".".join(map(str, MINIMUM_VERSION))
            raise StoreUnavailable(f"memstore needs SQLite {wanted} or newer, this Python has {sqlite3.sqlite_version}")
        factory = functools.partial(WatchedConnection, self.statements)
        engine = create_engine(
            self.url,
            connect_args={"timeout": self.busy_timeout, "cached_statements": 256, "factory": factory},
            poolclass=NullPool,
            pool_reset_on_return=None,
        )
        still.watch_over(engine, self.path, lambda: self.only_read)
        event.listen(engine, "connect", self._on_connect)
        note_files(engine, self.path, self.describe())
        return engine

    def _on_connect(self, connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # the begin event writes BEGIN; the driver must not
        for pragma in (
            f"busy_timeout = {int(self.busy_timeout * 1000)}",
            f"synchronous = {'FULL' if self.durability == 'power' else 'NORMAL'}",
            f"fullfsync = {'ON' if self.durability == 'power' else 'OFF'}",
            f"cache_size = -{CACHE_KIB}",
            *log.bounds(log.LEAST_PAGES),
            "temp_store = MEMORY",
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

    def begin(self, conn: Connection, *, write: bool) -> None:
        # A DEFERRED transaction that begins to write after another commit fails at once, with any timeout. So writers
        # are IMMEDIATE from the start, and readers never wait.
        driver = _driver(conn)
        driver.execute("BEGIN IMMEDIATE" if write else "BEGIN DEFERRED")
        if write:
            log.fit(driver, conn.info)
            look(conn, fresh=LOOK_AHEAD)  # this look is under the lock; the promise needs the look after the commit

    def commit(self, conn: Connection) -> None:
        still.verify(conn.info)
        super().commit(conn)
        look(conn)  # a commit into a file that was replaced must not be acknowledged

    def prepare(self, conn: Connection) -> None:
        if self.only_read or still.needed(self.path):
            return
        for warning in self._warnings():
            warnings.warn(visible(warning), StoreWarning, stacklevel=2)
        if "immutable" in self.url.query:
            self._check_no_log()
            return  # the file cannot be changed
        # The switch to WAL ignores busy_timeout. Without the retry, 7 of 120 processes that opened it first failed.
        deadline = time.monotonic() + self.busy_timeout
        driver = _driver(conn)
        while driver.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
            try:
                mode = driver.execute("PRAGMA journal_mode = WAL").fetchone()[0]
                if mode != "wal":  # SQLite raises no error for a database in memory, or without shared memory
                    raise StoreUnavailable(f"{self.describe()} cannot use WAL, only {mode!r}; use a local file")
            except sqlite3.OperationalError as exc:
                if self.classify(exc) is not Failure.BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def driver(self, conn: Connection) -> sqlite3.Connection:
        return _driver(conn)

    def is_usable(self, conn: Connection, driver: sqlite3.Connection) -> bool:
        return not getattr(driver, "closed", False) and still.is_still(conn.info)

    def discard(self, conn: Connection, driver: sqlite3.Connection) -> None:
        with suppress(sqlite3.Error):
            driver.close()

    def _check_no_log(self) -> None:
        log = Path(f"{self.path}-wal")
        if log.exists() and log.stat().st_size:
            raise StoreUnavailable(
                f"{self.describe()}: with immutable=1, commits in {log.name} would not be read; leave immutable=1 out"
            )

    def send(self, conn: Connection, statement: str) -> None:
        _driver(conn).execute(statement)

    def run(self, conn: Connection, statement: str, values: Any) -> list[tuple[Any, ...]]:
        return _driver(conn).execute(statement, values).fetchall()

    def lock_schema(self, conn: Connection) -> None:
        """Nothing to do: BEGIN IMMEDIATE already holds the file's one write lock."""

    def lock_buffer(self, conn: Connection, buffer_id: int) -> None:
        """Nothing to do: BEGIN IMMEDIATE already holds the file's one write lock."""

    def transaction_state(self, conn: Connection) -> TransactionState:
        alive = not conn.invalidated and _driver(conn).in_transaction
        return TransactionState.OPEN if alive else TransactionState.GONE

    def read_buffer(
        self, conn: Connection, buffer_id: int, row: Sequence[str], strata: Sequence[str], since: int
    ) -> tuple[tuple[Any, ...] | None, list[tuple[Any, ...]]]:
        driver = _driver(conn)
        found = driver.execute(_buffer_sql(tuple(row)), (buffer_id,)).fetchone()
        if found is None or found[row.index("revision")] == since:
            return found, []
        return found, driver.execute(_changed_sql(tuple(strata)), (buffer_id, since)).fetchall()

    def insert(self, conn: Connection, table: Table, columns: Columns) -> None:
        # Columns that are NULL in every row are left out. This saves a fifth of an insert of plain episodes.
        present = {name: values for name, values in columns.items() if values.count(None) < len(values)}
        if present:  # otherwise there are no rows: every table has a column that is never NULL
            insert = insert_large if any(map(_is_large, present.values())) else _insert
            insert(_driver(conn), table.name, present)

    def update(self, conn: Connection, table: Table, key: str, columns: Columns, least: str | None = None) -> None:
        changed = tuple(name for name in columns if name != key)
        rows = zip(*(columns[name] for name in changed), columns[key], strict=True)
        _driver(conn).executemany(_update_sql(table.name, key, changed, least), rows)

    def accumulate(self, conn: Connection, table: Table, added: Sequence[str], columns: Columns) -> None:
        sql = _insert_sql(table.name, tuple(columns)) + accumulation(table, tuple(added), tuple(columns))
        _driver(conn).executemany(sql, zip(*columns.values(), strict=True))

    def delete(self, conn: Connection, table: Table, key: str, values: Sequence[int]) -> None:
        _driver(conn).execute(_delete_sql(table.name, key), (json.dumps(list(values)),))

    def select(
        self, conn: Connection, table: Table, columns: Sequence[str], key: str, values: Sequence[int]
    ) -> list[tuple[Any, ...]]:
        sql = _select_sql(table.name, tuple(columns), key)
        return _driver(conn).execute(sql, (json.dumps(list(values)),)).fetchall()

    def select_texts(
        self, conn: Connection, table: Table, columns: Sequence[str], buffer_id: int, key: str, texts: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        sql = _select_sql(table.name, tuple(columns), key) + " AND t.buffer_id = ?"
        return _driver(conn).execute(sql, (json.dumps(list(texts)), buffer_id)).fetchall()

    def locate(self, conn: Connection, strata: Ints, positions: Ints) -> list[Located]:
        if not len(strata):
            return []
        base = int(strata[0]) >> SEQUENCE_BITS << SEQUENCE_BITS
        packed = (strata - base) << _POSITION_BITS | positions
        return _driver(conn).execute(_LOCATE, (json.dumps(packed.tolist()), base)).fetchall()

    def clock(self, conn: Connection) -> float:
        return time.time()  # all users of a file are on one machine

    def announce(self, conn: Connection, buffer_id: int) -> None:
        """Nothing to do: every commit changes the file's data version."""

    def watch(self, engine: Engine, buffer_id: int) -> Watch:
        return DataVersion(engine)

    def classify(self, error: BaseException) -> Failure | None:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if isinstance(cause, UnicodeDecodeError):
            return Failure.CORRUPT  # the driver could not decode SQLite's message about a damaged definition
        if not isinstance(cause, sqlite3.Error):
            return None
        # The low byte is the primary code. Text that cannot be decoded raises an error without a code (seen with
        # flipped bits).
        code = getattr(cause, "sqlite_errorcode", None)
        if code is None:
            return Failure.CORRUPT if isinstance(cause, sqlite3.OperationalError) else Failure.OTHER
        return _CODES.get(code) or _CODES.get(code & 0xFF, Failure.OTHER)

    def size(self, conn: Connection) -> dict[str, int]:
        wal = Path(f"{self.path}-wal")
        return {"database": self.path.stat().st_size, "wal": wal.stat().st_size if wal.exists() else 0}

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
        return old_readers.of_file(self.path.resolve(), self.size(conn)["wal"], log.usual_pages(_driver(conn)))

    def lock_holder(self) -> str:
        return locks.describe_writer(self.path.resolve())

    def integrity(self, conn: Connection) -> Iterable[str]:
        for (message,) in _driver(conn).execute("PRAGMA integrity_check(20)"):
            if message != "ok":
                yield str(message)

    def foreign(self, conn: Connection) -> Iterable[str]:
        return layout.foreign(_definitions(conn))

    def altered(self, conn: Connection, revision: str) -> Iterable[str]:
        return layout.altered(_definitions(conn)) if revision == layout.REVISION else ()

    def missing(self, conn: Connection) -> Iterable[str]:
        return layout.missing(_definitions(conn))

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

    def refusal(self, what: Wanted) -> Refusal | None:
        return refused(self.path, what)

    def put_in_place(self, new: Partial, *, force: bool) -> Path | None:
        return replacing.put_in_place(new, self.path, patience=self.busy_timeout, force=force)

    def backup(self, engine: Engine, label: str) -> Path | None:
        original = self.path.resolve()
        target = _unused(original, label)
        with written_whole(target, original) as partial:
            self.copy_file(engine, partial, lambda done, total: None)
        return target

    def copy_file(self, engine: Engine, target: Path, on_progress: Progress) -> bool:
        # A separate connection reads the committed data, even while the caller's connection holds the write lock. It
        # is in a transaction, so that every step of the copy sees the same snapshot.
        with _raw(engine) as source, closing(sqlite3.connect(target)) as copy:
            copy.execute("PRAGMA journal_mode = OFF")  # a copy that fails is deleted, so it needs no rollback
            source.execute("BEGIN")
            source.execute("SELECT count(*) FROM sqlite_master").fetchone()
            try:
                source.backup(copy, pages=BACKUP_PAGES, progress=lambda _, left, all_: on_progress(all_ - left, all_))
            except sqlite3.Error as exc:
                found = refused(target, "room")  # the copy may be on another disk than the source
                if self.classify(exc) in (Failure.FULL, Failure.DEVICE) and found is not None:
                    raise found.error(f"{target.parent}: {found.text}") from exc
                raise
            source.execute("ROLLBACK")
        return True

    def last_buffer(self, conn: Connection) -> int:
        found = _driver(conn).execute("SELECT seq FROM sqlite_sequence WHERE name = ?", (buffer.name,)).fetchone()
        return found[0] if found else 0

    def set_last_buffer(self, conn: Connection, number: int) -> None:
        driver = _driver(conn)
        if not driver.execute("UPDATE sqlite_sequence SET seq = ? WHERE name = ?", (number, buffer.name)).rowcount:
            driver.execute("INSERT INTO sqlite_sequence (name, seq) VALUES (?, ?)", (buffer.name, number))

    def vacuum(self, engine: Engine) -> None:
        with _raw(engine) as driver:
            self._empty_log(driver, "nothing was done")
            driver.execute("VACUUM")
            self._empty_log(driver, "the file was rewritten, but its log is not empty")

    def _empty_log(self, driver: sqlite3.Connection, so_far: str) -> None:
        if driver.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
            raise StoreBusy(
                f"{self.describe()}: {so_far}: another connection has read or written for {self.busy_timeout:g} s, so "
                "the log cannot be emptied; end its query or transaction, and try again"
            )


@contextmanager
def _raw(engine: Engine) -> Iterator[sqlite3.Connection]:
    """Yield a connection that is in no transaction."""
    connection = engine.raw_connection()
    try:
        yield cast(sqlite3.Connection, connection.driver_connection)
    finally:
        connection.close()


def _driver(conn: Connection) -> sqlite3.Connection:
    return cast(sqlite3.Connection, conn.connection.driver_connection)


def _definitions(conn: Connection) -> list[layout.Definition]:
    rows = _driver(conn).execute("SELECT type, name, tbl_name, sql FROM sqlite_master")
    return [layout.Definition(*row) for row in rows]


def _unused(original: Path, label: str) -> Path:
    suffixes = itertools.chain([""], (f"-{number}" for number in itertools.count(2)))
    candidates = (original.with_name(f"{original.name}.{label}{suffix}") for suffix in suffixes)
    return next(path for path in candidates if not path.exists())


def _insert(driver: sqlite3.Connection, table: str, columns: Columns) -> None:
    driver.executemany(_insert_sql(table, tuple(columns)), zip(*columns.values(), strict=True))


def _is_large(values: Sequence[Any]) -> bool:
    return isinstance(values[-1], (bytes, str)) and len(values[-1]) > LARGE


def insert_large(driver: sqlite3.Connection, table: str, columns: Columns) -> None:
    """Insert rows, and free the memory of the last row.

    A cached statement keeps its values until it gets others. So it is run once more, with NULLs and for no row. Without
    this, a checkpoint of 300 MB stayed in memory until the next checkpoint; with SQLAlchemy's copy it was 2 x 300 MB.
    """
    sql = _insert_chosen_sql(table, tuple(columns))
    try:
        driver.executemany(sql, ((*row, 1) for row in zip(*columns.values(), strict=True)))
    finally:
        if driver.in_transaction:  # outside a transaction, the statement would have to wait for the write lock
            driver.execute(sql, (*(None for _ in columns), 0))


@functools.cache
def _insert_sql(table: str, columns: tuple[str, ...]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    return f"INSERT INTO {table} ({names}) VALUES ({', '.join('?' * len(columns))})"


@functools.cache
def _insert_chosen_sql(table: str, columns: tuple[str, ...]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    return f"INSERT INTO {table} ({names}) SELECT {', '.join('?' * len(columns))} WHERE ?"


@functools.cache
def _update_sql(table: str, key: str, columns: tuple[str, ...], least: str | None) -> str:
    changes = [
        f'"{name}" = CASE WHEN "{name}" <= ?{number} THEN "{name}" ELSE ?{number} END'
        if name == least
        else f'"{name}" = ?{number}'
        for number, name in enumerate(columns, 1)
    ]
    return f'UPDATE {table} SET {", ".join(changes)} WHERE "{key}" = ?{len(columns) + 1}'


@functools.cache
def _delete_sql(table: str, key: str) -> str:
    return f'DELETE FROM {table} WHERE "{key}" IN (SELECT value FROM json_each(?))'


@functools.cache
def _select_sql(table: str, columns: tuple[str, ...], key: str) -> str:
    names = ", ".join(f't."{name}"' for name in columns)
    return f'SELECT {names} FROM json_each(?) AS j CROSS JOIN {table} AS t ON t."{key}" = j.value'


@functools.cache
def _buffer_sql(columns: tuple[str, ...]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    return f"SELECT {names} FROM {buffer.name} WHERE id = ?"


@functools.cache
def _changed_sql(columns: tuple[str, ...]) -> str:
    names = ", ".join(f'"{name}"' for name in columns)
    return f"SELECT {names} FROM {stratum.name} WHERE buffer_id = ? AND revision > ? ORDER BY id"
