"""``transaction()``: one commit or nothing: rows, losses, history, checkpoints, settings, generator, cache."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import memstore
from memstore import (
    EpisodeNotFound,
    EpisodicMemory,
    InvalidValue,
    MemoryFull,
    PrioritizedLoss,
    StoreBusy,
    StoreFull,
    TransactionDead,
)
from memstore.storage.schema import metadata
from tests.support.helpers import (
    FRESH,
    OpenMemory,
    Room,
    Sql,
    agree,
    drawn,
    everything,
    law,
    live_ids,
    row,
    rows,
    sqlite_only,
)


class Boom(Exception):
    """Ends a block from inside."""


def dump(sql: Sql) -> dict[str, Any]:
    """Every row of every table."""
    return {table: sorted(map(repr, sql(f"SELECT * FROM {table}"))) for table in metadata.tables}


def work(memory: EpisodicMemory, start: int = 100) -> None:
    """A bit of everything that writes."""
    ids = memory.extend(rows(5, start), domain=["a", "new", "newer", "a", "b"], loss=[1.0, None, 3.0, 0.0, 1e6])
    memory.add(row(7), key="key", tags=("t", "u"), extra=[1], loss=0.25)
    batch = memory.sample(4)
    memory.update(batch, loss=np.linspace(0, 2e6, len(batch)), step=1)
    memory.delete(ids[:2])
    memory.save_checkpoint("inside", {"w": np.arange(4)})
    memory.consolidate(memstore.RetentionPolicy(max_episodes=12))
    memory.configure(capacity=40, alpha=0.9)


@pytest.fixture
def filled(open_memory: OpenMemory) -> EpisodicMemory:
    """Ten episodes with losses 1 to 10."""
    memory = open_memory(capacity=50, strategy=PrioritizedLoss(0.6))
    memory.extend(rows(10), loss=np.arange(1.0, 11.0), domain=["a", "b"] * 5)
    return memory


def test_a_block_is_one_commit(filled: EpisodicMemory, open_memory: OpenMemory, sql: Sql) -> None:
    """Nobody sees anything of it before its end, and everything after; inside, it sees itself."""
    other = open_memory()
    before = dump(sql)
    with filled.transaction() as same:
        assert same is filled
        work(filled)
        assert len(filled) == 12 and filled.capacity == 40
        assert filled.checkpoints() == ["inside"] and "newer" in filled.stats().domain_distribution
        assert filled.check().ok
        assert dump(sql) == before
        assert len(other) == 10 and other.capacity == 50 and other.checkpoints() == []
    assert len(other) == 12 and other.capacity == 40 and other.checkpoints() == ["inside"]
    assert everything(other, live_ids(other)) == everything(filled, live_ids(filled))
    assert other.strategy == filled.strategy == PrioritizedLoss(0.9)


@pytest.mark.parametrize("error", [Boom, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_nothing_remains_of_a_failed_block(filled: EpisodicMemory, sql: Sql, error: type[BaseException]) -> None:
    """Whatever ended it; the exception is the one that was raised."""
    before, state = dump(sql), str(filled.rng.bit_generator.state)
    with pytest.raises(error), filled.transaction():
        work(filled)
        raise error
    assert dump(sql) == before
    assert str(filled.rng.bit_generator.state) == state
    assert len(filled) == 10 and filled.capacity == 50 and filled.checkpoints() == []
    assert filled.check().ok
    assert set(filled.stats().domain_distribution) == {"a", "b"}
    work(filled)
    assert filled.check().ok


def test_private_copies_of_the_strata_are_dropped(filled: EpisodicMemory) -> None:
    """After a rollback draws follow the losses that are stored, not those of the block."""
    before = law(filled)
    with pytest.raises(Boom), filled.transaction():
        filled.update(live_ids(filled), loss=np.geomspace(1e-9, 1e9, 10))
        filled.extend(rows(30, 50), loss=1e3, domain="c")
        assert law(filled) != before
        raise Boom
    assert law(filled) == before
    assert agree(drawn(filled), before)
    assert filled.stats().max_priority == pytest.approx(10, rel=1e-5)


def test_ids_and_domains_of_a_failed_block_are_void(filled: EpisodicMemory, open_memory: OpenMemory) -> None:
    """They are given again, to others: nothing remembers the void ones, the cache included."""
    other = open_memory()
    with pytest.raises(Boom), filled.transaction():
        void = filled.extend(rows(3, 1000), domain="void", key=["x", "y", "z"])
        assert [e.payload["number"] for e in filled.get_many(void)] == [1000, 1001, 1002]
        assert len(filled.sample(13)) == 13
        raise Boom
    for i in void.tolist():
        with pytest.raises(EpisodeNotFound):
            filled.get(i)
    assert other.extend(rows(3, 2000), domain="real", key=["x", "y", "z"]).tolist() == void.tolist()
    for memory in (filled, other):
        assert [e.payload["number"] for e in memory.get_many(void)] == [2000, 2001, 2002]
        assert [e.domain for e in memory.get_many(void)] == ["real"] * 3
        batch = memory.sample(13)
        assert {n for i, n in zip(batch.ids.tolist(), batch["number"].tolist(), strict=True) if i > 10} == {
            2000,
            2001,
            2002,
        }


def test_payloads_read_in_a_failed_block_do_not_reach_the_cache(open_memory: OpenMemory) -> None:
    """Neither through sample, get, recall nor add."""
    memory = open_memory(strategy="uniform")
    memory.add(row(0))
    for attempt in (
        lambda i: memory.sample(10),
        lambda i: memory.get(i),
        lambda i: memory.recall_temporal(0, 1e12),
        lambda i: memory.recall_by_tags(["t"]),
        lambda i: memory.recall(np.zeros(4), on="x"),
        lambda i: None,
    ):
        before = memory.stats().cache["entries"]
        with pytest.raises(Boom), memory.transaction():
            attempt(memory.add(row(66), tags=["t"]))
            raise Boom
        assert memory.stats().cache["entries"] <= before + 1  # the committed one may have been read
        one = memory.add(row(77), tags=["t"])
        assert memory.get(one).payload["number"] == 77
        memory.delete(one)


def test_a_signature_of_a_failed_block_is_void(open_memory: OpenMemory) -> None:
    """The next add chooses anew."""
    memory, other = open_memory(), open_memory()
    with pytest.raises(Boom), memory.transaction():
        memory.add({"a": 1})
        assert memory.signature is not None
        raise Boom
    assert memory.signature is None and other.signature is None
    other.add({"b": "text"})
    assert memory.get(memory.add({"b": "more"})).payload == {"b": "more"}


def test_the_generator_is_rewound_only_by_a_failure(open_memory: OpenMemory) -> None:
    """A block that commits draws as if there were none; a failed one as if it had never been."""
    draws: dict[str, Any] = {}
    for how in ("plain", "blocks", "failures"):
        memory = open_memory(buffer=how)
        memory.extend(rows(40), loss=np.arange(40.0))
        first = live_ids(memory)[0]
        draws[how] = []
        for _ in range(4):
            if how == "failures":
                with pytest.raises(Boom), memory.transaction():
                    memory.sample(9)
                    with memory.transaction():
                        memory.sample(3, strategy="uniform")
                    raise Boom
            if how == "plain":
                draws[how].append((memory.sample(5).ids - first).tolist())
            else:
                with memory.transaction():
                    draws[how].append((memory.sample(5).ids - first).tolist())
    assert draws["plain"] == draws["blocks"] == draws["failures"]


def test_a_failed_call_uses_nothing_of_the_generator(filled: EpisodicMemory) -> None:
    """Alone and inside a block that goes on."""
    state = str(filled.rng.bit_generator.state)
    with pytest.raises(memstore.ConfigError):
        filled.sample(2, strategy=memstore.Mixed({"uniform": 0.5, memstore.DomainBalanced({"absent": 1}): 0.5}))
    assert str(filled.rng.bit_generator.state) == state


# Savepoints


def test_inner_blocks_are_savepoints(filled: EpisodicMemory, sql: Sql) -> None:
    """An inner failure takes only the inner block with it, its draws included; an outer one takes all."""
    with filled.transaction():
        one = filled.add(row(1), key="outer")
        state = str(filled.rng.bit_generator.state)
        with pytest.raises(Boom), filled.transaction():
            two = filled.add(row(2), key="inner", domain="inner")
            filled.sample(5)
            with filled.transaction():
                filled.add(row(3), key="innermost")
            filled.update([one], loss=99.0)
            raise Boom
        assert str(filled.rng.bit_generator.state) == state
        assert filled.get(one).loss is None and two not in filled and len(filled) == 11
        assert filled.add(row(4), key="after") == two
        assert filled.get(two).payload["number"] == 4
    assert [key for (key,) in sql('SELECT "key" FROM episode_key ORDER BY "key"')] == ["after", "outer"]
    with pytest.raises(Boom), filled.transaction():
        with filled.transaction():
            filled.add(row(5))
        raise Boom
    assert len(filled) == 12
    assert set(filled.stats().domain_distribution) == {"a", "b", "default"}


def test_a_refused_call_leaves_the_block_alive(open_memory: OpenMemory) -> None:
    """A refusal is no failure of the block: what came before and after commits."""
    memory = open_memory(capacity=4, eviction="none")
    with memory.transaction():
        memory.extend(rows(3), loss=1.0)
        with pytest.raises(MemoryFull):
            memory.extend(rows(2, 3))
        with pytest.raises(InvalidValue):
            memory.update([1], loss=np.nan)
        with pytest.raises(memstore.PayloadError):
            memory.save_checkpoint("c", {"bad": object()})
        memory.add(row(3), loss=2.0)
    assert live_ids(memory) == [1, 2, 3, 4]
    assert [e.payload["number"] for e in memory.get_many([1, 2, 3, 4])] == [0, 1, 2, 3]


def test_an_empty_block_is_nothing(filled: EpisodicMemory) -> None:
    """And a block that only reads changes nothing."""
    revision = filled.stats().revision
    with filled.transaction():
        pass
    with filled.transaction():
        filled.sample(3)
    assert filled.stats().revision == revision


def test_closing_inside_a_block(open_memory: OpenMemory) -> None:
    """The block still ends as it should: its connection is its own until then."""
    memory = open_memory()
    memory.add(row(0))
    other = open_memory()
    with memory.transaction():
        memory.add(row(1))
        memory.close()
    assert len(other) == 2


# The disk


def grow(memory: EpisodicMemory) -> Any:
    """Add some 200 kB."""
    return memory.extend({"x": np.zeros((50, 4), np.float32), "number": np.arange(50), "blob": [os.urandom(4096)] * 50})


@pytest.fixture
def heavy(open_memory: OpenMemory) -> EpisodicMemory:
    """A memory whose payloads have weight."""
    memory = open_memory(capacity=1000, strategy="uniform")
    memory.extend({"x": np.zeros((3, 4), np.float32), "number": [1, 2, 3], "blob": [b"a", b"b", b"c"]}, loss=1.0)
    return memory


def test_a_full_disk_changes_nothing(heavy: EpisodicMemory, sql: Sql, room: Room) -> None:
    """StoreFull, the data as it was, reads and deletions go on, and writes too once there is room."""
    before = dump(sql)
    room(5)
    with pytest.raises(StoreFull, match="room"):
        grow(heavy)
    with pytest.raises(OSError):
        grow(heavy)
    assert dump(sql) == before
    assert len(heavy) == 3 and len(heavy.sample(3)) == 3
    # On PostgreSQL a trigger of the test's own makes the disk full: the check tells it, and nothing else.
    assert set(heavy.check().problems) <= {"the trigger 'take_room' on 'payload' is not memstore's"}
    assert heavy.update([1, 2], loss=0.5).updated.tolist() == [1, 2]
    assert heavy.delete([1]) == 1
    room(None)
    assert len(grow(heavy)) == 50
    assert len(heavy) == 52 and heavy.check().ok


def test_a_full_disk_at_any_point(heavy: EpisodicMemory, sql: Sql, room: Room) -> None:
    """Wherever in an extend, an update or a checkpoint the room ends: all of it or nothing."""
    outcomes = set()
    for left in range(0, 90, 3):
        before = dump(sql)
        room(left)
        try:
            grow(heavy)
            outcomes.add("written")
            room(None)
            heavy.delete(np.arange(4, 10_000))
            assert live_ids(heavy) == [1, 2, 3]
        except StoreFull:
            outcomes.add("full")
            room(None)
            assert dump(sql) == before
        assert heavy.check().ok
    assert outcomes == {"written", "full"}


@sqlite_only
def test_a_full_disk_ends_the_block(heavy: EpisodicMemory, sql: Sql, room: Room) -> None:
    """The database rolls back itself: everything further in the block fails, its end too, and nothing is committed."""
    before = dump(sql)
    state = str(heavy.rng.bit_generator.state)
    room(5)
    with pytest.raises(TransactionDead), heavy.transaction():
        heavy.update([1], loss=77.0)
        heavy.sample(2)
        heavy.save_checkpoint("c", {"n": 1})
        with pytest.raises(StoreFull):
            grow(heavy)
        for attempt in (
            lambda: heavy.update([1], loss=1.0),
            lambda: heavy.save_checkpoint("c", {}),
            lambda: heavy.sample(1),
            lambda: heavy.get(1),
            lambda: len(heavy),
            lambda: heavy.delete([1]),
            lambda: heavy.transaction().__enter__(),
        ):
            with pytest.raises(TransactionDead, match="nothing of the block"):
                attempt()
    assert dump(sql) == before
    assert str(heavy.rng.bit_generator.state) == state
    room(None)
    with heavy.transaction():
        heavy.update([1], loss=2.0)
        grow(heavy)
    assert heavy.get(1).loss == 2.0 and len(heavy) == 53 and heavy.check().ok


@sqlite_only
def test_a_full_disk_ends_nested_blocks_too(heavy: EpisodicMemory, sql: Sql, room: Room) -> None:
    """Catching the error between the blocks does not bring the outer one back to life."""
    before = dump(sql)
    room(5)
    with pytest.raises(TransactionDead), heavy.transaction():
        heavy.update([1], loss=77.0)
        with pytest.raises(StoreFull), heavy.transaction():
            grow(heavy)
        with pytest.raises(TransactionDead):
            heavy.update([2], loss=1.0)
    assert dump(sql) == before
    room(None)
    with pytest.raises(Boom), heavy.transaction():
        raise Boom
    assert len(grow(heavy)) == 50


def test_the_error_that_ended_a_block_comes_out(heavy: EpisodicMemory, sql: Sql, room: Room) -> None:
    """StoreFull uncaught is StoreFull outside; the next block is alive."""
    room(5)
    with pytest.raises(StoreFull), heavy.transaction():
        grow(heavy)
    room(None)
    with heavy.transaction():
        grow(heavy)
    assert len(heavy) == 53


# Threads, other writers, crashes


def test_another_thread_does_not_see_what_is_not_committed(filled: EpisodicMemory) -> None:
    """Its reads go on, on what is committed; its writes wait for the end."""
    inside, looked = threading.Event(), threading.Event()
    seen: dict[str, Any] = {}

    def look() -> None:
        inside.wait(10)
        seen["len"] = len(filled)
        seen["loss"] = filled.get(1).loss
        seen["contains"] = 11 in filled
        seen["events"] = filled.stats().total_events
        looked.set()
        seen["id"] = filled.add(row(200))
        seen["after"] = len(filled)

    thread = threading.Thread(target=look)
    thread.start()
    with filled.transaction():
        filled.add(row(100))
        filled.update([1], loss=55.0)
        inside.set()
        assert looked.wait(10)
        assert len(filled) == 11
    thread.join(20)
    assert not thread.is_alive()
    assert seen == {"len": 10, "loss": 1.0, "contains": False, "events": 0, "id": 12, "after": 12}


def in_thread(function: Callable[[], Any]) -> Any:
    """What the function returns in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(20)


