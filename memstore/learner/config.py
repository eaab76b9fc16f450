"""The learner's settings, each checked when the configuration is made, and the presets."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

from sqlalchemy import URL

from memstore.config import check_float, check_int, check_name
from memstore.errors import ConfigError
from memstore.learner.model import MLP, Head
from memstore.memory import EpisodicMemory
from memstore.opening import open as open_memory
from memstore.strategies import DomainBalanced, Strategy, Uniform, as_strategy
from memstore.types import EvictionPolicy, ReplayStrategy


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineLearnerConfig:
    """Settings of a `MemoryOnlineLearner`.

    The first group steers the learner; the second is used where `MemoryOnlineLearner.with_default_model`
    builds the model or opens the memory, and says nothing about a model or memory handed over ready-made.
    Elastic weight consolidation is not built yet, so there is no setting for it.

    Parameters
    ----------
    batch_size : int
        Most examples, new and replayed together, in one gradient step.
    replay_ratio : float
        Replayed episodes per new example, added to the new ones and never in their place; may exceed 1.
    strategy : str or ReplayStrategy or None
        How replayed episodes are drawn; None: the memory's own strategy, ``alpha`` included.
    alpha : float
        Exponent of the prioritized strategies.
    beta : float
        Strength of the importance-sampling correction among replayed examples, 0 (none) to 1 (full). Their
        weights have mean 1, that of a new example.
    consolidation_interval : int
        New examples between two consolidations.
    max_age : float or None
        At consolidation delete episodes older than this many seconds.
    min_importance : float or None
        At consolidation delete episodes below this importance (see `memstore.RetentionPolicy`).
    checkpoint_every : int or None
        Learning calls between two checkpoints, each in the transaction of its call; None: only
        ``save_state``. 1 makes the learner resume exactly after a crash at any point.
    checkpoint_name : str
        Name of these checkpoints.
    learning_rate, momentum : float
        Of the default model's SGD.
    layers : tuple of int
        Widths of the default model, inputs first, outputs last.
    head : {"classification", "regression"}
        Of the default model.
    seed : int
        Of the default model's weights and of the memory's generator.
    capacity : int
        Episodes the memory keeps.
    eviction : str or EvictionPolicy or None
        Who leaves at capacity; None: as the strategy implies.

    Raises
    ------
    ConfigError
        A value is out of range or not a number; the message names the setting.
    """

    batch_size: int = 32
    replay_ratio: float = 0.5
    strategy: str | None = "mixed"
    alpha: float = 0.6
    beta: float = 0.4
    consolidation_interval: int = 1000
    max_age: float | None = None
    min_importance: float | None = None
    checkpoint_every: int | None = None
    checkpoint_name: str = "latest"

    learning_rate: float = 0.001
    momentum: float = 0.0
    layers: tuple[int, ...] = (64, 100, 10)
    head: Head = "classification"
    seed: int = 0
    capacity: int = 10_000
    eviction: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "capacity", "consolidation_interval"):
            self._set(name, check_int(name, getattr(self, name), minimum=1))
        self._set("seed", check_int("seed", self.seed, minimum=0))
        if self.checkpoint_every is not None:
            self._set("checkpoint_every", check_int("checkpoint_every", self.checkpoint_every, minimum=1))
        for name in ("replay_ratio", "alpha", "beta", "momentum"):
            self._set(name, check_float(name, getattr(self, name)))
        for name in ("max_age", "min_importance"):
            if getattr(self, name) is not None:
                self._set(name, check_float(name, getattr(self, name)))
        self._set("learning_rate", check_float("learning_rate", self.learning_rate, exclusive=True))
        if self.beta > 1:
            raise ConfigError(f"beta must be at most 1, got {self.beta}")
        if self.momentum >= 1:
            raise ConfigError(f"momentum must be below 1, got {self.momentum}")
        layers = tuple(check_int("layers", width, minimum=1) for width in self.layers)
        if len(layers) < 2:
            raise ConfigError(f"layers must name at least inputs and outputs, got {layers}")
        self._set("layers", layers)
        if self.head not in get_args(Head):
            raise ConfigError(f"head must be one of {', '.join(get_args(Head))}, got {self.head!r}")
        check_name("checkpoint_name", self.checkpoint_name)
        self._set_choice("strategy", ReplayStrategy)
        self._set_choice("eviction", EvictionPolicy)

    @classmethod
    def default(cls) -> OnlineLearnerConfig:
        """Mixed replay, one replayed episode for two new examples."""
        return cls()

    @classmethod
    def fast(cls) -> OnlineLearnerConfig:
        """Large steps, little replay, a small memory."""
        return cls(
            learning_rate=0.01,
            batch_size=16,
            capacity=1_000,
            replay_ratio=0.2,
            consolidation_interval=500,
            strategy="uniform",
            alpha=0.0,
        )

    @classmethod
    def stable(cls) -> OnlineLearnerConfig:
        """Small steps, much replay, a large memory."""
        return cls(
            learning_rate=0.0001,
            batch_size=64,
            capacity=50_000,
            replay_ratio=0.7,
            consolidation_interval=5_000,
            strategy="prioritized_loss",
            alpha=0.8,
        )

    @classmethod
    def prioritized(cls) -> OnlineLearnerConfig:
        """Replay in proportion to the loss itself."""
        return cls(
            capacity=20_000,
            replay_ratio=0.6,
            consolidation_interval=2_000,
            strategy="prioritized_loss",
            alpha=1.0,
        )

    @classmethod
    def balanced(cls) -> OnlineLearnerConfig:
        """Equally many replayed episodes from every domain."""
        return cls(capacity=15_000, consolidation_interval=1_500, strategy="domain_balanced", alpha=0.5)

    @classmethod
    def preset(cls, name: str) -> OnlineLearnerConfig:
        """Return the preset of this name.

        Raises
        ------
        ConfigError
            There is no such preset.
        """
        if name not in PRESETS:
            raise ConfigError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
        made: OnlineLearnerConfig = getattr(cls, name)()
        return made

    def replay_strategy(self) -> Strategy | None:
        """Return how replayed episodes are drawn, ``alpha`` included where the strategy has one."""
        if self.strategy is None:
            return None
        chosen = as_strategy(self.strategy)
        return chosen if isinstance(chosen, (Uniform, DomainBalanced)) else chosen.with_alpha(self.alpha)

    def open_memory(self, target: str | os.PathLike[str] | URL, *, buffer: str = "default") -> EpisodicMemory:
        """Open a memory with the configuration's capacity, strategy, eviction and seed.

        Raises
        ------
        ConfigError
            The buffer exists with another capacity or eviction policy.
        """
        return open_memory(
            target,
            buffer=buffer,
            capacity=self.capacity,
            strategy=self.replay_strategy(),
            eviction=self.eviction,
            seed=self.seed,
        )

    def default_model(self) -> MLP:
        """Return a new model, by ``layers``, ``head``, ``learning_rate``, ``momentum`` and ``seed``."""
        return MLP(
            self.layers,
            head=self.head,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as a dict of scalars and lists."""
        return {**asdict(self), "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OnlineLearnerConfig:
        """Return the configuration that `to_dict` wrote; a setting it lacks gets its default.

        Raises
        ------
        ConfigError
            A setting is unknown or invalid.
        """
        unknown = values.keys() - {field.name for field in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
        return cls(**values)

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _set_choice(self, name: str, choices: type[ReplayStrategy] | type[EvictionPolicy]) -> None:
        value = getattr(self, name)
        if value is not None:
            try:
                self._set(name, choices(value).value)
            except ValueError:
                names = ", ".join(member.value for member in choices)
                raise ConfigError(f"{name} must be one of {names}, got {value!r}") from None


PRESETS = ("default", "fast", "stable", "prioritized", "balanced")
