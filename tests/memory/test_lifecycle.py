"""Handles: closing, pickling, forking, threads, processes, several buffers, databases that cannot be written."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import make_url

import memstore
from memstore import (
    ConfigError,
    EpisodeNotFound,
    EpisodicMemory,
    MemoryClosed,
    MemstoreError,
    PrioritizedLoss,
    RetentionPolicy,
    StoreBusy,
    StoreReadOnly,
    StoreUnavailable,
    Uniform,
)
from tests.support.helpers import (
    Child,
    Existing,
    OpenMemory,
    Sql,
    everything,
    in_child,
    live_ids,
    postgres_only,
    row,
    rows,
    sqlite_only,
)

# Python 3.12 and later warn whenever a process with threads forks; that is what is tested here.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

METHODS = [method for method in ("spawn", "fork", "forkserver") if method in multiprocessing.get_all_start_methods()]


# Closing


def test_a_closed_memory_says_so(open_memory: OpenMemory) -> None:
    """Every method; closing again is nothing; what was committed is there for the next."""
    memory = open_memory()
    memory.extend(rows(3), loss=1.0)
    memory.close()
    memory.close()
    calls: list[Callable[[], Any]] = [
        lambda: memory.add(row(1)),
        lambda: memory.extend(rows(2)),
        lambda: memory.sample(1),
        lambda: memory.update([1], loss=1.0),
        lambda: memory.get(1),
        lambda: memory.metadata([1]),
        lambda: memory.delete([1]),
        lambda: memory.stats(),
        lambda: memory.check(),
        lambda: len(memory),
        lambda: 1 in memory,
        lambda: memory.capacity,
        lambda: memory.strategy,
        lambda: memory.configure(capacity=5),
        lambda: memory.consolidate(RetentionPolicy()),
        lambda: memory.recall_temporal(0, 1),
        lambda: memory.save_checkpoint("c", {}),
        lambda: memory.load_checkpoint("c"),
        lambda: memory.checkpoints(),
        lambda: memory.transaction().__enter__(),
    ]
    for call in calls:
        with pytest.raises(MemoryClosed, match="open it again"):
            call()
    with pytest.raises(RuntimeError):
        memory.sample(1)
    assert "default" in repr(memory) and memory.name == "default"
    assert len(open_memory()) == 3


def test_the_context_manager_closes_and_lets_errors_through(url: str) -> None:
    """And keeps what was committed before the error."""
    with pytest.raises(ZeroDivisionError), memstore.open(url) as memory:
        assert isinstance(memory, EpisodicMemory) and not memory.resumed
        memory.add(row(1))
        raise ZeroDivisionError
    with pytest.raises(MemoryClosed):
        len(memory)
    with memstore.open(url) as memory:
        assert memory.resumed and len(memory) == 1


def test_opening_and_closing_leaks_nothing(url: str) -> None:
    """Neither file descriptors nor locks."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("needs /proc")
    memstore.open(url).close()
    before = len(list(folder.iterdir()))
    for number in range(20):
        with memstore.open(url) as memory:
            memory.add(row(number))
            memory.sample(3)
    assert len(list(folder.iterdir())) <= before


