"""The two things that a strategy works with: a request, and the pool of episodes that it draws from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from memstore.buffer.snapshot import Located, Snapshot
from memstore.buffer.blocks.slots import Ints
from memstore.draws.conditions import Episodes, Flags
from memstore.draws.laws import Law
from memstore.draws.population import Demand, Population
from memstore.queries.columns import Condition


@dataclass(frozen=True, slots=True)
class Request:
    """A request for rows.

    Parameters
    ----------
    count : int
        Number of rows wanted. Without replacement, a pool with fewer rows left gives them all.
    rng : numpy.random.Generator
        Source of all random numbers.
    taken : Located
        Rows of the pool that must not be drawn, because they are leased or already drawn.
    replacement : bool
        True if a row may be drawn twice.
    exact : bool
        True if the draw may scan to compute the probabilities.
    weighted : bool
        True if the caller wants importance weights.
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
        """Return the request for ``count`` more rows after these rows were drawn."""
        taken = self.taken if self.replacement else Located.join([self.taken, drawn])
        return replace(self, count=count, taken=taken)


class Pool(Protocol):
    """The episodes of one snapshot that a draw chooses from.

    Strategies use only these members. They do not know how a pool finds its rows.
    """

    snapshot: Snapshot
    condition: Condition
    """The condition that episodes must pass. It is ``EVERY`` if the pool is the whole buffer."""

    @property
    def live(self) -> int:
        """Number of live episodes that may be candidates. Some of them may fail the condition."""

    def passing(self, rows: Located) -> Flags:
        """Flag the rows that are in the pool."""

    def episodes(self, rows: Located) -> Episodes:
        """Return these rows as columns: id, loss, replay count, domain."""

    def draw(self, law: Law, request: Request) -> Located:
        """Draw rows in proportion to the weights that the law gives them."""

    def draw_evenly(self, request: Request) -> Located:
        """Draw rows that all have the same probability."""

    def domains(self) -> tuple[Ints, Ints]:
        """Return the ascending numbers of the domains with episodes in the pool, and how many episodes each has."""

    def draw_quotas(self, request: Request, quotas: Ints) -> Located:
        """Draw ``quotas[i]`` rows of the domain ``domains()[0][i]``, evenly inside it. Return all in random order."""

    def log2_total(self, law: Law, *, exact: bool) -> float | None:
        """Return log2 of the sum of all weights. None if that needs a scan and ``exact`` is false."""

    def log2_least(self, law: Law) -> float:
        """Return log2 of the smallest weight in the whole buffer. The condition does not matter."""

    def scan(self) -> Population:
        """Return all episodes of the pool, in id order. A draw makes this list at most once."""

    def find_all(self, demand: Demand) -> Population:
        """Return all episodes of the buffer that meet the demand, from the lists of the process where possible."""
