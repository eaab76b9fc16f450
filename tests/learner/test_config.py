"""Settings are checked when made (origin's defect 18), presets have the documented values."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from memstore import DomainBalanced, Mixed, PrioritizedLoss, PrioritizedRecency, ReplayStrategy, Strategy, Uniform
from memstore.errors import ConfigError
from memstore.learner import PRESETS, OnlineLearnerConfig, training_config

NAMES = (
    "learning_rate",
    "batch_size",
    "capacity",
    "replay_ratio",
    "consolidation_interval",
    "replay_strategy",
    "priority_alpha",
)


@pytest.mark.parametrize(
    ("preset", "values"),
    [
        ("default", (0.001, 32, 10_000, 0.5, 1000, "mixed", 0.6)),
        ("fast", (0.01, 16, 1_000, 0.2, 500, "uniform", 0.0)),
        ("stable", (0.0001, 64, 50_000, 0.7, 5000, "prioritized_loss", 0.8)),
        ("prioritized", (0.001, 32, 20_000, 0.6, 2000, "prioritized_loss", 1.0)),
        ("balanced", (0.001, 32, 15_000, 0.5, 1500, "domain_balanced", 0.5)),
    ],
)
def test_presets(preset: str, values: tuple[Any, ...]) -> None:
    config = OnlineLearnerConfig.preset(preset)
    assert tuple(getattr(config, name) for name in NAMES) == values
    assert config == getattr(OnlineLearnerConfig, preset)()
    assert preset in PRESETS


@pytest.mark.parametrize(
    "settings",
    [
        {"capacity": 0},
        {"capacity": 1.5},
        {"capacity": True},
        {"batch_size": 0},
        {"batch_size": -1},
        {"consolidation_interval": 0},
        {"checkpoint_every": 0},
        {"seed": -1},
        {"replay_ratio": -0.1},
        {"replay_ratio": float("nan")},
        {"replay_ratio": float("inf")},
        {"replay_ratio": "half"},
        {"priority_alpha": -0.5},
        {"priority_alpha": float("nan")},
        {"beta": 1.1},
        {"beta": -0.1},
        {"learning_rate": 0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"momentum": -0.1},
        {"max_age": -1.0},
        {"min_importance": float("nan")},
        {"layers": (64,)},
        {"layers": (64, 0, 10)},
        {"head": "both"},
        {"replay_strategy": "mixd"},
        {"replay_strategy": 3},
        {"eviction": "newest"},
        {"checkpoint_name": ""},
    ],
)
def test_18_a_bad_value_is_refused_by_name(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(settings))):
        OnlineLearnerConfig(**settings)


def test_18_the_ratio_may_exceed_one() -> None:
    assert OnlineLearnerConfig(replay_ratio=2.5).replay_ratio == 2.5


def test_it_is_frozen_and_survives_a_dict() -> None:
    config = OnlineLearnerConfig.stable()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.priority_alpha = 1.0  # type: ignore[misc]
    assert OnlineLearnerConfig.from_dict(config.to_dict()) == config
    assert OnlineLearnerConfig.from_dict({"priority_alpha": 0.3}).priority_alpha == 0.3
    with pytest.raises(ConfigError, match="use_ewc"):
        OnlineLearnerConfig.from_dict({"use_ewc": True})


@pytest.mark.parametrize(
    ("settings", "strategy"),
    [
        ({}, Mixed()),
        ({"replay_strategy": None, "priority_alpha": 0.3}, None),
        ({"replay_strategy": "prioritized_loss"}, PrioritizedLoss(0.6)),
        ({"replay_strategy": ReplayStrategy.PRIORITIZED_LOSS, "priority_alpha": 0.3}, PrioritizedLoss(0.3)),
        ({"replay_strategy": "uniform", "priority_alpha": 0.3}, Uniform()),
        ({"replay_strategy": PrioritizedLoss(0.9)}, PrioritizedLoss(0.9)),
        ({"replay_strategy": PrioritizedRecency(0.9), "priority_alpha": 0.3}, PrioritizedRecency(0.3)),
        ({"replay_strategy": DomainBalanced({"a": 1.0, "b": 3.0})}, DomainBalanced({"a": 1.0, "b": 3.0})),
        (
            {"replay_strategy": Mixed({PrioritizedLoss(0.9): 0.7, Uniform(): 0.3})},
            Mixed({PrioritizedLoss(0.9): 0.7, Uniform(): 0.3}),
        ),
    ],
)
def test_a_strategy_is_an_object_or_a_name_and_alpha_none_is_the_strategys_own(
    settings: dict[str, Any], strategy: Strategy | None
) -> None:
    config = OnlineLearnerConfig(**settings)
    assert config.build_strategy() == strategy
    stored = json.loads(json.dumps(config.to_dict()))
    assert OnlineLearnerConfig.from_dict(stored) == config


def test_the_names_of_earlier_versions_are_read() -> None:
    former = {**OnlineLearnerConfig.stable().to_dict(), "strategy": "prioritized_loss", "alpha": 0.8}
    del former["replay_strategy"], former["priority_alpha"]
    assert OnlineLearnerConfig.from_dict(former) == OnlineLearnerConfig.stable()


def test_the_exponent_of_a_named_strategy_may_be_left_out_or_given() -> None:
    """Earlier versions stored 0.6 where nothing was given."""
    assert OnlineLearnerConfig().differences(OnlineLearnerConfig(priority_alpha=0.6)) == {}
    assert OnlineLearnerConfig().differences(OnlineLearnerConfig(priority_alpha=0.7)) == {"priority_alpha": (0.6, 0.7)}
    own = OnlineLearnerConfig(replay_strategy=PrioritizedLoss(0.9))
    assert own.differences(OnlineLearnerConfig(replay_strategy=PrioritizedLoss(0.9), priority_alpha=0.6)) != {}


@pytest.mark.parametrize(
    "stored", [{"name": "mixd"}, {"name": "prioritized_loss", "beta": 1.0}, {}, {"name": ["mixed"]}]
)
def test_a_stored_strategy_that_is_none_is_refused(stored: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="replay_strategy"):
        OnlineLearnerConfig.from_dict({"replay_strategy": stored})


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="balanced"):
        OnlineLearnerConfig.preset("to_dict")


def test_training_config_replaces_what_is_given_only() -> None:
    digits = training_config()
    assert training_config(capacity=None, seed=None) == digits
    fast = training_config("fast", capacity=77)
    assert (fast.capacity, fast.replay_ratio, fast.replay_strategy) == (77, 0.2, "uniform")
    assert fast.learning_rate == digits.learning_rate