def test_addresses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A str, a path, a URL, an SQLAlchemy URL name one file; a path may hold any character."""
    monkeypatch.chdir(tmp_path)
    for name in ("run.db", "r\u00fcn %20 #1?.db", "a'b\".db"):
        path = tmp_path / name
        with memstore.open(path) as memory:
            memory.add(row(1))
            assert not memory.resumed
        assert path.exists(), name
        for target in (str(path), name, path, make_url("sqlite://").set(database=str(path))):
            with memstore.open(target, create=False) as memory:
                assert memory.resumed and len(memory) == 1
    with memstore.open("sqlite:///run.db", create=False) as memory:
        assert len(memory) == 1
    for bad in ("", "sqlite://", "sqlite:///:memory:", "mysql://u:secret@h/d", "://", ":memory:"):
        with pytest.raises(ConfigError) as refusal:
            memstore.open(bad)
        assert "secret" not in str(refusal.value)
    assert sorted(p.name for p in tmp_path.iterdir() if p.suffix == ".db") == sorted(
        ["run.db", "r\u00fcn %20 #1?.db", "a'b\".db"]
    )


# Pickling and processes


def _use(memory: EpisodicMemory, number: int) -> tuple[bool, list[int], str, int]:
    with memory:
        batch = memory.sample(10)
        memory.update(batch.ids[:1], loss=0.5)
        one = memory.add(row(number), key=f"child {number}")
        return memory.resumed, batch.ids.tolist(), batch.strategy, one


@pytest.mark.parametrize("method", METHODS)
def test_a_handle_can_be_given_to_workers(open_memory: OpenMemory, method: str) -> None:
    """It opens the same buffer there, with its own random stream and the strategy of this handle."""
    memory = open_memory(strategy="prioritized_loss", buffer="b")
    memory.extend(rows(1000), loss=1.0)
    handle = open_memory(strategy=Uniform(), buffer="b")
    handle.sample(1)
    children = [Child(_use, handle, 2000 + i, method=method) for i in range(3)]
    found = [child.result() for child in children]
    mine = handle.sample(10).ids.tolist()
    streams = [tuple(ids) for _, ids, _, _ in found] + [tuple(mine)]
    assert len(set(streams)) == 4, "two processes drew the same"
    assert {strategy for _, _, strategy, _ in found} == {"uniform"}
    assert sorted(one for _, _, _, one in found) == [1001 + i for i in range(3)]
    assert len(memory) == 1003 and memory.stats().total_events == 3
    assert memory.sample(1).strategy == "prioritized_loss"


def test_pickled_in_one_process(open_memory: OpenMemory) -> None:
    """A copy is another handle on the same buffer; settings of the handle go with it, open transactions do not."""
    memory = open_memory(cache_bytes=12_345, strategy="uniform")
    memory.add(row(1))
    with memory.transaction():
        memory.add(row(2))
        copy = pickle.loads(pickle.dumps(memory))  # noqa: S301
        assert len(copy) == 1
    assert isinstance(copy, EpisodicMemory)
    assert len(copy) == 2 and copy.stats().cache["max_bytes"] == 12_345 and copy.resumed
    copy.close()
    assert len(memory) == 2
    with pytest.raises(MemoryClosed):
        len(copy)


def test_a_pickled_handle_of_what_is_gone(url: str, vanish: Callable[[], None], tmp_path: Path) -> None:
    """Says so, and creates nothing."""
    with memstore.open(url, buffer="gone") as memory:
        blob = pickle.dumps(memory)
    vanish()
    with pytest.raises(StoreUnavailable):
        pickle.loads(blob)  # noqa: S301
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif("fork" not in METHODS, reason="needs fork")
def test_fork_while_idle(open_memory: OpenMemory) -> None:
    """Parent and child go on, each on its own connection and random stream."""
    memory = open_memory()
    memory.extend(rows(500), loss=1.0)
    memory.sample(5)
    results = []
    for i in range(5):
        child = Child(_forked, memory, i, method="fork")
        memory.add(row(i))
        results.append(child.result())
        memory.update(memory.sample(5), loss=0.5)
    assert len({tuple(ids) for ids in results}) == 5
    assert len(memory) == 500 + 5 + 5 * 20
    assert memory.check().ok


def _forked(memory: EpisodicMemory, number: int) -> list[int]:
    ids: list[int] = memory.sample(10).ids.tolist()
    for i in range(20):
        memory.add(row(1000 * number + i))
        memory.update(memory.sample(3), loss=0.25)
    return ids


@pytest.mark.skipif("fork" not in METHODS, reason="needs fork")
def test_fork_inside_a_block(open_memory: OpenMemory, url: str) -> None:
    """The block is the parent's: the child sees what is committed, reads on, and its writes wait for the lock.

    SQLite's locks do not survive such a fork: there the child is told so, also by a handle that it opens itself.
    """
    memory = open_memory(busy_timeout=0.3)
    memory.add(row(0))
    with memory.transaction():
        memory.add(row(1))
        if url.startswith("sqlite"):
            assert in_child(_told, memory, url, method="fork") == ["StoreUnavailable"] * 3
        else:
            assert in_child(_inside, memory, method="fork") == (1, [0], "StoreBusy")
        memory.add(row(2))
        assert len(memory) == 3
    assert len(memory) == 3 and len(open_memory()) == 3
    assert in_child(_inside, memory, method="fork")[2] == "nothing"
    assert len(memory) == 4


def _inside(memory: EpisodicMemory) -> tuple[int, list[int], str]:
    before, numbers, met = len(memory), memory.sample(1)["number"].tolist(), "nothing"
    try:
        memory.add(row(99))
    except StoreBusy:
        met = "StoreBusy"
    return before, numbers, met


def _told(memory: EpisodicMemory, url: str) -> list[str]:
    met = []
    for act in (lambda: len(memory), lambda: memory.add(row(99)), lambda: memstore.open(url)):
        try:
            act()
        except StoreUnavailable as error:
            assert "fork outside transaction()" in str(error)
            met.append(type(error).__name__)
    return met


def _leave_block(memory: EpisodicMemory, results: str, end: str) -> None:
    """Fork inside the block and leave it in the child by its end; what the child met is written to a file."""
    pid = None
    try:
        with memory.transaction():
            memory.add(row(1))
            pid = os.fork()
            if pid == 0 and end == "raise":
                raise KeyError("leaving")
            if pid:
                os.waitpid(pid, 0)
                memory.add(row(2))
    except BaseException as exc:
        if pid == 0:
            Path(results).write_text(type(exc).__name__)
            os._exit(0)
        raise
    if pid == 0:
        Path(results).write_text("nothing")
        os._exit(0)


@pytest.mark.skipif("fork" not in METHODS, reason="needs fork")
@pytest.mark.parametrize("end", ["return", "raise"])
def test_the_end_of_a_block_in_a_forked_child(open_memory: OpenMemory, tmp_path: Path, end: str) -> None:
    """TransactionDead in the child; the parent commits both episodes."""
    memory = open_memory()
    memory.add(row(0))
    note = tmp_path / "note"
    in_child(_leave_block, memory, str(note), end)
    assert note.read_text() == "TransactionDead"
    assert [e.payload["number"] for e in memory.get_many(live_ids(memory))] == [0, 1, 2]


# Threads and processes at once


def _mixed(memory: EpisodicMemory, worker: int, operations: int) -> Counter[str]:
    """Random operations; what was done, by name."""
    rng = np.random.default_rng(worker)
    done: Counter[str] = Counter()
    for turn in range(operations):
        what = rng.choice(["add", "extend", "update", "sample", "get", "delete", "block", "stats"])
        if what == "add":
            memory.add(row(turn), domain=f"d{worker % 3}", loss=rng.random())
            done["inserted"] += 1
        elif what == "extend":
            memory.extend(rows(4, turn), domain=["a", "b", "c", f"w{worker}"], tags=["t"])
            done["inserted"] += 4
        elif what == "delete":
            batch = memory.sample(1, strategy="uniform")
            done["deleted"] += memory.delete(batch.ids)
        elif what == "block":
            with memory.transaction():
                memory.add(row(turn), loss=1.0)
                batch = memory.sample(3)
                done["events"] += len(memory.update(batch, loss=0.5).updated)
            done["inserted"] += 1
        elif what == "stats":
            assert memory.stats().buffer_size >= 0
        else:
            batch = memory.sample(5)
            assert (batch["x"] == batch["number"][:, None]).all()
            if what == "update":
                done["events"] += len(memory.update(batch, loss=rng.random(len(batch)), step=turn).updated)
            elif what == "get":
                try:
                    assert memory.get(batch.ids[0]).payload["number"] == batch["number"][0]
                except EpisodeNotFound:
                    done["raced"] += 1
    return done


def counts_are_exact(memory: EpisodicMemory, sql: Sql, before: int, done: list[Counter[str]]) -> None:
    """Whatever was acknowledged is there, once."""
    total = sum(done, Counter())
    stats = memory.stats()
    assert stats.total_inserted == before + total["inserted"]
    assert len(memory) == stats.total_inserted - total["deleted"]
    assert stats.total_events == total["events"]
    recorded = Counter({"replayed": total["events"], "deleted": total["deleted"]})
    assert Counter(dict(sql("SELECT what, count(*) FROM v_history GROUP BY what"))) == recorded
    assert sql("SELECT count(DISTINCT event), min(event), max(event) FROM v_history") == [
        (recorded.total(), 1, recorded.total())
    ]
    memory.fold()
    (replays,) = sql("SELECT coalesce(sum(replay_count), 0) FROM replay_metadata")[0]
    assert stats.total_replays == replays
    report = memory.check()
    assert report.ok, report.problems


def test_threads_share_a_memory(open_memory: OpenMemory, sql: Sql) -> None:
    """8 threads, 100 operations each, on one handle."""
    memory = open_memory(capacity=10_000)
    memory.extend(rows(200), loss=1.0)
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda worker: _mixed(memory, worker, 100), range(8)))
    counts_are_exact(memory, sql, 200, done)


def test_processes_share_a_memory(open_memory: OpenMemory, sql: Sql) -> None:
    """4 processes, 150 operations each, every one adding, drawing and updating."""
    memory = open_memory(capacity=10_000)
    memory.extend(rows(200), loss=1.0)
    children = [Child(_mixed, memory, worker, 150) for worker in range(4)]
    counts_are_exact(memory, sql, 200, [child.result(300) for child in children])


def _crowded(memory: EpisodicMemory, worker: int, turns: int) -> tuple[int, int, int]:
    inserted = replayed = missing = 0
    for turn in range(turns):
        inserted += len(memory.extend(rows(3, turn), loss=[0.1, 1.0, 2.0], domain=f"w{worker}"))
        batch = memory.sample(8)
        assert (batch["x"] == batch["number"][:, None]).all()
        result = memory.update(batch, loss=0.5 + batch.loss)
        replayed += len(result.updated)
        missing += len(result.missing)
        assert len(memory) <= 50
    return inserted, replayed, missing


def test_processes_share_a_full_memory(open_memory: OpenMemory) -> None:
    """Drawn, evicted by another, updated: missing, counted, never somebody else's loss."""
    memory = open_memory(capacity=50, strategy=PrioritizedLoss(0.6))
    memory.extend(rows(50), loss=1.0)
    children = [Child(_crowded, memory, worker, 50) for worker in range(4)]
    results = [child.result(300) for child in children]
    assert sum(inserted for inserted, _, _ in results) == 600
    stats = memory.stats()
    assert stats.buffer_size == 50 and stats.total_inserted == 650
    assert stats.total_events == sum(replayed for _, replayed, _ in results)
    assert sum(replayed + missing for _, replayed, missing in results) == 4 * 50 * 8
    assert memory.check().ok


