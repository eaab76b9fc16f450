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

from memstore.errors import StoreUnavailable

Identity = tuple[int, int]
"""A file is identified by its device and its inode."""

LOG_SUFFIXES = ("-wal", "-shm")
"""SQLite makes files with these endings beside a database in WAL mode."""


class OpenFiles:
    """The files that one connection has open.

    Windows neither deletes nor replaces a file that is open, so nothing is remembered there.

    Parameters
    ----------
    path : Path
        Path of the database, which was opened a moment ago.
    where : str
        Name of the database in messages.
    first : OpenFiles, optional
        Files of the first connection. All connections must have the same file.

    Raises
    ------
    StoreUnavailable
        If the path leads to another file than that of the first connection.
    """

    __slots__ = ("_known", "_looked", "_names", "_where")

    def __init__(self, path: Path, where: str, first: OpenFiles | None) -> None:
        real = path.resolve()  # SQLite puts the log beside the file, not beside a symbolic link to it
        self._where = where
        self._names = () if os.name == "nt" else (str(path), *(f"{real}{suffix}" for suffix in LOG_SUFFIXES))
        self._known: dict[str, Identity] = {}
        self._looked = -math.inf
        for name in self._names[:1]:
            if first is not None and name in first._known:
                self._known[name] = first._known[name]
            self._look_at(name)

    def look(self, fresh: float = 0.0) -> None:
        """Check that the connection has the files at the paths open. This takes three ``stat`` of 1 to 4 us each.

        Parameters
        ----------
        fresh : float
            Seconds. Nothing is done if the last check is not older than this.

        Raises
        ------
        StoreUnavailable
            If a file was deleted, moved or replaced.
        """
        moment = time.monotonic()
        if moment - self._looked < fresh:
            return
        for name in self._names:
            self._look_at(name)
        self._looked = moment

    def _look_at(self, name: str) -> None:
        """Check one file. The first look only notes the file, because the first transaction makes the log."""
        found, known = _identity(name), self._known.get(name)
        if known is None and found is not None:
            self._known[name] = found
        elif found != known and name == self._names[0]:
            raise StoreUnavailable(_moved_message(self._where, found))
        elif found != known:
            raise StoreUnavailable(_lost_log_message(self._where, Path(name).name))


def hard_links(path: Path) -> int:
    """Return the number of names that the file has; 1 if the system does not tell."""
    try:
        return 1 if os.name == "nt" else max(path.stat().st_nlink, 1)
    except OSError:
        return 1


def links_warning(where: str, names: int) -> str:
    """Write the warning about a file with several names."""
    return (
        f"{where} is one of {names} names (hard links) of its file. SQLite keeps a log for each name. So a process "
        "that opens another name does not see the commits made here, and each damages what the other writes: use one "
        "name only, and symbolic links for others"
    )


def _moved_message(where: str, found: Identity | None) -> str:
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


def _identity(path: str) -> Identity | None:
    try:
        found = os.stat(path)  # noqa: PTH116 - Path.stat() takes twice as long
    except OSError:
        return None
    return found.st_dev, found.st_ino
