"""The attempts of one call at its work in the database, until one is committed.

    attempts = Attempts(...)
    try:
        for subject in attempts:
            with attempts:
                result = work(subject)
        return result
    finally:
        attempts.end()

The loop and the ``with`` add no frame between call and work. ``finally`` runs at any place of an interrupt.
"""

from __future__ import annotations

import random
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Generic, TypeVar

from sqlalchemy import Connection

from memstore.errors import MemstoreError
from memstore.storage.backends import Failure
from memstore.storage.connections import Connections
from memstore.storage.failures import error_for, reraise_interrupt
from memstore.storage.owners import Scope
from memstore.storage.stored import unreadable
from memstore.storage.transactions import Transaction

S = TypeVar("S")

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


class Attempts(ABC, Generic[S]):
    """Attempts at the work of one call, each in a separate transaction.

    The work runs again if the database rolled it back in favour of another transaction, or if the connection broke
    before the commit was sent. If it breaks later, the outcome is unknown: ``ConnectionLost`` has ``outcome_unknown``.
    In an open ``transaction()`` there is one attempt, which is a savepoint if it writes.

    Parameters
    ----------
    connections : Connections
        The connections to the database.
    transaction : Transaction or None
        The open transaction of the scope's thread and task.
    scope : Scope
        The function that runs the loop.
    write : bool
        True if the work may write.
    """

    def __init__(self, connections: Connections, transaction: Transaction | None, scope: Scope, *, write: bool) -> None:
        self.scope = scope
        self.write = write
        self._connections = connections
        self._transaction = transaction
        self._pauses = Pauses(connections)
        self._outer = sys.exception()
        self._level = 0
        self._unfinished = False
        self._done = False

    @abstractmethod
    def begun(self, conn: Connection) -> S:
        """Return the argument of the work, at the beginning of each attempt."""

    def finish(self) -> None:
        """Act after the work and before the commit."""

    def committed(self) -> None:
        """Act after the work was committed, or became part of the open transaction."""

    def __iter__(self) -> Attempts[S]:
        return self

    def __next__(self) -> S:
        while not self._done:
            try:
                return self.begun(self._begin())
            except BaseException as exc:
                if not self._again(exc):
                    raise
        raise StopIteration

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if exc is not None:
            return self._again(exc)
        try:
            self.finish()
            self._commit()
        except BaseException as failed:
            if not self._again(failed):
                raise
        else:
            self._done = True
            self.committed()
            self._unfinished = False
        return True

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
            try:
                self._transaction.undo(self._level)
            except Exception as exc:
                self._connections.raise_translated(exc)
                raise
            self._unfinished = False


class Plain(Attempts[Connection]):
    """Attempts that give the connection to the work. ``first`` has run on the connection before."""

    first: Callable[[Connection], None] | None = None

    def begun(self, conn: Connection) -> Connection:
        """Return the connection."""
        if self.first is not None:
            self.first(conn)
        return conn
