"""Replay by hand: what a learner does in every call, one piece at a time."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memstore.errors import EpisodeNotFound
from memstore.learner import indices, retrieval
from memstore.learner.config import OnlineLearnerConfig
from memstore.learner.example import OnlineExample, from_episode
from memstore.learner.stats import OnlineLearnerStats
from memstore.memory import EpisodicMemory
from memstore.types import ReplayStats


class ReplayByHand:
    """Draws and loss updates outside of a learning call; each is a commit of its own."""

    memory: EpisodicMemory
    config: OnlineLearnerConfig

    @property
    def stats(self) -> OnlineLearnerStats:
        """Counts so far."""
        raise NotImplementedError

    def sample_replay(self, count: int) -> list[OnlineExample]:
        """Draw examples from the memory by the configured strategy, without replacement.

        Returns
        -------
        list of OnlineExample
            ``count`` of them, or all there are when fewer; id, level, tags and present loss as stored, and
            ``episode_id`` for `update_replay_metadata`.
        """
        if not indices.checked_count(count):
            return []
        batch = retrieval.draw(self.memory, self.config, count)
        return [] if batch is None else [from_episode(episode) for episode in self.memory.get_many(batch.ids)]

    def sample_by_priority(self, weights: ArrayLike, count: int) -> NDArray[np.int64]:
        """Draw distinct indices, one after the other in proportion to weights, by the memory's generator.

        Parameters
        ----------
        weights : array_like, shape (n,)
            Finite and >= 0. Zero is never drawn, unless all are zero: then the draw is uniform.
        count : int
            How many.

        Returns
        -------
        int64 array
            ``count`` distinct indices in the order drawn, or all that can be drawn when fewer.

        Raises
        ------
        InvalidValue
            A weight is NaN, infinite or negative, or the count is negative.
        """
        return indices.by_priority(self.memory.rng, weights, count)

    def sample_uniform(self, total: int, count: int) -> NDArray[np.int64]:
        """Draw ``count`` distinct indices below ``total``, or all when fewer, by the memory's generator.

        Raises
        ------
        InvalidValue
            Either number is negative.
        """
        return indices.uniform(self.memory.rng, total, count)

    def update_replay_metadata(self, episode_id: int, new_loss: float) -> bool:
        """Record a new loss for an episode.

        Returns
        -------
        bool
            False when the episode was evicted meanwhile; nothing else is touched in its place.

        Raises
        ------
        InvalidValue
            The loss is NaN, infinite or negative.
        """
        result = self.memory.update([episode_id], loss=[new_loss], step=self.stats.batches_trained)
        return len(result.updated) == 1

    def add_replay_metadata(self, example: OnlineExample, episode_id: int) -> None:
        """Make the example's ``last_loss`` the loss of the episode it is stored as.

        Every episode has replay metadata from its first moment, so nothing is inserted; an example never
        measured changes nothing.

        Raises
        ------
        EpisodeNotFound
            No such episode is live.
        """
        if example.last_loss is None:
            self.memory.get(episode_id)
        elif not self.update_replay_metadata(episode_id, example.last_loss):
            raise EpisodeNotFound(f"no live episode has the id {episode_id}")

    def replay_stats(self) -> ReplayStats:
        """Return the memory's statistics."""
        return self.memory.stats()
