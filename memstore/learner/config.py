"""The learner's settings, each checked when the configuration is made, and the presets."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from sqlalchemy import URL

from memstore.config import UNCHANGED, check_float, check_int, check_name
from memstore.draws.strategies import DomainBalanced, Strategy, Uniform, as_strategy
from memstore.errors import ConfigError
from memstore.learner.curriculum import CurriculumConfig
from memstore.learner.models.mlp import MLP, Head
from memstore.learner.models.optimizer import OptimizerName
from memstore.learner.scheduler import ConsolidationScheduler, ExampleCount
from memstore.memory import EpisodicMemory
from memstore.memory import open as open_memory
from memstore.types import EvictionPolicy, ReplayStrategy, RetentionPolicy

Retrieval = Literal["draw", "mir"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineLearnerConfig:
    """Settings of a `MemoryOnlineLearner`.

    The first group steers the learner; the second is used where `MemoryOnlineLearner.with_default_model`
    builds the model or opens the memory, and says nothing about a model or memory handed over ready-made.

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
    retrieval : {"draw", "mir"}
        ``"draw"`` replays what the strategy draws. ``"mir"`` draws ``retrieval_candidates`` and replays those of
        them whose loss a step on the new examples alone would raise most (maximally interfered retrieval,
        Aljundi et al. 2019, section 3.1); it costs that step and two passes over the candidates.
    retrieval_candidates : int
    ewc : bool
        Elastic weight consolidation: a penalty in every step, see `EWC`.
    ewc_lambda, ewc_decay : float
        Its strength, and the share of the former Fisher diagonal that a consolidation keeps, 0 to 1.
    ewc_samples : int
        Episodes, drawn uniformly, that each estimate is made from.
    consolidation_interval : int
        New examples between two consolidations, where ``scheduler`` does not say otherwise.
    scheduler : ConsolidationScheduler or None
        When to consolidate; None: every ``consolidation_interval`` new examples.
    integrate_steps : int
        Extra gradient steps of a consolidation, each on ``batch_size`` episodes drawn evenly over the domains.
    max_age : float or None
        At consolidation delete episodes older than this many seconds.
    min_importance : float or None
        At consolidation delete episodes below this importance (see `memstore.RetentionPolicy`).
    consolidate_similar : float or None
        At consolidation keep one of near-identical episodes; the tolerance (see `memstore.RetentionPolicy`). It reads
        every payload, and inside the learner's commit: other writers wait meanwhile.
    curriculum : CurriculumConfig or None
        Levels to advance through; None: ``stats.current_level`` is that of the newest example.
    checkpoint_every : int or None
        Learning calls that make one commit, with a checkpoint at its end. With any number the learner resumes
        exactly, from the last checkpoint. 1 (the default) commits in every call. With more the write lock is held
        from the first of the calls to the last, so only a learner that is alone on its database should: the
        others would wait. None commits in every call and saves only by ``save_state``; what was learned since
        is then in the memory and not in the weights.
    checkpoint_name : str
        Name of these checkpoints.

    optimizer : {"sgd", "adam"}
        Of the default model.
    learning_rate, momentum : float
        Of its optimizer.
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
    retrieval: Retrieval = "draw"
    retrieval_candidates: int = 50
    ewc: bool = False
    ewc_lambda: float = 0.4
    ewc_decay: float = 0.9
    ewc_samples: int = 100
    consolidation_interval: int = 1000
    scheduler: ConsolidationScheduler | None = None
    integrate_steps: int = 0
    max_age: float | None = None
    min_importance: float | None = None
    consolidate_similar: float | None = None
    curriculum: CurriculumConfig | None = None
    checkpoint_every: int | None = 1
    checkpoint_name: str = "latest"

    optimizer: OptimizerName = "sgd"
    learning_rate: float = 0.001
    momentum: float = 0.0
    layers: tuple[int, ...] = (64, 100, 10)
    head: Head = "classification"
    seed: int = 0
    capacity: int = 10_000
    eviction: str | None = None

    def __post_init__(self) -> None:
        for name in ("batch_size", "capacity", "consolidation_interval", "retrieval_candidates", "ewc_samples"):
            self._set(name, check_int(name, getattr(self, name), minimum=1))
        for name in ("seed", "integrate_steps"):
            self._set(name, check_int(name, getattr(self, name), minimum=0))
        if self.checkpoint_every is not None:
            self._set("checkpoint_every", check_int("checkpoint_every", self.checkpoint_every, minimum=1))
        for name in ("replay_ratio", "alpha", "ewc_lambda"):
            self._set(name, check_float(name, getattr(self, name)))
        for name in ("beta", "ewc_decay"):
            self._set(name, check_float(name, getattr(self, name), maximum=1.0))
        for name, most in (("max_age", math.inf), ("min_importance", 1.0), ("consolidate_similar", 1.0)):
            if getattr(self, name) is not None:
                self._set(name, check_float(name, getattr(self, name), maximum=most))
        self._set("learning_rate", check_float("learning_rate", self.learning_rate, exclusive=True))
        self._set("momentum", check_float("momentum", self.momentum))
        if self.momentum >= 1:
            raise ConfigError(f"momentum must be below 1, got {self.momentum}")
        if not isinstance(self.ewc, bool):
            raise ConfigError(f"ewc must be True or False, got {self.ewc!r}")
        layers = tuple(check_int("layers", width, minimum=1) for width in self.layers)
        if len(layers) < 2:
            raise ConfigError(f"layers must name at least inputs and outputs, got {layers}")
        self._set("layers", layers)
        for name, literal in (("head", Head), ("retrieval", Retrieval), ("optimizer", OptimizerName)):
            if getattr(self, name) not in get_args(literal):
                raise ConfigError(f"{name} must be one of {', '.join(get_args(literal))}, got {getattr(self, name)!r}")
        for name, kind in _NESTED.items():
            if not isinstance(getattr(self, name), (kind, type(None))):
                raise ConfigError(f"{name} must be a {kind.__name__} or None, got {getattr(self, name)!r}")
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
        """Small steps, much replay, a large memory, elastic weight consolidation."""
        return cls(
            ewc=True,
            ewc_lambda=0.5,
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

    def consolidation_scheduler(self) -> ConsolidationScheduler:
        """Return ``scheduler``, or the one of ``consolidation_interval``."""
        return self.scheduler or ConsolidationScheduler(ExampleCount(self.consolidation_interval))

    def retention(self) -> RetentionPolicy:
        """Return what a consolidation keeps of the memory. The capacity needs no policy: it holds at every add."""
        return RetentionPolicy(
            max_age=self.max_age, min_importance=self.min_importance, consolidate_similar=self.consolidate_similar
        )

    def open_memory(self, target: str | os.PathLike[str] | URL, *, buffer: str = "default") -> EpisodicMemory:
        """Open a memory with the configuration's capacity, strategy, eviction and seed.

        Raises
        ------
        ConfigError
            The buffer exists with another capacity or eviction policy.
        """
        strategy = self.replay_strategy()
        return open_memory(
            target,
            buffer=buffer,
            capacity=self.capacity,
            strategy=UNCHANGED if strategy is None else strategy,
            eviction=UNCHANGED if self.eviction is None else self.eviction,
            seed=self.seed,
        )

    def default_model(self) -> MLP:
        """Return a new model, by ``layers``, ``head``, ``optimizer``, its rates and ``seed``."""
        return MLP(
            self.layers,
            head=self.head,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            seed=self.seed,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as scalars, lists and dicts of them."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        nested = {name: values[name].to_dict() for name in _NESTED if values[name] is not None}
        return {**values, **nested, "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OnlineLearnerConfig:
        """Return the configuration that `to_dict` wrote; a setting it lacks gets its default.

        Raises
        ------
        ConfigError
            A setting is unknown or invalid.
        """
        unknown = values.keys() - {item.name for item in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
        nested = {name: kind.from_dict(values[name]) for name, kind in _NESTED.items() if values.get(name) is not None}
        return cls(**{**values, **nested})

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


_NESTED: dict[str, Any] = {"scheduler": ConsolidationScheduler, "curriculum": CurriculumConfig}

PRESETS = ("default", "fast", "stable", "prioritized", "balanced")
