"""Engine life: read and write scopes, error translation, fork safety.

Work is given as a function of a ``Connection``, so that a scope can run it again where the database asks for it. The
function never commits; the scope does.
"""

from __future__ import annotations

import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from sqlalchemy import URL, Connection, Engine, QueuePool

from memstore.backends import Failure, TransactionState, Watch, backend_for
from memstore.config import DEFAULT_BUSY_TIMEOUT, Durability
from memstore.errors import (
    ConnectionLost,
    MemoryClosed,
    MemstoreError,
    StoreUnavailable,
    TransactionDead,
)
from memstore.failures import dead, error_for
from memstore.stored import guarded

T = TypeVar("T")

PASSING = frozenset({Failure.BUSY, Failure.CONFLICT, Failure.LOST})
"""Failures after which the same work may succeed."""

FORK_PATIENCE = 5.0
"""Seconds that a fork waits for transactions of other threads, where their end is needed."""

FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.5
"""Seconds between attempts, times a random factor between a half and one and a half."""

_POOL = "memstore_pool"

_jitter = random.SystemRandom()


@dataclass
class _Transaction:
    connection: Connection
    pid: int
    depth: int = 0
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
        self._reached = False
        self._gate = threading.Lock()
        self._gated = self._busy_at_fork = False
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self.losses = 0
        """How many connections broke. What was read or written before may be undone since: a server that commits
        asynchronously, or a replica that took its place, has forgotten the last commits."""
        _databases.add(self)

    @property
    def transaction_open(self) -> bool:
        """Whether this thread is inside ``transaction()``."""
        return self._current() is not None

    @property
    def transaction_depth(self) -> int:
        """How many ``transaction()`` blocks of this thread are open, each within the one before."""
        transaction = self._current()
        return 0 if transaction is None else 1 + transaction.depth

    def in_read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one snapshot: that of the thread's open transaction, else a new one.

        ``work`` runs again, in a new snapshot, where the database or the connection gave the first one up.
        """
        work = guarded(work, self.backend.describe)
        transaction = self._current()
        if transaction is not None:
            return self._inside(transaction, lambda conn: self._settled(conn, work))
        return self._persistently(lambda: self._committed(self.engine, work))

    def in_write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` and commit, or as a savepoint of the thread's open transaction.

        ``work`` runs again where the database rolled it back for the sake of another transaction, or the connection
        broke before the commit was sent. Afterwards nobody knows: ``ConnectionLost`` with ``outcome_unknown``.
        """
        work = guarded(work, self.backend.describe)
        transaction = self._current()
        if transaction is not None:
            return self._inside(transaction, lambda conn: self._in_savepoint(transaction, work))
        return self._persistently(lambda: self._committed(self._writer, work))

    @contextmanager
    def transaction(self, first: Callable[[Connection], None]) -> Iterator[None]:
        """Make all scopes that this thread opens inside the block one commit; nested blocks are savepoints.

        ``first`` begins the outermost block, and is tried again like a scope of its own.
        """
        outer = self._current()
        if outer is not None:
            with self._savepoint(outer):
                yield
            return
        conn = self._persistently(lambda: self._begun(first))
        self._local.transaction = transaction = _Transaction(conn, os.getpid())
        try:
            yield
        except BaseException:
            self._end(transaction, commit=False)
            raise
        self._end(transaction, commit=True)

    def _begun(self, first: Callable[[Connection], None]) -> Connection:
        conn = self._connect(self._writer)
        try:
            self.backend.begin(conn)
            first(conn)
            self.backend.settle(conn)
        except BaseException:
            self._abandon(conn)
            conn.close()
            raise
        return conn

    def _end(self, transaction: _Transaction, *, commit: bool) -> None:
        if transaction.pid != os.getpid():
            # The transaction goes on in the parent; ending it here, even by a rollback, would break it there.
            _inherited.append(transaction.connection)
            raise TransactionDead("this process was forked inside transaction(); the block belongs to its parent")
        self._local.transaction = None
        with self._translated(), self._given_back(transaction.connection) as conn:
            if commit and not transaction.dead:
                self._commit(conn)
                return
            self._abandon(conn)
            if commit:
                raise dead()

    def _committed(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        with self._given_back(self._connect(engine)) as conn:
            try:
                self.backend.begin(conn)
                result = work(conn)
                if engine is self.engine:  # a read, which may be repeated whenever it fails
                    self.backend.commit(conn)
                    return result
            except BaseException:
                self._abandon(conn)
                raise
            self._commit(conn)
        return result

    def _commit(self, conn: Connection) -> None:
        try:
            self.backend.commit(conn)
        except BaseException as exc:
            self._abandon(conn)
            if self._failure(exc) is Failure.LOST:
                raise ConnectionLost(
                    f"{self.backend.describe()}: the connection broke during the commit, which may have happened or "
                    "not; look, or repeat what can be repeated (an add with a key=, an update)",
                    outcome_unknown=True,
                ) from exc
            raise

    def _abandon(self, conn: Connection) -> None:
        try:
            self.backend.rollback(conn)
        except Exception:
            conn.invalidate()  # whatever the driver says of it, nobody else gets this connection

    def _connect(self, engine: Engine) -> Connection:
        self._check_open()
        if _broken_by_fork and self.backend.identity() in _broken_by_fork:
            raise StoreUnavailable(
                f"{self.backend.describe()}: this process was forked in the middle of a transaction on it, which its "
                "locks do not survive; fork outside transaction(), or start processes by spawn"
            )
        try:
            with self._gate:
                conn = engine.connect()
                conn.info[_POOL] = engine.pool
        except Exception as exc:
            if self.backend.classify(exc) is Failure.LOST and not self._reached:
                raise error_for(Failure.UNAVAILABLE, self.backend, exc) from exc
            raise
        self._reached = True
        return conn

    def _persistently(self, attempt: Callable[[], T]) -> T:
        """Try again what the database gave up for reasons that pass, with growing pauses, for ``busy_timeout``."""
        deadline = time.monotonic() + self.backend.busy_timeout
        pause = FIRST_PAUSE
        while True:
            try:
                return attempt()
            except MemstoreError:
                raise
            except Exception as exc:
                failure = self._failure(exc)
                if failure is None:
                    raise
                if failure not in PASSING or time.monotonic() + pause > deadline:
                    raise error_for(failure, self.backend, exc) from exc
            # Not the random module's own state, which may be seeded by the user.
            time.sleep(pause * (0.5 + _jitter.random()))
            pause = min(2 * pause, LONGEST_PAUSE)

    def prepare(self) -> None:
        """Make the lasting changes that a database known to be empty or ours needs, outside any transaction."""
        self.outside(self.backend.prepare)

    def outside(self, work: Callable[[Engine], T]) -> T:
        """Run what cannot be part of a transaction; the errors of the database come as memstore's."""
        self._check_open()
        with self._translated():
            return work(self.engine)

    def watch(self, buffer_id: int) -> Watch:
        """A started watch on commits to the buffer, to be closed by the caller."""
        watch = self.backend.watch(self.engine, buffer_id)
        self._persistently(watch.start)
        self._watches.add(watch)
        return watch

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

    @contextmanager
    def _given_back(self, conn: Connection) -> Iterator[Connection]:
        """Give the connection back to its pool, or close it if that was given up: by ``close``, or for a fork."""
        with conn:
            try:
                yield conn
            finally:
                if self._closed or (not conn.invalidated and conn.info.get(_POOL) is not self.engine.pool):
                    conn.detach()

    def _current(self) -> _Transaction | None:
        return getattr(self._local, "transaction", None)

    def _check_open(self) -> None:
        if self._closed:
            raise MemoryClosed(f"{self.backend.describe()} was closed; open it again")

    def _inside(self, transaction: _Transaction, work: Callable[[Connection], T]) -> T:
        if transaction.dead:
            raise dead()
        conn = transaction.connection
        try:
            with self._translated():
                return work(conn)
        finally:
            transaction.dead |= self.backend.transaction_state(conn) is not TransactionState.OPEN

    def _in_savepoint(self, transaction: _Transaction, work: Callable[[Connection], T]) -> T:
        with self._savepoint(transaction):
            return self._settled(transaction.connection, work)

    def _settled(self, conn: Connection, work: Callable[[Connection], T]) -> T:
        """Run work, and let every error of its statements surface here."""
        try:
            result = work(conn)
        except BaseException:
            with suppress(Exception):  # of statements that are given up
                self.backend.settle(conn)
            raise
        self.backend.settle(conn)
        return result

    @contextmanager
    def _savepoint(self, transaction: _Transaction) -> Iterator[None]:
        if transaction.dead:
            raise dead()
        conn, backend = transaction.connection, self.backend
        transaction.depth += 1
        name = f"memstore_{transaction.depth}"
        backend.send(conn, f"SAVEPOINT {name}")
        try:
            yield
        except BaseException:
            # SQLite ends the whole transaction itself on a full disk; then there is no savepoint to return to.
            if backend.transaction_state(conn) is TransactionState.GONE:
                transaction.dead = True
            else:
                backend.send(conn, f"ROLLBACK TO SAVEPOINT {name}")
                backend.settle(conn)
            raise
        finally:
            transaction.depth -= 1
        if transaction.dead:
            raise dead()
        backend.send(conn, f"RELEASE SAVEPOINT {name}")

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except MemstoreError:
            raise
        except Exception as exc:
            failure = self._failure(exc)
            if failure is None:
                raise
            raise error_for(failure, self.backend, exc) from exc

    def _failure(self, exc: BaseException) -> Failure | None:
        failure = self.backend.classify(exc)
        self.losses += failure is Failure.LOST
        return failure

    def _before_fork(self) -> None:
        if self.backend.fork_safe:
            return
        # No scope begins from here on, and those of other threads end; a block of this thread cannot.
        self._gate.acquire()
        self._gated = True
        pool, own = cast(QueuePool, self.engine.pool), int(self.transaction_open)
        deadline = time.monotonic() + FORK_PATIENCE
        while pool.checkedout() > own and time.monotonic() < deadline:
            time.sleep(0.001)
        self._busy_at_fork = pool.checkedout() > 0
        self.engine.dispose()
        for watch in list(self._watches):
            watch.let_go()

    def _after_fork_in_parent(self) -> None:
        if self._gated:
            self._gated = False
            self._gate.release()

    def _after_fork(self) -> None:
        if self._busy_at_fork:
            _broken_by_fork.add(self.backend.identity())
        _inherited.append(self.engine.pool)
        self.engine.dispose(close=False)
        self._local = threading.local()
        self._gate, self._gated = threading.Lock(), False


# Connections of a parent process: kept, so that no garbage collection closes them under its feet.
_inherited: list[object] = []
_databases: weakref.WeakSet[Database] = weakref.WeakSet()


# Files that inherited connections make unusable for this process, whoever opens them.
_broken_by_fork: set[str] = set()


def _each_database(act: Callable[[Database], None]) -> Callable[[], None]:
    def hook() -> None:
        for database in list(_databases):
            act(database)

    return hook


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_each_database(Database._before_fork),
        after_in_parent=_each_database(Database._after_fork_in_parent),
        after_in_child=_each_database(Database._after_fork),
    )
