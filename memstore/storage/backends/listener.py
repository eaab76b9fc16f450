"""LISTEN and NOTIFY on PostgreSQL. A writer notifies only if somebody listens.

A commit with a notification waits for one lock of the whole server, and holds it while it writes to the disk. So each
listener shares an advisory lock, and a writer tries to take that lock alone, which costs it microseconds. It notifies
only if it does not get the lock, because somebody then listens.
"""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import psycopg
from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from memstore.storage.backends.base import Watch

CHANNEL = "memstore"
"""Notifications use this channel. Each one carries the number of a buffer, to which a write was committed."""

LISTENING = int.from_bytes(b"mems")
"""The advisory lock that listeners share has this first half of its key. The second half is the buffer's number."""

ANNOUNCE = f"SELECT pg_notify('{CHANNEL}', %s) WHERE NOT pg_try_advisory_xact_lock({LISTENING}, %s::int4)"
"""This statement notifies if somebody listens for the buffer. The number of the buffer is both parameters."""


class Listener(Watch):
    """A watch that uses LISTEN on a separate connection. Without that connection it only pauses."""

    def __init__(self, engine: Engine, buffer_id: int) -> None:
        super().__init__(engine)
        self._buffer_id = buffer_id
        self._connection: psycopg.Connection[Any] | None = None
        self._known = False
        self._start()

    def _start(self) -> None:
        with suppress(DBAPIError, psycopg.Error):
            self._connection = self._connect()
            self._connection.execute(f"LISTEN {CHANNEL}")
            self._make_known(self._connection)

    def _make_known(self, connection: psycopg.Connection[Any]) -> None:
        # This does not wait for the lock. A writer may hold it for long; it will not notify, but the next look at the
        # buffer sees its commit.
        sql = "SELECT pg_try_advisory_lock_shared(%s::int4, %s::int4)"
        self._known = connection.execute(sql, (LISTENING, self._buffer_id)).fetchall()[0][0]

    def wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        if self._connection is None:
            time.sleep(timeout)
            self._start()
            return
        try:
            while (left := deadline - time.monotonic()) > 0:
                if not self._known:
                    left = min(left, 0.05)
                for notice in self._connection.notifies(timeout=left, stop_after=1):
                    if notice.payload == str(self._buffer_id):
                        return
                if not self._known:
                    self._make_known(self._connection)
                    return
        except psycopg.Error:
            self.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
