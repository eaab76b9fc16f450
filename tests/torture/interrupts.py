"""Interrupts at chosen moments of every public call: what comes out, and what works afterwards.

``sys.setprofile`` is told of every call of a Python function and of the end of every call of a C function. Those are
the places where the interpreter looks for signals, and an exception raised there is in every way one that a signal
handler raised; but the moment is a number, and so the same in every run.

    report = torment(url, strikes=1000, seed=1)
"""

from __future__ import annotations

import logging
import random
import sqlite3
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import memstore
from memstore import EpisodicMemory, MemstoreError, RetentionPolicy, col

CAPACITY = 60
HERE = __file__


class Struck(KeyboardInterrupt):
    """An interrupt that is known again."""


class Ended(SystemExit):
    """What a handler of SIGTERM raises."""


@contextmanager
def interrupted(moment: int | None, error: BaseException) -> Iterator[list[int]]:
    """Raise ``error`` at this moment of what runs inside; None only counts the moments, into the list."""
    count = [0]

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event in ("call", "c_return") and frame.f_code.co_filename != HERE:
            count[0] += 1
            if count[0] == moment:
                sys.setprofile(None)
                raise error

    sys.setprofile(profile)
    try:
        yield count
    finally:
        sys.setprofile(None)


class World:
    """A memory, and another handle on its database, which stands for another process."""

    def __init__(self, url: str, seed: int) -> None:
        self.url = url
        self.seed = seed
        self.number = 0
        self.memory = self.opened()
        self.other = self.opened(consumer="other", buffer="other")
        self.twin = self.opened(consumer="twin")
        if not len(self.memory):
            self.memory.extend(self.rows(CAPACITY), loss=np.arange(1.0, CAPACITY + 1), domain=["a", "b"] * 30, level=1)
            self.other.extend(self.rows(4), loss=1.0)

    def opened(self, **settings: Any) -> EpisodicMemory:
        return memstore.open(self.url, capacity=CAPACITY, seed=self.seed, busy_timeout=5, **settings)

    def rows(self, count: int) -> dict[str, Any]:
        self.number += count
        return {"number": np.arange(self.number - count, self.number), "x": np.zeros((count, 4), np.float32)}

    def row(self) -> dict[str, Any]:
        return {name: value[0] for name, value in self.rows(1).items()}

    def close(self) -> None:
        for memory in (self.memory, self.other, self.twin):
            memory.close()


Call = Callable[[World], Any]


def _leased(world: World, then: str) -> None:
    batch = world.memory.lease(3, duration=0.01)
    getattr(world.memory, then)(batch)


def _reopened(world: World) -> None:
    world.number += 1
    with memstore.open(world.url, buffer=f"buffer {world.number}", signature={"y": ("float32", (2,))}) as memory:
        len(memory)


def _backed_up(world: World) -> None:
    target = Path(world.url.removeprefix("sqlite:///")).with_name("copy.db")
    target.unlink(missing_ok=True)
    memstore.backup(world.url, target)


def _closed(world: World) -> None:
    memory = world.opened()
    len(memory)
    memory.close()


