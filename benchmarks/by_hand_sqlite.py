"""The hand-written baseline on the ``sqlite3`` module."""

from __future__ import annotations

import math
import sqlite3
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.by_hand import EVICT, INDEXES, REPLAYED_AT, ByHand, Drawn, Floats, as_arrays
from benchmarks.workload import ALPHA, EPSILON, Episodes

_SCHEMA = f"""
CREATE TABLE episode (
    id INTEGER PRIMARY KEY, domain TEXT NOT NULL, timestamp REAL NOT NULL, loss REAL, replay_count INTEGER NOT NULL,
    last_replayed_at REAL, payload BLOB NOT NULL
);
{INDEXES}
"""
_INSERT = "INSERT INTO episode (domain, timestamp, loss, replay_count, payload) VALUES (?, ?, ?, 0, ?)"
_UPDATE = "UPDATE episode SET loss = ?, replay_count = replay_count + 1, last_replayed_at = ? WHERE id = ?"
# The smallest Exp(1) / weight keys are a draw without replacement in proportion to weight: exact, and O(rows).
_DRAW = """
SELECT id, loss, payload FROM episode
ORDER BY ln((abs(random() / 2) + 1.0) / 4611686018427387905.0) / pow(coalesce(loss, ?) + ?, ?) DESC LIMIT ?
"""
_TUNING = ("wal_autocheckpoint = 16384", "cache_size = -32768", "temp_store = MEMORY", "secure_delete = OFF")


class ByHandSqlite(ByHand):
    """The hand-written baseline on SQLite.

    Parameters
    ----------
    tuned : bool
        True uses memstore's cache size and checkpoint interval. False uses SQLite's defaults, as most people would.
    """

    def __init__(self, path: Path, *, tuned: bool) -> None:
        self.name = "by hand, memstore's pragmas" if tuned else "by hand, SQLite's defaults"
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", *(_TUNING if tuned else ())):
            self._connection.execute(f"PRAGMA {pragma}")
        _ensure_math(self._connection)
        if not self._connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            self._connection.executescript(_SCHEMA)

    def extend(self, episodes: Episodes) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._insert(episodes)
        self._connection.execute("COMMIT")

    def replace_easiest(self, episodes: Episodes) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(EVICT.format("?"), (len(episodes),))
        self._insert(episodes)
        self._connection.execute("COMMIT")

    def _insert(self, episodes: Episodes) -> None:
        rows = zip(episodes.domain, episodes.timestamp.tolist(), episodes.losses, episodes.blobs, strict=True)
        self._connection.executemany(_INSERT, rows)

    def draw(self, count: int) -> Drawn:
        return as_arrays(self._connection.execute(_DRAW, (1.0, EPSILON, ALPHA, count)).fetchall())

    def update(self, ids: NDArray[np.int64], loss: Floats) -> None:
        rows = zip(loss.tolist(), [REPLAYED_AT] * len(ids), ids.tolist(), strict=True)
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(_UPDATE, rows)
        self._connection.execute("COMMIT")

    def close(self) -> None:
        self._connection.close()


def _ensure_math(connection: sqlite3.Connection) -> None:
    # A compile option of SQLite, on in most distributions.
    try:
        connection.execute("SELECT ln(2.0), pow(2.0, 2.0)")
    except sqlite3.OperationalError:
        connection.create_function("ln", 1, math.log, deterministic=True)
        connection.create_function("pow", 2, math.pow, deterministic=True)
