"""Eviction against a brute-force model that takes newcomers in one by one: batches never show."""

from __future__ import annotations

import numpy as np
import pytest

import memstore
from memstore import EpisodicMemory
from tests.support.models import Model, act, payload, random_loss

POLICIES = ("fifo", "lowest_loss", "largest_domain", "reservoir", "reservoir_loss")


def assert_same(memory: EpisodicMemory, model: Model) -> None:
    if not model.live:
        assert len(memory) == 0
        return
    batch = memory.sample(10**6, strategy="uniform")
    order = np.argsort(batch.ids)
    assert (batch.ids[order] - model.first).tolist() == model.ids.tolist()
    np.testing.assert_array_equal(batch.loss[order], model.loss)
    assert batch.domain[order].tolist() == model.domain
    assert batch.replay_count[order].tolist() == [model.live[i].replays for i in model.ids.tolist()]


@pytest.mark.parametrize("capacity", [1, 2, 7, 50])
@pytest.mark.parametrize("policy", POLICIES)
def test_random_histories(path: str, policy: str, capacity: int) -> None:
    """Adds, batches larger than the capacity, updates, deletes, ties, never-measured rows, shrinking and growing."""
    for seed in range(2):
        rng = np.random.default_rng((seed, capacity))
        model = Model(capacity=capacity, eviction=policy, seed=seed, first=seed << 40)
        with memstore.open(path, buffer=f"{seed}", capacity=capacity, eviction=policy, seed=seed) as memory:
            for step in range(25):
                act(memory, model, rng)
                if step in (12, 18):
                    other = max(1, capacity // 2) if step == 12 else capacity + 3
                    before = len(memory)
                    evicted = memory.configure(capacity=other)
                    model.resize(other)
                    assert evicted == before - len(model.live)
                assert_same(memory, model)
            assert memory.check().problems == ()


@pytest.mark.parametrize("policy", POLICIES)
def test_however_the_stream_is_cut(path: str, policy: str) -> None:
    """The same sixty newcomers one by one, in random batches, and all at once; capacity 9 is less than a batch."""
    rng = np.random.default_rng(9)
    for trial in range(2):
        losses = [random_loss(rng) for _ in range(60)]
        names = [f"d{i}" for i in rng.choice(4, 60, p=[0.6, 0.2, 0.15, 0.05])]
        kept = []
        cuts = [np.arange(1, 60), np.sort(rng.choice(np.arange(1, 60), 7, replace=False)), np.array([], np.int64)]
        for way, cut in enumerate(cuts):
            with memstore.open(path, buffer=f"{trial} {way}", capacity=9, eviction=policy, seed=trial) as memory:
                for part in np.split(np.arange(60), cut):
                    memory.extend(payload(len(part)), domain=[names[i] for i in part], loss=[losses[i] for i in part])
                assert len(memory) == 9 and memory.check().problems == ()
                kept.append(sorted((61 - memory.sample(9).age).tolist()))
        assert kept[0] == kept[1] == kept[2], policy
    # A model of another policy would keep others.
    model = Model(capacity=9, eviction="fifo" if policy != "fifo" else "lowest_loss", seed=1)
    for domain, loss in zip(names, losses, strict=True):
        model.add(domain, loss)
    assert model.ids.tolist() != kept[0]


def test_none_refuses_and_writes_nothing(path: str) -> None:
    with memstore.open(path, capacity=5, eviction="none", seed=1) as memory:
        memory.extend(payload(4))
        with pytest.raises(memstore.MemoryFull):
            memory.extend(payload(2))
        assert len(memory) == 4 and memory.stats().total_inserted == 4
        memory.extend(payload(1))
        memory.delete([1])
        assert memory.add({"x": np.float32(0)}) == 6
