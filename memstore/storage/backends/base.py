"""The differences between databases: each statement and each fact about a driver that differs has one method here.

Methods take a ``Connection`` and never commit. Columns are passed as sequences of Python values, all of one length.
Both databases take bulk data in this form: SQLite by ``executemany``, PostgreSQL by arrays in ``unnest``.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import URL, Connection, Engine, Select, Table
from sqlalchemy.exc import DBAPIError

from memstore.config import Durability
from memstore.errors import MemstoreError
from memstore.storage.address import shown_url
from memstore.storage.backends.clauses import accumulation, select_buffer, select_listed
from memstore.storage.backends.expressions import Expressions
from memstore.storage.newfile import Partial
from memstore.storage.refusals import Wanted
from memstore.storage.statements import Statements, Trace

Ints = NDArray[np.int64]
UNAWAITED = "memstore_unawaited"
"""This execution option of a statement says that its result and its number of rows are not read."""

Columns = Mapping[str, Sequence[Any]]
"""Columns are names with their values. All columns have the same length."""

Progress = Callable[[int, int], None]
"""This function is called during a copy, with the number of pages done and the number of all pages."""


class Failure(enum.Enum):
    """The meaning of a driver's error. The code of the error decides it, never its text."""

    BUSY = "busy"
    CONFLICT = "conflict"
    FULL = "full"
    READ_ONLY = "read only"
    CORRUPT = "corrupt"
    NOT_A_DATABASE = "not a database"
    NAME_TAKEN = "name taken"
    UNAVAILABLE = "unavailable"
    DEVICE = "input or output failed"
    LOST = "connection lost"
    OTHER = "other"


class TransactionState(enum.Enum):
    """The state of a transaction that was begun, as the database tells it."""

    OPEN = "open"
    FAILED = "failed"  # the database accepts only a rollback, to a savepoint or of the whole transaction
    GONE = "gone"


class Watch(ABC):
    """A watch that tells a waiting process when to look at the database again.

    It may miss a commit. So a wait always ends after its timeout, and the process looks again in any case.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def _connect(self) -> Any:
        """Open a connection of the driver that nobody else uses."""
        made = self._engine.raw_connection()
        driver = made.driver_connection
        made.detach()
        return driver

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Return as soon as something may have been committed, at the latest after ``timeout`` seconds."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection. Any thread may call this; a later wait opens another one."""


