"""Every index is used by a real query, and no hot path scans a table."""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pytest
from sqlalchemy import event, make_url

import memstore
from memstore import col
from memstore.memory import EpisodicMemory
from memstore.storage.schema import metadata

ROWS = 2000
FEW = 8  # of a table this small PostgreSQL reads the whole index for more
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
    tags = [("odd", f"rare {i % 100}") if i % 2 else () for i in range(ROWS)]
    memory.extend({"x": rng.normal(size=(ROWS, 3))}, domain=domains, loss=loss, tags=tags, timestamp=list(range(ROWS)))


def _plans(url: str, work: Callable[[], Any], memory: EpisodicMemory) -> list[tuple[str, str]]:
    """Every statement that ``work`` runs, with the database's plan for it."""
    told: list[str] = []
    connections = memory._session.database.connections
    engine = connections.engine
    sqlite = engine.dialect.name == "sqlite"

    def trace(connection: Any, _record: Any) -> None:
        if sqlite:
            connection.set_trace_callback(told.append)
            return
        for statement in EXPLAINING:
            connection.execute(statement)
        connection.commit()
        connection.add_notice_handler(lambda notice: told.append(notice.message_primary))

    connections.clear()
    event.listen(engine, "connect", trace)
    work()
    len(memory)  # PostgreSQL tells the last plans with the answer to COMMIT, which is read by whoever comes next
    connections.clear()
    event.remove(engine, "connect", trace)
    return _sqlite_plans(url, told) if sqlite else [_postgres_plan(text) for text in told if "Query Text:" in text]


def _sqlite_plans(url: str, statements: list[str]) -> list[tuple[str, str]]:
    plans = []
    with closing(sqlite3.connect(str(make_url(url).database))) as connection:
        for statement in dict.fromkeys(statements):
            if statement.lstrip().upper().startswith(("SELECT", "WITH", "UPDATE", "DELETE", "INSERT")):
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
        return set(re.findall(r"SCAN (\w+)", plan)) & set(metadata.tables)
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


@pytest.fixture
def past(memory: EpisodicMemory) -> EpisodicMemory:
    """With events of 2,000 episodes, 50 of which have left, and the tables at the end of the log."""
    for step in range(5):
        memory.update(np.arange(1, ROWS + 1), loss=np.linspace(0.01, 50, ROWS), step=step)
    memory.delete(np.arange(1, 51))
    memory.extend({"x": np.zeros((50, 3))}, domain="d0", loss=np.linspace(1, 2, 50), timestamp=0.0)
    memory.fold()
    return memory


def _sample_into(memory: EpisodicMemory, found: list[Any]) -> None:
    found.append(memory.sample(FEW))


def _extend(memory: EpisodicMemory) -> None:
    memory.extend({"x": np.zeros((16, 3))}, domain="d1", loss=1.0, key=[f"k{i}" for i in range(16)])


USES: dict[str, tuple[str, Callable[[EpisodicMemory], Any]]] = {
    "timestamp": ("ix_episode_buffer_id_timestamp", lambda m: m.recall_temporal(100, 120)),
    "domain and timestamp": (
        "ix_episode_domain_id_timestamp",
        lambda m: m.recall_temporal(100, 120, domain="d3"),
    ),
    "hardest": ("ix_replay_metadata_buffer_id_loss", lambda m: m.hardest(5)),
    "a query by loss": ("ix_replay_metadata_buffer_id_loss", lambda m: m.query().filter(col.loss > 50).all()),
    "a query by time": (
        "ix_episode_buffer_id_timestamp",
        lambda m: m.query().filter(col.timestamp.between(5, 9)).select(col.id, col.timestamp).all(),
    ),
    "history of what left": ("ix_replay_event_end", lambda m: m.history(episode=7)),
    "history by time": ("ix_event_group_buffer_id_at", lambda m: m.history(since=1e9, limit=5)),
    "history by step": ("ix_event_group_buffer_id_step", lambda m: m.history(steps=(1, 2))),
    "loss trend": ("pk_replay_tally|sqlite_autoindex_replay_tally_1|PRIMARY KEY", lambda m: m.loss_trend()),
    "tags": ("pk_episode_tag|sqlite_autoindex_episode_tag_1|PRIMARY KEY", lambda m: m.recall_by_tags(["rare 7"])),
}


