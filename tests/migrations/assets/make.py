"""The frozen files: how they were made, and what must be read back from them for ever.

A file is made once per schema, by the release that introduced it, and then never again:

    python -m tests.migrations.assets.make tests/migrations/assets/v0001.db
"""

from __future__ import annotations

import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

import memstore
from memstore import EpisodicMemory

EPISODES = 12
CAPACITY = 10
RESERVOIR = (7, 24, 25)
HISTORY = memstore.History(max_events=100)
STATE: dict[str, Any] = {
    "step": 41,
    "nested": {"name": "caf\u00e9", "none": None, "flags": [True, False], "pair": (1, 2.5), "raw": b"\x00\xff"},
    "big": 2**70,
}


def payload(number: int) -> dict[str, Any]:
    """One episode with a field of every kind."""
    return {
        "x": np.arange(number, number + 3, dtype=np.float32),
        "deep": {"bytes": np.array([number, 255], np.uint8), "z": np.array(1j * number)},
        "reward": number / 3,
        "count": number,
        "done": number % 2 == 0,
        "text": "\u00e9\U0001f600" * number,
        "raw": bytes(range(number)),
    }


def make(path: str) -> None:
    """Fill a new file: evictions, losses, never-measured episodes, tags, keys, history, a checkpoint, five buffers."""
    with memstore.open(path, capacity=CAPACITY, strategy="prioritized_loss", alpha=0.7, seed=7, consumer="asset") as m:
        for i in range(1, EPISODES + 1):
            m.add(
                payload(i),
                domain=("math", "caf\u00e9", "'; DROP TABLE episode; --")[i % 3],
                loss=None if i % 4 == 0 else i / 10,
                timestamp=1_000_000.0 + i,
                level=i,
                tags=("odd", f"t{i}") if i % 2 else (),
                key=f"key-{i}",
                extra={"i": i, "list": [None, True, "\u00e9"]},
            )
        m.update([5, 6], loss=[2.5, 0.25], step=3)
        m.update([6], loss=[0.75], step=4)
        m.save_checkpoint("latest", {**STATE, "weights": np.arange(6, dtype=np.float64).reshape(2, 3)})
    with memstore.open(path, buffer="ragged", eviction="reservoir", capacity=3, seed=8) as m:
        m.extend({"tokens": [np.arange(n, dtype=np.int32) for n in (0, 1, 5, 2, 3, 4)]})
    with memstore.open(path, buffer="shared", limiter=memstore.SamplesPerInsert(2.0, min_size=3), seed=9) as m:
        m.extend({"x": np.arange(5)})
        m.lease(2, duration=1e12)
        m.sample(3)
    settings: dict[str, Any] = {"strategy": "uniform", "max_replays": 2, "history": HISTORY, "seed": 10}
    with memstore.open(path, buffer="leaving", capacity=5, eviction="fifo", consumer="asset", **settings) as m:
        ids = m.extend({"x": np.arange(5)}, domain=["a", "b", "a", "b", "a"], loss=1.0)
        m.add({"x": 5}, domain="b", loss=1.0)
        m.update(m.sample(5), loss=2.0, step=1)
        m.update(ids[1], loss=0.5, step=2)
        m.delete(ids[2])
        m.consolidate(memstore.RetentionPolicy(max_episodes=2))
        m.configure(capacity=1)
    make_window(path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 512")
        connection.execute("VACUUM")


def make_window(path: str) -> None:
    """Add a buffer with adds, replays and departures that its tables do not have yet."""
    half = memstore.History(record=0.5)
    m = memstore.open(path, buffer="window", capacity=6, strategy="prioritized_loss", eviction="fifo", history=half)
    first = m.extend({"x": np.arange(4)}, domain=["a", "b", "a", "b"], loss=[1.0, 2.0, None, 3.0])
    m.extend({"x": np.arange(4, 8)}, domain=["c", "a", "b", "a"], loss=[None, 0.5, 4.0, 1.5], tags=("late",))
    m.update(first[2:], loss=[0.25, 8.0], step=5)
    m.update(first[3:], loss=6.0, step=6)
    m.delete(first[2])
    m.extend({"x": np.arange(8, 9)}, loss=2.5)
    m._session.close()  # without the fold of m.close()


def verify(memory: EpisodicMemory, schema: str) -> None:
    """Everything of the first buffer is as it was stored by the release of this schema."""
    assert memory.resumed and memory.capacity == CAPACITY
    assert memory.strategy == memstore.PrioritizedLoss(0.7)
    live = [3, 4, 5, 6, 7, 8, 9, 10, 11, 12]  # the two smallest losses left
    assert sorted(memory.sample(100).ids.tolist()) == live
    losses = {5: 2.5, 6: 0.75}
    replays = {5: 1, 6: 2}
    for i in live:
        episode = memory.get(i)
        wanted = payload(i)
        assert set(episode.payload) == set(wanted)
        for name in ("x", "reward", "count", "done", "text", "raw"):
            value = episode.payload[name]
            assert type(value) is type(wanted[name])
            if name == "x":
                assert value.dtype == np.float32 and value.tolist() == wanted[name].tolist()
            else:
                assert value == wanted[name]
        assert episode.payload["deep"]["bytes"].tolist() == [i, 255]
        assert episode.payload["deep"]["z"].dtype == np.complex128 and episode.payload["deep"]["z"] == 1j * i
        assert episode.domain == ("math", "caf\u00e9", "'; DROP TABLE episode; --")[i % 3]
        assert episode.loss == losses.get(i, None if i % 4 == 0 else i / 10)
        assert episode.replay_count == replays.get(i, 0)
        assert (episode.last_replayed_at is not None) == (i in replays)
        assert episode.timestamp == 1_000_000.0 + i
        assert episode.level == i and episode.key == f"key-{i}"
        assert episode.tags == (("odd", f"t{i}") if i % 2 else ())
        assert episode.extra == {"i": i, "list": [None, True, "\u00e9"]}
    state = memory.load_checkpoint("latest")
    weights = state.pop("weights")
    assert state == STATE
    assert weights.dtype == np.float64 and weights.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert [e.id for e in memory.recall_temporal(1_000_004, 1_000_006)] == [4, 5, 6]
    assert [e.id for e in memory.recall_by_tags(["odd", "t7"], match="all")] == [7]
    assert memory.recall(np.arange(9, 12), on="x", limit=1)[0].episode.id == 9
    stats = memory.stats(exact=True)
    assert (stats.total_inserted, stats.total_events, stats.total_replays, stats.unmeasured) == (12, 3, 3, 3)
    assert stats.max_priority == 2.5 + 1e-6
    history = memory.history()
    assert [(e.id, e.domain, e.step, e.loss_before, e.loss_after) for e in history if e.what == "replayed"] == [
        (5, "'; DROP TABLE episode; --", 3, 0.5, 2.5),
        (6, "math", 3, 0.6, 0.25),
        (6, "math", 4, 0.25, 0.75),
    ]
    assert {(e.consumer, e.strategy) for e in history if e.what == "replayed"} == {("asset", None)}
    assert [(episode.id, episode.rise) for episode in memory.forgotten()] == [(5, 2.0), (6, 0.5)]
    # From schema 0003 on departures are recorded.
    assert [(e.event, e.id, e.what, e.reason, e.loss_before) for e in history if e.what != "replayed"] == (
        [] if schema < "0003" else [(1, 1, "evicted", "lowest_loss", 0.1), (2, 2, "evicted", "lowest_loss", 0.2)]
    )


def go_on(memory: EpisodicMemory) -> None:
    """The file takes new episodes and losses, and still knows its keys."""
    assert memory.add(payload(1), key="key-1") == 1  # evicted long ago
    assert memory.add(payload(13), loss=9.0, domain="new") == 13
    assert memory.update([13, 5], loss=[1.0, 2.0]).updated.tolist() == [5, 13]
    assert len(memory) == CAPACITY


def verify_ragged(memory: EpisodicMemory) -> None:
    """Three of six were kept, and they are whole; the reservoir decides about newcomers as it always would have."""
    second = 1 << 40  # ids of the second buffer
    assert sorted(memory.sample(100).ids.tolist()) == [second + i for i in (3, 4, 5)]
    for i, length in ((3, 5), (4, 2), (5, 3)):
        tokens = memory.get(second + i).payload["tokens"]
        assert tokens.dtype == np.int32 and tokens.tolist() == list(range(length))
    memory.extend({"tokens": [np.zeros(n, np.int32) for n in range(20)]})
    assert sorted(memory.sample(100).ids.tolist()) == [second + i for i in RESERVOIR]


def verify_shared(memory: EpisodicMemory) -> None:
    """From schema 0002 on: a lease that is still held, and a limiter that remembers."""
    assert len(memory.lease(5, duration=1e12)) == 3
    assert memory.stats().limiter == {"ratio": 2.0, "min_size": 3, "error_buffer": 6.0, "drawn": 3}
    assert memory.stats().leased == 5


def verify_leaving(memory: EpisodicMemory) -> None:
    """From schema 0003 on: what was drawn with which probability, and how every episode but one left."""
    first = memory.sample(1).ids[0] - 6
    history = memory.history()
    assert [e.event for e in history] == list(range(first + 1, first + 12))
    drawn = [e for e in history if e.step == 1]
    assert sorted(e.id - first for e in drawn) == [2, 3, 4, 5, 6]
    assert {(e.strategy, e.loss_before, e.loss_after, e.probability, e.weight) for e in drawn} == {
        ("uniform", 1.0, 2.0, 0.2, 1.0)
    }
    assert [(e.id - first, e.domain, e.what, e.reason, e.loss_before) for e in history if e.what != "replayed"] == [
        (1, "a", "evicted", "fifo", 1.0),
        (2, "b", "exhausted", "max_replays", 0.5),
        (3, "a", "deleted", None, 2.0),
        (4, "b", "consolidated", "over_count", 2.0),
        (5, "a", "resized", "fifo", 2.0),
    ]
    assert all(memory.history(episode=first + i) == [e for e in history if e.id == first + i] for i in range(1, 7))
    assert [(trend.domain, trend.replays.sum()) for trend in memory.loss_trend()] == [("a", 2), ("b", 4)]


def verify_window(memory: EpisodicMemory) -> None:
    """From schema 0005 on: what the log says and the tables did not."""
    first = 4 << 40
    live = range(first + 4, first + 10)
    episodes = memory.get_many(list(live))
    assert len(memory) == len(episodes) and [int(e.payload["x"]) for e in episodes] == [3, 4, 5, 6, 7, 8]
    assert [e.domain for e in episodes] == ["b", "c", "a", "b", "a", "default"]
    assert [e.loss for e in episodes] == [6.0, None, 0.5, 4.0, 1.5, 2.5]
    assert [e.lowest_loss for e in episodes] == [3.0, None, 0.5, 4.0, 1.5, 2.5]
    assert [e.replay_count for e in episodes] == [2, 0, 0, 0, 0, 0]
    assert [e.id for e in memory.recall_by_tags(["late"])] == list(live[1:5])
    assert [(e.id - first, e.what, e.step, e.loss_after) for e in memory.history()] == [
        (1, "evicted", None, None),
        (4, "replayed", 5, 8.0),
        (4, "replayed", 6, 6.0),
    ]
    assert [e.loss_after for e in memory.history(episode=first + 4)] == [8.0, 6.0]


if __name__ == "__main__":
    if Path(sys.argv[1]).exists():
        sys.exit(f"{sys.argv[1]} exists: a frozen file is never changed")
    make(sys.argv[1])
