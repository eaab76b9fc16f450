"""The online learner. It trains on new and remembered examples together, and commits both as one."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sqlalchemy import URL

from memstore.config import check_int
from memstore.draws.arithmetic import smallest_keys
from memstore.errors import ConfigError, EpisodeNotFound, InvalidValue
from memstore.learner.config import OnlineLearnerConfig
from memstore.learner.consolidation import Consolidation, consolidate_model
from memstore.learner.example import OnlineExample, from_episode, known_episodes, stack
from memstore.learner.fit import fit
from memstore.learner.learned import Learned
from memstore.learner.models.model import Model
from memstore.learner.retrieval import draw, retrieve
from memstore.learner.scheduler import SchedulerState
from memstore.learner.span import Span
from memstore.learner.state import LearnerState, Moment, Progress
from memstore.learner.stats import LearnResult, OnlineLearnerStats
from memstore.memory import EpisodicMemory
from memstore.types import Batch, ReplayStats, Retention, RetentionPolicy

_ROUNDING = 1e-9
"""An excess of this much above a whole number of episodes is rounding, and draws no further episode."""


class MemoryOnlineLearner:
    """A model, the memory behind it, and the rules by which the model learns from the memory.

    Every learning call trains on *all* new examples and, beside them, on episodes drawn from the memory before the
    new ones entered it. The call computes first. Then it writes the replayed losses, the new episodes, the removals of
    a consolidation and, when one is due, a checkpoint, all in one transaction. A call that raises has changed nothing:
    neither the model nor the memory nor the generator.

    Parameters
    ----------
    memory : EpisodicMemory
        Memory that stores the examples, as payload ``{"input": ..., "target": ...}``.
    model : Model
        The model to train.
    config : OnlineLearnerConfig, optional
        Default: `OnlineLearnerConfig.default`.

    Attributes
    ----------
    memory, model, config
        As given.
    notes : dict
        Your own state, such as a position in the stream. Every checkpoint saves it, and loading brings it back.

    Notes
    -----
    One thread at a time. Suppose that only this learner writes to the memory, and ``checkpoint_every`` is set. Then a
    process that is killed at any point and started again with `resume` continues bit-identically from the last
    checkpoint; by default every call commits one. Calls made inside ``with memory.transaction()`` commit with it. If
    that block fails, or a commit ends in ``ConnectionLost`` with its outcome unknown, `load_state` makes the learner
    agree with the memory again.

    With ``checkpoint_every=k`` the calls between two checkpoints are one transaction, see `OnlineLearnerConfig`. When
    its commit fails, or the database ends it, the learner returns to the last checkpoint, and so do its notes (empty
    before the first one). `save_state` and `close` end the transaction early. Leaving ``with learner`` by an exception
    undoes it, as a kill would.
    """

    def __init__(self, memory: EpisodicMemory, model: Model, config: OnlineLearnerConfig | None = None) -> None:
        self.memory = memory
        self.model = model
        self.config = config or OnlineLearnerConfig.default()
        self.notes: dict[str, Any] = {}
        self._set(Progress.start(self.config))
        self._scheduler = self.config.consolidation_scheduler()
        self._span = Span(memory)
        self._span_start: Moment | None = None
        self._saved_notes: dict[str, Any] | None = None
        self._owns_checkpoint = self.config.checkpoint_every is None
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
            The memory, or the address at which `OnlineLearnerConfig.open_memory` opens one. `close` closes a memory
            that was opened here. Default: ``memory.db`` in the current directory.
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
        if error is not None:
            self._span.abandon()
        self.close()

    def close(self) -> None:
        """Commit the calls since the last checkpoint, with a new one; close the memory if it was opened here."""
        try:
            if self._span.open:
                self.save_state(self.config.checkpoint_name)
        finally:
            if self._owns_memory:
                self.memory.close()

    @property
    def stats(self) -> OnlineLearnerStats:
        """Counts over the life of the learner, restarts included."""
        return self._progress.stats

    @property
    def progress(self) -> Progress:
        """The statistics, and the state of the scheduler, the curriculum and elastic weight consolidation."""
        return self._progress

    def _set(self, progress: Progress) -> None:
        self._progress = progress
        # Each consolidation has one penalty object, because models may keep arrays that they derive from it.
        self._penalty = None if progress.ewc is None else progress.ewc.penalty()

    # learning

    def learn_one(self, example: OnlineExample) -> LearnResult:
        """Learn one example. This is the same as a batch of one, replay included."""
        return self.learn_batch([example])

    def learn_batch(self, examples: Sequence[OnlineExample]) -> LearnResult:
        """Learn new examples together with replayed ones, and commit.

        The call draws ``len(examples) * replay_ratio`` episodes, or all episodes if the memory has fewer. A fraction is
        first rounded up and then subtracted from later calls, so the ratio holds in the long run for batches of one
        too. New and replayed examples are interleaved and trained in gradient steps of ``batch_size``.

        Parameters
        ----------
        examples : sequence of OnlineExample
            All of them are trained on and stored. An empty sequence does nothing.

        Returns
        -------
        LearnResult
            The ids and losses of the new and the replayed examples. Unless ``checkpoint_every`` is above 1 or a
            transaction is open, the call is committed when it returns.

        Raises
        ------
        ConfigError
            The memory holds a checkpoint of this name that the learner has neither loaded nor saved, so the call
            would overwrite it. Nothing has changed.
        InvalidValue
            Shapes do not fit each other or the model, an id names another example already, or a loss came out as
            NaN or infinite (the model diverged). Nothing has changed.
        MemstoreError
            The memory refused a read or a write. Nothing has changed.
        """
        if not examples:
            return LearnResult()
        self._claim_checkpoint()
        inputs, targets = stack(examples)
        with self._all_or_nothing() as before:
            learned, progress = self._learn(examples, inputs, targets)
            consolidation = None
            if self._is_due(progress):
                progress, consolidation = self._consolidate_model(progress)
            every = self.config.checkpoint_every
            save = every is not None and progress.stats.batches_trained % every == 0
            ids = self._span.write(
                lambda: self._commit(learned, progress, consolidation, save), stay_open=every is not None and not save
            )
        self._continue_from(progress, before)
        return learned.result(ids)

    def _learn(
        self, examples: Sequence[OnlineExample], inputs: NDArray[Any], targets: NDArray[Any]
    ) -> tuple[Learned, Progress]:
        """Train the model on new and replayed examples. Return the results to write, and the new progress."""
        known = known_episodes(self.memory, examples)
        batch, debt = self._replay(inputs, targets)
        size = self.config.batch_size
        losses, steps = fit(self.model, inputs, targets, batch, batch_size=size, penalty=self._penalty)
        learned = Learned(examples, inputs, targets, known, batch, losses)
        new, replayed = learned.new_losses.tolist(), learned.replayed_domains
        progress = self._progress.after(self.config, examples, new, replayed=replayed, steps=steps, debt=debt)
        return learned, replace(progress, scheduler=self._after_batch(progress, len(examples)))

    def _replay(self, inputs: NDArray[Any], targets: NDArray[Any]) -> tuple[Batch | None, float]:
        """Draw the episodes that are due, and return them with the new ``replay_debt``."""
        due = self.stats.replay_debt + len(inputs) * self.config.replay_ratio
        count = max(0, math.ceil(due - _ROUNDING))
        if not count:
            return None, due
        batch = retrieve(self.memory, self.config, count, self.model, inputs, targets, self._penalty)
        # Replays that an empty memory could not give are not made up for later, because they would come in one burst.
        return batch, self.stats.replay_debt if batch is None else due - count

    def _after_batch(self, progress: Progress, new: int) -> SchedulerState:
        if not self._scheduler.watches_buffer:
            return self._scheduler.after_batch(progress.scheduler, new)
        live, capacity = len(self.memory), self.memory.capacity
        fill = min(live + new, capacity) / capacity
        return self._scheduler.after_batch(progress.scheduler, new, fill, before=live / capacity)

    def _commit(
        self, learned: Learned, progress: Progress, consolidation: Consolidation | None, save: bool
    ) -> NDArray[np.int64]:
        step = progress.stats.batches_trained
        ids = learned.write(self.memory, step)
        if consolidation is not None:
            self._write(consolidation, self.config.retention(), step)
        if save:
            self._save(self.config.checkpoint_name, progress)
        return ids

    def _moment(self) -> Moment:
        return Moment(self.model.state_dict(), self.memory.rng.bit_generator.state, self._progress)

    @contextmanager
    def _all_or_nothing(self) -> Iterator[Moment]:
        """Yield the state before the block, and undo the block if it fails."""
        before = self._moment()
        try:
            yield before
        except BaseException as error:
            self._undo(before, error)
            raise

    def _undo(self, before: Moment, error: BaseException) -> None:
        """Undo a call that failed, or all calls since the last checkpoint if their common transaction failed."""
        self._span.abandon_if_dead()
        if self._span_start is not None and not self._span.open:
            before, self._span_start = self._span_start, None
            self.notes = copy.deepcopy(self._saved_notes or {})
            error.add_note("the learning calls since the last checkpoint are undone with this one: repeat them")
        self.model.load_state_dict(before.model)
        self.memory.rng.bit_generator.state = before.generator
        self._set(before.progress)

    def _continue_from(self, progress: Progress, before: Moment) -> None:
        """Continue from a call that was written."""
        self._set(progress)
        if not self._span.open:
            self._span_start = None
        elif self._span_start is None:
            self._span_start = before

    # consolidation

    @property
    def should_consolidate(self) -> bool:
        """True if the scheduler says that a consolidation is due.

        `learn_batch` consolidates by itself when one is due, so this is True only after a checkpoint was loaded under
        another scheduler, and before the first call.
        """
        return self._is_due(self._progress)

    def consolidate(self, policy: RetentionPolicy | None = None) -> Retention:
        """Take extra steps on the past, renew the Fisher estimate, and apply a retention policy, in one commit.

        The configuration decides which of these steps run. `learn_batch` runs the same steps, in its own commit, when
        a consolidation is due. A checkpoint is written in the same commit if ``checkpoint_every`` is set.

        Parameters
        ----------
        policy : RetentionPolicy, optional
            Which episodes to keep. Default: `OnlineLearnerConfig.retention`.

        Returns
        -------
        Retention
            How many episodes were removed, and why.

        Raises
        ------
        InvalidValue
            The model diverged. Nothing has changed.
        MemstoreError
            The memory refused a read or a write. Nothing has changed.
        """
        self._claim_checkpoint()
        with self._all_or_nothing() as before:
            progress, done = self._consolidate_model(self._progress)

            def commit() -> Retention:
                removed = self._write(done, policy or self.config.retention(), progress.stats.batches_trained)
                if self.config.checkpoint_every is not None:
                    self._save(self.config.checkpoint_name, progress)
                return removed

            removed = self._span.write(commit, stay_open=False)
        self._continue_from(progress, before)
        return removed

    def _is_due(self, progress: Progress) -> bool:
        return self._scheduler.due(progress.scheduler, loss=progress.stats.avg_loss)

    def _consolidate_model(self, progress: Progress) -> tuple[Progress, Consolidation]:
        done = consolidate_model(self.memory, self.model, self.config, progress.ewc)
        return progress.after_consolidation(done.ewc, len(done.rehearsed)), done

    def _write(self, done: Consolidation, policy: RetentionPolicy, step: int) -> Retention:
        for batch, losses in done.rehearsed:
            self.memory.update(batch, loss=losses, step=step)
        return self.memory.consolidate(policy)

    # checkpoints

    def save_state(self, name: str = "latest") -> None:
        """Save the model, progress, configuration, notes and the memory's generator as a checkpoint, and commit."""
        with self._all_or_nothing() as before:
            self._span.write(lambda: self._save(name, self._progress), stay_open=False)
        self._owns_checkpoint |= name == self.config.checkpoint_name
        self._continue_from(self._progress, before)

    def resume(self) -> bool:
        """Load the last checkpoint if the memory holds one. Return True if it does."""
        name = self.config.checkpoint_name
        if name not in self.memory.checkpoints():
            return False
        self.load_state(name)
        return True

    def load_state(self, name: str = "latest", *, strict: bool = True) -> None:
        """Become the learner that `save_state` saved, with the memory's generator. All is loaded, or nothing.

        If calls since the last checkpoint are not committed yet, they are undone.

        Parameters
        ----------
        name : str
            Name of the checkpoint.
        strict : bool
            True refuses a checkpoint of another configuration. False continues it with this learner's configuration.

        Raises
        ------
        CheckpointNotFound
            There is no checkpoint of this name.
        ConfigError
            The checkpoint was saved under another configuration. The message names the settings that differ.
        InvalidValue
            The checkpoint was not written by a learner, or it is of another model.
        StoreCorrupt
            The checkpoint is damaged.
        """
        self._span.abandon_if_dead()
        generator = self.memory.rng.bit_generator.state
        try:
            state = LearnerState.from_dict(name, self.memory.load_checkpoint(name))
            if strict:
                state.refuse_other_config(name, self.config)
            self.model.load_state_dict(state.model)
        except BaseException:
            self.memory.rng.bit_generator.state = generator
            raise
        self._owns_checkpoint |= name == self.config.checkpoint_name
        loaded = self.memory.rng.bit_generator.state
        self._span.abandon()
        self.memory.rng.bit_generator.state = loaded
        self._span_start = None
        self.notes = state.notes
        self._remember_notes()
        self._set(state.progress.continue_under(self.config, state.config))

    # Replay by hand: each call is a separate commit

    def sample_replay(self, count: int) -> list[OnlineExample]:
        """Draw examples from the memory by the configured strategy, without replacement.

        Parameters
        ----------
        count : int
            How many, 0 or more.

        Returns
        -------
        list of OnlineExample
            ``count`` examples, or all if the memory has fewer. They have the stored id, level and tags, the present
            loss, and the ``episode_id`` that `update_replay_metadata` takes.

        Raises
        ------
        InvalidValue
            The count is negative.
        """
        wanted = _count(count)
        batch = draw(self.memory, self.config, wanted) if wanted else None
        return [] if batch is None else [from_episode(episode) for episode in self.memory.get_many(batch.ids)]

    def sample_by_priority(self, weights: ArrayLike, count: int) -> NDArray[np.int64]:
        """Draw distinct indices one after the other, in proportion to the weights, by the memory's generator.

        Parameters
        ----------
        weights : array_like, shape (n,)
            Finite and >= 0. An index of weight zero is never drawn. If all weights are zero, the draw is uniform.
        count : int
            How many, 0 or more.

        Returns
        -------
        int64 array
            ``count`` indices in the order drawn, or all that can be drawn if those are fewer.

        Raises
        ------
        InvalidValue
            A weight is NaN, infinite or negative, or the count is negative.
        """
        w = np.asarray(weights, np.float64)
        if w.ndim != 1 or not np.all(np.isfinite(w)) or np.any(w < 0):
            raise InvalidValue("weights must be a one-dimensional array of finite numbers >= 0")
        if not np.any(w):
            return self.sample_uniform(len(w), count)
        with np.errstate(divide="ignore"):
            return smallest_keys(self.memory.rng, np.log2(w), min(_count(count), int(np.count_nonzero(w))))

    def sample_uniform(self, total: int, count: int) -> NDArray[np.int64]:
        """Draw ``count`` distinct indices below ``total``, or all if those are fewer, by the memory's generator.

        Raises
        ------
        InvalidValue
            Either number is negative.
        """
        total = _count(total)
        return self.memory.rng.choice(total, min(_count(count), total), replace=False)

    def update_replay_metadata(self, episode_id: int, new_loss: float) -> bool:
        """Record a new loss for an episode, and commit.

        Returns
        -------
        bool
            False if the episode has left the memory. No other episode is touched in its place.

        Raises
        ------
        InvalidValue
            The loss is NaN, infinite or negative.
        """
        result = self.memory.update([episode_id], loss=[new_loss], step=self.stats.batches_trained)
        return len(result.updated) == 1

    def add_replay_metadata(self, example: OnlineExample, episode_id: int) -> None:
        """Make the example's ``last_loss`` the loss of the episode that stores it, and commit.

        Every episode has replay metadata from the start, so nothing is inserted. An example that was never measured
        changes nothing.

        Raises
        ------
        EpisodeNotFound
            No live episode has this id.
        """
        if example.last_loss is None:
            self.memory.get(episode_id)
        elif not self.update_replay_metadata(episode_id, example.last_loss):
            raise EpisodeNotFound(f"no live episode has the id {episode_id}")

    def replay_stats(self) -> ReplayStats:
        """Return the memory's statistics."""
        return self.memory.stats()

    def _claim_checkpoint(self) -> None:
        """Refuse to overwrite a checkpoint of another learner, before anything is learned."""
        name = self.config.checkpoint_name
        if not self._owns_checkpoint and name in self.memory.checkpoints():
            raise ConfigError(
                f"the memory holds a checkpoint {name!r}, which this learner has not loaded and would overwrite; call "
                "resume() to go on from it, or give another checkpoint_name"
            )
        self._owns_checkpoint = True

    def _save(self, name: str, progress: Progress) -> None:
        state = LearnerState(self.config, progress, self.notes, self.model.state_dict())
        self.memory.save_checkpoint(name, state.to_dict())
        self._remember_notes()

    def _remember_notes(self) -> None:
        """Keep a copy of the notes if later calls share a transaction. If it fails, the copy comes back."""
        if (self.config.checkpoint_every or 1) > 1:
            self._saved_notes = copy.deepcopy(self.notes)


def _count(value: int) -> int:
    try:
        return check_int("count", value, minimum=0)
    except ConfigError as error:
        raise InvalidValue(str(error)) from None
