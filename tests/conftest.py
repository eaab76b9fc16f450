"""Fixtures for all tests. Which databases a test runs on is decided here, by ``url``, and nowhere else."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import make_url

import memstore
from memstore.storage.address import parse_url
from memstore.storage.database import Database
from memstore.storage.upgrade import ensure_schema
from tests.support.binaries import NoPostgres
from tests.support.helpers import OpenMemory
from tests.support.postgres import PostgresServer, find_server

pytest_plugins = ["tests.support.past_memstore"]

_numbers = itertools.count(1)


def pytest_configure() -> None:
    """Give Ctrl-C its meaning back: in a shell's background job it is ignored, and child processes inherit that."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A database file that does not exist yet, alone in its folder."""
    return str(tmp_path / "run.db")


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A server for this process of pytest; without one the test is skipped, or fails where one is required."""
    server, reason = None, ""
    try:
        server = find_server()
    except NoPostgres as exc:
        reason = str(exc)
    if server is None and os.environ.get("MEMSTORE_REQUIRE_PG") == "1":
        pytest.fail(reason, pytrace=False)
    if server is None:
        pytest.skip(reason)
    with server:
        yield server


def _with_tables(address: str | Path) -> None:
    database = Database(parse_url(address))
    try:
        ensure_schema(database)
    finally:
        database.close()


@pytest.fixture(scope="session")
def empty_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with tables and no buffer: making it anew for every test would take most of the time."""
    file = tmp_path_factory.mktemp("empty") / "empty.db"
    _with_tables(file)
    return file


@pytest.fixture(scope="session")
def empty_template(postgres_server: PostgresServer) -> Iterator[str]:
    """A PostgreSQL database with tables and no buffer, to be copied."""
    name = f"memstore_template_{os.getpid()}"
    _with_tables(postgres_server.create_database(name))
    yield name
    postgres_server.drop_database(name)


@pytest.fixture(params=["sqlite", "postgres"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Address of a database of each kind, of the test's own: without tables, and on SQLite without a file.

    With ``open_memory`` the tables are there when the first memory is opened.
    """
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path / 'run.db'}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    template = request.getfixturevalue("empty_template") if "open_memory" in request.fixturenames else None
    name = f"memstore_{os.getpid()}_{next(_numbers)}"
    try:
        yield server.create_database(name, template)
    finally:
        server.drop_database(name)


@pytest.fixture
def open_memory(url: str, request: pytest.FixtureRequest, empty_file: Path) -> Iterator[OpenMemory]:
    """``memstore.open`` on ``url``; afterwards everything is given back and closed, and every buffer must be sound."""
    opened: list[memstore.EpisodicMemory] = []
    address = make_url(url)
    file = Path(str(address.database)) if address.get_backend_name() == "sqlite" else None

    def open_one(**settings: Any) -> memstore.EpisodicMemory:
        if file is not None and not file.exists():
            shutil.copyfile(empty_file, file)
        opened.append(memstore.open(url, **{"seed": 7, **settings}))
        return opened[-1]

    yield open_one
    for memory in opened:
        assert memory._session.database.connections.in_use == 0, "a connection was not given back"
        memory.close()
    if opened and "damage" not in request.fixturenames:
        for name in memstore.buffers(url):
            with memstore.open(url, buffer=name, create=False) as memory:
                report = memory.check()
                assert report.ok, report.problems
