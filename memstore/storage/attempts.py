"""The attempts of one call at its work in the database, until one is committed."""

from __future__ import annotations

import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Generic, TypeVar, TypeVarTuple

from sqlalchemy import Connection

from memstore.errors import MemstoreError
from memstore.storage.backends import Failure
from memstore.storage.connections import Connections
from memstore.storage.failures import error_for, reraise_interrupt
from memstore.storage.owners import Scope, this_owner
from memstore.storage.stored import unreadable
from memstore.storage.transactions import Transaction

T = TypeVar("T")
Given = TypeVarTuple("Given")

PASSING = frozenset({Failure.BUSY, Failure.CONFLICT, Failure.LOST})
"""The same work may succeed after one of these failures."""

FIRST_PAUSE, LONGEST_PAUSE = 0.002, 0.5
"""Pauses between attempts grow from the first to the second number of seconds.

Each pause is multiplied by a random factor between a half and one and a half.
"""

_jitter = random.SystemRandom()
"""The factors come from a separate source, because a user may seed the ``random`` module."""


class Pauses:
    """Growing pauses between attempts, for ``busy_timeout`` seconds in all."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self._deadline = time.monotonic() + connections.backend.busy_timeout
        self._pause = FIRST_PAUSE

    def after(self, exc: Exception) -> bool:
        """Pause and return True if another attempt may succeed. Return False if ``exc`` is no error of the driver.

        Raises
        ------
        MemstoreError
            No other attempt can succeed, or the time is over.
        """
        failure = None if isinstance(exc, MemstoreError) else self._connections.failure(exc)
        if failure is None:
            return False
        if failure not in PASSING or time.monotonic() + self._pause > self._deadline:
            raise error_for(failure, self._connections.backend, exc, self._connections.writer_here()) from exc
        time.sleep(self._pause * (0.5 + _jitter.random()))
        self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return True


class Attempts(ABC, Generic[*Given]):
    """Attempts at the work of one call, each in a separate transaction.

    The work runs again if the database rolled it back in favour of another transaction, or if the connection broke
    before the commit was sent. If it breaks later, the outcome is unknown: ``ConnectionLost`` has ``outcome_unknown``.
    In an open ``transaction()`` there is one attempt, which is a savepoint if it writes.

    Parameters
    ----------
    connections : Connections
        The connections to the database.
    transaction : Transaction or None
        The open transaction of this thread and task.
    write : bool
        True if the work may write.
    """

    long = False
    """True if the call may wait for the database while it holds its turns."""

    block: Scope | None = None
    """Block that the work begins. None for work that ends with this call."""

    result: Any = None
    """Result of the work in the last attempt."""

    def __init__(self, connections: Connections, transaction: Transaction | None, *, write: bool) -> None:
        self.write = write
        self._connections = connections
        self._transaction = transaction
        self._pauses = Pauses(connections)
        self._outer = sys.exception()
        self._level = 0
        self._unfinished = False

    def run(self, work: Callable[[*Given], T]) -> T:
        """Run ``work`` until it is committed, and return its result."""
        self.scope = self.block or Scope(this_owner(), sys._getframe(), self.long)
        try:
            self.take_turns()
            while True:
                try:
                    self.result = result = work(*self.begun(self._begin()))
                    self.finish()
                    self._commit()
                except BaseException as exc:
                    if self._again(exc):
                        continue
                    raise
                self.committed()
                self._unfinished = False
                return result
        except MemstoreError as exc:
            self.explain(exc)
            raise
        finally:
            self.end()  # this runs after an interrupt at any place
            del self  # which refers to this function's variables

    def take_turns(self) -> None:
        """Wait for the other threads and tasks of this process."""

    @abstractmethod
    def begun(self, conn: Connection) -> tuple[*Given]:
        """Return the argument of the work, at the beginning of each attempt."""

    def finish(self) -> None:
        """Act after the work and before the commit."""

    def committed(self) -> None:
        """Act after the work was committed, or became part of the open transaction."""

    def explain(self, exc: MemstoreError) -> None:
        """Raise a more precise error than ``exc``, which ended the last attempt. Return if there is none."""

    def end(self) -> None:
        """Close everything that an interrupt left open."""
        if self._transaction is None:
            self._connections.close(self.scope)
        elif self._unfinished:
            self._transaction.dead = True  # its connection may be in the middle of a statement

    def _begin(self) -> Connection:
        if self._transaction is None:
            conn = self._connections.take(self.scope, write=self.write)
            self._connections.backend.begin(conn, write=self.write)
            return conn
        self._transaction.check_alive()
        self._unfinished = True
        if self.write:
            self._level = self._transaction.save()
        return self._transaction.conn

    def _commit(self) -> None:
        if self._transaction is None:
            self._connections.commit(self.scope)
            return
        self._transaction.settle()
        if self._level:
            self._transaction.release(self._level)
        self._transaction.look()

    def _again(self, exc: BaseException) -> bool:
        """Undo the attempt. Return True if another attempt may succeed, False if ``exc`` must come out."""
        if not isinstance(exc, Exception):
            return False  # ``end`` undoes it
        reraise_interrupt(exc, self._outer)
        damage = unreadable(exc, self._connections.backend.describe)
        self._undo()
        if damage is not None:
            raise damage from exc
        if self._transaction is None:
            return self._pauses.after(exc)
        self._connections.raise_translated(exc)
        return False

    def _undo(self) -> None:
        if self._transaction is None:
            self._connections.roll_back(self.scope)
        elif self._unfinished:
            with self._connections.translated():
                self._transaction.undo(self._level)
            self._unfinished = False


class Plain(Attempts[Connection]):
    """Attempts that give the connection to the work."""

    def begun(self, conn: Connection) -> tuple[Connection]:
        """Return the connection."""
        return (conn,)


class Opening(Plain):
    """Attempts to begin a block. The transaction that they begin stays open, and the block ends it."""

    def __init__(self, connections: Connections, block: Scope) -> None:
        super().__init__(connections, None, write=True)
        self.block = block

    def begun(self, conn: Connection) -> tuple[Connection]:
        """Return the connection, and keep it for the block."""
        self.conn = conn
        return (conn,)

    def end(self) -> None:
        """Leave the transaction open."""

    def _commit(self) -> None:
        self._connections.backend.settle(self.conn)
