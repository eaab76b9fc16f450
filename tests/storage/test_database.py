"""Scopes, whatever is sent in them and in whatever order: a commit commits, an error undoes."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import Connection, select, text

import memstore
from memstore.errors import MemstoreError, StoreBusy
from memstore.storage.address import parse_url
from memstore.storage.database import Database
from memstore.storage.schema import domain
from tests.support.helpers import Damage, OpenMemory, Sql

COUNT = "SELECT count(*) FROM domain"


@pytest.fixture
def database(url: str, open_memory: OpenMemory, damage: Damage) -> Iterator[Database]:
    """Scopes on a database that has tables; rows are put there past the buffer, so it is not sound afterwards."""
    open_memory().close()
    found = Database(parse_url(url), busy_timeout=0.5)
    yield found
    assert found.connections.in_use == 0
    found.close()


def insert(database: Database, conn: Connection, number: int) -> None:
    """A statement whose result nobody awaits."""
    columns: dict[str, list[Any]] = {"id": [number], "buffer_id": [99], "name": [f"domain {number}"]}
    database.backend.insert(conn, domain, columns)


def test_a_write_that_ends_with_an_awaited_statement_is_committed(database: Database, sql: Sql) -> None:
    """Inside a pipeline the driver does not know that a transaction is open; its commit would send nothing."""

    def work(conn: Connection) -> int:
        insert(database, conn, 1)
        return len(database.backend.select(conn, domain, ["id"], "id", [1]))

    assert database.in_write(work) == 1
    assert sql(COUNT) == [(1,)]


def test_a_write_of_nothing_but_unawaited_statements_is_committed(database: Database, sql: Sql) -> None:
    database.in_write(lambda conn: insert(database, conn, 1))
    assert sql(COUNT) == [(1,)]


def test_a_write_through_sqlalchemy_is_committed(database: Database, sql: Sql) -> None:
    database.in_write(lambda conn: conn.execute(domain.insert().values(id=1, buffer_id=99, name="d")))
    assert database.in_write(lambda conn: conn.execute(domain.update().values(name="e")).rowcount) == 1
    assert sql("SELECT name FROM domain") == [("e",)]


def test_an_error_that_nobody_awaited_undoes_the_scope(database: Database, sql: Sql) -> None:
    def work(conn: Connection) -> None:
        insert(database, conn, 1)
        insert(database, conn, 1)
        insert(database, conn, 2)

    with pytest.raises(MemstoreError):
        database.in_write(work)
    assert sql(COUNT) == [(0,)]
    database.in_write(lambda conn: insert(database, conn, 3))
    assert sql(COUNT) == [(1,)]


def test_an_exception_of_the_work_undoes_the_scope(database: Database, sql: Sql) -> None:
    def work(conn: Connection) -> None:
        insert(database, conn, 1)
        raise LookupError

    with pytest.raises(LookupError):
        database.in_write(work)
    assert sql(COUNT) == [(0,)]


def test_an_exception_of_the_work_is_not_hidden_by_an_error_of_its_statements(database: Database, sql: Sql) -> None:
    def work(conn: Connection) -> None:
        insert(database, conn, 1)
        with pytest.raises(Exception):  # noqa: B017 - SQLite says so here, PostgreSQL later
            insert(database, conn, 1)
            raise LookupError
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        database.in_write(work)
    assert sql(COUNT) == [(0,)]


def test_a_failed_scope_leaves_the_block_around_it_alive(database: Database, sql: Sql) -> None:
    def twice(conn: Connection) -> None:
        insert(database, conn, 2)
        insert(database, conn, 2)

    with database.transaction(lambda conn: None):
        database.in_write(lambda conn: insert(database, conn, 1))
        with pytest.raises(MemstoreError):
            database.in_write(twice)
        with pytest.raises(LookupError), database.transaction(lambda conn: None):
            database.in_write(lambda conn: insert(database, conn, 3))
            raise LookupError
        with database.transaction(lambda conn: None):
            database.in_write(lambda conn: insert(database, conn, 4))
        assert database.in_read(lambda conn: sorted(conn.scalars(select(domain.c.id)))) == [1, 4]
    assert sql("SELECT id FROM domain ORDER BY id") == [(1,), (4,)]


def test_a_read_sees_one_snapshot(database: Database) -> None:
    def work(conn: Connection) -> list[int]:
        before = len(conn.execute(select(domain.c.id)).all())
        thread = threading.Thread(target=lambda: database.in_write(lambda other: insert(database, other, 1)))
        thread.start()
        thread.join()
        return [before, len(conn.execute(select(domain.c.id)).all())]

    assert database.in_read(work) == [0, 0]
    assert database.in_read(lambda conn: len(conn.execute(select(domain.c.id)).all())) == 1


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_read_cannot_write(database: Database) -> None:
    with pytest.raises(memstore.StoreReadOnly):
        database.in_read(lambda conn: insert(database, conn, 1))


def test_a_writer_waits_as_long_as_it_was_told(open_memory: OpenMemory) -> None:
    holder, waiter = open_memory(), open_memory(busy_timeout=0.5)
    with holder.transaction():
        holder.add({"x": 1})
        begun = time.monotonic()

        def blocked() -> None:
            with pytest.raises(StoreBusy, match=r"0\.5 s"):
                waiter.add({"x": 2})

        thread = threading.Thread(target=blocked)
        thread.start()
        thread.join()
        assert 0.4 < time.monotonic() - begun < 5
        assert len(waiter) == 0  # reads never wait
    assert waiter.add({"x": 2}) == 2


@pytest.mark.parametrize("size", [100_000, 24_000_000])
def test_statements_larger_than_a_sockets_buffer(open_memory: OpenMemory, size: int) -> None:
    """psycopg 3.3 sends them in part, and then waits for the answer for ever."""
    memory = open_memory(capacity=10)
    weights = np.random.default_rng(0).random(size // 8)
    memory.extend({"x": weights.reshape(4, -1)})
    with memory.transaction():
        memory.save_checkpoint("large", {"weights": weights})
        memory.extend({"x": weights.reshape(4, -1)})
    assert np.array_equal(memory.load_checkpoint("large")["weights"], weights)
    assert np.array_equal(memory.get(1).payload["x"], weights.reshape(4, -1)[0])


def test_blobs_are_cut_into_statements(open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    postgres = pytest.importorskip("memstore.storage.backends.postgres")
    monkeypatch.setattr(postgres, "STATEMENT_BYTES", 1000)
    memory = open_memory()
    ids = memory.extend({"x": [np.arange(n) for n in (1, 200, 3, 400, 50, 60, 70)]})
    assert [len(episode.payload["x"]) for episode in memory.get_many(ids)] == [1, 200, 3, 400, 50, 60, 70]


@pytest.mark.parametrize("durability", ["process", "power"])
def test_durability_is_what_the_database_is_told(url: str, open_memory: OpenMemory, durability: str) -> None:
    memory = open_memory(durability=durability)
    query = "PRAGMA synchronous" if url.startswith("sqlite") else "SHOW synchronous_commit"
    with memory.transaction():
        told = memory._session.database.in_read(lambda conn: conn.execute(text(query)).scalar_one())
    assert told == {"process": (1, "off"), "power": (2, "on")}[durability][not url.startswith("sqlite")]


def test_no_patience_at_all(open_memory: OpenMemory) -> None:
    """A limit of 0 ms would be none for PostgreSQL."""
    holder, waiter = open_memory(), open_memory(busy_timeout=0)
    with holder.transaction():
        begun = time.monotonic()
        with pytest.raises(StoreBusy):
            waiter.add({"x": 1})
        assert time.monotonic() - begun < 5


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_read_whose_connection_breaks_is_repeated(database: Database) -> None:
    """Also when it breaks only at its end."""
    attempts = []

    def work(conn: Connection) -> int:
        mine = int(conn.execute(text("SELECT pg_backend_pid()")).scalar_one())
        attempts.append(mine)
        if len(attempts) == 1:
            database.in_read(lambda other: None)  # in the pool, so that not every connection is cut
            database.in_write(lambda other: other.execute(text(f"SELECT pg_terminate_backend({mine}, 5000)")))
        return mine

    assert database.in_read(work) == attempts[1] != attempts[0]
    assert database.connections.broken == 1


@pytest.mark.parametrize("write", [False, True])
def test_after_a_commit_that_failed_the_connection_serves_the_next(
    database: Database, sql: Sql, monkeypatch: pytest.MonkeyPatch, write: bool
) -> None:
    """SQLAlchemy keeps the transaction of a failed commit, and refuses every statement until it is rolled back."""
    run = database.in_write if write else database.in_read
    kind = run(lambda conn: type(database.backend.driver(conn)))
    error = psycopg.errors.DiskFull if issubclass(kind, psycopg.Connection) else sqlite3.DatabaseError

    def fail(_: object) -> None:
        raise error("database disk image is malformed")

    def work(conn: Connection) -> int:
        if write:
            insert(database, conn, 1)
        return int(conn.execute(text(COUNT)).scalar_one())

    with monkeypatch.context() as patch:
        patch.setattr(kind, "commit", fail)
        with pytest.raises(MemstoreError):
            run(work)
    assert sql(COUNT) == [(0,)]
    assert run(work) == int(write)
