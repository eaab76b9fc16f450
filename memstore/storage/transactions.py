"""An open transaction: calls inside it are savepoints; it is dead once nothing of it can be committed."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from sqlalchemy import Connection

from memstore.errors import TransactionDead
from memstore.storage.backends import Backend, TransactionState
from memstore.storage.failures import dead, reraise_interrupt
from memstore.storage.owners import Owner, Scope

T = TypeVar("T")


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
        """Whose calls it includes."""
        return self.scope.owner

    def check_process(self) -> None:
        """Refuse a fork: the transaction goes on in the parent, and even a rollback would break it there."""
        if self._pid != os.getpid():
            raise TransactionDead("this process was forked inside transaction(); the block belongs to its parent")

    def run(self, work: Callable[[Connection], T]) -> T:
        """Run work, and let every error of its statements surface here."""
        return self._alive(lambda: self._settled(work))

    def run_in_savepoint(self, work: Callable[[Connection], T]) -> T:
        """As ``run``; nothing remains of work that fails."""

        def run() -> T:
            level = self.save()
            try:
                result = self._settled(work)
            except Exception:
                self.return_to(level)
                raise
            self.release(level)
            return result

        return self._alive(run)

    def save(self) -> int:
        """Make a savepoint; its level."""
        if self.dead:
            raise dead()
        self.depth += 1
        self._backend.send(self.conn, f"SAVEPOINT memstore_{self.depth}")
        return self.depth

    def return_to(self, level: int) -> None:
        """Undo what came after the savepoint."""
        self.depth = level - 1
        # SQLite ends the whole transaction itself on a full disk; then there is no savepoint to return to.
        if self._state() is TransactionState.GONE:
            self.dead = True
            return
        try:
            self._backend.send(self.conn, f"ROLLBACK TO SAVEPOINT memstore_{level}")
            self._backend.settle(self.conn)
        except BaseException:
            self.dead = True
            raise

    def release(self, level: int) -> None:
        """Make what came after the savepoint part of what was before it."""
        self.depth = level - 1
        if self.dead:
            raise dead()
        self._backend.send(self.conn, f"RELEASE SAVEPOINT memstore_{level}")

    def abandon(self, level: int) -> None:
        """Give up all of it at this savepoint, which an interrupt left unfinished."""
        self.depth, self.dead = level - 1, True

    def _alive(self, run: Callable[[], T]) -> T:
        if self.dead:
            raise dead()
        outer = sys.exception()
        try:
            return run()
        except Exception as exc:
            self._die_of_interrupt(exc, outer)
            raise
        except BaseException:
            self.dead = True  # nobody knows what the connection is in the middle of
            raise
        finally:
            self.dead |= self._state() is not TransactionState.OPEN

    def _die_of_interrupt(self, exc: Exception, outer: BaseException | None) -> None:
        try:
            reraise_interrupt(exc, outer)
        except BaseException:
            self.dead = True
            raise

    def _settled(self, work: Callable[[Connection], T]) -> T:
        try:
            result = work(self.conn)
        except Exception:
            with suppress(Exception):  # of statements that are given up
                self._backend.settle(self.conn)
            raise
        self._backend.settle(self.conn)
        return result

    def _state(self) -> TransactionState:
        return self._backend.transaction_state(self.conn)
