"""The views for other programs hold what the library answers, while it works."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import NullPool

import memstore
from memstore import EpisodicMemory
from tests.support.helpers import OpenMemory, Sql, live_ids

NAMES = ("plain", "'; DROP VIEW v_history; --", 'caf\u00e9 "%s" :x \\ \n', "NULL")
Rows = list[tuple[Any, ...]]


class Buffer:
    """A buffer at random work, and what must be known of it afterwards."""

    def __init__(self, open_memory: OpenMemory, name: str, **settings: Any) -> None:
        self.name = name
        self.memory: EpisodicMemory = open_memory(buffer=name, consumer=name, **settings)
        self.measured: dict[int, list[float]] = defaultdict(list)
        self.replays: dict[str, int] = defaultdict(int)

    def work(self, rng: np.random.Generator) -> None:
        for turn in range(6):
            domains = rng.choice(NAMES, 5).tolist()
            losses = [None if rng.random() < 0.4 else float(rng.random()) for _ in domains]
            facts: dict[str, Any] = {"key": [f"{turn}-{i}" for i in range(5)], "level": turn}
            facts["extra"] = [{"by": NAMES[i % 4]} if turn % 2 else None for i in range(5)]
            raw = [bytes(int(size)) for size in rng.integers(0, 50, 5)]
            for i, loss in zip(
                self.memory.extend({"raw": raw}, domain=domains, loss=losses, **facts), losses, strict=True
            ):
                self.measured[int(i)] += [] if loss is None else [loss]
            batch = self.memory.sample(6, beta=0.5)
            losses = rng.random(len(batch)).tolist()
            self.memory.update(batch, loss=losses, step=None if turn == 3 else turn)
            for i, domain, loss in zip(batch.ids.tolist(), batch.domain.tolist(), losses, strict=True):
                self.measured[i].append(loss)
                self.replays[domain] += 1
        self.memory.delete(self.memory.sample(2, strategy="uniform").ids)

    def episodes(self, sizes: dict[int, int]) -> Rows:
        """What ``v_episode`` must say."""
        rows = []
        for e in self.memory.get_many(live_ids(self.memory)):
            lowest = min(self.measured[e.id], default=None)
            rise = None if lowest is None or e.loss is None else e.loss - lowest
            facts = e.id, self.name, e.domain, e.timestamp, e.level, e.key, e.extra
            replayed = e.replay_count, e.last_replayed_at
            rows.append((*facts, e.loss, lowest, rise, *replayed, sizes[e.id]))
        return rows

    def domains(self) -> Rows:
        """What ``v_domain`` must say, by name; also of domains that all episodes have left."""
        losses: dict[str, list[float | None]] = {event.domain: [] for event in self.memory.history() if event.domain}
        for episode in self.memory.get_many(live_ids(self.memory)):
            losses.setdefault(episode.domain, []).append(episode.loss)
        rows = []
        for domain, found in sorted(losses.items()):
            known = [loss for loss in found if loss is not None]
            mean = pytest.approx(np.mean(known)) if known else None
            numbers = len(found), len(found) - len(known), mean, max(known, default=None), self.replays[domain]
            rows.append((self.name, domain, *numbers))
        return rows

    def history(self) -> Rows:
        """What ``v_history`` must say."""
        return [
            (
                *(e.event, self.name, e.id, e.domain, e.what, e.reason, e.at, e.step, e.consumer, e.strategy),
                *(e.loss_before, e.loss_after, e.probability, e.weight),
            )
            for e in self.memory.history()
        ]


def test_the_views_hold_what_the_library_answers(open_memory: OpenMemory, sql: Sql) -> None:
    rng = np.random.default_rng(5)
    settings: list[dict[str, Any]] = [
        {"capacity": 12},
        {"capacity": 100, "max_replays": 2},
        {"capacity": 9, "eviction": "reservoir", "strategy": "uniform"},
        {"capacity": 100, "history": memstore.History(record=0.5)},
    ]
    buffers = [Buffer(open_memory, name, **given) for name, given in zip(NAMES, settings, strict=True)]
    for buffer in buffers:
        buffer.work(rng)
    sizes: dict[int, int] = dict(sql("SELECT episode_id, length(data) FROM payload"))
    assert len(set(sizes.values())) > 10

    episodes = [
        (*row[:6], row[6] and json.loads(row[6]), *row[7:])
        for row in sql("SELECT * FROM v_episode ORDER BY episode_id")
    ]
    assert episodes == [row for buffer in buffers for row in buffer.episodes(sizes)]
    for buffer in buffers:
        domains = sql("SELECT * FROM v_domain WHERE buffer = :name", name=buffer.name)
        assert sorted(domains, key=lambda row: row[1]) == buffer.domains()
        assert all(type(row[i]) is int for row in domains for i in (2, 3, 6))
    history = sql("SELECT * FROM v_history ORDER BY event")
    assert history == [row for buffer in buffers for row in buffer.history()]
    assert {row[4] for row in history} == {"replayed", "evicted", "exhausted", "deleted"}


def test_a_domain_of_huge_losses_has_a_mean(open_memory: OpenMemory, sql: Sql) -> None:
    """Their sum is beyond a float64."""
    open_memory().extend({"x": np.arange(3)}, loss=[1.5e308, 1e308, None])
    assert sql("SELECT mean_loss, highest_loss FROM v_domain") == [(1e290, 1.5e308)]


def test_a_domain_of_tiny_losses_has_a_mean(open_memory: OpenMemory, sql: Sql) -> None:
    """Their quotient is no float64 but 0, which PostgreSQL calls an error."""
    open_memory().extend({"x": np.arange(3)}, loss=[5e-324, 0, 0])
    assert sql("SELECT mean_loss, highest_loss FROM v_domain") == [(0, 5e-324)]


def test_an_empty_memory_has_empty_views(open_memory: OpenMemory, sql: Sql) -> None:
    open_memory()
    assert [sql(f"SELECT * FROM {view}") for view in ("v_episode", "v_domain", "v_history")] == [[], [], []]


def test_one_who_may_only_read_reads_beside_a_transaction(open_memory: OpenMemory, read_only_url: str) -> None:
    """Without waiting; what is committed and nothing else."""
    memory = open_memory()
    memory.extend({"x": np.arange(4)}, domain="math", loss=1.0)
    reader = create_engine(read_only_url, poolclass=NullPool)

    def counts() -> list[int]:
        with reader.connect() as conn:
            views = ("v_episode", "v_domain", "v_history")
            return [conn.execute(text(f"SELECT count(*) FROM {view}")).scalar_one() for view in views]

    assert counts() == [4, 1, 0]
    with memory.transaction():
        memory.update(memory.sample(3), loss=2.0)
        memory.add({"x": 4}, domain="code")
        assert counts() == [4, 1, 0]
    assert counts() == [5, 2, 3]
    with reader.connect() as conn, pytest.raises(DBAPIError):
        conn.execute(text("UPDATE replay_metadata SET loss = 0"))
