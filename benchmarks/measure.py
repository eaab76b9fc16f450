"""Timing: contenders take turns round by round, so that whatever disturbs one disturbs all."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")

WARMUPS = 40
"""Calls before the clock counts: page caches fill, and the WAL of a fresh process grows to its full size, which makes
its first dozens of commits slower than all that follow. Slow contenders get two."""


def p95(values: Sequence[float]) -> float:
    """The 95th percentile; the largest where there are few."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


@dataclass(frozen=True)
class Budget:
    """How long to measure one group of contenders."""

    seconds: float
    max_rounds: int = 300
    min_rounds: int = 40
    """Of the contender under test."""
    min_slow: int = 3
    """Of one that takes much longer."""


@dataclass(frozen=True)
class Timing:
    """What one contender took in one case, per call."""

    database: str
    case: str
    rows: int
    batch: int
    contender: str
    seconds: tuple[float, ...]
    cpu: tuple[float, ...]
    """Seconds of processor time in this process, not in a server: what a busy machine changes least."""
    reference: bool = False
    """Whether the others of its group are compared with this one."""

    @property
    def group(self) -> tuple[str, str, int, int]:
        """Those that were measured in turns."""
        return self.database, self.case, self.rows, self.batch

    @property
    def median(self) -> float:
        """Seconds."""
        return statistics.median(self.seconds)

    @property
    def median_cpu(self) -> float:
        """Seconds."""
        return statistics.median(self.cpu)

    @property
    def mean(self) -> float:
        """Seconds."""
        return statistics.fmean(self.seconds)

    @property
    def p95(self) -> float:
        """Seconds; the largest where there are few."""
        return p95(self.seconds)


@dataclass(frozen=True)
class Fact:
    """A figure that is no series."""

    database: str
    case: str
    rows: int
    name: str
    value: float
    unit: str


@dataclass
class Results:
    """Everything measured in one run."""

    timings: list[Timing] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)

    def timing(self, database: str, case: str, rows: int, batch: int, contender: str) -> Timing | None:
        """One of them, if it was measured."""
        wanted = (database, case, rows, batch)
        return next((t for t in self.timings if t.group == wanted and t.contender == contender), None)

    def reference(self, timing: Timing) -> Timing | None:
        """What a timing is compared with; None for the reference itself."""
        if timing.reference:
            return None
        return next((t for t in self.timings if t.group == timing.group and t.reference), None)

    def fact(self, database: str, case: str, rows: int, name: str) -> float | None:
        """The value of a fact, if it was measured."""
        wanted = (database, case, rows, name)
        return next((f.value for f in self.facts if (f.database, f.case, f.rows, f.name) == wanted), None)


def in_turns(
    budget: Budget, prepare: Callable[[], T], contenders: Mapping[str, Callable[[T], Any]]
) -> dict[str, list[tuple[float, float]]]:
    """Seconds and processor seconds per call of each contender, the first of which is the one under test.

    Every round prepares one input outside the clock and gives it to all. A contender so slow that it would use up
    more than the budget sits out rounds; each gets at least ``min_slow``.
    """
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    cost = dict.fromkeys(contenders, math.inf)
    for warmup in range(min(WARMUPS, budget.max_rounds)):
        given = prepare()
        for name, run in contenders.items():
            if warmup < 2 or cost[name] * WARMUPS < budget.seconds:
                cost[name] = min(cost[name], _timed(run, given)[0])
    first = next(iter(cost.values()))
    rounds = min(budget.max_rounds, max(budget.min_rounds, int(budget.seconds / first)))
    most = max(1, rounds // budget.min_slow)
    strides = {name: max(1, min(most, math.ceil(rounds * each / (4 * budget.seconds)))) for name, each in cost.items()}
    order = list(contenders)
    gc.collect()
    for number in range(rounds):
        given = prepare()
        order.append(order.pop(0))
        for name in order:
            if number % strides[name] == 0:
                taken[name].append(_timed(contenders[name], given))
    return taken


def _timed(run: Callable[[T], Any], given: T) -> tuple[float, float]:
    start, cpu = time.perf_counter(), time.process_time()
    run(given)
    return time.perf_counter() - start, time.process_time() - cpu
