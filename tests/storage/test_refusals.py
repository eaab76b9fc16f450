"""What the operating system refuses is told as what it is; a file beside which nothing can be written is read."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import memstore
from memstore.cli import main
from memstore.storage.backends import still
from tests.support.helpers import rows
from tests.support.unprivileged import as_nobody


@pytest.fixture
def file(tmp_path: Path, empty_file: Path) -> Iterator[Path]:
    """A closed memory of 20, in a folder of its own that nobody but its owner may write."""
    folder = tmp_path / "theirs"
    folder.mkdir(mode=0o755)
    found = folder / "run.db"
    found.write_bytes(empty_file.read_bytes())
    with memstore.open(found, capacity=1000) as memory:
        memory.extend(rows(20), loss=1.0)
    folder.chmod(0o555)
    yield found
    folder.chmod(0o755)


def message(act: Callable[[], object], kind: type[Exception] = memstore.StoreUnavailable) -> str:
    with pytest.raises(kind) as caught:
        act()
    return str(caught.value)


# --- read as it lies there ------------------------------------------------------------------------------------------


def test_a_closed_file_in_a_folder_that_cannot_be_written_is_read(file: Path) -> None:
    before = file.read_bytes(), file.stat().st_mtime_ns

    def read() -> None:
        with memstore.open(file, create=False) as memory:
            assert len(memory) == 20 and memory.check().ok and memory.stats().buffer_size == 20
            assert memory.get(3).payload["number"] == 2 and len(memory.sample(5)) == 5
            assert len(memory.query().all()) == 20 and memory.history() == []
            assert "may not write the file" in message(
                lambda: memory.add({"x": np.zeros(4, np.float32), "number": 0}), memstore.StoreReadOnly
            )
            assert len(memory) == 20
        for command in ("stats", "check", "query"):
            done = CliRunner().invoke(main, [command, str(file)])
            assert done.exit_code == 0, done.output

    as_nobody(file.parent.parent, read)
    assert [entry.name for entry in file.parent.iterdir()] == [file.name]
    assert (file.read_bytes(), file.stat().st_mtime_ns) == before


def test_it_is_copied_as_well(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "mine"
    target.mkdir()
    target.chmod(0o777)
    as_nobody(tmp_path, lambda: memstore.backup(file, target / "copy.db"))
    with memstore.open(target / "copy.db", create=False) as memory:
        assert len(memory) == 20 and memory.check().ok


def test_a_log_that_cannot_be_played_is_named(file: Path) -> None:
    """What is in it was committed: without it the answer would be wrong."""
    with memstore.open(file) as memory:
        memory.extend(rows(5, 20))
        log, data = Path(f"{file}-wal").read_bytes(), file.read_bytes()
    file.write_bytes(data)
    Path(f"{file}-wal").write_bytes(log)

    def read() -> None:
        said = message(lambda: memstore.open(file, create=False))
        assert "may not make files in the folder" in said and "run.db-wal holds commits" in said

    as_nobody(file.parent.parent, read)
    with memstore.open(file, create=False) as memory:
        assert len(memory) == 25


def test_one_who_may_write_meanwhile_is_noticed(file: Path) -> None:
    """Before, during and after: never the old state, nor a mixture, as if it were the present."""
    file.parent.chmod(0o777)
    asked, told = os.pipe()

    def read() -> None:
        with memstore.open(file, create=False, busy_timeout=0.2) as memory:
            assert len(memory) == 20
            os.write(told, b"1")
            deadline = time.monotonic() + 30
            seen = set()
            while (size := _size(memory)) != 25 and time.monotonic() < deadline:
                seen.add(size)
            assert size == 25 and seen <= {20, None}

    child = os.fork()
    if not child:
        os.read(asked, 1)
        with memstore.open(file) as memory:
            memory.extend(rows(5, 20))
        os._exit(0)
    try:
        with pytest.MonkeyPatch.context() as unwritable:
            unwritable.setattr(still, "needed", lambda path: True)
            read()
    finally:
        os.waitpid(child, 0)


def _size(memory: memstore.EpisodicMemory) -> int | None:
    try:
        return len(memory)
    except (memstore.StoreBusy, memstore.StoreUnavailable):
        return None


def test_a_change_in_the_middle_of_a_read_is_noticed(file: Path) -> None:
    """The whole read is done anew."""
    file.parent.chmod(0o755)
    sizes: list[int] = []
    with pytest.MonkeyPatch.context() as unwritable:
        unwritable.setattr(still, "needed", lambda path: True)
        with memstore.open(file, create=False) as memory:
            unwritable.undo()

            def work(snapshot: object) -> int:
                sizes.append(len(sizes))
                if len(sizes) == 1:
                    with memstore.open(file) as other:
                        other.extend(rows(5, 20))
                return len(sizes)

            assert memory._session.read(work) == 2
            assert len(memory) == 25


# --- refused --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("absent/run.db", "there is no folder .*absent; make it first"),
        ("theirs/run.db/run.db", "run.db is a file, and not a folder"),
        ("theirs", "it is a folder; give the name of a file in it"),
        ("n" * 300, "too long"),
        (f"{'d' * 200}/{'d' * 200}/{'d' * 200}/run.db", "path has .* bytes|no folder"),
        ("device", "no regular file"),
        ("link", "it is a link to .*nowhere, which is not there"),
    ],
)
@pytest.mark.parametrize("create", [True, False])
def test_addresses_that_cannot_be(file: Path, tmp_path: Path, name: str, said: str, create: bool) -> None:
    (tmp_path / "device").symlink_to(os.devnull)
    (tmp_path / "link").symlink_to(tmp_path / "absent" / "nowhere")
    found = message(lambda: memstore.open(tmp_path / name, create=create), memstore.MemstoreError)
    assert re.search(said if create or name == "theirs" else f"{said}|does not exist|is empty", found), found
    assert "?" not in found.split("(")[0]


def test_permissions_that_are_missing(file: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()

    def try_it() -> None:
        assert "may not make files in the folder" in message(lambda: memstore.open(file.parent / "new.db"))
        assert "may not read the file" in message(lambda: memstore.open(secret, create=False))
        assert "may not enter the folder" in message(lambda: memstore.open(closed / "run.db", create=False))
        assert "may not enter the folder" in message(lambda: memstore.open(closed / "run.db"))
        with pytest.raises(memstore.MemstoreError, match="may not make files in the folder"):
            memstore.backup(file, file.parent / "copy.db")
        done = CliRunner().invoke(main, ["stats", str(closed / "run.db")])
        assert done.exit_code == 3 and "may not enter" in done.stderr

    secret = tmp_path / "secret.db"
    secret.write_bytes(file.read_bytes())
    secret.chmod(0o600)
    as_nobody(tmp_path, lambda: (closed.exists(), None))
    closed.chmod(0o700)
    as_nobody(file.parent, try_it)


def test_too_many_open_files(file: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with memstore.open(file, create=False) as memory:
        assert len(memory) == 20
    handles = []
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            while True:
                handles.append(os.open(os.devnull, os.O_RDONLY))
        said = message(lambda: memstore.open(file, create=False))
    finally:
        for handle in handles:
            os.close(handle)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "as many files open as it may (ulimit -n)" in said


def test_no_room_at_opening(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        said = message(lambda: memstore.open(tmp_path / "run.db"), memstore.StoreFull)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "ulimit -f" in said
    memstore.open(tmp_path / "run.db").close()


def _mounted(folder: Path, *options: str) -> bool:
    folder.mkdir(exist_ok=True)
    return not subprocess.run(["mount", *options, str(folder)], capture_output=True).returncode


def test_a_full_disk_at_opening(file: Path, tmp_path: Path) -> None:
    """A small file system where this process may mount one; where not, the limit of the test before is all there is."""
    disk = tmp_path / "disk"
    if os.geteuid() or not _mounted(disk, "-t", "tmpfs", "-o", "size=400k", "tmpfs"):
        return
    try:
        (disk / "run.db").write_bytes(file.read_bytes())
        with pytest.raises(OSError, match="No space"):
            (disk / "rest").write_bytes(bytes(400 * 1024))
        said = message(lambda: memstore.open(disk / "run.db"), memstore.StoreFull)
        assert "its disk is full" in said
        assert "its disk is full" in message(lambda: memstore.backup(file, disk / "copy.db"), memstore.StoreFull)
        assert not list(disk.glob("*.partial"))
        (disk / "rest").unlink()
        with memstore.open(disk / "run.db") as memory:
            assert len(memory) == 20
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        with memstore.open(disk / "run.db", create=False) as memory:
            assert len(memory) == 20
            assert "mounted read-only" in message(lambda: memory.delete([1]), memstore.StoreReadOnly)
        assert "mounted read-only" in message(lambda: memstore.open(disk / "new.db"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
