"""Settings are checked when made (origin's defect 18), presets have the documented values."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from memstore.errors import ConfigError
from memstore.learner import PRESETS, OnlineLearnerConfig, training_config

NAMES = (
    "learning_rate",
    "batch_size",
    "capacity",
    "replay_ratio",
    "consolidation_interval",
    "strategy",
    "alpha",
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
        {"alpha": -0.5},
        {"alpha": float("nan")},
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
        {"strategy": "mixd"},
        {"strategy": 3},
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
        config.alpha = 1.0  # type: ignore[misc]
    assert OnlineLearnerConfig.from_dict(config.to_dict()) == config
    assert OnlineLearnerConfig.from_dict({"alpha": 0.3}).alpha == 0.3
    with pytest.raises(ConfigError, match="use_ewc"):
        OnlineLearnerConfig.from_dict({"use_ewc": True})


def test_unknown_preset() -> None:
    with pytest.raises(ConfigError, match="balanced"):
        OnlineLearnerConfig.preset("to_dict")


def test_training_config_replaces_what_is_given_only() -> None:
    digits = training_config()
    assert training_config(capacity=None, seed=None) == digits
    fast = training_config("fast", capacity=77)
    assert (fast.capacity, fast.replay_ratio, fast.strategy) == (77, 0.2, "uniform")
    assert fast.learning_rate == digits.learning_rate
