"""The main job: replay helps, a kill costs nothing, other options are refused."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memstore
from memstore.errors import ConfigError
from memstore.learner import TrainProgress, TrainResult, run_baseline, run_training, training_config
from memstore.learner.job.train import CHECKPOINT
from tests.learner.streams import under_former_names

SMALL = training_config(layers=(4, 16, 4), capacity=20, seed=1)


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """Four separable classes in four dimensions, two tasks."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 40)
    x = np.eye(4)[y] + 0.2 * rng.standard_normal((160, 4))
    path = tmp_path / "blobs.npz"
    np.savez(path, x=x, y=y)
    return path


class Stopped(Exception):
    """Raised by a test in the middle of a run."""


def stop_after(steps: int) -> Any:
    def on_progress(progress: TrainProgress) -> None:
        if progress.step == steps and progress.loss is not None:
            raise Stopped

    return on_progress


def test_replay_keeps_what_plain_training_forgets(tmp_path: Path) -> None:
    result = run_training(tmp_path / "run.db", training_config(seed=1))
    plain = run_baseline(training_config(seed=1))
    assert result.tasks == plain.tasks == ("0-1", "2-3", "4-5", "6-7", "8-9")
    assert result.average > 0.7
    assert plain.average < 0.3
    assert result.forgetting < 0.35 < 0.8 < plain.forgetting
    assert list(result.accuracy) == list(result.tasks)
    assert sum(result.draws.values()) == pytest.approx(1347, abs=15)
    with memstore.open(tmp_path / "run.db") as memory:
        assert memory.check().ok
        assert memory.stats().total_inserted == 1347
        assert memory.stats().total_events == sum(result.draws.values())


def test_importance_weights_do_not_silence_replay(tmp_path: Path) -> None:
    # Scaled by the least likely episode of the buffer they did: 19 %, as without any replay.
    assert run_training(tmp_path / "run.db", training_config("stable", seed=1)).average > 0.6


def test_without_replay_the_memory_changes_nothing(tmp_path: Path, blobs: Path) -> None:
    through = run_training(tmp_path / "run.db", replace(SMALL, replay_ratio=0.0), dataset=blobs)
    plain = run_baseline(SMALL, dataset=blobs)
    assert through.digest == plain.digest
    assert through.matrix == plain.matrix
    assert (through.replay, plain.replay, through.draws) == (True, False, {})


@pytest.mark.parametrize("strategy", [strategy.value for strategy in memstore.ReplayStrategy])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(tmp_path: Path, blobs: Path, strategy: str) -> None:
    config = replace(SMALL, replay_strategy=strategy, eviction=None)
    straight = run_training(tmp_path / "straight.db", config, dataset=blobs)
    for step in (1, 2, 6, 7, 12):
        with pytest.raises(Stopped):
            run_training(tmp_path / "run.db", config, dataset=blobs, on_progress=stop_after(step))
    resumed = run_training(tmp_path / "run.db", config, dataset=blobs)
    assert resumed == replace(straight, resumed_at=12)


def test_progress_says_what_was_found_and_then_every_step(tmp_path: Path, blobs: Path) -> None:
    with pytest.raises(Stopped):
        run_training(tmp_path / "run.db", SMALL, dataset=blobs, on_progress=stop_after(3))
    seen: list[TrainProgress] = []
    result = run_training(tmp_path / "run.db", SMALL, dataset=blobs, on_progress=seen.append)
    assert [progress.step for progress in seen] == list(range(3, result.steps + 1))
    assert seen[0].loss is None
    assert all(progress.loss is not None for progress in seen[1:])
    assert (seen[0].task, seen[-1].task) == ("0-1", "2-3")
    assert seen[-1].draws == result.draws
    assert seen[-1].accuracy == pytest.approx(result.average, abs=0.02)
    assert {progress.buffer_size for progress in seen[1:]} == {20}


@pytest.mark.parametrize("step", [1, 3])
def test_a_run_that_an_earlier_version_began_goes_on(tmp_path: Path, blobs: Path, step: int) -> None:
    """Its settings are stored under their former names."""
    straight = run_training(tmp_path / "straight.db", SMALL, dataset=blobs)
    with pytest.raises(Stopped):
        run_training(tmp_path / "run.db", SMALL, dataset=blobs, on_progress=stop_after(step))
    with memstore.open(tmp_path / "run.db", create=False) as memory:
        under_former_names(memory, CHECKPOINT)
    with pytest.raises(ConfigError, match=r"--replay-strategy uniform, .*mixed"):
        run_training(tmp_path / "run.db", replace(SMALL, replay_strategy="mixed"), dataset=blobs)
    assert run_training(tmp_path / "run.db", SMALL, dataset=blobs) == replace(straight, resumed_at=step)


def test_a_finished_run_says_so_and_trains_nothing(tmp_path: Path, blobs: Path) -> None:
    first = run_training(tmp_path / "run.db", SMALL, dataset=blobs)
    with memstore.open(tmp_path / "run.db") as memory:
        revision = memory.stats().revision
    seen: list[TrainProgress] = []
    again = run_training(tmp_path / "run.db", SMALL, dataset=blobs, on_progress=seen.append)
    assert again.already_finished
    assert not first.already_finished
    assert again == replace(first, resumed_at=first.steps)
    assert [progress.step for progress in seen] == [first.steps]
    with memstore.open(tmp_path / "run.db") as memory:
        assert memory.stats().revision == revision


