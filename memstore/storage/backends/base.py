"""The dialect seam: every statement or driver fact that differs between databases has one method here.

Methods take a ``Connection`` and never commit. Columns travel as equal-length sequences of Python values, because
that is what both bulk forms want: ``executemany`` on SQLite, ``unnest`` arrays on PostgreSQL.
"""

from __future__ import annotations

import enum
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import URL, Connection, Engine, Select, Table

from memstore.config import Durability
from memstore.storage.address import shown_url
from memstore.storage.backends.expressions import Expressions
from memstore.storage.newfile import Partial
from memstore.storage.refusals import Refusal, Wanted
from memstore.storage.statements import Statements, Trace

Ints = NDArray[np.int64]
UNAWAITED = "memstore_unawaited"
"""Execution option of a statement whose result nobody looks at, not even the number of its rows."""

Columns = Mapping[str, Sequence[Any]]
Progress = Callable[[int, int], None]
"""Told how much is done, of how much."""

Located = tuple[int, int, float | None, int]
"""One candidate that exists: its ordinal in the request, episode id, loss, replay count."""


class Failure(enum.Enum):
    """What a driver error means, classified by code and never by text."""

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
    """What the database says of a transaction that was begun."""

    OPEN = "open"
    FAILED = "failed"  # it accepts only a rollback, of a savepoint or of all
    GONE = "gone"