class Backend(Expressions):
    """One database dialect: the facts and the statements that are its own.

    A backend belongs to one address. Threads may share it, but not a connection.
    """

    shared = False
    """True if other programs may keep tables beside memstore's."""

    fork_safe = True
    """True if a forked child may use the database while it still has its parent's connections, without using them."""

    mark: str
    """Mark of a parameter in a statement."""

    among: str
    """Condition that a column has one of the values of a list."""

    advice = "nothing was found that keeps this process from the file; run 'memstore check'"
    """Advice for the user if the database cannot be opened."""

    only_read = False
    """True if nothing may be changed or created, not even beside the file. Set it before the first connection."""

    spills = False
    """True if temporary data may be too large for memory, and go to files. Set it before the first connection."""

    def __init__(self, url: URL, durability: Durability, busy_timeout: float, trace: Trace | None = None) -> None:
        self.url = url
        self.durability = durability
        self.busy_timeout = busy_timeout
        self.statements = Statements(trace)

    @contextmanager
    def hurried(self) -> Iterator[None]:
        """Wait for no lock inside this block, in any thread. It is for a handle that is being closed."""
        patience, self.busy_timeout = self.busy_timeout, 0.0
        try:
            yield
        finally:
            self.busy_timeout = patience

    @abstractmethod
    def create_engine(self) -> Engine:
        """Make an engine that keeps no connections and begins no transactions."""

    @abstractmethod
    def prepare(self, conn: Connection) -> None:
        """Check a database that is empty or memstore's, and change it for good where that is needed.

        It runs outside any transaction. SQLite switches the file to WAL; PostgreSQL only checks version and encoding.
        """

    def driver(self, conn: Connection) -> Any:
        """Return the driver's own connection."""
        return conn.connection.driver_connection

    def is_usable(self, conn: Connection, driver: Any) -> bool:
        """True if a connection that rested can be used again."""
        return not (conn.invalidated or driver.closed)

    @abstractmethod
    def discard(self, conn: Connection, driver: Any) -> None:
        """Close a connection of the driver, and give up everything that is open on it.

        It may be called at any moment, and also for a connection that is closed already.
        """

    @abstractmethod
    def execute(self, conn: Connection, sql: str, values: Sequence[Any] = ()) -> Any:
        """Run a statement in the driver's own words, and return the driver's cursor.

        In a transaction on PostgreSQL, a fetch, ``settle`` or the commit waits for the result later.
        """

    def lock_schema(self, conn: Connection) -> None:
        """Make this write transaction the only one that creates or upgrades tables.

        The method does nothing if a write transaction is always alone in the database.
        """

    def lock_buffer(self, conn: Connection, buffer_id: int) -> None:
        """Make this write transaction the only writer of the buffer, by a separate statement, if others may write."""

    @abstractmethod
    def transaction_state(self, conn: Connection) -> TransactionState:
        """Return the state of the transaction. SQLite, for example, ends one by itself if the disk is full."""

    @abstractmethod
    def begin(self, conn: Connection, *, write: bool) -> None:
        """Begin a transaction, past SQLAlchemy, which would take longer than the database.

        Until the transaction ends, the backend need not wait for statements without a result. An error of such a
        statement may come out of a later statement, at the latest out of ``settle``, ``commit`` or ``rollback``.
        """

    def commit(self, conn: Connection) -> None:
        """Commit, and wait until the commit is done."""
        if conn.in_transaction():  # SQLAlchemy begins its own transaction with its first statement
            conn.commit()
        else:
            self.driver(conn).commit()

    def rollback(self, conn: Connection) -> None:
        """Roll the transaction back. It may be in any state."""
        if conn.get_transaction() is not None:  # this includes a transaction with a failed commit, which is inactive
            conn.rollback()
        self.driver(conn).rollback()  # SQLAlchemy believes that a failed commit ended the transaction

    def settle(self, conn: Connection) -> None:
        """Wait for all statements that were sent, and raise the first error among them.

        There is nothing to do if the backend waits for each statement anyway.
        """

    def fetch(self, conn: Connection, query: Select[Any]) -> list[tuple[Any, ...]]:
        """Return the rows as the driver gives them.

        This is for queries that give plain numbers. With SQLAlchemy's own rows it would take twice as long.
        """
        with conn.execute(query) as result:
            return list(result.cursor.fetchall()) if result.cursor is not None else []

    def read_buffer(self, conn: Connection, buffer_id: int, row: Sequence[str]) -> tuple[Any, ...] | None:
        """Return these columns of the buffer's row. None if there is none."""
        sql = select_buffer(self.mark, tuple(row))
        found: tuple[Any, ...] | None = self.execute(conn, sql, (buffer_id,)).fetchone()
        return found

    def insert(self, conn: Connection, table: Table, columns: Columns) -> None:
        """Insert rows. Row ``i`` has the value ``i`` of each column."""
        # Columns that are NULL in every row are left out. This saves a fifth of an insert of plain episodes.
        present = {name: values for name, values in columns.items() if values.count(None) < len(values)}
        if present:  # otherwise there are no rows: every table has a column that is never NULL
            self.insert_all(conn, table, present)

    @abstractmethod
    def insert_all(self, conn: Connection, table: Table, columns: Columns, conflict: str = "") -> None:
        """Insert rows with all these columns, with the clause ``conflict`` at the end of the statement."""

    @abstractmethod
    def update(self, conn: Connection, table: Table, key: str, columns: Columns) -> None:
        """Update rows by their key.

        Parameters
        ----------
        key : str
            The column that finds the rows. Row ``i`` is the one with value ``i`` of this column.
        columns : mapping
            Values of the key and of the columns that change, all of one length.
        """

    def accumulate(self, conn: Connection, table: Table, added: Sequence[str], columns: Columns) -> None:
        """Insert rows, or add to the rows that are there already.

        If a row with the same primary key exists, the values of the columns ``added`` are added to it. Its other
        columns are replaced, except where the new value is NULL.
        """
        self.insert_all(conn, table, columns, accumulation(table, tuple(added), tuple(columns)))

    def delete(self, conn: Connection, table: Table, key: str, values: Sequence[int]) -> None:
        """Delete the rows with one of these values in their integer column ``key``."""
        sql = f'DELETE FROM {table.name} WHERE "{key}" {self.among}'
        self.execute(conn, sql, (self.listed(table, key, values),))

    def select(
        self, conn: Connection, table: Table, columns: Sequence[str], key: str, values: Sequence[int]
    ) -> list[tuple[Any, ...]]:
        """Return the rows with one of these values in their integer column ``key``.

        They come in any order. A value that no row has adds nothing.
        """
        sql = select_listed(self.join(table, key), table.name, tuple(columns), key)
        rows: list[tuple[Any, ...]] = self.execute(conn, sql, (self.listed(table, key, values),)).fetchall()
        return rows

    def select_texts(
        self, conn: Connection, table: Table, columns: Sequence[str], buffer_id: int, key: str, texts: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        """Return the rows of the buffer with one of these texts in their column ``key``, in any order."""
        sql = f"{select_listed(self.join(table, key), table.name, tuple(columns), key)} AND t.buffer_id = {self.mark}"
        rows: list[tuple[Any, ...]] = self.execute(conn, sql, (self.listed(table, key, texts), buffer_id)).fetchall()
        return rows

    @staticmethod
    @abstractmethod
    def join(table: Table, key: str) -> str:
        """Return the beginning of a clause FROM: the values of one list, named ``c.value``, joined with the table."""

    @abstractmethod
    def listed(self, table: Table, key: str, values: Sequence[Any]) -> Any:
        """Return the one parameter that holds these values of the column ``key``."""

    @abstractmethod
    def clock(self, conn: Connection) -> float:
        """Return the seconds since 1970, by the one clock that all processes of the database share."""

    def announce(self, conn: Connection, buffer_id: int) -> None:
        """Wake the processes that watch the buffer when this transaction commits, if they do not poll by themselves."""

    @abstractmethod
    def watch(self, engine: Engine, buffer_id: int) -> Watch:
        """Return a watch on the buffer, with a separate connection. A commit from now on ends a wait."""

    def classify(self, error: BaseException) -> Failure | None:
        """Return the meaning of the error. None if it is no error of the driver."""
        return self._meaning(error.orig if isinstance(error, DBAPIError) else error)

    @abstractmethod
    def _meaning(self, error: BaseException | None) -> Failure | None:
        """Return the meaning of an error of the driver. SQLAlchemy's wrapper is removed already."""

    @abstractmethod
    def size(self, conn: Connection) -> dict[str, int]:
        """Return the bytes that each part of the database takes (``database``, ``wal`` ...)."""

    def integrity(self, conn: Connection) -> Iterable[str]:
        """Return the faults that the database itself finds in its pages; nothing if it finds none."""
        return ()

    @abstractmethod
    def foreign(self, conn: Connection) -> Iterable[str]:
        """Return a phrase on each object in the database that memstore never makes, but that could act on it.

        Such objects have a name of memstore's, or they are triggers and rules on its tables. They are looked for
        before anything else is read, because reading a view runs it.
        """

    @abstractmethod
    def altered(self, conn: Connection, revision: str) -> Iterable[str]:
        """Return a phrase on each difference from this schema revision that would change what memstore does."""

    @abstractmethod
    def missing(self, conn: Connection) -> Iterable[str]:
        """Return a phrase on each other difference from the schema.

        memstore's answers stay right with these, but they may be slow, and other programs may get wrong ones.
        """

    def unchecked(self) -> Iterable[str]:
        """Return phrases on what ``check`` does not look at in this database."""
        return ()

    @abstractmethod
    def notes(self, conn: Connection) -> Iterable[str]:
        """Return sentences that a user of this database should know, though nothing is damaged."""

    def old_readers(self, conn: Connection) -> Iterable[str]:
        """Return a sentence on each reader with an old snapshot, which keeps the database from shrinking.

        Dead rows are reported too, if they are many. The list may be incomplete: some systems do not tell.
        """
        return ()

    def lock_holder(self) -> str:
        """Say who held the lock that this process could not get. The phrase begins a sentence."""
        return "another transaction, of this or another process, held"

    def describe(self) -> str:
        """Return the address without its password."""
        return shown_url(self.url)

    def identity(self) -> str:
        """Return a text that is the same for all addresses of one database, as far as this process can tell."""
        return self.describe()

    @property
    def may_create(self) -> bool:
        """True if the address allows memstore to create a database."""
        return True

    def exists(self) -> bool:
        """True if there is a database to open, or if only a connection could tell. Nothing is created."""
        return True

    def backup(self, engine: Engine, label: str) -> Path | None:
        """Copy the committed data to a new file beside the original, with ``label`` in its name.

        Returns
        -------
        Path or None
            The new file. None for a server, which has backup tools of its own.
        """
        return None

    def copy_file(self, engine: Engine, target: Path, on_progress: Progress) -> bool:
        """Copy the committed data into an empty file. False, and nothing is done, if the database is not a file."""
        return False

    def refusal(self, what: Wanted) -> MemstoreError | None:
        """Find out what keeps this process from opening the database or from writing to it; None if nothing does."""
        return None

    def put_in_place(self, new: Partial, *, force: bool) -> Path | None:
        """Give a new file the name of the database. Nobody may have the old file open.

        Returns
        -------
        Path or None
            The name under which the old file is kept.
        """
        raise NotImplementedError(self.describe())

    def lock_tables(self, conn: Connection, *, force: bool) -> None:
        """Lock a server's tables against everybody else until this transaction ends.

        Raises
        ------
        StoreBusy
            If other sessions of memstore are connected. With ``force``, only if one uses the tables at this moment.
        """
        raise NotImplementedError(self.describe())

    def empty(self, conn: Connection) -> None:
        """Delete all rows of a server's tables."""
        raise NotImplementedError(self.describe())

    @abstractmethod
    def last_buffer(self, conn: Connection) -> int:
        """Return the largest number that a buffer ever had."""

    @abstractmethod
    def set_last_buffer(self, conn: Connection, number: int) -> None:
        """Make the next buffer get a larger number than this."""

    @abstractmethod
    def vacuum(self, engine: Engine) -> None:
        """Give the room of deleted rows back to the operating system, as far as the database can."""
