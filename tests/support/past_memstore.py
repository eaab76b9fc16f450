"""Ways past memstore: into the tables, and to the end of the disk. ``url`` comes from tests/conftest.py."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, inspect, make_url, text
from sqlalchemy.pool import NullPool

import memstore
from memstore.storage.backends.sqlite import SQLiteBackend
from tests.support.helpers import Damage, Existing, OpenMemory, Room, Sql

READER = """
DO $$ BEGIN CREATE ROLE memstore_reader LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
GRANT SELECT ON ALL TABLES IN SCHEMA public TO memstore_reader;
"""
PLENTY = 2**30
FILLING_DISK = """
CREATE SEQUENCE room INCREMENT -1 MINVALUE -1000000 MAXVALUE 2000000000 START 2000000000;
CREATE FUNCTION take_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('room') < 0 THEN
        RAISE 'No space left on device' USING ERRCODE = 'disk_full';
    END IF;
    RETURN NEW;
END $$;
"""
FILLING = "CREATE OR REPLACE TRIGGER take_room BEFORE INSERT ON payload FOR EACH ROW EXECUTE FUNCTION take_room()"
EMPTY = "DROP TRIGGER IF EXISTS take_room ON payload"


@pytest.fixture
def memory(open_memory: OpenMemory) -> memstore.EpisodicMemory:
    """A small memory with default settings."""
    return open_memory(capacity=100)


@pytest.fixture
def engine(url: str) -> Iterator[Engine]:
    """Connections past memstore."""
    engine = create_engine(url, poolclass=NullPool if url.startswith("sqlite") else None)
    yield engine
    engine.dispose()


def _executed(engine: Engine, statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    with engine.begin() as conn:
        result = conn.execute(text(statement), values)
        return [tuple(row) for row in result] if result.returns_rows else []


@pytest.fixture
def sql(engine: Engine) -> Sql:
    """Look into the tables, past memstore."""
    return lambda statement, **values: _executed(engine, statement, values)


@pytest.fixture
def damage(engine: Engine) -> Damage:
    """Change the tables past memstore; the database need not be sound afterwards."""

    def change(statement: str, **values: Any) -> None:
        _executed(engine, statement, values)

    return change


@pytest.fixture
def existing(url: str, engine: Engine) -> Existing:
    """Names of all tables and buffers; before there is a file, of what its folder holds. Looking makes nothing."""
    address = make_url(url)

    def look() -> list[str]:
        if address.get_backend_name() == "sqlite":
            file = Path(str(address.database))
            if not file.exists():
                return sorted(entry.name for entry in file.parent.iterdir())
        tables = sorted(inspect(engine).get_table_names())
        buffers = _executed(engine, "SELECT name FROM buffer ORDER BY id", {}) if "buffer" in tables else []
        return tables + [f"buffer {name}" for (name,) in buffers]

    return look


@pytest.fixture
def read_only_url(url: str, engine: Engine) -> str:
    """The same database, as one that may only read reaches it."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        return f"sqlite:///file:{address.database}?mode=ro&uri=true"
    _executed(engine, READER, {})
    return address.set(username="memstore_reader").render_as_string(hide_password=False)


@pytest.fixture
def tidy(engine: Engine) -> Callable[[], None]:
    """Do at once what a server does by itself in time; a file needs nothing of the kind."""

    def vacuum() -> None:
        if engine.dialect.name == "postgresql":
            with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as conn:
                conn.exec_driver_sql("VACUUM")

    return vacuum


@pytest.fixture
def vanish(url: str, request: pytest.FixtureRequest) -> Callable[[], None]:
    """Remove the database, whoever has it open."""
    address = make_url(url)

    def remove() -> None:
        if address.get_backend_name() == "sqlite":
            file = Path(str(address.database))
            for entry in file.parent.glob(f"{file.name}*"):
                entry.unlink()
        else:
            request.getfixturevalue("postgres_server").drop_database(str(address.database))

    return remove


@pytest.fixture
def room(url: str, engine: Engine, open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Room]:
    """Make the disk full: for so many more pages on SQLite, rows of payload on PostgreSQL, None for plenty.

    The one is a limit on the file, for every connection from its next use on; the other a trigger that raises the
    server's own error.
    """
    if make_url(url).get_backend_name() == "postgresql":
        _executed(engine, FILLING_DISK, {})
        yield lambda left: _set_room(engine, left)
        _set_room(engine, None)  # before the memories are checked, which takes a trigger for damage
        return
    limit = PLENTY

    begin = SQLiteBackend.begin

    def limited(backend: SQLiteBackend, conn: Connection, *, write: bool) -> None:
        backend.driver(conn).execute(f"PRAGMA max_page_count = {limit}")
        begin(backend, conn, write=write)

    def choose(left: int | None) -> None:
        nonlocal limit
        limit = PLENTY if left is None else _executed(engine, "PRAGMA page_count", {})[0][0] + left

    monkeypatch.setattr(SQLiteBackend, "begin", limited)
    yield choose


def _set_room(engine: Engine, rows: int | None) -> None:
    if rows is None:
        _executed(engine, EMPTY, {})
        return
    _executed(engine, "SELECT setval('room', :rows)", {"rows": rows})
    _executed(engine, FILLING, {})
