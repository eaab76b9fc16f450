"""Engine life: read and write scopes, error translation, fork safety.

Work is given as a function of a ``Connection``, so that a scope can run it again where the database asks for it. The
function never commits; the scope does.
"""

from __future__ import annotations

import os
import random
import sys
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine

from memstore.config import DEFAULT_BUSY_TIMEOUT, Durability
from memstore.errors import (
    ConnectionLost,
    MemoryClosed,
    MemstoreError,
    StoreUnavailable,
)
from memstore.storage.backends import Failure, Watch, backend_for
from memstore.storage.blocks import Block
from memstore.storage.connections import Connections
from memstore.storage.failures import dead, error_for, foreign, reraise_interrupt
from memstore.storage.owners import Owner, Scope, this_owner
from memstore.storage.stored import guarded
from memstore.storage.transactions import Transaction

T = TypeVar("T")

PASSING = frozenset({Failure.BUSY, Failure.CONFLICT, Failure.LOST})
"""Failures after which the same work may succeed."""

FORK_PATIENCE = 5.0
"""Seconds that a fork waits for transactions of other threads, where their end is needed."""

FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.5
"""Seconds between attempts, times a random factor between a half and one and a half."""

_jitter = random.SystemRandom()


class Database:
    """One database, as seen by one process.

    Threads may share it. A forked child gets fresh connections and no open transaction; the parent's connections are
    left alone, neither used nor closed.
    """

    def __init__(
        self, url: URL, *, durability: Durability = "process", busy_timeout: float = DEFAULT_BUSY_TIMEOUT
    ) -> None:
        self.backend = backend_for(url, durability, busy_timeout)
        self.connections = Connections(self.backend)
        self.engine = self.connections.engine
        self._open: dict[Owner, Transaction] = {}
        self._reached = False
        self._busy_at_fork = False
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        self.losses = 0
        """How many connections broke. What was read or written before may be undone since: a server that commits
        asynchronously, or a replica that took its place, has forgotten the last commits."""
        _databases.add(self)

    @property
    def transaction_open(self) -> bool:
        """Whether this thread and task is inside ``transaction()``."""
        return self._current() is not None

    @property
    def transaction_depth(self) -> int:
        """How many ``transaction()`` blocks of this thread and task are open, each within the one before."""
        transaction = self._current()
        return 0 if transaction is None else 1 + transaction.depth

    def in_read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one snapshot: that of the open transaction of this thread and task, else a new one.

        ``work`` runs again, in a new snapshot, where the database or the connection gave the first one up.
        """
        work = guarded(work, self.backend.describe)
        transaction = self._current()
        if transaction is not None:
            with self._translated():
                return transaction.run(work)
        return self._persistently(lambda: self._committed(work, write=False))

    def in_write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` and commit, or as a savepoint of the open transaction of this thread and task.

        ``work`` runs again where the database rolled it back for the sake of another transaction, or the connection
        broke before the commit was sent. Afterwards nobody knows: ``ConnectionLost`` with ``outcome_unknown``.
        """
        work = guarded(work, self.backend.describe)
        transaction = self._current()
        if transaction is not None:
            with self._translated():
                return transaction.run_in_savepoint(work)
        return self._persistently(lambda: self._committed(work, write=True))

    def transaction(self, first: Callable[[Connection], None]) -> Block[None]:
        """Make all scopes that this thread and task opens inside the block one commit; nested blocks are savepoints.

        ``first`` begins the outermost block, and is tried again like a scope of its own.
        """
        return Block(TransactionSteps(self, first, Scope(this_owner())))

    def _begun(self, scope: Scope, first: Callable[[Connection], None]) -> None:
        outer = sys.exception()
        try:
            conn = self._connect(scope, write=True)
            self.backend.begin(conn)
            first(conn)
            self.backend.settle(conn)
            self._open[scope.owner] = Transaction(scope, self.backend, conn)
        except Exception as exc:
            self._undo(scope, exc, outer)
            raise
        except BaseException:
            self.connections.close(scope)
            raise

    def _ended(self, transaction: Transaction, *, commit: bool) -> None:
        owned, outer = transaction.owner == this_owner(), sys.exception()
        try:
            if commit and owned and not transaction.dead:
                with self._translated():
                    self._commit(transaction.conn)
                self.connections.give_back(transaction.scope)
            elif not transaction.dead:
                self._roll_back(transaction.scope)
        except Exception as exc:
            reraise_interrupt(exc, outer)
            raise
        finally:
            self._abandoned(transaction.scope)
        if commit and not owned:
            raise foreign(transaction.owner)
        if commit and transaction.dead:
            raise dead()

    def _abandoned(self, scope: Scope) -> None:
        """Close the connection of a block, unless that was given back already; the block is open no longer."""
        self.connections.close(scope)
        transaction = self._open.get(scope.owner)
        if transaction is not None and transaction.scope is scope:
            del self._open[scope.owner]

    def _committed(self, work: Callable[[Connection], T], *, write: bool) -> T:
        scope = Scope(this_owner(), sys._getframe())
        outer = sys.exception()
        try:
            conn = self._connect(scope, write=write)
            self.backend.begin(conn)
            result = work(conn)
            if write:
                self._commit(conn)
            else:  # may be repeated whenever it fails
                self.backend.commit(conn)
            self.connections.give_back(scope)
            return result
        except Exception as exc:
            self._undo(scope, exc, outer)
            raise
        finally:
            self.connections.close(scope)  # what was not given back: an interrupt came, wherever
            del scope, outer  # they refer to this function's variables

    def _undo(self, scope: Scope, exc: Exception, outer: BaseException | None) -> None:
        reraise_interrupt(exc, outer)
        self._roll_back(scope)

    def _commit(self, conn: Connection) -> None:
        try:
            self.backend.commit(conn)
        except Exception as exc:
            if self._failure(exc) is Failure.LOST:
                raise ConnectionLost(
                    f"{self.backend.describe()}: the connection broke during the commit, which may have happened or "
                    "not; look, or repeat what can be repeated (an add with a key=, an update)",
                    outcome_unknown=True,
                ) from exc
            raise

    def _roll_back(self, scope: Scope) -> None:
        """Undo what is open on the scope's connection; one that refuses it is closed, and nobody else gets it."""
        conn = self.connections.of(scope)
        if conn is None:
            return
        try:
            self.backend.rollback(conn)
        except Exception:
            self.connections.close(scope)
            return
        self.connections.give_back(scope)

    def _connect(self, scope: Scope, *, write: bool) -> Connection:
        self._check_open()
        if _broken_by_fork and self.backend.identity() in _broken_by_fork:
            raise StoreUnavailable(
                f"{self.backend.describe()}: this process was forked in the middle of a transaction on it, which its "
                "locks do not survive; fork outside transaction(), or start processes by spawn"
            )
        try:
            conn = self.connections.take(scope, write=write)
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
                    raise error_for(failure, self.backend, exc, self._holder_here()) from exc
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
        self.connections.closed = True
        self.connections.clear()

    def _current(self) -> Transaction | None:
        return self._open.get(this_owner()) if self._open else None

    def _holder_here(self) -> Owner | None:
        """Who writes to the same database in this very process, through whatever handle."""
        identity = self.backend.identity()
        writers = (other.connections.writer() for other in list(_databases) if other.backend.identity() == identity)
        return next((scope.owner for scope in writers if scope is not None), None)

    def _check_open(self) -> None:
        if self.connections.closed:
            raise MemoryClosed(f"{self.backend.describe()} was closed; open it again")

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
        self._busy_at_fork = not self.connections.stop(FORK_PATIENCE, int(self.transaction_open))
        for watch in list(self._watches):
            watch.let_go()

    def _after_fork_in_parent(self) -> None:
        self.connections.go_on()

    def _after_fork(self) -> None:
        if self._busy_at_fork:
            _broken_by_fork.add(self.backend.identity())
        self.connections.forget()
        self._open = {}


