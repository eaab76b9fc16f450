"""The fold: tables come to the end of the log, what is drawn stays the same, and a crash at any point does no harm."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

import memstore
from memstore import EpisodicMemory, History
from memstore.buffer import folding
from memstore.buffer.blocks.rows import read_heads
from memstore.buffer.snapshot import Snapshot
from memstore.storage.schema import (
    episode,
    episode_tag,
    event_group,
    payload,
    replay_event,
    replay_metadata,
)
from tests.buffer.model import same_heads
from tests.support.helpers import FRESH, OpenMemory
from tests.support.logs import act, contents, followed, loaded, undone

HALF = History(record=0.5)


def problems(memory: EpisodicMemory) -> list[str]:
    """What distinguishes the tables from the blocks, and from what the fold promises."""

    def work(snapshot: Snapshot) -> list[str]:
        found = []
        rows, conn = snapshot.scan(), snapshot.conn
        m = replay_metadata.c
        columns = (m.episode_id, m.loss, m.lowest_loss, m.replay_count, m.last_event_id, m.last_replayed_at)
        described = [tuple(row) for row in conn.execute(select(*columns).order_by(m.episode_id))]
        reals = [[None if x != x else x for x in of.tolist()] for of in (rows.loss, rows.lowest, rows.last_replayed_at)]
        events = [number or None for number in rows.last_event.tolist()]
        ids = rows.ids.tolist()
        if described != list(zip(ids, *reals[:2], rows.replay_count.tolist(), events, reals[2], strict=True)):
            found.append("replay metadata")
        keys = (episode.c.id, payload.c.episode_id)
        found += [f"rows of {key.table.name}" for key in keys if conn.scalars(select(key).order_by(key)).all() != ids]
        if set(conn.scalars(select(episode_tag.c.episode_id)).all()) - set(ids):
            found.append("tags")
        for table in (replay_event, event_group):
            if conn.scalar(select(func.count()).where(table.c.unrecorded.is_not(None))):
                found.append(f"unrecorded rows of {table.name}")
            if (conn.scalar(select(func.min(table.c.id))) or 2**60) <= snapshot.state.counters.history_from:
                found.append(f"forgotten rows of {table.name}")
        state = snapshot.state
        heads = read_heads(conn, snapshot.backend, state.buffer_id)
        if heads["token"].tolist() != state.rows["token"].tolist() or (heads["token"] == 0).any():
            found.append("rows of blocks")
        if not state.counters.is_folded or state.counters.stored != state.counters.head:
            found.append("points")
        return found

    return memory._session.read(work)


def grown(memory: EpisodicMemory, turns: int = 6, seed: int = 1) -> None:
    """Let things happen."""
    rng = np.random.default_rng(seed)
    for _ in range(turns):
        memory.extend({"x": rng.random((9, 2))}, domain=[f"d{of}" for of in rng.integers(0, 3, 9)], tags=[["t"]] * 9)
        memory.update(rng.integers(1, 60, 20), loss=rng.lognormal(0, 2, 20))
        memory.delete(rng.integers(1, 60, 3))


@pytest.mark.parametrize(
    "settings",
    [{"capacity": 20}, {"capacity": 20, "history": HALF}, {"max_replays": 2, "history": None}],
    ids=["complete", "half", "off"],
)
def test_tables_are_at_the_end_of_the_log(settings: dict[str, Any], open_memory: OpenMemory, small_blocks: int) -> None:
    memory, other = open_memory(**settings), open_memory()
    for turn in range(3):
        grown(memory, seed=turn)
        assert len(problems(memory)) > 2
        before = contents_of(memory)
        with memstore.testing.counting() as counts:
            assert memory.fold() > 50
        assert counts.folds == 1
        assert problems(memory) == []
        assert contents_of(memory) == before
        assert followed(other) == loaded(other) == followed(memory)
        assert memory.fold() == 0


def contents_of(memory: EpisodicMemory) -> list[bytes]:
    return memory._session.read(lambda snapshot: contents(snapshot.state.blocks))


def test_pruned_events_go_with_the_fold(open_memory: OpenMemory) -> None:
    memory = open_memory(history=History(max_events=64))
    memory.extend({"x": np.arange(10)}, loss=1.0)
    for turn in range(20):
        memory.update(np.arange(1, 11), loss=float(turn))
    assert memory._session.committed.counters.history_from >= 60
    memory.fold()
    assert problems(memory) == []


@pytest.mark.parametrize("eviction", ["fifo", "lowest_loss", "reservoir"])
def test_nothing_drawn_depends_on_folds(eviction: str, open_memory: OpenMemory, tmp_path: Any) -> None:
    """One program has two handles that fold now and then; the other one never folds, and has no cache."""
    settings: dict[str, Any] = {"capacity": 60, "eviction": eviction, "seed": 3}
    memory, helper = open_memory(**settings), open_memory()
    with memstore.open(tmp_path / "alone.db", cache_bytes=0, **settings) as alone:
        rng, its = np.random.default_rng(5), np.random.default_rng(5)
        for turn in range(12):
            for of, random in ((memory, rng), (alone, its)):
                of.extend({"x": random.random((9, 2))}, loss=random.lognormal(0, 2, 9))
                batch = of.sample(8)
                of.update(batch, loss=random.lognormal(0, 2, len(batch)))
            if turn % 3 == 1:
                (memory, helper)[turn % 2].fold()
            one, other = (of.sample(16, exact_probability=True) for of in (memory, alone))
            assert one.ids.tolist() == other.ids.tolist()
            assert one.probability is not None and other.probability is not None
            assert one.probability.tobytes() == other.probability.tobytes()
        assert memory.rng.bit_generator.state == alone.rng.bit_generator.state
        heads, its_heads = (of._session.read(lambda s: s.state.blocks.heads) for of in (memory, alone))
        assert same_heads(heads, its_heads)


def test_blocks_are_merged_where_the_log_crosses_the_point(
    open_memory: OpenMemory, small_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nowhere else: a fold on request merges nothing, whoever makes it."""
    for name, value in (("SMALLEST_WINDOW", 60), ("LARGEST_WINDOW", 60), ("ENTRIES_AN_EPISODE", 0)):
        monkeypatch.setattr(folding, name, value)
    memory, other = open_memory(capacity=1000), open_memory()
    memory.extend({"x": np.arange(32)}, loss=1.0)
    start = memory._session.committed.counters.fold_at
    memory.delete(np.arange(1, 33)[np.arange(32) % 4 > 0])
    other.fold()
    assert blocks_of(memory) == blocks_of(other) == 8
    with memstore.testing.counting() as counts:
        while memory._session.committed.counters.log_length < start:
            assert counts.folds == 0 and blocks_of(memory) == 8
            memory.update([1, 5], loss=2.0)
    assert counts.folds == 1
    assert blocks_of(memory) == blocks_of(other) == 4
    assert memory._session.committed.counters.fold_at == memory._session.committed.counters.log_length + 60
    assert problems(memory) == problems(other) == []


