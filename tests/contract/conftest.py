"""Which database the contract runs on is decided here, by ``url``, and nowhere else."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event, make_url, text
from sqlalchemy.pool import NullPool, Pool

import memstore
from memstore.config import parse_url
from memstore.database import Database
from memstore.upgrade import ensure_schema
from tests.contract.helpers import Damage, OpenMemory, PageLimit, Sql


@pytest.fixture(params=["sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Address of a database that does not exist yet, of each kind that memstore supports."""
    assert request.param == "sqlite"
    return f"sqlite:///{tmp_path / 'run.db'}"


@pytest.fixture(scope="session")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with tables and no buffer: making it anew for every test would take most of the time."""
    path = tmp_path_factory.mktemp("empty") / "empty.db"
    database = Database(parse_url(path))
    ensure_schema(database)
    database.close()
    return path


@pytest.fixture
def open_memory(url: str, request: pytest.FixtureRequest, empty: Path) -> Iterator[OpenMemory]:
    """``memstore.open`` on ``url``; afterwards everything is closed, and every buffer must be sound."""
    opened: list[memstore.EpisodicMemory] = []
    path = Path(str(make_url(url).database))

    def open_one(**settings: Any) -> memstore.EpisodicMemory:
        if not path.exists():
            shutil.copyfile(empty, path)
        opened.append(memstore.open(url, **{"seed": 7, **settings}))
        return opened[-1]

    yield open_one
    for memory in opened:
        memory.close()
    if opened and "damage" not in request.fixturenames:
        for name in memstore.buffers(url):
            with memstore.open(url, buffer=name, create=False) as memory:
                report = memory.check()
                assert report.ok, report.problems


@pytest.fixture
def memory(open_memory: OpenMemory) -> memstore.EpisodicMemory:
    """A small memory with default settings."""
    return open_memory(capacity=100)


def _executed(engine: Engine, statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    with engine.begin() as conn:
        result = conn.execute(text(statement), values)
        return [tuple(row) for row in result] if result.returns_rows else []


@pytest.fixture
def sql(url: str) -> Iterator[Sql]:
    """Look into the tables, past memstore."""
    engine = create_engine(url, poolclass=NullPool)
    yield lambda statement, **values: _executed(engine, statement, values)
    engine.dispose()


@pytest.fixture
def damage(url: str) -> Iterator[Damage]:
    """Change the tables past memstore; the database need not be sound afterwards."""
    engine = create_engine(url, poolclass=NullPool)

    def change(statement: str, **values: Any) -> None:
        _executed(engine, statement, values)

    yield change
    engine.dispose()


@pytest.fixture
def page_limit(url: str) -> Iterator[PageLimit]:
    """Make the disk full: a limit on the pages of the file, for every connection from its next use on."""
    if make_url(url).get_backend_name() != "sqlite":
        pytest.skip("the limit is a pragma of SQLite")
    limit = 2**30

    def apply(connection: Any, *_: Any) -> None:
        connection.execute(f"PRAGMA max_page_count = {limit}")

    def choose(pages: int | None) -> None:
        nonlocal limit
        limit = 2**30 if pages is None else pages

    event.listen(Pool, "checkout", apply)
    try:
        yield choose
    finally:
        event.remove(Pool, "checkout", apply)
