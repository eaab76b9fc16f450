"""PostgreSQL: connections that are cut, a server that crashes, deadlocks, locks held too long."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import Connection, text

from memstore import ConnectionLost, EpisodicMemory, PrioritizedLoss, StoreBusy
from tests.sharing.load import Load, outside
from tests.sharing.records import offer
from tests.support.helpers import OpenMemory
from tests.support.postgres import PostgresServer

CUTS = 60
STRIKES = 8
SETTINGS: dict[str, Any] = {"capacity": 100_000, "strategy": PrioritizedLoss(0.6), "busy_timeout": 20}

pytestmark = pytest.mark.parametrize("url", ["postgres"], indirect=True)


@pytest.mark.torture
def test_connections_cut_under_load(open_memory: OpenMemory, url: str) -> None:
    """pg_terminate_backend of one pooled connection after another, at random moments of four threads."""
    memory = open_memory(**SETTINGS)
    load = Load(memory)
    dice = random.Random(1)
    victims = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    cut = 0
    with outside(url) as conn, load.running():
        load.progress(8)
        while cut < CUTS:
            pids = list(conn.scalars(text(victims)))
            if pids:
                cut += conn.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": dice.choice(pids)}).scalar_one()
            load.progress(dice.randrange(3))
    load.check(url)
    assert load.unknown <= load.lost <= cut, "more than one failed call per cut"
    print(f"{cut} cut, {load.lost} seen, {load.unknown} unknown, {len(load.updates)} updates")


@pytest.fixture
def own_server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server that may crash; it runs again afterwards."""
    if not postgres_server.owned:
        pytest.skip("the server is someone else's and must not crash")
    yield postgres_server
    postgres_server.start()


@pytest.mark.torture
def test_server_crashes_under_load(open_memory: OpenMemory, url: str, own_server: PostgresServer) -> None:
    """Immediate shutdown and recovery, again and again; the memory is never reopened."""
    memory = open_memory(durability="power", **SETTINGS)
    load = Load(memory)
    dice = random.Random(2)
    with load.running():
        for _ in range(STRIKES):
            load.progress(dice.randrange(5, 25))
            own_server.crash()
            time.sleep(dice.uniform(0, 0.5))
            own_server.start()
        load.progress(8)
    load.check(url)
    print(f"{STRIKES} crashes, {load.lost} seen, {load.unknown} unknown, {len(load.updates)} updates")


@pytest.mark.parametrize("when", ["before", "during", "after"])
def test_connection_lost_around_the_commit(
    open_memory: OpenMemory, url: str, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """Cut as the commit is called, as it returns, or just after: perhaps unknown, never done twice."""
    memory = open_memory(**SETTINGS)
    memory.extend(**offer(0, range(8)))
    driver = pytest.importorskip("memstore.storage.backends.pipelined").PipelinedConnection
    commit = driver.commit

    def cut(self: Any) -> None:
        monkeypatch.setattr(driver, "commit", commit)
        pid: int = self.info.backend_pid
        if when != "before":
            commit(self)
        with outside(url) as conn:
            assert conn.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid}).scalar_one()
        if when == "before":
            commit(self)
        elif when == "during":
            self.execute("SELECT 1").fetchone()

    def attempt(call: Callable[[], Any]) -> None:
        monkeypatch.setattr(driver, "commit", cut)
        if when == "after":
            try:
                call()
            except ConnectionLost as exc:
                assert exc.outcome_unknown
            return
        with pytest.raises(ConnectionLost) as caught:
            call()
        assert caught.value.outcome_unknown

    attempt(lambda: memory.extend(**offer(1, range(4))))
    assert len(memory) == (8 if when == "before" else 12)
    for _ in range(2):
        assert memory.extend(**offer(1, range(4))).tolist() == [9, 10, 11, 12], "the retry was no no-op"
    attempt(lambda: memory.update([1, 2], loss=5.0))
    assert memory.stats().total_events == (0 if when == "before" else 2)

    def block() -> None:
        with memory.transaction():
            memory.extend(**offer(1, range(4, 8)))
            memory.update([1, 2], loss=6.0)

    attempt(block)
    assert len(memory) == (12 if when == "before" else 16)
    assert memory.stats().total_events == (0 if when == "before" else 4)


