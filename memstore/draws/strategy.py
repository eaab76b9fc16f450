"""The base class of strategies. A strategy chooses rows from a pool, and tells the odds of each."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from memstore.buffer.snapshot import Located
from memstore.buffer.blocks.slots import Floats
from memstore.draws.conditions import Episodes
from memstore.draws.pool import Pool, Request
from memstore.errors import ConfigError

DEFAULT_ALPHA = 0.6
"""A strategy has this exponent unless another one is given."""


@dataclass(frozen=True, slots=True)
class Odds:
    """The probabilities of episodes in a first draw.

    Parameters
    ----------
    log2_importance : array
        log2 of each probability times a common factor. It has a meaning only if ``log2_total`` is known, or importance
        weights were wanted.
    log2_total : float, optional
        log2 of the common factor. None if that needs a scan that the request did not allow.
    log2_least : float
        The smallest ``log2_importance`` in the whole buffer. NaN if no importance weights were wanted.
    leaves_out : bool
        True if some live episodes are never drawn.
    """

    log2_importance: Floats
    log2_total: float | None
    log2_least: float
    leaves_out: bool = False

    @property
    def log2_probability(self) -> Floats | None:
        """The base-2 logarithm of each probability. None if it is not known."""
        return None if self.log2_total is None else self.log2_importance - self.log2_total


@dataclass(frozen=True, slots=True)
class Drawn:
    """The answer to a request: episodes, in the order in which they were drawn, and their odds."""

    episodes: Episodes
    odds: Odds

    def __len__(self) -> int:
        return len(self.episodes)


class Strategy(ABC):
    """A way to draw episodes. Strategies are immutable, comparable, and stored with the buffer as JSON.

    A *scan* is a query over all episodes of the buffer. No draw makes more than one. The process keeps the result of a
    scan, and the history keeps it current. So later draws with the same condition need no scan. If the history is not
    recorded in full, each draw after a change scans again.

    A strategy scans only in three cases: a draw by weights takes a quarter or more of the live episodes; few episodes
    pass a condition; or ``exact_probability`` asks for a probability that the stored sums do not give.
    """

    name: ClassVar[str]

    def draw(self, pool: Pool, request: Request) -> Drawn:
        """Draw rows, and return them with their odds."""
        rows = self.choose(pool, request) if pool.live > len(request.taken) else Located.none()
        episodes = pool.episodes(rows)
        if not len(rows):
            return Drawn(episodes, Odds(np.empty(0), None, np.nan))
        return Drawn(episodes, self.odds(pool, episodes, exact=request.exact, weighted=request.weighted))

    @abstractmethod
    def choose(self, pool: Pool, request: Request) -> Located:
        """Draw ``request.count`` rows. If fewer are left, draw them all."""

    @abstractmethod
    def odds(self, pool: Pool, episodes: Episodes, *, exact: bool, weighted: bool) -> Odds:
        """Return the odds of episodes of the pool in a first draw.

        ``exact`` and ``weighted`` are as in ``Request``.
        """

    def parameters(self) -> dict[str, Any]:
        """Return the fields of the strategy. ``strategy_from_json`` builds the strategy from them."""
        return dict(vars(self))

    @property
    def index_alpha(self) -> float:
        """Exponent that the stored weight sums should have for this strategy."""
        return DEFAULT_ALPHA

    def with_alpha(self, alpha: float) -> Strategy:
        """Return the same strategy with another exponent.

        Raises
        ------
        ConfigError
            The strategy has no exponent, or ``alpha`` is out of its range.
        """
        raise ConfigError(f"strategy {self.name!r} has no alpha; leave alpha out")

    def to_json(self) -> str:
        """Return the JSON text that the ``buffer`` row stores."""
        return json.dumps({"name": self.name, **self.parameters()}, sort_keys=True)
