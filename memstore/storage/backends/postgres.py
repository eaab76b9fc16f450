"""The backend for PostgreSQL, by psycopg 3: arrays for ``unnest``, pipelined statements, no state of sessions.

Nothing stays on the server after a transaction: settings are local to it, and no statement is prepared. So a pooler in
transaction mode may stand between. Prepared statements gained nothing that could be measured: planning takes 0.1 ms.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import Connection, Engine, Table, create_engine, event
from sqlalchemy.pool import NullPool

from memstore.errors import StoreBusy, StoreUnavailable
from memstore.storage.backends import catalog, layout, old_readers
from memstore.storage.backends.arrays import BYTEA, TEXT, Array, encode, kind_of
from memstore.storage.backends.base import UNAWAITED, Backend, Columns, Failure, TransactionState, Watch
from memstore.storage.backends.clauses import quoted
from memstore.storage.backends.expressions import PostgresExpressions
from memstore.storage.backends.listener import ANNOUNCE, Listener
from memstore.storage.backends.pipelined import PipelinedConnection, connect_pipelined
from memstore.storage.schema import VERSION_TABLE, buffer, metadata

MINIMUM_VERSION = 130000
"""memstore needs at least this version of the server, in the form that the server gives it: 13.0."""

STATEMENT_BYTES = 64 * 2**20
"""One statement has at most this many bytes of blobs. A message may hold 1 GiB, but both sides keep it in memory."""

LARGE = 16 * 2**20
"""A large value has at least this many bytes. Its connection is closed later, which frees its buffers.

A new connection costs 5 ms.
"""

SMALL = 1024
"""A statement with arrays of at most this many bytes waits until others are sent, or until somebody fetches."""

CANCELLATION = 2.0
"""The call that tells the server to cancel a statement may take this many seconds."""

APPLICATION = "memstore"
"""memstore's sessions have this name on the server, unless their address or PGAPPNAME gives another."""

_OTHERS = (
    "SELECT pid, usename FROM pg_stat_clear_snapshot(), pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = %s ORDER BY pid"
)
"""This query finds the other sessions of memstore in this database."""

_READ = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"
_WRITE = "BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE"
_SETTINGS = "SELECT set_config('synchronous_commit', %s, true), set_config('lock_timeout', %s, true)"

_CODES = {
    "40001": Failure.CONFLICT,
    "40P01": Failure.CONFLICT,
    "55P03": Failure.BUSY,
    "53100": Failure.FULL,
    "3F000": Failure.UNAVAILABLE,
    "42P07": Failure.NAME_TAKEN,
    "42710": Failure.NAME_TAKEN,
    "25006": Failure.READ_ONLY,
    "42501": Failure.READ_ONLY,
    "42P01": Failure.CORRUPT,  # a table or a column is missing
    "42703": Failure.CORRUPT,
    "23505": Failure.CORRUPT,  # memstore's writes break no constraint unless counters went back
    "23502": Failure.CORRUPT,
    "XX001": Failure.CORRUPT,
    "XX002": Failure.CORRUPT,
    "53300": Failure.LOST,
    "57P01": Failure.LOST,
    "57P02": Failure.LOST,
    "57P03": Failure.LOST,
    "57P05": Failure.LOST,
    "25P03": Failure.LOST,
}


