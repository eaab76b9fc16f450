"""The cache: it saves reads, stays within its budget, and is never wrong, whatever other processes do."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
import pytest

import memstore
from memstore import EpisodeNotFound, EpisodicMemory
from memstore.payload.cache import PayloadCache
from tests.support.helpers import Child, Damage, OpenMemory, in_child, live_ids, row, rows

PAYLOAD = 1000


def blobs(count: int, start: int = 0, size: int = PAYLOAD) -> dict[str, Any]:
    """Payloads of a known size."""
    return {"x": np.repeat(np.arange(start, start + count, dtype=np.int64)[:, None], size // 8, axis=1)}


def cache(memory: EpisodicMemory) -> dict[str, float]:
    """Its figures."""
    return memory.stats().cache


def test_hits_and_misses_are_counted(open_memory: OpenMemory) -> None:
    """What was added here is a hit; what another handle added is a miss, then a hit."""
    memory, other = open_memory(), open_memory()
    ids = memory.extend(blobs(10))
    assert cache(memory)["hits"] == cache(memory)["misses"] == 0
    memory.get_many(ids)
    assert (cache(memory)["hits"], cache(memory)["misses"], cache(memory)["hit_rate"]) == (10, 0, 1.0)
    assert cache(other)["hit_rate"] == 0.0
    other.get_many(ids[:4])
    assert (cache(other)["hits"], cache(other)["misses"]) == (0, 4)
    other.get_many(ids)
    assert (cache(other)["hits"], cache(other)["misses"]) == (4, 10)
    other.sample(10)
    assert (cache(other)["hits"], cache(other)["misses"]) == (14, 10)
    assert cache(other)["hit_rate"] == pytest.approx(14 / 24)
    assert cache(other)["entries"] == 10


def test_metadata_and_statistics_ask_no_payload(open_memory: OpenMemory) -> None:
    """Nor do updates and deletions."""
    memory = open_memory()
    ids = memory.extend(blobs(10), loss=1.0)
    memory.metadata(ids)
    memory.update(ids, loss=0.5)
    memory.stats(exact=True)
    memory.delete(ids[:2])
    assert cache(memory)["hits"] == cache(memory)["misses"] == 0


@pytest.mark.parametrize("budget", [0, 1, 1500, 5000, 20_000])
def test_the_budget_is_kept(open_memory: OpenMemory, budget: int) -> None:
    """In bytes, at every step, with what an entry costs besides its payload."""
    memory = open_memory(cache_bytes=budget, capacity=60, eviction="fifo")
    for turn in range(12):
        memory.extend(blobs(10, 10 * turn))
        memory.sample(25)
        memory.recall(np.zeros(PAYLOAD // 8), on="x", limit=3)
        figures = cache(memory)
        assert figures["bytes"] <= budget == figures["max_bytes"]
        assert figures["entries"] * PAYLOAD <= figures["bytes"]
    if budget > 2 * PAYLOAD:
        assert cache(memory)["entries"] >= budget // (PAYLOAD + 250)
    batch = memory.sample(60)
    assert (batch["x"][:, 0] == batch.ids - 1).all()


def test_zero_turns_it_off(open_memory: OpenMemory) -> None:
    """Nothing is kept or counted, and everything works."""
    memory = open_memory(cache_bytes=0)
    ids = memory.extend(rows(10))
    for _ in range(3):
        memory.get_many(ids)
        memory.sample(5)
    assert cache(memory) == {"entries": 0, "bytes": 0, "max_bytes": 0, "hits": 0, "misses": 0, "hit_rate": 0.0}


def test_the_least_recently_used_leaves(open_memory: OpenMemory) -> None:
    """What is drawn again and again stays."""
    memory = open_memory(cache_bytes=5 * (PAYLOAD + 200))
    ids = memory.extend(blobs(4)).tolist()
    for turn in range(20):
        memory.get(ids[0])
        memory.extend(blobs(1, 100 + turn))
    before = cache(memory)["misses"]
    memory.get(ids[0])
    assert cache(memory)["misses"] == before
    memory.get(ids[1])
    assert cache(memory)["misses"] == before + 1


def test_what_leaves_the_memory_leaves_the_cache(open_memory: OpenMemory) -> None:
    """Deleted, evicted, consolidated, replayed out, shrunk away: its room is free at once."""
    memory = open_memory(capacity=20, eviction="fifo", max_replays=2)
    ids = memory.extend(blobs(20), loss=np.arange(20.0))
    assert cache(memory)["entries"] == 20
    memory.delete(ids[:5])
    assert cache(memory)["entries"] == 15
    memory.extend(blobs(10, 50), loss=100.0)
    assert cache(memory)["entries"] == 20 == len(memory)
    memory.consolidate(memstore.RetentionPolicy(max_episodes=15))
    assert cache(memory)["entries"] == 15
    memory.configure(capacity=10)
    memory.update(live_ids(memory)[:3], loss=1.0)
    memory.update(live_ids(memory)[:3], loss=1.0)
    assert len(memory) == 7
    assert 7 <= cache(memory)["entries"] <= 15  # an upper bound; what lingers is only waste, never wrong
    assert cache(memory)["bytes"] >= cache(memory)["entries"] * PAYLOAD


def test_another_handle_deletes(open_memory: OpenMemory) -> None:
    """A payload in the cache does not bring its episode back."""
    memory, other = open_memory(strategy="uniform"), open_memory()
    ids = memory.extend(rows(10), tags=["t"], timestamp=1.0)
    memory.sample(10)
    other.delete(ids[:5])
    for gone in ids[:5].tolist():
        with pytest.raises(EpisodeNotFound):
            memory.get(gone)
        assert gone not in memory
    with pytest.raises(EpisodeNotFound):
        memory.get_many(ids)
    assert live_ids(memory) == ids[5:].tolist()
    assert len(memory.recall_by_tags(["t"])) == len(memory.recall_temporal(0, 2)) == 5
    assert len(memory.recall(np.zeros(4), on="x")) == 5


def test_metadata_is_never_cached(open_memory: OpenMemory) -> None:
    """A loss that another handle wrote is there in the next draw."""
    memory, other = open_memory(), open_memory()
    ids = memory.extend(rows(5), loss=1.0)
    for turn in range(1, 5):
        memory.sample(5)
        other.update(ids, loss=float(turn))
        batch = memory.sample(5)
        assert batch.loss.tolist() == [float(turn)] * 5 and batch.replay_count.tolist() == [turn] * 5
        assert [e.loss for e in memory.get_many(ids)] == [float(turn)] * 5


def _evict(memory: EpisodicMemory, count: int) -> None:
    memory.sample(5)
    for number in range(count):
        memory.add(row(10_000 + number), loss=float(number))


def test_another_process_evicts(open_memory: OpenMemory) -> None:
    """Everything cached is gone from the memory, and draws give the newcomers with their own payloads."""
    memory = open_memory(capacity=20, eviction="fifo")
    ids = memory.extend(rows(20), loss=1.0)
    memory.sample(20)
    in_child(_evict, memory, 15)
    batch = memory.sample(20)
    assert sorted(batch.ids.tolist()) == list(range(16, 36))
    expected = [i - 1 if i <= 20 else 10_000 + i - 21 for i in batch.ids.tolist()]
    assert batch["number"].tolist() == expected
    assert memory.update(ids, loss=2.0).missing.tolist() == list(range(1, 16))


def _churn(memory: EpisodicMemory, worker: int, turns: int) -> int:
    wrong = 0
    for turn in range(turns):
        number = 1_000_000 * worker + turn
        one = memory.add({"number": number, "twin": np.full(3, number)}, loss=1.0)
        batch = memory.sample(10)
        wrong += int((batch["twin"] != batch["number"][:, None]).sum())
        with contextlib.suppress(EpisodeNotFound):
            wrong += memory.get(one).payload["number"] != number
        if turn % 3 == 0:
            memory.delete(batch.ids[:2])
        if turn % 5 == 0:
            with contextlib.suppress(KeyError), memory.transaction():
                memory.add({"number": -1, "twin": np.full(3, -1)})
                memory.sample(5)
                raise KeyError
        wrong += int((batch["number"] < 0).sum())
    return wrong


def test_coherence_among_processes(open_memory: OpenMemory) -> None:
    """Adding, deleting, evicting, rolling back at once: nobody ever gets a payload under a wrong id."""
    memory = open_memory(capacity=30, eviction="fifo", cache_bytes=3000)
    children = [Child(_churn, memory, worker, 60) for worker in range(1, 4)]
    mine = _churn(memory, 4, 60)
    assert [child.result() for child in children] + [mine] == [0, 0, 0, 0]


def test_a_hit_needs_no_read(open_memory: OpenMemory, damage: Damage) -> None:
    """Cached payloads were verified when they were read; what is on disk is not asked again."""
    memory = open_memory()
    ids = memory.extend(rows(5))
    damage("UPDATE payload SET data = :data", data=b"")
    assert [e.payload["number"] for e in memory.get_many(ids)] == [0, 1, 2, 3, 4]
    with pytest.raises(memstore.StoreCorrupt):
        open_memory().get(1)


def test_a_damaged_payload_is_not_cached(open_memory: OpenMemory, damage: Damage) -> None:
    """Read again it is found out again, and its neighbours of the same batch are not lost."""
    open_memory().extend(rows(5))
    damage("UPDATE payload SET data = :data WHERE episode_id = 3", data=b"\0" * 24)
    memory = open_memory()
    for _ in range(3):
        with pytest.raises(memstore.StoreCorrupt, match="3"):
            memory.get(3)
    assert cache(memory)["entries"] == 0


def test_the_cache_is_not_shared_with_children(open_memory: OpenMemory) -> None:
    """A pickled handle starts with an empty one, of the same budget."""
    memory = open_memory(cache_bytes=100_000)
    memory.extend(rows(10))
    assert in_child(cache, memory) == {
        "entries": 0,
        "bytes": 0,
        "max_bytes": 100_000,
        "hits": 0,
        "misses": 0,
        "hit_rate": 0.0,
    }


def test_rows_that_meet_displace_each_other_and_are_never_mixed_up() -> None:
    """Two ids with one row: the last one stays, also in one call. What is not there is told, and ``get`` agrees."""
    kept = PayloadCache(4 * (8 + 8))  # four rows
    payloads = {number: number.to_bytes(8, "little") for number in range(1, 11)}
    kept.put(payloads)
    ids = np.array([*range(1, 11), 9, 9])
    records, known = kept.records(ids, 8)
    assert ids[known].tolist() == [7, 8, 9, 10, 9, 9]
    assert records[known].view(np.int64).ravel().tolist() == ids[known].tolist()
    assert kept.get(ids.tolist()) == {number: payloads[number] for number in (7, 8, 9, 10)}
    assert (kept.hits, kept.misses) == (12, 12)
    kept.drop([3, 8])  # the row of 3 belongs to 7
    assert sorted(kept.get(list(range(1, 11)))) == [7, 9, 10]
    assert not kept.records(ids, 9)[1].any(), "payloads of another length are others"


def test_payloads_of_several_lengths_are_kept_too() -> None:
    """The first one of another length ends the rows. From then on the least recently used one leaves first."""
    kept = PayloadCache(700)
    kept.put({1: b"abc", 2: b"def"})
    assert kept.stats()["bytes"] == 2 * (3 + 8)
    kept.put({3: b"longer", 4: b"abc"})
    assert kept.get([1, 2, 3, 4]) == {3: b"longer", 4: b"abc"}
    assert not kept.records(np.array([3, 4]), 3)[1].any()
    kept.put({5: b"x"})
    kept.get([3])
    kept.put({6: b"y"})
    assert sorted(kept.get([3, 4, 5, 6])) == [3, 5, 6]