def test_accuracies_lost_to_a_kill_are_measured_again(
    tmp_path: Path, blobs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight = run_training(tmp_path / "straight.db", SMALL, dataset=blobs)

    def dies(*_: Any) -> None:
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr("memstore.learner.job.train._accuracies", dies)
        with pytest.raises(Stopped):
            run_training(tmp_path / "run.db", SMALL, dataset=blobs)
    assert run_training(tmp_path / "run.db", SMALL, dataset=blobs) == replace(straight, resumed_at=6)


@pytest.mark.parametrize(
    ("changes", "option"),
    [
        ({"capacity": 21}, "--capacity"),
        ({"seed": 2}, "--seed"),
        ({"replay_strategy": "mixed"}, "--replay-strategy"),
        ({"eviction": "fifo"}, "--eviction"),
        ({"priority_alpha": 0.7}, "--priority-alpha"),
        ({"replay_ratio": 0.5}, "--replay-ratio"),
        ({"learning_rate": 0.01}, "--learning-rate"),
    ],
)
def test_other_options_are_refused_by_name(tmp_path: Path, blobs: Path, changes: dict[str, Any], option: str) -> None:
    run_training(tmp_path / "run.db", SMALL, dataset=blobs)
    before = run_training(tmp_path / "run.db", SMALL, dataset=blobs)
    with pytest.raises(ConfigError, match=rf"{option} .*--fresh"):
        run_training(tmp_path / "run.db", replace(SMALL, **changes), dataset=blobs)
    assert run_training(tmp_path / "run.db", SMALL, dataset=blobs) == before


def test_other_data_are_refused(tmp_path: Path, blobs: Path) -> None:
    run_training(tmp_path / "run.db", SMALL, dataset=blobs)
    with np.load(blobs) as arrays:
        np.savez(blobs, x=arrays["x"] * 2, y=arrays["y"])
    with pytest.raises(ConfigError, match=r"--dataset .*--fresh"):
        run_training(tmp_path / "run.db", SMALL, dataset=blobs)


def test_fresh_begins_anew(tmp_path: Path, blobs: Path) -> None:
    path = tmp_path / "run.db"
    first = run_training(path, SMALL, dataset=blobs, fresh=True)
    with pytest.raises(Stopped):
        run_training(path, replace(SMALL, seed=5), dataset=blobs, fresh=True, on_progress=stop_after(3))
    assert run_training(path, SMALL, dataset=blobs, fresh=True) == first


def test_fresh_removes_nothing_but_a_training_run(tmp_path: Path, blobs: Path) -> None:
    path = tmp_path / "mine.db"
    with memstore.open(path) as memory:
        memory.add({"x": 1})
    for fresh in (False, True):
        with pytest.raises(ConfigError):
            run_training(path, SMALL, dataset=blobs, fresh=fresh)
    run_training(tmp_path / "run.db", SMALL, dataset=blobs)
    with memstore.open(tmp_path / "run.db", buffer="other") as memory:
        memory.add({"x": 1})
    assert run_training(tmp_path / "run.db", SMALL, dataset=blobs, fresh=True).resumed_at == 0
    with memstore.open(tmp_path / "run.db", buffer="other", create=False) as memory:
        assert len(memory) == 1
    notes = tmp_path / "notes.txt"
    notes.write_text("not a database, and longer than a header of one hundred bytes " * 3)
    with pytest.raises(memstore.MemstoreError):
        run_training(notes, SMALL, dataset=blobs, fresh=True)
    assert notes.read_text().startswith("not a database")


def test_a_result_is_plain_numbers(blobs: Path) -> None:
    result = json.loads(json.dumps(run_baseline(SMALL, dataset=blobs).to_dict()))
    assert result["average"] == pytest.approx(np.mean(list(result["accuracy"].values())))
    assert set(result) >= {"forgetting", "backward_transfer", "digest", "draws", "matrix"}


SCRIPT = """
import sys
from memstore.learner import run_training, training_config
result = run_training(sys.argv[1], training_config(layers=(4, 16, 4), capacity=20, seed=1), dataset=sys.argv[2],
                      on_progress=lambda p: print(p.step, flush=True))
"""


def test_kill_9_costs_nothing(tmp_path: Path, blobs: Path) -> None:
    straight = run_training(tmp_path / "straight.db", SMALL, dataset=blobs)
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "run.db"), str(blobs)]
    acknowledged = 0
    for delay in (0.0, 0.003, 0.011):
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            reported = int(process.stdout.readline())
            assert reported >= acknowledged, "a step that was reported is committed"
            time.sleep(delay)
            process.send_signal(signal.SIGKILL)
            acknowledged = max([reported, *map(int, process.stdout.read().split())])
        with memstore.open(tmp_path / "run.db", create=False) as memory:
            assert memory.check().ok
    resumed = run_training(tmp_path / "run.db", SMALL, dataset=blobs)
    assert isinstance(resumed, TrainResult)
    assert resumed.resumed_at >= acknowledged
    assert resumed == replace(straight, resumed_at=resumed.resumed_at)
