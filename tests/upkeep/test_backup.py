"""Backups are whole, consistent, and there or not there; vacuum gives space back."""

from __future__ import annotations

import itertools
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, make_url, select

import memstore
from memstore.storage.address import parse_url
from memstore.storage.database import Database
from memstore.storage.newfile import partial_file
from memstore.storage.schema import metadata
from memstore.upkeep.backup import backup, vacuum
from tests.support.helpers import FRESH, OpenMemory, rows, sqlite_only

_numbers = itertools.count()


@pytest.fixture
def copy(tmp_path: Path) -> str:
    """Where a backup may go."""
    return str(tmp_path / "copies" / f"copy-{next(_numbers)}.db")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Path:
    """Of the copies."""
    made = tmp_path / "copies"
    made.mkdir()
    return made


def contents(address: str) -> dict[str, list[tuple[Any, ...]]]:
    """Every row of every table."""
    engine = create_engine(address if "://" in address else f"sqlite:///{address}")
    with engine.connect() as conn:
        found = {
            t.name: [tuple(r) for r in conn.execute(select(t).order_by(*t.primary_key))] for t in metadata.sorted_tables
        }
    engine.dispose()
    return found


def lived_in(open_memory: OpenMemory) -> memstore.EpisodicMemory:
    """Two buffers with everything, and a third that was dropped."""
    memory = open_memory(capacity=80, strategy="prioritized_loss", seed=4)
    keys = [f"k{i}" for i in range(100)]
    memory.extend(rows(100), loss=np.arange(100) / 7, tags=[("é", "b")] * 100, key=keys, extra={"a": "'"}, level=3)
    for step in range(4):
        batch = memory.sample(16, beta=0.5)
        memory.update(batch, loss=batch.loss * 0.9, step=step)
    memory.save_checkpoint("latest", {"weights": np.arange(9.0), "none": None})
    memory.lease(3, duration=1e6)
    memory.delete(memory.sample(5).ids)
    open_memory(buffer="second", limiter=memstore.SamplesPerInsert(2.0), eviction="reservoir").extend(rows(9))
    open_memory(buffer="third").add({"x": 1.0})
    return memory


def address(memory: memstore.EpisodicMemory) -> str:
    return memory._session.database.backend.url.render_as_string(hide_password=False)


def server(postgres_server: Any, name: str) -> str:
    """A PostgreSQL database without tables."""
    url: str = postgres_server.create_database(f"{name}_{next(_numbers)}_{int(time.time() * 1e6)}")
    return url


def test_a_backup_is_the_memory_as_it_was(open_memory: OpenMemory, copy: str, url: str) -> None:
    memory = lived_in(open_memory)
    memstore.drop(address(memory), "third")
    told: list[tuple[int, int]] = []
    backup(address(memory), copy, on_progress=lambda done, total: told.append((done, total)))
    assert contents(copy) == contents(url)
    assert told and told[-1][0] == told[-1][1] and told == sorted(told)
    with memstore.open(copy, seed=4) as restored, memstore.open(address(memory), seed=4) as same:
        assert restored.check().ok and restored.history() == memory.history()
        assert restored.sample(20).ids.tolist() == same.sample(20).ids.tolist()
        assert restored.load_checkpoint("latest")["weights"].tolist() == list(range(9))
        assert restored.add({"x": np.zeros(4, np.float32), "number": 0}) == 101
    with memstore.open(copy, buffer="fourth") as fourth:
        assert fourth.add({"x": 1.0}) == (3 << 40) + 1, "the number of a dropped buffer is never used again"
    assert [file.name for file in Path(copy).parent.iterdir()] == [Path(copy).name], "no log, nothing partial"


def test_a_backup_goes_back(open_memory: OpenMemory, copy: str, url: str, postgres_server: Any) -> None:
    """To a server, whatever it was made of, and from there to a file again."""
    memory = lived_in(open_memory)
    backup(address(memory), copy)
    restored = server(postgres_server, "restored")
    backup(copy, restored)
    assert contents(restored) == contents(url)
    with memstore.open(restored, buffer="fourth") as fourth:
        assert fourth.add({"x": 1.0}) == (3 << 40) + 1
    with pytest.raises(memstore.ConfigError, match="never overwrites"):
        backup(copy, restored)
    again = f"{copy}-again.db"
    memstore.drop(restored, "fourth")
    backup(restored, again)
    assert contents(again) == contents(url)


def test_what_is_there_is_not_overwritten(open_memory: OpenMemory, copy: str) -> None:
    memory = lived_in(open_memory)
    Path(copy).write_text("precious")
    with pytest.raises(memstore.ConfigError, match="exists"):
        backup(address(memory), copy)
    assert Path(copy).read_text() == "precious"


