"""Everything that reads tables reads the truth at every point of the window between two folds, on both databases."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

import memstore
from memstore import EpisodicMemory, History, RetentionPolicy, col, count, mean
from memstore.buffer import folding
from memstore.episodes import log
from tests.support.helpers import OpenMemory, Sql

WINDOW = 50
DOMAINS = ("a", "b", "c")
TAGS = ("red", "blue", "green")
MOST = 25
"""Episodes of the buffer."""


@dataclass
class Known:
    """One live episode."""

    domain: str
    timestamp: float
    tags: tuple[str, ...]
    level: int
    loss: float | None
    lowest: float | None = None
    replays: int = 0
    at: float | None = None

    def __post_init__(self) -> None:
        self.lowest = self.loss

    @property
    def rise(self) -> float:
        """By how much the loss rose above its lowest; 0 if there is none."""
        return 0.0 if self.loss is None or self.lowest is None else self.loss - self.lowest


@dataclass
class Life:
    """A buffer at random work beside a dict and a list that say what must be in it."""

    memory: EpisodicMemory
    seed: int
    live: dict[int, Known] = field(default_factory=dict)
    events: list[tuple[int, str, float | None, float | None]] = field(default_factory=list)
    clock: float = 1e6

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)

    def act(self) -> None:
        """Do one thing: newcomers evict the oldest, replays are by id, some of them twice."""
        self.clock += 1
        choice = self.dice.random()
        if choice < 0.3 or len(self.live) < 5:
            self.add(self.dice.randrange(1, 6))
        elif choice < 0.9:
            self.update(self.dice.choices(sorted(self.live), k=self.dice.randrange(1, 9)))
        elif choice < 0.95:
            gone = self.dice.sample(sorted(self.live), 2)
            self.memory.delete(gone)
            self.leave(sorted(gone), "deleted")
        else:
            limit = self.dice.random() * 3
            gone = [i for i, e in sorted(self.live.items()) if e.lowest is not None and e.lowest > limit][:3]
            self.memory.delete(where=col.id.in_(gone) & (col.lowest_loss > limit))
            self.leave(gone, "deleted")

    def add(self, how_many: int) -> None:
        rows = [
            Known(
                self.dice.choice(DOMAINS),
                float(self.dice.randrange(40)),
                tuple(self.dice.sample(TAGS, self.dice.randrange(3))),
                self.dice.randrange(4),
                self.dice.choice([None, round(self.dice.random() * 5, 2)]),
            )
            for _ in range(how_many)
        ]
        given: Any = {
            name: [getattr(r, name) for r in rows] for name in ("domain", "timestamp", "tags", "level", "loss")
        }
        payload = {"x": np.array([[r.timestamp, r.level] for r in rows])}
        ids = self.memory.extend(payload, **given).tolist()
        self.leave(sorted(self.live)[: max(0, len(self.live) + how_many - MOST)], "evicted")
        self.live |= dict(zip(ids, rows, strict=True))

    def update(self, ids: list[int]) -> None:
        losses = [round(self.dice.random() * 5, 2) for _ in ids]
        self.memory.update(ids, loss=losses)
        for i, loss in zip(ids, losses, strict=True):
            e = self.live[i]
            self.events.append((i, "replayed", e.loss, loss))
            e.loss, e.replays, e.at = loss, e.replays + 1, self.clock
            e.lowest = loss if e.lowest is None else min(loss, e.lowest)

    def leave(self, ids: list[int], why: str) -> None:
        self.events += [(i, why, self.live.pop(i).loss, None) for i in ids]

    def passing(self, test: Any) -> list[int]:
        return [i for i, e in sorted(self.live.items()) if test(e)]

    @property
    def filled(self) -> float:
        """How full the window is, from 0 to 1."""
        counters = self.memory._session.committed.counters
        return (counters.log_length - counters.folded_inserted - counters.folded_logged) / WINDOW


@pytest.fixture(autouse=True)
def small_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "SMALLEST_WINDOW", WINDOW)
    monkeypatch.setattr(folding, "LARGEST_WINDOW", WINDOW)


def lives(open_memory: OpenMemory, patch: pytest.MonkeyPatch, seed: int, **settings: Any) -> Iterator[Life]:
    """The same life after each of 60 acts: full, half full and empty windows are among them."""
    memory = open_memory(capacity=MOST, eviction="fifo", **settings)
    life = Life(memory, seed)
    patch.setattr("time.time", lambda: life.clock)
    filled = []
    for turn in range(60):
        life.act()
        if turn % 20 == 19:
            memory.fold()
        filled.append(life.filled)
        yield life
    assert min(filled) == 0 and max(filled) > 0.7 and any(0.3 < part < 0.6 for part in filled), filled
    assert sum(after < before for before, after in pairwise(filled)) > 4


def test_queries(open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without contents in memory, blocks are stored in every write. So they stand at another point than the tables."""
    for life in lives(open_memory, monkeypatch, 1, cache_bytes=0):
        live, memory = life.live, life.memory
        for e in (found := memory.query().all()):
            known = live[e.id]
            assert (e.domain, e.timestamp, e.tags, e.level) == (known.domain, known.timestamp, known.tags, known.level)
            assert (e.loss, e.lowest_loss, e.replay_count) == (known.loss, known.lowest, known.replays)
            assert e.last_replayed_at == known.at
        assert [e.id for e in found] == sorted(live)
        assert memory.query().count() == len(live)
        tests: list[tuple[Any, Any]] = [
            (col.loss > 2, lambda e: e.loss is not None and e.loss > 2),
            (col.loss.is_missing(), lambda e: e.loss is None),
            (col.lowest_loss < 1, lambda e: e.lowest is not None and e.lowest < 1),
            (col.rise > 0.5, lambda e: e.rise > 0.5),
            (col.replay_count == 0, lambda e: e.replays == 0),
            (col.last_replayed_at > 1e6 + 20, lambda e: e.at is not None and e.at > 1e6 + 20),
            (col.domain == "a", lambda e: e.domain == "a"),
            (col.tags.has("red"), lambda e: "red" in e.tags),
            (col.timestamp.between(5, 20), lambda e: 5 <= e.timestamp <= 20),
            ((col.domain == "b") & (col.loss <= 3), lambda e: e.domain == "b" and e.loss is not None and e.loss <= 3),
            (col.tags.has("blue") & (col.replay_count > 1), lambda e: "blue" in e.tags and e.replays > 1),
        ]
        for condition, test in tests:
            assert memory.query().filter(condition).ids().tolist() == life.passing(test), condition
        asked = [min(live) - 1, *sorted(live)[::3]]
        assert memory.query().filter(col.id.in_(asked)).ids().tolist() == asked[1:]
        losses = sorted(
            ((i, e) for i, e in live.items() if e.loss is not None), key=lambda p: (-(p[1].loss or 0), p[0])
        )
        assert [e.id for e in memory.hardest(6)] == [i for i, _ in losses[:6]]
        rises = sorted((e.rise for e in live.values() if e.rise), reverse=True)
        assert [e.rise for e in memory.forgotten(4)] == rises[:4]
        groups = memory.query().group_by(col.domain).aggregate(n=count(), loss=mean(col.loss)).all()
        for row in groups:
            here = [e for e in live.values() if e.domain == row.domain]
            known_losses = [e.loss for e in here if e.loss is not None]
            assert row.n == len(here) and row.loss == (pytest.approx(np.mean(known_losses)) if known_losses else None)
        assert sum(row.n for row in groups) == len(live)


