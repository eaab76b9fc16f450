"""The backend for PostgreSQL, by psycopg 3: arrays for ``unnest``, pipelined statements, no state of sessions.

Nothing stays on the server after a transaction: settings are local to it, and no statement is prepared. So a pooler in
transaction mode may stand between. Prepared statements gained nothing that could be measured: planning takes 0.1 ms.
"""

from __future__ import annotations

import functools
import selectors
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, suppress
from typing import Any, cast
from weakref import WeakKeyDictionary

import psycopg
from psycopg.pq import TransactionStatus
from sqlalchemy import URL, Connection, Engine, Table, create_engine, event
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

from memstore.config import Durability
from memstore.errors import StoreUnavailable
from memstore.storage.backends import alone, catalog, layout, old_readers
from memstore.storage.backends.arrays import BYTEA, INT8, TEXT, Array, encode, kind_of
from memstore.storage.backends.base import UNAWAITED, Backend, Columns, Failure, Ints, Located, TransactionState, Watch
from memstore.storage.backends.expressions import PostgresExpressions, accumulation
from memstore.storage.backends.listener import ANNOUNCE, Listener
from memstore.storage.backends.pipelined import PipelinedConnection, connect_pipelined
from memstore.storage.schema import VERSION_TABLE, buffer, metadata, replay_metadata, stratum
from memstore.storage.statements import Trace

MINIMUM_VERSION = 130000
"""memstore needs at least this version of the server, in the form that the server gives it: 13.0."""

STATEMENT_BYTES = 64 * 2**20
"""One statement has at most this many bytes of blobs. A message may hold 1 GiB, but both sides keep it in memory."""

LARGE = 16 * 2**20
"""A large value has at least this many bytes. Its connection is closed later, which frees its buffers.

A new connection costs 5 ms.
"""

CANCELLATION = 2.0
"""The call that tells the server to cancel a statement may take this many seconds."""

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

# Without OFFSET 0, the planner makes a hash join over the whole table from 2,500 candidates on.
_LOCATE = (
    "SELECT c.n, m.episode_id, m.loss, m.replay_count "
    "FROM unnest(%s::int8[], %s::int8[]) WITH ORDINALITY AS c(stratum_id, position, n) CROSS JOIN LATERAL "
    f"(SELECT * FROM {replay_metadata.name} t WHERE t.stratum_id = c.stratum_id AND t.position = c.position OFFSET 0) m"
)


_Pipeline = tuple[PipelinedConnection, ExitStack, psycopg.Pipeline]
"""A pipeline is stored as its connection, the stack that ends it, and the pipeline itself."""


