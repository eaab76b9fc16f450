"""Two versions of memstore in one run: ``python -m benchmarks --against COMMIT``.

The other commit is extracted to a temporary folder. Each version runs from its own code, in a process of its own, on a
database of its own. The two take turns, call by call, so that whatever disturbs one of them disturbs both.

The measured loop is a training step's use of its memory: add 32 episodes, draw 256 by priority with their payloads of
80 bytes, and update the 256 with losses that are drawn anew at random. Each of the three calls is measured alone too.

This file is also the program of those processes. Its own imports must therefore not lead to memstore.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

if TYPE_CHECKING:
    from benchmarks.measure import Budget
    from benchmarks.places import Place

ROOT = Path(__file__).resolve().parents[1]
ADDED, DRAWN = 32, 256
"""Episodes that one call adds, and episodes that one call draws or updates."""
LOOP, ADD, DRAW, UPDATE = "loop", f"add {ADDED}", f"draw {DRAWN}", f"update {DRAWN}"
CALLS = (LOOP, ADD, DRAW, UPDATE)
WARMUPS = 40
"""Calls of each version before the clock counts: caches fill, and the write-ahead log grows to its full size."""
FILL_BATCH = 16_384
"""Episodes that one commit adds when a database is filled."""


@dataclass(frozen=True)
class Compared:
    """The times of one call: a pair for each round, the other commit's time first.

    Attributes
    ----------
    seconds : tuple of (float, float)
        Wall-clock time.
    cpu : tuple of (float, float)
        Processor time in seconds of the version's process, without that of a server. A busy machine changes it least.
    """

    database: str
    call: str
    rows: int
    seconds: tuple[tuple[float, float], ...]
    cpu: tuple[tuple[float, float], ...]

    def figures(self) -> dict[str, Any]:
        """Return median, 95th percentile and median processor time in milliseconds, each with its ratio."""
        found: dict[str, Any] = {
            "database": self.database,
            "call": self.call,
            "rows": self.rows,
            "rounds": len(self.seconds),
        }
        for name, pairs, share in (("median", self.seconds, 0.5), ("p95", self.seconds, 0.95), ("cpu", self.cpu, 0.5)):
            other, here = np.quantile(pairs, share, axis=0).tolist()
            found |= {f"{name}_other": other * 1e3, f"{name}_here": here * 1e3, f"{name}_ratio": here / other}
        return found


def compare(places: Sequence[Place], commit: str, rows: Sequence[int], budget: Budget) -> list[Compared]:
    """Measure every call at every place and size; a commit that git does not know ends the program."""
    found = []
    with checked_out(commit) as other:
        for place in places:
            for size in rows:
                labels = [f"against-{name}-{size}" for name in ("other", "here")]
                addresses = [place.address(label) for label in labels]
                with (
                    closing(Version(other, addresses[0], size)) as old,
                    closing(Version(ROOT, addresses[1], size)) as new,
                ):
                    found += [_measured(place.name, call, size, (old, new), budget) for call in CALLS]
                place.drop(labels)
    return found


def _measured(database: str, call: str, rows: int, versions: tuple[Version, Version], budget: Budget) -> Compared:
    warm = [[version.run(call)[0] for version in versions] for _ in range(min(WARMUPS, budget.max_rounds))]
    rounds = min(budget.max_rounds, max(budget.min_rounds, int(budget.seconds / max(warm[-1]))))
    pairs = []
    for number in range(rounds):
        # Each version goes first in every other round.
        turn = versions if number % 2 else versions[::-1]
        taken = {version: version.run(call) for version in turn}
        pairs.append([taken[version] for version in versions])
    seconds, cpu = (tuple((old[part], new[part]) for old, new in pairs) for part in (0, 1))
    return Compared(database, call, rows, seconds, cpu)


def table(compared: Sequence[Compared], commit: str) -> Table:
    """Return the figures as a table; the ratios are those of this checkout to the other commit."""
    made = Table(title=f"{commit} and this checkout; x: how many times as long this checkout takes")
    for name in ("database", "call", "rows", "rounds"):
        made.add_column(name, no_wrap=True, justify="left" if name in ("database", "call") else "right")
    for name in ("median", "p95", "cpu"):
        for column in (f"{name} ms", "here", "x"):
            made.add_column(column, no_wrap=True, justify="right")
    for one in compared:
        found = one.figures()
        cells = [one.database, one.call, f"{one.rows:,}", str(found["rounds"])]
        for name in ("median", "p95", "cpu"):
            cells += [f"{found[f'{name}_{part}']:.2f}" for part in ("other", "here", "ratio")]
        made.add_row(*cells)
    return made


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


class Version:
    """One version at work: a process that imports memstore from the folder ``root``, and its filled database."""

    def __init__(self, root: Path, address: str, rows: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__],
            env=os.environ | {"PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        # Not an argument of the command, for it may hold a password.
        self._ask({"address": address, "rows": rows, "root": str(root)})

    def run(self, call: str) -> tuple[float, float]:
        """Make a call once; return its seconds and its seconds of processor time, as measured in the process."""
        seconds, cpu = self._ask(call)
        return seconds, cpu

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _ask(self, question: Any) -> Any:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            sys.exit(f"a version ended with exit code {self._process.wait()}; its message stands above")
        return json.loads(answer)


class Trainer:
    """The calls of a training loop on one memory, through the names that every version has."""

    def __init__(self, memory: Any, rows: int) -> None:
        self.memory = memory
        self.rng = np.random.default_rng(7)
        for start in range(0, rows, FILL_BATCH):
            self.add(*self.episodes(min(FILL_BATCH, rows - start)))

    def add(self, payload: dict[str, Any], columns: dict[str, Any]) -> None:
        """Add episodes in one commit."""
        self.memory.extend(payload, **columns)

    def episodes(self, count: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return payload and columns of new episodes."""
        payload = {"input": self.rng.random((count, 16), np.float32), "target": self.rng.random((count, 4), np.float32)}
        domain = [f"domain-{number}" for number in self.rng.integers(0, 4, count).tolist()]
        return payload, {"domain": domain, "loss": self.losses(count)}

    def losses(self, count: int) -> Any:
        """Return new losses, lognormal."""
        return self.rng.lognormal(-1.0, 1.0, count)

    def run(self, call: str) -> tuple[float, float]:
        """Make a call once; return its seconds and its seconds of processor time."""
        episodes, losses = self.episodes(ADDED), self.losses(DRAWN)
        batch = self.memory.sample(DRAWN) if call == UPDATE else None
        start, cpu = time.perf_counter(), time.process_time()
        if call in (LOOP, ADD):
            self.add(*episodes)
        if call in (LOOP, DRAW):
            batch = self.memory.sample(DRAWN)
        if call in (LOOP, UPDATE):
            self.memory.update(batch, loss=losses)
        return time.perf_counter() - start, time.process_time() - cpu


def answer() -> None:
    """Fill a database, then make the calls that standard input asks for, until it ends."""
    import memstore

    asked = json.loads(sys.stdin.readline())
    if not Path(memstore.__file__).resolve().is_relative_to(Path(asked["root"]).resolve()):
        sys.exit(f"memstore comes from {memstore.__file__}, not from {asked['root']}")
    capacity = 4 * asked["rows"] + 10**6
    with memstore.open(asked["address"], capacity=capacity, strategy="prioritized_loss", alpha=0.6, seed=1) as memory:
        trainer = Trainer(memory, asked["rows"])
        print(json.dumps("filled"), flush=True)
        for line in sys.stdin:
            print(json.dumps(trainer.run(json.loads(line))), flush=True)


if __name__ == "__main__":
    answer()