@pytest.mark.parametrize("fails", [False, True])
def test_a_draw_of_another_thread_does_not_wait(filled: EpisodicMemory, open_memory: OpenMemory, fails: bool) -> None:
    """It sees what is committed and draws from a stream of its own: the block and its end know nothing of it."""
    twin = open_memory()
    state = str(filled.rng.bit_generator.state)
    theirs: list[tuple[int, ...]] = []

    def block(memory: EpisodicMemory, beside: bool) -> list[int]:
        mine = []
        with suppress(Boom), memory.transaction():
            memory.update([3], loss=1e9)
            for _ in range(20):
                mine += memory.sample(3).ids.tolist()
                if beside:
                    theirs.append(tuple(in_thread(lambda: memory.sample(5).ids.tolist())))
            if fails or memory is filled:
                raise Boom
        return mine

    begun = time.monotonic()
    assert block(filled, True) == block(filled, False) == block(twin, False)
    assert time.monotonic() - begun < 5
    assert str(filled.rng.bit_generator.state) == state
    assert (str(twin.rng.bit_generator.state) == state) is fails
    assert len(set(theirs)) > 15, "draws beside a block are alike"
    assert any(3 not in ids for ids in theirs), "what is not committed was seen"


def test_draws_of_threads_share_the_generator(filled: EpisodicMemory) -> None:
    """Where no block is open the stream is the same, whichever thread draws."""
    state = filled.rng.bit_generator.state
    threads = [in_thread(lambda: filled.sample(5).ids.tolist()) for _ in range(5)]
    filled.rng.bit_generator.state = state
    assert [filled.sample(5).ids.tolist() for _ in range(5)] == threads


