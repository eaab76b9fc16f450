"""The curriculum's rules at their boundaries, and the origin's defect 39."""

from __future__ import annotations

import json
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
    assert state.after(CONFIG, [1.0]) == CurriculumState(2, 1, 1.0, None, 1)


def test_a_low_mean_advances_once_enough_was_seen() -> None:
    assert after([0.1] * 3).current_level == 1
    assert after([0.1] * 4).current_level == 2
    assert after([9.0, 9.0, 9.0, 9.0] + [0.0] * 5).current_level == 1, "the mean counts, not the last losses"


@pytest.mark.parametrize("span", [1, 3, 7, 100])
@pytest.mark.parametrize("threshold", [0.1, 1 / 3, 0.7])
def test_a_mean_at_the_threshold_is_not_below_it(span: int, threshold: float) -> None:
    """A weighted sum would round the mean of equal losses to below them."""
    config = CurriculumConfig(
        examples_per_level=None, advance_loss_threshold=threshold, min_examples_before_advance=span
    )
    assert after([threshold] * 300, config).current_level == 1
    assert after([math.nextafter(threshold, 0)] * span, config).current_level == 2


def test_without_thresholds_nothing_advances() -> None:
    config = CurriculumConfig(examples_per_level=None, advance_loss_threshold=None)
    assert after([0.0] * 2000, config).current_level == 1


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
    fourth = after([*losses, 1.5])
    assert fourth.best_loss_at_level == fourth.avg_loss_at_level
    assert fourth.after(CONFIG, [9.0]).best_loss_at_level == fourth.avg_loss_at_level, "the lowest, not the latest"


def test_the_rest_of_a_batch_counts_for_neither_level() -> None:
    state = after([0.1] * 9)
    assert (state.current_level, state.examples_at_level) == (2, 0)
    with pytest.raises(InvalidValue, match="nan"):
        after([0.1] * 4 + [math.nan])


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
    assert third.after(config, [1.0] * 50).current_level == 3, "above, not at"
    strict = CurriculumConfig.from_dict(config.to_dict() | {"allow_regression": False})
    assert third.after(strict, [9.0] * 50).current_level == 3


@pytest.mark.parametrize(
    "change",
    [
        {"start_level": 0},
        {"max_level": 8},
        {"max_level": 2.5},
        {"start_level": 5, "max_level": 4},
        {"examples_per_level": 3, "min_examples_before_advance": 4},
        {"min_examples_before_advance": 0},
        {"min_examples_before_advance": 10**17, "examples_per_level": None},
        {"examples_per_level": 0, "min_examples_before_advance": 1},
        {"regression_threshold": math.inf},
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
    assert thorough.min_examples_before_advance == 500
    assert CurriculumConfig.default() == CurriculumConfig()
    assert CurriculumConfig.with_levels(-3, 99) == CurriculumConfig(start_level=1, max_level=7)
    for levels in ((5, 2), (1, "7"), (math.nan, 3)):
        with pytest.raises(ConfigError):
            CurriculumConfig.with_levels(*levels)


@pytest.mark.parametrize("loss", [math.nan, math.inf, -0.1, "low", None])
def test_bad_losses_are_refused(loss: Any) -> None:
    with pytest.raises(InvalidValue):
        after([loss])


def test_a_level_of_another_curriculum_is_refused() -> None:
    with pytest.raises(InvalidValue, match=r"level 7 .* 1 \.\. 3"):
        CurriculumState(7).after(CurriculumConfig.with_levels(1, 3), [1.0])


def test_what_is_stored_is_json_also_of_numpy_numbers() -> None:
    config = CurriculumConfig(start_level=np.int64(2), advance_loss_threshold=np.float32(0.5))  # type: ignore[arg-type]
    assert CurriculumConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    state = CurriculumState.start(config).after(config, np.ones(3, np.float32))  # type: ignore[arg-type]
    assert CurriculumState.from_dict(json.loads(json.dumps(state.to_dict()))) == state


@settings(max_examples=60, deadline=None)
@given(LOSSES, st.integers(0, 40))
def test_cutting_the_stream_changes_nothing_within_a_level(losses: list[float], cut: int) -> None:
    config = CurriculumConfig(examples_per_level=None, advance_loss_threshold=None, min_examples_before_advance=4)
    start = CurriculumState.start(config)
    whole = start.after(config, losses)
    assert start.after(config, losses[:cut]).after(config, losses[cut:]) == whole
    if whole.avg_loss_at_level is not None:
        slack = 1e-12  # rounding of at most 40 steps among numbers up to 5
        assert min(losses) - slack <= whole.avg_loss_at_level <= max(losses) + slack


@settings(max_examples=60, deadline=None)
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
    "damage",
    [
        {"current_level": "2"},
        {"current_level": None},
        {"current_level": True},
        {"current_level": 0},
        {"current_level": 8},
        {"examples_at_level": -1},
        {"examples_at_level": 0},
        {"avg_loss_at_level": "x"},
        {"avg_loss_at_level": None},
        {"avg_loss_at_level": math.nan},
        {"best_loss_at_level": -1.0},
        {"best_loss_at_level": 1.5},
        {"advancements": 1.0},
        {"regressions": -1},
        {"more": 1},
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    stored = after([1.0]).to_dict()
    assert CurriculumState.from_dict(stored).examples_at_level == 1
    with pytest.raises(InvalidValue):
        CurriculumState.from_dict(stored | damage)


@pytest.mark.parametrize("stored", [{}, [1], None])
def test_another_record_is_refused(stored: Any) -> None:
    with pytest.raises(InvalidValue):
        CurriculumState.from_dict(stored)
    with pytest.raises(ConfigError):
        CurriculumConfig.from_dict(stored)


def test_a_setting_too_many_or_too_few_is_refused() -> None:
    stored = CONFIG.to_dict()
    with pytest.raises(ConfigError, match="max_level"):
        CurriculumConfig.from_dict({name: value for name, value in stored.items() if name != "max_level"})
    with pytest.raises(ConfigError, match="speed"):
        CurriculumConfig.from_dict(stored | {"speed": 3})


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
