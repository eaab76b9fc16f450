"""The results of a learning call, and the way in which they are written to the memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.learner.example import OnlineExample, episode_columns
from memstore.learner.stats import LearnResult
from memstore.memory import EpisodicMemory
from memstore.types import Batch


@dataclass(frozen=True, slots=True, eq=False)
class Learned:
    """New examples, the batch that was replayed with them, and the losses of both.

    Attributes
    ----------
    examples : sequence of OnlineExample
        The new examples.
    inputs, targets : arrays
        Their inputs and targets, stacked.
    known : sequence of int
        Ids of episodes that already store some of the examples.
    batch : Batch or None
        The replayed episodes.
    losses : float64 array
        Losses of the new examples, then of the replayed ones.
    """

    examples: Sequence[OnlineExample]
    inputs: NDArray[Any]
    targets: NDArray[Any]
    known: Sequence[int]
    batch: Batch | None
    losses: NDArray[np.float64]

    @property
    def new_losses(self) -> NDArray[np.float64]:
        """Losses of the new examples."""
        return self.losses[: len(self.examples)]

    @property
    def replay_losses(self) -> NDArray[np.float64]:
        """Losses of the replayed examples."""
        return self.losses[len(self.examples) :]

    @property
    def replayed_domains(self) -> list[str]:
        """Domain of each replayed example."""
        return [] if self.batch is None else self.batch.domain.tolist()

    def write(self, memory: EpisodicMemory, step: int) -> NDArray[np.int64]:
        """Write losses and examples, and return the ids of the examples' episodes."""
        # Losses come first, so that eviction, which makes room for the new episodes, knows them.
        if self.batch is not None:
            memory.update(self.batch, loss=self.replay_losses, step=step)
        payload = {"input": self.inputs, "target": self.targets}
        ids = memory.extend(payload, loss=self.new_losses, **episode_columns(self.examples))
        again = np.isin(ids, self.known)
        if again.any():
            memory.update(ids[again], loss=self.new_losses[again], step=step)
        return ids

    def result(self, ids: NDArray[np.int64]) -> LearnResult:
        """Return the result of the call."""
        return LearnResult(
            ids=tuple(ids.tolist()),
            losses=tuple(self.new_losses.tolist()),
            replayed_ids=() if self.batch is None else tuple(self.batch.ids.tolist()),
            replay_losses=tuple(self.replay_losses.tolist()),
        )
