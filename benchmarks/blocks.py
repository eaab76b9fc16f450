"""``python -m benchmarks.blocks 1000000:10``: draws, updates and adds on blocks in memory (rows:domains), no database.

Milliseconds of the processor that a call takes, so that other programs disturb little: median, 95th percentile, most.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TypeVar

import numpy as np

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.order import oldest, smallest_losses
from memstore.buffer.blocks.views import Views
from memstore.buffer.blocks.weights import Law
from memstore.draws.even import balanced, domain_counts, uniform
from memstore.draws.weighted import Drawn, drawn, weighted

T = TypeVar("T")

OWN, OTHER = Law(0.6, 1e-6), Law(1.0, 1e-6)
TOP = 1e3
LOOPS = 230
MERGE_EVERY = 115
"""Loops of 288 entries that fill a window of 32,768."""


class Loop:
    """Add 32 at capacity, draw 256, update 256, with losses that have nothing to do with the old ones."""

    def __init__(self, rows: int, domains: int) -> None:
        self.rng = np.random.default_rng(1)
        self.domains, self.inserted, self.events = domains, 0, 0
        self.copy, self.views = Copy.of(OWN), Views()
        self.took: dict[str, list[float]] = {}
        while self.inserted < rows:
            self.add(min(16_384, rows - self.inserted))

    def timed(self, name: str, work: Callable[[], T]) -> T:
        """Do it, and note how long it took."""
        start = time.thread_time()
        result = work()
        self.took.setdefault(name, []).append((time.thread_time() - start) * 1e3)
        return result

    def add(self, count: int) -> None:
        """Append newcomers."""
        ids = np.arange(self.inserted + 1, self.inserted + count + 1)
        domains, loss = self.rng.integers(1, self.domains + 1, count), self.rng.lognormal(0, 1, count)
        self.copy = self.timed(f"append {min(count, 32)}", lambda: self.copy.appended(ids, domains, loss))
        self.inserted += count

    def evict(self) -> None:
        """Let the oldest 32 leave."""
        first = oldest(self.copy, 32)
        self.copy = self.copy.departed(self.copy.locate(first.ids, first.domains))

    def draw(self, count: int, law: Law) -> Drawn:
        """Draw in proportion to weight."""
        view = self.views.get(self.copy, law)
        return drawn(self.copy, weighted(self.copy, view, TOP, self.rng, count))

    def update(self, batch: Drawn) -> None:
        """Give new losses."""
        found = self.copy.locate(batch.slots.ids, batch.domains)
        loss, event = self.rng.lognormal(0, 1, len(batch.places)), np.arange(len(batch.places)) + self.events + 1
        self.copy = self.copy.patched(found, loss, found.slots.count + 1, event)
        self.events += len(batch.places)

    def even(self) -> Drawn:
        """Draw by quotas of the domains."""
        view = self.views.get(self.copy)
        shares = np.ones(len(domain_counts(self.copy, view)[0]))
        return drawn(self.copy, balanced(self.copy, view, self.rng, 256, shares))

    def once(self) -> None:
        """Do everything once."""
        self.timed("evict 32", self.evict)
        self.add(32)
        batch = self.timed("draw 256", lambda: self.draw(256, OWN))
        self.timed("draw 32", lambda: self.draw(32, OWN))
        self.timed("update 256", lambda: self.update(batch))
        self.timed("draw 256, another alpha", lambda: self.draw(256, OTHER))
        self.timed("draw 256, uniform", lambda: uniform(self.copy, self.views.get(self.copy), self.rng, 256))
        self.timed("draw 256, by domains", self.even)
        self.timed("find the 32 smallest losses", lambda: smallest_losses(self.copy, 32))


def main(cases: list[str]) -> None:
    """Run the cases and print what they took."""
    for case in cases or ["100000:10", "1000000:10", "1000000:10000"]:
        rows, domains = map(int, case.split(":"))
        loop = Loop(rows, domains)
        loop.took.clear()
        for turn in range(LOOPS):
            loop.once()
            if turn % MERGE_EVERY == MERGE_EVERY - 1:
                loop.copy = loop.timed("merge", loop.copy.merged)
        copy = loop.copy
        tables = copy.heads.nbytes + copy.page.nbytes + copy.directory.keys.nbytes + copy.directory.order.nbytes
        print(f"{rows} rows, {domains} domains, {len(copy)} blocks")
        print(f"  bytes a row: pages {copy.pages.size / rows:.1f}, heads and directory {tables / rows:.2f}")
        for name, times in loop.took.items():
            print(f"  {name:28s} {np.median(times):7.3f} {np.quantile(times, 0.95):7.3f} {max(times):7.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
