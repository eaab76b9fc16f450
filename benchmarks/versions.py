"""Versions of memstore at work: each from its own code, in a process of its own, on a database of its own."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import trainer

ROOT = Path(__file__).resolve().parents[1]
ONE_CORE = dict.fromkeys(("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@contextmanager
def checked_out(commit: str) -> Iterator[Path]:
    """Extract memstore as of a commit; yield the folder, and remove it at the end."""
    command = ["git", "-C", str(ROOT), "archive", "--format=zip", f"{commit}^{{commit}}", "memstore", "migrations"]
    done = subprocess.run(command, capture_output=True)
    if done.returncode:
        sys.exit(f"cannot extract the commit {commit!r}: {done.stderr.decode(errors='replace').strip()}")
    with TemporaryDirectory(prefix="memstore-against-") as folder:
        with zipfile.ZipFile(BytesIO(done.stdout)) as archive:
            archive.extractall(folder)
        yield Path(folder)


@dataclass(frozen=True)
class Taken:
    """The cost of a call.

    Attributes
    ----------
    seconds : float
        Wall-clock time.
    cpu : float
        Processor time in seconds of the version's process, and of a server of this machine that works for it. A busy
        machine changes it least.
    folds : int
        Number of folds that happened inside the call.
    log : int
        Bytes that the call wrote to SQLite's write-ahead log; 0 on PostgreSQL.
    """

    seconds: float
    cpu: float
    folds: int = 0
    log: int = 0

    def __add__(self, other: Taken) -> Taken:
        return Taken(self.seconds + other.seconds, self.cpu + other.cpu, self.folds + other.folds, self.log + other.log)


class Version:
    """One version at work: a process that imports memstore from the folder ``root``, and its database.

    Attributes
    ----------
    folds : bool
        True if this version has a ``fold``.
    """

    def __init__(
        self, root: Path, address: str, rows: int, domains: int, servers: Callable[[], list[int]] = list
    ) -> None:
        """Fill a database; ``servers`` gives the ids of the processes that serve it."""
        self._root, self._address, self._domains, self._servers = root, address, domains, servers
        capacity = 4 * rows + 10**6
        self._start(rows, {"capacity": capacity, "strategy": "prioritized_loss", "alpha": trainer.ALPHA})
        self._log = SqliteLog(Path(f"{address}-shm"))

    def run(self, call: str) -> Taken:
        """Make a call once; return its cost as measured in the process."""
        self._ask(call)
        self._log.grown()
        before = self._served()
        seconds, cpu, folds = self._ask("now")
        return Taken(seconds, cpu + self._served() - before, folds, self._log.grown())

    def loop(self) -> tuple[Taken, ...]:
        """Make the calls of a training loop once; return the cost of each."""
        return tuple(map(self.run, trainer.LOOP))

    def begin_window(self) -> None:
        """Go on until the log is folded by itself, if this version does that."""
        while self.folds and not self.run(trainer.REPLAY_MANY).folds:
            pass

    def kill(self) -> tuple[Taken, ...]:
        """Kill the process, and go on in a new one; return the cost of opening there and of the first draw."""
        self._process.kill()
        self._process.communicate()
        return self._start()

    def reopen(self) -> tuple[Taken, ...]:
        """Close the database after a write, and go on in a new process; return the cost as ``kill`` does."""
        self.run(trainer.UPDATE)
        self.close()
        return self._start()

    def close(self) -> None:
        """Close the database and end the process."""
        self._process.communicate()

    def _start(self, rows: int = 0, settings: dict[str, Any] | None = None) -> tuple[Taken, ...]:
        self._process = subprocess.Popen(
            [sys.executable, "-P", trainer.__file__],
            env=os.environ | ONE_CORE | {"PYTHONPATH": str(self._root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # Not an argument of the command, for it may hold a password.
        asked = {"address": self._address, "rows": rows, "domains": self._domains, "root": str(self._root)}
        self.folds, *costs = self._ask(asked | {"settings": settings or {}})
        self._pids = self._servers()
        return tuple(Taken(*cost) for cost in costs)

    def _served(self) -> float:
        """Return the seconds of processor time that servers have spent, as Linux counts them in nanoseconds."""
        files = [Path(f"/proc/{pid}/schedstat") for pid in self._pids]
        return sum(int(file.read_text().split()[0]) for file in files if file.exists()) / 1e9

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"a version ended with exit code {self._process.wait()}; its message stands above")
        return json.loads(answer)


class SqliteLog:
    """The growth of the write-ahead log of a SQLite file, read from the header of its index (the ``-shm`` file).

    https://sqlite.org/walformat.html#the_wal_index_header says where the header has the size of a page, the number of
    frames, and the salt, which changes when the log starts anew. The process that reads the file must not have the
    database open itself: to close a file takes SQLite's locks on it away.
    """

    HEADER = struct.Struct("=14xHI12xQ")
    FRAME_HEADER = 24

    def __init__(self, index: Path) -> None:
        self._index = index
        self._salt, self._bytes = self._read()

    def grown(self) -> int:
        """Return the bytes written since the last call. At most one transaction may lie between two calls."""
        before, (salt, size) = (self._salt, self._bytes), self._read()
        self._salt, self._bytes = salt, size
        return size - before[1] if salt == before[0] else size

    def _read(self) -> tuple[int, int]:
        try:
            with self._index.open("rb") as file:
                page, frames, salt = self.HEADER.unpack(file.read(self.HEADER.size))
        except FileNotFoundError:
            return 0, 0
        return salt, frames * (page + self.FRAME_HEADER)
