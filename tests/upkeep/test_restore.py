"""A backup takes the place of a database: as a whole, of one that nobody has open, and what was there is kept."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import sqlite3
import stat
import sys
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import make_url

import memstore
from memstore.cli import main
from tests.support.helpers import FRESH, OpenMemory, Sql, in_child, postgres_only, rows, sqlite_only
from tests.support.unprivileged import as_nobody
from tests.upkeep.test_backup import contents

MOMENTS = 60 if os.environ.get("MEMSTORE_TORTURE") == "full" else 8


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Where the backup is, in a folder of its own."""
    folder = tmp_path / "copies"
    folder.mkdir()
    return folder / "copy.db"


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, to which a server's former rows go."""
    folder = tmp_path / "kept"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def file_of(url: str) -> Path:
    return Path(str(make_url(url).database))


def backed_up(open_memory: OpenMemory, url: str, copy: Path) -> None:
    """A memory of 50, with a backup."""
    with open_memory(capacity=1000) as memory:
        memory.extend(rows(50), loss=1.0)
        memory.save_checkpoint("latest", {"step": 50})
    memstore.backup(url, copy)


def _write_and_die(url: str, count: int) -> None:
    memory = memstore.open(url)
    if count:
        memory.extend(rows(count, 50))
    else:
        memory.configure(capacity=777)
    os.kill(os.getpid(), signal.SIGKILL)


def killed_writer(url: str, count: int) -> None:
    """A process that committed, and left its log."""
    process = FRESH.Process(target=_write_and_die, args=(url, count))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def size(address: str | Path) -> int:
    with memstore.open(address, create=False) as memory:
        assert memory.check().ok
        return len(memory)


def test_the_backup_is_back_and_what_was_there_is_kept(
    open_memory: OpenMemory, url: str, copy: Path, kept: Path
) -> None:
    backed_up(open_memory, url, copy)
    was = copy.read_bytes(), copy.stat().st_mtime_ns
    with open_memory() as memory:
        memory.extend(rows(30, 50))
        memory.save_checkpoint("latest", {"step": 80})
        open_memory(buffer="other").close()
    told: list[tuple[int, int]] = []
    done = memstore.restore(copy, url, on_progress=lambda so_far, whole: told.append((so_far, whole)))
    assert contents(url) == contents(str(copy))
    assert done.buffers == {"default": 50} and done.upgraded_from is None and told
    assert done.replaced is not None and size(done.replaced) == 80
    assert memstore.buffers(done.replaced) == ["default", "other"]
    with open_memory() as memory:
        assert memory.load_checkpoint("latest")["step"] == 50
        assert memory.add({"x": np.zeros(4, np.float32), "number": 0}) == 51
    assert was == (copy.read_bytes(), copy.stat().st_mtime_ns)
    assert [entry.name for entry in copy.parent.iterdir()] == [copy.name]
    assert not [*kept.glob("*partial*"), *done.replaced.parent.glob("*partial*")]


def test_nothing_is_kept_of_nothing(open_memory: OpenMemory, url: str, copy: Path, kept: Path) -> None:
    backed_up(open_memory, url, copy)
    memstore.drop(url)
    if url.startswith("sqlite"):
        file_of(url).unlink()
    done = memstore.restore(copy, url)
    assert done.replaced is None and contents(url) == contents(str(copy)) and not list(kept.iterdir())


def test_a_database_that_is_open_is_refused(open_memory: OpenMemory, url: str, copy: Path, kept: Path) -> None:
    """A handle that does nothing knows what was there, and would go on from that."""
    backed_up(open_memory, url, copy)
    memory = open_memory()
    with pytest.raises(memstore.StoreBusy, match="open elsewhere"):
        memstore.restore(copy, url, busy_timeout=0.1)
    assert len(memory) == 50 and memory.add({"x": np.zeros(4, np.float32), "number": 0}) == 51
    memory.close()
    assert memstore.restore(copy, url).buffers == {"default": 50}
    assert size(url) == 50


