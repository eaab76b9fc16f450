"""Reads a SQLite file in a folder where this process can create no files.

SQLite reads a file in WAL mode only with a log and shared memory beside it. If it cannot make them, and nobody left a
log, then the file itself holds all commits, and ``immutable=1`` reads it without a log and shared memory. SQLite then
takes no locks, and does not notice if somebody writes. So the file's look and its log are compared each time a
connection is taken and at the end of each transaction. If they differ, the read is done again.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from memstore.storage.files import Look, has_log, look_of


def look(path: Path) -> Look | None:
    """Return the look of the file; None if a file beside it holds the last commits, or may hold them."""
    try:
        if has_log(path) or all(Path(f"{path}{suffix}").exists() for suffix in ("-wal", "-shm")):
            return None  # with an empty log, another process has the file open, and may write at the next moment
        return look_of(path)
    except OSError:
        return None


def needed(path: Path) -> bool:
    """True if this process cannot put SQLite's log beside the file."""
    return not os.access(path.absolute().parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def changed() -> sqlite3.OperationalError:
    """Return SQLite's own error for a lost snapshot."""
    error = sqlite3.OperationalError("another process began to write the file; it can be read only while nobody writes")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY_SNAPSHOT
    error.sqlite_errorname = "SQLITE_BUSY_SNAPSHOT"
    return error
