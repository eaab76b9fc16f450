"""What one would write by hand instead of memstore, and what memory alone could do."""

from __future__ import annotations

import math
import shutil
import sqlite3
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from benchmarks.workload import ALPHA, EPSILON, INPUTS, TARGETS, Episodes, Workload

Floats = NDArray[np.float64]

_SCHEMA = """
CREATE TABLE episode (
    id INTEGER PRIMARY KEY, domain TEXT NOT NULL, timestamp REAL NOT NULL, loss REAL, replay_count INTEGER NOT NULL,
    last_replayed_at REAL, payload BLOB NOT NULL
);
CREATE INDEX episode_loss ON episode (loss);
CREATE INDEX episode_timestamp ON episode (timestamp);
CREATE INDEX episode_domain_timestamp ON episode (domain, timestamp);
"""
_INSERT = "INSERT INTO episode (domain, timestamp, loss, replay_count, payload) VALUES (?, ?, ?, 0, ?)"
_EVICT = "DELETE FROM episode WHERE id IN (SELECT id FROM episode WHERE loss IS NOT NULL ORDER BY loss, id LIMIT ?)"
_UPDATE = "UPDATE episode SET loss = ?, replay_count = replay_count + 1, last_replayed_at = ? WHERE id = ?"
# The smallest Exp(1) / weight keys are a draw without replacement in proportion to weight: exact, and O(rows).
_DRAW = """
SELECT id, loss, payload FROM episode
ORDER BY ln((abs(random() / 2) + 1.0) / 4611686018427387905.0) / pow(coalesce(loss, ?) + ?, ?) DESC LIMIT ?
"""
_TUNING = ("wal_autocheckpoint = 16384", "cache_size = -32768", "temp_store = MEMORY", "secure_delete = OFF")


class HandWritten:
    """One table with the same three indexes through the ``sqlite3`` module.

    Parameters
    ----------
    tuned : bool
        With memstore's cache size and checkpoint interval; else SQLite's defaults, as one writes it by hand.
    """

    def __init__(self, path: Path, *, tuned: bool) -> None:
        self.path = path
        self._connection = sqlite3.connect(path, isolation_level=None)
        for pragma in ("journal_mode = WAL", "synchronous = NORMAL", *(_TUNING if tuned else ())):
            self._connection.execute(f"PRAGMA {pragma}")
        _ensure_math(self._connection)
        if not self._connection.execute("SELECT 1 FROM sqlite_master").fetchone():
            self._connection.executescript(_SCHEMA)

    def fill(self, workload: Workload, rows: int, progress: Progress) -> None:
        """Insert ``rows`` episodes."""
        task = progress.add_task(f"fill {rows:,} rows: by hand", total=rows)
        for episodes in workload.chunks(rows):
            self.extend(episodes)
            progress.advance(task, len(episodes))

    def copy_to(self, path: Path) -> None:
        """Copy what is committed to another file."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copyfile(self.path, path)

    def extend(self, episodes: Episodes) -> None:
        """Insert in one commit."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._insert(episodes)
        self._connection.execute("COMMIT")

    def replace_easiest(self, episodes: Episodes) -> None:
        """Let as many of the smallest losses go as come, in one commit."""
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute(_EVICT, (len(episodes),))
        self._insert(episodes)
        self._connection.execute("COMMIT")

    def _insert(self, episodes: Episodes) -> None:
        rows = zip(episodes.domain, episodes.timestamp.tolist(), episodes.losses, episodes.blobs, strict=True)
        self._connection.executemany(_INSERT, rows)

    def draw(self, count: int) -> tuple[NDArray[np.int64], Floats, dict[str, NDArray[np.float32]]]:
        """Ids, losses and payloads in proportion to (loss + epsilon) ** alpha, without replacement."""
        found = self._connection.execute(_DRAW, (1.0, EPSILON, ALPHA, count)).fetchall()
        ids, loss, blobs = zip(*found, strict=True)
        packed = np.frombuffer(b"".join(blobs), np.float32).reshape(len(blobs), INPUTS + TARGETS)
        payload = {"input": packed[:, :INPUTS].copy(), "target": packed[:, INPUTS:].copy()}
        return np.array(ids, np.int64), np.array(loss, np.float64), payload

    def update(self, ids: NDArray[np.int64], loss: Floats) -> None:
        """Write losses back in one commit; no history."""
        rows = zip(loss.tolist(), [1.7e9] * len(ids), ids.tolist(), strict=True)
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(_UPDATE, rows)
        self._connection.execute("COMMIT")

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


def _ensure_math(connection: sqlite3.Connection) -> None:
    # A compile option of SQLite, on in most distributions.
    try:
        connection.execute("SELECT ln(2.0), pow(2.0, 2.0)")
    except sqlite3.OperationalError:
        connection.create_function("ln", 1, math.log, deterministic=True)
        connection.create_function("pow", 2, math.pow, deterministic=True)


class InMemory:
    """Arrays in RAM that nothing else shares and nothing keeps: the speed of light."""

    def __init__(self, episodes: Episodes, seed: int = 3) -> None:
        self._inputs, self._targets, self._loss = episodes.inputs, episodes.targets, episodes.loss
        self._cumulative = np.cumsum((episodes.loss + EPSILON) ** ALPHA)
        self._rng = np.random.default_rng(seed)

    def draw_uniform(self, count: int) -> dict[str, NDArray[np.float32]]:
        """With replacement, equal chances."""
        return self._gather(self._rng.integers(0, len(self._loss), count))

    def draw_prioritized(self, count: int) -> dict[str, NDArray[np.float32]]:
        """With replacement, by bisection of a cumulative sum that no update ever touches."""
        at = np.searchsorted(self._cumulative, self._rng.random(count) * self._cumulative[-1])
        return self._gather(np.minimum(at, len(self._loss) - 1))

    def _gather(self, at: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        return {"input": self._inputs[at], "target": self._targets[at]}
