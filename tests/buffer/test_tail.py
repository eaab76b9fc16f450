"""The tail of the log: who follows it has what a process has that opens the buffer; a damaged log is noticed."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

import memstore
from memstore import History
from memstore.buffer import folding
from memstore.buffer.snapshot import Snapshot
from memstore.buffer.tail import NO_COUNT, Newcomers, Point, Tail
from memstore.errors import StoreCorrupt
from memstore.storage.schema import replay_event
from tests.support.helpers import Damage, OpenMemory
from tests.support.logs import SHARES, act, followed, loaded, store_blocks

SETTINGS: dict[str, dict[str, Any]] = {
    "fifo": {"capacity": 40, "eviction": "fifo"},
    "lowest_loss": {"capacity": 40, "eviction": "lowest_loss", "history": History(record=0.5)},
    "reservoir": {"capacity": 30, "eviction": "reservoir", "history": None},
    "exhausted": {"capacity": 200, "max_replays": 2, "history": History(max_events=20)},
}


@pytest.fixture(params=[24, 10**6], ids=["folds", "no folds"])
def window(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The log crosses the point of the fold after so many entries."""
    monkeypatch.setattr(folding, "SMALLEST_WINDOW", request.param)
    monkeypatch.setattr(folding, "LARGEST_WINDOW", request.param)
    monkeypatch.setattr(folding, "ENTRIES_AN_EPISODE", 0)
    return int(request.param)


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_a_follower_has_what_a_fresh_load_has(
    settings: dict[str, Any], window: int, open_memory: OpenMemory, small_blocks: int
) -> None:
    """Bit for bit, whether it follows every write or a few of them, and whoever folds or stores blocks between."""
    rng = np.random.default_rng(window)
    one, other = open_memory(**settings), open_memory(cache_bytes=0)
    seldom, closely = open_memory(), open_memory(cache_bytes=20_000)
    for turn, what in enumerate(["extend", *SHARES, *[None] * 30]):
        writer = one if rng.random() < 0.6 else other
        act(writer, rng, what)
        expected = followed(writer)
        assert followed(closely) == expected
        if turn % 6 == 5:
            assert followed(seldom) == followed(one) == followed(other) == loaded(closely) == expected
    assert one._session.committed.counters.departed > 10


def tail_of(memory: Any) -> Tail:
    """Everything in the log."""
    head: Point = memory._session.committed.counters.head
    tail: Tail = memory._session.read(lambda s: Tail.read(s.conn, s.backend, s.state.buffer_id, Point(0, 0, 0), head))
    return tail


def test_the_tail_holds_what_happened(open_memory: OpenMemory) -> None:
    memory = open_memory(capacity=4, eviction="fifo", history=History(record=0.5))
    memory.extend({"x": np.arange(4)}, domain=["a", "b", "a", "b"], loss=[1.0, None, 3.0, 0.0])
    memory.update([3, 1, 3], loss=[5.0, 2.0, 4.0])
    memory.add({"x": 9}, domain="c")
    tail = tail_of(memory)
    assert tail.newcomers.ids.tolist() == [1, 2, 3, 4, 5]
    assert tail.newcomers.domains.tolist() == [1, 2, 1, 2, 3]
    np.testing.assert_array_equal(tail.newcomers.loss, [1.0, np.nan, 3.0, 0.0, np.nan])
    events = tail.events
    assert events.ids.tolist() == [1, 2, 3, 4]
    assert sorted(events.episodes.tolist()) == [1, 1, 3, 3]
    assert events.ends.sum() == 1 and events.episodes[events.ends].tolist() == [1]
    assert events.count[events.episodes == 3].tolist() == [1, 2]
    assert events.loss[events.episodes == 3].tolist() == [5.0, 4.0]


def test_newcomers_that_left_again(open_memory: OpenMemory) -> None:
    """A follower adds them and takes them out, so blocks have the same structure as those of the writer."""
    memory, other = open_memory(capacity=5, eviction="fifo"), open_memory()
    followed(other)
    memory.extend({"x": np.arange(23)}, loss=np.arange(23.0))
    memory.update([21, 22, 3], loss=[7.0, 8.0, 9.0])
    memory.extend({"x": np.arange(4)}, loss=np.arange(4.0))
    assert followed(other) == followed(memory) == loaded(other)
    assert sorted(other.sample(5, strategy="uniform").ids.tolist()) == [23, 24, 25, 26, 27]


