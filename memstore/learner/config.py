"""The settings of the learner. Each is checked when the configuration is made. The presets stand here too."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from sqlalchemy import URL

from memstore.config import UNCHANGED, check_float, check_int, check_name
from memstore.draws.strategies import (
    DomainBalanced,
    PrioritizedLoss,
    Strategy,
    Uniform,
    as_strategy,
    strategy_from_json,
)
from memstore.errors import ConfigError, MemstoreError
from memstore.learner.curriculum import CurriculumConfig
from memstore.learner.models.mlp import MLP, Head
from memstore.learner.models.optimizer import OptimizerName
from memstore.learner.scheduler import ConsolidationScheduler, ExampleCount
from memstore.memory import EpisodicMemory
from memstore.memory import open as open_memory
from memstore.types import EvictionPolicy, ReplayStrategy, RetentionPolicy

Retrieval = Literal["draw", "mir"]

_FORMER_NAMES = {"strategy": "replay_strategy", "alpha": "priority_alpha"}
"""Earlier versions stored these settings under other names: the old name of each, with its name now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OnlineLearnerConfig:
    """Settings of a `MemoryOnlineLearner`.

    The first group steers the learner. The second group is used where `MemoryOnlineLearner.with_default_model`
    builds the model or opens the memory. It has no effect on a model or a memory that you hand over ready-made.

    Parameters
    ----------
    batch_size : int
        Largest number of examples, new and replayed together, in one gradient step.
    replay_ratio : float
        Replayed episodes per new example. They are added to the new ones and never take their place. May exceed 1.
    replay_strategy : Strategy, str, ReplayStrategy or None
        Strategy that draws replayed episodes, such as ``PrioritizedLoss(0.8)``, or the name of a strategy. None: the
        memory's own strategy, with the memory's exponent.
    priority_alpha : float or None
        Exponent of the strategy, >= 0. It replaces the exponent of a `Strategy` too. Strategies without an exponent
        ignore it. None: the exponent that the strategy has; a strategy given by its name has 0.6.
    beta : float
        Strength of the importance-sampling correction among replayed examples, from 0 (none) to 1 (full). Their
        weights are scaled to the mean 1, which is the weight of a new example.
    retrieval : {"draw", "mir"}
        ``"draw"`` replays the episodes that the strategy draws. ``"mir"`` draws ``retrieval_candidates`` episodes and
        replays those whose loss would rise most after a step on the new examples alone (maximally interfered
        retrieval, Aljundi et al. 2019, section 3.1). That costs one step and two passes over the candidates.
    retrieval_candidates : int
        Episodes that ``"mir"`` draws and compares.
    ewc : bool
        True adds the penalty of elastic weight consolidation to every step. See `EWC`.
    ewc_lambda : float
        Strength of the penalty, >= 0.
    ewc_decay : float
        Share of the former Fisher diagonal that a consolidation keeps, 0 to 1.
    ewc_samples : int
        Number of episodes, drawn uniformly, for each Fisher estimate.
    consolidation_interval : int
        New examples between two consolidations. Used only without a ``scheduler``.
    scheduler : ConsolidationScheduler or None
        Rule that decides when to consolidate. None: every ``consolidation_interval`` new examples.
    integrate_steps : int
        Extra gradient steps of a consolidation, each on ``batch_size`` episodes drawn evenly over the domains.
    max_age : float or None
        A consolidation deletes episodes older than this many seconds. None: it deletes none for their age.
    min_importance : float or None
        A consolidation deletes episodes below this importance, 0 to 1 (see `memstore.RetentionPolicy`).
    consolidate_similar : float or None
        A consolidation keeps one of several near-identical episodes. The number is the tolerance, 0 to 1 (see
        `memstore.RetentionPolicy`). This reads every payload inside the learner's commit, and other writers wait for
        it.
    curriculum : CurriculumConfig or None
        The levels to advance through. None: ``stats.current_level`` is the level of the newest example.
    checkpoint_every : int or None
        Number of learning calls that share one commit, which ends with a checkpoint. With any number the learner
        resumes exactly from the last checkpoint. 1 (the default) commits in every call. A larger number holds the write
        lock from the first of the calls to the last. Only a learner that is alone on its database should use it,
        because all others would wait. None commits in every call, and saves a checkpoint only in ``save_state``. After
        a crash, the calls since the last checkpoint are then in the memory and not in the weights.
    checkpoint_name : str
        Name of these checkpoints.

    optimizer : {"sgd", "adam"}
        Optimizer of the default model.
    learning_rate, momentum : float
        Settings of that optimizer.
    layers : tuple of int
        Widths of the default model's layers, inputs first, outputs last.
    head : {"classification", "regression"}
        Kind of the default model's answer: one of several classes, or numbers.
    seed : int
        Seed of the default model's weights and of the memory's generator.
    capacity : int
        Largest number of episodes in the memory.
    eviction : str or EvictionPolicy or None
        Policy that decides which episodes leave at capacity. None: the policy that suits the strategy.

    Raises
    ------
    ConfigError
        A value is out of range or not a number; the message names the setting.
    """

    batch_size: int = 32
    replay_ratio: float = 0.5
    replay_strategy: Strategy | str | None = "mixed"
    priority_alpha: float | None = None
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
        for name, least in _WHOLE_NUMBERS.items():
            self._check(name, check_int, minimum=least)
        for name, most in _NUMBERS.items():
            self._check(name, check_float, maximum=most)
        self._check("learning_rate", check_float, exclusive=True)
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
        if not isinstance(self.replay_strategy, Strategy):
            self._set_choice("replay_strategy", ReplayStrategy)
        self._set_choice("eviction", EvictionPolicy)

    @classmethod
    def default(cls) -> OnlineLearnerConfig:
        """Return mixed replay: one replayed episode for two new examples."""
        return cls(priority_alpha=0.6)

    @classmethod
    def fast(cls) -> OnlineLearnerConfig:
        """Return large steps, little replay and a small memory."""
        return cls(
            learning_rate=0.01,
            batch_size=16,
            capacity=1_000,
            replay_ratio=0.2,
            consolidation_interval=500,
            replay_strategy="uniform",
            priority_alpha=0.0,
        )

    @classmethod
    def stable(cls) -> OnlineLearnerConfig:
        """Return small steps, much replay, a large memory, and elastic weight consolidation."""
        return cls(
            ewc=True,
            ewc_lambda=0.5,
            learning_rate=0.0001,
            batch_size=64,
            capacity=50_000,
            replay_ratio=0.7,
            consolidation_interval=5_000,
            replay_strategy="prioritized_loss",
            priority_alpha=0.8,
        )

    @classmethod
    def prioritized(cls) -> OnlineLearnerConfig:
        """Return replay in proportion to the loss itself."""
        return cls(
            capacity=20_000,
            replay_ratio=0.6,
            consolidation_interval=2_000,
            replay_strategy="prioritized_loss",
            priority_alpha=1.0,
        )

    @classmethod
    def balanced(cls) -> OnlineLearnerConfig:
        """Return equal numbers of replayed episodes from every domain."""
        return cls(capacity=15_000, consolidation_interval=1_500, replay_strategy="domain_balanced", priority_alpha=0.5)

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

    def build_strategy(self) -> Strategy | None:
        """Return the strategy that draws replayed episodes, with ``priority_alpha``; None: the memory's own."""
        if self.replay_strategy is None:
            return None
        strategy = as_strategy(self.replay_strategy)
        if self.priority_alpha is None or isinstance(strategy, (Uniform, DomainBalanced)):
            return strategy
        return strategy.with_alpha(self.priority_alpha)

    def consolidation_scheduler(self) -> ConsolidationScheduler:
        """Return ``scheduler``, or a scheduler that consolidates every ``consolidation_interval`` examples."""
        return self.scheduler or ConsolidationScheduler(ExampleCount(self.consolidation_interval))

    def retention(self) -> RetentionPolicy:
        """Return the policy that a consolidation applies to the memory.

        It has no limit on the number of episodes: the capacity holds at every add.
        """
        return RetentionPolicy(
            max_age=self.max_age, min_importance=self.min_importance, consolidate_similar=self.consolidate_similar
        )

    def open_memory(self, target: str | os.PathLike[str] | URL, *, buffer: str = "default") -> EpisodicMemory:
        """Open a memory with this capacity, strategy, eviction and seed.

        Raises
        ------
        ConfigError
            The buffer exists with another capacity or eviction policy.
        """
        strategy = self.build_strategy()
        return open_memory(
            target,
            buffer=buffer,
            capacity=self.capacity,
            strategy=UNCHANGED if strategy is None else strategy,
            eviction=UNCHANGED if self.eviction is None else self.eviction,
            seed=self.seed,
        )

    def default_model(self) -> MLP:
        """Return a new model with the configuration's layers, head, optimizer and seed."""
        return MLP(
            self.layers,
            head=self.head,
            optimizer=self.optimizer,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            seed=self.seed,
        )

    def differences(self, other: OnlineLearnerConfig) -> dict[str, tuple[Any, Any]]:
        """Return the settings in which two configurations differ, as ``{name: (own value, other's value)}``."""
        pairs = {item.name: (getattr(self, item.name), getattr(other, item.name)) for item in fields(self)}
        pairs["priority_alpha"] = self._exponent(), other._exponent()
        return {name: (own, others) for name, (own, others) in pairs.items() if own != others}

    def _exponent(self) -> float | None:
        """Return ``priority_alpha``, or the exponent of a strategy given by its name, which earlier versions stored."""
        if self.priority_alpha is None and not isinstance(self.replay_strategy, Strategy):
            return PrioritizedLoss().alpha
        return self.priority_alpha

    def to_dict(self) -> dict[str, Any]:
        """Return the settings as scalars, and as lists and dicts of scalars."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        nested = {name: values[name].to_dict() for name in _NESTED if values[name] is not None}
        if isinstance(self.replay_strategy, Strategy):
            nested["replay_strategy"] = json.loads(self.replay_strategy.to_json())
        return {**values, **nested, "layers": list(self.layers)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OnlineLearnerConfig:
        """Return the configuration that `to_dict` wrote, of this version or an earlier one.

        A setting that is not among the values gets its default.

        Raises
        ------
        ConfigError
            A setting is unknown or invalid.
        """
        values = {_FORMER_NAMES.get(name, name): value for name, value in values.items()}
        unknown = values.keys() - {item.name for item in fields(cls)}
        if unknown:
            raise ConfigError(f"unknown settings: {', '.join(sorted(unknown))}")
        nested = {name: kind.from_dict(values[name]) for name, kind in _NESTED.items() if values.get(name) is not None}
        if isinstance(values.get("replay_strategy"), Mapping):
            nested["replay_strategy"] = _stored_strategy(values["replay_strategy"])
        return cls(**{**values, **nested})

    def _check(self, name: str, check: Callable[..., Any], **bounds: Any) -> None:
        value = getattr(self, name)
        if value is not None or name not in _OPTIONAL:
            self._set(name, check(name, value, **bounds))

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
"""These settings are objects. Each is given with its class."""

_WHOLE_NUMBERS = dict.fromkeys(("seed", "integrate_steps"), 0) | dict.fromkeys(
    ("batch_size", "capacity", "consolidation_interval", "retrieval_candidates", "ewc_samples", "checkpoint_every"), 1
)
"""These settings are integers. Each is given with its smallest value."""

_NUMBERS = dict.fromkeys(("beta", "ewc_decay", "min_importance", "consolidate_similar"), 1.0) | dict.fromkeys(
    ("replay_ratio", "priority_alpha", "ewc_lambda", "max_age", "momentum"), math.inf
)
"""These settings are finite numbers >= 0. Each is given with its largest value."""

_OPTIONAL = {"priority_alpha", "checkpoint_every", "max_age", "min_importance", "consolidate_similar"}
"""These numbers may be None."""

PRESETS = ("default", "fast", "stable", "prioritized", "balanced")
"""`OnlineLearnerConfig.preset` takes these names."""


def _stored_strategy(document: Mapping[str, Any]) -> Strategy:
    try:
        return strategy_from_json(json.dumps(document))
    except (MemstoreError, TypeError) as error:
        raise ConfigError(f"replay_strategy is not a stored strategy: {document!r:.200}") from error
