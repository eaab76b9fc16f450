"""The cases, each at one size of the database."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from rich.progress import Progress

import memstore
from benchmarks.baselines import HandWritten, InMemory
from benchmarks.fresh import CACHE_BYTES as SMALL_CACHE
from benchmarks.fresh import in_fresh_process
from benchmarks.measure import Budget, Fact, Results, Timing, in_turns
from benchmarks.workload import CACHE_BYTES, Episodes, Workload, extend, fill, open_memory

T = TypeVar("T")

CASES = ("draw", "update", "loop", "open", "memory", "extend")
COLD, WARM = "memstore, payloads from SQL", "memstore, payloads cached"
MEMSTORE = "memstore"
BY_HAND, TUNED = "by hand, SQLite's defaults", "by hand, memstore's pragmas"
ORDER_BY, BISECTION, GATHER = "ORDER BY random key", "numpy in memory, bisection", "numpy in memory, uniform"
LOOP_ADDS = 32


class Bench:
    """One size: fills its databases in ``folder`` and runs cases on them."""

    def __init__(self, folder: Path, rows: int, batches: list[int], budget: Budget, progress: Progress) -> None:
        self.rows, self.batches, self.budget = rows, batches, budget
        self.progress = progress
        self.results = Results()
        self.path = folder / f"memstore-{rows}.db"
        self.workload = Workload()
        self.memory = open_memory(self.path, cache_bytes=CACHE_BYTES, capacity=4 * rows + 10**6)
        fill(self.memory, self.workload, rows, progress)
        self.tuned = HandWritten(folder / f"tuned-{rows}.db", tuned=True)
        self.tuned.fill(Workload(), rows, progress)
        self.tuned.copy_to(folder / f"plain-{rows}.db")
        self.plain = HandWritten(folder / f"plain-{rows}.db", tuned=False)

    def run(self, cases: list[str]) -> Results:
        """Run the cases in the order of ``CASES``: from those that only read to those that grow the database."""
        each = (self.draw, self.update, self.loop, self.open, self.memory_use, self.extend)
        for case, measure in zip(CASES, each, strict=True):
            if case in cases:
                task = self.progress.add_task(f"{self.rows:,} rows: {case}", total=1)
                measure()
                self.progress.advance(task)
        self.memory.close()
        self.tuned.close()
        self.plain.close()
        return self.results

    def draw(self) -> None:
        """Prioritized batches with their payloads."""
        arrays = InMemory(Workload().all(self.rows))
        with open_memory(self.path, cache_bytes=0, seed=2) as cold:
            for k in self.batches:
                contenders: dict[str, Callable[[int], Any]] = {
                    COLD: cold.sample,
                    WARM: self.memory.sample,
                    ORDER_BY: self.tuned.draw,
                    BISECTION: arrays.draw_prioritized,
                    GATHER: arrays.draw_uniform,
                }
                self._measure("draw", k, functools.partial(int, k), contenders)

    def update(self) -> None:
        """Losses of a drawn batch written back, with history; by hand without."""
        k = max(self.batches)

        def prepare(redraw: bool) -> tuple[memstore.Batch, Any]:
            batch = self.memory.sample(k)
            return batch, self.workload.losses(k) if redraw else self.workload.drifted(batch.loss)

        contenders: dict[str, Callable[[tuple[memstore.Batch, Any]], Any]] = {
            MEMSTORE: lambda given: self.memory.update(given[0], loss=given[1]),
            BY_HAND: lambda given: self.plain.update(given[0].ids, given[1]),
            TUNED: lambda given: self.tuned.update(given[0].ids, given[1]),
        }
        self._measure("update", k, lambda: prepare(False), contenders)
        self._measure("update, losses redrawn", k, lambda: prepare(True), contenders)

    def loop(self) -> None:
        """A training step's use of its memory: add 32, draw, update what was drawn."""
        k = max(self.batches)

        def with_memstore(episodes: Episodes) -> None:
            extend(self.memory, episodes)
            batch = self.memory.sample(k)
            self.memory.update(batch, loss=self.workload.drifted(batch.loss))

        def by_hand(episodes: Episodes) -> None:
            self.tuned.extend(episodes)
            ids, loss, _ = self.tuned.draw(k)
            self.tuned.update(ids, self.workload.drifted(loss))

        contenders: dict[str, Callable[[Episodes], Any]] = {MEMSTORE: with_memstore, TUNED: by_hand}
        self._measure("loop", k, lambda: self.workload.episodes(LOOP_ADDS), contenders, self._growth(LOOP_ADDS))

    def open(self) -> None:
        """Fresh processes that open the file and draw one batch."""
        k = max(self.batches)
        with self._let_go():
            runs = [in_fresh_process("open", self.path, k) for _ in range(min(self.budget.max_rounds, 9))]
        for name in ("import", "open", "draw", "total"):
            value = statistics.median(run[name] for run in runs) * 1e3
            self.results.facts.append(Fact("open", self.rows, name, value, "ms"))

    def memory_use(self) -> None:
        """A fresh process that draws many batches."""
        with self._let_go():
            used = in_fresh_process("memory", self.path, max(self.batches), draws=5 * self.budget.max_rounds)
        for name, value in used.items():
            self.results.facts.append(Fact("memory", self.rows, name, value / 2**20, "MiB"))
        self.results.facts.append(Fact("memory", self.rows, "cache budget", SMALL_CACHE / 2**20, "MiB"))

    def extend(self) -> None:
        """Batches of new episodes, with losses and without; then at capacity, where as many leave."""
        k = max(self.batches)
        contenders: dict[str, Callable[[Episodes], Any]] = {
            MEMSTORE: lambda episodes: extend(self.memory, episodes),
            BY_HAND: self.plain.extend,
            TUNED: self.tuned.extend,
        }
        for case, measured in (("extend", True), ("extend, never measured", False)):
            prepare = functools.partial(self.workload.episodes, k, measured=measured)
            self._measure(case, k, prepare, contenders, self._growth(k))
        self.memory.configure(capacity=len(self.memory))
        contenders = {
            MEMSTORE: lambda episodes: extend(self.memory, episodes),
            BY_HAND: self.plain.replace_easiest,
            TUNED: self.tuned.replace_easiest,
        }
        self._measure("extend at capacity", k, functools.partial(self.workload.episodes, k), contenders)

    def _growth(self, batch: int) -> int:
        """Rounds that at most double the database, so that a size stays what it says."""
        return max(20, self.rows // batch)

    @contextmanager
    def _let_go(self) -> Iterator[None]:
        """Close the file, so that a fresh process is the first to open it and finds no WAL; then open it again."""
        self.memory.close()
        yield
        self.memory = open_memory(self.path, cache_bytes=CACHE_BYTES)

    def _measure(
        self,
        case: str,
        batch: int,
        prepare: Callable[[], T],
        contenders: dict[str, Callable[[T], Any]],
        most: int | None = None,
    ) -> None:
        rounds = self.budget.max_rounds if most is None else min(most, self.budget.max_rounds)
        budget = replace(self.budget, max_rounds=rounds)
        for place, (name, taken) in enumerate(in_turns(budget, prepare, contenders).items()):
            seconds, cpu = zip(*taken, strict=True)
            self.results.timings.append(Timing(case, self.rows, batch, name, seconds, cpu, reference=place == 0))
