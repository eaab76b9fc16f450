"""Two versions of memstore in one run: ``python -m benchmarks --against COMMIT``.

The other commit is extracted to a temporary folder. The two versions take turns, call by call, so that whatever
disturbs one of them disturbs both. Each fills its databases once. Losses are drawn anew at random.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from functools import partial, reduce
from operator import methodcaller
from pathlib import Path
from statistics import fmean, median
from typing import TypeVar

from benchmarks import figures, trainer
from benchmarks.figures import Compared
from benchmarks.measure import Budget
from benchmarks.places import Place
from benchmarks.versions import ROOT, Taken, Version, checked_out

T = TypeVar("T")
Calls = tuple[Taken, ...]
Pair = tuple[Taken, Taken]
"""The other commit's call, and the one of this checkout."""

DOMAINS, MANY_DOMAINS = 10, 10_000
WARMUPS = 20
"""Loops of each version before the clock counts: caches fill, and the write-ahead log grows to its full size."""
LOOPS = 3
"""Most loops that are measured, in times of the largest number of rounds. The usual 600 are more than a window."""
FULL = 0.9
"""Share of a window that is filled before the memory is asked, or killed."""
FEW = 40
"""A database is opened, and each query is asked, in one of so many rounds."""


def compare(places: Sequence[Place], commit: str, rows: Sequence[int], budget: Budget) -> list[Compared]:
    """Measure at every place and size; a commit that git does not know ends the program."""
    found: list[Compared] = []
    with checked_out(commit) as other:
        for place in places:
            for size in rows:
                with _filled(place, size, DOMAINS, other) as versions:
                    comparison = Comparison(place.name, size, versions, budget)
                    window = comparison.loops()
                    comparison.calls()
                    comparison.window(window)
                    comparison.at_capacity()
                    found += comparison.found
                with _filled(place, size, MANY_DOMAINS, other) as versions:
                    comparison = Comparison(place.name, size, versions, budget)
                    comparison.many_domains()
                    found += comparison.found
    return found


@contextmanager
def _filled(place: Place, rows: int, domains: int, other: Path) -> Iterator[tuple[Version, Version]]:
    """Fill a database of each version; remove them at the end."""
    labels = [f"against-{name}-{rows}-{domains}" for name in ("other", "here")]
    with ExitStack() as stack:
        stack.callback(place.drop, labels)
        old, new = (
            stack.enter_context(closing(Version(root, address, rows, domains, partial(place.servers, address))))
            for root, address in zip((other, ROOT), map(place.address, labels), strict=True)
        )
        yield old, new