def test_one_writer_at_a_time_and_readers_all_along(open_memory: OpenMemory) -> None:
    """A reader sees whole commits only: the two halves of a block are always both there or both absent."""
    memory, reader = open_memory(), open_memory()
    memory.extend(rows(2), loss=0.0)
    stop = threading.Event()
    torn: list[Any] = []

    def read() -> None:
        while not stop.is_set():
            one, two = reader.metadata([1, 2])
            if one.loss != two.loss or one.replay_count != two.replay_count:
                torn.append((one, two))

    thread = threading.Thread(target=read)
    thread.start()
    for turn in range(100):
        with memory.transaction():
            memory.update([1], loss=float(turn))
            memory.update([2], loss=float(turn))
    stop.set()
    thread.join(20)
    assert not torn


# Several handles, several buffers


def test_opening_twice(open_memory: OpenMemory) -> None:
    """Two handles of one process see each other's commits at once."""
    one, two = open_memory(), open_memory()
    assert not one.resumed and two.resumed
    ids = one.extend(rows(3), loss=1.0, domain="a")
    assert len(two) == 3 and two.get(ids[0]).domain == "a"
    two.update(ids, loss=0.25)
    assert [m.loss for m in one.metadata(ids)] == [0.25] * 3
    two.add(row(7), domain="b")
    one.delete(ids[:1])
    assert live_ids(one) == live_ids(two) == [2, 3, 4]
    assert one.stats().domain_distribution == two.stats().domain_distribution == {"a": 2, "b": 1}
    one.close()
    assert len(two) == 3