class PostgresBackend(PostgresExpressions, Backend):
    """A PostgreSQL database, or the schema in it that ``search_path`` names."""

    shared = True
    mark = "%s"
    among = "= ANY(%s::int8[])"
    advice = "does the server run, do the database, the user and the schema exist?"

    def create_engine(self) -> Engine:
        engine = create_engine(
            self.url,
            connect_args={"prepare_threshold": None, "fallback_application_name": APPLICATION},
            isolation_level="AUTOCOMMIT",  # the begin event sends BEGIN; the driver's own would cost a round trip
            poolclass=NullPool,
            pool_reset_on_return=None,
            use_native_hstore=False,
        )

        def connect(_dialect: Any, _record: Any, arguments: Any, options: dict[str, Any]) -> PipelinedConnection:
            return connect_pipelined(self.statements, arguments, options)

        event.listen(engine, "do_connect", connect)
        event.listen(engine, "after_cursor_execute", self._arrived)
        return engine

    def prepare(self, conn: Connection) -> None:
        info = self.driver(conn).info
        if info.server_version < MINIMUM_VERSION:
            raise StoreUnavailable(f"memstore needs PostgreSQL {MINIMUM_VERSION // 10000} or newer")
        if info.parameter_status("server_encoding") != "UTF8":
            raise StoreUnavailable(f"{self.describe()} must have the encoding UTF8; create a database with that")

    def is_usable(self, conn: Connection, driver: PipelinedConnection) -> bool:
        if driver.ended:
            try:
                driver.finish()
            except psycopg.Error:
                return False
        return super().is_usable(conn, driver)

    def begin(self, conn: Connection, *, write: bool) -> None:
        driver: PipelinedConnection = self.driver(conn)
        driver.enter_pipeline()
        driver.reads_only = not write
        self.execute(conn, _WRITE if write else _READ)
        if write:
            # 0 ms would mean no limit, so the least is 1 ms.
            patience = f"{max(int(self.busy_timeout * 1000), 1)}ms"
            self.execute(conn, _SETTINGS, ("on" if self.durability == "power" else "off", patience))

    def commit(self, conn: Connection) -> None:
        driver: PipelinedConnection = self.driver(conn)
        if driver.may_end_reading() and not conn.in_transaction():
            driver.end_reading()
            return
        super().commit(conn)
        driver.leave_pipeline()
        if driver.swollen:
            conn.invalidate()

    def rollback(self, conn: Connection) -> None:
        driver: PipelinedConnection = self.driver(conn)
        with suppress(psycopg.Error):  # the statements are given up, and their errors do not matter
            driver.leave_pipeline()
        if driver.closed:
            conn.invalidate()
        else:
            super().rollback(conn)

    def settle(self, conn: Connection) -> None:
        self.driver(conn).settle()

    def _arrived(self, conn: Connection, _cursor: Any, _sql: str, _values: Any, context: Any, _many: bool) -> None:
        """Wait for the result of a statement that SQLAlchemy sent: it expects the result to be there."""
        driver: PipelinedConnection = self.driver(conn)
        driver.flush()
        if not context.execution_options.get(UNAWAITED, False):
            driver.settle()

    def discard(self, conn: Connection, driver: PipelinedConnection) -> None:
        with suppress(psycopg.Error):  # the server would work on, and notice only at the end that the client is gone
            if driver.info.transaction_status is TransactionStatus.ACTIVE and not driver.ended:
                driver.cancel_safe(timeout=CANCELLATION)
        driver.close()
        with suppress(psycopg.Error):  # the connection is closed, but an open pipeline would log a message about it
            driver.leave_pipeline()

    def execute(self, conn: Connection, sql: str, values: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
        driver: PipelinedConnection = self.driver(conn)
        longest = max((len(value.data) for value in values if isinstance(value, Array)), default=0)
        if longest > LARGE:
            driver.swollen = True
        return driver.send(sql, values, now=longest > SMALL)

    def lock_schema(self, conn: Connection) -> None:
        # Tables and buffers are created durably under either durability, because a handle could not work on a table
        # that the server has lost.
        self.execute(conn, "SELECT set_config('synchronous_commit', 'on', true)")
        self.execute(conn, f"SELECT pg_advisory_xact_lock(hashtextextended('{VERSION_TABLE} ' || current_schema(), 0))")

    def lock_buffer(self, conn: Connection, buffer_id: int) -> None:
        self.execute(conn, f"SELECT FROM {buffer.name} WHERE id = %s FOR NO KEY UPDATE", (buffer_id,))

    def transaction_state(self, conn: Connection) -> TransactionState:
        if conn.invalidated:
            return TransactionState.GONE
        match self.driver(conn).info.transaction_status:
            case TransactionStatus.INTRANS | TransactionStatus.ACTIVE:
                return TransactionState.OPEN
            case TransactionStatus.INERROR:
                return TransactionState.FAILED
            case _:
                return TransactionState.GONE

    def insert_all(self, conn: Connection, table: Table, columns: Columns, conflict: str = "") -> None:
        for rows in _parts(table, columns):
            kinds, arrays = _encode_columns(table, columns, rows)
            self.execute(conn, _insert_sql(table.name, tuple(columns), kinds) + conflict, arrays)

    def update(self, conn: Connection, table: Table, key: str, columns: Columns) -> None:
        kinds, arrays = _encode_columns(table, columns)
        self.execute(conn, _update_sql(table.name, key, tuple(columns), kinds), arrays)

    @staticmethod
    def join(table: Table, key: str) -> str:
        # "= ANY" is not used: the planner copies the array's constants into the index condition, up to 0.5 ms for 256.
        return f"unnest(%s::{kind_of(table, key).sql}[]) AS c(value) JOIN"

    def listed(self, table: Table, key: str, values: Sequence[Any]) -> Array:
        return encode(kind_of(table, key), values)

    def select_texts(
        self, conn: Connection, table: Table, columns: Sequence[str], buffer_id: int, key: str, texts: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        rows = super().select_texts(conn, table, columns, buffer_id, key, texts)
        if any(isinstance(value, bytes) and len(value) > LARGE for row in rows for value in row):
            self.driver(conn).swollen = True
        return rows

    def clock(self, conn: Connection) -> float:
        return float(self.execute(conn, "SELECT extract(epoch FROM clock_timestamp())::float8").fetchall()[0][0])

    def announce(self, conn: Connection, buffer_id: int) -> None:
        self.execute(conn, ANNOUNCE, (str(buffer_id), buffer_id))

    def watch(self, engine: Engine, buffer_id: int) -> Watch:
        return Listener(engine, buffer_id)

    def _meaning(self, error: BaseException | None) -> Failure | None:
        if not isinstance(error, psycopg.Error):
            return None
        code = error.sqlstate
        if code is None or code.startswith("08"):
            # An error without a code comes from the driver: the connection is lost, or could not be made.
            return Failure.LOST if isinstance(error, psycopg.OperationalError) or code else Failure.OTHER
        return _CODES.get(code, Failure.OTHER)

    def size(self, conn: Connection) -> dict[str, int]:
        names = [table.name for table in metadata.sorted_tables]
        sql = "SELECT sum(pg_table_size(t::regclass)), sum(pg_indexes_size(t::regclass)) FROM unnest(%s::text[]) t"
        tables, indexes = self.execute(conn, sql, (encode(TEXT, names),)).fetchall()[0]
        return {"tables": int(tables), "indexes": int(indexes)}

    def last_buffer(self, conn: Connection) -> int:
        sql = "SELECT pg_sequence_last_value(pg_get_serial_sequence(%s, 'id'))"
        return int(self.execute(conn, sql, (buffer.name,)).fetchall()[0][0] or 0)

    def set_last_buffer(self, conn: Connection, number: int) -> None:
        if number:
            self.execute(conn, "SELECT setval(pg_get_serial_sequence(%s, 'id'), %s)", (buffer.name, number))

    def lock_tables(self, conn: Connection, *, force: bool) -> None:
        # A session outside a transaction holds no lock. But it remembers the contents of the tables, and would continue
        # with them. The lock comes first. A later session has to wait for it, and an earlier session is found below.
        self.execute(conn, f"LOCK TABLE {', '.join(metadata.tables)} IN ACCESS EXCLUSIVE MODE")
        deadline = time.monotonic() + self.busy_timeout
        while not force and (others := self.execute(conn, _OTHERS, (APPLICATION,)).fetchall()):
            if time.monotonic() > deadline:
                shown = ", ".join(f"{pid} of {user}" for pid, user in others[:5]) + (" ..." if len(others) > 5 else "")
                raise StoreBusy(
                    f"{self.describe()} is open elsewhere: {len(others)} sessions of memstore ({shown}; see "
                    "pg_stat_activity); nothing was changed. Close them and try again; if they use other schemas of "
                    "the database, give --force, or force=True"
                )
            time.sleep(0.05)  # a session that was closed a moment ago is still listed

    def empty(self, conn: Connection) -> None:
        self.execute(conn, f"TRUNCATE {', '.join(metadata.tables)}")

    def vacuum(self, engine: Engine) -> None:
        with engine.connect() as conn:
            for name in metadata.tables:
                self.driver(conn).execute(f"VACUUM (ANALYZE) {name}".encode())

    def foreign(self, conn: Connection) -> Iterable[str]:
        return catalog.foreign(self._names(conn, catalog.RELATIONS), self._names(conn, catalog.RULES))

    def altered(self, conn: Connection, revision: str) -> Iterable[str]:
        return catalog.altered(self._names(conn, catalog.COLUMNS)) if revision == layout.REVISION else ()

    def missing(self, conn: Connection) -> Iterable[str]:
        return catalog.missing(
            *(self._names(conn, sql) for sql in (catalog.RELATIONS, catalog.INDEXES, catalog.ACTING))
        )

    def _names(self, conn: Connection, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement of ``catalog``. Each of its parameters is the list of memstore's names."""
        return self.execute(conn, sql, [catalog.NAMES] * sql.count("%s")).fetchall()

    def unchecked(self) -> Iterable[str]:
        return ("pages (the server has pg_amcheck and data_checksums for that), and the definitions of views",)

    def notes(self, conn: Connection) -> Iterable[str]:
        sql = "SELECT name FROM pg_settings WHERE name = ANY(%s) AND setting = 'off' ORDER BY name"
        for (name,) in self.execute(conn, sql, (["fsync", "full_page_writes"],)).fetchall():
            yield f"the server runs with {name}=off: a crash of its machine can damage the database"
        yield from self.old_readers(conn)

    def old_readers(self, conn: Connection) -> Iterable[str]:
        rows = self.execute(conn, old_readers.ON_SERVER, (old_readers.LONG_SNAPSHOT,)).fetchall()
        yield from old_readers.of_server(rows)
        dead = self.execute(conn, old_readers.DEAD_BLOCKS, (old_readers.MOST_DEAD,)).fetchall()
        yield from old_readers.of_blocks(dead)


def _encode_columns(table: Table, columns: Columns, rows: slice = slice(None)) -> tuple[tuple[str, ...], list[Array]]:
    """Return the types of the columns, and an array of each column's values in these rows."""
    kinds = [kind_of(table, name) for name in columns]
    arrays = [encode(kind, values[rows]) for kind, values in zip(kinds, columns.values(), strict=True)]
    return tuple(kind.sql for kind in kinds), arrays


def _parts(table: Table, columns: Columns) -> Iterator[slice]:
    """Divide the rows among statements of at most ``STATEMENT_BYTES`` of blobs each."""
    count = len(next(iter(columns.values())))
    blobs = [values for name, values in columns.items() if kind_of(table, name) is BYTEA]
    start = size = 0
    large = sum(sum(map(len, values)) for values in blobs) > STATEMENT_BYTES
    for row in range(count) if large else ():
        length = sum(len(values[row]) for values in blobs)
        if size and size + length > STATEMENT_BYTES:
            yield slice(start, row)
            start, size = row, 0
        size += length
    yield slice(start, count)


def _arrays(kinds: tuple[str, ...]) -> str:
    return ", ".join(f"%s::{kind}[]" for kind in kinds)


@functools.cache
def _insert_sql(table: str, columns: tuple[str, ...], kinds: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({quoted(columns)}) SELECT * FROM unnest({_arrays(kinds)})"


@functools.cache
def _update_sql(table: str, key: str, columns: tuple[str, ...], kinds: tuple[str, ...]) -> str:
    changes = ", ".join(f'"{name}" = c."{name}"' for name in columns if name != key)
    return (
        f"UPDATE {table} t SET {changes} FROM unnest({_arrays(kinds)}) AS c({quoted(columns)}) "
        f'WHERE t."{key}" = c."{key}"'
    )
