"""What a strategy is: a choice of rows from a pool, and the odds of each."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from memstore.buffer.snapshot import Located
from memstore.buffer.strata import Floats
from memstore.draws.conditions import Episodes
from memstore.draws.pool import Pool, Request
from memstore.errors import ConfigError

DEFAULT_ALPHA = 0.6
"""The exponent of a strategy that is given none."""


@dataclass(frozen=True, slots=True)
class Odds:
    """How likely episodes are in a first draw.

    Parameters
    ----------
    log2_importance : array
        log2 of each probability, up to a common factor. It is only of use if ``log2_total`` is known or importance
        weights were wanted.
    log2_total : float, optional
        log2 of that factor; None if only a scan would tell and nobody asked for it.
    log2_least : float
        The smallest ``log2_importance`` in the whole buffer; NaN if no importance weights were wanted.
    leaves_out : bool
        True if some live episodes are never drawn.
    """

    log2_importance: Floats
    log2_total: float | None
    log2_least: float
    leaves_out: bool = False

    @property
    def log2_probability(self) -> Floats | None:
        """log2 of each probability, None if it is not known."""
        return None if self.log2_total is None else self.log2_importance - self.log2_total


@dataclass(frozen=True, slots=True)
class Drawn:
    """The answer to a request: episodes, in the order in which they were drawn, and their odds."""

    episodes: Episodes
    odds: Odds

    def __len__(self) -> int:
        return len(self.episodes)


class Strategy(ABC):
    """A way to draw episodes; values are immutable, comparable, and stored with the buffer as JSON.

    A *scan* is a query over all episodes of the buffer. No draw makes more than one. The process keeps what it found
    and brings it up to date from the history, so later draws with the same condition need none. Where the history is
    not recorded in full, each draw after a change scans again.

    Every strategy scans for a draw of more than a quarter of what is live, where few episodes pass a condition, and
    where ``exact_probability`` asks for a probability that nothing stored tells.
    """

    name: ClassVar[str]

    def draw(self, pool: Pool, request: Request) -> Drawn:
        """Draw rows, and say how likely they were."""
        rows = self.choose(pool, request) if pool.live > len(request.taken) else Located.none()
        episodes = pool.episodes(rows)
        if not len(rows):
            return Drawn(episodes, Odds(np.empty(0), None, np.nan))
        return Drawn(episodes, self.odds(pool, episodes, exact=request.exact, weighted=request.weighted))

    @abstractmethod
    def choose(self, pool: Pool, request: Request) -> Located:
        """Draw rows, or all that are left when they are fewer than asked for."""

    @abstractmethod
    def odds(self, pool: Pool, episodes: Episodes, *, exact: bool, weighted: bool) -> Odds:
        """Return the odds of episodes of the pool in a first draw.

        ``exact`` and ``weighted`` are as in ``Request``.
        """

    def parameters(self) -> dict[str, Any]:
        """Return what ``strategy_from_json`` needs to build the strategy again: its fields."""
        return dict(vars(self))

    @property
    def index_alpha(self) -> float:
        """The exponent that the stored weight sums should have for this strategy."""
        return DEFAULT_ALPHA

    def with_alpha(self, alpha: float) -> Strategy:
        """Return the same strategy with another exponent."""
        raise ConfigError(f"strategy {self.name!r} has no alpha; leave alpha out")

    def to_json(self) -> str:
        """Return the strategy as it is stored in the ``buffer`` row."""
        return json.dumps({"name": self.name, **self.parameters()}, sort_keys=True)
