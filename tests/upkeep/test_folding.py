"""The fold on request, at the end of a handle, and before a vacuum."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Engine, make_url

import memstore
from memstore import EpisodicMemory
from memstore.upkeep.backup import backup, vacuum
from tests.support.helpers import (
    FRESH,
    Child,
    OpenMemory,
    Room,
    Sql,
    everything,
    live_ids,
    postgres_only,
    rows,
    sqlite_only,
)
from tests.support.postgres import PostgresServer

FOLDED = "SELECT inserted + logged - folded_inserted - folded_logged FROM buffer"
"""This query gives the number of log entries that the tables lack."""


def lived(memory: EpisodicMemory) -> EpisodicMemory:
    """The memory after newcomers, replays and departures that no fold has seen; 20 episodes are live."""
    memory.extend(rows(5), loss=1.0)  # the first write into a buffer folds
    ids = memory.extend(rows(25, start=5), loss=np.linspace(0.5, 3, 25), domain=["a", "b", "c", "d", "e"] * 5)
    memory.update(memory.sample(8), loss=np.linspace(1, 2, 8), step=1)
    memory.delete(ids[:10])
    return memory


@pytest.fixture
def pending(sql: Sql) -> Callable[[], int]:
    """The number of log entries that the tables lack."""
    return lambda: int(sql(FOLDED)[0][0])


def test_a_fold_brings_the_tables_up_to_date(open_memory: OpenMemory, sql: Sql, pending: Callable[[], int]) -> None:
    """It tells how many entries that were, and a second one writes nothing."""
    memory = lived(open_memory())
    known, live = everything(memory, live_ids(memory)), live_ids(memory)
    assert pending() == 25 + 8 + 10
    assert [number for (number,) in sql("SELECT id FROM episode ORDER BY id")] != live
    assert memory.fold() == 43 and pending() == 0
    for table, key in (("episode", "id"), ("payload", "episode_id"), ("replay_metadata", "episode_id")):
        assert [number for (number,) in sql(f"SELECT {key} FROM {table} ORDER BY {key}")] == live
    stored = sql("SELECT episode_id, loss, lowest_loss, replay_count, last_replayed_at FROM replay_metadata ORDER BY 1")
    assert stored == [(row[0], *row[-1]) for row in known]
    revision = memory.stats().revision
    assert memory.fold() == 0 and memory.stats().revision == revision
    assert everything(memory, live) == known and memory.check().problems == ()


def test_a_fold_changes_no_draw(open_memory: OpenMemory, url: str) -> None:
    """Neither one's own, nor that of another process."""
    memory = lived(open_memory(strategy="prioritized_loss"))
    memory.save_checkpoint("here", {})
    drawn = [memory.sample(6).ids.tolist() for _ in range(20)]
    memory.load_checkpoint("here")
    first = [memory.sample(6).ids.tolist() for _ in range(10)]
    with memstore.open(url) as other:
        assert other.fold() == 43
    assert first + [memory.sample(6).ids.tolist() for _ in range(10)] == drawn
    with memstore.open(url) as fresh:
        fresh.load_checkpoint("here")
        assert [fresh.sample(6).ids.tolist() for _ in range(20)] == drawn


def test_a_fold_in_a_transaction_is_part_of_it(open_memory: OpenMemory, pending: Callable[[], int]) -> None:
    memory = lived(open_memory())
    with pytest.raises(KeyError), memory.transaction():
        assert memory.fold() == 43
        raise KeyError
    assert pending() == 43 and memory.check().problems == ()
    with memory.transaction():
        memory.delete(live_ids(memory)[:1])
        assert memory.fold() == 44
    assert pending() == 0


def test_closing_folds(open_memory: OpenMemory, pending: Callable[[], int]) -> None:
    memory = lived(open_memory())
    memory.close()
    assert pending() == 0
    memory.close()


def test_a_reader_leaves_the_log_as_it_is(open_memory: OpenMemory, pending: Callable[[], int], url: str) -> None:
    lived(open_memory())
    reader = memstore.open(url)
    reader.sample(3)
    reader.close()
    assert pending() == 43


def test_an_interrupt_is_not_delayed_by_a_fold(open_memory: OpenMemory, pending: Callable[[], int]) -> None:
    """A handle whose block ends by an interrupt closes its connections, and nothing else."""
    memory = open_memory()
    with pytest.raises(KeyboardInterrupt), memory:
        lived(memory)
        raise KeyboardInterrupt
    assert pending() == 43
    with pytest.raises(memstore.MemoryClosed):
        len(memory)
    again = open_memory()
    with pytest.raises(KeyError), again:
        again.delete(live_ids(again)[:1])
        raise KeyError
    assert pending() == 0, "another exception is no reason to leave it"


