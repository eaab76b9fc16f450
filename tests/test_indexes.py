"""Every index is used by a real query, and no hot path scans a table."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, make_url

import memstore
from memstore.memory import EpisodicMemory

ROWS = 2000
# PostgreSQL tells the plan of each statement as it runs. Tables this small it would rather scan: the question is
# whether it has another way. What it does with large ones, the benchmarks show.
EXPLAINING = (
    "LOAD 'auto_explain'",
    "SET auto_explain.log_min_duration = 0",
    "SET auto_explain.log_level = 'notice'",
    "SET enable_seqscan = off",
)


def _fill(memory: EpisodicMemory) -> None:
    rng = np.random.default_rng(0)
    domains = [f"d{i % 5}" for i in range(ROWS)]
    loss = [None if i % 7 == 0 else float(v) for i, v in enumerate(rng.lognormal(size=ROWS))]
    tags = [("odd",) if i % 2 else () for i in range(ROWS)]
    memory.extend({"x": rng.normal(size=(ROWS, 3))}, domain=domains, loss=loss, tags=tags, timestamp=list(range(ROWS)))


def _plans(url: str, work: Callable[[], Any], memory: EpisodicMemory) -> list[tuple[str, str]]:
    """Every statement that ``work`` runs, with the database's plan for it."""
    told: list[str] = []
    engine = memory._session.database.engine
    sqlite = engine.dialect.name == "sqlite"

    def trace(connection: Any, _record: Any) -> None:
        if sqlite:
            connection.set_trace_callback(told.append)
            return
        for statement in EXPLAINING:
            connection.execute(statement)
        connection.commit()
        connection.add_notice_handler(lambda notice: told.append(notice.message_primary))

    engine.dispose()
    event.listen(engine, "connect", trace)
    work()
    engine.dispose()
    event.remove(engine, "connect", trace)
    return _sqlite_plans(url, told) if sqlite else [_postgres_plan(text) for text in told if "Query Text:" in text]


def _sqlite_plans(url: str, statements: list[str]) -> list[tuple[str, str]]:
    plans = []
    with closing(sqlite3.connect(str(make_url(url).database))) as connection:
        for statement in dict.fromkeys(statements):
            if statement.lstrip().upper().startswith(("SELECT", "UPDATE", "DELETE", "INSERT")):
                rows = connection.execute(f"EXPLAIN QUERY PLAN {statement}").fetchall()
                plans.append((statement, " / ".join(row[3] for row in rows)))
    return plans


def _postgres_plan(text: str) -> tuple[str, str]:
    lines = text.partition("Query Text:")[2].splitlines()
    first = next(number for number, line in enumerate(lines) if "(cost=" in line)
    return " ".join(lines[:first]), "\n".join(lines[first:])


def _scanned(plan: str) -> set[str]:
    """Tables that the plan reads from end to end; on PostgreSQL a whole index counts as its table."""
    if "(cost=" not in plan:
        return set(re.findall(r"SCAN (\w+)", plan)) - {"j", "c", "json_each", "sqlite_master", "memstore_version"}
    found = set(re.findall(r"Seq Scan on (\w+)", plan))
    for node in re.split(r"\n\s*->", plan):
        whole = re.search(r"Index (?:Only )?Scan (?:Backward )?using \w+ on (\w+)", node)
        if whole and "Index Cond:" not in node:
            found.add(whole[1])
    return {name for name in found if not name.startswith("pg_")}


@pytest.fixture
def memory(url: str) -> Iterator[EpisodicMemory]:
    with memstore.open(url, capacity=ROWS, strategy="prioritized_loss", seed=1) as opened:
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
def test_index_is_used(url: str, memory: EpisodicMemory, use: str) -> None:
    index, work = USES[use]
    plans = _plans(url, lambda: work(memory), memory)
    assert any(re.search(index, plan) for _, plan in plans), "\n".join(plan for _, plan in plans)


@pytest.mark.parametrize("policy", ["largest_domain", "reservoir"])
def test_eviction_order_is_read_from_its_partial_index(url: str, policy: str) -> None:
    with memstore.open(url, capacity=ROWS, eviction=policy, seed=1) as memory:
        _fill(memory)
        plans = _plans(url, lambda: _extend(memory), memory)
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
def test_hot_path_scans_no_table(url: str, memory: EpisodicMemory, operation: str) -> None:
    """Only what json_each or unnest makes of a parameter is read whole."""
    plans = _plans(url, lambda: HOT[operation](memory), memory)
    assert plans
    for statement, plan in plans:
        assert not _scanned(plan), f"{statement}\n{plan}"


def test_the_check_can_fail(url: str, memory: EpisodicMemory) -> None:
    """A full pass is seen as one."""
    plans = _plans(url, lambda: memory.recall(np.zeros(3), on="x"), memory)
    assert any("payload" in statement for statement, _ in plans)
    database = memory._session.database
    statement = "SELECT sum(replay_count) FROM replay_metadata"
    plans = _plans(url, lambda: database.in_read(lambda conn: conn.exec_driver_sql(statement).all()), memory)
    assert set().union(*(_scanned(plan) for _, plan in plans)) == {"replay_metadata"}
