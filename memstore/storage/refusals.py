"""The reasons for which the operating system refuses a file. The file is examined right after the refusal."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from memstore.errors import MemstoreError, StoreFull, StoreReadOnly, StoreUnavailable

MOST_PATH_BYTES = 512 - len("-journal")
"""SQLite opens paths of at most this many bytes (MAX_PATHNAME)."""

TRIAL_BYTES = 64 * 1024
"""A trial writes this many bytes to see if there is room. SQLite never adds more to a file in one step."""

Wanted = Literal["open", "write", "room"]


@dataclass(frozen=True, slots=True)
class Refusal:
    """The cause of a refusal: the error to raise, and its text with advice."""

    error: type[MemstoreError]
    text: str


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Raise memstore's errors for errors of the operating system. They name the file and the cause."""
    try:
        yield
    except MemstoreError:
        raise
    except OSError as exc:
        found = refused(path, "write") or Refusal(StoreUnavailable, str(exc.strerror or exc))
        kind = StoreFull if exc.errno in _FULL else found.error
        raise kind(f"{path}: {_FULL.get(exc.errno or 0, found.text)}") from exc


def refused(path: Path, what: Wanted) -> Refusal | None:
    """Return the cause that keeps this process from the file. None if no cause is found.

    Parameters
    ----------
    path : Path
        The file, which need not exist.
    what : "open", "write" or "room"
        The attempt that failed: to open the file (for this SQLite makes files beside it), to write it, or to add bytes
        to its disk.
    """
    path = path.absolute()
    try:
        found = _by_handles() or _by_length(path) or _by_folder(path.parent) or _by_file(path)
        if found is None and what == "write":
            found = _by_writing(path)
        return found or (_by_room(path) if what == "room" else _by_making(path))
    except OSError as exc:  # the file changes at this moment, or cannot be examined: then this is the cause
        return Refusal(StoreUnavailable, str(exc))


def _by_handles() -> Refusal | None:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as exc:
        if exc.errno == errno.EMFILE:
            return Refusal(
                StoreUnavailable,
                "this process has as many files open as it may (ulimit -n); close memories that are done, or raise it",
            )
        if exc.errno == errno.ENFILE:
            return Refusal(StoreUnavailable, "the machine has as many files open as it can (fs.file-max)")
        raise
    return None


def _by_length(path: Path) -> Refusal | None:
    size = len(os.fsencode(path))
    if size > MOST_PATH_BYTES:
        return Refusal(
            StoreUnavailable, f"its path has {size} bytes, and SQLite takes {MOST_PATH_BYTES}; give a shorter one"
        )
    try:
        os.lstat(f"{path}-journal")  # this is the longest name that SQLite needs beside the file
    except OSError as exc:
        if exc.errno == errno.ENAMETOOLONG:
            return Refusal(StoreUnavailable, "a name in its path is too long for the file system; give a shorter one")
    return None


def _by_folder(folder: Path) -> Refusal | None:
    for place in (*reversed(folder.parents), folder):
        try:
            mode = place.stat().st_mode
        except FileNotFoundError:
            return Refusal(StoreUnavailable, f"there is no folder {place}; make it first")
        except OSError as exc:
            return Refusal(StoreUnavailable, f"{place}: {exc.strerror}")
        if not stat.S_ISDIR(mode):
            return Refusal(StoreUnavailable, f"{place} is a file, and not a folder")
        if not _may(place, os.X_OK):
            return Refusal(StoreUnavailable, f"{_who()} may not enter the folder {place} ({_rights(place)})")
    return None


def _by_file(path: Path) -> Refusal | None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        if path.is_symlink():
            return Refusal(StoreUnavailable, f"it is a link to {path.readlink()}, which is not there")
        return None
    if stat.S_ISDIR(mode):
        return Refusal(StoreUnavailable, f"it is a folder; give the name of a file in it, such as {path / 'run.db'}")
    if not stat.S_ISREG(mode):
        return Refusal(StoreUnavailable, "it is no regular file")
    if not _may(path, os.R_OK):
        return Refusal(StoreUnavailable, f"{_who()} may not read the file ({_rights(path)})")
    return None


def _by_writing(path: Path) -> Refusal | None:
    if path.exists() and not _on_read_only_disk(path) and not _may(path, os.W_OK):
        return Refusal(StoreReadOnly, f"{_who()} may not write the file ({_rights(path)})")
    return None


def _by_making(path: Path) -> Refusal | None:
    if _on_read_only_disk(path):
        return Refusal(StoreReadOnly, f"the file system of {path.parent} is mounted read-only")
    if not _may(path.parent, os.W_OK | os.X_OK):
        return Refusal(
            StoreReadOnly,
            f"{_who()} may not make files in the folder {path.parent} ({_rights(path.parent)}), and SQLite needs some "
            f"beside the database{_unplayed(path)}",
        )
    return None


def _by_room(path: Path) -> Refusal | None:
    try:
        with tempfile.TemporaryFile(dir=path.parent) as trial:
            trial.write(bytes(TRIAL_BYTES))
            trial.flush()
    except OSError as exc:
        if exc.errno in _FULL:
            return Refusal(StoreFull, _FULL[exc.errno])
        raise
    limit = _size_limit()
    largest = max((p.stat().st_size for p in (path, Path(f"{path}-wal")) if p.exists()), default=0)
    if limit is not None and largest + TRIAL_BYTES > limit:
        return Refusal(StoreFull, _FULL[errno.EFBIG])
    return None


def _unplayed(path: Path) -> str:
    log = Path(f"{path}-wal")
    if not log.exists() or not log.stat().st_size:
        return ""
    return (
        f". {log.name} holds commits that are not in the file yet: have it opened by one who may write, or copy both "
        "together into a folder of your own"
    )


_FULL = {
    errno.ENOSPC: "its disk is full, nothing was written; free some space",
    errno.EDQUOT: "its user's quota of the disk is used up, nothing was written; free some space",
    errno.EFBIG: "a file may not become as large for this process (ulimit -f), nothing was written; raise the limit",
}


def _size_limit() -> int | None:
    try:
        import resource
    except ImportError:
        return None
    soft = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
    return None if soft == resource.RLIM_INFINITY else soft


def _may(path: Path, what: int) -> bool:
    return os.access(path, what, effective_ids=os.access in os.supports_effective_ids)


def _on_read_only_disk(path: Path) -> bool:
    return hasattr(os, "statvfs") and bool(os.statvfs(path.parent).f_flag & os.ST_RDONLY)


def _rights(path: Path) -> str:
    found = path.stat()
    return f"{stat.filemode(found.st_mode)}, owner {found.st_uid}, group {found.st_gid}"


def _who() -> str:
    return f"user {os.geteuid()}" if hasattr(os, "geteuid") else "this user"
