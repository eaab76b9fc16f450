"""A memory is one file, and stays it: wherever the process goes, whatever becomes of the file."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import memstore
from memstore import EpisodicMemory
from memstore.errors import StoreUnavailable, StoreWarning
from tests.support.helpers import FRESH, row, rows

METHODS = multiprocessing.get_all_start_methods()


@pytest.fixture
def memory(path: str, empty_file: Path) -> Iterator[EpisodicMemory]:
    """A memory, and beside its file the database of another run."""
    shutil.copyfile(empty_file, path)
    shutil.copyfile(empty_file, other(path))
    with memstore.open(path, seed=1, busy_timeout=2.0) as opened:
        opened.extend(rows(5), loss=1.0)
        yield opened


# --- the current folder changes ----------------------------------------------------------------------------------


def grow(memory: EpisodicMemory) -> None:
    memory.add(row(7))
    memory.close()


def test_the_address_is_made_absolute_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickled, spawned, forked, watched and backed up, a handle means the file that was opened."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    with memstore.open("run.db", seed=1) as memory:
        memory.extend(rows(5), loss=1.0)
        monkeypatch.chdir(elsewhere)
        with pickle.loads(pickle.dumps(memory)) as other:  # noqa: S301
            other.add(row(6))
        for context in (FRESH, multiprocessing.get_context("fork") if "fork" in METHODS else FRESH):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside pytest's threads
                child = context.Process(target=grow, args=(memory,))
                child.start()
            child.join(60)
            assert child.exitcode == 0
        memory.wait(min_size=8, wait=10)
        assert len(memory) == 8 and memory.stats().bytes_on_disk["database"] > 0
        assert str(tmp_path / "run.db") in memory.url
        memstore.backup(tmp_path / "run.db", "copy.db")
    assert sorted(entry.name for entry in elsewhere.iterdir()) == ["copy.db"]
    assert memstore.buffers("copy.db") == ["default"]


# --- the file is no longer the file ------------------------------------------------------------------------------


def other(path: str) -> Path:
    """Where the database of another run is."""
    return Path(f"{path}.other")


def deleted(path: str) -> None:
    Path(path).unlink()


def deleted_with_its_log(path: str) -> None:
    for suffix in ("", "-wal", "-shm"):
        Path(f"{path}{suffix}").unlink()


def moved_away(path: str) -> None:
    Path(path).rename(f"{path}.moved")


def replaced(path: str) -> None:
    other(path).replace(path)


def replaced_by_a_restored_copy(path: str) -> None:
    deleted_with_its_log(path)
    shutil.copy(other(path), path)


def without_its_log(path: str) -> None:
    Path(f"{path}-wal").unlink()


def without_the_index_of_its_log(path: str) -> None:
    Path(f"{path}-shm").unlink()


def with_another_log(path: str) -> None:
    log = Path(f"{path}-wal")
    log.unlink()
    log.touch()


def in_another_folder(path: str) -> None:
    folder = Path(path).parent
    folder.rename(f"{folder}.moved")
    folder.mkdir()
    shutil.copy(Path(f"{folder}.moved") / "run.db", path)


FATES = [
    *(deleted, deleted_with_its_log, moved_away, replaced, replaced_by_a_restored_copy),
    *(without_its_log, without_the_index_of_its_log, with_another_log, in_another_folder),
]


@pytest.mark.skipif(os.name == "nt", reason="what is open cannot be deleted there")
@pytest.mark.parametrize("fate", FATES)
def test_a_file_that_is_gone_takes_no_write(memory: EpisodicMemory, path: str, fate: Callable[[str], None]) -> None:
    """Each call says so, and nothing is acknowledged."""
    memory.add(row(6))
    memory.add(row(7))
    fate(path)

    def block() -> None:
        with memory.transaction():
            memory.add(row(8))

    for attempt in (
        lambda: memory.add(row(8)),
        lambda: memory.update([1], loss=2.0),
        lambda: memory.delete([1]),
        lambda: memory.save_checkpoint("c", {"n": 1}),
        lambda: memory.sample(2),
        lambda: len(memory),
        block,
    ):
        with pytest.raises(StoreUnavailable, match=r"run\.db.*(deleted|moved away|replaced)"):
            attempt()
    memory.close()


@pytest.mark.skipif(os.name == "nt", reason="what is open cannot be deleted there")
@pytest.mark.parametrize("fate", [deleted, replaced, without_its_log])
def test_a_file_that_goes_in_the_middle_of_a_commit_acknowledges_nothing(
    memory: EpisodicMemory, path: str, fate: Callable[[str], None]
) -> None:
    memory.add(row(6))
    with pytest.raises(StoreUnavailable), memory.transaction():
        memory.add(row(7))
        fate(path)


@pytest.mark.skipif(os.name == "nt", reason="what is open cannot be deleted there")
def test_a_file_that_comes_back_is_written_again(memory: EpisodicMemory, path: str) -> None:
    time.sleep(0.01)
    moved_away(path)
    for _attempt in range(2):
        with pytest.raises(StoreUnavailable):
            memory.add(row(6))
        time.sleep(0.01)
    Path(f"{path}.moved").rename(path)
    memory.add(row(6))
    assert len(memory) == 6 and memory.check().ok


@pytest.mark.skipif(os.name == "nt", reason="what is open cannot be deleted there")
@pytest.mark.parametrize("fate", [without_its_log, without_the_index_of_its_log, with_another_log])
def test_closing_saves_what_a_lost_log_held(memory: EpisodicMemory, path: str, fate: Callable[[str], None]) -> None:
    """As the message says: what was acknowledged is there after all, if nobody else had the file open."""
    memory.add(row(6))
    fate(path)
    with pytest.raises(StoreUnavailable, match="Close every memory"):
        memory.add(row(7))
    memory.close()
    with memstore.open(path, create=False) as again:
        assert 6 <= len(again) <= 7 and again.check().ok


@pytest.mark.skipif(os.name == "nt", reason="what is open cannot be deleted there")
def test_a_new_connection_of_another_file_is_refused(memory: EpisodicMemory, path: str) -> None:
    """As one is opened for a second thread, or after the old ones were closed."""
    replaced_by_a_restored_copy(path)
    memory._session.database.connections.clear()
    for _attempt in range(2):
        with pytest.raises(StoreUnavailable, match="replaced"):
            len(memory)
    assert memstore.buffers(path) == []


@pytest.mark.skipif(os.name == "nt", reason="needs the right to make links")
def test_a_link_that_leads_elsewhere_is_noticed(memory: EpisodicMemory, path: str, tmp_path: Path) -> None:
    link = tmp_path / "latest.db"
    link.symlink_to(path)
    with memstore.open(link) as linked:
        linked.add(row(6))
        assert len(memory) == 6
        link.unlink()
        link.symlink_to(other(path))
        with pytest.raises(StoreUnavailable, match="replaced"):
            linked.sample(2)
    memory.add(row(7))


def test_what_comes_and_goes_beside_it_does_not_matter(memory: EpisodicMemory, path: str) -> None:
    """Other files, other processes that open and close it, an emptied log."""
    for number in range(5):
        Path(f"{path}.{number}").touch()
        memory.add(row(number))
        child = FRESH.Process(target=_grow_file, args=(path,))
        child.start()
        child.join(60)
        assert child.exitcode == 0
        memstore.vacuum(path)
        Path(f"{path}.{number}").unlink()
    assert len(memory) == 15


def _grow_file(path: str) -> None:
    with memstore.open(path, create=False) as memory:
        memory.extend({name: np.asarray(values)[:1] for name, values in rows(1).items()})


# --- several names -----------------------------------------------------------------------------------------------


@pytest.mark.skipif(os.name == "nt", reason="names are not counted there")
def test_hard_links_are_warned_of(path: str, tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with memstore.open(path) as memory:
        memory.add(row(1))
        memstore.backup(path, tmp_path / "copy.db")  # which uses a link for a moment
        memstore.open(tmp_path / "copy.db").close()
        memstore.restore(tmp_path / "copy.db", tmp_path / "new.db")  # and so does this
        assert not recwarn.list
    os.link(path, tmp_path / "second.db")
    with pytest.warns(StoreWarning, match="hard links"), memstore.open(path) as memory:
        assert any("hard links" in note for note in memory.check().notes)
    with pytest.warns(StoreWarning, match=r"second\.db is one of 2 names"):
        memstore.open(tmp_path / "second.db", create=False).close()