def test_each_index_is_used(url: str, past: EpisodicMemory) -> None:
    for use, (index, work) in USES.items():
        plans = _plans(url, partial(work, past), past)
        assert any(re.search(index, plan) for _, plan in plans), use + "\n".join(plan for _, plan in plans)


HOT: dict[str, Callable[[EpisodicMemory], Any]] = {
    "get": lambda m: m.get_many([105, 106, 107]),
    "sample by loss": lambda m: m.sample(64, beta=0.4),
    "sample by recency": lambda m: m.sample(64, strategy="prioritized_recency", beta=0.4),
    "sample uniformly": lambda m: m.sample(64, strategy="uniform"),
    "sample balanced": lambda m: m.sample(64, strategy="domain_balanced"),
    "sample mixed": lambda m: m.sample(64, strategy="mixed"),
    "update": lambda m: m.update(m.sample(64), loss=np.linspace(0.01, 50, 64)),
    "extend and evict": _extend,
    "delete": lambda m: m.delete([110, 111, 112]),
    "stats": lambda m: m.stats(),
    "sample from a domain": lambda m: m.sample(64, where=col.domain.in_(["d1", "d2"])),
    "sample where many pass": lambda m: m.sample(64, where=col.timestamp >= 500),
    "hardest": lambda m: m.hardest(5),
    "forgotten, where the hardest decide": lambda m: m.forgotten(5),
    "history of an episode": lambda m: m.history(episode=[7, 1000]),
    "history of some steps": lambda m: m.history(steps=(1, 2), limit=10),
    "history since then": lambda m: m.history(since=time.time() - 1e6, limit=10),
    "replay share": lambda m: m.replay_share(),
    "loss trend": lambda m: m.loss_trend(),
}


def test_hot_paths_scan_no_table(url: str, past: EpisodicMemory) -> None:
    """Only what json_each or unnest makes of a parameter is read whole."""
    for operation, work in HOT.items():
        plans = _plans(url, partial(work, past), past)
        assert plans, operation
        for statement, plan in plans:
            assert not _scanned(plan), f"{operation}: {statement}\n{plan}"


@pytest.mark.parametrize("strategy", ["prioritized_loss", "prioritized_recency", "uniform", "domain_balanced", "mixed"])
def test_without_caches_a_draw_is_index_look_ups_and_the_same_draw(url: str, strategy: str) -> None:
    """With ``cache_bytes=0`` blocks and payloads come by statements, between two folds as behind one."""
    with memstore.open(url, capacity=ROWS, strategy=strategy, eviction="fifo", seed=1) as cached:
        _fill(cached)
        for turn in range(4):
            if turn == 2:
                cached.fold()
            cached.update(np.arange(101, 301), loss=np.linspace(0.01, 50, 200))
            _extend(cached)
            cached.update(np.arange(201, 401), loss=1.0 + turn)
            with memstore.open(url, create=False, seed=5, cache_bytes=0) as bare:
                first = bare.sample(FEW)
                found: list[Any] = []
                plans = _plans(url, partial(_sample_into, bare, found), bare)
            for table in ("block", "payload"):
                assert any(re.search(rf"JOIN {table}\b", statement) for statement, _ in plans), table
            for statement, plan in plans:
                assert not _scanned(plan), f"{statement}\n{plan}"
            with memstore.open(url, create=False, seed=5) as rich:
                assert rich.sample(FEW).ids.tolist() == first.ids.tolist()
                again = rich.sample(FEW)
                assert again.ids.tolist() == found[0].ids.tolist()
                assert again.probability is None or again.probability.tolist() == found[0].probability.tolist()


def test_between_folds_no_look_up_reads_a_table_from_end_to_end(url: str, past: EpisodicMemory) -> None:
    """The log since the fold is read by its numbers, and episodes that left are known by the index on endings."""
    past.update(np.arange(300, 400), loss=1.0)
    _extend(past)
    assert not past._session.committed.counters.is_folded
    asked: dict[str, Callable[[], Any]] = {
        "by id": lambda: past.query().filter(col.id.in_([350, 700, 2055])).all(),
        "by time": lambda: past.recall_temporal(100, 120),
        "by tag": lambda: past.recall_by_tags(["rare 7"]),
        "by loss": lambda: past.query().filter(col.loss > 49).all(),
        "hardest": lambda: past.hardest(5),
        "history": lambda: past.history(episode=[350, 7]),
    }
    for use, work in asked.items():
        plans = _plans(url, work, past)
        assert plans, use
        for statement, plan in plans:
            assert not _scanned(plan), f"{use}: {statement}\n{plan}"
        if use in ("by loss", "hardest"):
            assert any("ix_replay_metadata_buffer_id_loss" in plan for _, plan in plans), use