def test_an_interrupt_inside_the_fold_comes_out(open_memory: OpenMemory, pending: Callable[[], int]) -> None:
    closing = False

    def interrupt(line: str) -> None:
        if closing and "replay_metadata" in line:
            os.kill(os.getpid(), signal.SIGINT)

    memory = lived(open_memory(trace=interrupt))
    closing = True
    with pytest.raises(KeyboardInterrupt):
        memory.close()
    assert pending() in (0, 43), "the fold was undone, or committed as a whole"
    with pytest.raises(memstore.MemoryClosed):
        len(memory)


def test_closing_in_an_open_block_leaves_the_block_alone(open_memory: OpenMemory, pending: Callable[[], int]) -> None:
    memory = lived(open_memory())
    with memory.transaction():
        memory.delete(live_ids(memory)[:1])
        memory.close()
    assert pending() == 44


def test_closing_does_not_wait_for_a_lock(open_memory: OpenMemory, pending: Callable[[], int]) -> None:
    """Neither for one of this process nor of another connection. With its patience it would wait for ever."""
    memory, other = lived(open_memory(busy_timeout=1e6)), open_memory()
    with other.transaction():
        other.delete(live_ids(other)[:1])
        memory.close()
    assert pending() == 44
    assert memory._session.database.backend.busy_timeout == 1e6
    other.close()
    assert pending() == 0


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_folds_only_what_it_wrote(open_memory: OpenMemory, pending: Callable[[], int]) -> None:
    memory = lived(open_memory())
    Child(_closed_in_a_fork, memory, False, method="fork").result()
    assert pending() == 43
    Child(_closed_in_a_fork, memory, True, method="fork").result()
    assert pending() == 0


def _closed_in_a_fork(memory: EpisodicMemory, write: bool) -> None:
    if write:
        memory.delete(live_ids(memory)[:1])
    memory.close()


def test_a_reader_without_rights_closes(open_memory: OpenMemory, read_only_url: str) -> None:
    lived(open_memory())
    with memstore.open(read_only_url) as reader:
        assert len(live_ids(reader)) == 20
        with pytest.raises(memstore.StoreReadOnly):
            reader.fold()


def test_closing_on_a_full_disk(open_memory: OpenMemory, room: Room, pending: Callable[[], int]) -> None:
    memory = lived(open_memory())
    memory.extend({name: np.repeat(values, 200, axis=0) for name, values in rows(5).items()})
    room(0)
    memory.close()
    room(None)
    assert pending() in (0, 1043), "a server has room for all but new payloads"


@sqlite_only
def test_closing_after_the_file_has_vanished(open_memory: OpenMemory, damage: Any, vanish: Callable[[], None]) -> None:
    """No error, and no new file."""
    memory = lived(open_memory())
    folder = Path(str(memory._session.database.backend.url.database)).parent
    vanish()
    memory.close()
    assert not list(folder.glob("run.db*"))


@postgres_only
def test_closing_after_the_connection_broke(
    open_memory: OpenMemory, engine: Engine, pending: Callable[[], int]
) -> None:
    memory = lived(open_memory())
    with engine.begin() as conn:
        conn.exec_driver_sql(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE application_name = 'memstore' "
            "AND datname = current_database()"
        )
    memory.close()
    assert pending() in (0, 43)
    assert len(live_ids(open_memory())) == 20


@postgres_only
def test_closing_after_the_database_was_dropped(
    open_memory: OpenMemory, damage: Any, postgres_server: PostgresServer, url: str
) -> None:
    memory = memstore.open(url)
    lived(memory)
    postgres_server.drop_database(str(make_url(url).database))
    memory.close()
    postgres_server.create_database(str(make_url(url).database))


# --- several processes -------------------------------------------------------------------------------------------


def _write_and_close(url: str, number: int, start: Any) -> None:
    for turn in range(5):
        with memstore.open(url, seed=number) as memory:
            ids = memory.extend(rows(40), loss=1.0, domain=f"d{number}")
            memory.update(ids, loss=np.linspace(0, 4, 40), step=turn)
            memory.delete(ids[:10])
            start.wait(60)