def test_a_busy_database_is_reported(open_memory: OpenMemory) -> None:
    """After ``busy_timeout``; nothing was written; reads never wait."""
    memory, other = open_memory(), open_memory(busy_timeout=0.2)
    memory.extend(rows(3), loss=1.0)
    with memory.transaction():
        memory.update([1], loss=2.0)
        for attempt in (lambda: other.add(row(9)), lambda: other.transaction().__enter__()):
            with pytest.raises(StoreBusy, match="busy_timeout"):
                attempt()
        with pytest.raises(TimeoutError):
            other.update([1], loss=3.0)
        assert other.get(1).loss == 1.0 and len(other.sample(3)) == 3
    assert other.get(1).loss == 2.0
    assert other.add(row(9)) == 4


def _crash(url: str, key: str, when: str) -> None:
    memory = memstore.open(url)
    with memory.transaction():
        memory.add(row(5), key=key, loss=1.0)
        if when == "before":
            os._exit(3)
    os._exit(3)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_retry_after_a_crash_inserts_once(open_memory: OpenMemory, url: str, when: str) -> None:
    """Whether the crash came before or after the commit, which the caller cannot know."""
    memory = open_memory(capacity=2, eviction="fifo")
    memory.add(row(0))
    process = FRESH.Process(target=_crash, args=(url, "ep-1", when))
    process.start()
    process.join(60)
    assert process.exitcode == 3
    assert len(memory) == (1 if when == "before" else 2)
    one = memory.add(row(5), key="ep-1", loss=1.0)
    assert one == 2 and memory.add(row(5), key="ep-1", loss=9.0) == one
    assert len(memory) == 2 and memory.get(one).loss == 1.0
    memory.extend(rows(2, 10))
    assert one not in memory
    assert memory.add(row(5), key="ep-1") == one and one not in memory  # evicted: still a no-op
    assert memory.stats().total_inserted == 4