class Watch(ABC):
    """Tells a waiting process when to look again; a commit by anyone may be missed, never for longer than a wait."""

    @abstractmethod
    def start(self) -> None:
        """Commits from now on end a wait."""

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Return when something may have been committed, or after so many seconds."""

    def let_go(self) -> None:  # noqa: B027 - only some must
        """Close the connection before a fork, from any thread; the next wait opens another."""

    @abstractmethod
    def close(self) -> None:
        """Give the connection up."""


class Backend(Expressions):
    """One database dialect."""

    shared = False
    """Whether other programs may keep tables beside memstore's."""

    fork_safe = True
    """Whether a forked child may use the database while it holds, untouched, connections of its parent."""

    advice = "nothing was found that keeps this process from the file; run 'memstore check'"
    """What to look at when it cannot be opened."""

    only_read = False
    """Whether to leave everything as it is, a file's folder included; set before the first connection."""

    def __init__(self, url: URL, durability: Durability, busy_timeout: float, trace: Trace | None = None) -> None:
        self.url = url
        self.durability = durability
        self.busy_timeout = busy_timeout
        self.statements = Statements(trace)

    @abstractmethod
    def create_engine(self) -> Engine:
        """Make an engine that keeps no connections and begins no transactions."""

    @abstractmethod
    def prepare(self, conn: Connection) -> None:
        """Lasting changes to a database known to be empty or ours, outside any transaction."""

    @abstractmethod
    def driver(self, conn: Connection) -> Any:
        """The driver's own connection."""

    @abstractmethod
    def is_usable(self, conn: Connection, driver: Any) -> bool:
        """True if a connection that rested can be used again."""

    @abstractmethod
    def discard(self, conn: Connection, driver: Any) -> None:
        """Close a driver's connection at any moment, with whatever is open on it; it may be closed already."""

    @abstractmethod
    def send(self, conn: Connection, statement: str) -> None:
        """Run a statement that has neither values nor a result."""

    @abstractmethod
    def run(self, conn: Connection, statement: str, values: Any) -> list[tuple[Any, ...]]:
        """Run a query in the driver's own words; return its rows."""

    @abstractmethod
    def lock_schema(self, conn: Connection) -> None:
        """Make this write transaction the only one that creates or upgrades tables."""

    @abstractmethod
    def lock_buffer(self, conn: Connection, buffer_id: int) -> None:
        """Make this write transaction the only writer of the buffer, in a statement of its own."""

    @abstractmethod
    def transaction_state(self, conn: Connection) -> TransactionState:
        """How the begun transaction is (SQLite drops it itself on a full disk)."""

    @abstractmethod
    def begin(self, conn: Connection, *, write: bool) -> None:
        """Begin a transaction, past SQLAlchemy, which would take longer than the database.

        From here to its end, statements without a result need not be awaited one by one: an error may surface at a
        later one, at the latest at ``settle`` or the end.
        """

    def commit(self, conn: Connection) -> None:
        """Commit, and wait until it is done."""
        if conn.in_transaction():  # SQLAlchemy believes to have begun it, with its first statement
            conn.commit()
        else:
            self.driver(conn).commit()

    def rollback(self, conn: Connection) -> None:
        """Give the transaction up, whatever state it is in."""
        if conn.in_transaction():
            conn.rollback()
        self.driver(conn).rollback()  # also where SQLAlchemy believes that a failed commit ended it

    def settle(self, conn: Connection) -> None:
        """Wait for every statement sent; raises the first error among them. Nothing to do where each is awaited."""

    def fetch(self, conn: Connection, query: Select[Any]) -> list[tuple[Any, ...]]:
        """Rows as the driver gives them, for a query of plain numbers: SQLAlchemy's rows take as long again."""
        with conn.execute(query) as result:
            return list(result.cursor.fetchall()) if result.cursor is not None else []

    @abstractmethod
    def read_buffer(
        self, conn: Connection, buffer_id: int, row: Sequence[str], strata: Sequence[str], since: int
    ) -> tuple[tuple[Any, ...] | None, list[tuple[Any, ...]]]:
        """These columns of the buffer's row, and of its strata changed after revision ``since``, by id."""

    @abstractmethod
    def insert(self, conn: Connection, table: Table, columns: Columns) -> None:
        """Insert one row per position of the columns."""

    @abstractmethod
    def update(self, conn: Connection, table: Table, key: str, columns: Columns, least: str | None = None) -> None:
        """Set the other columns of the rows whose ``key`` column has the value at the same position.

        The column ``least`` keeps what it has where that is smaller.
        """

    @abstractmethod
    def accumulate(self, conn: Connection, table: Table, added: Sequence[str], columns: Columns) -> None:
        """Insert rows; where the primary key is there, add to the ``added`` columns and set the others unless NULL."""

    @abstractmethod
    def delete(self, conn: Connection, table: Table, key: str, values: Sequence[int]) -> None:
        """Delete the rows whose integer ``key`` column is among the values."""

    @abstractmethod
    def select(
        self, conn: Connection, table: Table, columns: Sequence[str], key: str, values: Sequence[int]
    ) -> list[tuple[Any, ...]]:
        """Rows whose integer ``key`` column is among the values, in any order; absent ones are left out."""

    @abstractmethod
    def select_texts(
        self, conn: Connection, table: Table, columns: Sequence[str], buffer_id: int, key: str, texts: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        """Rows of the buffer whose text ``key`` column is among the texts, in any order."""

    @abstractmethod
    def locate(self, conn: Connection, strata: Ints, positions: Ints) -> list[Located]:
        """Rows standing at (stratum id, position), in any order, each with the ordinal of its candidate."""

    @abstractmethod
    def clock(self, conn: Connection) -> float:
        """Seconds since 1970 by the one clock that every process of the database shares."""

    @abstractmethod
    def announce(self, conn: Connection, buffer_id: int) -> None:
        """Wake those who watch the buffer when this transaction commits."""

    @abstractmethod
    def watch(self, engine: Engine, buffer_id: int) -> Watch:
        """A watch on the buffer, with a connection of its own."""

    @abstractmethod
    def classify(self, error: BaseException) -> Failure | None:
        """What the error means, or None if it is not a driver's."""

    @abstractmethod
    def size(self, conn: Connection) -> dict[str, int]:
        """Bytes that the database occupies, by part (``database``, ``wal`` ...)."""

    @abstractmethod
    def integrity(self, conn: Connection) -> Iterable[str]:
        """The database's own complaints about its pages; empty when it has none."""

    @abstractmethod
    def foreign(self, conn: Connection) -> Iterable[str]:
        """What stands under names of memstore's, or acts on its tables, and is nothing that memstore ever makes.

        It is looked at before anything else: reading a view runs it.
        """

    @abstractmethod
    def altered(self, conn: Connection, revision: str) -> Iterable[str]:
        """What is not as this revision of the schema defines it, and would change or stop what memstore does."""

    @abstractmethod
    def missing(self, conn: Connection) -> Iterable[str]:
        """What else differs from the schema: no answer is wrong for it, though slow, or wrong in other programs."""

    def unchecked(self) -> Iterable[str]:
        """What ``check`` leaves to others."""
        return ()

    @abstractmethod
    def notes(self, conn: Connection) -> Iterable[str]:
        """What a user of this database software should know, though it is no damage."""

    def old_readers(self, conn: Connection) -> Iterable[str]:
        """A sentence on each reader whose old snapshot keeps the database large, as far as can be told."""
        return ()

    def lock_holder(self) -> str:
        """Who held a lock that was waited for in vain, in words that begin a sentence."""
        return "another transaction, of this or another process, held"

    def describe(self) -> str:
        """The address without its password."""
        return shown_url(self.url)

    def identity(self) -> str:
        """The same for every address of the same database, as far as this process can tell."""
        return self.describe()

    @property
    def may_create(self) -> bool:
        """Whether the address lets a database be made where there is none."""
        return True

    def exists(self) -> bool:
        """Whether there is something to open; True where only connecting can tell. Creates nothing."""
        return True

    def backup(self, engine: Engine, label: str) -> Path | None:
        """Copy the committed data to a new file named after ``label``, beside the original; None where a server has
        tools of its own for that."""
        return None

    def copy_file(self, engine: Engine, target: Path, on_progress: Progress) -> bool:
        """Copy the committed data into an empty file, if the database is a file itself."""
        return False

    def refusal(self, what: Wanted) -> Refusal | None:
        """What keeps this process from opening it, writing it or adding to it, if looking finds anything."""
        return None

    def put_in_place(self, new: Partial, *, force: bool) -> Path | None:
        """Give a new file the name of the database, a file that nobody may have open; returns that of the old one."""
        raise NotImplementedError(self.describe())

    def lock_tables(self, conn: Connection, *, force: bool) -> None:
        """Keep everybody from a server's tables until the end of this transaction; ``StoreBusy`` if others use them,
        with ``force`` only if they do so at this moment."""
        raise NotImplementedError(self.describe())

    def empty(self, conn: Connection) -> None:
        """Remove every row of a server's tables."""
        raise NotImplementedError(self.describe())

    @abstractmethod
    def last_buffer(self, conn: Connection) -> int:
        """The largest number ever given to a buffer."""

    @abstractmethod
    def set_last_buffer(self, conn: Connection, number: int) -> None:
        """Let the next buffer have a larger number than this."""

    @abstractmethod
    def vacuum(self, engine: Engine) -> None:
        """Give back what deleted rows hold."""
