"""The state of a learner, apart from its model and its memory, and the checkpoint that stores all of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from memstore.errors import ConfigError, InvalidValue
from memstore.learner.config import OnlineLearnerConfig
from memstore.learner.curriculum import CurriculumState
from memstore.learner.example import MIN_LEVEL, OnlineExample
from memstore.learner.models.ewc import EWC
from memstore.learner.scheduler import SchedulerState
from memstore.learner.stats import OnlineLearnerStats

FORMAT = 2
"""This version writes and reads checkpoints of this format."""

_PARTS: dict[str, Any] = {
    "config": dict,
    "stats": dict,
    "scheduler": dict,
    "curriculum": (dict, type(None)),
    "ewc": (dict, type(None)),
    "notes": dict,
    "model": dict,
}
"""A checkpoint has these parts. Each is given with its type."""


@dataclass(frozen=True, slots=True)
class Progress:
    """The part of the state that a learning call replaces when it has committed.

    Attributes
    ----------
    stats : OnlineLearnerStats
    scheduler : SchedulerState
    curriculum : CurriculumState or None
        None without a curriculum.
    ewc : EWC or None
        None without elastic weight consolidation.
    """

    stats: OnlineLearnerStats
    scheduler: SchedulerState
    curriculum: CurriculumState | None
    ewc: EWC | None

    @classmethod
    def start(cls, config: OnlineLearnerConfig) -> Progress:
        """Return the progress of a learner that has learned nothing yet."""
        curriculum = None if config.curriculum is None else CurriculumState.start(config.curriculum)
        ewc = EWC.start(config.ewc_lambda, config.ewc_decay) if config.ewc else None
        level = MIN_LEVEL if curriculum is None else curriculum.current_level
        return cls(OnlineLearnerStats(current_level=level), SchedulerState(), curriculum, ewc)

    def after(
        self,
        config: OnlineLearnerConfig,
        examples: Sequence[OnlineExample],
        losses: Sequence[float],
        *,
        replayed: Iterable[str],
        steps: int,
        debt: float,
    ) -> Progress:
        """Return the progress after a call that learned these examples. See `OnlineLearnerStats.after`."""
        curriculum = self.curriculum
        if curriculum is not None and config.curriculum is not None:
            now = curriculum.current_level
            counted = [loss for loss, example in zip(losses, examples, strict=True) if example.level == now]
            curriculum = curriculum.after(config.curriculum, counted)
        stats = self.stats.after(examples, losses, replayed=replayed, steps=steps, debt=debt)
        if curriculum is not None:
            stats = replace(stats, current_level=curriculum.current_level)
        return replace(self, stats=stats, curriculum=curriculum)

    def after_consolidation(self, ewc: EWC | None, steps: int) -> Progress:
        """Return the progress after a consolidation that took this many gradient steps."""
        stats = self.stats.after_consolidation(steps)
        return replace(self, stats=stats, scheduler=self.scheduler.after_consolidation(stats.avg_loss), ewc=ewc)

    def continue_under(self, config: OnlineLearnerConfig, stored: OnlineLearnerConfig) -> Progress:
        """Return the progress to continue with under ``config``. It was reached under ``stored``."""
        fresh = Progress.start(config)
        ewc = fresh.ewc
        if ewc is not None and self.ewc is not None:
            ewc = replace(self.ewc, strength=ewc.strength, decay=ewc.decay)
        same_levels = config.curriculum == stored.curriculum
        return replace(self, curriculum=self.curriculum if same_levels else fresh.curriculum, ewc=ewc)


@dataclass(frozen=True, slots=True)
class Moment:
    """The state before a call, to return to if the call fails: that of the model, the generator and the progress."""

    model: dict[str, Any]
    generator: Any
    progress: Progress


@dataclass(frozen=True, slots=True)
class LearnerState:
    """The whole state of a learner, without its memory."""

    config: OnlineLearnerConfig
    progress: Progress
    notes: dict[str, Any]
    model: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the state in the form that a checkpoint stores."""
        progress = {item.name: getattr(self.progress, item.name) for item in fields(Progress)}
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            **{name: part and part.to_dict() for name, part in progress.items()},
            "notes": self.notes,
            "model": self.model,
        }

    @classmethod
    def from_dict(cls, name: str, state: Mapping[str, Any]) -> LearnerState:
        """Return the state that the checkpoint ``name`` stores.

        Raises
        ------
        InvalidValue
            The checkpoint was not written by a learner, or one of its parts is damaged.
        """
        written = state.get("format")
        if written != FORMAT or not all(
            part in state and isinstance(state[part], kind) for part, kind in _PARTS.items()
        ):
            raise InvalidValue(
                f"checkpoint {name!r} was not written by this version of the learner (format {written!r}, not {FORMAT})"
            )
        return cls(
            config=OnlineLearnerConfig.from_dict(state["config"]),
            progress=Progress(
                stats=OnlineLearnerStats.from_dict(state["stats"]),
                scheduler=SchedulerState.from_dict(state["scheduler"]),
                curriculum=state["curriculum"] and CurriculumState.from_dict(state["curriculum"]),
                ewc=state["ewc"] and EWC.from_dict(state["ewc"], state["model"]),
            ),
            notes=state["notes"],
            model=state["model"],
        )

    def refuse_other_config(self, name: str, given: OnlineLearnerConfig) -> None:
        """Raise ConfigError if the state was saved under another configuration. The message names the settings."""
        pairs = self.config.differences(given).items()
        differing = [f"{setting} (stored {stored!r}, given {now!r})" for setting, (stored, now) in pairs]
        if differing:
            raise ConfigError(
                f"checkpoint {name!r} was saved with other settings: {', '.join(differing)}; "
                "load_state(..., strict=False) continues it with those given"
            )
