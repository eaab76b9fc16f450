"""Finds out who holds a lock on a SQLite file, and who reads an old snapshot of it. Only Linux tells.

SQLite locks bytes of the ``-shm`` file: https://sqlite.org/walformat.html, section 2.3. Linux lists all locks in
``/proc/locks``. This module never opens the ``-shm`` file, because closing it would release all locks that this process
has on it (https://sqlite.org/howtocorrupt.html, section 2.2). SQLite has mapped the file into this process's memory, so
its content is read from there.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path

from memstore.printable import visible

LOCKS = Path("/proc/locks")
MAPS = Path("/proc/self/maps")
MEMORY = Path("/proc/self/mem")
"""Linux has these files with all locks, with the maps of this process's memory, and with that memory."""

_WRITE, _FIRST_READ, _LAST_READ = 120, 123, 127
"""These bytes of the ``-shm`` file are the lock of the writer, and the first and the last of five locks of readers."""

_INDEX = struct.Struct("=16xI76xI5I")
"""The first bytes of the file have this layout: frames in the log, frames folded into the database, marks of readers.

There are five marks of readers.
"""

# A process that waits for a lock has an arrow before the kind. A lock up to EOF, the file's end, is not SQLite's.
_LINE = re.compile(r"\d+: POSIX +\S+ +\S+ +(?P<pid>\d+) \S+:(?P<inode>\d+) (?P<first>\d+) (?P<last>\d+)")

MOST_NAME = 60
"""A message shows at most this many characters of a process's command."""


def describe_writer(database: Path) -> str:
    """Say who holds the write lock of the database now. The phrase begins a sentence."""
    pids = [pid for pid, first, last in _locks(database) if first <= _WRITE <= last]
    return f"{describe_process(pids[0])} held" if pids else "another connection, of this or another process, held"


def describe_process(pid: int | None) -> str:
    """Describe a process by its number and its command."""
    if pid is None:
        return "a process"
    if pid == os.getpid():
        return "another connection of this process (a handle, a thread)"
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        command = ""
    shown = visible(command[:MOST_NAME]) + ("..." if len(command) > MOST_NAME else "")
    return f"process {pid} ({shown})" if shown else f"process {pid}"


def old_readers(database: Path, pages: int) -> dict[int, int]:
    """Find the processes that read a snapshot more than ``pages`` pages of the log old, and how many pages that is.

    There are none if the system does not tell. The calling thread must be in a transaction: only then is the index of
    the log in memory and up to date.
    """
    index = _index(database)
    if index is None:
        return {}
    frames, _, *marks = index
    found: dict[int, int] = {}
    for pid, first, last in _locks(database):
        for byte in range(max(first, _FIRST_READ), min(last, _LAST_READ) + 1):
            behind = frames - marks[byte - _FIRST_READ]
            if behind > pages:
                found[pid] = max(behind, found.get(pid, 0))
    return found


def _index(database: Path) -> tuple[int, ...] | None:
    inode = _inode(database)
    try:
        for line in MAPS.read_text(errors="replace").splitlines():
            addresses, _, offset, _, number, *_ = line.split()
            if inode is not None and int(number) == inode and int(offset, 16) == 0:
                with MEMORY.open("rb", buffering=0) as memory:
                    memory.seek(int(addresses.partition("-")[0], 16))
                    return _INDEX.unpack(memory.read(_INDEX.size))
    except (OSError, ValueError, struct.error):
        pass  # this is not Linux, or this Linux does not tell
    return None


def _locks(database: Path) -> Iterator[tuple[int, int, int]]:
    """Find the locks on the index: each with its process, and the first and the last byte of the file."""
    inode = _inode(database)
    try:
        lines = LOCKS.read_text().splitlines() if inode is not None else []
    except OSError:
        return
    for line in lines:
        found = _LINE.match(line)
        if found is not None and int(found["inode"]) == inode:
            yield int(found["pid"]), int(found["first"]), int(found["last"])


def _inode(database: Path) -> int | None:
    try:
        return Path(f"{database}-shm").stat().st_ino
    except OSError:
        return None
