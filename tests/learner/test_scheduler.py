"""When to consolidate: each trigger at its boundary, the intervals, and the origin's defect 39."""

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
from memstore.learner import (
    BatchCount,
    BufferThreshold,
    ConsolidationScheduler,
    ConsolidationTrigger,
    ExampleCount,
    LossThreshold,
    Manual,
    MemoryOnlineLearner,
    OnlineExample,
    OnlineLearnerConfig,
    SchedulerState,
)

TRIGGERS: list[ConsolidationTrigger] = [
    ExampleCount(200),
    BatchCount(3),
    BufferThreshold(70.0),
    LossThreshold(0.2),
    Manual(),
]


WRITTEN = ConsolidationScheduler().to_dict()


def state(**fields: Any) -> SchedulerState:
    return SchedulerState(**fields)


def due(trigger: ConsolidationTrigger, given: SchedulerState, loss: float | None = None, **intervals: int) -> bool:
    return ConsolidationScheduler(trigger, **intervals).due(given, loss=loss)


def test_counts() -> None:
    assert not due(ExampleCount(10), state(examples_since=9))
    assert due(ExampleCount(10), state(examples_since=10))
    assert due(ExampleCount(10), state(examples_since=11))
    assert not due(BatchCount(3), state(examples_since=500, batches_since=2))
    assert due(BatchCount(3), state(examples_since=3, batches_since=3))
    assert due(BatchCount(3), state(examples_since=4, batches_since=4))


def test_a_consolidation_begins_the_count_again() -> None:
    scheduler = ConsolidationScheduler(ExampleCount(10))
    now = scheduler.after_batch(scheduler.after_batch(SchedulerState(), 6), 6)
    assert (now.examples_since, now.batches_since, scheduler.due(now, loss=None)) == (12, 2, True)
    now = now.after_consolidation(0.5)
    assert (now.examples_since, now.batches_since, now.last_loss) == (0, 0, 0.5)
    assert not scheduler.due(now, loss=0.5)


def test_intervals_not_given_are_those_of_the_trigger() -> None:
    for trigger in (ExampleCount(1), BatchCount(1), Manual()):
        assert ConsolidationScheduler(trigger).intervals == (0, math.inf)
    for watching in (BufferThreshold(), LossThreshold()):
        assert ConsolidationScheduler(watching).intervals == (100, 10_000)
        assert not due(watching, state(examples_since=99, crossed=True), 0.0)
        assert due(watching, state(examples_since=100, crossed=True), 0.0)
        assert not due(watching, state(examples_since=9_999), None)
        assert due(watching, state(examples_since=10_000), None)


def test_intervals_hold_the_trigger() -> None:
    many = {"batches_since": 99}
    assert not due(BatchCount(3), state(examples_since=49, **many), min_interval=50)
    assert due(BatchCount(3), state(examples_since=50, **many), min_interval=50)
    assert not due(BatchCount(100), state(examples_since=79), max_interval=80)
    assert due(BatchCount(100), state(examples_since=80), max_interval=80)


def test_a_loss_below_the_threshold_and_below_the_last_one() -> None:
    seen = {"examples_since": 100}
    assert due(LossThreshold(0.2), state(**seen), 0.19)
    assert not due(LossThreshold(0.2), state(**seen), 0.2)
    assert not due(LossThreshold(0.2), state(**seen), None)
    assert not due(LossThreshold(0.2), state(examples_since=99), 0.1), "not within min_interval"
    assert not due(LossThreshold(0.2), state(last_loss=0.1, **seen), 0.9 * 0.1)
    assert due(LossThreshold(0.2), state(last_loss=0.1, **seen), 0.0899)
    assert not due(LossThreshold(0.2), state(last_loss=5.0, **seen), 0.2), "better than before is not enough"
    assert due(LossThreshold(0.2), state(examples_since=10_000), 5.0), "at max_interval"


def test_39_a_full_memory_fires_once_and_not_for_ever() -> None:
    scheduler = ConsolidationScheduler(BufferThreshold(80.0), min_interval=1)
    now, fired = SchedulerState(), []
    for fill in (0.5, 0.79, 0.8, 0.9, 1.0, 1.0, 0.7, 0.85, 0.9):
        now = scheduler.after_batch(now, 10, fill)
        fired.append(scheduler.due(now, loss=None))
        if fired[-1]:
            now = now.after_consolidation(None)
    assert fired == [False, False, True, False, False, False, False, True, False]


