"""The copy that a handle holds: the same draws with and without it, and never that of other commits."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memstore
from memstore.errors import StoreCorrupt
from tests.support.helpers import Damage, OpenMemory
from tests.support.windows import small_windows


def run(memory: memstore.EpisodicMemory, seed: int, turns: int, others: list[memstore.EpisodicMemory]) -> list[Any]:
    """Everything that a program draws while it adds, updates, deletes and rolls back, and the generator at its end."""
    rng = np.random.default_rng(seed)
    drawn: list[Any] = []
    for turn in range(turns):
        size = int(rng.integers(1, 120))
        domain = [f"d{i}" for i in rng.integers(0, 4, size)]
        loss = None if turn % 4 == 3 else rng.lognormal(0, 2, size)
        memory.extend({"x": rng.random((size, 2))}, domain=domain, loss=loss)
        batch = memory.sample(16)
        memory.update(batch, loss=rng.lognormal(0, 2, len(batch)))
        drawn += [batch.ids.tolist(), None if batch.probability is None else batch.probability.tolist()]
        drawn.append(memory.sample(9, strategy="prioritized_loss", alpha=1.5, where="loss > 1").ids.tolist())
        with pytest.raises(ZeroDivisionError), memory.transaction():
            memory.delete(batch.ids[:5])
            memory.sample(3)
            raise ZeroDivisionError
        with memory.transaction():
            memory.delete(batch.ids[:3])
            drawn.append(memory.sample(5, strategy="prioritized_recency").ids.tolist())
        for other in others:
            other.sample(3, where="domain = 'd1'")
    return [*drawn, memory.rng.bit_generator.state]


@pytest.fixture
def short_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are merged in every few writes."""
    small_windows(monkeypatch, 64)


@pytest.mark.parametrize("eviction", ["fifo", "lowest_loss", "reservoir"])
def test_draws_are_the_same_with_and_without_contents(tmp_path: Path, eviction: str, short_folds: None) -> None:
    results = []
    for cache_bytes in (0, 30_000, 2**28):
        with memstore.open(
            tmp_path / f"{cache_bytes}.db", capacity=400, seed=5, cache_bytes=cache_bytes, eviction=eviction
        ) as memory:
            results.append(run(memory, 1, 25, []))
            assert memory.check().problems == ()
    assert results[0] == results[1] == results[2]


def test_draws_are_the_same_after_others_looked_on(open_memory: OpenMemory, tmp_path: Path, short_folds: None) -> None:
    memory, other = open_memory(capacity=300, seed=5), open_memory(cache_bytes=0)
    followed = run(memory, 2, 20, [other])
    with memstore.open(tmp_path / "alone.db", capacity=300, seed=5) as alone:
        assert run(alone, 2, 20, []) == followed
    mine, its = ([e.id for e in m.query().all()] for m in (memory, other))
    assert mine == its and len(other) == len(memory)
    assert other.check().problems == memory.check().problems == ()


@pytest.mark.parametrize("more", [0, 1, 6])
def test_commits_that_the_database_forgot_are_noticed(tmp_path: Path, more: int) -> None:
    """The database goes back, and others reach the revision that this handle knows, or a later one."""
    path, old = tmp_path / "run.db", tmp_path / "old.db"

    def backup(source: Path, target: Path) -> None:
        with closing(sqlite3.connect(source)) as read, closing(sqlite3.connect(target)) as written:
            read.backup(written)

    def add(memory: memstore.EpisodicMemory, loss: float) -> None:
        memory.extend({"x": np.zeros((130, 1))}, loss=np.full(130, loss))

    with memstore.open(path, seed=1, strategy="prioritized_loss") as memory:
        add(memory, 1.0)
        backup(path, old)
        for _ in range(3):
            add(memory, 2.0)
            memory.update([1, 2, 3], loss=2.0)
        assert len(memory.sample(10)) == 10
        backup(old, path)
        with memstore.open(path, seed=2) as other:
            for _ in range(3):
                add(other, 5.0)
                other.update([1, 2, 3], loss=5.0)
            for _ in range(more):
                other.update([9], loss=5.0)
            batch = memory.sample(500)
            expected = {e.id: e.loss for e in other.query().all()}
            assert dict(zip(batch.ids.tolist(), batch.loss.tolist(), strict=True)).items() <= (expected.items())
            assert set(batch.loss.tolist()) <= {1.0, 5.0}
            memory.update(batch.ids[:9], loss=7.0)
            assert memory.check().problems == other.check().problems == ()


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM block WHERE id = 1",
        "UPDATE block SET live = live - 1",
        "UPDATE block SET weight_sum = weight_sum * 1.001",
        "UPDATE buffer SET block_sum = block_sum + 1",
    ],
)
def test_heads_that_cannot_be_are_refused(open_memory: OpenMemory, damage: Damage, statement: str) -> None:
    open_memory().extend({"x": np.zeros((300, 1))}, loss=np.linspace(0, 5, 300))
    damage(statement)
    with pytest.raises(StoreCorrupt, match="block"):
        open_memory()
