"""Every index is used by a real query, and no hot path scans a table."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event

import memstore
from memstore.memory import EpisodicMemory

ROWS = 2000


def _fill(memory: EpisodicMemory) -> None:
    rng = np.random.default_rng(0)
    domains = [f"d{i % 5}" for i in range(ROWS)]
    loss = [None if i % 7 == 0 else float(v) for i, v in enumerate(rng.lognormal(size=ROWS))]
    tags = [("odd",) if i % 2 else () for i in range(ROWS)]
    memory.extend({"x": rng.normal(size=(ROWS, 3))}, domain=domains, loss=loss, tags=tags, timestamp=list(range(ROWS)))


def _plans(path: str, work: Callable[[], Any], memory: EpisodicMemory) -> list[tuple[str, str]]:
    """Every statement that ``work`` runs, with SQLite's plan for it."""
    statements: list[str] = []
    engine = memory._session.database.engine

    def trace(connection: Any, _record: Any) -> None:
        connection.set_trace_callback(statements.append)

    engine.dispose()
    event.listen(engine, "connect", trace)
    work()
    engine.dispose()
    event.remove(engine, "connect", trace)
    plans = []
    with sqlite3.connect(path) as connection:
        for statement in dict.fromkeys(statements):
            if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
                rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                plans.append((statement, " / ".join(row[3] for row in rows)))
    connection.close()
    return plans


@pytest.fixture
def memory(path: str) -> Any:
    with memstore.open(path, capacity=ROWS, strategy="prioritized_loss", seed=1) as opened:
        _fill(opened)
        yield opened


def _extend(memory: EpisodicMemory) -> None:
    memory.extend({"x": np.zeros((16, 3))}, domain="d1", loss=1.0, key=[f"k{i}" for i in range(16)])


USES: dict[str, tuple[str, Callable[[EpisodicMemory], Any]]] = {
    "sampling index": (
        "ix_replay_metadata_stratum_id_position",
        lambda m: m.sample(64),
    ),
    "loss, by the smallest priority": (
        "ix_replay_metadata_buffer_id_loss",
        lambda m: m.sample(64, beta=0.5),
    ),
    "loss, by eviction": ("ix_replay_metadata_buffer_id_loss", _extend),
    "timestamp": ("ix_episode_buffer_id_timestamp", lambda m: m.recall_temporal(100, 120)),
    "domain and timestamp": (
        "ix_episode_domain_id_timestamp",
        lambda m: m.recall_temporal(100, 120, domain="d3"),
    ),
    "tags": ("pk_episode_tag|sqlite_autoindex_episode_tag_1|PRIMARY KEY", lambda m: m.recall_by_tags(["odd"])),
}


@pytest.mark.parametrize("use", USES)
def test_index_is_used(path: str, memory: EpisodicMemory, use: str) -> None:
    index, work = USES[use]
    plans = _plans(path, lambda: work(memory), memory)
    assert any(re.search(index, plan) for _, plan in plans), "\n".join(plan for _, plan in plans)


@pytest.mark.parametrize("policy", ["largest_domain", "reservoir"])
def test_eviction_order_is_read_from_its_partial_index(path: str, policy: str) -> None:
    with memstore.open(path, capacity=ROWS, eviction=policy, seed=1) as memory:
        _fill(memory)
        plans = _plans(path, lambda: _extend(memory), memory)
    assert any("ix_replay_metadata_eviction" in plan for _, plan in plans)


HOT: dict[str, Callable[[EpisodicMemory], Any]] = {
    "sample by loss": lambda m: m.sample(64, beta=0.4),
    "sample by recency": lambda m: m.sample(64, strategy="prioritized_recency", beta=0.4),
    "sample uniformly": lambda m: m.sample(64, strategy="uniform"),
    "sample balanced": lambda m: m.sample(64, strategy="domain_balanced"),
    "sample mixed": lambda m: m.sample(64, strategy="mixed"),
    "update": lambda m: m.update(m.sample(64), loss=np.linspace(0.01, 50, 64)),
    "extend and evict": _extend,
    "get": lambda m: m.get_many([5, 6, 7]),
    "delete": lambda m: m.delete([10, 11, 12]),
    "stats": lambda m: m.stats(),
}


@pytest.mark.parametrize("operation", HOT)
def test_hot_path_scans_no_table(path: str, memory: EpisodicMemory, operation: str) -> None:
    """A plan line "SCAN table" without an index reads every row; only json_each and the schema's own may."""
    plans = _plans(path, lambda: HOT[operation](memory), memory)
    assert plans
    for statement, plan in plans:
        scanned = set(re.findall(r"SCAN (\w+)", plan)) - {"j", "c", "json_each", "sqlite_master", "memstore_version"}
        assert not scanned, f"{statement}\n{plan}"


def test_the_check_can_fail(path: str, memory: EpisodicMemory) -> None:
    """A full pass, such as the exact statistics, is seen as one."""
    plans = _plans(path, lambda: memory.recall(np.zeros(3), on="x"), memory)
    assert any("payload" in statement for statement, _ in plans)
    with sqlite3.connect(path) as connection:
        plan = connection.execute("EXPLAIN QUERY PLAN SELECT sum(replay_count) FROM replay_metadata").fetchall()
    connection.close()
    assert "SCAN replay_metadata" in plan[0][3]