CALLS: dict[str, Call] = {
    "add": lambda w: w.memory.add(w.row(), loss=2.0, tags=["t"], key=f"k{w.number}"),
    "extend": lambda w: w.memory.extend(w.rows(3), loss=[1.0, 9.0, 3.0], domain=["a", "b", "c"]),
    "sample": lambda w: w.memory.sample(8, beta=0.5),
    "sample where": lambda w: w.memory.sample(3, where=col.domain == "a"),
    "sample_groups": lambda w: w.memory.sample_groups(1, 2, by=col.level),
    "update": lambda w: w.memory.update(w.memory.sample(5), loss=np.linspace(1, 20, 5), step=1),
    "delete": lambda w: w.memory.delete(w.memory.query().order_by(col.id).limit(1).ids()),
    "lease": lambda w: w.memory.lease(2, duration=0.01),
    "release": lambda w: _leased(w, "release"),
    "renew": lambda w: _leased(w, "renew"),
    "consolidate": lambda w: w.memory.consolidate(RetentionPolicy(max_episodes=CAPACITY - 2)),
    "configure": lambda w: w.memory.configure(alpha=0.5 + w.number % 2 / 4),
    "save_checkpoint": lambda w: w.memory.save_checkpoint("run", {"w": np.arange(50), "n": 1}),
    "load_checkpoint": lambda w: w.memory.load_checkpoint("first"),
    "checkpoints": lambda w: w.memory.checkpoints(),
    "query": lambda w: w.memory.query().filter(col.loss > 2).order_by(col.loss).limit(5).all(),
    "history": lambda w: w.memory.history(episode=int(w.memory.sample(1).ids[0])),
    "hardest": lambda w: w.memory.hardest(3),
    "forgotten": lambda w: w.memory.forgotten(3),
    "loss_trend": lambda w: w.memory.loss_trend(),
    "stats": lambda w: w.memory.stats(),
    "check": lambda w: w.memory.check(),
    "get": lambda w: w.memory.get(int(w.memory.sample(1).ids[0])),
    "len": lambda w: len(w.memory),
    "recall_by_tags": lambda w: w.memory.recall_by_tags(["t"]),
    "recall": lambda w: w.memory.recall(np.zeros(4), on="x", limit=2),
    "wait": lambda w: w.memory.wait(min_size=2),
}
"""Calls that also stand inside ``transaction()``."""

ALONE: dict[str, Call] = {
    "open": _reopened,
    "close": _closed,
    "backup": _backed_up,
    "vacuum": lambda w: memstore.vacuum(w.url),
    "buffers": lambda w: memstore.buffers(w.url),
}
"""Calls that do not."""


@dataclass
class Report:
    """What came of the strikes."""

    strikes: Counter[str] = field(default_factory=Counter)
    swallowed: Counter[str] = field(default_factory=Counter)
    undone: int = 0
    done: int = 0
    times: list[float] = field(default_factory=list)
    undisturbed: list[float] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        def within(times: list[float]) -> str:
            return " / ".join(f"{1000 * value:.1f}" for value in np.quantile(times, [0.5, 0.99, 1.0]))

        return (
            f"{sum(self.strikes.values())} interrupts, {self.undone} undone, {self.done} done before, "
            f"{sum(self.swallowed.values())} swallowed by Python in a finalizer, {len(self.faults)} faults; the next "
            f"call took {within(self.times)} ms (half, 99 %, all), without an interrupt {within(self.undisturbed)} ms"
        )


def known(memory: EpisodicMemory) -> tuple[Any, ...]:
    """What a handle takes for the state of the buffer."""

    def look(snapshot: Any) -> tuple[Any, ...]:
        state = snapshot.state
        names = [name for name in state.blocks.heads.dtype.names if name != "stamp"]
        return state.counters, state.domain_names, [state.blocks.heads[name].tolist() for name in names]

    return memory._session.read(look)


def _unraisable(found: Counter[str], name: str) -> Callable[[Any], None]:
    def hook(args: Any) -> None:
        found[name] += 1

    return hook


