"""The online learner: train on what is new together with what is remembered, commit both as one."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import URL

from memstore.errors import ConfigError
from memstore.learner.config import OnlineLearnerConfig
from memstore.learner.consolidation import Consolidation, consolidate_model
from memstore.learner.example import OnlineExample, known_episodes, stack
from memstore.learner.fit import fit
from memstore.learner.learned import Learned
from memstore.learner.models.model import Model
from memstore.learner.replay import ReplayByHand
from memstore.learner.retrieval import retrieve
from memstore.learner.scheduler import SchedulerState
from memstore.learner.span import Span
from memstore.learner.state import LearnerState, Moment, Progress
from memstore.learner.stats import LearnResult, OnlineLearnerStats
from memstore.memory import EpisodicMemory
from memstore.types import Batch, Retention, RetentionPolicy

_ROUNDING = 1e-9


class MemoryOnlineLearner(ReplayByHand):
    """A model, the memory behind it, and the rules by which the one learns from the other.

    Every learning call trains on *all* new examples and, beside them, on episodes drawn from the memory
    before the new ones entered it. It computes first and then writes the replayed losses, the new episodes,
    what a consolidation removes and, when due, a checkpoint in one transaction: a call that raises has changed
    nothing, neither model nor memory nor generator.

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
    notes : dict
        The caller's own state (a position in the stream, say): it is saved with every checkpoint and comes
        back with it.

    Notes
    -----
    One thread at a time. With one learner on the memory and ``checkpoint_every`` set, a process killed at any point
    and started again with `resume` continues bit-identically from the last checkpoint, which by default every
    call commits. Calls made inside ``with memory.transaction()`` commit with it; if that block fails, or a commit
    ends in ``ConnectionLost`` with its outcome unknown, `load_state` brings the learner back in line.

    With ``checkpoint_every=k`` the calls between two checkpoints are one transaction, see `OnlineLearnerConfig`. When
    its commit fails, or the database gives it up, the learner is where the last checkpoint was, its notes too (empty
    before the first one). `save_state` and `close` end it early; leaving ``with learner`` by an exception undoes it, as
    a kill would.
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
        self._claimed = self.config.checkpoint_every is None
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
        if error is not None:
            self._span.abandon()
        self.close()

    def close(self) -> None:
        """Save and commit what waits for the next checkpoint; close the memory if the learner opened it."""
        try:
            if self._span.open:
                self.save_state(self.config.checkpoint_name)
        finally:
            if self._owns_memory:
                self.memory.close()

    @property
    def stats(self) -> OnlineLearnerStats:
        """Counts so far, restarts included."""
        return self._progress.stats

    @property
    def progress(self) -> Progress:
        """Statistics, and the state of scheduler, curriculum and elastic weight consolidation."""
        return self._progress

    def _set(self, progress: Progress) -> None:
        self._progress = progress
        # Made once a consolidation: models may keep what they derive from it.
        self._penalty = None if progress.ewc is None else progress.ewc.penalty()

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
        ConfigError
            The memory holds a checkpoint of this name that the learner has neither loaded nor saved: it would be
            overwritten. Nothing has changed.
        InvalidValue
            Shapes do not fit each other or the model, an id names another example already, or a loss came out as
            NaN or infinite (the model diverged). Nothing has changed.
        MemstoreError
            What the memory raises. Nothing has changed.
        """
        if not examples:
            return LearnResult()
        self._claim()
        inputs, targets = stack(examples)
        before = self._before()
        try:
            known = known_episodes(self.memory, examples)
            batch, debt = self._replay(inputs, targets)
            losses, steps = fit(
                self.model, inputs, targets, batch, batch_size=self.config.batch_size, penalty=self._penalty
            )
            learned = Learned(examples, inputs, targets, known, batch, losses)
            progress = self._progress.after(
                self.config,
                examples,
                learned.new_losses.tolist(),
                replayed=learned.replayed_domains,
                steps=steps,
                debt=debt,
            )
            progress = replace(progress, scheduler=self._after_batch(progress, len(examples)))
            consolidation = None
            if self._due(progress):
                progress, consolidation = self._consolidated(progress)
            every = self.config.checkpoint_every
            save = every is not None and progress.stats.batches_trained % every == 0
            ids = self._span.write(
                lambda: self._commit(learned, progress, consolidation, save), stay_open=every is not None and not save
            )
        except BaseException as error:
            self._return_to(before, error)
            raise
        self._adopt(progress, before)
        return learned.result(ids)

    def _replay(self, inputs: NDArray[Any], targets: NDArray[Any]) -> tuple[Batch | None, float]:
        """Draw what is due beside the new examples; return it and what is owed (at most 0) afterwards."""
        due = self.stats.replay_debt + len(inputs) * self.config.replay_ratio
        count = max(0, math.ceil(due - _ROUNDING))
        if not count:
            return None, due
        batch = retrieve(self.memory, self.config, count, self.model, inputs, targets, self._penalty)
        # Replay missed for want of episodes is not made up for later: that would come as one burst.
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

    def _before(self) -> Moment:
        return Moment(self.model.state_dict(), self.memory.rng.bit_generator.state, self._progress)

    def _return_to(self, before: Moment, error: BaseException) -> None:
        """Undo a call that failed, or all since the last checkpoint when their common transaction did."""
        self._span.abandon_if_dead()
        if self._span_start is not None and not self._span.open:
            before, self._span_start = self._span_start, None
            self.notes = copy.deepcopy(self._saved_notes or {})
            error.add_note("the learning calls since the last checkpoint are undone with this one: repeat them")
        self.model.load_state_dict(before.model)
        self.memory.rng.bit_generator.state = before.generator
        self._set(before.progress)

    def _adopt(self, progress: Progress, before: Moment) -> None:
        """Go on from a call that was written."""
        self._set(progress)
        if not self._span.open:
            self._span_start = None
        elif self._span_start is None:
            self._span_start = before

    # consolidation

    @property
    def should_consolidate(self) -> bool:
        """Whether a consolidation is due, as the scheduler says.

        `learn_batch` consolidates by itself when it is, so this is True only before the first call after loading a
        checkpoint under another scheduler.
        """
        return self._due(self._progress)

    def consolidate(self, policy: RetentionPolicy | None = None) -> Retention:
        """Rehearse, protect, tidy: the extra steps, the Fisher estimate, and a retention policy, in one commit.

        What of it is done says the configuration; `learn_batch` does the same, in its own commit, when it is due.
        A checkpoint is written with it where ``checkpoint_every`` is set.

        Parameters
        ----------
        policy : RetentionPolicy, optional
            What to keep of the memory. Default: `OnlineLearnerConfig.retention`.

        Raises
        ------
        MemstoreError
            What the memory raises, and InvalidValue from a model that diverged. Nothing has changed.
        """
        self._claim()
        before = self._before()
        try:
            progress, done = self._consolidated(self._progress)

            def commit() -> Retention:
                removed = self._write(done, policy or self.config.retention(), progress.stats.batches_trained)
                if self.config.checkpoint_every is not None:
                    self._save(self.config.checkpoint_name, progress)
                return removed

            removed = self._span.write(commit, stay_open=False)
        except BaseException as error:
            self._return_to(before, error)
            raise
        self._adopt(progress, before)
        return removed

    def _due(self, progress: Progress) -> bool:
        return self._scheduler.due(progress.scheduler, loss=progress.stats.avg_loss)

    def _consolidated(self, progress: Progress) -> tuple[Progress, Consolidation]:
        done = consolidate_model(self.memory, self.model, self.config, progress.ewc)
        return progress.consolidated(done.ewc, len(done.rehearsed)), done

    def _write(self, done: Consolidation, policy: RetentionPolicy, step: int) -> Retention:
        for batch, losses in done.rehearsed:
            self.memory.update(batch, loss=losses, step=step)
        return self.memory.consolidate(policy)

    # checkpoints

    def save_state(self, name: str = "latest") -> None:
        """Save model, progress, configuration, notes and the memory's generator as a checkpoint, and commit."""
        try:
            self._span.write(lambda: self._save(name, self._progress), stay_open=False)
        except BaseException as error:
            self._return_to(self._before(), error)
            raise
        self._claimed |= name == self.config.checkpoint_name
        self._adopt(self._progress, self._before())

    def resume(self) -> bool:
        """Go on from the last checkpoint if the memory holds one; returns whether it does."""
        name = self.config.checkpoint_name
        if name not in self.memory.checkpoints():
            return False
        self.load_state(name)
        return True

    def load_state(self, name: str = "latest", *, strict: bool = True) -> None:
        """Become the learner that `save_state` saved, the memory's generator included; all of it or nothing.

        What was learned since the last checkpoint in a transaction that is still open is undone.

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
        StoreCorrupt
            It is damaged.
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
        self._claimed |= name == self.config.checkpoint_name
        loaded = self.memory.rng.bit_generator.state
        self._span.abandon()
        self.memory.rng.bit_generator.state = loaded
        self._span_start = None
        self.notes = state.notes
        self._remember_notes()
        self._set(state.progress.under(self.config, state.config))

    def _claim(self) -> None:
        """Refuse to write over a checkpoint that somebody else made, before anything is learned."""
        name = self.config.checkpoint_name
        if not self._claimed and name in self.memory.checkpoints():
            raise ConfigError(
                f"the memory holds a checkpoint {name!r}, which this learner has not loaded and would overwrite: call "
                "resume() to go on from it, or give another checkpoint_name"
            )
        self._claimed = True

    def _save(self, name: str, progress: Progress) -> None:
        state = LearnerState(self.config, progress, self.notes, self.model.state_dict())
        self.memory.save_checkpoint(name, state.to_dict())
        self._remember_notes()

    def _remember_notes(self) -> None:
        """Keep the notes of the checkpoint, to return to; a transaction of one call leaves them to the caller."""
        if (self.config.checkpoint_every or 1) > 1:
            self._saved_notes = copy.deepcopy(self.notes)
