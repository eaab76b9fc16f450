"""What a strategy asks, and of whom: a request, and the pool of episodes that it draws from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from memstore.buffer.snapshot import Located, Snapshot
from memstore.buffer.strata import Ints
from memstore.draws.conditions import Episodes, Flags
from memstore.draws.laws import Law
from memstore.draws.population import Demand, Population
from memstore.queries.columns import Condition


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked of a draw.

    Parameters
    ----------
    count : int
        Rows wanted. Without replacement, all rows that are left if they are fewer.
    rng : numpy.random.Generator
        All chance comes from it.
    taken : Located
        Rows of the pool that must not be drawn: they are leased, or drawn already.
    replacement : bool
        True if a row may be drawn twice.
    exact : bool
        True if a scan may be made to know the probabilities.
    weighted : bool
        True if importance weights are wanted.
    """

    count: int
    rng: np.random.Generator
    taken: Located = field(default_factory=Located.none)
    replacement: bool = False
    exact: bool = False
    weighted: bool = False

    def of(self, count: int) -> Request:
        """Return the same request for another count."""
        return replace(self, count=count)

    def after(self, drawn: Located, count: int) -> Request:
        """Return the request for ``count`` more rows when these are drawn."""
        taken = self.taken if self.replacement else Located.join([self.taken, drawn])
        return replace(self, count=count, taken=taken)


class Pool(Protocol):
    """The episodes that a draw is from, all of one snapshot.

    Strategies ask only this. How a pool finds its rows, by strata or otherwise, is its own affair.
    """

    snapshot: Snapshot
    condition: Condition
    """The condition that episodes must pass; ``EVERY`` if the pool is the whole buffer."""

    @property
    def live(self) -> int:
        """How many live episodes may be candidates; not all of them need to pass the condition."""

    def passing(self, rows: Located) -> Flags:
        """Flag the rows that are in the pool."""

    def episodes(self, rows: Located) -> Episodes:
        """Return what is known of these rows."""

    def draw(self, law: Law, request: Request) -> Located:
        """Draw rows in proportion to their weights by the law."""

    def draw_evenly(self, request: Request) -> Located:
        """Draw rows that all have the same probability."""

    def domains(self) -> tuple[Ints, Ints]:
        """Return the numbers of the domains that hold episodes of the pool, ascending, and how many each holds."""

    def draw_quotas(self, request: Request, quotas: Ints) -> Located:
        """Draw so many rows of each of ``domains()``, evenly inside, and return them in random order."""

    def log2_total(self, law: Law, *, exact: bool) -> float | None:
        """Return log2 of the sum of all weights; None if only a scan would tell and ``exact`` does not allow one."""

    def log2_least(self, law: Law) -> float:
        """Return log2 of the smallest weight in the whole buffer, whatever the condition."""

    def scan(self) -> Population:
        """Return all episodes of the pool, in id order; a draw makes this list at most once."""

    def find_all(self, demand: Demand) -> Population:
        """Return all episodes of the buffer that meet the demand, from what the process knows if it can."""
