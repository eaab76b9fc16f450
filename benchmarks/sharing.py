"""The throughput of processes that share a database, and the cost for writers of sharing a buffer."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing.synchronize import Barrier
from typing import TYPE_CHECKING

import memstore
from benchmarks.workload import ALPHA, Workload, extend

if TYPE_CHECKING:
    from benchmarks.bench import Bench

LEARNERS = (0, 1, 2, 4)
"""Numbers of learners beside one writer."""
WRITERS = (1, 2, 4, 8)
"""Numbers of writers."""
START = 60.0
"""Seconds within which all processes must be ready."""

CREWS = sorted({*(1 + learners for learners in LEARNERS), *WRITERS})
"""Sizes of the crews of processes."""


class Crew:
    """As many processes as the largest crew needs, started once."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        barriers = {size: context.Barrier(size) for size in CREWS}
        self._pool = context.Pool(max(CREWS), initializer=_set_barriers, initargs=(barriers,))

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()
        self._pool.join()

    def work(self, workers: list[Worker]) -> tuple[float, float]:
        """Return the rows added and the rows drawn per second, by all processes together."""
        rates = self._pool.map(Worker.run, [replace(worker, crew=len(workers)) for worker in workers], chunksize=1)
        added, drawn = (
            sum(rate for worker, rate in zip(workers, rates, strict=True) if worker.learns is learns)
            for learns in (False, True)
        )
        return added, drawn


_barriers: dict[int, Barrier] = {}
"""Barriers of this process of the crew, by the number of processes that wait at each."""


def _set_barriers(barriers: dict[int, Barrier]) -> None:
    _barriers.update(barriers)


@dataclass(frozen=True)
class Worker:
    """Work as one process of a crew: add batches, or draw batches and write their losses back."""

    address: str
    buffer: str
    learns: bool
    batch: int
    seconds: float
    seed: int
    crew: int = 1

    def run(self) -> float:
        """Return the rows added or drawn per second, from the moment when all processes are ready."""
        ready = _barriers[self.crew]
        workload = Workload(self.seed)
        try:
            with memstore.open(self.address, buffer=self.buffer, create=False, seed=self.seed) as memory:
                step = self._learn(memory, workload) if self.learns else self._add(memory, workload)
                step()
                ready.wait(START)
                start, steps = time.perf_counter(), 0
                while (now := time.perf_counter()) < start + self.seconds:
                    step()
                    steps += 1
        except BaseException:
            ready.abort()
            raise
        return steps * self.batch / (now - start)

    def _learn(self, memory: memstore.EpisodicMemory, workload: Workload) -> Callable[[], None]:
        def step() -> None:
            batch = memory.sample(self.batch)
            memory.update(batch, loss=workload.drifted(batch.loss))

        return step

    def _add(self, memory: memstore.EpisodicMemory, workload: Workload) -> Callable[[], None]:
        # Made before the clock starts, because real actors get their data from environments.
        episodes = workload.episodes(self.batch)
        return lambda: extend(memory, episodes)


def sharing(bench: Bench) -> None:
    """Measure one writer beside more and more learners; then more and more writers, in one buffer and in one each."""

    def worker(number: int, *, learns: bool, address: str, buffer: str = "default") -> Worker:
        return Worker(address, buffer, learns, bench.batch, bench.budget.seconds, seed=100 + number)

    def note(name: str, value: float) -> None:
        bench.fact("sharing", name, value, "rows/s")

    with Crew() as crew:
        with bench.let_go():
            for learners in LEARNERS:
                workers = [worker(i, learns=i > 0, address=bench.address) for i in range(1 + learners)]
                added, drawn = crew.work(workers)
                beside = f"{learners} learner{'s' * (learners != 1)}"
                note(f"added by 1 writer beside {beside}", added)
                if learners:
                    note(f"drawn and updated by {beside} beside 1 writer", drawn)
        for writers in WRITERS:
            names = [f"buffer {i}" for i in range(writers)]
            for buffers, title in ((names[:1] * writers, "one buffer"), (names, "a buffer each")):
                with _buffers(bench, names) as address:
                    workers = [worker(i, learns=False, address=address, buffer=name) for i, name in enumerate(buffers)]
                    note(f"added by {writers} writer{'s' * (writers != 1)} to {title}", crew.work(workers)[0])


@contextmanager
def _buffers(bench: Bench, names: list[str]) -> Iterator[str]:
    """Make a database with these empty buffers."""
    label = f"shared-{bench.rows}"
    address = bench.place.address(label)
    try:
        for name in names:
            memstore.open(address, buffer=name, capacity=10**9, strategy="prioritized_loss", alpha=ALPHA).close()
        yield address
    finally:
        bench.place.drop([label])