class PostgresBackend(PostgresExpressions, Backend):
    """A PostgreSQL database, or the schema in it that ``search_path`` names."""

    shared = True
    advice = "does the server run, do the database, the user and the schema exist?"

    def __init__(self, url: URL, durability: Durability, busy_timeout: float, trace: Trace | None = None) -> None:
        super().__init__(url, durability, busy_timeout, trace)
        # The key is SQLAlchemy's connection. Its notes (info) are not used, because they are lost when it breaks.
        self._pipelines: WeakKeyDictionary[Connection, _Pipeline] = WeakKeyDictionary()
        # 0 ms would mean no limit, so the least is 1 ms.
        self._settings = ("on" if durability == "power" else "off", f"{max(int(busy_timeout * 1000), 1)}ms")

    def create_engine(self) -> Engine:
        engine = create_engine(
            self.url,
            connect_args={"prepare_threshold": None, "fallback_application_name": alone.APPLICATION},
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
        info = _driver(conn).info
        if info.server_version < MINIMUM_VERSION:
            raise StoreUnavailable(f"memstore needs PostgreSQL {MINIMUM_VERSION // 10000} or newer")
        if info.parameter_status("server_encoding") != "UTF8":
            raise StoreUnavailable(f"{self.describe()} must have the encoding UTF8; create a database with that")

    def begin(self, conn: Connection, *, write: bool) -> None:
        stack, driver = ExitStack(), _driver(conn)
        self._pipelines[conn] = driver, stack, stack.enter_context(driver.pipeline())
        _send(conn, _WRITE if write else _READ)
        if write:
            _send(conn, _SETTINGS, self._settings)

    def commit(self, conn: Connection) -> None:
        super().commit(conn)
        self._leave_pipeline(conn)
        if conn.info.get(_SWOLLEN):
            conn.invalidate()

    def rollback(self, conn: Connection) -> None:
        with suppress(psycopg.Error):  # the statements are given up, and their errors do not matter
            self._leave_pipeline(conn)
        if _driver(conn).closed:
            conn.invalidate()
        else:
            super().rollback(conn)

    def settle(self, conn: Connection) -> None:
        driver, _, pipeline = self._pipelines[conn]
        _flush(driver)
        driver.await_all(pipeline.sync)

    def _leave_pipeline(self, conn: Connection) -> None:
        if conn in self._pipelines:
            driver, stack, _ = self._pipelines.pop(conn)
            driver.await_all(stack.close)

    def _arrived(self, conn: Connection, _cursor: Any, _sql: str, _values: Any, context: Any, _many: bool) -> None:
        """Wait for the result of a statement that SQLAlchemy sent: it expects the result to be there."""
        if conn in self._pipelines:
            driver, _, pipeline = self._pipelines[conn]
            _flush(driver)
            if not context.execution_options.get(UNAWAITED, False):
                driver.await_all(pipeline.sync)

    def driver(self, conn: Connection) -> PipelinedConnection:
        return _driver(conn)

    def is_usable(self, conn: Connection, driver: PipelinedConnection) -> bool:
        return not (conn.invalidated or driver.closed)

    def discard(self, conn: Connection, driver: PipelinedConnection) -> None:
        with suppress(psycopg.Error):  # the server would work on, and notice only at the end that the client is gone
            if driver.info.transaction_status is TransactionStatus.ACTIVE:
                driver.cancel_safe(timeout=CANCELLATION)
        driver.close()
        with suppress(psycopg.Error):  # the connection is closed, but an open pipeline would log a message about it
            self._leave_pipeline(conn)

    def send(self, conn: Connection, statement: str) -> None:
        _send(conn, statement)

    def run(self, conn: Connection, statement: str, values: Any) -> list[tuple[Any, ...]]:
        return _send(conn, statement, values).fetchall()

    def lock_schema(self, conn: Connection) -> None:
        # Tables and buffers are created durably under either durability, because a handle could not work on a table
        # that the server has lost.
        _send(conn, "SELECT set_config('synchronous_commit', 'on', true)")
        _send(conn, f"SELECT pg_advisory_xact_lock(hashtextextended('{VERSION_TABLE} ' || current_schema(), 0))")

    def lock_buffer(self, conn: Connection, buffer_id: int) -> None:
        _send(conn, f"SELECT FROM {buffer.name} WHERE id = %s FOR NO KEY UPDATE", (buffer_id,))

    def transaction_state(self, conn: Connection) -> TransactionState:
        if conn.invalidated:
            return TransactionState.GONE
        match _driver(conn).info.transaction_status:
            case TransactionStatus.INTRANS | TransactionStatus.ACTIVE:
                return TransactionState.OPEN
            case TransactionStatus.INERROR:
                return TransactionState.FAILED
            case _:
                return TransactionState.GONE

    def read_buffer(
        self, conn: Connection, buffer_id: int, row: Sequence[str], strata: Sequence[str], since: int
    ) -> tuple[tuple[Any, ...] | None, list[tuple[Any, ...]]]:
        found = _send(conn, _select_sql(buffer.name, tuple(row), "id", INT8.sql), (encode(INT8, [buffer_id]),))
        changed = _send(conn, _changed_sql(tuple(strata)), (buffer_id, since))
        return found.fetchone(), changed.fetchall()

    def insert(self, conn: Connection, table: Table, columns: Columns) -> None:
        present = {name: values for name, values in columns.items() if values.count(None) < len(values)}
        if not present:  # there are no rows: every table has a column that is never NULL
            return
        for rows in _parts(table, present):
            kinds, arrays = _encode_columns(table, present, rows)
            _send(conn, _insert_sql(table.name, tuple(present), kinds), arrays)

    def update(self, conn: Connection, table: Table, key: str, columns: Columns, least: str | None = None) -> None:
        kinds, arrays = _encode_columns(table, columns)
        _send(conn, _update_sql(table.name, key, tuple(columns), kinds, least), arrays)

    def accumulate(self, conn: Connection, table: Table, added: Sequence[str], columns: Columns) -> None:
        kinds, arrays = _encode_columns(table, columns)
        sql = _insert_sql(table.name, tuple(columns), kinds) + accumulation(table, tuple(added), tuple(columns))
        _send(conn, sql, arrays)

    def delete(self, conn: Connection, table: Table, key: str, values: Sequence[int]) -> None:
        _send(conn, _delete_sql(table.name, key), (encode(INT8, values),))

    def select(
        self, conn: Connection, table: Table, columns: Sequence[str], key: str, values: Sequence[int]
    ) -> list[tuple[Any, ...]]:
        return _send(conn, _select_sql(table.name, tuple(columns), key, INT8.sql), (encode(INT8, values),)).fetchall()

    def select_texts(
        self, conn: Connection, table: Table, columns: Sequence[str], buffer_id: int, key: str, texts: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        sql = _select_sql(table.name, tuple(columns), key, TEXT.sql) + " AND t.buffer_id = %s"
        rows = _send(conn, sql, (encode(TEXT, texts), buffer_id)).fetchall()
        if any(isinstance(value, bytes) and len(value) > LARGE for row in rows for value in row):
            conn.info[_SWOLLEN] = True
        return rows

    def locate(self, conn: Connection, strata: Ints, positions: Ints) -> list[Located]:
        if not len(strata):
            return []
        rows = _send(conn, _LOCATE, (encode(INT8, strata), encode(INT8, positions))).fetchall()
        return [(ordinal - 1, *rest) for ordinal, *rest in rows]

    def clock(self, conn: Connection) -> float:
        return float(_send(conn, "SELECT extract(epoch FROM clock_timestamp())::float8").fetchall()[0][0])

    def announce(self, conn: Connection, buffer_id: int) -> None:
        _send(conn, ANNOUNCE, (str(buffer_id), buffer_id))

    def watch(self, engine: Engine, buffer_id: int) -> Watch:
        def connect() -> PipelinedConnection:
            conn = engine.connect()
            driver = _driver(conn)
            conn.detach()
            return driver

        return Listener(connect, buffer_id)

    def classify(self, error: BaseException) -> Failure | None:
        cause = error.orig if isinstance(error, DBAPIError) else error
        if not isinstance(cause, psycopg.Error):
            return None
        code = cause.sqlstate
        if code is None or code.startswith("08"):
            # An error without a code comes from the driver: the connection is lost, or could not be made.
            return Failure.LOST if isinstance(cause, psycopg.OperationalError) or code else Failure.OTHER
        return _CODES.get(code, Failure.OTHER)

    def size(self, conn: Connection) -> dict[str, int]:
        names = [table.name for table in metadata.sorted_tables]
        sql = "SELECT sum(pg_table_size(t::regclass)), sum(pg_indexes_size(t::regclass)) FROM unnest(%s::text[]) t"
        tables, indexes = _send(conn, sql, (encode(TEXT, names),)).fetchall()[0]
        return {"tables": int(tables), "indexes": int(indexes)}

    def last_buffer(self, conn: Connection) -> int:
        sql = "SELECT pg_sequence_last_value(pg_get_serial_sequence(%s, 'id'))"
        return int(_send(conn, sql, (buffer.name,)).fetchall()[0][0] or 0)

    def set_last_buffer(self, conn: Connection, number: int) -> None:
        if number:
            _send(conn, "SELECT setval(pg_get_serial_sequence(%s, 'id'), %s)", (buffer.name, number))

    def lock_tables(self, conn: Connection, *, force: bool) -> None:
        alone.lock_tables(functools.partial(_send, conn), self.describe(), self.busy_timeout, force=force)

    def empty(self, conn: Connection) -> None:
        _send(conn, f"TRUNCATE {', '.join(metadata.tables)}")

    def vacuum(self, engine: Engine) -> None:
        with engine.connect() as conn:
            for name in metadata.tables:
                _driver(conn).execute(f"VACUUM (ANALYZE) {name}".encode())

    def integrity(self, conn: Connection) -> Iterable[str]:
        return ()  # the server checks its own pages (pg_amcheck, data_checksums), and refuses to read a damaged one

    def foreign(self, conn: Connection) -> Iterable[str]:
        return catalog.foreign(_listed(conn, catalog.RELATIONS), _listed(conn, catalog.RULES))

    def altered(self, conn: Connection, revision: str) -> Iterable[str]:
        return catalog.altered(_listed(conn, catalog.COLUMNS)) if revision == layout.REVISION else ()

    def missing(self, conn: Connection) -> Iterable[str]:
        return catalog.missing(*(_listed(conn, sql) for sql in (catalog.RELATIONS, catalog.INDEXES, catalog.ACTING)))

    def unchecked(self) -> Iterable[str]:
        return ("pages (the server has pg_amcheck and data_checksums for that), and the definitions of views",)

    def notes(self, conn: Connection) -> Iterable[str]:
        risky = _send(
            conn,
            "SELECT name FROM pg_settings WHERE name = ANY(%s) AND setting = 'off' ORDER BY name",
            (["fsync", "full_page_writes"],),
        ).fetchall()
        for (name,) in risky:
            yield f"the server runs with {name}=off: a crash of its machine can damage the database"
        yield from self.old_readers(conn)

    def old_readers(self, conn: Connection) -> Iterable[str]:
        rows = _send(conn, old_readers.ON_SERVER, (old_readers.LONG_SNAPSHOT,)).fetchall()
        return old_readers.of_server(rows)


_SWOLLEN = "memstore_swollen"
"""The note on a connection that is closed after its transaction: libpq's buffers grow, and never shrink again."""


def _driver(conn: Connection) -> PipelinedConnection:
    return cast("PipelinedConnection", conn.connection.driver_connection)


def _send(conn: Connection, sql: str, values: Sequence[Any] = ()) -> psycopg.Cursor[Any]:
    """Send a statement. In a transaction, a fetch, ``settle`` or the commit waits for its result later."""
    driver = _driver(conn)
    if any(isinstance(value, Array) and len(value.data) > LARGE for value in values):
        conn.info[_SWOLLEN] = True
    cursor = driver.kind_of_cursor()(driver).execute(sql, values or None, binary=True)
    _flush(driver)
    return cursor


def _listed(conn: Connection, sql: str) -> list[tuple[Any, ...]]:
    """Run a statement of ``catalog``. Each of its parameters is the list of memstore's names."""
    return _send(conn, sql, [catalog.NAMES] * sql.count("%s")).fetchall()


def _flush(driver: PipelinedConnection) -> None:
    """Send all of a pipelined statement.

    psycopg 3.3 tries once to send it, and then only reads. A statement that does not fit the socket's buffer, such as a
    checkpoint of 10 MB, would then wait for ever, and so would the server.
    """
    if not driver.pgconn.flush():
        return
    with selectors.DefaultSelector() as selector:
        selector.register(driver.pgconn.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
        while driver.pgconn.flush():
            if any(events & selectors.EVENT_READ for _, events in selector.select()):
                driver.pgconn.consume_input()


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
    for row in range(count) if blobs else ():
        length = sum(len(values[row]) for values in blobs)
        if size and size + length > STATEMENT_BYTES:
            yield slice(start, row)
            start, size = row, 0
        size += length
    yield slice(start, count)


def _quoted(names: Iterable[str], prefix: str = "") -> str:
    return ", ".join(f'{prefix}"{name}"' for name in names)


def _arrays(kinds: tuple[str, ...]) -> str:
    return ", ".join(f"%s::{kind}[]" for kind in kinds)


@functools.cache
def _insert_sql(table: str, columns: tuple[str, ...], kinds: tuple[str, ...]) -> str:
    return f"INSERT INTO {table} ({_quoted(columns)}) SELECT * FROM unnest({_arrays(kinds)})"


@functools.cache
def _update_sql(table: str, key: str, columns: tuple[str, ...], kinds: tuple[str, ...], least: str | None) -> str:
    changes = ", ".join(
        f'"{name}" = CASE WHEN t."{name}" <= c."{name}" THEN t."{name}" ELSE c."{name}" END'
        if name == least
        else f'"{name}" = c."{name}"'
        for name in columns
        if name != key
    )
    return (
        f"UPDATE {table} t SET {changes} FROM unnest({_arrays(kinds)}) AS c({_quoted(columns)}) "
        f'WHERE t."{key}" = c."{key}"'
    )


@functools.cache
def _delete_sql(table: str, key: str) -> str:
    return f'DELETE FROM {table} WHERE "{key}" = ANY(%s::int8[])'


@functools.cache
def _select_sql(table: str, columns: tuple[str, ...], key: str, kind: str) -> str:
    # "= ANY" is not used: the planner copies the array's constants into the index condition, up to 0.5 ms for 256.
    return (
        f'SELECT {_quoted(columns, "t.")} FROM unnest(%s::{kind}[]) AS c(wanted) JOIN {table} t ON t."{key}" = c.wanted'
    )


@functools.cache
def _changed_sql(columns: tuple[str, ...]) -> str:
    return f"SELECT {_quoted(columns)} FROM {stratum.name} WHERE buffer_id = %s AND revision > %s ORDER BY id"