def test_newcomers_that_a_reservoir_turned_away(open_memory: OpenMemory) -> None:
    memory, other = open_memory(capacity=5, eviction="reservoir"), open_memory()
    memory.extend({"x": np.arange(5)}, loss=1.0)
    before = followed(other)[1]
    memory.extend({"x": np.arange(200)}, loss=1.0)
    assert followed(other) == followed(memory) == loaded(other)
    events = tail_of(memory).events
    away = events.count == NO_COUNT
    assert away.sum() > 100 and events.ends[away].all()
    assert before.inserted == 5 and followed(other)[1].inserted == 205
    assert len(memory) == 5


def test_chains_lead_over_unrecorded_events(open_memory: OpenMemory) -> None:
    """The previous event, and the last one in a slot, are recorded ones."""
    memory, other = open_memory(capacity=50, history=History(record=0.5)), open_memory()
    rng = np.random.default_rng(3)
    memory.extend({"x": np.arange(20)})
    for turn in range(6):
        memory.update(rng.integers(1, 21, 30), loss=rng.random(30))
        if turn == 3:
            memory.fold()

    def work(snapshot: Snapshot) -> tuple[dict[int, int], dict[int, list[int]], dict[int, int | None]]:
        v = replay_event.c
        rows = snapshot.conn.execute(select(v.id, v.episode_id, v.previous_id, v.unrecorded).order_by(v.id)).all()
        recorded: dict[int, list[int]] = {}
        previous: dict[int, int | None] = {}
        for number, of, before, unrecorded in rows:
            expected = recorded.get(of, [None])[-1]
            assert before == expected, "the previous recorded event"
            if unrecorded is None:
                recorded.setdefault(of, []).append(number)
            previous[number] = before
        found = snapshot.scan()
        return dict(zip(found.ids.tolist(), found.last_event.tolist(), strict=True)), recorded, previous

    heads, recorded, previous = other._session.read(work)
    assert 40 < sum(map(len, recorded.values())) < len(previous)
    assert heads == {number: recorded.get(number, [0])[-1] for number in range(1, 21)}


DAMAGE = [
    "DELETE FROM replay_event WHERE id = 3",
    "UPDATE replay_event SET loss_after = 0.25 WHERE id = 3",
    "UPDATE replay_event SET loss_after = CASE id WHEN 3 THEN 13.0 ELSE 12.0 END WHERE id IN (3, 4)",
    "UPDATE replay_event SET episode_id = 4 WHERE id = 3",
    "UPDATE replay_event SET nth = nth + 1 WHERE id = 3",
    "UPDATE replay_event SET previous_id = 1 WHERE id = 3",
    "UPDATE replay_event SET domain_id = 2 WHERE id = 3",
    "UPDATE replay_event SET ends = 1 WHERE id = 3",
    "UPDATE replay_event SET unrecorded = 1 WHERE id = 3",
    "UPDATE replay_event SET loss_after = NULL WHERE id = 3",
    "UPDATE replay_event SET id = 99 WHERE id = 6",
    "UPDATE event_group SET at = at + 1 WHERE id = 1",
    "DELETE FROM event_group WHERE id = 1",
    "DELETE FROM episode WHERE id = 9",
    "UPDATE episode SET loss_at_add = NULL WHERE id = 9",
    "UPDATE episode SET loss_at_add = CASE id WHEN 8 THEN 8.0 ELSE 7.0 END WHERE id IN (8, 9)",
    "UPDATE episode SET loss_at_add = -1 WHERE id = 9",
    "UPDATE episode SET domain_id = 2 WHERE id = 9",
    "UPDATE buffer SET log_sum = log_sum + 1",
    "UPDATE buffer SET block_sum = block_sum + 1",
    "UPDATE buffer SET stored_sum = stored_sum + 1",
]


