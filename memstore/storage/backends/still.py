"""Reads a SQLite file in a folder where this process can create no files.

SQLite reads a file in WAL mode only with a log and shared memory beside it. If it cannot make them, and nobody left a
log, then the file itself holds all commits, and ``immutable=1`` reads it without a log and shared memory. SQLite then
takes no locks, and does not notice if somebody writes. So this module compares the file's size, its time of change and
its log, each time a connection is taken and at the end of each transaction. If they differ, the read is done again.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, event

KEY = "memstore_still"
"""A connection's notes (``info``) have the path, and the look of the file at its opening, under this key."""


@dataclass(frozen=True, slots=True)
class Look:
    """The look of a file: its inode, its size in bytes, the time of its last change in nanoseconds."""

    inode: int
    size: int
    changed: int


def look(path: Path) -> Look | None:
    """Return the look of the file; None if a file beside it holds the last commits, or may hold them."""
    try:
        if _size(f"{path}-journal") or (log := _size(f"{path}-wal")):
            return None
        if log == 0 and Path(f"{path}-shm").exists():
            return None  # another process has it open, and may write at the next moment
        found = path.stat()
    except OSError:
        return None
    return Look(found.st_ino, found.st_size, found.st_mtime_ns)


def needed(path: Path) -> bool:
    """True if this process cannot put SQLite's log beside the file."""
    return not os.access(path.absolute().parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def watch_over(engine: Engine, path: Path, only_read: Callable[[], bool]) -> None:
    """Make the engine open the file without a log if no file can be made beside it, or if ``only_read`` is true."""

    def connect(_dialect: Any, record: Any, _arguments: Any, options: dict[str, Any]) -> sqlite3.Connection | None:
        if not only_read() and not needed(path):
            return None  # SQLAlchemy then opens the file in the usual way
        seen = look(path)
        if seen is None and not only_read():
            return None
        record.info[KEY] = None if seen is None else (path, seen)
        how = "mode=ro" if seen is None else "immutable=1"
        made: sqlite3.Connection = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, **options)
        return made

    event.listen(engine, "do_connect", connect)


def is_still(notes: Mapping[Any, Any]) -> bool:
    """True if the file of a connection has not changed since the connection was opened."""
    path, before = notes.get(KEY) or (None, None)
    return path is None or look(path) == before


def verify(notes: Mapping[Any, Any]) -> None:
    """Raise SQLite's own error for a lost snapshot, if the file of a connection has changed."""
    if is_still(notes):
        return
    error = sqlite3.OperationalError("another process began to write the file; it can be read only while nobody writes")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY_SNAPSHOT
    error.sqlite_errorname = "SQLITE_BUSY_SNAPSHOT"
    raise error


def _size(name: str) -> int | None:
    try:
        return Path(name).stat().st_size
    except FileNotFoundError:
        return None