def test_a_key_of_the_reservoir_is_known_though_it_never_entered(open_memory: OpenMemory) -> None:
    """A retry is no second ticket."""
    memory = open_memory(capacity=5, eviction="reservoir", strategy="uniform")
    ids = memory.extend(rows(200), key=[f"k{i}" for i in range(200)])
    kept = live_ids(memory)
    assert memory.extend(rows(200), key=[f"k{i}" for i in range(200)]).tolist() == ids.tolist()
    assert live_ids(memory) == kept and memory.stats().total_inserted == 200


def test_a_database_left_in_the_middle_of_a_block_is_sound(open_memory: OpenMemory, url: str) -> None:
    """A process that dies inside a block leaves nothing behind, not even a lock."""
    memory = open_memory()
    memory.add(row(0))
    for _ in range(3):
        process = FRESH.Process(target=_crash, args=(url, "k", "before"))
        process.start()
        process.join(60)
    assert len(memory) == 1 and memory.check().ok
    assert memory.add(row(1)) == 2


def test_ids_of_keys(open_memory: OpenMemory) -> None:
    memory = open_memory(capacity=2, eviction="fifo")
    memory.extend(rows(3), key=["a", None, "c"])
    assert memory.ids_of(["c", "never", "a", "c"]) == [3, None, 1, 3]
    assert 1 not in memory, "known, though it has left"
    assert open_memory(buffer="other").ids_of(["a"]) == [None]
    assert memory.ids_of([]) == []
    hostile = ["'; DROP TABLE episode; --", "%", "a\u0301"]
    assert memory.ids_of(hostile) == [None] * 3
    with memory.transaction():
        memory.add(row(4), key="d")
        assert memory.ids_of(["d"]) == [4]
    for bad in ("a", [""], [3]):
        with pytest.raises((InvalidValue, memstore.ConfigError)):
            memory.ids_of(bad)  # type: ignore[arg-type]


def test_transaction_depth(open_memory: OpenMemory) -> None:
    memory = open_memory()
    depths = [memory.transaction_depth]
    with memory.transaction():
        memory.add(row(1))
        depths.append(memory.transaction_depth)
        with memory.transaction():
            depths.append(memory.transaction_depth)
        depths.append(memory.transaction_depth)
    assert [*depths, memory.transaction_depth] == [0, 1, 2, 1, 0]