def test_a_missing_folder_is_named(open_memory: OpenMemory, tmp_path: Path) -> None:
    with pytest.raises(memstore.ConfigError, match="no folder .*nowhere"):
        backup(address(lived_in(open_memory)), tmp_path / "nowhere" / "copy.db")


def _backup(source: str, target: str, start: Any, outcomes: Any) -> None:
    start.wait()
    try:
        backup(source, target)
        outcomes.put("made")
    except memstore.ConfigError as exc:
        outcomes.put("refused" if "never overwrites" in str(exc) else str(exc))


@pytest.mark.parametrize("to", ["file", "server"])
def test_of_many_at_once_one_is_made(
    to: str, open_memory: OpenMemory, url: str, copy: str, postgres_server: Any
) -> None:
    lived_in(open_memory)
    target = copy if to == "file" else server(postgres_server, "raced")
    start, outcomes = FRESH.Barrier(4), FRESH.Queue()
    processes = [FRESH.Process(target=_backup, args=(url, target, start, outcomes)) for _ in range(4)]
    for process in processes:
        process.start()
    told = sorted(outcomes.get(timeout=60) for _ in processes)
    for process in processes:
        process.join(30)
    assert told == ["made", "refused", "refused", "refused"]
    assert contents(target) == contents(url)
    assert to == "server" or [file.name for file in Path(copy).parent.iterdir()] == [Path(copy).name]


def test_what_is_no_memstore_is_no_source(tmp_path: Path, copy: str) -> None:
    with pytest.raises(memstore.StoreUnavailable):
        backup(tmp_path / "nothing.db", copy)
    with closing(sqlite3.connect(tmp_path / "other.db")) as other:
        other.execute("CREATE TABLE mine (id INTEGER)")
    with pytest.raises(memstore.NotAMemstore):
        backup(tmp_path / "other.db", copy)
    assert not Path(copy).exists()


def _write(url: str, stop: Any, progress: Any) -> None:
    with memstore.open(url, capacity=150, eviction="fifo") as memory:
        number = 0
        while not stop.is_set():
            with memory.transaction():
                memory.extend(rows(10, number))
                batch = memory.sample(10)
                memory.update(batch, loss=np.full(len(batch), number + 1.0), step=number)
                memory.save_checkpoint("latest", {"number": number})
            number += 1
            progress.value = number


@pytest.fixture
def writer(url: str) -> Iterator[Any]:
    """A process that commits episodes, losses and a checkpoint together; the value counts its commits."""
    stop, progress = FRESH.Event(), FRESH.Value("q", 0)
    process = FRESH.Process(target=_write, args=(url, stop, progress))
    process.start()
    deadline = time.monotonic() + 60
    while progress.value < 3:
        assert process.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    yield progress
    stop.set()
    process.join(30)
    assert process.exitcode == 0


def test_a_backup_during_training_is_one_moment_of_it(url: str, writer: Any, copy: str) -> None:
    for round_ in range(3):
        before = writer.value
        target = f"{copy}-{round_}.db"
        backup(url, target)
        after = writer.value
        with memstore.open(target, create=False) as memory:
            number = memory.load_checkpoint("latest")["number"]
            assert before - 1 <= number <= after
            stats = memory.stats()
            assert (stats.total_inserted, stats.total_events) == (10 * (number + 1), 10 * (number + 1))
            assert memory.history()[-1].step == number and memory.check().ok


@sqlite_only
def test_a_full_disk_leaves_nothing(url: str, open_memory: OpenMemory, copy: str) -> None:
    """The copy's own disk, not the memory's: a limit on the size of files stands for it."""
    import resource

    open_memory(capacity=10_000).extend({"x": np.random.default_rng(0).random((2000, 100))})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, hard))
    try:
        with pytest.raises(memstore.MemstoreError):
            backup(url, copy)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(Path(copy).parent.iterdir()) == []
    backup(url, copy)
    assert contents(copy) == contents(url)


def test_vacuum_gives_space_back(open_memory: OpenMemory, url: str) -> None:
    memory = open_memory(capacity=10_000)
    ids = memory.extend({"x": np.random.default_rng(0).random((3000, 100))})
    memory.delete(ids[10:])
    done = vacuum(url)
    if "database" in done.before:
        assert done.after["database"] < 1_000_000 < sum(done.before.values()) and done.after["wal"] == 0
    assert memory.check().ok and len(memory) == 10
    assert len(memory.sample(10)) == 10 and memory.add({"x": np.zeros(100)}) == 3001


