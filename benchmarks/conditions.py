"""Draws with a condition that a given percentage of episodes meets, each paired with a draw without a condition."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import memstore
from benchmarks.bench import Bench
from benchmarks.measure import p95
from benchmarks.workload import CACHE_BYTES, Workload, open_memory
from memstore import col

SHARES = (1, 2, 4, 8, 16, 32, 64, 100)
"""Percentages of the episodes that match the conditions."""
LIMIT = 2.5
"""Largest time of a draw with a condition, in times of a draw without one."""

STRATEGIES: dict[str, tuple[memstore.Strategy, float]] = {
    "prioritized_loss": (memstore.PrioritizedLoss(), 0.0),
    "uniform": (memstore.Uniform(), 0.0),
    "prioritized_recency": (memstore.PrioritizedRecency(), 0.0),
    "domain_balanced": (memstore.DomainBalanced(), 0.0),
    "mixed": (memstore.Mixed(), 0.0),
    "mixed, beta 0.4": (memstore.Mixed(), 0.4),
}
UPDATED = 256
"""Losses updated before each pair of draws."""
PAIRS = 20
"""Least number of rounds. A budget of time alone gives too few on a busy machine."""


def conditions(bench: Bench) -> None:
    """Pairs of draws with a loss update before each, as in a training loop."""
    label = "conditions"
    with open_memory(bench.place.address(label), cache_bytes=CACHE_BYTES, capacity=2 * bench.rows) as memory:
        _fill(memory, bench)
        for name, (strategy, beta) in STRATEGIES.items():
            # By a fresh handle: nothing is known yet.
            with open_memory(bench.place.address(label), cache_bytes=CACHE_BYTES) as handle:
                for share in SHARES:
                    _measure(bench, handle, name, share, {"strategy": strategy, "beta": beta})
    bench.place.drop([label])


def _fill(memory: memstore.EpisodicMemory, bench: Bench) -> None:
    """Levels 0 to 99, scattered."""
    workload = Workload()
    task = bench.progress.add_task(f"fill {bench.rows:,} rows: conditions", total=bench.rows)
    for episodes in workload.chunks(bench.rows):
        level = workload.rng.integers(0, 100, len(episodes)).tolist()
        memory.extend(episodes.payload, domain=episodes.domain, loss=episodes.loss, level=level)
        bench.progress.advance(task, len(episodes))


def _measure(bench: Bench, memory: memstore.EpisodicMemory, name: str, share: int, options: dict[str, Any]) -> None:
    plain = functools.partial(memory.sample, bench.batch, **options)
    behind = functools.partial(plain, where=col.level < share)
    plain()
    first, second = _seconds(behind), _seconds(behind)
    times: dict[int, list[tuple[float, float]]] = {0: [], 1: []}
    stop = time.perf_counter() + bench.budget.seconds
    fewest = min(PAIRS, bench.budget.max_rounds)
    while (done := len(times[0])) < fewest or (done < bench.budget.max_rounds and time.perf_counter() < stop):
        for which in (0, 1) if done % 2 else (1, 0):
            times[which].append(_after_update(bench, memory, (plain, behind)[which]))
    case = f"conditions, {name}, {share} % pass"
    bench.fact(case, "first use", first[0] * 1e3, "ms")
    bench.fact(case, "second use", second[0] * 1e3, "ms")
    for clock, what in enumerate(("time", "processor time")):
        without, within = ([taken[clock] for taken in times[which]] for which in (0, 1))
        bench.fact(case, f"{what}, no condition", statistics.median(without) * 1e3, "ms")
        bench.fact(case, f"{what}, ratio of medians", statistics.median(within) / statistics.median(without), "x")
        bench.fact(case, f"{what}, ratio of p95", p95(within) / p95(without), "x")


def _after_update(bench: Bench, memory: memstore.EpisodicMemory, draw: Callable[[], Any]) -> tuple[float, float]:
    batch = memory.sample(UPDATED)
    memory.update(batch, loss=bench.workload.drifted(batch.loss))
    return _seconds(draw)


def _seconds(draw: Callable[[], Any]) -> tuple[float, float]:
    """Of the clock, and of processor time in this process."""
    start, cpu = time.perf_counter(), time.process_time()
    draw()
    return time.perf_counter() - start, time.process_time() - cpu