def test_recall(open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    for life in lives(open_memory, monkeypatch, 2):
        live, memory = life.live, life.memory
        by_time = sorted((e.timestamp, i) for i, e in live.items() if 5 <= e.timestamp <= 25)
        assert [(e.timestamp, e.id) for e in memory.recall_temporal(5, 25)] == by_time
        in_b = [i for _, i in by_time if live[i].domain == "b"]
        assert [e.id for e in memory.recall_temporal(5, 25, domain="b")] == in_b
        red_or_blue = life.passing(lambda e: {"red", "blue"} & set(e.tags))
        assert [e.id for e in memory.recall_by_tags(["red", "blue"], limit=4)] == red_or_blue[:4]
        assert [e.id for e in memory.recall_by_tags(["red", "blue"], match="all")] == life.passing(
            lambda e: {"red", "blue"} <= set(e.tags)
        )
        near = sorted((np.hypot(e.timestamp - 20, e.level - 1), i) for i, e in live.items())
        assert [m.episode.id for m in memory.recall(np.array([20.0, 1.0]), on="x", limit=6)] == [i for _, i in near[:6]]
        policy = RetentionPolicy(consolidate_similar=1e-9, max_age=1e6 - 10)
        old = [i for i, e in live.items() if e.timestamp < life.clock - (1e6 - 10)]
        facts = {(e.domain, e.timestamp, e.level) for i, e in live.items() if i not in old}
        would = memory.consolidate(policy, now=life.clock, dry_run=True)
        assert (would.too_old, would.kept) == (len(old), len(facts))


@pytest.mark.parametrize("policy", [History(), History(record=0.5), None, History(max_events=40)])
def test_history(open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch, policy: History | None) -> None:
    """Unrecorded events are in the log until the fold, and forgotten ones too; neither is ever shown."""
    share = 0.0 if policy is None else policy.record
    for life in lives(open_memory, monkeypatch, 3, history=policy):
        memory = life.memory
        hashed = log._hashed(np.array([event[0] for event in life.events], np.int64))
        recorded = [event for event, h in zip(life.events, hashed.tolist(), strict=True) if h < share]
        shown = [(e.id, e.what, e.loss_before, e.loss_after) for e in memory.history()]
        if policy is not None and policy.max_events is not None:
            assert len(shown) >= min(policy.max_events, len(recorded))
            assert len(shown) <= policy.max_events + 64 + 9
            recorded = recorded[len(recorded) - len(shown) :]
        assert shown == recorded
        assert memory.query("history").count() == len(recorded)
        some = sorted({event[0] for event in life.events})[::4]
        chains = [(e.id, e.what, e.loss_before, e.loss_after) for e in memory.history(episode=some)]
        assert chains == [event for event in recorded if event[0] in some]
        later = memory.history(since=life.clock - 5)
        assert [(e.id, e.what) for e in later] == [event[:2] for event in recorded[len(recorded) - len(later) :]]
        assert all(e.at >= life.clock - 5 for e in later)
        rows = memory.query("history").select(col.id, col.loss, col.level).all()
        live = {i: (e.loss, e.level) for i, e in life.live.items()}
        assert [(row.loss, row.level) for row in rows] == [live.get(event[0], (None, None)) for event in recorded]


def test_views(open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch, sql: Sql) -> None:
    """They lay the log over the tables for every buffer by itself, and are right in the others too."""
    other = open_memory(buffer="other", capacity=10, history=History(record=0.4))
    other.extend({"x": np.zeros((12, 2))}, domain="a", loss=np.arange(12.0))
    other.update(other.query().ids(), loss=0.5)
    for life in lives(open_memory, monkeypatch, 4, history=History(max_events=70)):
        live, memory = life.live, life.memory
        columns = "episode_id, domain, timestamp, level, loss, lowest_loss, replay_count, last_replayed_at"
        rows = sql(f"SELECT {columns} FROM v_episode WHERE buffer = 'default' ORDER BY episode_id")
        assert rows == [
            (i, e.domain, e.timestamp, e.level, e.loss, e.lowest, e.replays, e.at) for i, e in sorted(live.items())
        ]
        found = sql(
            "SELECT domain, episodes, never_measured, mean_loss, highest_loss FROM v_domain WHERE buffer = 'default'"
        )
        for domain, episodes, gaps, average, highest in found:
            losses = [e.loss for e in live.values() if e.domain == domain]
            known = [loss for loss in losses if loss is not None]
            assert (episodes, gaps, highest) == (len(losses), len(losses) - len(known), max(known, default=None))
            assert average == (pytest.approx(np.mean(known)) if known else None)
        shown = sql("SELECT event FROM v_history WHERE buffer = 'default' ORDER BY event")
        assert [number for (number,) in shown] == [e.event for e in memory.history()]
        assert sql("SELECT count(*), sum(replay_count) FROM v_episode WHERE buffer = 'other'") == [(10, 10)]
        assert sql("SELECT count(*) FROM v_history WHERE buffer = 'other'") == [(len(other.history()),)]


def test_a_memory_that_may_only_read_reads_the_truth(open_memory: OpenMemory, read_only_url: str) -> None:
    """Without temporary tables: neither a read-only role nor a file opened for reading has any."""
    memory = open_memory(capacity=10)
    memory.extend({"x": np.zeros((12, 2))}, domain="a", loss=np.arange(12.0), tags=("red",))
    memory.update([5, 6, 5], loss=[9.0, 20.0, 7.5])
    assert not memory._session.committed.counters.is_folded
    with memstore.open(read_only_url, create=False) as reader:
        assert reader.query().ids().tolist() == list(range(3, 13))
        assert [(e.id, e.loss) for e in reader.hardest(2)] == [(6, 20.0), (12, 11.0)]
        assert reader.query().filter(col.id == 5).select(col.lowest_loss, col.replay_count).result().rows == [(4.0, 2)]
        assert [e.id for e in reader.recall_by_tags(["red"])] == list(range(3, 13))
