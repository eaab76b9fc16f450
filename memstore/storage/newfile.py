"""New files that appear as a whole or not at all, and never replace another file."""

from __future__ import annotations

import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from memstore.errors import ConfigError
from memstore.storage.files import remove
from memstore.storage.refusals import refused, telling

if sys.platform != "win32":  # on Windows, the files of a killed process stay
    import fcntl

_PARTIAL = re.compile(r"(?P<name>.+)\.(?P<maker>\d+)-[0-9a-f]{8}\.partial", re.DOTALL)


@dataclass
class Partial:
    """An unfinished file. The process that writes it holds a lock on it.

    Attributes
    ----------
    path : Path
        Temporary name of the file.
    mode : int or None
        Final permissions of the file. None stands for those of any new file.
    """

    path: Path
    mode: int | None
    handle: int

    def settle(self) -> None:
        """Write the file to the disk, with its mode. No other handle may be open on it.

        The handle is closed here and not later. After the file has its final name, another thread may open it, and
        the closing of one handle releases all locks of the process on the file.
        """
        if self.handle < 0:
            return
        if self.mode is not None:
            self.path.chmod(self.mode)
        os.fsync(self.handle)
        self.close()

    def close(self) -> None:
        """Close the handle and release its lock, unless that has happened already."""
        if self.handle >= 0:
            os.close(self.handle)
        self.handle = -1


def check_free(file: Path) -> None:
    """Raise ``ConfigError`` if no new file can have this name."""
    with telling(file):
        taken = os.path.lexists(file)
    if taken:
        raise ConfigError(f"{file} exists, and a backup never overwrites; give another name")
    folder = file.absolute().parent
    if not folder.is_dir():
        reason = refused(file, "write")
        raise ConfigError(f"{file} cannot be written: {reason or f'there is no folder {folder}'}")


@contextmanager
def partial_file(file: Path, like: Path | None = None) -> Iterator[Partial]:
    """Make a file with a temporary name beside ``file``. At the end it is deleted, unless it has its final name.

    Parameters
    ----------
    file : Path
        The final name. Partial files for this name that killed processes left are removed.
    like : Path, optional
        A file that gives its mode to the new file from the first byte, and its owner if that is allowed.
    """
    with telling(file):
        _sweep(file)
        path = file.with_name(f"{file.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666 if like is None else 0o600)
    partial = Partial(path, None, handle)
    try:
        with telling(file):
            if sys.platform != "win32":
                with suppress(OSError):  # on a file system without locks, only the number of the process identifies it
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if like is not None:
                partial.mode = _be_like(handle, path, like.stat())
        yield partial
    finally:
        remove(partial.path)
        partial.close()


@contextmanager
def written_whole(file: Path, like: Path | None = None) -> Iterator[Path]:
    """Give a temporary name to write to. At the end the file gets its final name, and survives a loss of power.

    A failure leaves no file. If several processes write the same file at the same time, the first to end gets the name,
    and the others raise ``ConfigError``. ``like`` gives mode and owner, as for ``partial_file``.
    """
    with partial_file(file, like) as partial:
        yield partial.path
        with telling(file):
            partial.settle()
            while not take_free_name(partial.path, file):
                check_free(file)
            settle_folder(file)


def take_free_name(partial: Path, file: Path) -> bool:
    """Rename a finished file if the name is free. Return False if it is not.

    The file has two names only for a moment, because opening a database with two names gives a warning.
    """
    try:
        os.link(partial, file)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        if os.path.lexists(file):
            return False
        partial.rename(file)
    else:
        partial.unlink()
    return True


def settle_folder(file: Path) -> None:
    """Write the names in the file's folder to the disk, so that they survive a loss of power."""
    handle = os.open(file.absolute().parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _be_like(handle: int, path: Path, other: os.stat_result) -> int:
    if sys.platform != "win32":
        for owner, group in ((other.st_uid, -1), (-1, other.st_gid)):
            with suppress(PermissionError):
                os.chown(handle, owner, group)
    mode = stat.S_IMODE(other.st_mode)
    path.chmod(mode | stat.S_IRUSR | stat.S_IWUSR)  # it has to be written first
    return mode


def _sweep(file: Path) -> None:
    """Remove partial files for this name if their processes no longer run."""
    if sys.platform == "win32":
        return
    for found in file.absolute().parent.iterdir():
        left = _PARTIAL.fullmatch(found.name)
        if left and left["name"] == file.name and not _runs(int(left["maker"])) and not _locked(found):
            remove(found)


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (OSError, OverflowError) as exc:
        return not isinstance(exc, ProcessLookupError)
    return True


def _locked(partial: Path) -> bool:
    """True if another process holds the lock of the file.

    The number of a process is not enough, because each container counts its processes from 1.
    """
    if sys.platform == "win32":
        return True
    try:
        handle = os.open(partial, os.O_RDONLY)
    except OSError:
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(handle)
    return False
