"""The connections of one process to one database: their users, and the meaning of their failures.

A connection is noted before anything is sent over it. It is closed in the driver itself, not by SQLAlchemy. Otherwise a
connection that an interrupt threw away would live on in the traceback, with its transaction and locks.
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
"""At most this many connections are kept at rest. More may be in use, because each thread has one."""


@dataclass(slots=True, eq=False)
class Link:
    """A connection in use. ``driver`` is the connection object of the driver."""

    conn: Connection
    driver: Any
    write: bool


class Connections:
    """The connections of one process. Threads may share this object."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.engine: Engine = backend.create_engine()
        self._used: dict[Scope, Link | None] = {}  # None stands for a scope that will get one
        self._resting: list[Link] = []  # the last one is used next, so one connection has a warm page cache
        self._stopped: set[int] = set()
        self._reached = False
        self._busy_at_fork = False
        self.closed = False
        self.broken = 0
        """Number of connections that broke.

        Data that was read or written before may be undone: a server that commits asynchronously, or a replica that took
        its place, may have lost the last commits.
        """
        _all.add(self)

    @property
    def in_use(self) -> int:
        """Number of connections with a user."""
        return len(self._used)

    def check_open(self) -> None:
        """Raise ``MemoryClosed`` after ``close``."""
        if self.closed:
            raise MemoryClosed(f"{self.backend.describe()} was closed; open it again")

    def take(self, scope: Scope, *, write: bool) -> Connection:
        """Return a connection for the scope alone, outside any transaction."""
        self.check_open()
        if _broken_by_fork and self.backend.identity() in _broken_by_fork:
            raise StoreUnavailable(
                f"{self.backend.describe()}: this process was forked in the middle of a transaction on it, which its "
                "locks do not survive; fork outside transaction(), or start processes by spawn"
            )
        self._close_lost()
        self._used[scope] = None
        while self._stopped:  # the test comes after the note: a fork waits for every scope that did not see the stop
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
        """Give the scope's connection back for the next user. It must be outside any transaction."""
        if self._stopped or len(self._resting) >= KEPT:
            self.close(scope)  # close() forgets the scope only after the connection is closed: a fork waits for that
            return
        link = self._used.pop(scope)  # this comes first, because another scope may use the connection from here on
        if link is not None:
            self._resting.append(link)
        if self.closed:
            self.clear()

    def commit(self, scope: Scope) -> None:
        """Commit the transaction on the scope's connection, and give the connection back.

        Raises
        ------
        ConnectionLost
            A connection that writes broke during the commit. The commit may have happened or not.
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
        """Roll back the scope's connection. If that fails, close the connection, so that no other scope gets it."""
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
        """Close the scope's connection, if it has one, together with everything that is open on it."""
        link = self._used.get(scope)
        if link is not None:
            self._close(link)
        self._used.pop(scope, None)

    def failure(self, exc: BaseException) -> Failure | None:
        """Classify an error of the driver, once for each error. Return None for any other error."""
        failure = self.backend.classify(exc)
        self.broken += failure is Failure.LOST
        return failure

    def raise_translated(self, exc: Exception) -> None:
        """Raise memstore's error for an error of the driver. Return for any other error."""
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
        """Return the thread and task of this process that write to the same database, through any handle."""
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
        """Let no scope begin, wait until only ``own`` connections are in use, and close those at rest."""
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
        """Begin a forked child without connections. Those of the parent are neither used nor closed."""
        if self._busy_at_fork:
            _broken_by_fork.add(self.backend.identity())
        _inherited.append((self.engine.pool, self._used, self._resting))
        self.engine.dispose(close=False)
        self._used, self._resting, self._stopped = {}, [], set()


_all: weakref.WeakSet[Connections] = weakref.WeakSet()

_inherited: list[object] = []
"""These connections of a parent process are kept, so that no garbage collection closes them for the parent."""

_broken_by_fork: set[str] = set()
"""Inherited connections make these files unusable for this process, through any handle."""
