"""The online learner: train on what is new together with what is remembered, commit both as one."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sqlalchemy import URL

from memstore.errors import EpisodeNotFound, InvalidValue, MemoryEmpty
from memstore.learner import indices
from memstore.learner.config import OnlineLearnerConfig
from memstore.learner.example import OnlineExample, episode_columns, from_episode, stack
from memstore.learner.model import Model
from memstore.learner.state import LearnerState
from memstore.learner.stats import LearnResult, OnlineLearnerStats
from memstore.memory import EpisodicMemory
from memstore.types import Batch, ReplayStats, Retention, RetentionPolicy

_ROUNDING = 1e-9


class MemoryOnlineLearner:
    """A model, the memory behind it, and the rules by which the one learns from the other.

    Every learning call trains on *all* new examples and, beside them, on episodes drawn from the memory
    before the new ones entered it. It computes first and then writes the replayed losses, the new episodes
    and, when due, a checkpoint in one transaction: a call that raises has changed nothing, neither model nor
    memory nor generator.

    Parameters
    ----------
    memory : EpisodicMemory
        Where examples are stored, as payload ``{"input": ..., "target": ...}``.
    model : Model
        What is trained.
    config : OnlineLearnerConfig, optional
        Default: `OnlineLearnerConfig.default`.

    Attributes
    ----------
    memory, model, config
        As given.
    stats : OnlineLearnerStats
        Counts so far.
    notes : dict
        The caller's own state (a position in the stream, say): it is saved with every checkpoint and comes
        back with it.

    Notes
    -----
    One thread at a time. With ``checkpoint_every=1`` and one learner on the memory, a process killed at any
    point and started again with `load_state` continues bit-identically. With a larger value episodes
    committed since the last checkpoint stay in the memory while the weights return to it. Calls made inside
    ``with memory.transaction()`` commit with it; if that block fails, `load_state` brings the learner back in
    line.
    """

    def __init__(self, memory: EpisodicMemory, model: Model, config: OnlineLearnerConfig | None = None) -> None:
        self.memory = memory
        self.model = model
        self.config = config or OnlineLearnerConfig.default()
        self.stats = OnlineLearnerStats()
        self.notes: dict[str, Any] = {}
        self._owns_memory = False

    @classmethod
    def with_default_model(
        cls,
        config: OnlineLearnerConfig | None = None,
        memory: EpisodicMemory | str | os.PathLike[str] | URL = "memory.db",
    ) -> MemoryOnlineLearner:
        """Return a learner with the numpy MLP that the configuration describes.

        Parameters
        ----------
        config : OnlineLearnerConfig, optional
            Default: `OnlineLearnerConfig.default`.
        memory : EpisodicMemory, path or URL
            The memory, or where to open one by `OnlineLearnerConfig.open_memory`; `close` then
            closes it. Default: ``memory.db`` in the current directory.
        """
        config = config or OnlineLearnerConfig.default()
        if isinstance(memory, EpisodicMemory):
            return cls(memory, config.default_model(), config)
        learner = cls(config.open_memory(memory), config.default_model(), config)
        learner._owns_memory = True
        return learner

    def __enter__(self) -> MemoryOnlineLearner:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the memory if the learner opened it."""
        if self._owns_memory:
            self.memory.close()

    # learning

    def learn_one(self, example: OnlineExample) -> LearnResult:
        """Learn one example; the same as a batch of one, replay included."""
        return self.learn_batch([example])

    def learn_batch(self, examples: Sequence[OnlineExample]) -> LearnResult:
        """Learn new examples together with replayed ones, and commit.

        ``len(examples) * replay_ratio`` episodes are drawn, or all there are when fewer. Fractions are
        carried over from call to call, rounded up first, so the ratio holds in the long run for batches of
        one too. New and replayed examples are interleaved and trained in gradient steps of ``batch_size``.

        Parameters
        ----------
        examples : sequence of OnlineExample
            All are trained on and stored; none is dropped. An empty one does nothing.

        Raises
        ------
        InvalidValue
            Shapes do not fit each other or the model, or a loss came out as NaN or infinite (the model
            diverged). Nothing has changed.
        MemstoreError
            What the memory raises. Nothing has changed.
        """
        if not examples:
            return LearnResult()
        inputs, targets = stack(examples)
        model_before = self.model.state_dict()
        rng_before = self.memory.rng.bit_generator.state
        try:
            batch, debt = self._draw(len(examples))
            losses, steps = self._train(inputs, targets, batch)
            return self._commit(examples, inputs, targets, batch, losses, steps, debt)
        except BaseException:
            self.model.load_state_dict(model_before)
            self.memory.rng.bit_generator.state = rng_before
            raise

    def _draw(self, new: int) -> tuple[Batch | None, float]:
        """Draw what is due beside ``new`` examples; return it and what is owed (at most 0) afterwards."""
        due = self.stats.replay_debt + new * self.config.replay_ratio
        count = max(0, math.ceil(due - _ROUNDING))
        if not count:
            return None, due
        try:
            return self._sample(count), due - count
        except MemoryEmpty:
            # Replay missed for want of episodes is not made up for later: that would come as one burst.
            return None, self.stats.replay_debt

    def _sample(self, count: int) -> Batch:
        config = self.config
        return self.memory.sample(count, strategy=config.replay_strategy(), beta=config.beta, normalize="batch")

    def _train(
        self, inputs: NDArray[Any], targets: NDArray[Any], batch: Batch | None
    ) -> tuple[NDArray[np.float64], int]:
        """Train on new and replayed examples; return their losses, new ones first, and how many steps."""
        new = len(inputs)
        weight = np.ones(new)
        order = np.arange(new)
        if batch is not None:
            inputs = _joined("input", inputs, batch)
            targets = _joined("target", targets, batch)
            # Mean 1: together they count as many as they are. Scaled by the buffer's rarest episode, as usual
            # where a step holds nothing else, they would vanish beside the new ones.
            weight = np.concatenate([weight, batch.weight * (len(batch) / batch.weight.sum())])
            # Spread both evenly, so that every step sees them in the same proportion.
            place = np.concatenate([(np.arange(n) + 0.5) / n for n in (new, len(batch))])
            order = np.argsort(place, kind="stable")
        losses = np.empty(len(inputs))
        steps = range(0, len(order), self.config.batch_size)
        for start in steps:
            rows = order[start : start + self.config.batch_size]
            losses[rows] = self.model.step(inputs[rows], targets[rows], weight[rows])
        if not np.all(np.isfinite(losses)):
            raise InvalidValue(
                "the model's loss is NaN or infinite: it diverged, or the data are not finite; lower the "
                "learning rate or scale the inputs"
            )
        return losses, len(steps)

    def _commit(
        self,
        examples: Sequence[OnlineExample],
        inputs: NDArray[Any],
        targets: NDArray[Any],
        batch: Batch | None,
        losses: NDArray[np.float64],
        steps: int,
        debt: float,
    ) -> LearnResult:
        new = len(examples)
        replayed = () if batch is None else batch.domain.tolist()
        stats = self.stats.after(examples, losses[:new].tolist(), replayed=replayed, steps=steps, debt=debt)
        with self.memory.transaction():
            # Losses first: eviction to make room for the new episodes then judges by what is now known.
            if batch is not None:
                self.memory.update(batch, loss=losses[new:], step=stats.batches_trained)
            ids = self.memory.extend(
                {"input": inputs, "target": targets}, loss=losses[:new], **episode_columns(examples)
            )
            if stats.since_consolidation >= self.config.consolidation_interval:
                self.memory.consolidate(self._retention())
                stats = stats.consolidated()
            every = self.config.checkpoint_every
            if every is not None and stats.batches_trained % every == 0:
                self._save(self.config.checkpoint_name, stats)
        self.stats = stats
        return LearnResult(
            tuple(ids.tolist()),
            tuple(losses[:new].tolist()),
            () if batch is None else tuple(batch.ids.tolist()),
            tuple(losses[new:].tolist()),
        )

    # consolidation

    @property
    def should_consolidate(self) -> bool:
        """Whether ``consolidation_interval`` new examples were learned since the last consolidation.

        `learn_batch` consolidates by itself when it is due, so this is True only before the first call after
        loading a checkpoint into a learner of a shorter interval.
        """
        return self.stats.since_consolidation >= self.config.consolidation_interval

    def consolidate(self, policy: RetentionPolicy | None = None) -> Retention:
        """Apply a retention policy to the memory and start counting anew.

        Parameters
        ----------
        policy : RetentionPolicy, optional
            Default: the configuration's ``max_age`` and ``min_importance``. The capacity needs no policy; the
            memory holds it at every insert.
        """
        stats = self.stats.consolidated()
        removed = self.memory.consolidate(policy or self._retention())
        self.stats = stats
        return removed

    def _retention(self) -> RetentionPolicy:
        return RetentionPolicy(max_age=self.config.max_age, min_importance=self.config.min_importance)

    # replay by hand

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
        try:
            ids = self._sample(count).ids
        except MemoryEmpty:
            return []
        return [from_episode(episode) for episode in self.memory.get_many(ids)]

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

    # checkpoints

    def save_state(self, name: str = "latest") -> None:
        """Save model, statistics, configuration, notes and the memory's generator as a checkpoint."""
        self._save(name, self.stats)

    def load_state(self, name: str = "latest", *, strict: bool = True) -> None:
        """Become the learner that `save_state` saved, the memory's generator included; all of it or nothing.

        Parameters
        ----------
        name : str
            Of the checkpoint.
        strict : bool
            False continues a checkpoint of another configuration with this learner's own.

        Raises
        ------
        CheckpointNotFound
            There is none of this name.
        ConfigError
            It was saved under another configuration; the message names the settings that differ.
        InvalidValue
            It is no learner's checkpoint, or of another model.
        """
        rng_before = self.memory.rng.bit_generator.state
        try:
            state = LearnerState.from_dict(name, self.memory.load_checkpoint(name))
            if strict:
                state.refuse_other_config(name, self.config)
            self.model.load_state_dict(state.model)
        except BaseException:
            self.memory.rng.bit_generator.state = rng_before
            raise
        self.stats, self.notes = state.stats, state.notes

    def _save(self, name: str, stats: OnlineLearnerStats) -> None:
        state = LearnerState(self.config, stats, self.notes, self.model.state_dict())
        self.memory.save_checkpoint(name, state.to_dict())


def _joined(name: str, new: NDArray[Any], batch: Batch) -> NDArray[Any]:
    """Append the replayed arrays of this name to the new ones."""
    stored = batch.payload.get(name)
    if not isinstance(stored, np.ndarray):
        raise InvalidValue(f"the memory's episodes have no array {name!r} of fixed shape; use a memory of its own")
    if stored.shape[1:] != new.shape[1:]:
        raise InvalidValue(f"{name} of shape {new.shape[1:]}: the episodes in the memory have {stored.shape[1:]}")
    return np.concatenate([new, stored])
