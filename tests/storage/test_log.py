"""How large the log grows, who keeps it large, and who held a lock."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, make_url, text

import memstore
from memstore.cli import main
from memstore.storage.backends import locks, log
from tests.support.helpers import OpenMemory
from tests.support.hostile import TERMINAL

MIB = 2**20

OTHER_PROCESS = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute(sys.argv[2])
connection.execute("SELECT count(*) FROM buffer").fetchone()
print("ready", flush=True)
sys.stdin.read()
"""


@contextmanager
def _another_process(path: str, begin: str) -> Iterator[int]:
    """A process in a transaction; yields its number."""
    command = [sys.executable, "-c", OTHER_PROCESS, path, begin, "a \x1b[31m reader"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            assert process.stdout.readline() == b"ready\n"
            yield process.pid
        finally:
            process.stdin.close()
            process.wait(20)


def _rewrite(memory: memstore.EpisodicMemory, times: int) -> None:
    for _ in range(times):
        memory.update(memory.sample(2000), loss=np.random.default_rng(0).random(2000))
        memory.fold()


def test_a_small_buffer_has_a_small_log(path: str) -> None:
    """10,000 rows of 80 bytes; with a log of 16,384 pages it was 68 MB."""
    with memstore.open(path, capacity=20_000, strategy="uniform") as memory:
        for _ in range(50):
            memory.extend({"x": np.zeros((200, 10))}, loss=np.zeros(200))
        _rewrite(memory, 20)
        sizes = memory.stats().bytes_on_disk
        assert sizes["database"] < 8 * MIB and 0 < sizes["wal"] < 20 * MIB, sizes
        assert memory.stats().notes == ()
    assert [file.name for file in Path(path).parent.iterdir()] == ["run.db"], "closed, there is no log at all"


def test_a_log_may_be_as_large_as_its_file(path: str) -> None:
    with memstore.open(path, strategy="uniform") as memory:
        memory.extend({"x": np.zeros((5000, 2000))})
        memory.add({"x": np.zeros(2000)})
        write = memory._session.database.in_write
        assert write(lambda conn: conn.exec_driver_sql("PRAGMA wal_autocheckpoint").scalar_one()) == log.MOST_PAGES
    with closing(sqlite3.connect(path)) as connection:
        assert log.usual_pages(connection) == log.MOST_PAGES


@pytest.fixture
def small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """A log is large at 8 MB, so that little needs to be written."""
    monkeypatch.setattr(log, "usual_pages", lambda driver: log.LEAST_PAGES)
    monkeypatch.setattr(log, "LEAST_PAGES", 1000)


@pytest.mark.usefixtures("small_log")
def test_a_reader_that_keeps_the_log_is_named(path: str) -> None:
    with memstore.open(path, strategy="uniform") as memory:
        memory.extend({"x": np.zeros((4000, 10))}, loss=np.zeros(4000))
        with _another_process(path, "BEGIN") as pid:
            _rewrite(memory, 25)
            assert memory.stats().bytes_on_disk["wal"] > 10 * MIB
            notes = memory.stats().notes
            told = " ".join(notes)
            if locks.LOCKS.exists():
                assert len(notes) == 1 and f"process {pid} (" in told and "cannot shrink" in told
                assert told.isprintable()
            assert set(notes) <= set(memory.check().notes)
            assert notes == () or "cannot shrink" in CliRunner().invoke(main, ["stats", path]).output
        _rewrite(memory, 3)
        assert memory.stats().notes == ()
        assert memory.stats().bytes_on_disk["wal"] < 10 * MIB, "and then it shrinks"


@pytest.mark.usefixtures("small_log")
def test_a_reader_of_this_process_is_told_too(path: str) -> None:
    with memstore.open(path, strategy="uniform") as memory:
        memory.extend({"x": np.zeros((4000, 10))}, loss=np.zeros(4000))
        with closing(sqlite3.connect(path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM buffer").fetchone()
            _rewrite(memory, 25)
            told = " ".join(memory.stats().notes)
            assert "another connection of this process" in told or not locks.LOCKS.exists()


def test_who_holds_the_write_lock(open_memory: OpenMemory, url: str) -> None:
    memory = open_memory(busy_timeout=0.2)
    memory.add({"x": 1.0})
    other = open_memory(busy_timeout=0.2)
    with memory.transaction():
        memory.add({"x": 1.0})
        with pytest.raises(memstore.StoreBusy) as caught:
            other.add({"x": 1.0})
    assert "this very process, in thread" in str(caught.value)
    if make_url(url).get_backend_name() == "sqlite" and locks.LOCKS.exists():
        with _another_process(str(make_url(url).database), "BEGIN IMMEDIATE") as pid:
            with pytest.raises(memstore.StoreBusy, match=f"process {pid} ") as caught:
                other.add({"x": 1.0})
            assert str(caught.value).isprintable()
    other.add({"x": 1.0})


@pytest.mark.usefixtures("small_log")
def test_where_the_system_does_not_tell(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither a file that is not there nor one that says something else is an error."""
    strange = tmp_path / "strange"
    strange.write_text("who knows\n")
    with memstore.open(path, strategy="uniform", busy_timeout=0.1) as memory:
        memory.extend({"x": np.zeros((4000, 10))}, loss=np.zeros(4000))
        with _another_process(path, "BEGIN IMMEDIATE"):
            for place in (tmp_path / "absent", strange):
                monkeypatch.setattr(locks, "LOCKS", place)
                with pytest.raises(memstore.StoreBusy, match="another connection, of this or another process"):
                    memory.add({"x": np.zeros(10)})
        with _another_process(path, "BEGIN"):
            _rewrite(memory, 25)
            for name in ("LOCKS", "MAPS", "MEMORY"):
                for place in (tmp_path / "absent", strange):
                    with monkeypatch.context() as patch:
                        patch.setattr(locks, name, place)
                        assert memory.stats().notes == ()


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_an_old_snapshot_on_a_server_is_named(
    url: str, open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = open_memory()
    assert memory.stats().notes == ()
    monkeypatch.setattr("memstore.storage.backends.old_readers.LONG_SNAPSHOT", 0.0)
    name = TERMINAL["colour"]
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"), connect_args={"application_name": name})
    with engine.connect().execution_options(isolation_level="REPEATABLE READ") as reader:
        pid = reader.execute(text("SELECT pg_backend_pid()")).scalar_one()
        (note,) = memory.stats().notes
        assert f"process {pid} of the server" in note and "idle in transaction" in note
        assert note.isprintable() and note in memory.check().notes
        assert re.search(r"\d+ s ago", note)
    engine.dispose()
    assert memory.stats().notes == ()


def test_a_process_in_words() -> None:
    assert "of this process" in locks.describe_process(os.getpid())
    assert locks.describe_process(None) == "a process"
    assert locks.describe_process(2**22 + 1) == f"process {2**22 + 1}"
