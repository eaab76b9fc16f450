"""Maximally interfered retrieval against its definition, by hand on copies of the model."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memstore
from memstore.learner import MLP, MemoryOnlineLearner, OnlineExample, OnlineLearnerConfig
from memstore.learner.retrieval import interference, retrieve

CONFIG = OnlineLearnerConfig(
    layers=(4, 8, 3),
    learning_rate=0.5,
    momentum=0.5,
    replay_ratio=1.0,
    replay_strategy="uniform",
    capacity=100,
    retrieval="mir",
    retrieval_candidates=20,
)


def examples(count: int, seed: int = 0) -> list[OnlineExample]:
    rng = np.random.default_rng(seed)
    return [OnlineExample(f"{seed}-{i}", rng.standard_normal(4), rng.integers(0, 3)) for i in range(count)]


def arrays(given: list[OnlineExample]) -> tuple[Any, Any]:
    return np.stack([e.input for e in given]), np.stack([e.target for e in given])


def test_the_most_harmed_are_replayed(tmp_path: Path) -> None:
    with MemoryOnlineLearner.with_default_model(CONFIG, tmp_path / "m.db") as learner:
        learner.learn_batch(examples(40))
        incoming = examples(5, 1)
        generator = copy.deepcopy(learner.memory.rng.bit_generator.state)
        candidates = learner.memory.sample(20, strategy="uniform")
        learner.memory.rng.bit_generator.state = generator

        trial = MLP(CONFIG.layers, learning_rate=0.5, momentum=0.5)
        trial.load_state_dict(learner.model.state_dict())
        before = trial.loss(candidates["input"], candidates["target"])
        trial.step(*arrays(incoming))
        harm = trial.loss(candidates["input"], candidates["target"]) - before
        expected = candidates.ids[np.argsort(-harm)[:5]]

        assert learner.learn_batch(incoming).replayed_ids == tuple(expected.tolist())
        assert set(expected.tolist()) != set(candidates.ids[np.argsort(harm)[:5]].tolist())


def test_the_virtual_step_is_undone_optimizer_included(tmp_path: Path) -> None:
    with MemoryOnlineLearner.with_default_model(CONFIG, tmp_path / "m.db") as learner:
        learner.learn_batch(examples(30))
        before = learner.model.state_dict()
        candidates = learner.memory.sample(10)
        harm = interference(learner.model, *arrays(examples(5, 1)), candidates)
        after = learner.model.state_dict()
        assert harm.shape == (10,) and harm.dtype == np.float64
        for group in ("parameters", "velocity"):
            for name, value in before[group].items():
                np.testing.assert_array_equal(after[group][name], value)
        assert after["steps"] == before["steps"]


def test_few_candidates_are_all_replayed(tmp_path: Path) -> None:
    with MemoryOnlineLearner.with_default_model(CONFIG, tmp_path / "m.db") as learner:
        learner.learn_batch(examples(3))
        assert sorted(learner.learn_batch(examples(5, 1)).replayed_ids) == [1, 2, 3]


def test_an_empty_memory_retrieves_nothing(tmp_path: Path) -> None:
    with CONFIG.open_memory(tmp_path / "m.db") as memory:
        assert retrieve(memory, CONFIG, 5, CONFIG.default_model(), *arrays(examples(2)), None) is None


# Batch.take, on which it stands


@pytest.mark.parametrize("rows", [[2, 0], np.array([2, 0]), np.array([True, False, True, False])])
def test_take_keeps_rows_together(tmp_path: Path, rows: Any) -> None:
    payload: dict[str, Any] = {
        "x": np.arange(8.0).reshape(4, 2),
        "nested": {"text": ["a", "b", "c", "d"]},
        "ragged": [[1], [2, 2], [3], [4]],
    }
    signature = {"x": ("float64", (2,)), "nested": {"text": str}, "ragged": ("int64", (None,))}
    with memstore.open(tmp_path / "m.db", signature=signature) as memory:
        memory.extend(
            {**payload, "ragged": [np.array(value) for value in payload["ragged"]]},
            domain=list("abab"),
            loss=[0.0, 1.0, 2.0, 3.0],
        )
        batch = memory.sample(4)
        order = np.argsort(batch.ids)
        batch = batch.take(order)
        taken = batch.take(rows)
        expected = [0, 2] if np.asarray(rows).dtype.kind == "b" else [2, 0]
        assert taken.ids.tolist() == [i + 1 for i in expected]
        np.testing.assert_array_equal(taken["x"], payload["x"][expected])
        assert taken["nested"]["text"] == [payload["nested"]["text"][i] for i in expected]
        assert [value.tolist() for value in taken["ragged"]] == [payload["ragged"][i] for i in expected]
        assert taken.loss.tolist() == [float(i) for i in expected]
        assert len(memory.update(taken, loss=0.5).updated) == 2


def test_take_refuses_rows_that_are_not_there(tmp_path: Path) -> None:
    with memstore.open(tmp_path / "m.db") as memory:
        memory.extend({"x": np.arange(4.0)})
        with pytest.raises(IndexError):
            memory.sample(4).take([4])