def test_a_memory_that_its_consolidation_emptied_is_armed_again() -> None:
    scheduler = ConsolidationScheduler(BufferThreshold(80.0), min_interval=1)
    now = scheduler.after_batch(SchedulerState(), 10, 0.9).after_consolidation(None)
    assert scheduler.due(scheduler.after_batch(now, 10, 0.9, before=0.1), loss=None)
    assert not scheduler.due(scheduler.after_batch(now, 10, 0.9, before=0.8), loss=None)
    assert not scheduler.due(scheduler.after_batch(now, 10, 0.9), loss=None)


def test_a_memory_exactly_at_the_threshold_has_reached_it() -> None:
    """Whole episodes of whole percents, among them 29 of 100: 100 * 0.29 rounds to below 29."""
    for percent in range(1, 101):
        for capacity in (50, 100, 700, 10_000):
            size = math.ceil(percent * capacity / 100)
            assert BufferThreshold(percent).reached(size / capacity)
            assert not BufferThreshold(percent).reached((size - 1) / capacity)


def test_a_crossing_undone_within_the_interval_is_none() -> None:
    scheduler = ConsolidationScheduler(BufferThreshold(80.0), min_interval=25)
    now = SchedulerState()
    for fill in (0.9, 0.5, 0.5):
        now = scheduler.after_batch(now, 10, fill)
    assert not scheduler.due(now, loss=None)


def test_a_crossing_within_the_interval_is_not_forgotten() -> None:
    scheduler = ConsolidationScheduler(BufferThreshold(80.0), min_interval=25)
    now, fired = SchedulerState(), []
    for fill in (0.9, 0.9, 0.9, 0.9):
        now = scheduler.after_batch(now, 10, fill)
        fired.append(scheduler.due(now, loss=None))
    assert fired == [False, False, True, True]


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 10**9), st.integers(0, 10**9), st.booleans(), st.one_of(st.none(), st.floats(0, 1e9)))
def test_39_manual_is_manual(examples: int, batches: int, crossed: bool, loss: float | None) -> None:
    given = state(examples_since=examples, batches_since=batches, crossed=crossed)
    assert not due(Manual(), given, loss, max_interval=1)


@pytest.mark.parametrize("trigger", TRIGGERS)
def test_round_trip(trigger: ConsolidationTrigger) -> None:
    for intervals in ({}, {"min_interval": 150, "max_interval": 250}):
        scheduler = ConsolidationScheduler(trigger, **intervals)
        assert ConsolidationScheduler.from_dict(scheduler.to_dict()) == scheduler
        config = OnlineLearnerConfig(scheduler=scheduler)
        assert OnlineLearnerConfig.from_dict(config.to_dict()) == config
    now = ConsolidationScheduler(trigger).after_batch(SchedulerState(), 7, 0.9)
    assert SchedulerState.from_dict(now.to_dict()) == now


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExampleCount(0),
        lambda: BatchCount(1.5),  # type: ignore[arg-type]
        lambda: BufferThreshold(0.0),
        lambda: BufferThreshold(101.0),
        lambda: LossThreshold(float("nan")),
        lambda: ConsolidationScheduler("manual"),  # type: ignore[arg-type]
        lambda: ConsolidationScheduler(min_interval=5, max_interval=4),
        lambda: ConsolidationScheduler(ExampleCount(50), min_interval=51),
        lambda: ConsolidationScheduler(ExampleCount(50), max_interval=49),
        lambda: ConsolidationScheduler.from_dict({"trigger": "sometimes"}),
        lambda: ConsolidationScheduler.from_dict(WRITTEN | {"examples": 0}),
        lambda: ConsolidationScheduler.from_dict(WRITTEN | {"trigger": "manual"}),
        lambda: ConsolidationScheduler.from_dict(WRITTEN | {"trigger": []}),
        lambda: ConsolidationScheduler.from_dict(WRITTEN | {"more": 1}),
        lambda: ConsolidationScheduler.from_dict({"trigger": "example_count", "examples": 5}),
        lambda: ConsolidationScheduler.from_dict([1]),  # type: ignore[arg-type]
        lambda: LossThreshold(0.0),
        lambda: ConsolidationScheduler(min_interval=0),
        lambda: ConsolidationScheduler(BufferThreshold(), max_interval=99),
        lambda: OnlineLearnerConfig(scheduler=ExampleCount(5)),  # type: ignore[arg-type]
    ],
)
def test_what_makes_no_sense_is_refused(make: Any) -> None:
    with pytest.raises(ConfigError):
        make()


