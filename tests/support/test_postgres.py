"""The server that the other tests trust: it recovers from crashes, and nothing of it outlives its user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.postgres import PostgresServer, find_server

PROGRAM = """
import os, signal, sys
from tests.support.postgres import find_server
server = find_server()
server.start()
print(server._process.pid, server._folder, server._data, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server that may be broken; the one of the session says whether there can be one."""
    if not postgres_server.owned:
        pytest.skip("the server is someone else's")
    with find_server() as mine:
        yield mine


def _rows(url: str) -> list[Any]:
    import psycopg

    with psycopg.connect(url.replace("+psycopg", "", 1)) as conn:
        return conn.execute("SELECT n FROM kept").fetchall()


@pytest.mark.parametrize("how", [signal.SIGQUIT, signal.SIGKILL])
def test_what_was_committed_survives_a_crash(server: PostgresServer, how: signal.Signals) -> None:
    import psycopg

    url = server.create_database("kept")
    with psycopg.connect(url.replace("+psycopg", "", 1)) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 1 AS n")
    server.crash(how)
    with pytest.raises(psycopg.OperationalError):
        _rows(url)
    server.restart()
    assert _rows(url) == [(1,)]
    copy = server.create_database("copy", "kept")
    server.restart()
    server.drop_database("kept")
    assert _rows(copy) == [(1,)]


def test_nothing_is_left_behind(server: PostgresServer) -> None:
    """Not even by a user that was killed."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    number, *folders = done.stdout.split()
    deadline = time.monotonic() + 30
    while any(Path(folder).exists() for folder in folders) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(folder).exists() for folder in folders)
    with pytest.raises(ProcessLookupError):
        os.kill(int(number), 0)


def test_settings_can_be_overridden(server: PostgresServer) -> None:
    """With ``fsync`` the data lie on a disk."""
    with PostgresServer(settings={"fsync": "on"}) as durable:
        assert durable._folder is not None and durable._data.is_relative_to(durable._folder)
        durable.execute("DO $$ BEGIN ASSERT current_setting('fsync') = 'on'; END $$")
    server.execute("DO $$ BEGIN ASSERT current_setting('fsync') = 'off'; END $$")
