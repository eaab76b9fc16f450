"""Puts another file in the place of a SQLite database that nobody has open.

The order of the steps keeps the database whole under ``kill -9``. If a call was killed, the same call finishes it.

1. SQLite gives this process an exclusive lock. It refuses the lock while any connection is open on the file, even one
   that only reads. The log is folded into the file and removed, so the old database is now one file.
2. This module then takes the lock itself, without SQLite: a connection of SQLite would remove the log that a newcomer
   makes.
3. The old file gets a second name, ``run.db.replaced-20261128-114500``.
4. The new file takes the first name. Only with this step the database is replaced.

If the process is killed after step 3, the old file has two names until the same call is made again. Opening it warns.

If SQLite cannot open the old file, its log cannot be folded. The log then gets a second name too, before it is removed.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from memstore.errors import NotAMemstore, StoreBusy
from memstore.storage.files import SIDE_FILES, Look, has_log, look_of, remove, size_of, unused
from memstore.storage.newfile import Partial, settle_folder, take_free_name
from memstore.storage.refusals import telling
from memstore.storage.schema import VERSION_TABLE

if sys.platform != "win32":  # Windows itself refuses to rename a file over one that somebody has open
    import fcntl

PENDING_BYTE, LOCK_BYTES = 0x40000000, 512
"""SQLite locks bytes from the first number on, as many as the second one. A lock on all of them is exclusive.

See os.h in https://sqlite.org/src.
"""

ATTEMPTS = 5
"""Steps 1 and 2 are tried this many times. Others may open the file between them, and then both are done again."""

_BEYOND_OPENING = {sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT}
"""With these codes of errors SQLite has refused to open a file at all."""


def put_in_place(new: Partial, file: Path, *, patience: float, force: bool) -> Path | None:
    """Make the new file durable, and give it the name of the database.

    Parameters
    ----------
    new : Partial
        The new file, under a temporary name.
    file : Path
        The name that it is to get.
    patience : float
        Seconds to wait for others to close the old file.
    force : bool
        True to replace a file that is not known to be a memstore database.

    Returns
    -------
    Path or None
        The name under which the old file is kept. None if there was no old file, or if it was empty.

    Raises
    ------
    StoreBusy
        If somebody still has the old file open after ``patience`` seconds.
    NotAMemstore
        If the old file holds something else, or may do so, and ``force`` is not given.
    """
    file = file.resolve()
    for _ in range(ATTEMPTS):
        with telling(file):
            if not file.exists():
                if _take_free_place(new, file):
                    return None
                continue
            sound, look = _fold_log(file, patience, force)
            with _exclusive_lock(file):
                if look_of(file) == look and not (sound and has_log(file)):
                    return _replace(new, file, sound=sound)
    raise _busy_error(file)


def _take_free_place(new: Partial, file: Path) -> bool:
    """Put the new file at a free name. Return False if another process has just made a file with this name.

    A log that was left with this name is kept under another name.
    """
    if has_log(file):
        _add_name(file, ("-wal", "-journal"), _free_name(file))
    remove(file, SIDE_FILES)
    new.settle()
    settle_folder(file)
    if not take_free_name(new.path, file):
        return False
    settle_folder(file)
    return True


def _fold_log(file: Path, patience: float, force: bool) -> tuple[bool, Look]:
    """Fold the log into a file that nobody has open.

    Returns
    -------
    bool
        True if the file is whole without its log.
    Look
        The look of the file under the exclusive lock.
    """
    address = f"{file.as_uri()}?mode=rw"
    with closing(sqlite3.connect(address, uri=True, timeout=patience, isolation_level=None)) as alone:
        try:
            alone.execute("PRAGMA locking_mode = EXCLUSIVE")
            alone.execute("PRAGMA synchronous = FULL")
            alone.execute("BEGIN EXCLUSIVE")
            tables = [name for (name,) in alone.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            alone.execute("COMMIT")
            if tables and VERSION_TABLE not in tables and not force:
                raise NotAMemstore(f"{file} holds tables, but none of memstore's; nothing was changed. {_INSIST}")
            if alone.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
                raise _busy_error(file)
            return True, look_of(file)
        except sqlite3.Error as exc:
            code = getattr(exc, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
            if code == sqlite3.SQLITE_BUSY:
                raise _busy_error(file) from exc
            if code not in _BEYOND_OPENING:
                raise
            if code == sqlite3.SQLITE_NOTADB and not force:
                raise NotAMemstore(
                    f"SQLite cannot open {file} as a database: it is another kind of file, or its first bytes are "
                    f"damaged; nothing was changed. {_INSIST}"
                ) from exc
            return False, look_of(file)


@contextmanager
def _exclusive_lock(file: Path) -> Iterator[None]:
    """Hold the exclusive lock that SQLite would take, without SQLite."""
    if sys.platform == "win32":
        yield
        return
    handle = os.open(file, os.O_RDWR)
    try:
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB, LOCK_BYTES, PENDING_BYTE)
        except (BlockingIOError, PermissionError) as exc:
            raise _busy_error(file) from exc
        yield
    finally:
        os.close(handle)


def _replace(new: Partial, file: Path, *, sound: bool) -> Path | None:
    new.settle()
    kept: Path | None = None
    try:
        if size_of(file):
            earlier = _added_names(file)  # second names from a call that was killed between its last two steps
            if sound:  # the file has all commits, so the earlier names are not needed
                for name in earlier:
                    remove(name)
            kept = earlier[0] if earlier and not sound else _free_name(file)
            _add_name(file, ("",) if sound else ("", "-wal", "-journal"), kept)
        remove(file, SIDE_FILES)
        settle_folder(file)
        new.path.replace(file)
    except BaseException:
        if kept is not None and sound and new.path.exists():
            kept.unlink(missing_ok=True)
        raise
    settle_folder(file)
    return kept


def _add_name(file: Path, suffixes: tuple[str, ...], kept: Path) -> None:
    """Give these files of the database a second name each."""
    for suffix in suffixes:
        name, second = Path(f"{file}{suffix}"), Path(f"{kept}{suffix}")
        if not name.exists() or (second.exists() and name.samefile(second)):
            continue
        try:
            os.link(name, second)
        except FileExistsError:
            raise
        except OSError:  # a file system without links
            shutil.copy2(name, second)
            with second.open("rb+") as copy:
                os.fsync(copy.fileno())
    settle_folder(file)


def _free_name(file: Path) -> Path:
    return unused(Path(f"{file}.replaced-{time.strftime('%Y%m%d-%H%M%S')}"))


def _added_names(file: Path) -> list[Path]:
    found = (name for name in file.parent.iterdir() if name.name.startswith(f"{file.name}.replaced-"))
    return [name for name in found if not name.name.endswith(SIDE_FILES) and name.exists() and name.samefile(file)]


def _busy_error(file: Path) -> StoreBusy:
    return StoreBusy(
        f"{file} is open elsewhere, in this process or another; nothing was changed. Close every memory on it, end the "
        "processes that use it (fuser names them), and try again"
    )


_INSIST = "To replace it anyway, give --force, or force=True: the old file is kept beside the new one"
