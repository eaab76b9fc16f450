"""What the cases share: filled databases of one size, at one place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

from rich.progress import Progress

from benchmarks.measure import Budget, Fact, Results, Timing, in_turns
from benchmarks.places import Place
from benchmarks.workload import CACHE_BYTES, Workload, fill, open_memory

T = TypeVar("T")


class Bench:
    """Filled databases at one place, on which the cases measure."""

    def __init__(self, place: Place, rows: int, batches: list[int], budget: Budget, progress: Progress) -> None:
        self.place, self.rows, self.batches, self.budget = place, rows, batches, budget
        self.progress = progress
        self.results = Results()
        self.workload = Workload()
        self.labels = [f"{kind}-{rows}" for kind in ("memstore", "tuned", "plain")]
        ours, tuned, plain = self.labels
        self.address = place.address(ours)
        self.memory = open_memory(self.address, cache_bytes=CACHE_BYTES, capacity=4 * rows + 10**6)
        fill(self.memory, self.workload, rows, progress)
        by_hand = place.by_hand(tuned, tuned=True)
        by_hand.fill(Workload(), rows, progress)
        by_hand.close()
        place.copy(tuned, plain)
        self.tuned = place.by_hand(tuned, tuned=True)
        self.plain = place.by_hand(plain, tuned=False)

    @property
    def batch(self) -> int:
        """Batch size of all cases but draws."""
        return max(self.batches)

    def close(self) -> None:
        """Close and remove the databases."""
        self.memory.close()
        self.tuned.close()
        self.plain.close()
        self.place.drop(self.labels)

    @contextmanager
    def let_go(self) -> Iterator[None]:
        """Close the database during the block, so that a fresh process is the first to open it; then open it again."""
        self.memory.close()
        yield
        self.memory = open_memory(self.address, cache_bytes=CACHE_BYTES)

    def growth(self, batch: int) -> int:
        """Return the number of rounds that at most double the database, so that its size stays about right."""
        return max(20, self.rows // batch)

    def fact(self, case: str, name: str, value: float, unit: str) -> None:
        """Record a single figure."""
        self.results.facts.append(Fact(self.place.name, case, self.rows, name, value, unit))

    def measure(
        self,
        case: str,
        batch: int,
        prepare: Callable[[], T],
        contenders: Mapping[str, Callable[[T], Any]],
        most: int | None = None,
    ) -> None:
        """Time contenders in turns, for at most ``most`` rounds. The first one is under test."""
        rounds = self.budget.max_rounds if most is None else min(most, self.budget.max_rounds)
        budget = replace(self.budget, max_rounds=rounds)
        for number, (name, taken) in enumerate(in_turns(budget, prepare, contenders).items()):
            seconds, cpu = zip(*taken, strict=True)
            timing = Timing(self.place.name, case, self.rows, batch, name, seconds, cpu, reference=number == 0)
            self.results.timings.append(timing)
