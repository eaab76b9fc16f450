"""Whatever goes wrong, a handle answers as one that was opened now: its copy is never that of commits that are not."""

from __future__ import annotations

import os
import random
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import psycopg
import pytest

from memstore import EpisodicMemory, MemstoreError, PrioritizedLoss, RetentionPolicy
from tests.engine.answers import told
from tests.engine.damaged_past import Past
from tests.engine.program import newcomers
from tests.support.helpers import OpenMemory
from tests.support.windows import ENDLESS, window
from tests.torture.interrupts import Struck, interrupted

FULL = os.environ.get("MEMSTORE_TORTURE") == "full"
MOMENTS = 150 if FULL else 5
SETTINGS: dict[str, Any] = {"capacity": 160, "eviction": "lowest_loss", "strategy": "prioritized_loss"}

windows = pytest.mark.parametrize("entries", [1, 60, ENDLESS])


@pytest.fixture
def small(entries: int) -> Iterator[None]:
    """The window of this test."""
    with window(entries):
        yield


def filled(open_memory: OpenMemory, **options: Any) -> EpisodicMemory:
    """A memory with a past, whose views are known to the handle."""
    memory, rng = open_memory(**SETTINGS, **options), np.random.default_rng(1)
    for _ in range(4):
        memory.extend(**newcomers(rng, 45))
        memory.update(memory.sample(20), loss=rng.lognormal(0, 2, 20))
    told(memory)
    return memory


def must_be_fresh(memory: EpisodicMemory, open_memory: OpenMemory) -> None:
    """It answers as another handle does that is opened now, and so they do after each has done something more."""
    fresh = open_memory()
    assert told(memory) == told(fresh)
    for number, one in enumerate((memory, fresh, memory)):
        rng = np.random.default_rng(number)
        one.extend(**newcomers(rng, 9))
        one.update(memory.query().ids()[::11], loss=2.5)
    assert told(memory) == told(fresh)


# Commits that the database has forgotten.

WRITES: dict[str, Callable[[EpisodicMemory, float], Any]] = {
    "extend": lambda memory, loss: memory.extend({"x": np.ones((30, 2), np.int64)}, loss=loss, level=3),
    "update": lambda memory, loss: memory.update(memory.query().ids()[:9], loss=loss),
    "delete": lambda memory, loss: memory.delete(memory.query().ids()[int(loss) :: 9][:5]),
}


@windows
@pytest.mark.parametrize(("more", "cache_bytes"), [(0, 2**26), (6, 2**26), (1, 0)])
def test_forgotten_commits(
    open_memory: OpenMemory, url: str, small: None, entries: int, more: int, cache_bytes: int
) -> None:
    """The database goes back under open handles, and others reach the revision that these know, or a later one."""
    memory = filled(open_memory, cache_bytes=cache_bytes)
    other = open_memory()
    past = Past(url)
    for write in WRITES.values():
        write(memory, 1.0)
        memory.sample(8, strategy=PrioritizedLoss(1.3), where="loss > 1")
    past.come_back()
    for write in WRITES.values():
        write(other, 4.0)
    for _ in range(more):
        WRITES["update"](other, 5.0)
    must_be_fresh(memory, open_memory)


@windows
def test_a_handle_that_writes_after_the_database_forgot(
    open_memory: OpenMemory, url: str, small: None, entries: int
) -> None:
    """Without another one: what it knows itself is no longer there."""
    memory = filled(open_memory)
    past = Past(url)
    ids = memory.extend({"x": np.ones((30, 2), np.int64)}, loss=9.0, level=3)
    memory.update(ids, loss=1e6)
    past.come_back()
    assert memory.extend({"x": np.zeros((2, 2), np.int64)}, loss=3.0, level=1).tolist() == ids[:2].tolist()
    must_be_fresh(memory, open_memory)


# A commit that fails, or of which nobody knows what became.


def block(memory: EpisodicMemory) -> None:
    """A transaction with savepoints, one of which fails."""
    rng = np.random.default_rng(5)
    with memory.transaction():
        memory.extend(**newcomers(rng, 40))
        try:
            with memory.transaction():
                memory.update(memory.sample(9), loss=1e9)
                memory.extend(**newcomers(rng, 30))
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        memory.update(memory.sample(12), loss=rng.lognormal(0, 2, 12))
        memory.delete(memory.sample(3).ids)
        memory.save_checkpoint("run", {"a": 1})


CALLS: dict[str, Callable[[EpisodicMemory], Any]] = {
    "extend": lambda memory: memory.extend(**newcomers(np.random.default_rng(3), 50)),
    "update": lambda memory: memory.update(memory.query().ids()[::3], loss=7.0),
    "delete": lambda memory: memory.delete(memory.query().ids()[::4]),
    "consolidate": lambda memory: memory.consolidate(RetentionPolicy(max_episodes=70)),
    "configure": lambda memory: memory.configure(alpha=1.1, capacity=100, eviction="fifo"),
    "lease": lambda memory: memory.lease(5, duration=1e6),
    "fold": lambda memory: memory.fold(),
    "block": block,
}
calls = pytest.mark.parametrize("name", CALLS)


@windows
@calls
@pytest.mark.parametrize("happened", [False, True], ids=["refused", "unknown"])
def test_failing_commits(
    open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch, small: None, entries: int, name: str, happened: bool
) -> None:
    """The disk is full, or the commit happens and its answer is lost."""
    memory = filled(open_memory)
    before, state = told(memory), memory.rng.bit_generator.state
    backend = memory._session.database.backend
    driver = memory._session.database.in_read(lambda conn: type(backend.driver(conn)))
    commit = driver.commit
    server = issubclass(driver, psycopg.Connection)
    calls = 0

    def failing(connection: Any) -> None:
        nonlocal calls
        if not connection_writes(connection, server=server):
            commit(connection)
            return
        calls += 1
        if happened:
            commit(connection)
            if server:
                connection.close()
                raise psycopg.OperationalError("the connection is closed")
            raise sqlite3.OperationalError("disk I/O error")
        if server:
            raise psycopg.errors.DiskFull("no space left on device")
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(driver, "commit", failing)
        try:
            CALLS[name](memory)
        except MemstoreError:
            assert calls
        else:
            assert not calls and name == "fold", "nothing was tried"
    if not happened and calls:
        assert memory.rng.bit_generator.state == state, "what failed has used up random numbers"
        assert told(memory) == before
    must_be_fresh(memory, open_memory)


def connection_writes(connection: Any, *, server: bool) -> bool:
    """True if the transaction that this connection is about to commit has written something."""
    if server:
        row = psycopg.Connection.execute(connection, "SELECT pg_current_xact_id_if_assigned()::text").fetchone()
        return row is not None and row[0] is not None
    return bool(connection.in_transaction and connection.execute("PRAGMA query_only").fetchone() is not None)


@pytest.mark.filterwarnings("ignore:Exception ignored:pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("entries", [1, ENDLESS])
@calls
def test_interrupts(open_memory: OpenMemory, small: None, entries: int, name: str) -> None:
    """Ctrl-C at moments spread over the call, its fold included. Either all of it happened or nothing."""
    memory = filled(open_memory)
    with interrupted(None, Struck()) as count:
        CALLS[name](memory)
    dice = random.Random(f"{name} {entries}")
    for _ in range(MOMENTS):
        try:
            with interrupted(dice.randrange(1, count[0] + 1), Struck()):
                CALLS[name](memory)
        except Struck:
            pass
        fresh = open_memory()
        assert told(memory) == told(fresh)
        fresh.close()
    must_be_fresh(memory, open_memory)