def test_buffers_of_one_database_share_nothing(open_memory: OpenMemory, url: str) -> None:
    """Ids, domains, keys, checkpoints, settings, signatures, history and seeds are each one's own."""
    a = open_memory(buffer="a", capacity=5, strategy="uniform")
    b = open_memory(buffer="b", capacity=7, strategy="prioritized_loss")
    assert memstore.buffers(url) == ["a", "b"]
    ids_a = a.extend(rows(5), key=list("vwxyz"), domain="d", tags=["t"], loss=1.0, timestamp=1.0)
    ids_b = b.extend({"text": list("12345")}, key=list("vwxyz"), domain="d", tags=["t"], loss=9.0, timestamp=1.0)
    assert ids_a.tolist() == [1, 2, 3, 4, 5]
    assert (ids_b - ids_a == 1 << 40).all() and ids_b.max() < 2**53
    a.save_checkpoint("c", {"of": "a"})
    assert b.checkpoints() == []
    for other, mine in ((b, ids_a), (a, ids_b)):
        assert other.delete(mine) == 0
        assert other.update(mine, loss=0.0).updated.tolist() == []
        for i in mine.tolist():
            assert i not in other
            with pytest.raises(EpisodeNotFound):
                other.get(i)
            with pytest.raises(EpisodeNotFound):
                other.metadata([i])
    before = everything(b, ids_b)
    a.update(ids_a, loss=0.5)
    a.consolidate(RetentionPolicy(max_episodes=1))
    a.configure(capacity=3)
    a.extend(rows(6))
    assert everything(b, ids_b) == before and len(b) == 5 and b.capacity == 7
    assert [e.id for e in b.recall_by_tags(["t"])] == [e.id for e in b.recall_temporal(0, 2)] == ids_b.tolist()
    assert [e.id for e in b.recall_temporal(0, 2, domain="d")] == ids_b.tolist()
    assert b.stats().total_events == 0 and a.stats().total_events == 5
    assert set(b.sample(5)["text"]) == set("12345")
    assert a.check().ok and b.check().ok


