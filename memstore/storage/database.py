"""The database as one process sees it: scopes, transactions, watches, forks."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable
from typing import Any, TypeVar

from sqlalchemy import URL, Connection, Engine

from memstore.config import DEFAULT_BUSY_TIMEOUT, Durability
from memstore.storage.attempts import Opening, Pauses, Plain
from memstore.storage.backends import Watch, backend_for
from memstore.storage.blocks import Block
from memstore.storage.connections import Connections
from memstore.storage.failures import foreign, reraise_interrupt
from memstore.storage.forks import Forking
from memstore.storage.owners import Owner, Scope, this_owner
from memstore.storage.statements import Trace
from memstore.storage.transactions import Transaction

T = TypeVar("T")

FORK_PATIENCE = 5.0
"""A fork waits this many seconds for transactions of other threads, if it needs their end."""


class Database(Forking):
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
        self.blocks: dict[Owner, Transaction] = {}
        self._watches: weakref.WeakSet[Watch] = weakref.WeakSet()
        super().__init__()

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
        return self.blocks.get(owner or this_owner()) if self.blocks else None

    def in_read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one snapshot: that of the open transaction of this thread and task, else a new one.

        If the database or the connection loses the snapshot, ``work`` runs again in a new one.
        """
        return Plain(self.connections, self.open_transaction(), write=False).run(work)

    def in_write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` and commit. In an open transaction of this thread and task, run it as a savepoint.

        ``work`` may run again; see ``Attempts``. It never commits.
        """
        return Plain(self.connections, self.open_transaction(), write=True).run(work)

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
            with self.connections.translated():
                conn = self.connections.take(scope, write=False)
            self._patiently(lambda: self.backend.prepare(conn))
            self.connections.give_back(scope)
        finally:
            self.connections.close(scope)
            del scope  # which refers to this function's variables

    def outside(self, work: Callable[[Engine], T]) -> T:
        """Run work that cannot be part of a transaction. Errors of the database come out as errors of memstore."""
        self.connections.check_open()
        with self.connections.translated():
            return work(self.engine)

    def watch(self, buffer_id: int) -> Watch:
        """Return a started watch on commits to the buffer. The caller closes it."""
        watch = self._patiently(lambda: self.backend.watch(self.engine, buffer_id))
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

    def _patiently(self, act: Callable[[], T]) -> T:
        """Act, and try again as long as another attempt may succeed."""
        pauses = Pauses(self.connections)
        while True:
            try:
                return act()
            except Exception as exc:
                if not pauses.after(exc):
                    raise

    # Forks

    def before_fork(self) -> None:
        """Close connections that the child would break."""
        if self.backend.fork_safe:
            return
        # From here on no scope begins, and the scopes of other threads end. A block of this thread cannot end.
        self.connections.stop(FORK_PATIENCE, int(self.transaction_open))
        for watch in list(self._watches):
            watch.close()

    def after_fork_in_parent(self) -> None:
        """Let scopes begin again."""
        self.connections.go_on()

    def after_fork(self) -> None:
        """Begin without connections and without a transaction."""
        self.connections.forget()
        self.blocks = {}


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
        database = self._database
        outer = database.open_transaction()
        if outer is not None:
            self._transaction, self._level = outer, outer.depth + 1
            outer.save()
            return
        opening = Opening(database.connections, self._scope)
        opening.run(self._first)
        self._transaction = Transaction(self._scope, database.backend, opening.conn)
        database.blocks[self._scope.owner] = self._transaction

    def leave(self, *, commit: bool) -> None:
        """Commit or undo."""
        transaction = self._transaction
        assert transaction is not None
        transaction.check_process()
        owned = transaction.owner == this_owner()
        if not self._level:
            self._end(transaction, commit=commit and owned)
        elif not owned:
            transaction.dead = True
        elif commit:
            transaction.release(self._level)
        elif not transaction.dead:
            transaction.return_to(self._level)
        if not owned and (commit or self._level):
            raise foreign(transaction.owner)
        if commit:
            transaction.check_alive()
        self._transaction = None

    def abandon(self) -> None:
        """Undo everything that is still open."""
        if not self._level:
            # The connection may have been given back already. The block is then no longer open.
            self._database.connections.close(self._scope)
            blocks = self._database.blocks
            if self._scope.owner in blocks and blocks[self._scope.owner].scope is self._scope:
                del blocks[self._scope.owner]
        elif self._transaction is not None:
            self._transaction.abandon(self._level)
        self._transaction = None

    def _end(self, transaction: Transaction, *, commit: bool) -> None:
        outer, connections = sys.exception(), self._database.connections
        try:
            if commit and not transaction.dead:
                with connections.translated():
                    connections.commit(self._scope)
            elif not transaction.dead:
                connections.roll_back(self._scope)
        except Exception as exc:
            reraise_interrupt(exc, outer)
            raise
        finally:
            self.abandon()