@sqlite_only
def test_vacuum_waits_for_the_lock_and_says_so(open_memory: OpenMemory, url: str) -> None:
    memory = open_memory()
    with memory.transaction():
        memory.add({"x": 1.0})
        with pytest.raises(memstore.StoreBusy):
            vacuum(url, busy_timeout=0.05)
    assert vacuum(url).after["wal"] == 0


@sqlite_only
def test_vacuum_beside_a_reader_says_that_the_log_stays(open_memory: OpenMemory, url: str) -> None:
    """The reader's snapshot needs the old pages; the log would hold them and all of the new file."""
    memory = open_memory(capacity=10_000)
    memory.delete(memory.extend({"x": np.random.default_rng(0).random((2000, 100))})[10:])
    memory.fold()  # the fold of a vacuum only appends to the log
    log = Path(f"{file_of(url)}-wal")
    with closing(sqlite3.connect(file_of(url), isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM episode").fetchone()
        before = log.stat().st_size
        begun = time.monotonic()
        with pytest.raises(memstore.StoreBusy, match="the file was not rewritten.*log"):
            vacuum(url, busy_timeout=0.3)
        assert 0.2 < time.monotonic() - begun < 10 and log.stat().st_size == before
    assert vacuum(url).after["wal"] == 0


# --- mode, owner, and what is left ----------------------------------------------------------------------------------


def file_of(url: str) -> Path:
    return Path(str(make_url(url).database))


@sqlite_only
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_a_backup_has_the_mode_and_owner_of_its_source(
    open_memory: OpenMemory, url: str, copy: str, folder: Path, mode: int
) -> None:
    """From its first byte on, whatever the umask."""
    open_memory().add({"x": 1.0})
    file_of(url).chmod(mode)
    if os.geteuid() == 0:
        os.chown(file_of(url), 12, 34)
    seen: set[tuple[int, int]] = set()

    def look(_done: int, _total: int) -> None:
        seen.update((stat.S_IMODE(entry.stat().st_mode), entry.stat().st_uid) for entry in folder.iterdir())

    before = os.umask(0)
    try:
        backup(url, copy, on_progress=look)
    finally:
        os.umask(before)
    made, source = Path(copy).stat(), file_of(url).stat()
    assert stat.S_IMODE(made.st_mode) == mode
    assert (made.st_uid, made.st_gid) == (source.st_uid, source.st_gid)
    assert seen == {(mode | 0o600, source.st_uid)}


@sqlite_only
def test_the_copy_of_an_upgrade_has_the_mode_of_its_source(open_memory: OpenMemory, url: str) -> None:
    open_memory().add({"x": 1.0})
    file_of(url).chmod(0o600)
    database = Database(parse_url(url))
    made = database.backend.backup(database.engine, "label")
    database.close()
    assert made is not None and stat.S_IMODE(made.stat().st_mode) == 0o600


def _ended_by(number: signal.Signals, source: str, target: str) -> int:
    """A command that is ended while it copies: the signal comes with its first progress."""
    program = (
        "import os, sys, memstore.cli.keep as keep\n"
        "from contextlib import contextmanager\n"
        "@contextmanager\n"
        "def progress(what):\n"
        "    yield lambda done, whole: os.kill(os.getpid(), int(sys.argv.pop()))\n"
        "keep._progress = progress\n"
        "keep.backup(sys.argv[1:3])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, source, target, str(int(number))], capture_output=True, text=True, timeout=60
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT, signal.SIGKILL])
def test_what_ends_a_backup_leaves_nothing(
    open_memory: OpenMemory, url: str, copy: str, folder: Path, number: signal.Signals
) -> None:
    """Nor does what cannot be caught, once the next backup is made."""
    open_memory().add({"x": 1.0})
    code = _ended_by(number, url, copy)
    if number == signal.SIGKILL:
        assert code == -signal.SIGKILL and list(folder.glob("*.partial"))
        backup(url, copy)
        assert list(folder.iterdir()) == [Path(copy)]
    else:
        assert code == 128 + number and not list(folder.iterdir())


def test_what_others_are_making_stays(open_memory: OpenMemory, url: str, copy: str, folder: Path) -> None:
    """Also where their number says nothing, as in another container: they hold a lock."""
    open_memory().add({"x": 1.0})
    gone = 2**22 - 1
    strange = folder / f"{Path(copy).name}.{gone}-0123456.partial"
    strange.touch()
    with partial_file(Path(copy)) as mine:
        theirs = folder / f"{Path(copy).name}.{gone}-01234567.partial"
        mine.path.rename(theirs)
        backup(url, copy)
        assert theirs.exists() and strange.exists()
    backup(url, f"{copy}-2")
    Path(copy).unlink()
    backup(url, copy)
    assert not theirs.exists()