def test_two_processes_close_at_once(open_memory: OpenMemory, url: str) -> None:
    open_memory(capacity=1000).extend(rows(5), loss=1.0)
    start = FRESH.Barrier(2)
    children = [FRESH.Process(target=_write_and_close, args=(url, number, start)) for number in range(2)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    memory = open_memory()
    assert len(memory) == 5 + 2 * 5 * 30 and memory.check().problems == ()
    memory.fold()
    assert memory.check().problems == ()


def _killed_while_closing(url: str, statement: int) -> None:
    left: int | None = None

    def count(_line: str) -> None:
        nonlocal left
        if left is not None:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    memory = memstore.open(url, seed=1, trace=count)
    memory.update(memory.sample(3), loss=[0.5, 1.5, 2.5])
    memory.delete(live_ids(memory)[:1])
    left = statement
    memory.close()


@pytest.mark.torture
def test_killed_inside_the_fold_at_close(open_memory: OpenMemory, url: str, pending: Callable[[], int]) -> None:
    """At each statement that it sends: nothing that was acknowledged is lost, and the tables are whole or as before."""
    memory = lived(open_memory(capacity=1000))
    memory.extend(rows(60), loss=1.0)
    killed = 0
    for statement in range(1, 200, 2):
        live, events, behind = len(memory), len(memory.history()), pending()
        child = FRESH.Process(target=_killed_while_closing, args=(url, statement))
        child.start()
        child.join(60)
        assert child.exitcode in (0, -signal.SIGKILL)
        assert len(memory) == live - 1 and len(memory.history()) == events + 4
        assert pending() in (0, behind + 4)
        assert memory.check().problems == ()
        if child.exitcode == 0:
            break
        killed += 1
    assert killed >= 4 and child.exitcode == 0 and pending() == 0


# --- who else folds ----------------------------------------------------------------------------------------------


def test_a_new_rule_of_the_history_deletes_at_once(open_memory: OpenMemory, sql: Sql) -> None:
    memory = lived(open_memory())
    assert len(sql("SELECT id FROM replay_event")) == 18
    memory.configure(history=memstore.History(max_events=10))
    assert [number for (number,) in sql("SELECT id FROM replay_event ORDER BY id")] == list(range(9, 19))
    assert [event.event for event in memory.history()] == list(range(9, 19))


def test_another_capacity_leaves_the_tables(open_memory: OpenMemory, pending: Callable[[], int]) -> None:
    """The episodes that leave are entries of the log, like others."""
    memory = lived(open_memory())
    assert memory.configure(capacity=15) == 5
    assert pending() == 48 and len(memory) == 15 and memory.check().problems == ()


def test_a_vacuum_folds_each_buffer(open_memory: OpenMemory, url: str, sql: Sql) -> None:
    """So the payloads of what was deleted take no room."""
    for name in ("one", "two"):
        lived(open_memory(buffer=name))
    assert [behind for (behind,) in sql(FOLDED)] == [43, 43]
    vacuum(url)
    assert [behind for (behind,) in sql(FOLDED)] == [0, 0]
    assert sql("SELECT count(*) FROM payload") == [(40,)]


def other_kind(url: str, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    if url.startswith("postgresql"):
        return str(tmp_path / "other.db")
    server: PostgresServer = request.getfixturevalue("postgres_server")
    return server.create_database(f"folding_{os.getpid()}_{abs(hash(tmp_path))}")


@pytest.mark.parametrize("to", ["same", "other"])
def test_a_backup_with_a_full_window_is_the_same_memory(
    open_memory: OpenMemory,
    url: str,
    to: str,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    pending: Callable[[], int],
) -> None:
    """And again when it is put back in the place of the database; it draws the same, and its fold is the same."""
    memory = lived(open_memory(strategy="prioritized_loss"))
    live, known = live_ids(memory), everything(memory, live_ids(memory))
    memory.save_checkpoint("here", {})
    history, drawn = memory.history(), memory.sample(8)
    there = other_kind(url, tmp_path, request) if to == "other" else str(tmp_path / "copy.db")
    backup(url, there)
    assert pending() == 43
    memory.update(live[:3], loss=9.0)
    for address in (there, url):
        if address == url:
            memory.close()
            memstore.restore(there, url, force=True, keep=tmp_path if url.startswith("postgresql") else None)
        with memstore.open(address, create=False) as copy:
            assert copy.check().problems == ()
            assert live_ids(copy) == live and everything(copy, live) == known and copy.history() == history
            copy.load_checkpoint("here")
            again = copy.sample(8)
            assert again.ids.tolist() == drawn.ids.tolist()
            assert again.probability is not None and drawn.probability is not None
            assert again.probability.tolist() == drawn.probability.tolist()
            copy.fold()
            assert copy.check().problems == () and everything(copy, live) == known