def test_what_scans_says_so(url: str, past: EpisodicMemory) -> None:
    """On SQLite a range of all ids counts: what it reads in the end is the whole table."""
    for answer in ("hardest", "most_replayed", "never_replayed", "forgotten", "replay_share"):
        method = getattr(past, answer)
        # Of more than there are the hardest decide nothing.
        plans = _plans(url, partial(method, ROWS) if answer == "forgotten" else method, past)
        asked = [(statement, plan) for statement, plan in plans if "FROM replay_metadata" in statement]
        whole = [plan for statement, plan in asked if " IN (SELECT" not in statement]
        ranges = ("PRIMARY KEY (rowid>? AND rowid<?)", "BETWEEN")
        scans = any(_scanned(plan) or any(text in plan for text in ranges) for plan in whole)
        scans |= any("pk_replay_metadata" in plan and "LIMIT" not in plan and "ANY" not in plan for plan in whole)
        assert scans == ("scan" in (method.__doc__ or "")), answer + "\n".join(plan for _, plan in plans)


@pytest.mark.parametrize("answer", ["loss_trend", "replay_share"])
def test_sums_are_read_from_the_tally_alone(url: str, past: EpisodicMemory, answer: str) -> None:
    """Beside it only what any snapshot begins with: the buffer, its strata and domains."""
    plans = _plans(url, getattr(past, answer), past)
    read = {name for statement, _ in plans for name in re.findall(r"(?:FROM|JOIN)\s+(\w+)", statement)}
    assert "replay_tally" in read
    assert not read & {"episode", "replay_metadata", "replay_event", "event_group"}, read


@pytest.mark.parametrize("where", [{"steps": (1, 2)}, {"since": 0.0, "until": 1e6}])
def test_history_reads_a_range_of_events(url: str, memory: EpisodicMemory, where: dict[str, Any]) -> None:
    """Those between the first and the last group of the steps or hours asked for, by the primary key."""
    with pytest.MonkeyPatch.context() as patch:
        for step in range(4):
            patch.setattr("time.time", lambda step=step: 1e6 * (step if step else 9))
            memory.update(np.arange(1, 101), loss=1.0, step=step)
    found: list[Any] = []
    plans = _plans(url, lambda: found.extend(memory.history(**where)), memory)
    assert {event.step for event in found} == ({1, 2} if "steps" in where else {1})
    of_events = [(statement, plan) for statement, plan in plans if "FROM replay_event" in statement]
    assert of_events
    for statement, plan in of_events:
        assert re.search(r"replay_event USING INTEGER PRIMARY KEY \(rowid>\? AND rowid<\?\)|pk_replay_event", plan), (
            plan
        )
        ends = re.findall(r"replay_event\.id [<>]= (\d+)", statement)  # PostgreSQL tells no values
        assert ends in ([], ["101", "300" if "steps" in where else "200"]), statement


def test_a_draw_follows_the_log_instead_of_looking_everybody_up(url: str, past: EpisodicMemory) -> None:
    """Behind a sparse condition, from the second time on: the newcomers since, and the blocks that changed."""
    sparse = col.level == 3
    past.extend({"x": np.zeros((40, 3))}, domain="d1", loss=1.0, level=3)
    past.sample(8, where=sparse)
    past.update(past.sample(64), loss=1.0)
    plans = _plans(url, lambda: past.sample(8, where=sparse), past)
    for statement, plan in plans:
        assert not _scanned(plan), f"{statement}\n{plan}"
        assert "PRIMARY KEY (rowid>? AND rowid<?)" not in plan or "replay_event" in plan, statement


def test_the_check_can_fail(url: str, memory: EpisodicMemory) -> None:
    """A full pass is seen as one."""
    plans = _plans(url, lambda: memory.recall(np.zeros(3), on="x"), memory)
    assert any("payload" in statement for statement, _ in plans)
    database = memory._session.database
    statement = "SELECT sum(replay_count) FROM replay_metadata"
    plans = _plans(url, lambda: database.in_read(lambda conn: conn.exec_driver_sql(statement).all()), memory)
    assert set().union(*(_scanned(plan) for _, plan in plans)) == {"replay_metadata"}