def blocks_of(memory: EpisodicMemory) -> int:
    return memory._session.read(lambda snapshot: len(snapshot.state.blocks))


def test_many_waiting_bytes_bring_a_fold(open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folding, "WAITING_BYTES", 5000)
    memory = open_memory(capacity=1000)
    with memstore.testing.counting() as counts:
        for _ in range(16):
            memory.add({"x": np.zeros(100)})
    assert counts.folds == 1 + 2, "at the first write, and after each seventh of 800 bytes"
    assert memory._session.committed.counters.waiting_bytes < 5000


@pytest.mark.parametrize("change", [{"alpha": 2.0}, {"eviction": "lowest_loss"}])
def test_another_law_is_stored_at_once(change: dict[str, Any], open_memory: OpenMemory) -> None:
    memory, other = open_memory(strategy="prioritized_loss", eviction="fifo"), open_memory()
    grown(memory)
    followed(other)
    memory.configure(**change)
    memory.update([1, 2], loss=3.0)
    assert followed(other) == loaded(other) == followed(memory)
    stored = memory._session.committed
    assert stored.counters.stored_logged > 0 and not stored.counters.is_folded
    assert memory.sample(9).ids.tolist() == open_memory().sample(9).ids.tolist() or change == {
        "eviction": "lowest_loss"
    }