class TransactionSteps:
    """One block of ``Database.transaction``: the transaction, or a savepoint in it."""

    def __init__(self, database: Database, first: Callable[[Connection], None], scope: Scope) -> None:
        self._database = database
        self._first = first
        self._scope = scope
        self._transaction: Transaction | None = None
        self._level = 0

    @property
    def is_outermost(self) -> bool:
        """Whether its end is the transaction's."""
        return self._level == 0

    def enter(self) -> None:
        """Begin."""
        database = self._database
        outer = database._current()
        if outer is None:
            database._persistently(lambda: database._begun(self._scope, self._first))
            self._transaction = database._current()
        else:
            self._transaction, self._level = outer, outer.depth + 1
            outer.save()

    def leave(self, *, commit: bool) -> None:
        """Commit, or undo."""
        transaction, database = self._transaction, self._database
        assert transaction is not None
        transaction.check_process()
        if self.is_outermost:
            database._ended(transaction, commit=commit)
        elif transaction.owner != this_owner():
            transaction.dead = True
            raise foreign(transaction.owner)
        elif commit:
            transaction.release(self._level)
        elif not transaction.dead:
            transaction.return_to(self._level)
        self._transaction = None

    def abandon(self) -> None:
        """Undo what is left of it."""
        if self.is_outermost:
            self._database._abandoned(self._scope)
        elif self._transaction is not None:
            self._transaction.abandon(self._level)
        self._transaction = None


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
