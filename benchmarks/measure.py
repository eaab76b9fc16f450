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
"""Calls before the clock counts. They fill page caches, and let the log of a fresh process grow to its full size: until
then, dozens of commits are slower than all later ones. Slow contenders get two of these calls."""


def p95(values: Sequence[float]) -> float:
    """Return the 95th percentile; with few values, the largest."""
    return sorted(values)[math.ceil(0.95 * len(values)) - 1]


@dataclass(frozen=True)
class Budget:
    """How long to measure one group of contenders."""

    seconds: float
    max_rounds: int = 300
    min_rounds: int = 40
    """Least number of rounds of the contender under test."""
    min_slow: int = 3
    """Least number of rounds of a contender that takes much longer."""


@dataclass(frozen=True)
class Timing:
    """The times of one contender in one case, per call."""

    database: str
    case: str
    rows: int
    batch: int
    contender: str
    seconds: tuple[float, ...]
    cpu: tuple[float, ...]
    """Seconds of processor time in this process, without those of a server. A busy machine changes them least."""
    reference: bool = False
    """True if the others of its group are compared with this one."""

    @property
    def group(self) -> tuple[str, str, int, int]:
        """Timings with the same key were measured in turns."""
        return self.database, self.case, self.rows, self.batch

    @property
    def median(self) -> float:
        """Median in seconds."""
        return statistics.median(self.seconds)

    @property
    def median_cpu(self) -> float:
        """Median processor time in seconds."""
        return statistics.median(self.cpu)

    @property
    def mean(self) -> float:
        """Mean in seconds."""
        return statistics.fmean(self.seconds)

    @property
    def p95(self) -> float:
        """The 95th percentile in seconds; with few values, the largest."""
        return p95(self.seconds)


@dataclass(frozen=True)
class Fact:
    """A single figure."""

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
        """Return one timing; None if it was not measured."""
        wanted = (database, case, rows, batch)
        return next((t for t in self.timings if t.group == wanted and t.contender == contender), None)

    def reference(self, timing: Timing) -> Timing | None:
        """Return the timing with which this one is compared; None for the reference itself."""
        if timing.reference:
            return None
        return next((t for t in self.timings if t.group == timing.group and t.reference), None)

    def fact(self, database: str, case: str, rows: int, name: str) -> float | None:
        """Return the value of a fact; None if it was not measured."""
        wanted = (database, case, rows, name)
        return next((f.value for f in self.facts if (f.database, f.case, f.rows, f.name) == wanted), None)


def in_turns(
    budget: Budget, prepare: Callable[[], T], contenders: Mapping[str, Callable[[T], Any]]
) -> dict[str, list[tuple[float, float]]]:
    """Return seconds and processor seconds per call of each contender. The first contender is under test.

    Every round prepares one input, which is not timed, and gives it to all contenders. A contender that is so slow that
    it would use up more than the budget skips rounds; each gets at least ``min_slow`` rounds.
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