def test_create_false_makes_nothing(url: str, existing: Existing) -> None:
    """Neither a file nor a buffer; the message names the buffers there are."""
    with pytest.raises(MemstoreError):
        memstore.open(url, create=False)
    with pytest.raises(MemstoreError):
        memstore.buffers(url)
    assert existing() == []
    memstore.open(url, buffer="here").close()
    with pytest.raises(ConfigError, match="'here'"):
        memstore.open(url, buffer="there", create=False)
    assert memstore.buffers(url) == ["here"]


def _create(url: str, number: int) -> tuple[bool, int]:
    with memstore.open(url, buffer="shared", capacity=100) as memory:
        return memory.resumed, memory.add(row(number))


def test_processes_that_create_a_buffer_at_once(url: str) -> None:
    """Exactly one creates it."""
    children = [Child(_create, url, number) for number in range(4)]
    found = [child.result() for child in children]
    assert sorted(resumed for resumed, _ in found) == [False, True, True, True]
    assert sorted(one for _, one in found) == [1, 2, 3, 4]


# Databases that cannot be opened or written


def test_a_read_only_database(open_memory: OpenMemory, read_only_url: str) -> None:
    """Reading works; writing is refused by name; nothing changes."""
    memory = open_memory()
    memory.extend(rows(3), loss=1.0)
    memory.save_checkpoint("c", {"n": 1})
    with memstore.open(read_only_url, create=False) as reader:
        assert len(reader) == 3 and len(reader.sample(3)) == 3 and reader.check().ok
        assert reader.load_checkpoint("c") == {"n": 1}
        assert reader.stats().buffer_size == 3
        for attempt in (
            lambda: reader.add(row(1)),
            lambda: reader.update([1], loss=2.0),
            lambda: reader.delete([1]),
            lambda: reader.save_checkpoint("d", {}),
            lambda: reader.configure(capacity=2),
        ):
            with pytest.raises(StoreReadOnly, match="read-only"):
                attempt()
        with pytest.raises(OSError), reader.transaction():
            reader.add(row(1))
        assert len(reader) == 3
    assert len(memory) == 3 and memory.get(1).loss == 1.0


