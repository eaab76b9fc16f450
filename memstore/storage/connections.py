"""The connections of one process to one database that are in use, each noted with its user.

A connection is noted before anything is sent over it, and closed in the driver itself, whatever SQLAlchemy thinks of
it: one that an interrupt threw away would live on in the traceback, with its transaction and the locks of that.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Engine

from memstore.storage.backends import Backend
from memstore.storage.owners import Scope


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
        self._writer = self.engine.execution_options(memstore_write=True)
        self._used: dict[Scope, Link | None] = {}  # None: about to have one
        self._stopped: set[int] = set()
        self.closed = False

    @property
    def in_use(self) -> int:
        """How many connections have a user."""
        return len(self._used)

    def take(self, scope: Scope, *, write: bool) -> Connection:
        """A connection for the scope alone, outside any transaction."""
        self._close_lost()
        self._used[scope] = None
        while self._stopped:  # looked at after the note was made: a fork waits for whoever did not see it
            del self._used[scope]
            time.sleep(0.001)
            self._used[scope] = None
        conn = (self._writer if write else self.engine).connect()
        driver = self.backend.driver(conn)
        if self.backend.is_closed(driver):  # by someone who was interrupted while giving it back
            conn.invalidate()
            driver = self.backend.driver(conn)
        self._used[scope] = Link(conn, driver, write)
        return conn

    def of(self, scope: Scope) -> Connection | None:
        """The scope's connection."""
        link = self._used.get(scope)
        return None if link is None else link.conn

    def give_back(self, scope: Scope) -> None:
        """Let the next one have the scope's connection, which is outside any transaction again."""
        link = self._used.pop(scope)  # first: from here on it may be somebody else's
        if link is not None and self.closed:
            self._close(link)
        elif link is not None:
            link.conn.close()

    def close(self, scope: Scope) -> None:
        """Close the scope's connection, if it has one, and with it whatever is open on it."""
        link = self._used.get(scope)
        if link is not None:
            self._close(link)
        self._used.pop(scope, None)

    def writer(self) -> Scope | None:
        """A scope that writes, if there is one."""
        return next((scope for scope, link in list(self._used.items()) if link and link.write), None)

    def clear(self) -> None:
        """Close the connections at rest."""
        self.engine.pool.dispose()

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

    def stop(self, patience: float, own: int) -> bool:
        """Let no scope begin, wait until only ``own`` are left, and close what is at rest; True if none was left."""
        self._stopped.add(threading.get_ident())
        deadline = time.monotonic() + patience
        while self.in_use > own and time.monotonic() < deadline:
            self._close_lost()
            time.sleep(0.001)
        self.clear()
        return not any(self._used.values())

    def go_on(self) -> None:
        """Let scopes begin again."""
        self._stopped.discard(threading.get_ident())

    def forget(self) -> None:
        """In a fork: begin without connections; those of the parent are neither used nor closed."""
        _inherited.append((self.engine.pool, self._used))
        self.engine.dispose(close=False)
        self._used, self._stopped = {}, set()


# Connections of a parent process: kept, so that no garbage collection closes them under its feet.
_inherited: list[object] = []
