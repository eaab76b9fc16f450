"""The laws of weighted draws. A law gives a weight to every episode of a snapshot.

Weights are base-2 logarithms; ``memstore.buffer.blocks.weights`` gives the reason.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from memstore.buffer.blocks.slots import Floats, Ints
from memstore.buffer.blocks.weights import Law as BlockLaw
from memstore.buffer.snapshot import Snapshot
from memstore.draws.aged import Ages


@dataclass(frozen=True, slots=True)
class LossLaw:
    """The law ``w_i = p_i ** alpha`` with ``p_i = loss_i + epsilon`` (Schaul et al. 2016, section 3.3, equation 1).

    ``top`` is the largest priority that was ever measured. An episode that was never measured has this priority.
    """

    alpha: float
    epsilon: float
    top: float

    @classmethod
    def of(cls, snapshot: Snapshot, alpha: float) -> LossLaw:
        """Return the law in this snapshot."""
        return cls(alpha, snapshot.settings.epsilon, snapshot.state.counters.top_priority)

    @property
    def of_blocks(self) -> BlockLaw:
        """The law by which blocks have sums."""
        return BlockLaw(self.alpha, self.epsilon)

    def log2_weight(self, ids: Ints, loss: Floats) -> Floats:
        """Return log2 of the weights of episodes with these ids and losses."""
        weight = self.of_blocks.log2(loss)
        weight[np.isnan(loss)] = self.of_blocks.log2_unmeasured(self.top)
        return weight


@dataclass(frozen=True, slots=True)
class AgeLaw:
    """The law ``w_i = age_i ** -alpha``. Ages count from ``newest``, the id that was given out last."""

    alpha: float
    newest: int

    @classmethod
    def of(cls, snapshot: Snapshot, alpha: float) -> AgeLaw:
        """Return the law in this snapshot."""
        return cls(alpha, snapshot.newest_possible())

    @property
    def ages(self) -> Ages:
        """The ages of a draw."""
        return Ages(self.alpha, self.newest)

    def log2_weight(self, ids: Ints, loss: Floats) -> Floats:
        """Return log2 of the weights of episodes with these ids. The losses do not matter."""
        return self.ages.log2(ids)


Law: TypeAlias = LossLaw | AgeLaw
"""A law gives a weight to each episode. Equal laws give equal weights."""