@pytest.mark.parametrize("statement", DAMAGE)
def test_a_damaged_log_is_noticed(statement: str, open_memory: OpenMemory, damage: Damage) -> None:
    """By who follows, and by who opens the buffer; two rows that have changed places are damage too."""
    memory, other = open_memory(capacity=100), open_memory()
    memory.extend({"x": np.arange(6)}, domain="a", loss=np.arange(6.0))
    memory.fold()
    followed(other)
    memory.extend({"x": np.arange(6)}, domain=["a", "a", "a", "a", "b", "b"], loss=np.arange(6.0, 12.0))
    memory.update([1, 2, 3, 4, 5, 1], loss=[10.0, 11.0, 12.0, 13.0, 14.0, 15.0])
    damage(statement)
    for reads in (other.stats, open_memory):
        with pytest.raises(StoreCorrupt):
            reads()


def test_who_knows_the_log_to_its_end_goes_on(open_memory: OpenMemory, damage: Damage) -> None:
    """Each entry is read once: what happens to its row later concerns those that have not read it."""
    memory = open_memory(capacity=100)
    memory.extend({"x": np.arange(6)}, loss=np.arange(6.0))
    memory.update([1, 2], loss=[10.0, 11.0])
    damage("UPDATE replay_event SET loss_after = 0.25 WHERE id = 1")
    assert memory.get(1).loss == 10.0


def test_sums_of_entries_do_not_depend_on_their_order() -> None:
    rng = np.random.default_rng(1)
    count = 50
    facts = rng.integers(0, 2**32, count)
    entries = Newcomers(np.arange(1, count + 1), rng.integers(1, 5, count), rng.random(count), facts)
    point = Point(0, 0, 0).moved(entries.checksums(), inserted=count)
    split = rng.random(count) < 0.5
    parts = Point(0, 0, 0)
    for which in (~split, split):
        part = entries.take(which)
        parts = parts.moved(part.checksums(), inserted=len(part))
    assert parts == point
    for at in range(1, count):
        loss = entries.loss.copy()
        loss[[0, at]] = loss[[at, 0]]
        other = Newcomers(entries.ids, entries.domains, loss, facts)
        assert Point(0, 0, 0).moved(other.checksums(), inserted=count) != point, "losses that changed places"


def test_what_was_stored_early_is_followed(open_memory: OpenMemory, small_blocks: int) -> None:
    """The rows of blocks stand at a later point than the tables; a follower that was behind reads the changed ones."""
    memory, other = open_memory(capacity=100), open_memory()
    memory.extend({"x": np.arange(40)}, domain=["a", "b"] * 20, loss=np.arange(40.0))
    memory.fold()
    followed(other)
    memory.update([5, 6], loss=[1.0, 2.0])
    store_blocks(memory)
    memory.update([6, 30], loss=[3.0, 4.0])
    counters = memory._session.committed.counters
    assert (counters.folded_logged, counters.stored_logged, counters.logged) == (0, 2, 4)
    assert followed(other) == followed(memory) == loaded(other)
    assert [memory.get(i).loss for i in (5, 6, 30)] == [other.get(i).loss for i in (5, 6, 30)] == [1.0, 3.0, 4.0]


def test_a_log_that_was_forgotten_within_a_group_is_loaded_anew(path: str, tmp_path: Path) -> None:
    """The group of an event begins before the point that the follower knows, in a log that is no longer the same."""
    with memstore.open(path, seed=1) as memory:
        memory.extend({"x": np.arange(8)}, loss=1.0)
        memory.update([1, 2], loss=[2.0, 3.0])
    saved = str(tmp_path / "saved.db")
    shutil.copyfile(path, saved)
    with memstore.open(path, seed=1) as memory:
        memory.update([3, 4, 5], loss=[4.0, 5.0, 6.0])
        with closing(sqlite3.connect(saved)) as old, closing(sqlite3.connect(path)) as now:
            old.backup(now)
        with memstore.open(path, seed=1) as other:
            other.update([8, 7, 6, 5, 4, 3, 2], loss=np.arange(7.0))
            other.update([1], loss=[9.0])
            other.update([1], loss=[10.0])
            assert followed(memory) == loaded(memory) == followed(other)
            assert memory.get(3).loss == 5.0