def _restored(copy: str, url: str) -> str:
    try:
        memstore.restore(copy, url, busy_timeout=0.1)
    except memstore.StoreBusy as exc:
        return str(exc)
    return "done"


@pytest.mark.parametrize("using", ["reads", "has read", "writes"])
def test_a_user_past_memstore_is_noticed(
    open_memory: OpenMemory, url: str, copy: Path, kept: Path, engine: Any, using: str
) -> None:
    """On a server only one in a transaction: sessions of other programs have business there."""
    backed_up(open_memory, url, copy)
    with engine.connect() as conn:
        conn.exec_driver_sql({"writes": "UPDATE buffer SET seed = seed"}.get(using, "SELECT * FROM buffer")).close()
        free = using == "has read" and not url.startswith("sqlite")
        if using == "has read":
            conn.rollback()
        assert re.search("done" if free else "nothing was changed|busy_timeout", in_child(_restored, str(copy), url))


DAMAGE = {
    "loss": "UPDATE replay_metadata SET loss = 99",
    "foreign": "UPDATE memstore_version SET version_num = 'x'",
}


@pytest.mark.parametrize("flaw", ["page", "loss", "text", "empty", "absent", "foreign"])
def test_a_backup_that_is_not_sound_is_refused(
    open_memory: OpenMemory, url: str, copy: Path, kept: Path, flaw: str
) -> None:
    backed_up(open_memory, url, copy)
    before = contents(url)
    if flaw == "page":
        data = bytearray(copy.read_bytes())
        data[20_000:60_000] = bytes(40_000)
        copy.write_bytes(data)
    elif flaw in ("text", "empty"):
        copy.write_text("words, words" if flaw == "text" else "")
    elif flaw == "absent":
        copy.unlink()
    else:
        with closing(sqlite3.connect(copy)) as other:
            other.execute(DAMAGE[flaw])
            other.commit()
    with pytest.raises(memstore.MemstoreError, match=r"copy\.db") as caught:
        memstore.restore(copy, url)
    assert ".partial" not in str(caught.value)
    assert contents(url) == before and not list(kept.iterdir())
    if url.startswith("sqlite"):
        assert [entry.name for entry in file_of(url).parent.iterdir() if entry.is_file()] == [file_of(url).name]


@sqlite_only
def test_an_old_log_is_never_played_over_the_backup(open_memory: OpenMemory, url: str, copy: Path) -> None:
    backed_up(open_memory, url, copy)
    killed_writer(url, 600)
    assert Path(f"{file_of(url)}-wal").stat().st_size
    done = memstore.restore(copy, url)
    assert size(url) == 50 and done.replaced is not None and size(done.replaced) == 650


@sqlite_only
def test_a_log_without_its_database_is_kept_and_not_played(open_memory: OpenMemory, url: str, copy: Path) -> None:
    """Somebody removed the file, as one does, and not its log."""
    backed_up(open_memory, url, copy)
    killed_writer(url, 600)
    file_of(url).unlink()
    memstore.restore(copy, url)
    assert size(url) == 50
    assert [entry.name[-4:] for entry in file_of(url).parent.glob("*.replaced-*")] == ["-wal"]


@sqlite_only
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o444])
def test_the_file_keeps_mode_and_owner_and_is_another(open_memory: OpenMemory, url: str, copy: Path, mode: int) -> None:
    backed_up(open_memory, url, copy)
    file = file_of(url)
    if os.geteuid() == 0:
        os.chown(file, 12, 34)
    file.chmod(mode)
    before = file.stat()
    memstore.restore(copy, url)
    after = file.stat()
    assert stat.S_IMODE(after.st_mode) == mode and after.st_ino != before.st_ino
    assert (after.st_uid, after.st_gid) == (before.st_uid, before.st_gid)


