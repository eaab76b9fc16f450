"""Whether the files of a SQLite database are still those that a connection has open.

A file that is deleted or replaced lives on for whoever has it open: writes to it succeed, and nobody ever sees them.
The same holds for the log (``-wal``) and its index (``-shm``): https://sqlite.org/howtocorrupt.html, 2.4 and 4.
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

_SETTLED_NS = 2_000_000_000
"""Nanoseconds after which another change of a folder cannot have the same time: file systems count in steps of up to
2 s (FAT), Linux's own of up to 10 ms."""

LOG_SUFFIXES = ("-wal", "-shm")


def note_files(engine: Engine, path: Path, where: str) -> None:
    """Let each new connection remember which files it has open; the first one decides for all of the engine.

    Windows neither deletes nor replaces a file that is open, so nothing is remembered there.
    """
    first: list[_Identity] = []

    def note(_connection: Any, record: Any) -> None:
        found = None if os.name == "nt" else _identity(str(path))
        if found is None:
            return
        first[:] = first or [found]
        if found != first[0]:
            raise StoreUnavailable(_moved(where, found))
        record.info[_KEY] = _OpenFiles(path, where, found)

    event.listen(engine, "connect", note)


def look(conn: Connection, *, fresh: float = 0.0) -> None:
    """Raise ``StoreUnavailable`` if others no longer find at their paths what the connection has open.

    It costs one ``stat`` (1 to 4 us) while nothing in the folder comes or goes, else four; nothing if the last look was
    less than ``fresh`` seconds ago.
    """
    files: _OpenFiles | None = conn.info.get(_KEY)
    if files is not None:
        files.look(fresh)


class _OpenFiles:
    """The files of one connection."""

    __slots__ = ("_database", "_folder", "_linked", "_logs", "_looked", "_path", "_quiet", "_real", "_where")

    def __init__(self, path: Path, where: str, database: _Identity) -> None:
        self._where = where
        self._path = str(path)
        self._real = str(path.resolve())  # SQLite puts the log beside the file itself, not beside a link to it
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
            # The log appears with the first transaction. A link may change without a change of this folder.
            complete = len(self._logs) == len(LOG_SUFFIXES) and not self._linked
            settled = now is not None and time.time_ns() - now[0] > _SETTLED_NS
            self._quiet = now if complete and settled else None
        self._looked = moment

    def _look_at_each(self) -> None:
        found = _identity(self._path)
        if found != self._database:
            raise StoreUnavailable(_moved(self._where, found))
        for suffix in LOG_SUFFIXES:
            found, known = _identity(self._real + suffix), self._logs.get(suffix)
            if known is None and found is not None:
                self._logs[suffix] = found
            elif found != known:
                raise StoreUnavailable(_log_gone(self._where, Path(self._real + suffix).name))


def hard_links(path: Path) -> int:
    """How many names the file has; 1 where that cannot be told."""
    found = _stat(str(path))
    return 1 if found is None or os.name == "nt" else max(found.st_nlink, 1)


def links_warning(where: str, names: int) -> str:
    """What to say of a file with several names."""
    return (
        f"{where} is one of {names} names (hard links) of its file. SQLite keeps a log for each name, so whoever opens "
        "another name does not see what is committed here, and each damages what the other writes: use one name only, "
        "and symbolic links for others"
    )


def _moved(where: str, found: _Identity | None) -> str:
    if found is None:
        return (
            f"{where}: the file was deleted or moved away while this memory had it open, so what is written through it "
            "is lost, and this call is not to be taken for done. Move the file back, or close this memory"
        )
    return (
        f"{where}: the file was replaced by another while this memory had it open, so what is written through it is "
        "lost, and this call is not to be taken for done. Close every memory on the file, delete the log beside it "
        "(-wal and -shm), which is the old file's and would damage the new one, then open it again"
    )


def _log_gone(where: str, name: str) -> str:
    return (
        f"{where}: {name} was deleted or replaced while the database was open, and the last commits are in it. This "
        "call is not to be taken for done. Close every memory on the file, which saves what can be saved, then run "
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
