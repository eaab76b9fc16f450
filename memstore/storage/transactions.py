"""An open transaction. Calls inside it are savepoints. It is dead if it can no longer be committed."""

from __future__ import annotations

import os
from contextlib import suppress

from sqlalchemy import Connection

from memstore.errors import TransactionDead
from memstore.storage.backends import Backend, TransactionState
from memstore.storage.failures import dead
from memstore.storage.owners import Owner, Scope


class Transaction:
    """A transaction that was begun on the connection of a block."""

    def __init__(self, scope: Scope, backend: Backend, conn: Connection) -> None:
        self.scope = scope
        self.conn = conn
        self.depth = 0
        self.dead = False
        self._backend = backend
        self._pid = os.getpid()

    @property
    def owner(self) -> Owner:
        """Thread and task that the transaction belongs to."""
        return self.scope.owner

    def check_process(self) -> None:
        """Refuse a forked child. The transaction continues in the parent, and even a rollback would break it there."""
        if self._pid != os.getpid():
            raise TransactionDead("this process was forked inside transaction(); the block belongs to its parent")

    def check_alive(self) -> None:
        """Raise ``TransactionDead`` if the transaction can no longer be committed."""
        if self.dead:
            raise dead()

    def settle(self) -> None:
        """Wait for all statements so far, and raise their errors here."""
        self._backend.settle(self.conn)

    def look(self) -> None:
        """Ask the database if the transaction is still open."""
        self.dead |= self._state() is not TransactionState.OPEN

    def save(self) -> int:
        """Make a savepoint, and return its level."""
        self.check_alive()
        self.depth += 1
        self._backend.execute(self.conn, f"SAVEPOINT memstore_{self.depth}")
        return self.depth

    def undo(self, level: int) -> None:
        """Undo work that failed. ``level`` is the level of its savepoint, 0 for work that only read."""
        with suppress(Exception):  # the statements are given up, and their errors do not matter
            self.settle()
        if level:
            self.return_to(level)
        self.look()

    def return_to(self, level: int) -> None:
        """Undo all changes after the savepoint."""
        self.depth = level - 1
        # On a full disk, SQLite ends the whole transaction itself. Then there is no savepoint to return to.
        if self._state() is TransactionState.GONE:
            self.dead = True
            return
        try:
            self._backend.execute(self.conn, f"ROLLBACK TO SAVEPOINT memstore_{level}")
            self.settle()
        except BaseException:
            self.dead = True
            raise

    def release(self, level: int) -> None:
        """End the savepoint, and keep the changes after it."""
        self.depth = level - 1
        self.check_alive()
        self._backend.execute(self.conn, f"RELEASE SAVEPOINT memstore_{level}")

    def abandon(self, level: int) -> None:
        """Give up the whole transaction, because an interrupt left this savepoint unfinished."""
        self.depth, self.dead = level - 1, True

    def _state(self) -> TransactionState:
        return self._backend.transaction_state(self.conn)
