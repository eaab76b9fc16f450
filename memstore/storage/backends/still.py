"""A SQLite file that this process cannot write beside, read as it lies there.

SQLite reads a file in WAL mode only with a log and shared memory beside it. Where the folder takes no files, and nobody
left a log, all that was committed is in the file itself: ``immutable=1`` reads it without either. SQLite then takes no
locks, and does not notice another user who may write. So the file's size, time of change and log are compared: when a
connection is taken, and at the end of every transaction. Where they differ, the read is given up and done anew.
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
"""Under which the notes of a connection (``info``) hold the path, and how the file looked then."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a file looked like: inode, bytes, nanoseconds of the last change."""

    inode: int
    size: int
    changed: int


def look(path: Path) -> Look | None:
    """How the file is; None while something beside it holds, or may hold, what was committed last."""
    try:
        if _size(f"{path}-journal") or (log := _size(f"{path}-wal")):
            return None
        if log == 0 and Path(f"{path}-shm").exists():
            return None  # somebody has it open, and may write the next moment
        found = path.stat()
    except OSError:
        return None
    return Look(found.st_ino, found.st_size, found.st_mtime_ns)


def needed(path: Path) -> bool:
    """True if this process cannot put SQLite's log beside the file."""
    return not os.access(path.absolute().parent, os.W_OK, effective_ids=os.access in os.supports_effective_ids)


def watch_over(engine: Engine, path: Path, only_read: Callable[[], bool]) -> None:
    """Let the engine open the file so where it must: nothing may be made beside it, or ``only_read`` asks for that."""

    def connect(_dialect: Any, record: Any, _arguments: Any, options: dict[str, Any]) -> sqlite3.Connection | None:
        if not only_read() and not needed(path):
            return None  # SQLAlchemy's own way
        seen = look(path)
        if seen is None and not only_read():
            return None
        record.info[KEY] = None if seen is None else (path, seen)
        how = "mode=ro" if seen is None else "immutable=1"
        made: sqlite3.Connection = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True, **options)
        return made

    event.listen(engine, "do_connect", connect)


def is_still(notes: Mapping[Any, Any]) -> bool:
    """True if the file of a connection is as it was when that was opened."""
    path, before = notes.get(KEY) or (None, None)
    return path is None or look(path) == before


def verify(notes: Mapping[Any, Any]) -> None:
    """Raise SQLite's own error for a snapshot that is gone, if the file of a connection is not as it was."""
    if is_still(notes):
        return
    error = sqlite3.OperationalError("another process began to write the file, which can be read only while none does")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY_SNAPSHOT
    error.sqlite_errorname = "SQLITE_BUSY_SNAPSHOT"
    raise error


def _size(name: str) -> int | None:
    try:
        return Path(name).stat().st_size
    except FileNotFoundError:
        return None
