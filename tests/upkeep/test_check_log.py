"""``check`` compares blocks, tables, log and counters: each part of it is shown to find its fault.

All checksums are computed anew after each change. So only the comparison of one part with another can find it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing, suppress
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, text

import memstore
from memstore.buffer import folding
from memstore.buffer.blocks.slots import AT, COUNT, EVENT, ID, LOSS, LOWEST, Ints
from memstore.cli import main
from memstore.storage.address import parse_url
from memstore.storage.backends import old_readers
from memstore.storage.database import Database
from tests.support.helpers import OpenMemory, Sql, postgres_only
from tests.support.resealed import Row, change_block, described, reseal_log, set_counters


def grow(memory: memstore.EpisodicMemory, rng: np.random.Generator, turns: int) -> None:
    """Adds, evictions, replays (one twice in a batch) and deletions."""
    for turn in range(turns):
        loss = [None if i % 4 == 0 else float(rng.random()) for i in range(8)]
        memory.extend({"x": rng.random(8)}, domain=[f"d{i % 3}" for i in range(8)], loss=loss, tags=[("t",)] * 8)
        ids = memory.sample(6).ids
        memory.update(np.append(ids, ids[:2]), loss=rng.random(8) + 0.5, step=turn)
    memory.delete(memory.sample(2, strategy="uniform").ids)


@pytest.fixture
def memory(open_memory: OpenMemory, damage: Any) -> memstore.EpisodicMemory:
    """A memory with a log before the fold, and with a log after it."""
    memory = open_memory(capacity=60)
    rng = np.random.default_rng(5)
    grow(memory, rng, 9)
    memory.fold()
    grow(memory, rng, 3)
    return memory


def test_what_is_sound_is_sound(url: str, memory: memstore.EpisodicMemory) -> None:
    assert memory.check().ok, memory.check().problems
    assert memstore.opening.examine(url, "default").ok


Reseal = Callable[[], None]


@pytest.fixture
def reseal(url: str, engine: Engine) -> Reseal:
    """Computes the checksums of the log anew."""

    def work() -> None:
        with closing(Database(parse_url(url))) as database, engine.begin() as conn:
            reseal_log(conn, database.backend, 1)

    return work


def told(memory: memstore.EpisodicMemory, url: str, *parts: str) -> bool:
    """True if one finding has all of these parts, in a process that opens the buffer now or cannot do so."""
    lines = memstore.opening.examine(url, "default").problems
    assert any(all(part in line for part in parts) for line in lines), lines
    return True


def counter(engine: Engine, name: str) -> int:
    with engine.begin() as conn:
        return int(conn.execute(text(f"SELECT {name} FROM buffer WHERE id = 1")).scalar_one())


COUNTERS = {
    "inserted": (1, "by the counters of adds and departures"),
    "departed": (1, "by the counters of adds and departures"),
    "domains": (1, "names of 3 domains only"),
    "live_replays": (1, "replays of live episodes"),
    "recorded": (1, "events were recorded"),
    "logged": (1, "would be the next"),
    "log_sum": (1, "the log since the blocks were stored is not"),
    "stored_sum": (1, "the log since the blocks were stored is not"),
    "stored_logged": (1, "the log since the blocks were stored is not"),
    "stored_inserted": (1, "the log since the blocks were stored is not"),
    "block_sum": (1, "the rows of blocks are not those"),
    "folded_logged": (9, "not in order"),
    "folded_inserted": (-1, "before the fold"),
    "waiting_bytes": (1, "payloads since the fold have"),
    "history_from": (1, "in part only"),
    "fold_at": (-8000, "should have been merged"),
    "events": (-3, "more replays"),
}


@pytest.mark.parametrize("name", COUNTERS)
def test_each_counter_agrees_with_what_it_counts(
    url: str, memory: memstore.EpisodicMemory, engine: Engine, name: str
) -> None:
    change, words = COUNTERS[name]
    value = counter(engine, name)
    with engine.begin() as conn:
        set_counters(conn, 1, **{name: value + change})
    assert told(memory, url, words)


def test_the_largest_priority_is_that_of_a_measured_one(url: str, memory: Any, engine: Engine) -> None:
    with engine.begin() as conn:
        set_counters(conn, 1, high_water=0.25)
    assert told(memory, url, "largest priority")


# An episode that came before the fold, is live, and was not replayed since.
QUIET = (
    "(SELECT min(m.episode_id) FROM replay_metadata AS m, buffer AS b WHERE m.replay_count > 0 AND m.loss > 0 AND NOT "
    "EXISTS (SELECT 1 FROM replay_event AS v WHERE v.episode_id = m.episode_id AND v.id > b.folded_logged))"
)
# An episode that left before the fold.
GONE = "(SELECT min(v.episode_id) FROM replay_event AS v, buffer AS b WHERE v.ends = 1 AND v.id <= b.folded_logged)"
TABLES = {
    "loss": (f"UPDATE replay_metadata SET loss = loss * 1.5 WHERE episode_id = {QUIET}", "another loss"),
    "lowest": (
        f"UPDATE replay_metadata SET lowest_loss = loss * 0.1 WHERE episode_id = {QUIET}",
        "another lowest loss",
    ),
    "count": (
        f"UPDATE replay_metadata SET replay_count = replay_count + 1 WHERE episode_id = {QUIET}",
        "another number of replays",
    ),
    "time": (
        f"UPDATE replay_metadata SET last_replayed_at = last_replayed_at + 1 WHERE episode_id = {QUIET}",
        "another time of the last replay",
    ),
    "last event": (
        f"UPDATE replay_metadata SET last_event_id = last_event_id - 1 WHERE episode_id = {QUIET}",
        "another last event",
    ),
    "lowest of a replayed one": (
        "UPDATE replay_metadata SET lowest_loss = 0.0 WHERE loss > 0 AND episode_id = (SELECT max(episode_id) FROM "
        "replay_metadata WHERE replay_count > 0)",
        "another lowest loss",
    ),
    "no metadata": (f"DELETE FROM replay_metadata WHERE episode_id = {QUIET}", "have no replay metadata"),
    "metadata too early": (
        "INSERT INTO replay_metadata (episode_id, buffer_id, replay_count) SELECT inserted, 1, 0 FROM buffer",
        "before the fold",
    ),
    "orphan": (
        f"INSERT INTO replay_metadata (episode_id, buffer_id, replay_count) SELECT {GONE}, 1, 0",
        "orphans in table replay_metadata",
    ),
    "orphan of a payload": (
        f"INSERT INTO payload (episode_id, crc32, data) SELECT {GONE}, crc32, data FROM payload LIMIT 1",
        "orphans in table payload",
    ),
    "orphan of a tag": (
        f"INSERT INTO episode_tag (buffer_id, tag, episode_id, ordinal) SELECT 1, 't', {GONE}, 0",
        "orphans in table episode_tag",
    ),
    "no payload": (f"DELETE FROM payload WHERE episode_id = {QUIET}", "have no row in table payload"),
    "no facts": (f"DELETE FROM episode WHERE id = {QUIET}", "have no row in table episode"),
    "domain": (
        f"UPDATE episode SET domain_id = domain_id % 3 + 1, checksum = NULL WHERE id = {QUIET}",
        "another domain",
    ),
    "infinite": (f"UPDATE replay_metadata SET loss = 9e999 WHERE episode_id = {QUIET}", "infinite or negative"),
    "negative": (f"UPDATE replay_metadata SET loss = -1.0 WHERE episode_id = {QUIET}", "infinite or negative"),
    "loss at add of a replayed one": (
        "UPDATE episode SET loss_at_add = 7.5 WHERE id = (SELECT max(episode_id) FROM replay_metadata WHERE "
        "replay_count > 0)",
        "another loss at their add",
    ),
    "loss at add of another": (
        "UPDATE episode SET loss_at_add = 7.5 WHERE id = (SELECT max(episode_id) FROM replay_metadata WHERE "
        "replay_count = 0)",
        "another loss at their add",
    ),
    "loss at add is gone": (
        "UPDATE episode SET loss_at_add = NULL WHERE id = (SELECT max(e.id) FROM episode AS e, replay_metadata AS m "
        "WHERE m.episode_id = e.id AND e.loss_at_add > 0)",
        "another loss at their add",
    ),
    "tally's replays": ("UPDATE replay_tally SET replays = replays + 1 WHERE slot = 1", "tally"),
    "tally's losses": ("UPDATE replay_tally SET loss_sum = loss_sum + 1e-9 WHERE slot = 1", "tally"),
    "tally's steps": ("UPDATE replay_tally SET last_step = last_step + 1 WHERE slot = 1", "tally"),
    "tally's times": ("UPDATE replay_tally SET last_at = last_at + 1 WHERE slot = 1", "tally"),
    "a tally is gone": ("DELETE FROM replay_tally WHERE slot = 1 AND domain_id = 1", "tally"),
}


def changed(engine: Engine, statement: str) -> None:
    """Run a statement that changes something."""
    with engine.begin() as conn:
        if conn.dialect.name == "postgresql":
            statement = statement.replace("9e999", "'Infinity'::float8")
        assert conn.execute(text(statement)).rowcount > 0


@pytest.mark.parametrize("what", TABLES)
def test_tables_with_the_log_over_them_are_the_blocks(
    url: str, memory: memstore.EpisodicMemory, engine: Engine, what: str
) -> None:
    statement, words = TABLES[what]
    changed(engine, statement)
    assert told(memory, url, words)


# Events after the fold; the number of the first one of a group of replays of several episodes, and of a departure.
WINDOW = "(SELECT max(id) FROM event_group WHERE what = 'replayed')"
DEPARTURE = "(SELECT max(v.id) FROM replay_event AS v WHERE v.ends = 1)"
LATER = "(SELECT max(v.id) FROM replay_event AS v WHERE v.nth > 1 AND v.previous_id IS NOT NULL AND v.ends IS NULL)"
PASSED = f"(SELECT previous_id FROM replay_event WHERE id = {LATER})"
LOG = {
    "loss before": (
        f"UPDATE replay_event SET loss_before = loss_before + 1 WHERE id = {LATER}",
        "begin with another loss",
    ),
    "loss after": (
        f"UPDATE replay_event SET loss_after = loss_after + 1 WHERE id = {PASSED}",
        "begin with another loss",
    ),
    "number of replays": (f"UPDATE replay_event SET nth = nth + 1 WHERE id = {LATER}", "count other replays"),
    "previous": (f"UPDATE replay_event SET previous_id = previous_id - 1 WHERE id = {LATER}", "not the one before"),
    "no previous": (f"UPDATE replay_event SET previous_id = NULL WHERE id = {LATER}", "not the one before"),
    "replays without a loss": (f"UPDATE replay_event SET loss_after = NULL WHERE id = {LATER}", "without a loss"),
    "departure of another": (
        f"UPDATE replay_event SET episode_id = (SELECT inserted FROM buffer) WHERE id = {DEPARTURE}",
        "by the counters",
    ),
    "no departure": (f"UPDATE replay_event SET ends = NULL WHERE id = {DEPARTURE}", "cannot be as it is stored"),
    "departure of a replay": (f"UPDATE replay_event SET ends = 1 WHERE id = {LATER}", "replays that end a chain"),
    "event of another group": (
        f"UPDATE replay_event SET group_id = group_id - 8 WHERE id = {LATER}",
        "say that they are",
    ),
    "unrecorded": (f"UPDATE replay_event SET unrecorded = 1 WHERE group_id = {WINDOW}", "or the reverse"),
    "unrecorded group": (f"UPDATE event_group SET unrecorded = 1 WHERE id = {WINDOW}", "or the reverse"),
    "count of recorded ones": (f"UPDATE event_group SET recorded = recorded + 1 WHERE id = {WINDOW}", "recorded"),
    "events are gone": (f"DELETE FROM replay_event WHERE id = {WINDOW}", "another number of events"),
    "groups are gone": (f"DELETE FROM event_group WHERE id = {WINDOW}", "events are there where"),
}


@pytest.mark.parametrize("what", LOG)
def test_the_log_agrees_with_itself(
    url: str, memory: memstore.EpisodicMemory, engine: Engine, reseal: Reseal, what: str
) -> None:
    statement, words = LOG[what]
    changed(engine, statement)
    with suppress(memstore.StoreCorrupt):  # there is no checksum for what cannot be
        reseal()
    assert told(memory, url, words)


def test_a_group_that_is_gone_with_its_events_is_missed(
    url: str, memory: memstore.EpisodicMemory, engine: Engine, reseal: Reseal
) -> None:
    with engine.begin() as conn:
        number = conn.execute(text(f"SELECT {WINDOW}")).scalar_one()
    changed(engine, f"DELETE FROM replay_event WHERE group_id = {number}")
    changed(engine, f"DELETE FROM event_group WHERE id = {number}")
    reseal()
    assert told(memory, url, "missing, or twice there")


def test_a_group_before_the_fold_that_is_gone_is_missed(
    url: str, memory: memstore.EpisodicMemory, engine: Engine
) -> None:
    changed(engine, "DELETE FROM replay_event WHERE group_id = 9")
    changed(engine, "DELETE FROM event_group WHERE id = 9")
    assert told(memory, url, "recorded events before", "missing, or twice there")


UNSEALED = {
    "loss after": f"UPDATE replay_event SET loss_after = loss_after + 1 WHERE id = {LATER}",
    "loss before": f"UPDATE replay_event SET loss_before = loss_before + 1 WHERE id = {LATER}",
    "probability": f"UPDATE replay_event SET probability = 0.125 WHERE id = {LATER}",
    "weight": f"UPDATE replay_event SET weight = 0.125 WHERE id = {LATER}",
    "episode": f"UPDATE replay_event SET episode_id = episode_id - 1 WHERE id = {LATER}",
    "domain": f"UPDATE replay_event SET domain_id = domain_id % 3 + 1 WHERE id = {LATER}",
    "time": f"UPDATE event_group SET at = at + 1 WHERE id = {WINDOW}",
    "step": f"UPDATE event_group SET step = step + 1 WHERE id = {WINDOW}",
    "consumer": f"UPDATE event_group SET consumer = 'x' WHERE id = {WINDOW}",
    "strategy": f"UPDATE event_group SET strategy = 'x' WHERE id = {WINDOW}",
    "reason": "UPDATE event_group SET reason = 'x' WHERE reason IS NOT NULL",
    "what": f"UPDATE event_group SET what = 'evicted' WHERE id = {WINDOW}",
}


@pytest.mark.parametrize("what", UNSEALED)
def test_each_group_has_a_checksum(url: str, memory: memstore.EpisodicMemory, engine: Engine, what: str) -> None:
    changed(engine, UNSEALED[what])
    assert told(memory, url, "group", "does not match its checksum")


IN_THE_SUM = {
    "loss after": f"UPDATE replay_event SET loss_after = loss_after + 1 WHERE id = {LATER}",
    "number of replays": f"UPDATE replay_event SET nth = nth + 1 WHERE id = {LATER}",
    "loss at the add": "UPDATE episode SET loss_at_add = 0.125 WHERE id = (SELECT inserted FROM buffer)",
    "domain at the add": "UPDATE episode SET domain_id = domain_id % 3 + 1 WHERE id = (SELECT inserted FROM buffer)",
    "a newcomer": "DELETE FROM episode WHERE id = (SELECT inserted FROM buffer)",
    "an event": f"DELETE FROM replay_event WHERE id = {LATER}",
    "time": f"UPDATE event_group SET at = at + 1 WHERE id = {WINDOW}",
}


@pytest.mark.parametrize("what", IN_THE_SUM)
def test_the_log_since_the_blocks_has_a_sum(
    url: str, memory: memstore.EpisodicMemory, engine: Engine, what: str
) -> None:
    changed(engine, IN_THE_SUM[what])
    with pytest.raises(memstore.StoreCorrupt):
        memstore.open(url)
    assert told(memory, url, "the log since the blocks were stored is not")
    assert any("the log since" in problem for problem in memory.check().problems)


def slot(column: int, change: Callable[[float], float]) -> Callable[[Row, Ints], None]:
    """A change of one column of the first slot that was replayed, with the head that belongs to it."""

    def work(row: Row, slots: Ints) -> None:
        place = int(np.flatnonzero(slots[COUNT] > 0)[0])
        values = slots[column] if column in (COUNT, EVENT) else slots[column].view(np.float64)
        values[place] = change(values[place])
        described(row, slots)

    return work


SLOTS = {
    "loss": (LOSS, lambda x: x + 1.0, "another loss"),
    "lowest loss": (LOWEST, lambda x: x / 2, "another lowest loss"),
    "count": (COUNT, lambda x: x + 9, "another number of replays"),
    "last event": (EVENT, lambda x: x - 1, "another last event"),
    "time": (AT, lambda x: x + 1e-3, "another time of the last replay"),
}


@pytest.mark.parametrize("what", SLOTS)
def test_each_column_of_the_slots_is_compared(
    url: str, open_memory: OpenMemory, engine: Engine, what: str, damage: Any
) -> None:
    column, change, words = SLOTS[what]
    memory = open_memory()
    memory.extend({"x": np.arange(20.0)}, loss=np.arange(20.0) + 1)
    memory.update([4, 5], loss=[2.0, 3.0])
    memory.fold()
    memory.update([9], loss=2.0)
    change_block(engine, 1, slot(column, change))
    assert told(memory, url, "1 (4)", words)


def test_a_slot_that_left_or_stays_too_long_is_found(
    url: str, open_memory: OpenMemory, engine: Engine, damage: Any
) -> None:
    def fewer(row: Row, slots: Ints) -> Ints:
        kept = np.delete(slots, 3, axis=1)
        described(row, kept)
        return kept

    memory = open_memory()
    memory.extend({"x": np.arange(20.0)}, loss=np.arange(20.0) + 1)
    memory.fold()
    change_block(engine, 1, fewer)
    assert told(memory, url, "1 (4) have replay metadata and stand in no block")

    def more(row: Row, slots: Ints) -> Ints:
        again = np.concatenate([slots, slots[:, -1:]], axis=1)
        again[ID, -1] = 21
        row["put"] += 1
        described(row, again)
        return again

    change_block(engine, 1, more)
    assert told(memory, url, "1 (21) stand in a block and have no replay metadata")


Broken = Callable[..., Any]


def nothing(*_arguments: Any) -> Any:
    return ()


FOLDS: dict[str, tuple[str, str]] = {
    "metadata": ("_touched", "no replay metadata"),
    "departed": ("_delete_departed", "orphans in table episode"),
    "forgotten": ("_forget", "the fold has left it there"),
}


@pytest.mark.parametrize("part", FOLDS)
def test_a_fold_that_leaves_out_a_part_is_found(
    url: str, open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch, damage: Any, part: str
) -> None:
    name, words = FOLDS[part]
    memory = open_memory(capacity=60, history=memstore.History(record=0.5))
    grow(memory, np.random.default_rng(5), 9)
    monkeypatch.setattr(folding, name, nothing)
    memory.fold()
    assert told(memory, url, words)


def test_stats_and_check_tell_how_much_the_next_fold_has_to_do(url: str, open_memory: OpenMemory) -> None:
    memory = open_memory(capacity=10)
    memory.extend({"x": np.arange(10.0)}, loss=1.0)
    memory.fold()
    assert (memory.stats().unfolded, memory.stats().unfolded_bytes) == (0, 0)
    assert not any("since the last fold" in note for note in memory.check().notes)
    memory.extend({"x": np.arange(4.0)}, loss=1.0)
    memory.update([9, 10], loss=2.0)
    assert (memory.stats().unfolded, memory.stats().unfolded_bytes) == (10, 4 * 8)
    said = "10 entries since the last fold, and 4 payloads (32 bytes) of departed episodes wait"
    assert any(said in note for note in memory.check().notes)
    runner = CliRunner()
    assert said in runner.invoke(main, ["check", url]).output
    assert "10 entries of the log, payloads of 32 B" in runner.invoke(main, ["stats", url]).output


@postgres_only
def test_dead_rows_of_blocks_are_told(open_memory: OpenMemory, sql: Sql, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(old_readers, "MOST_DEAD", 20)
    memory = open_memory()
    sql("ALTER TABLE block SET (autovacuum_enabled = off)")
    ids = memory.extend({"x": np.arange(160.0)}, loss=1.0)
    memory.fold()
    assert not any("dead rows" in note for note in memory.stats().notes)
    for turn in range(15):
        memory.update(ids, loss=float(turn))
        memory.fold()
    sql("ANALYZE block")  # counts them at once
    (said,) = [note for note in memory.stats().notes if "dead rows" in note]
    assert said.startswith("the table of blocks has 30 dead rows, and 2 live ones") and said in memory.check().notes


@pytest.mark.parametrize("record", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("eviction", ["fifo", "lowest_loss", "reservoir"])
def test_every_point_of_the_window_is_sound(
    open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch, record: float, eviction: str
) -> None:
    """Over many folds, with another handle, changed policies and undone work, ``check`` finds nothing."""
    for name, value in (("SMALLEST_WINDOW", 30), ("LARGEST_WINDOW", 90), ("ENTRIES_AN_EPISODE", 1)):
        monkeypatch.setattr(folding, name, value)
    history = memstore.History(record=record, max_events=60 if record == 0.5 else None)
    one = open_memory(capacity=40, eviction=eviction, history=history)
    other = open_memory()
    rng = np.random.default_rng(3)
    for turn in range(8):
        for memory in (one, other):
            grow(memory, rng, 2)
            report = memory.check()
            assert report.ok, report.problems
        if turn == 4:
            one.configure(history=memstore.History(record=0.3), eviction="fifo", alpha=1.0)
        with pytest.raises(ZeroDivisionError), one.transaction():
            grow(one, rng, 2)
            assert one.check().ok
            raise ZeroDivisionError
        assert one.check().ok and other.check().ok