def test_39_an_unknown_trigger_is_told_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="example_count, batch_count, buffer_threshold, loss_threshold, manual"):
        ConsolidationScheduler.from_dict(WRITTEN | {"trigger": "sometimes"})


def test_what_is_stored_is_json_also_of_numpy_numbers() -> None:
    for trigger in (ExampleCount(np.int64(5)), LossThreshold(np.float32(0.5))):  # type: ignore[arg-type]
        scheduler = ConsolidationScheduler(trigger, max_interval=np.int32(200))  # type: ignore[arg-type]
        assert ConsolidationScheduler.from_dict(json.loads(json.dumps(scheduler.to_dict()))) == scheduler
    now = SchedulerState().after_consolidation(np.float32(0.5))  # type: ignore[arg-type]
    assert SchedulerState.from_dict(json.loads(json.dumps(now.to_dict()))) == now


@pytest.mark.parametrize(
    "damage",
    [
        {"examples_since": "7"},
        {"examples_since": True},
        {"examples_since": -1},
        {"batches_since": 1.0},
        {"armed": 1},
        {"crossed": None},
        {"last_loss": "low"},
        {"last_loss": math.nan},
        {"last_loss": -0.1},
        {"more": 0},
    ],
)
def test_a_damaged_state_is_refused(damage: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue):
        SchedulerState.from_dict(SchedulerState().to_dict() | damage)


@pytest.mark.parametrize("stored", [{}, [1], None])
def test_another_record_is_refused(stored: Any) -> None:
    with pytest.raises(InvalidValue):
        SchedulerState.from_dict(stored)


@pytest.mark.parametrize(
    "step",
    [
        lambda: ConsolidationScheduler().after_batch(SchedulerState(), -1),
        lambda: ConsolidationScheduler().after_batch(SchedulerState(), 1, math.nan),
        lambda: ConsolidationScheduler().after_batch(SchedulerState(), 1, math.inf),
        lambda: ConsolidationScheduler().after_batch(SchedulerState(), 1, 0.5, before=-0.1),
        lambda: SchedulerState().after_consolidation(math.inf),
    ],
)
def test_bad_values_do_not_get_into_a_state(step: Any) -> None:
    with pytest.raises(InvalidValue):
        step()


def learned(path: Path, trigger: ConsolidationTrigger, calls: int, **settings: Any) -> int:
    config = OnlineLearnerConfig(
        layers=(2, 3), capacity=20, scheduler=ConsolidationScheduler(trigger, **settings), replay_ratio=0.0
    )
    with MemoryOnlineLearner.with_default_model(config, path) as learner:
        for call in range(calls):
            learner.learn_batch([OnlineExample(f"{call}-{i}", np.ones(2) * i, i % 3) for i in range(4)])
        return learner.stats.consolidations


@pytest.mark.parametrize(
    ("trigger", "expected"),
    [(ExampleCount(8), 5), (BatchCount(3), 3), (BufferThreshold(50.0), 1), (LossThreshold(100.0), 2), (Manual(), 0)],
)
def test_the_learner_follows_it(tmp_path: Path, trigger: ConsolidationTrigger, expected: int) -> None:
    """Ten calls of four examples; the buffer of 20 crosses half in the third; the loss falls below 0.9 of its own."""
    intervals = {} if isinstance(trigger, (ExampleCount, BatchCount, Manual)) else {"min_interval": 1}
    if isinstance(trigger, LossThreshold):
        intervals = {"min_interval": 20, "max_interval": 20}
    assert learned(tmp_path / "m.db", trigger, 10, **intervals) == expected
