"""The base class of strategies. A strategy chooses rows from a pool, and tells the odds of each."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from memstore.buffer.blocks.slots import Floats, Ints
from memstore.buffer.snapshot import Rows
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

    episodes: Rows
    odds: Odds

    def __len__(self) -> int:
        return len(self.episodes)


class Strategy(ABC):
    """A way to draw episodes. Strategies are immutable, comparable, and stored with the buffer as JSON.

    A draw looks at all episodes in three cases. The first: it takes more than a quarter of the episodes that it may
    draw, by weights. The second: it is the first draw with another ``alpha`` than the buffer's, or with a condition
    (the process keeps the sums of eight such views, and later draws bring them up to date). The third:
    ``exact_probability`` asks for the probability of a draw by age, and episodes have left between others.
    """

    name: ClassVar[str]

    def draw(self, pool: Pool, request: Request) -> Drawn:
        """Draw rows, and return them with their odds."""
        places = self.choose(pool, request)
        episodes = pool.episodes(places)
        if not len(places):
            return Drawn(episodes, Odds(np.empty(0), None, np.nan))
        return Drawn(episodes, self.odds(pool, episodes, exact=request.exact, weighted=request.weighted))

    @abstractmethod
    def choose(self, pool: Pool, request: Request) -> Ints:
        """Draw ``request.count`` episodes, and return their places. If fewer are left, draw them all."""

    @abstractmethod
    def odds(self, pool: Pool, episodes: Rows, *, exact: bool, weighted: bool) -> Odds:
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