def test_a_folder_that_does_not_exist(tmp_path: Path) -> None:
    """Is not made; the message says where to look."""
    with pytest.raises(StoreUnavailable, match="folder"):
        memstore.open(tmp_path / "absent" / "run.db")
    with pytest.raises(OSError):
        memstore.open(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_database_that_vanishes(url: str, vanish: Callable[[], None]) -> None:
    """The handle goes on with what it has open, or fails by name: never with a driver's error."""
    with memstore.open(url, busy_timeout=0.5) as memory:
        memory.add(row(1))
        vanish()
        for attempt in (lambda: memory.add(row(2)), lambda: memory.sample(2), lambda: len(memory)):
            with contextlib.suppress(MemstoreError):
                attempt()


@sqlite_only
def test_a_new_file_after_one_that_vanished(url: str, vanish: Callable[[], None]) -> None:
    """Is made as if there had been none."""
    with memstore.open(url) as memory:
        memory.add(row(1))
        vanish()
    with memstore.open(url) as memory:
        assert not memory.resumed and len(memory) == 0


@postgres_only
def test_a_server_or_database_that_is_not_there(url: str) -> None:
    """The message says where memstore looked, and that it may be down."""
    address = make_url(url)
    for absent in (address.set(database="absent"), address.update_query_dict({"host": "/absent"})):
        with pytest.raises(StoreUnavailable, match="absent.*server"):
            memstore.open(absent, busy_timeout=0.5)


@postgres_only
def test_addresses_of_a_server(url: str) -> None:
    """Each way to write it names the same database; other drivers are refused, passwords never shown."""
    address = make_url(url)
    memstore.open(url).close()
    for name in ("postgres", "postgresql", "postgresql+psycopg"):
        text = address.render_as_string(hide_password=False).replace("postgresql+psycopg", name, 1)
        for target in (text, make_url(text)):
            with memstore.open(target, create=False) as memory:
                assert memory.resumed
    for name in ("postgresql+psycopg2", "postgresql+asyncpg", "postgresql+pg8000"):
        with pytest.raises(ConfigError, match="psycopg") as refusal:
            memstore.open(address.set(drivername=name, password="secret"))
        assert "secret" not in str(refusal.value)
    with memstore.open(address.set(password="secret")) as memory:
        assert "secret" not in repr(memory)
    with pytest.raises(StoreUnavailable) as unavailable:
        memstore.open(address.set(password="secret", database="absent"), busy_timeout=0.5)
    assert "secret" not in str(unavailable.value)