@sqlite_only
def test_what_is_no_memstore_is_replaced_only_if_one_insists(
    open_memory: OpenMemory, url: str, copy: Path, tmp_path: Path
) -> None:
    backed_up(open_memory, url, copy)
    precious, other = tmp_path / "precious.txt", tmp_path / "other.db"
    precious.write_text("precious " * 1000)
    with closing(sqlite3.connect(other)) as database:
        database.execute("CREATE TABLE mine (id INTEGER)")
    for file in (precious, other):
        before = file.read_bytes()
        with pytest.raises(memstore.NotAMemstore, match="nothing was changed.*--force"):
            memstore.restore(copy, file)
        assert file.read_bytes() == before
        done = memstore.restore(copy, file, force=True)
        assert size(file) == 50 and done.replaced is not None and done.replaced.read_bytes() == before
    with pytest.raises(memstore.ConfigError, match="the backup itself"):
        memstore.restore(copy, copy)


@sqlite_only
@pytest.mark.parametrize("flaw", ["pages", "cut", "schema", "zeros"])
def test_a_damaged_database_is_what_it_is_for(open_memory: OpenMemory, url: str, copy: Path, flaw: str) -> None:
    backed_up(open_memory, url, copy)
    data = bytearray(file_of(url).read_bytes())
    if flaw == "cut":
        del data[len(data) // 2 + 100 :]
    else:
        where = {"pages": slice(4096, 40_000), "schema": slice(100, 4000), "zeros": slice(0, 40_000)}[flaw]
        data[where] = bytes(len(data[where]))
    file_of(url).write_bytes(data)
    done = memstore.restore(copy, url, force=flaw == "zeros")
    assert size(url) == 50 and done.replaced is not None and done.replaced.read_bytes() == bytes(data)


def _read_for_ever(url: str, ready: Any, stop: Any) -> None:
    with closing(sqlite3.connect(file_of(url))) as reader:
        reader.execute("SELECT count(*) FROM buffer").fetchone()
        ready.set()
        stop.wait(60)


@sqlite_only
def test_a_damaged_database_that_is_open_is_refused(open_memory: OpenMemory, url: str, copy: Path) -> None:
    """SQLite itself cannot tell, for it does not come so far; its locks do."""
    backed_up(open_memory, url, copy)
    ready, stop = FRESH.Event(), FRESH.Event()
    reader = FRESH.Process(target=_read_for_ever, args=(url, ready, stop))
    reader.start()
    assert ready.wait(60)
    good = file_of(url).read_bytes()
    with file_of(url).open("rb+") as file:
        file.write(b"damage")
    with pytest.raises(memstore.StoreBusy):
        memstore.restore(copy, url, force=True, busy_timeout=0.1)
    stop.set()
    reader.join(60)
    with file_of(url).open("rb+") as file:
        file.write(good[:6])


@sqlite_only
def test_a_backup_in_a_folder_that_cannot_be_written(open_memory: OpenMemory, url: str, copy: Path) -> None:
    backed_up(open_memory, url, copy)
    copy.chmod(0o444)
    copy.parent.chmod(0o555)
    target = copy.parent.parent / "theirs"
    target.mkdir(mode=0o777)
    target.chmod(0o777)
    as_nobody(copy.parent.parent, lambda: memstore.restore(copy, target / "run.db"))
    copy.parent.chmod(0o755)
    assert [entry.name for entry in copy.parent.iterdir()] == [copy.name]
    with memstore.open(target / "run.db", create=False) as memory:
        assert memory.add({"x": np.zeros(4, np.float32), "number": 0}) == 51
    assert stat.S_IMODE((target / "run.db").stat().st_mode) == 0o644, "a database is written"


@sqlite_only
def test_a_backup_with_a_log_is_restored_with_it(open_memory: OpenMemory, url: str, copy: Path) -> None:
    """As somebody copies who knows of the log."""
    backed_up(open_memory, url, copy)
    killed_writer(str(copy), 7)
    before = copy.read_bytes(), Path(f"{copy}-wal").read_bytes()
    memstore.restore(copy, url)
    assert size(url) == 57 and before == (copy.read_bytes(), Path(f"{copy}-wal").read_bytes())


# --- killed ---------------------------------------------------------------------------------------------------------


def killed_at(moment: int, restored: Callable[[], object], modules: tuple[str, ...]) -> int:
    """Restore in a child that dies when so many lines of these modules have run; returns their number if it ends."""
    read, write = os.pipe()
    child = os.fork()
    if child:
        os.close(write)
        with os.fdopen(read) as told:
            ended = told.read()
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == (0 if ended else signal.SIGKILL)
        return int(ended or moment)
    count = 0

    def trace(frame: Any, what: str, _argument: Any) -> Any:
        nonlocal count
        if not frame.f_code.co_filename.endswith(modules):
            return None
        count += what == "line"
        if what == "line" and count == moment:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    try:
        sys.settrace(trace)
        restored()
        sys.settrace(None)
        os.write(write, str(count).encode())
    finally:
        os._exit(0)


def moments(whole: int) -> list[int]:
    assert whole, "the modules have moved"
    return sorted({int(n) for n in np.linspace(1, whole, min(MOMENTS, whole))})


STEPS = ("backends/replacing.py", "storage/newfile.py")


def again(state: dict[str, bytes], folder: Path) -> Path:
    """A database file in a new folder, with its log, as they were once read."""
    folder.mkdir()
    for suffix, data in state.items():
        Path(f"{folder / 'run.db'}{suffix}").write_bytes(data)
    return folder / "run.db"


@sqlite_only
@pytest.mark.filterwarnings("ignore:.*hard links")  # killed before the last step, the old file has both names
def test_killed_at_any_moment_it_is_one_or_the_other(
    open_memory: OpenMemory, url: str, copy: Path, kept: Path, tmp_path: Path
) -> None:
    backed_up(open_memory, url, copy)
    killed_writer(url, 600)
    file = file_of(url)
    state = {suffix: Path(f"{file}{suffix}").read_bytes() for suffix in ("", "-wal", "-shm")}
    seen = set()

    whole = killed_at(0, lambda: memstore.restore(copy, again(state, tmp_path / "whole"), force=True), STEPS)
    for moment in moments(whole):
        target = again(state, tmp_path / f"at-{moment}")
        killed_at(moment, functools.partial(memstore.restore, copy, target, force=True), STEPS)
        twice = target.stat().st_nlink > 1  # the old one, killed as the new one was about to take its name
        with pytest.warns(memstore.StoreWarning, match="one of 2 names") if twice else nullcontext():
            seen.add(found := size(target))
        assert found == 650 if twice else found in (650, 50)
        done = memstore.restore(copy, target)
        assert size(target) == 50 and done.replaced is not None and size(done.replaced) == found
        names = {entry.name for entry in target.parent.iterdir()}
        assert not [name for name in names if "partial" in name], "what the killed one left is removed"
        assert len(names) == (2 if found == 650 else 3), names
        assert max(size(entry) for entry in target.parent.iterdir()) == 650, "nothing acknowledged is lost"
    assert seen == {650, 50}


@sqlite_only
def test_killed_over_a_damaged_file_it_keeps_the_log(
    open_memory: OpenMemory, url: str, copy: Path, kept: Path, tmp_path: Path
) -> None:
    """Once its first bytes are mended, what is kept has also what was only in the log."""
    backed_up(open_memory, url, copy)
    killed_writer(url, 0)
    state = {suffix: Path(f"{file_of(url)}{suffix}").read_bytes() for suffix in ("", "-wal")}
    head = state[""][:100]
    state[""] = b"damage" * 10 + bytes(40) + state[""][100:]

    whole = killed_at(0, lambda: memstore.restore(copy, again(state, tmp_path / "whole"), force=True), STEPS)
    for moment in moments(whole):
        target = again(state, tmp_path / f"at-{moment}")
        killed_at(moment, functools.partial(memstore.restore, copy, target, force=True), STEPS)
        if target.read_bytes()[:6] == b"damage":
            with pytest.raises(memstore.NotAMemstore):
                memstore.restore(copy, target)
        memstore.restore(copy, target, force=True)
        assert size(target) == 50
        [old] = [entry for entry in target.parent.glob("*.replaced-*") if entry.read_bytes()[:6] == b"damage"]
        with old.open("rb+") as file:
            file.write(head)
        with memstore.open(old, create=False) as memory:
            assert memory.stats().capacity == 777 and len(memory) == 50 and memory.check().ok


@postgres_only
def test_killed_at_any_moment_a_server_has_one_or_the_other(
    open_memory: OpenMemory, url: str, copy: Path, kept: Path
) -> None:
    backed_up(open_memory, url, copy)
    with open_memory() as memory:
        memory.extend(rows(30, 50))
    new = contents(str(copy))
    memstore.backup(url, kept / "old.db")
    old = contents(url)
    steps = ("upkeep/restore.py", "upkeep/backup.py")
    restored = functools.partial(memstore.restore, copy, url, force=True)
    whole = killed_at(0, restored, steps)
    for moment in moments(whole)[::2]:
        memstore.restore(kept / "old.db", url, force=True)
        assert contents(url) == old
        killed_at(moment, restored, steps)
        assert contents(url) in (old, new)
        memstore.restore(copy, url, force=True)
        assert contents(url) == new


# --- servers --------------------------------------------------------------------------------------------------------


@postgres_only
def test_other_tables_of_the_server_stay(open_memory: OpenMemory, url: str, copy: Path, kept: Path, sql: Sql) -> None:
    backed_up(open_memory, url, copy)
    sql("CREATE TABLE mine (id int)")
    sql("INSERT INTO mine VALUES (1)")
    memstore.restore(copy, url)
    assert sql("SELECT * FROM mine") == [(1,)]


@postgres_only
def test_numbers_of_buffers_are_not_used_again(open_memory: OpenMemory, url: str, copy: Path, kept: Path) -> None:
    backed_up(open_memory, url, copy)
    for name in ("second", "third"):
        open_memory(buffer=name).close()
    memstore.restore(copy, url)
    with memstore.open(url, buffer="fourth") as memory:
        assert memory.add({"x": 1.0}) == (3 << 40) + 1


@postgres_only
def test_what_cannot_be_finished_changes_nothing(
    open_memory: OpenMemory, url: str, copy: Path, kept: Path, room: Callable[[int | None], None]
) -> None:
    backed_up(open_memory, url, copy)
    before = contents(url)
    room(10)
    with pytest.raises(memstore.StoreFull):
        memstore.restore(copy, url)
    assert contents(url) == before and not list(kept.iterdir())
    room(None)


@postgres_only
def test_where_to_keep_it_can_be_said(
    open_memory: OpenMemory, url: str, copy: Path, kept: Path, tmp_path: Path
) -> None:
    backed_up(open_memory, url, copy)
    done = memstore.restore(copy, url, keep=tmp_path)
    assert done.replaced is not None and done.replaced.parent == tmp_path and size(done.replaced) == 50
    with pytest.raises(memstore.ConfigError, match="keep"):
        memstore.restore(copy, tmp_path / "run.db", keep=tmp_path)


# --- the command ----------------------------------------------------------------------------------------------------


def test_the_command_says_what_it_did(open_memory: OpenMemory, url: str, copy: Path, kept: Path) -> None:
    backed_up(open_memory, url, copy)
    with open_memory():
        refused = CliRunner().invoke(main, ["restore", str(copy), url])
        assert refused.exit_code == 3 and "open elsewhere" in refused.stderr and not refused.stdout
    done = CliRunner().invoke(main, ["restore", str(copy), url])
    assert done.exit_code == 0 and "default (50 episodes), all sound" in done.stdout
    assert "the database as it was: " in done.stdout
    answer = json.loads(CliRunner().invoke(main, ["restore", str(copy), url, "--json"]).stdout)
    assert answer["buffers"] == {"default": 50} and size(answer["replaced"]) == 50
