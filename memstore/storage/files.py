"""Small functions on files."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

Look = tuple[int, int, int]
"""The look of a file is its inode, its size in bytes, and the time of its last change in nanoseconds."""

SIDE_FILES = ("-wal", "-shm", "-journal")
"""SQLite adds these endings to the name of a database for the files beside it."""


def look_of(path: Path) -> Look:
    """Return the look of the file."""
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def size_of(name: str | Path) -> int:
    """Return the size of the file in bytes. 0 if there is no file."""
    try:
        return Path(name).stat().st_size
    except FileNotFoundError:
        return 0


def has_log(file: Path) -> bool:
    """True if a log beside the database may hold something that is not folded into it."""
    return bool(size_of(f"{file}-wal") or size_of(f"{file}-journal"))


def unused(stem: Path, suffix: str = "") -> Path:
    """Return the first of the names ``stem``, ``stem-2``, ``stem-3`` ... that neither a file nor a log has."""
    names = (Path(f"{stem}{f'-{n}' if n > 1 else ''}{suffix}") for n in itertools.count(1))
    return next(name for name in names if not any(os.path.lexists(f"{name}{side}") for side in ("", *SIDE_FILES)))


def remove(file: Path, suffixes: tuple[str, ...] = (*SIDE_FILES, "")) -> None:
    """Delete the files beside a database, and last the database itself. A file that does not exist is no error."""
    for suffix in suffixes:
        Path(f"{file}{suffix}").unlink(missing_ok=True)
