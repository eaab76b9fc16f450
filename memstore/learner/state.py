"""A learner's checkpoint: what is in it, and the checks before any of it is believed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from memstore.errors import ConfigError, InvalidValue
from memstore.learner.config import OnlineLearnerConfig
from memstore.learner.stats import OnlineLearnerStats

FORMAT = 1
_PARTS = ("config", "stats", "notes", "model")


@dataclass(frozen=True, slots=True)
class LearnerState:
    """Everything a learner is, beside its memory."""

    config: OnlineLearnerConfig
    stats: OnlineLearnerStats
    notes: dict[str, Any]
    model: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the state as a memory's checkpoint takes it."""
        return {
            "format": FORMAT,
            "config": self.config.to_dict(),
            "stats": self.stats.to_dict(),
            "notes": self.notes,
            "model": self.model,
        }

    @classmethod
    def from_dict(cls, name: str, state: Mapping[str, Any]) -> LearnerState:
        """Return the state in the checkpoint ``name``.

        Raises
        ------
        InvalidValue
            The checkpoint is not a learner's.
        """
        if state.get("format") != FORMAT or not all(isinstance(state.get(part), dict) for part in _PARTS):
            raise InvalidValue(f"checkpoint {name!r} was not written by this version of the learner")
        return cls(
            config=OnlineLearnerConfig.from_dict(state["config"]),
            stats=OnlineLearnerStats.from_dict(state["stats"]),
            notes=state["notes"],
            model=state["model"],
        )

    def refuse_other_config(self, name: str, given: OnlineLearnerConfig) -> None:
        """Raise ConfigError, naming the settings, when the state was saved under another configuration."""
        pairs = {f.name: (getattr(self.config, f.name), getattr(given, f.name)) for f in fields(given)}
        differing = [f"{name} (stored {a!r}, given {b!r})" for name, (a, b) in pairs.items() if a != b]
        if differing:
            raise ConfigError(
                f"checkpoint {name!r} was saved with other settings: {', '.join(differing)}; "
                "load_state(..., strict=False) continues it with those given"
            )
