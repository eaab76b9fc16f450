"""The cases. Each measures one database of one size."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable, Mapping
from typing import Any

import memstore
from benchmarks.baselines import InMemory
from benchmarks.bench import Bench
from benchmarks.conditions import conditions
from benchmarks.fresh import CACHE_BYTES as SMALL_CACHE
from benchmarks.fresh import in_fresh_process
from benchmarks.history import history
from benchmarks.learning import learning
from benchmarks.network import network
from benchmarks.sharing import sharing
from benchmarks.workload import Episodes, Workload, extend, open_memory

COLD, WARM = "memstore, payloads from SQL", "memstore, payloads cached"
MEMSTORE = "memstore"
ORDER_BY, BISECTION, GATHER = "ORDER BY random key", "numpy in memory, bisection", "numpy in memory, uniform"
LOOP_ADDS = 32
"""Episodes that each round of the loop adds."""


def draw(bench: Bench) -> None:
    """Draw prioritized batches with their payloads."""
    arrays = InMemory(Workload().all(bench.rows))
    with open_memory(bench.address, cache_bytes=0, seed=2) as cold:
        for k in bench.batches:
            contenders: dict[str, Callable[[int], Any]] = {
                COLD: cold.sample,
                WARM: bench.memory.sample,
                ORDER_BY: bench.tuned.draw,
                BISECTION: arrays.draw_prioritized,
                GATHER: arrays.draw_uniform,
            }
            bench.measure("draw", k, functools.partial(int, k), contenders)


def update(bench: Bench) -> None:
    """Write the losses of a drawn batch back: memstore with history, the hand-written code without."""
    k = bench.batch

    def prepare(redraw: bool) -> tuple[memstore.Batch, Any]:
        batch = bench.memory.sample(k)
        return batch, bench.workload.losses(k) if redraw else bench.workload.drifted(batch.loss)

    contenders: dict[str, Callable[[tuple[memstore.Batch, Any]], Any]] = {
        MEMSTORE: lambda given: bench.memory.update(given[0], loss=given[1]),
        bench.plain.name: lambda given: bench.plain.update(given[0].ids, given[1]),
        bench.tuned.name: lambda given: bench.tuned.update(given[0].ids, given[1]),
    }
    bench.measure("update", k, lambda: prepare(False), contenders)
    bench.measure("update, losses redrawn", k, lambda: prepare(True), contenders)


def loop(bench: Bench) -> None:
    """A training step's use of its memory: add 32, draw, update what was drawn."""
    k = bench.batch

    def with_memstore(episodes: Episodes) -> None:
        extend(bench.memory, episodes)
        batch = bench.memory.sample(k)
        bench.memory.update(batch, loss=bench.workload.drifted(batch.loss))

    def by_hand(episodes: Episodes) -> None:
        bench.tuned.extend(episodes)
        ids, loss, _ = bench.tuned.draw(k)
        bench.tuned.update(ids, bench.workload.drifted(loss))

    contenders: dict[str, Callable[[Episodes], Any]] = {MEMSTORE: with_memstore, bench.tuned.name: by_hand}
    bench.measure("loop", k, lambda: bench.workload.episodes(LOOP_ADDS), contenders, bench.growth(LOOP_ADDS))


def open_(bench: Bench) -> None:
    """Open the database in fresh processes and draw one batch in each."""
    with bench.let_go():
        times = min(bench.budget.max_rounds, 9)
        runs = [in_fresh_process("open", bench.address, bench.batch) for _ in range(times)]
    for name in ("import", "open", "draw", "total"):
        bench.fact("open", name, statistics.median(run[name] for run in runs) * 1e3, "ms")


def memory(bench: Bench) -> None:
    """Measure the peak memory of a fresh process that draws with a small cache."""
    with bench.let_go():
        used = in_fresh_process("memory", bench.address, bench.batch, draws=5 * bench.budget.max_rounds)
    for name, value in {**used, "cache budget": float(SMALL_CACHE)}.items():
        bench.fact("memory", name, value / 2**20, "MiB")


def extend_(bench: Bench) -> None:
    """Add batches of new episodes, with losses and without; then at capacity, where as many episodes leave."""
    k = bench.batch

    def ours(episodes: Episodes) -> None:
        extend(bench.memory, episodes)

    hands = (bench.plain, bench.tuned)
    contenders: dict[str, Callable[[Episodes], Any]] = {MEMSTORE: ours, **{hand.name: hand.extend for hand in hands}}
    for case, measured in (("extend", True), ("extend, never measured", False)):
        prepare = functools.partial(bench.workload.episodes, k, measured=measured)
        bench.measure(case, k, prepare, contenders, bench.growth(k))
    bench.memory.configure(capacity=len(bench.memory))
    contenders = {MEMSTORE: ours, **{hand.name: hand.replace_easiest for hand in hands}}
    bench.measure("extend at capacity", k, functools.partial(bench.workload.episodes, k), contenders)


CASES: Mapping[str, Callable[[Bench], None]] = {
    "draw": draw,
    "update": update,
    "loop": loop,
    "open": open_,
    "memory": memory,
    "network": network,
    "sharing": sharing,
    "learning": learning,
    "history": history,
    "conditions": conditions,
    "extend": extend_,
}
"""The cases in the order in which they run: first those that only read, last those that grow the database."""

LARGEST_ONLY = frozenset({"network", "sharing", "learning", "history"})
"""Cases that run only at the largest size."""


def run(bench: Bench, names: list[str]) -> None:
    """Run the cases of these names."""
    for name, measure in CASES.items():
        if name in names:
            task = bench.progress.add_task(f"{bench.place.name}, {bench.rows:,} rows: {name}", total=1)
            measure(bench)
            bench.progress.advance(task)
