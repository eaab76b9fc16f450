"""The database as one process sees it: scopes, transactions, watches, forks."""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine

from memstore.config import DEFAULT_BUSY_TIMEOUT, Durability
from memstore.storage.attempts import Pauses, Plain
from memstore.storage.backends import Watch, backend_for
from memstore.storage.blocks import Block
from memstore.storage.connections import Connections
from memstore.storage.failures import dead, foreign, reraise_interrupt
from memstore.storage.owners import Owner, Scope, this_owner
from memstore.storage.statements import Trace
from memstore.storage.transactions import Transaction

T = TypeVar("T")

FORK_PATIENCE = 5.0
"""A fork waits this many seconds for transactions of other threads, if it needs their end."""


class Database:
    """One database as one process sees it.

    Threads may share it. A forked child gets new connections and no open transaction. The connections of the parent
    are neither used nor closed.
    """

    def __init__(
        self,
        url: URL,
        *,
        durability: Durability = "process",
        busy_timeout: float = DEFAULT_BUSY_TIMEOUT,
        trace: Trace | None = None,
    ) -> None:
        self.backend = backend_for(url, durability, busy_timeout, trace)
        self.connections = Connections(self.backend)
        self.engine = self.connections.engine
        self._open: dict[Owner, Transaction] = {}
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        _databases.add(self)

    @property
    def transaction_open(self) -> bool:
        """True if this thread and task are inside ``transaction()``."""
        return self.open_transaction() is not None

    @property
    def transaction_depth(self) -> int:
        """Number of nested ``transaction()`` blocks that this thread and task have open."""
        transaction = self.open_transaction()
        return 0 if transaction is None else 1 + transaction.depth

    def open_transaction(self, owner: Owner | None = None) -> Transaction | None:
        """Return the open transaction of the owner, which is by default this thread and task. None without one."""
        return self._open.get(owner or this_owner()) if self._open else None

    def in_read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one snapshot: that of the open transaction of this thread and task, else a new one.

        If the database or the connection loses the snapshot, ``work`` runs again in a new one.
        """
        return self._run(work, write=False)

    def in_write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` and commit. In an open transaction of this thread and task, run it as a savepoint.

        ``work`` may run again; see ``Attempts``. It never commits.
        """
        return self._run(work, write=True)

    def _run(self, work: Callable[[Connection], T], *, write: bool) -> T:
        scope = Scope(this_owner(), sys._getframe())
        attempts = Plain(self.connections, self.open_transaction(scope.owner), scope, write=write)
        try:
            for conn in attempts:
                with attempts:
                    result = work(conn)
            return result
        finally:
            attempts.end()
            del attempts, scope  # which refer to this function's variables

    def transaction(self, first: Callable[[Connection], None]) -> Block[None]:
        """Return a block that makes all scopes of this thread and task inside it one commit.

        Nested blocks are savepoints. ``first`` runs at the beginning of the outermost block, and is tried again like a
        separate scope.
        """
        return Block(TransactionSteps(self, first))

    def prepare(self) -> None:
        """Make the lasting changes that an empty database, or one of memstore, needs. No transaction may be open."""
        scope = Scope(this_owner(), sys._getframe())
        try:
            with self._translated():
                self.backend.prepare(self.connections.take(scope, write=False))
            self.connections.give_back(scope)
        finally:
            self.connections.close(scope)
            del scope  # which refers to this function's variables

    def outside(self, work: Callable[[Engine], T]) -> T:
        """Run work that cannot be part of a transaction. Errors of the database come out as errors of memstore."""
        self.connections.check_open()
        with self._translated():
            return work(self.engine)

    def watch(self, buffer_id: int) -> Watch:
        """Return a started watch on commits to the buffer. The caller closes it."""
        watch = self.backend.watch(self.engine, buffer_id)
        pauses = Pauses(self.connections)
        while True:
            try:
                watch.start()
                break
            except Exception as exc:
                if not pauses.after(exc):
                    raise
        self._watches.add(watch)
        return watch

    def address(self) -> dict[str, Any]:
        """Return the arguments of ``Database`` that open the same database elsewhere. They hold the password."""
        return {
            "url": self.backend.url,
            "durability": self.backend.durability,
            "busy_timeout": self.backend.busy_timeout,
        }

    def close(self) -> None:
        """Close every idle connection. Later scopes raise ``MemoryClosed``."""
        self.connections.closed = True
        self.connections.clear()

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except Exception as exc:
            self.connections.raise_translated(exc)
            raise

    # The outermost block of a transaction

    def _begin(self, scope: Scope, first: Callable[[Connection], None]) -> Transaction:
        def settled(conn: Connection) -> None:
            first(conn)
            self.backend.settle(conn)

        attempts = Plain(self.connections, None, scope, write=True)
        attempts.first = settled
        transaction = self._open[scope.owner] = Transaction(scope, self.backend, next(attempts))
        return transaction

    def _end(self, transaction: Transaction, *, commit: bool) -> None:
        owned, outer = transaction.owner == this_owner(), sys.exception()
        try:
            if commit and owned and not transaction.dead:
                with self._translated():
                    self.connections.commit(transaction.scope)
            elif not transaction.dead:
                self.connections.roll_back(transaction.scope)
        except Exception as exc:
            reraise_interrupt(exc, outer)
            raise
        finally:
            self._abandon(transaction.scope)
        if commit and not owned:
            raise foreign(transaction.owner)
        if commit and transaction.dead:
            raise dead()

    def _abandon(self, scope: Scope) -> None:
        """Close the connection of a block, unless it was given back already. The block is then no longer open."""
        self.connections.close(scope)
        transaction = self._open.get(scope.owner)
        if transaction is not None and transaction.scope is scope:
            del self._open[scope.owner]

    # Forks

    def _before_fork(self) -> None:
        if self.backend.fork_safe:
            return
        # From here on no scope begins, and the scopes of other threads end. A block of this thread cannot end.
        self.connections.stop(FORK_PATIENCE, int(self.transaction_open))
        for watch in list(self._watches):
            watch.let_go()

    def _after_fork_in_parent(self) -> None:
        self.connections.go_on()

    def _after_fork(self) -> None:
        self.connections.forget()
        self._open = {}


class TransactionSteps:
    """The steps of one block of ``Database.transaction``: the transaction, or a savepoint in it."""

    def __init__(self, database: Database, first: Callable[[Connection], None]) -> None:
        self._database = database
        self._first = first
        self._scope = Scope(this_owner())
        self._transaction: Transaction | None = None
        self._level = 0

    def enter(self) -> None:
        """Begin the transaction or the savepoint."""
        outer = self._database.open_transaction()
        if outer is None:
            self._transaction = self._database._begin(self._scope, self._first)
        else:
            self._transaction, self._level = outer, outer.depth + 1
            outer.save()

    def leave(self, *, commit: bool) -> None:
        """Commit or undo."""
        transaction, database = self._transaction, self._database
        assert transaction is not None
        transaction.check_process()
        if not self._level:
            database._end(transaction, commit=commit)
        elif transaction.owner != this_owner():
            transaction.dead = True
            raise foreign(transaction.owner)
        elif commit:
            transaction.release(self._level)
        elif not transaction.dead:
            transaction.return_to(self._level)
        self._transaction = None

    def abandon(self) -> None:
        """Undo everything that is still open."""
        if not self._level:
            self._database._abandon(self._scope)
        elif self._transaction is not None:
            self._transaction.abandon(self._level)
        self._transaction = None


_databases: weakref.WeakSet[Database] = weakref.WeakSet()


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
