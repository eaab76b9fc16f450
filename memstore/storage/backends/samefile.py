"""Checks that the files a connection has open are still the files at the paths of the database.

If somebody deletes or replaces a file, it lives on for the processes that have it open. Their writes succeed, but no
other process ever sees them. The same holds for the log (``-wal``) and its index (``-shm``):
https://sqlite.org/howtocorrupt.html, 2.4 and 4.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, event

from memstore.errors import StoreUnavailable

_Identity = tuple[int, int]

_KEY = "memstore_files"
"""A connection's notes (``info``) have its open files under this key."""

_SETTLED_NS = 2_000_000_000
"""A change of a folder gets another time than an earlier change if at least this many nanoseconds lie between them.

File systems count time in steps of up to 2 s (FAT). Those of Linux count in steps of up to 10 ms.
"""

LOG_SUFFIXES = ("-wal", "-shm")
"""SQLite makes files with these endings beside a database in WAL mode."""


def note_files(engine: Engine, path: Path, where: str) -> None:
    """Make each new connection of the engine remember the files that it has open.

    All connections must have the same file as the first one. Windows neither deletes nor replaces a file that is open,
    so nothing is remembered there.

    Raises
    ------
    StoreUnavailable
        When a connection is opened and finds another file at the path.
    """
    first: list[_Identity] = []

    def note(_connection: Any, record: Any) -> None:
        found = None if os.name == "nt" else _identity(str(path))
        if found is None:
            return
        first[:] = first or [found]
        if found != first[0]:
            raise StoreUnavailable(_moved_message(where, found))
        record.info[_KEY] = _OpenFiles(path, where, found)

    event.listen(engine, "connect", note)


def look(conn: Connection, *, fresh: float = 0.0) -> None:
    """Check that the files at the paths of the database are those that the connection has open.

    The check costs one ``stat`` (1 to 4 us) if no file in the folder came or went, otherwise four.

    Parameters
    ----------
    fresh : float
        Seconds. Nothing is done if the last check is not older than this.

    Raises
    ------
    StoreUnavailable
        If a file was deleted, moved or replaced.
    """
    files: _OpenFiles | None = conn.info.get(_KEY)
    if files is not None:
        files.look(fresh)


class _OpenFiles:
    """The files that one connection has open."""

    __slots__ = ("_database", "_folder", "_linked", "_logs", "_looked", "_path", "_quiet", "_real", "_where")

    def __init__(self, path: Path, where: str, database: _Identity) -> None:
        self._where = where
        self._path = str(path)
        self._real = str(path.resolve())  # SQLite puts the log beside the file, not beside a symbolic link to it
        self._folder = str(Path(self._real).parent)
        self._linked = self._real != self._path
        self._database = database
        self._logs: dict[str, _Identity] = {}
        self._looked = -math.inf
        self._quiet: tuple[int, int] | None = None

    def look(self, fresh: float) -> None:
        moment = time.monotonic()
        if moment - self._looked < fresh:
            return
        folder = _stat(self._folder)
        now = None if folder is None else (folder.st_mtime_ns, folder.st_ino)
        if now is None or now != self._quiet:
            self._look_at_each()
            # From now on the time of the folder is enough. It is not enough before the first transaction, which makes
            # the log, and for a symbolic link, which may change without a change of this folder.
            complete = len(self._logs) == len(LOG_SUFFIXES) and not self._linked
            settled = now is not None and time.time_ns() - now[0] > _SETTLED_NS
            self._quiet = now if complete and settled else None
        self._looked = moment

    def _look_at_each(self) -> None:
        found = _identity(self._path)
        if found != self._database:
            raise StoreUnavailable(_moved_message(self._where, found))
        for suffix in LOG_SUFFIXES:
            found, known = _identity(self._real + suffix), self._logs.get(suffix)
            if known is None and found is not None:
                self._logs[suffix] = found
            elif found != known:
                raise StoreUnavailable(_lost_log_message(self._where, Path(self._real + suffix).name))


def hard_links(path: Path) -> int:
    """Return the number of names that the file has; 1 if the system does not tell."""
    found = _stat(str(path))
    return 1 if found is None or os.name == "nt" else max(found.st_nlink, 1)


def links_warning(where: str, names: int) -> str:
    """Write the warning about a file with several names."""
    return (
        f"{where} is one of {names} names (hard links) of its file. SQLite keeps a log for each name. So a process "
        "that opens another name does not see the commits made here, and each damages what the other writes: use one "
        "name only, and symbolic links for others"
    )


def _moved_message(where: str, found: _Identity | None) -> str:
    if found is None:
        return (
            f"{where}: the file was deleted or moved away while this memory had it open. What this memory writes is "
            "lost, and this call counts as not done. Move the file back, or close this memory"
        )
    return (
        f"{where}: the file was replaced by another while this memory had it open. What this memory writes is lost, "
        "and this call counts as not done. Close every memory on the file, and delete the log beside it (-wal and "
        "-shm): it belongs to the old file and would damage the new one. Then open it again"
    )


def _lost_log_message(where: str, name: str) -> str:
    return (
        f"{where}: {name}, which holds the last commits, was deleted or replaced while the database was open. This "
        "call counts as not done. Close every memory on the file, which saves what can be saved, then run "
        "'memstore check' and add again what is missing"
    )


def _stat(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - Path.stat() takes twice as long
    except OSError:
        return None


def _identity(path: str) -> _Identity | None:
    found = _stat(path)
    return None if found is None else (found.st_dev, found.st_ino)