def test_a_connection_lost_before_the_commit_is_replaced(open_memory: OpenMemory, url: str) -> None:
    """Idle or in the middle of a statement: the call is repeated inside, and nobody notices; a block does notice."""
    memory = open_memory(**SETTINGS)
    memory.extend(**offer(0, range(8)))

    def cut_all(conn: Connection) -> None:
        query = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE datname = current_database()"
        conn.execute(text(f"{query} AND pid <> pg_backend_pid()"))

    with outside(url) as conn:
        cut_all(conn)
        memory.extend(**offer(1, range(4)))
        cut_all(conn)
        assert len(memory.sample(5)) == 5
        cut_all(conn)
        assert len(memory.update([1, 2], loss=1.0).updated) == 2
        # In the middle: the buffer is locked by another, and the writer waits for it when it is cut.
        conn.execute(text("BEGIN"))
        conn.execute(text("SELECT FROM buffer FOR UPDATE"))
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(memory.extend, **offer(1, range(4, 8)))
            wait_for_locks(url, 1)
            cut_all(conn)
            wait_for_locks(url, 1)
            conn.execute(text("COMMIT"))
            assert waiting.result(30).tolist() == [13, 14, 15, 16]
        with pytest.raises(ConnectionLost) as caught, memory.transaction():
            memory.extend(**offer(1, range(8, 12)))
            cut_all(conn)
            memory.update([1], loss=2.0)
        assert not caught.value.outcome_unknown
    assert len(memory) == 16 and memory.stats().total_events == 2
    assert memory.extend(**offer(1, range(8, 12))).tolist() == [17, 18, 19, 20]


def wait_for_locks(url: str, count: int) -> None:
    """Return when so many sessions wait for a lock."""
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    deadline = time.monotonic() + 20
    with outside(url) as conn:
        while conn.execute(text(query)).scalar_one() != count:
            assert time.monotonic() < deadline, "nobody waits"


def test_deadlock_with_a_stranger(open_memory: OpenMemory, url: str) -> None:
    """Another program locks a table, then the buffer: memstore is the victim, and repeats the update by itself."""
    memory = open_memory(busy_timeout=20)
    memory.extend(**offer(0, range(8)))
    for turn in range(2):
        with outside(url) as conn, ThreadPoolExecutor(1) as pool:
            conn.execute(text("SET deadlock_timeout = '60s'"))  # the one who looks first is the victim
            conn.execute(text("BEGIN"))
            conn.execute(text("LOCK TABLE replay_event IN SHARE MODE"))
            call: Callable[..., Any] = memory.update if turn == 0 else partial(_update_in_block, memory)
            waiting = pool.submit(call, [1, 2], loss=3.0 + turn)
            wait_for_locks(url, 1)
            conn.execute(text("SELECT FROM buffer FOR UPDATE"))  # returns when the deadlock is broken
            conn.execute(text("COMMIT"))
            if turn == 0:
                assert waiting.result(30).updated.tolist() == [1, 2]
            else:
                with pytest.raises(StoreBusy):
                    waiting.result(30)
    assert len(memory) == 8 and memory.stats().total_events == 2
    assert [m.loss for m in memory.metadata([1, 2])] == [3.0, 3.0]


def _update_in_block(memory: EpisodicMemory, ids: list[int], loss: float) -> None:
    with memory.transaction():
        memory.extend(**offer(1, range(4)))
        memory.update(ids, loss=loss)


def test_lock_held_by_another(open_memory: OpenMemory, url: str) -> None:
    """StoreBusy after ``busy_timeout``, nothing written; draws and look-ups do not wait meanwhile."""
    memory = open_memory(busy_timeout=0.5)
    memory.extend(**offer(0, range(50)))
    with outside(url) as conn:
        conn.execute(text("BEGIN"))
        conn.execute(text("SELECT FROM buffer FOR UPDATE"))
        with ThreadPoolExecutor(1) as pool:
            started = time.monotonic()
            waiting = pool.submit(memory.extend, **offer(1, range(4)))
            wait_for_locks(url, 1)
            draws = 0
            reader = open_memory()
            while not waiting.done():
                assert len(reader.sample(5)) == 5 and len(reader.get_many([1, 2])) == 2
                draws += 1
            with pytest.raises(StoreBusy):
                waiting.result()
            assert 0.4 < time.monotonic() - started < 5
            assert draws >= 5
        with pytest.raises(StoreBusy), memory.transaction():
            pytest.fail("the block was entered without the lock")
        conn.execute(text("ROLLBACK"))
    assert memory.extend(**offer(1, range(4))).tolist() == [51, 52, 53, 54]
