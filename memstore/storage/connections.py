"""The connections of one process to one database: who uses which, and what their failures mean.

A connection is noted before anything is sent over it, and closed in the driver itself, whatever SQLAlchemy thinks of
it: one that an interrupt threw away would live on in the traceback, with its transaction and the locks of that.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine

from memstore.errors import ConnectionLost, MemoryClosed, MemstoreError, StoreUnavailable
from memstore.storage.backends import Backend, Failure
from memstore.storage.failures import error_for
from memstore.storage.owners import Owner, Scope

KEPT = 5
"""So many connections are kept at rest. There may be more in use: each thread has one."""


@dataclass(slots=True, eq=False)
class Link:
    """A connection in use; ``driver`` is the driver's own."""

    conn: Connection
    driver: Any
    write: bool


class Connections:
    """Connections of one process; threads may share it."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.engine: Engine = backend.create_engine()
        self._used: dict[Scope, Link | None] = {}  # None: about to have one
        self._resting: list[Link] = []  # the one used last is used next: one hot connection, hence one page cache
        self._stopped: set[int] = set()
        self._reached = False
        self._busy_at_fork = False
        self.closed = False
        self.broken = 0
        """How many connections broke. What was read or written before may be undone since: a server that commits
        asynchronously, or a replica that took its place, has forgotten the last commits."""
        _all.add(self)

    @property
    def in_use(self) -> int:
        """How many connections have a user."""
        return len(self._used)

    def check_open(self) -> None:
        """Raise ``MemoryClosed`` after the end."""
        if self.closed:
            raise MemoryClosed(f"{self.backend.describe()} was closed; open it again")

    def take(self, scope: Scope, *, write: bool) -> Connection:
        """A connection for the scope alone, outside any transaction."""
        self.check_open()
        if _broken_by_fork and self.backend.identity() in _broken_by_fork:
            raise StoreUnavailable(
                f"{self.backend.describe()}: this process was forked in the middle of a transaction on it, which its "
                "locks do not survive; fork outside transaction(), or start processes by spawn"
            )
        self._close_lost()
        self._used[scope] = None
        while self._stopped:  # looked at after the note was made: a fork waits for whoever did not see it
            del self._used[scope]
            time.sleep(0.001)
            self._used[scope] = None
        try:
            link = self._linked()
        except Exception as exc:
            if not self._reached and self.backend.classify(exc) is Failure.LOST:
                raise error_for(Failure.UNAVAILABLE, self.backend, exc) from exc
            raise
        link.write = write
        self._used[scope] = link
        self._reached = True
        return link.conn

    def _linked(self) -> Link:
        with suppress(IndexError):  # none rests, or another thread was faster
            while True:
                link = self._resting.pop()
                if self.backend.is_usable(link.conn, link.driver):
                    return link
                self._close(link)
        conn = self.engine.connect()
        return Link(conn, self.backend.driver(conn), False)

    def give_back(self, scope: Scope) -> None:
        """Let the next one have the scope's connection, which is outside any transaction again."""
        if self._stopped or len(self._resting) >= KEPT:
            self.close(scope)  # and only then forget it: a fork waits for that
            return
        link = self._used.pop(scope)  # first: from here on it may be somebody else's
        if link is not None:
            self._resting.append(link)
        if self.closed:
            self.clear()

    def commit(self, scope: Scope) -> None:
        """Commit what was done on the scope's connection, and give that back.

        Raises
        ------
        ConnectionLost
            When a connection that writes breaks during the commit: nobody knows whether it happened.
        """
        link = self._used[scope]
        assert link is not None
        try:
            self.backend.commit(link.conn)
        except Exception as exc:
            if link.write and self.failure(exc) is Failure.LOST:
                raise ConnectionLost(
                    f"{self.backend.describe()}: the connection broke during the commit, which may have happened or "
                    "not; look, or repeat what can be repeated (an add with a key=, an update)",
                    outcome_unknown=True,
                ) from exc
            raise
        self.give_back(scope)

    def roll_back(self, scope: Scope) -> None:
        """Undo what is open on the scope's connection; one that refuses it is closed, and nobody else gets it."""
        link = self._used.get(scope)
        if link is None:
            return
        try:
            self.backend.rollback(link.conn)
        except Exception:
            self.close(scope)
        else:
            self.give_back(scope)

    def close(self, scope: Scope) -> None:
        """Close the scope's connection, if it has one, and with it whatever is open on it."""
        link = self._used.get(scope)
        if link is not None:
            self._close(link)
        self._used.pop(scope, None)

    def failure(self, exc: BaseException) -> Failure | None:
        """Classify an error of the driver, once for each that occurs; None for any other error."""
        failure = self.backend.classify(exc)
        self.broken += failure is Failure.LOST
        return failure

    def raise_translated(self, exc: Exception) -> None:
        """Raise memstore's error for one of the driver's; return for any other."""
        failure = None if isinstance(exc, MemstoreError) else self.failure(exc)
        if failure is not None:
            raise error_for(failure, self.backend, exc) from exc

    @contextmanager
    def translated(self) -> Iterator[None]:
        """Raise memstore's errors for the driver's."""
        try:
            yield
        except Exception as exc:
            self.raise_translated(exc)
            raise

    def writer_here(self) -> Owner | None:
        """Who writes to the same database in this very process, through whatever handle."""
        identity = self.backend.identity()
        for other in list(_all):
            for scope, link in list(other._used.items()):
                if link is not None and link.write and other.backend.identity() == identity:
                    return scope.owner
        return None

    def clear(self) -> None:
        """Close the connections at rest."""
        with suppress(IndexError):
            while True:
                self._close(self._resting.pop())

    def _close(self, link: Link) -> None:
        self.backend.discard(link.conn, link.driver)
        with suppress(Exception):
            link.conn.invalidate()
            link.conn.close()

    def _close_lost(self) -> None:
        for scope in list(self._used):
            if scope.is_over():
                self.close(scope)

    # Forks

    def stop(self, patience: float, own: int) -> None:
        """Let no scope begin, wait until only ``own`` are left, and close what is at rest."""
        self._stopped.add(threading.get_ident())
        deadline = time.monotonic() + patience
        while self.in_use > own and time.monotonic() < deadline:
            self._close_lost()
            time.sleep(0.001)
        self.clear()
        self._busy_at_fork = any(self._used.values())

    def go_on(self) -> None:
        """Let scopes begin again."""
        self._stopped.discard(threading.get_ident())

    def forget(self) -> None:
        """In a fork: begin without connections; those of the parent are neither used nor closed."""
        if self._busy_at_fork:
            _broken_by_fork.add(self.backend.identity())
        _inherited.append((self.engine.pool, self._used, self._resting))
        self.engine.dispose(close=False)
        self._used, self._resting, self._stopped = {}, [], set()


_all: weakref.WeakSet[Connections] = weakref.WeakSet()

_inherited: list[object] = []
"""Connections of a parent process: kept, so that no garbage collection closes them under its feet."""

_broken_by_fork: set[str] = set()
"""Files that inherited connections make unusable for this process, whoever opens them."""
