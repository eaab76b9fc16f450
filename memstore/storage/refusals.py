"""The reasons for which the operating system refuses a file. The file is examined right after the refusal."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from memstore.errors import MemstoreError, StoreFull, StoreReadOnly, StoreUnavailable
from memstore.storage.files import size_of

MOST_PATH_BYTES = 512 - len("-journal")
"""SQLite opens paths of at most this many bytes (MAX_PATHNAME)."""

TRIAL_BYTES = 64 * 1024
"""A trial writes this many bytes to see if there is room. SQLite never adds more to a file in one step."""

Wanted = Literal["open", "write", "room"]


@contextmanager
def telling(path: Path) -> Iterator[None]:
    """Raise memstore's errors for errors of the operating system. They name the file and the cause."""
    try:
        yield
    except MemstoreError:
        raise
    except OSError as exc:
        found = _full(exc.errno) or refused(path, "write") or StoreUnavailable(str(exc.strerror or exc))
        raise type(found)(f"{path}: {found}") from exc


def refused(path: Path, what: Wanted) -> MemstoreError | None:
    """Find what keeps this process from the file: an error whose text says what to do; None if nothing is found.

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
        _check_handles()
        _check_length(path)
        _check_folder(path.parent)
        _check_file(path)
        if what == "write":
            _check_writing(path)
        if what == "room":
            _check_room(path)
        else:
            _check_making(path)
    except MemstoreError as found:
        return found
    except OSError as exc:  # the file changes at this moment, or cannot be examined: then this is the cause
        return StoreUnavailable(str(exc))
    return None


def _check_handles() -> None:
    try:
        os.close(os.open(os.devnull, os.O_RDONLY))
    except OSError as exc:
        if exc.errno == errno.EMFILE:
            advice = "close memories that are done, or raise it"
            raise StoreUnavailable(f"this process has as many files open as it may (ulimit -n); {advice}") from exc
        if exc.errno == errno.ENFILE:
            raise StoreUnavailable("the machine has as many files open as it can (fs.file-max)") from exc
        raise


def _check_length(path: Path) -> None:
    size = len(os.fsencode(path))
    if size > MOST_PATH_BYTES:
        raise StoreUnavailable(f"its path has {size} bytes, and SQLite takes {MOST_PATH_BYTES}; give a shorter one")
    try:
        os.lstat(f"{path}-journal")  # this is the longest name that SQLite needs beside the file
    except OSError as exc:
        if exc.errno == errno.ENAMETOOLONG:
            raise StoreUnavailable("a name in its path is too long for the file system; give a shorter one") from exc


def _check_folder(folder: Path) -> None:
    for place in (*reversed(folder.parents), folder):
        try:
            mode = place.stat().st_mode
        except FileNotFoundError as exc:
            raise StoreUnavailable(f"there is no folder {place}; make it first") from exc
        except OSError as exc:
            raise StoreUnavailable(f"{place}: {exc.strerror}") from exc
        if not stat.S_ISDIR(mode):
            raise StoreUnavailable(f"{place} is a file, and not a folder")
        if not _may(place, os.X_OK):
            raise StoreUnavailable(f"{_who()} may not enter the folder {place} ({_rights(place)})")


def _check_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as exc:
        if path.is_symlink():
            raise StoreUnavailable(f"it is a link to {path.readlink()}, which is not there") from exc
        return
    if stat.S_ISDIR(mode):
        raise StoreUnavailable(f"it is a folder; give the name of a file in it, such as {path / 'run.db'}")
    if not stat.S_ISREG(mode):
        raise StoreUnavailable("it is no regular file")
    if not _may(path, os.R_OK):
        raise StoreUnavailable(f"{_who()} may not read the file ({_rights(path)})")


def _check_writing(path: Path) -> None:
    if path.exists() and not _on_read_only_disk(path) and not _may(path, os.W_OK):
        raise StoreReadOnly(f"{_who()} may not write the file ({_rights(path)})")


def _check_making(path: Path) -> None:
    if _on_read_only_disk(path):
        raise StoreReadOnly(f"the file system of {path.parent} is mounted read-only")
    if not _may(path.parent, os.W_OK | os.X_OK):
        raise StoreReadOnly(
            f"{_who()} may not make files in the folder {path.parent} ({_rights(path.parent)}), and SQLite needs some "
            f"beside the database{_unplayed(path)}"
        )


def _check_room(path: Path) -> None:
    try:
        with tempfile.TemporaryFile(dir=path.parent) as trial:
            trial.write(bytes(TRIAL_BYTES))
            trial.flush()
    except OSError as exc:
        if (full := _full(exc.errno)) is not None:
            raise full from exc
        raise
    limit = _size_limit()
    largest = max(size_of(path), size_of(f"{path}-wal"))
    if limit is not None and largest + TRIAL_BYTES > limit:
        raise StoreFull(_FULL[errno.EFBIG])


def _unplayed(path: Path) -> str:
    if not size_of(f"{path}-wal"):
        return ""
    return (
        f". {path.name}-wal holds commits that are not in the file yet: have it opened by one who may write, or copy "
        "both together into a folder of your own"
    )


_FULL = {
    errno.ENOSPC: "its disk is full, nothing was written; free some space",
    errno.EDQUOT: "its user's quota of the disk is used up, nothing was written; free some space",
    errno.EFBIG: "a file may not become as large for this process (ulimit -f), nothing was written; raise the limit",
}


def _full(number: int | None) -> StoreFull | None:
    return StoreFull(_FULL[number]) if number in _FULL else None


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
