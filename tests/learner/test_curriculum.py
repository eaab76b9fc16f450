"""The curriculum's rules at their boundaries, and the origin's defect 39."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memstore.errors import ConfigError, InvalidValue
from memstore.learner import CurriculumConfig, CurriculumState, MemoryOnlineLearner, OnlineExample, OnlineLearnerConfig

CONFIG = CurriculumConfig(examples_per_level=10, advance_loss_threshold=0.5, min_examples_before_advance=4)
LOSSES = st.lists(st.floats(0, 5), max_size=40)


def after(losses: list[float], config: CurriculumConfig = CONFIG) -> CurriculumState:
    return CurriculumState.start(config).after(config, losses)


def test_the_count_alone_advances() -> None:
    assert after([1.0] * 9).current_level == 1
    state = after([1.0] * 10)
    assert (state.current_level, state.examples_at_level, state.advancements) == (2, 0, 1)
    assert (state.avg_loss_at_level, state.best_loss_at_level) == (None, None)


def test_a_low_mean_advances_once_enough_was_seen() -> None:
    assert after([0.1] * 3).current_level == 1
    assert after([0.1] * 4).current_level == 2
    assert after([0.5] * 9).current_level == 1, "below, not at"


def test_39_one_lucky_loss_does_not() -> None:
    state = after([2.0, 2.0, 2.0, 2.0, 0.0])
    assert state.current_level == 1
    assert state.avg_loss_at_level is not None and state.avg_loss_at_level > 0.5


def test_the_mean_is_unbiased_from_the_first_loss() -> None:
    """Bias-corrected exponential average: weights (1 - 1/4)^k, normalised."""
    losses = [3.0, 1.0, 2.0]
    weights = [0.75**2, 0.75, 1.0]
    expected = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    state = after(losses)
    assert state.avg_loss_at_level == pytest.approx(expected, rel=1e-12)
    assert state.best_loss_at_level is None, "not comparable before min_examples"
    assert after([*losses, 1.5]).best_loss_at_level is not None


def test_the_rest_of_a_batch_counts_for_neither_level() -> None:
    state = after([0.1] * 9)
    assert (state.current_level, state.examples_at_level) == (2, 0)


def test_the_highest_level_is_the_last() -> None:
    config = CurriculumConfig.with_levels(7, 7)
    state = after([0.0] * 5000, config)
    assert (state.current_level, state.advancements, state.examples_at_level) == (7, 0, 5000)


def test_regression_only_where_allowed_and_above_the_start() -> None:
    config = CurriculumConfig(
        start_level=2,
        examples_per_level=None,
        advance_loss_threshold=0.5,
        min_examples_before_advance=4,
        allow_regression=True,
        regression_threshold=1.0,
    )
    third = after([0.1] * 4, config)
    assert third.current_level == 3
    assert third.after(config, [9.0] * 3).current_level == 3
    back = third.after(config, [9.0] * 4)
    assert (back.current_level, back.regressions, back.advancements) == (2, 1, 1)
    assert back.after(config, [9.0] * 50).current_level == 2, "never below the start"
    strict = CurriculumConfig.from_dict(config.to_dict() | {"allow_regression": False})
    assert third.after(strict, [9.0] * 50).current_level == 3


@pytest.mark.parametrize(
    "change",
    [
        {"start_level": 0},
        {"max_level": 8},
        {"start_level": 5, "max_level": 4},
        {"examples_per_level": 3, "min_examples_before_advance": 4},
        {"min_examples_before_advance": 0},
        {"advance_loss_threshold": math.nan},
        {"advance_loss_threshold": -1.0},
        {"allow_regression": 1},
        {"allow_regression": True, "regression_threshold": 0.1, "advance_loss_threshold": 0.1},
    ],
)
def test_39_settings_that_make_no_sense_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        CurriculumConfig(**change)


def test_presets() -> None:
    fast, thorough = CurriculumConfig.fast(), CurriculumConfig.thorough()
    assert (fast.examples_per_level, fast.advance_loss_threshold, fast.min_examples_before_advance) == (200, 0.2, 50)
    assert (thorough.examples_per_level, thorough.advance_loss_threshold) == (1000, 0.05)
    assert CurriculumConfig.default() == CurriculumConfig()
    assert CurriculumConfig.with_levels(-3, 99) == CurriculumConfig(start_level=1, max_level=7)
    with pytest.raises(ConfigError):
        CurriculumConfig.with_levels(5, 2)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -0.1])
def test_bad_losses_are_refused(loss: float) -> None:
    with pytest.raises(InvalidValue):
        after([loss])


@settings(max_examples=60)
@given(LOSSES)
def test_a_level_takes_at_least_min_examples(losses: list[float]) -> None:
    state = CurriculumState.start(CONFIG)
    since = 0
    for loss in losses:
        level, since = state.current_level, since + 1
        state = state.after(CONFIG, [loss])
        if state.current_level != level:
            assert since >= 4
            since = 0
    assert CurriculumState.from_dict(state.to_dict()) == state


@pytest.mark.parametrize(
    "damage", [{"current_level": "2"}, {"current_level": None}, {"avg_loss_at_level": "x"}, {"more": 1}]
)
def test_a_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        CurriculumState.from_dict(after([1.0]).to_dict() | damage)
    with pytest.raises(ConfigError):
        CurriculumConfig.from_dict({"start_level": 1})


def test_the_learner_uses_and_saves_it(tmp_path: Path) -> None:
    curriculum = CurriculumConfig(examples_per_level=6, advance_loss_threshold=None, min_examples_before_advance=2)
    config = OnlineLearnerConfig(layers=(2, 3), curriculum=curriculum, capacity=50)

    def batch(level: int, start: int) -> list[OnlineExample]:
        return [OnlineExample(f"{level}-{start + i}", np.ones(2) * i, i % 3, level=level) for i in range(4)]

    with MemoryOnlineLearner.with_default_model(config, tmp_path / "m.db") as learner:
        assert learner.stats.current_level == 1
        learner.learn_batch(batch(1, 0))
        learner.learn_batch(batch(3, 0))  # learned and stored, but of another level
        assert learner.progress.curriculum is not None
        assert learner.progress.curriculum.examples_at_level == 4
        learner.learn_batch(batch(1, 4))
        assert learner.stats.current_level == 2
    with MemoryOnlineLearner.with_default_model(config, tmp_path / "m.db") as learner:
        learner.load_state()
        assert learner.stats.current_level == 2
        assert learner.progress.curriculum == CurriculumState(2, advancements=1)
        assert len(learner.memory) == 12
