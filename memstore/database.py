"""Engine life: read and write scopes, error translation, fork safety.

Work is given as a function of a ``Connection``, so that a scope can run it again where the database asks for it. The
function never commits; the scope does.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine

from memstore.backends import Failure, backend_for
from memstore.config import DEFAULT_BUSY_TIMEOUT, Durability
from memstore.errors import (
    ConnectionLost,
    MemoryClosed,
    MemstoreError,
    NotAMemstore,
    StoreBusy,
    StoreCorrupt,
    StoreFull,
    StoreReadOnly,
    StoreUnavailable,
    TransactionDead,
)

T = TypeVar("T")


@dataclass
class _Transaction:
    connection: Connection
    pid: int
    dead: bool = False


class Database:
    """One database, as seen by one process.

    Threads may share it. A forked child gets fresh connections and no open transaction; the parent's connections are
    left alone, neither used nor closed.
    """

    def __init__(
        self, url: URL, *, durability: Durability = "process", busy_timeout: float = DEFAULT_BUSY_TIMEOUT
    ) -> None:
        self.backend = backend_for(url, durability, busy_timeout)
        self.engine = self.backend.create_engine()
        self._writer = self.engine.execution_options(memstore_write=True)
        self._local = threading.local()
        self._closed = False
        _databases.add(self)

    @property
    def transaction_open(self) -> bool:
        """Whether this thread is inside ``transaction()``."""
        return self._current() is not None

    def in_read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one snapshot: that of the thread's open transaction, else a new one."""
        transaction = self._current()
        if transaction is not None:
            return self._inside(transaction, lambda: work(transaction.connection))
        self._check_open()
        with self._translated(), self._connected(self.engine) as conn, conn.begin():
            return work(conn)

    def in_write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` and commit, or as a savepoint of the thread's open transaction."""
        transaction = self._current()
        if transaction is not None:
            return self._inside(transaction, lambda: self._savepoint(transaction, work))
        self._check_open()
        with self._translated(), self._connected(self._writer) as conn, conn.begin():
            return work(conn)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make all scopes that this thread opens inside the block one commit; nested blocks are savepoints."""
        outer = self._current()
        if outer is not None:
            with self._savepoint_block(outer):
                yield
            return
        self._check_open()
        with self._translated():
            conn = self._writer.connect()
            conn.begin()
        self._local.transaction = transaction = _Transaction(conn, os.getpid())
        try:
            yield
        except BaseException:
            self._end(transaction, commit=False)
            raise
        self._end(transaction, commit=True)

    def _end(self, transaction: _Transaction, *, commit: bool) -> None:
        if transaction.pid != os.getpid():
            # The transaction goes on in the parent; ending it here, even by a rollback, would break it there.
            _inherited.append(transaction.connection)
            raise TransactionDead("this process was forked inside transaction(); the block belongs to its parent")
        self._local.transaction = None
        conn = transaction.connection
        with self._translated(), self._given_back(conn):
            if commit and transaction.dead:
                raise _dead()
            if commit:
                conn.commit()

    def prepare(self) -> None:
        """Make the lasting changes that a database known to be empty or ours needs, outside any transaction."""
        self._check_open()
        with self._translated():
            self.backend.prepare(self.engine)

    def address(self) -> dict[str, Any]:
        """What ``Database(**address)`` needs to open the same database elsewhere; holds the password."""
        return {
            "url": self.backend.url,
            "durability": self.backend.durability,
            "busy_timeout": self.backend.busy_timeout,
        }

    def close(self) -> None:
        """Close every idle connection; later scopes raise ``MemoryClosed``."""
        self._closed = True
        self.engine.dispose()

    def _connected(self, engine: Engine) -> AbstractContextManager[Connection]:
        return self._given_back(engine.connect())

    @contextmanager
    def _given_back(self, conn: Connection) -> Iterator[Connection]:
        """Give the connection back to the pool, or close it if the database was closed meanwhile."""
        with conn:
            try:
                yield conn
            finally:
                if self._closed:
                    conn.detach()

    def _current(self) -> _Transaction | None:
        return getattr(self._local, "transaction", None)

    def _check_open(self) -> None:
        if self._closed:
            raise MemoryClosed(f"{self.backend.describe()} was closed; open it again")

    def _inside(self, transaction: _Transaction, work: Callable[[], T]) -> T:
        if transaction.dead:
            raise _dead()
        try:
            with self._translated():
                return work()
        finally:
            transaction.dead |= not self.backend.in_transaction(transaction.connection)

    def _savepoint(self, transaction: _Transaction, work: Callable[[Connection], T]) -> T:
        with self._savepoint_block(transaction):
            return work(transaction.connection)

    @contextmanager
    def _savepoint_block(self, transaction: _Transaction) -> Iterator[None]:
        if transaction.dead:
            raise _dead()
        savepoint = transaction.connection.begin_nested()
        try:
            yield
        except BaseException:
            # SQLite ends the whole transaction itself on a full disk; then there is no savepoint to return to.
            if self.backend.in_transaction(transaction.connection):
                savepoint.rollback()
            else:
                transaction.dead = True
            raise
        if transaction.dead:
            raise _dead()
        savepoint.commit()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except MemstoreError:
            raise
        except Exception as exc:
            failure = self.backend.classify(exc)
            if failure is None:
                raise
            raise _error_for(failure, self.backend.describe(), self.backend.busy_timeout, exc) from exc

    def _after_fork(self) -> None:
        _inherited.append(self.engine.pool)
        self.engine.dispose(close=False)
        self._local = threading.local()


def _dead() -> TransactionDead:
    return TransactionDead(
        "the database ended this transaction itself (usually a full disk): nothing of the block was committed; "
        "leave the block, make room, and run it again"
    )


def _error_for(failure: Failure, where: str, busy_timeout: float, exc: Exception) -> MemstoreError:
    detail = str(getattr(exc, "orig", exc)).splitlines()[0]
    match failure:
        case Failure.BUSY | Failure.CONFLICT:
            return StoreBusy(
                f"{where}: another process held the write lock for {busy_timeout:g} s; keep transaction() blocks "
                f"short, or open with a larger busy_timeout= ({detail})"
            )
        case Failure.FULL:
            return StoreFull(f"{where}: no room to write, the transaction was rolled back; free some space ({detail})")
        case Failure.READ_ONLY:
            return StoreReadOnly(f"{where} is read-only for this process; check the file and its folder ({detail})")
        case Failure.CORRUPT:
            return StoreCorrupt(f"{where} is damaged; run 'memstore check', restore a backup ({detail})")
        case Failure.NOT_A_DATABASE:
            return NotAMemstore(f"{where} is not a database; nothing was changed ({detail})")
        case Failure.UNAVAILABLE:
            return StoreUnavailable(f"{where} cannot be opened; does its folder exist? ({detail})")
        case Failure.LOST:
            return ConnectionLost(f"{where}: the connection broke ({detail})")
        case _:
            return MemstoreError(f"{where}: {detail}")


# Connections of a parent process: kept, so that no garbage collection closes them under its feet.
_inherited: list[object] = []
_databases: weakref.WeakSet[Database] = weakref.WeakSet()


def _forget_inherited_connections() -> None:
    for database in list(_databases):
        database._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_inherited_connections)
