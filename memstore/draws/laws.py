"""The laws of weighted draws. A law gives a weight to every episode of a snapshot.

Weights are base-2 logarithms; ``memstore.buffer.strata`` gives the reason. They are relative to the largest possible
weight, so a logarithm is never above zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from memstore.buffer.counters import Counters
from memstore.buffer.snapshot import Snapshot
from memstore.buffer.strata import Floats, Ints, Strata, log2_priority
from memstore.storage.schema import SEQUENCE_BITS


@dataclass(frozen=True, slots=True)
class LossLaw:
    """The law ``w_i = p_i ** alpha`` with ``p_i = loss_i + epsilon`` (Schaul et al. 2016, section 3.3, equation 1).

    ``top`` is the largest priority that was ever measured. Its weight is the largest possible weight.
    """

    alpha: float
    epsilon: float
    top: float

    @classmethod
    def of(cls, snapshot: Snapshot, alpha: float) -> LossLaw:
        """Return the law in this snapshot."""
        return cls(alpha, snapshot.settings.epsilon, snapshot.state.counters.top_priority)

    def log2_weight(self, ids: Ints, loss: Floats) -> Floats:
        """Return log2 of the weights of episodes with these ids and losses."""
        weight: Floats = self.alpha * (log2_priority(loss, self.epsilon, self.top) - np.log2(self.top))
        return weight

    def log2_bound(self, strata: Strata, which: Ints) -> Floats:
        """Return log2 of the largest weight that is possible in each of these strata."""
        bound: Floats = self.alpha * (strata.log2_bound(which, self.top) - np.log2(self.top))
        return bound

    def lasts(self, counters: Counters) -> bool:
        """True if an episode with an unchanged loss weighs the same in a snapshot with these counters."""
        return counters.top_priority == self.top


@dataclass(frozen=True, slots=True)
class AgeLaw:
    """The law ``w_i = age_i ** -alpha``. Ages count from ``newest``, the id that was given out last."""

    alpha: float
    newest: int

    @classmethod
    def of(cls, snapshot: Snapshot, alpha: float) -> AgeLaw:
        """Return the law in this snapshot."""
        return cls(alpha, snapshot.newest_possible())

    def log2_weight(self, ids: Ints, loss: Floats) -> Floats:
        """Return log2 of the weights of episodes with these ids. The losses do not matter."""
        return -self.alpha * np.log2(self.newest + 1 - ids)

    def lasts(self, counters: Counters) -> bool:
        """True if episodes weigh the same in a snapshot with these counters."""
        return bool(self.newest & (2**SEQUENCE_BITS - 1) == counters.inserted)


Law: TypeAlias = LossLaw | AgeLaw
"""A law gives a weight to each episode. Equal laws give equal weights."""