@pytest.mark.parametrize("cache_bytes", [0, 30_000])
def test_more_blocks_than_the_cache_holds_are_stored(
    cache_bytes: int, open_memory: OpenMemory, small_blocks: int
) -> None:
    memory, other = open_memory(capacity=500, cache_bytes=cache_bytes), open_memory()
    rng = np.random.default_rng(2)
    memory.extend({"x": rng.random((100, 2))}, loss=rng.random(100))
    memory.fold()
    early = 0
    for _ in range(8):
        memory.update(rng.integers(1, 101, 2), loss=rng.random(2))
        waiting = memory._session.read(lambda snapshot: int((snapshot.state.blocks.heads["token"] == 0).sum()))
        assert waiting <= memory._session.contents
        assert followed(other) == loaded(other) == followed(memory)
        counters = memory._session.committed.counters
        assert counters.folded_logged == 0
        early += counters.stored == counters.head
    assert early == 8 if cache_bytes == 0 else 1 <= early <= 3


def test_a_fold_that_is_rolled_back(open_memory: OpenMemory, small_blocks: int) -> None:
    memory, other = open_memory(capacity=30, history=HALF), open_memory()
    rng = np.random.default_rng(4)
    grown(memory, 3)
    for _ in range(3):
        before = followed(memory)
        with pytest.raises(ZeroDivisionError), memory.transaction():
            undone(memory, rng)
            memory.fold()
            assert problems(memory) == []
            memory.update([5], loss=1.0)
            raise ZeroDivisionError
        assert followed(memory) == before == followed(other) == loaded(other)
        undone(memory, rng)
        assert followed(memory) == followed(other) == loaded(other)
        grown(memory, 1)
    memory.fold()
    assert problems(memory) == []


STEPS = ("_store", "_touched", "_delete_departed", "_forget", "write_counters")


@pytest.mark.parametrize("step", STEPS)
def test_a_fold_that_fails(
    step: str, open_memory: OpenMemory, small_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, other = open_memory(capacity=30, history=HALF), open_memory()
    grown(memory)
    before = followed(other)
    with monkeypatch.context() as patch:
        fails_after(step, patch)
        with pytest.raises(ZeroDivisionError):
            memory.fold()
    assert followed(memory) == before == loaded(other)
    grown(other, 1)
    assert followed(memory) == followed(other) == loaded(other)
    memory.fold()
    assert problems(memory) == []


def fails_after(step: str, patch: pytest.MonkeyPatch) -> None:
    """Let the fold end behind this step."""
    function = getattr(folding, step)

    def failing(*given: Any) -> Any:
        result = function(*given)
        raise ZeroDivisionError(result)

    patch.setattr(folding, step, failing)


def die_within(url: str, step: str) -> None:
    """In another process: fold, and end at once behind this step."""
    function = getattr(folding, step)

    def dying(*given: Any) -> None:
        function(*given)
        os._exit(17)

    setattr(folding, step, dying)
    memstore.open(url).fold()


@pytest.mark.parametrize("step", ["_delete_departed", "write_counters"])
def test_a_process_that_dies_within_a_fold(step: str, url: str, open_memory: OpenMemory, small_blocks: int) -> None:
    memory = open_memory(capacity=30, history=HALF)
    grown(memory, 2)
    before = followed(memory)
    process = FRESH.Process(target=die_within, args=(url, step))
    process.start()
    process.join(60)
    assert process.exitcode == 17
    assert followed(memory) == before == loaded(memory)
    memory.fold()
    assert problems(memory) == []


def test_two_handles_fold_in_turns(open_memory: OpenMemory, small_blocks: int) -> None:
    rng = np.random.default_rng(6)
    handles = [open_memory(capacity=30, history=HALF), open_memory(cache_bytes=0)]
    for turn in range(16):
        for _ in range(2):
            act(handles[int(rng.integers(2))], rng)
        handles[turn % 2].fold()
        assert problems(handles[turn % 2]) == problems(handles[1 - turn % 2]) == []
        assert followed(handles[0]) == followed(handles[1])