class Comparison:
    """The figures of two versions on databases of one size, at one place."""

    def __init__(self, database: str, rows: int, versions: tuple[Version, Version], budget: Budget) -> None:
        self.database, self.rows, self.versions, self.budget = database, rows, versions, budget
        self.found: list[Compared] = []

    def loops(self) -> int:
        """Measure training loops from one fold to the next; return their number."""
        for number in range(min(WARMUPS, self.budget.max_rounds)):
            self._turn(number, Version.loop)
        self._turn(0, Version.begin_window)
        pairs = [self._turn(0, Version.loop)]
        while len(pairs) < LOOPS * self.budget.max_rounds and not _whole(pairs[-1][1]).folds:
            pairs.append(self._turn(len(pairs), Version.loop))
        whole = _of_wholes(pairs)
        self._note(figures.LOOP, whole)
        if without_folds := [pair for pair in whole if not pair[1].folds]:
            self._note(figures.LOOP_WITHOUT_FOLDS, without_folds)
        self._values(figures.LOOP_RATE, "loops/s", whole, partial(_rate, 1), fmean)
        self._values(figures.LONGEST, "ms", whole, lambda loops: [1e3 * max(one.seconds for one in loops)])
        self._values(figures.LOG, "KiB", whole, lambda loops: [one.log / 1024 for one in loops if one.log])
        for part, call in enumerate(trainer.LOOP):
            self._note(call, [(other[part], here[part]) for other, here in pairs])
        return len(pairs)

    def calls(self) -> None:
        """Measure the other calls, each in turns; the first use of another law or condition apart."""
        for call in (trainer.DRAW_FEW, trainer.OTHER_ALPHA, trainer.ON_LOSS, trainer.ADD_ONE, trainer.EXTEND):
            work = methodcaller("run", call)
            first = self._turn(0, work)
            if call in (trainer.OTHER_ALPHA, trainer.ON_LOSS):
                self._note(f"{call}, first use", [first])
            pairs = self._turns(work)
            self._note(call, pairs)
        self._values(figures.EXTEND_RATE, "rows/s", pairs, partial(_rate, trainer.DRAWN), fmean)

    def window(self, loops: int) -> None:
        """Ask with a full window and after its fold; open after a kill with a full window, and after a close."""
        self._fill(loops)
        self._ask("window full")
        folded = [self._turn(0, methodcaller("run", trainer.FOLD))]
        self._values(figures.FOLD, "ms", folded, lambda folds: [one.seconds * 1e3 for one in folds if one.folds])
        self._ask("after a fold")
        self._fill(loops)
        self._open("after a kill", Version.kill)
        self._open("after a close", Version.reopen)

    def at_capacity(self) -> None:
        """Measure loops in which as many episodes leave as are added."""
        self._turn(0, methodcaller("run", trainer.FREEZE))
        self._note(figures.AT_CAPACITY, _of_wholes(self._turns(Version.loop)))

    def many_domains(self) -> None:
        """Measure loops, and their draws, with nearly as many domains as blocks."""
        pairs = self._turns(Version.loop)
        self._note(figures.MANY_DOMAINS_LOOP, _of_wholes(pairs))
        draw = trainer.LOOP.index(trainer.DRAW)
        self._note(figures.MANY_DOMAINS_DRAW, [(other[draw], here[draw]) for other, here in pairs])

    def _fill(self, loops: int) -> None:
        """Begin a window and fill most of it, in the versions that have windows."""
        for version in self.versions:
            if version.folds:
                version.begin_window()
                for _ in range(int(FULL * loops)):
                    version.loop()

    def _ask(self, state: str) -> None:
        for query in (trainer.MEAN_LOSS, trainer.LARGEST_LOSSES, trainer.ONE_EPISODE):
            self._note(f"{query}, {state}", self._some(methodcaller("run", query)))

    def _open(self, when: str, work: Callable[[Version], Calls]) -> None:
        pairs = self._some(work)
        self._note(f"open {when}", [(other[0], here[0]) for other, here in pairs])
        self._note(f"open {when}, and first draw", _of_wholes(pairs))

    def _turn(self, number: int, work: Callable[[Version], T]) -> tuple[T, T]:
        """Let both versions do it. Each goes first in every other round."""
        first, second = self.versions if number % 2 else self.versions[::-1]
        taken = {first: work(first), second: work(second)}
        return taken[self.versions[0]], taken[self.versions[1]]

    def _some(self, work: Callable[[Version], T]) -> list[tuple[T, T]]:
        """Do it a few times."""
        return [self._turn(number, work) for number in range(max(1, self.budget.max_rounds // FEW))]

    def _turns(self, work: Callable[[Version], T]) -> list[tuple[T, T]]:
        """Do it as often as the budget allows, after warming up."""
        warmups = min(WARMUPS // 4, self.budget.max_rounds)
        start = time.perf_counter()
        for number in range(warmups):
            self._turn(number, work)
        cost = (time.perf_counter() - start) / warmups
        rounds = min(self.budget.max_rounds, max(self.budget.min_rounds, int(2 * self.budget.seconds / cost)))
        return [self._turn(number, work) for number in range(rounds)]

    def _note(self, name: str, pairs: Sequence[Pair]) -> None:
        """Record the times of a call."""
        self._values(name, "ms", pairs, lambda calls: [one.seconds * 1e3 for one in calls], median)

    def _values(
        self,
        name: str,
        unit: str,
        pairs: Sequence[Pair],
        values: Callable[[Calls], list[float]],
        typical: Callable[[Iterable[float]], float] | None = None,
    ) -> None:
        """Record what each version's calls give, if they give something, and their typical processor time."""
        versions: list[Calls] = list(zip(*pairs, strict=True))
        other, here = (tuple(values(calls)) for calls in versions)
        cpu = None
        if typical is not None:
            cpu = (typical(one.cpu * 1e3 for one in versions[0]), typical(one.cpu * 1e3 for one in versions[1]))
        if other or here:
            self.found.append(Compared(self.database, self.rows, name, unit, other, here, cpu))


def _whole(calls: Calls) -> Taken:
    return reduce(Taken.__add__, calls)


def _rate(count: int, calls: Calls) -> list[float]:
    """Return the number of things a second, if each call does so many."""
    return [count / fmean(one.seconds for one in calls)]


def _of_wholes(pairs: Sequence[tuple[Calls, Calls]]) -> list[Pair]:
    return [(_whole(other), _whole(here)) for other, here in pairs]
