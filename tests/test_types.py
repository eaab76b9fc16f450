"""A use of the public names that strict mypy accepts, which checks this file like every other."""

from __future__ import annotations

import datetime
import math
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import pytest
from numpy.typing import NDArray

import memstore
from memstore import Batch, Episode, EpisodicMemory, ReplayMetadata, UpdateResult, col
from memstore.types import Each, Ids, Losses, Payload, Seconds, Time, TrainerState

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def test_the_whole_loop(tmp_path: Path) -> None:
    with memstore.open(tmp_path / "typed.db", capacity=100, seed=1) as memory:
        assert_type(memory, EpisodicMemory)
        ids = filled(memory)
        batch = memory.sample(4, beta=0.4, wait=datetime.timedelta(seconds=1), where=col.level >= 0)
        assert_type(batch, Batch)
        assert_type(batch.weight, NDArray[np.float64])
        assert_type(memory.update(batch, loss=np.ones(len(batch), np.float32), step=1), UpdateResult)
        held = memory.lease(2, duration=np.timedelta64(60, "s"), wait=0)
        assert memory.renew(held, duration=30) == memory.release(held) == len(held.take([True, False])) + 1
        updated(memory, ids, [0.5] * len(ids))
        updated(memory, ids.tolist(), 0.25)
        updated(memory, list(ids), [np.float32(1.0)] * len(ids))
        asked(memory, ids)
        state: TrainerState = {"step": 7, "weights": np.zeros(3)}
        memory.save_checkpoint("latest", state)
        assert memory.load_checkpoint("latest")["step"] == 7


def filled(memory: EpisodicMemory) -> NDArray[np.int64]:
    """Add episodes with arguments of every kind."""
    one: Payload = {"x": np.zeros(3), "inner": {"text": "a"}}
    moment: Time = np.datetime64("2026-01-01")
    patience: Seconds = math.inf
    memory.add(one, loss=None, timestamp=moment, level=3, tags=["a"], key="k", extra={"a": [1]}, wait=patience)
    many = {"x": np.zeros((4, 3)), "inner": {"text": ["a", "b", "c", "d"]}}
    domain: Each[str] = ["a", "a", "b", "b"]
    tags = [("a",), None, (), ["b"]]
    ids = memory.extend(
        many, domain=domain, loss=[1.0, None, 2.0, None], timestamp=NOW, level=[1, None, 2, 3], tags=tags
    )
    assert_type(ids, NDArray[np.int64])
    return memory.extend(many, loss=np.ones(4), level=np.arange(4), timestamp=[NOW, 1.0, None, NOW], key=list("pqrs"))


def updated(memory: EpisodicMemory, ids: Ids, loss: Losses) -> None:
    """Write losses back."""
    assert len(memory.update(ids, loss=loss).updated)


def asked(memory: EpisodicMemory, ids: NDArray[np.int64]) -> None:
    """Ask for episodes in every way."""
    found = memory.get(int(ids[0]))
    assert_type(found, Episode)
    assert_type(found.loss, float | None)
    assert found.payload["x"].shape == (3,)
    assert memory.hardest(1)[0].payload is None
    assert_type(memory.metadata(ids), list[ReplayMetadata])
    assert_type(memory.recall_temporal(NOW, 2e9, limit=2), list[Episode])
    assert_type(memory.recall_by_tags({"a"}), list[Episode])
    assert_type(memory.recall([0.0, 0.0, 0.0], on="x", limit=1)[0].episode, Episode)
    assert memory.history(episode=ids, since=0, limit=3) and memory.history(steps=(0, 9)) and memory.history(steps=1)
    assert memory.ids_of(["k"]) != [None] and int(ids[0]) in memory and ids[0] in memory
    assert memory.consolidate(memstore.RetentionPolicy(max_age=10), dry_run=True, now=NOW).dry_run
    assert memory.delete(ids[:1]) == 1


def test_episodes_are_compared_without_their_payloads(tmp_path: Path) -> None:
    """Arrays have no single truth value, and a payload never changes."""
    with memstore.open(tmp_path / "typed.db") as memory:
        ids = memory.extend({"x": np.ones((2, 3))}, extra=[{"a": [1]}, {"a": [2]}])
        first, second = memory.get_many(ids)
        asked = memory.query().all()
        assert first == memory.get(first.id) == asked[0] != second
        assert first in asked and asked.index(second) == 1 and len({first, second, *asked}) == 2
        memory.update([first.id], loss=1.0)
        assert memory.get(first.id) != first, "the loss is compared"
        assert memory.recall([1, 1, 1], on="x") == memory.recall([1, 1, 1], on="x")


def test_a_batch_is_asked_for_fields_alone(tmp_path: Path) -> None:
    with memstore.open(tmp_path / "typed.db") as memory:
        memory.extend({"x": np.ones((3, 2)), "y": [1, 2, 3]})
        batch: Any = memory.sample(3)
    assert len(batch) == 3 and list(batch.keys()) == ["x", "y"] == list(dict(batch.items()))
    for wrong in ("z", 0):
        with pytest.raises(KeyError, match=f"the payload has no field {wrong!r}, but x, y"):
            batch[wrong]
    for ask in (iter, reversed, list):
        with pytest.raises(TypeError, match="not (iterable|reversible)"):
            ask(batch)