class Tormentor:
    """Strikes calls of one world."""

    def __init__(self, world: World, seed: int, report: Report, limit: float) -> None:
        self.world = world
        self.random = random.Random(seed)
        self.report = report
        self.limit = limit
        world.memory.save_checkpoint("first", {})

    def torment(self, name: str, call: Call, strikes: int, *, inside: bool) -> None:
        """Strike one call so often."""
        world, label = self.world, f"{name} in a block" if inside else name

        def run() -> None:
            with world.memory.transaction() if inside else nullcontext():
                if inside:
                    world.memory.update(world.memory.sample(2), loss=1.5)
                call(world)

        run()
        before = known(world.twin)[0].revision
        with interrupted(None, Struck()) as moments:
            run()
        commits = known(world.twin)[0].revision - before
        for _ in range(strikes):
            moment = self.random.randrange(1, moments[0] + 1)
            kind = Ended if self.random.random() < 0.2 else Struck
            self._strike(label, run, moment, kind(), {0, commits} if inside else set(range(commits + 1)))

    def _strike(
        self, label: str, run: Callable[[], None], moment: int, error: BaseException, commits: set[int]
    ) -> None:
        world, report = self.world, self.report
        before = known(world.twin)[0].revision
        swallowed = sum(report.swallowed.values())
        hook, sys.unraisablehook = sys.unraisablehook, _unraisable(report.swallowed, label)
        caught: BaseException | None = None
        try:
            with interrupted(moment, error):
                run()
        except BaseException as exc:
            caught = exc  # with its traceback: nothing must depend on its end
        finally:
            sys.unraisablehook = hook
        if caught is None:
            return  # the moment was not reached this time, or in a finalizer
        report.strikes[label] += 1
        where = f"{label}, moment {moment}"
        if caught is not error and sum(report.swallowed.values()) == swallowed:
            report.faults.append(f"{where}: {caught!r} came out")
        try:
            self._after(where, before, commits)
        except (MemstoreError, AssertionError) as exc:
            report.faults.append(f"{where}: {exc!r}")
        del caught

    def _after(self, where: str, before: int, commits: set[int]) -> None:
        self._use(self.report.times)
        world, report = self.world, self.report
        mine, stored = known(world.memory), known(world.twin)
        assert mine == stored, "a stale state"
        change = stored[0].revision - before - 1  # the checkpoint's
        assert change in commits, f"{change} commits of {commits}"
        report.undone += not change
        report.done += bool(change)
        session = world.memory._session
        held = (session._writing.holder, session._drawing.holder, session._block, session.database.connections.in_use)
        assert held == (None, None, None, 0), f"still held: {held}"
        if world.url.startswith("sqlite"):
            with closing(sqlite3.connect(world.url.removeprefix("sqlite:///"), timeout=self.limit)) as connection:
                (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            assert not busy, "a snapshot that nobody reads any more keeps the log"
        if len(report.times) % 10 == 0:
            self._use(report.undisturbed)

    def _use(self, times: list[float]) -> None:
        """What must work at once: another process's write, the own next write and draw."""
        world = self.world
        for what, act in (
            ("another process's write", lambda: world.other.update([world.other.query().ids()[0]], loss=1.0)),
            ("the next write", lambda: world.memory.save_checkpoint("last", {"n": 1})),
            ("the next draw", lambda: world.memory.sample(3)),
        ):
            begun = time.perf_counter()
            act()
            times.append(time.perf_counter() - begun)
            assert times[-1] < self.limit, f"{what} took {times[-1]:.3f} s"


def torment(url: str, strikes: int, seed: int = 1, *, only: str = "", limit: float = 2.0) -> Report:
    """Strike every call so often, alone and inside ``transaction()``.

    Parameters
    ----------
    url : str
        A database of its own.
    limit : float
        Seconds that the next call of anyone may take.
    """
    report = Report()
    calls: list[tuple[str, Call, bool]] = [
        (name, call, inside) for inside in (False, True) for name, call in CALLS.items()
    ]
    calls += [(name, call, False) for name, call in ALONE.items()]
    world = World(url, seed)
    for number, (name, call, inside) in enumerate(calls):
        if only in name and not (name == "backup" and not url.startswith("sqlite")):
            Tormentor(world, seed + number, report, limit).torment(name, call, strikes, inside=inside)
            checked = world.memory.check()
            report.faults += [f"after {name}: {problem}" for problem in checked.problems]
    world.close()
    return report


if __name__ == "__main__":
    logging.getLogger("sqlalchemy.pool").setLevel(logging.CRITICAL)  # it tells of interrupts while it is given back
    begun = time.perf_counter()
    found = torment(sys.argv[1], int(sys.argv[2]), *map(int, sys.argv[3:]))
    print(*found.faults, found, f"{time.perf_counter() - begun:.0f} s", sep="\n")
