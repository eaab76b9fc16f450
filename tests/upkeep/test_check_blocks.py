"""``check`` on damaged blocks: each is named, none hides another, and the rest of the buffer is examined too."""

from __future__ import annotations

from contextlib import closing
from functools import partial
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, delete, insert, select, update

import memstore
from memstore import StoreCorrupt
from memstore.buffer.blocks.rows import NUMBERS, REALS, fetching, problems, read_heads
from memstore.buffer.blocks.slots import COLUMNS, COUNT, EVENT, ID, LOSS, Ints
from memstore.buffer.blocks.weights import Law
from memstore.cli import main
from memstore.storage.address import parse_url
from memstore.storage.database import Database
from memstore.storage.schema import block
from tests.support.helpers import Damage, OpenMemory, postgres_only
from tests.support.resealed import Row, block_sum, change_block, read_block, set_counters, slots_of

FIRST, SECOND, OTHER, LAST = 1, 81, 151, 181
"""Names of the blocks: two of domain 'a', one of 'b', one of 'c'."""


@pytest.fixture
def filled(url: str, open_memory: OpenMemory, damage: Damage) -> str:
    """Address of a memory of 200 episodes in four blocks, replayed twice, with a checkpoint."""
    memory = open_memory(capacity=1000)
    fill(memory)
    memory.save_checkpoint("latest", {"step": 1})
    return url


def fill(memory: memstore.EpisodicMemory) -> None:
    """Put 200 episodes into the memory, and replay some."""
    domains = ["a"] * 150 + ["b"] * 30 + ["c"] * 20
    loss = [None if i % 7 == 0 else 0.1 * i for i in range(200)]
    ids = memory.extend({"x": np.arange(200.0)}, domain=domains, loss=loss)
    for turn in (1, 2):
        memory.update(ids[turn::9], loss=np.linspace(0.5, 3.0, len(ids[turn::9])))
    memory.fold()


def found(url: str, buffer: str = "default") -> list[str]:
    """The findings of the command, which never fails."""
    result = CliRunner().invoke(main, ["check", url, "--buffer", buffer])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    problems = [line for line in result.output.splitlines() if line.startswith("  problem: ")]
    assert result.exit_code == bool(problems)
    return [line.removeprefix("  problem: ") for line in problems]


def names(lines: list[str], *parts: str) -> bool:
    """True if one line has all of these parts."""
    return any(all(part in line for part in parts) for line in lines)


def test_what_is_sound_is_sound(filled: str) -> None:
    assert found(filled) == []


def test_no_damage_hides_another(filled: str, damage: Damage) -> None:
    """Two heads, two contents, a domain, a payload, an event and a checkpoint, and all are named in one run."""
    damage("UPDATE block SET put = 99 WHERE id = :id", id=FIRST)
    damage("UPDATE block SET mean_loss = mean_loss + 1 WHERE id = :id", id=OTHER)
    for name in (SECOND, LAST):
        damage("UPDATE block SET data = :data WHERE id = :id", id=name, data=bytes(36))
    damage("DELETE FROM domain WHERE name = 'b'")
    damage("UPDATE payload SET crc32 = crc32 + 1 WHERE episode_id = 77")
    damage("UPDATE replay_event SET loss_after = loss_after + 1 WHERE id = 9")
    damage("UPDATE checkpoint SET document = '{}'")
    with pytest.raises(StoreCorrupt, match="run 'memstore check'"):
        memstore.open(filled)
    lines = found(filled)
    assert names(lines, f"block {FIRST} has a head that cannot be")
    assert names(lines, f"block {OTHER} has a head that does not match its checksum")
    for name in (SECOND, LAST):
        assert names(lines, f"block {name} ")
    assert names(lines, "the names of 1 domains cannot be read (2)")
    assert names(lines, "payload", "77") and names(lines, "group", "checksum") and names(lines, "checkpoint")
    assert not any("run 'memstore check'" in line for line in lines)


def test_damage_of_one_buffer_is_none_of_another(filled: str, open_memory: OpenMemory, damage: Damage) -> None:
    fill(open_memory(buffer="second"))
    damage("UPDATE block SET live = live - 1 WHERE id = :id", id=OTHER)
    assert found(filled) and found(filled, "second") == []


@pytest.mark.parametrize("column", [*(n for n in NUMBERS if n != "id"), *REALS, "revision", "token", "checksum"])
def test_every_column_of_a_head_is_guarded(filled: str, damage: Damage, column: str) -> None:
    change = "* 0.5 + 0.001" if column in REALS else "+ 1"
    damage(f"UPDATE block SET {column} = coalesce({column}, 0) {change} WHERE id = :id", id=SECOND)
    with pytest.raises(StoreCorrupt, match=f"block {SECOND}"):
        memstore.open(filled)
    assert names(found(filled), f"block {SECOND} ")


def test_every_byte_of_a_content_is_guarded(filled: str, engine: Engine) -> None:
    with closing(Database(parse_url(filled))) as database, engine.connect() as conn:
        good = bytes(read_block(conn, LAST)["data"])
        expected = block_sum(conn, 1)
        conn.rollback()
        for place in range(len(good)):
            bad = good[:place] + bytes([good[place] ^ 0xFF]) + good[place + 1 :]
            with engine.begin() as writing:
                writing.execute(update(block).where(block.c.id == LAST).values(data=bad))

            def work(reading: Any) -> list[str]:
                heads = read_heads(reading, database.backend, 1)
                with pytest.raises(StoreCorrupt, match=f"block {LAST} does not match its checksum"):
                    fetching(reading, database.backend)(heads[heads["name"] == LAST])
                return list(problems(reading, database.backend, 1, Law(0.6, 1e-6), None, expected))

            (told,) = database.in_read(work)
            assert told.startswith(f"block {LAST} ")
    lines = found(filled)
    assert names(lines, f"block {LAST} does not match its checksum")
    with memstore.open(filled) as memory, pytest.raises(StoreCorrupt, match=f"block {LAST}"):
        memory.sample(200)


@pytest.mark.parametrize("size", [0, 3, 4, 35, 36, 400])
def test_contents_of_another_length_are_named(filled: str, damage: Damage, size: int) -> None:
    damage("UPDATE block SET data = :data WHERE id = :id", id=LAST, data=bytes(size))
    assert names(found(filled), f"block {LAST} ")


def test_a_missing_block_is_named(filled: str, engine: Engine) -> None:
    """Its row is gone: the fingerprint tells, and where that was made to fit, the episodes stand in no block."""
    with engine.begin() as conn:
        conn.execute(delete(block).where(block.c.id == OTHER))
    assert names(found(filled), "the rows of blocks are not those")
    with engine.begin() as conn:
        set_counters(conn, 1, block_sum=block_sum(conn, 1))
    assert names(found(filled), "30 (151, 152, 153, 154, 155 ...)", "no block")


def test_an_additional_block_is_named(filled: str, engine: Engine) -> None:
    def moved(row: Row, slots: Ints) -> Ints:
        row |= {"id": 1000, "first_id": 1000, "last_id": 1000, "live": 1, "put": 1, "unmeasured": 0}
        one = slots[:, slots[COUNT] > 0][:, :1].copy()
        one[ID] = 1000
        loss = float(one[LOSS].view(np.float64)[0])
        weight = float(np.exp2(0.6 * np.log2(loss + 1e-6)))
        row |= {"least_loss": loss, "largest_loss": loss, "mean_loss": loss, "weight_sum": weight, "eviction_key": None}
        return one

    with engine.begin() as conn:
        before = block_sum(conn, 1)
    change_block(engine, LAST, moved, as_new=True)
    lines = found(filled)
    assert names(lines, "1 (1000)", "replay metadata") and names(lines, "live")
    with engine.begin() as conn:
        set_counters(conn, 1, block_sum=before)
    assert names(found(filled), "the rows of blocks are not those")


def test_a_block_of_another_buffer_is_named(filled: str, open_memory: OpenMemory, engine: Engine) -> None:
    fill(open_memory(buffer="second"))
    with engine.begin() as conn:
        theirs = dict(
            conn.execute(select(block).where(block.c.buffer_id == 2).order_by(block.c.id).limit(1)).mappings().one()
        )
        conn.execute(update(block).where(block.c.id == theirs["id"]).values(buffer_id=1))
    assert names(found(filled, "second"), f"block {theirs['id']} ", "another one")
    assert names(found(filled), "blocks of buffer 1 have numbers of another")
    with engine.begin() as conn:
        conn.execute(update(block).where(block.c.id == theirs["id"]).values(buffer_id=2))
        conn.execute(insert(block).values(theirs | {"id": 1000, "buffer_id": 1, "domain_id": 1}))
    assert found(filled, "second") == []
    assert names(found(filled), "block 1000 ")


def test_blocks_that_overlap_are_named(filled: str, engine: Engine) -> None:
    def reach(row: Row, slots: Ints) -> None:
        slots[ID, -1] = row["last_id"] = SECOND + 3

    change_block(engine, FIRST, reach)
    with pytest.raises(StoreCorrupt, match=f"block {FIRST} reaches into block {SECOND}"):
        memstore.open(filled)
    assert names(found(filled), f"block {FIRST} reaches into block {SECOND}")


def test_a_block_of_its_own_past_is_named(filled: str, engine: Engine) -> None:
    """A content of an older write, then the whole older row: the tokens tell."""
    with engine.begin() as conn:
        old = read_block(conn, OTHER)
    with memstore.open(filled) as memory:
        memory.update([OTHER], loss=9.0)
        memory.fold()
    with engine.begin() as conn:
        new = read_block(conn, OTHER)
        assert new["token"] != old["token"]
        conn.execute(update(block).where(block.c.id == OTHER).values(data=old["data"]))
    assert names(found(filled), f"block {OTHER} does not match its checksum")
    with engine.begin() as conn:
        conn.execute(update(block).where(block.c.id == OTHER).values(old))
    assert names(found(filled), "the rows of blocks are not those")


def bits(value: float) -> int:
    return int(np.array(value).view(np.int64))


SLOTS = {
    "infinite": (LOSS, bits(np.inf)),
    "negative": (LOSS, bits(-2.0)),
    "negative zero": (LOSS, bits(-0.0)),
    "another NaN": (LOSS, bits(np.nan) + 1),
    "negative NaN": (LOSS, bits(np.nan) - 2**63),
    "negative count": (COUNT, -1),
    "negative event": (EVENT, -1),
    "id of another buffer": (ID, 2**40 + 5),
    "id beyond all": (ID, 2**60),
    "id below the name": (ID, 0),
    "id twice": (ID, LAST),
}


@pytest.mark.parametrize("what", SLOTS)
def test_hostile_slots_are_named_though_their_checksums_are_right(filled: str, engine: Engine, what: str) -> None:
    column, value = SLOTS[what]

    def change(_row: Row, slots: Ints) -> None:
        slots[column, 3] = value

    change_block(engine, LAST, change)
    lines = found(filled)
    assert names(lines, f"block {LAST} "), lines
    with memstore.open(filled) as memory, pytest.raises(StoreCorrupt, match=f"block {LAST} "):
        memory.sample(200)


HEADS: dict[str, dict[str, Any]] = {
    "infinite loss": {"largest_loss": np.inf},
    "negative loss": {"least_loss": -1.0},
    "negative sum": {"weight_sum": -1.0},
    "infinite sum": {"weight_sum": np.inf},
    "no sum": {"weight_sum": 0.0},
    "more live than put": {"live": 119},
    "negative count": {"live": -1},
    "all put in": {"put": 30000},
    "another unit": {"unit": 513},
    "another domain": {"domain_id": 10_000_000},
    "first id before the name": {"first_id": 5},
}


@pytest.mark.parametrize("what", HEADS)
def test_hostile_heads_are_named_though_their_checksums_are_right(filled: str, engine: Engine, what: str) -> None:
    refuse(filled, engine, HEADS[what])


@postgres_only
@pytest.mark.parametrize("column", ["mean_loss", "weight_sum", "least_loss"])
def test_a_nan_in_a_head_is_named(filled: str, engine: Engine, column: str) -> None:
    """SQLite stores it as NULL, which the table does not allow, or which is no measured loss."""
    refuse(filled, engine, {column: np.nan})


def refuse(filled: str, engine: Engine, values: dict[str, Any]) -> None:
    """Give a head these values: nobody can open the buffer, and the block is named."""
    change_block(engine, LAST, lambda row, slots: row.update(values))
    with pytest.raises(StoreCorrupt, match=f"block {LAST} "):
        memstore.open(filled)
    assert names(found(filled), f"block {LAST} has a head that cannot be")


def lighter(row: Row, slots: Ints, factor: float = 0.999) -> None:
    row["weight_sum"] *= factor


def slower(row: Row, slots: Ints) -> None:
    measured = slots[LOSS].view(np.float64)
    measured[2] *= 1 + 1e-12


VALUES = {
    "sum": (lighter, "does not agree with its head"),
    "mean": (lambda row, slots: row.update(mean_loss=row["mean_loss"] * 0.999), "does not agree with its head"),
    "loss": (slower, "does not agree with its head"),
    "unmeasured": (lambda row, slots: row.update(unmeasured=row["unmeasured"] - 1), "does not agree with its head"),
    "eviction key": (lambda row, slots: row.update(eviction_key=5), "does not agree with its head"),
}


@pytest.mark.parametrize("what", VALUES)
def test_heads_that_their_contents_belie_are_named(filled: str, engine: Engine, what: str) -> None:
    change, told = VALUES[what]
    change_block(engine, OTHER, change)
    assert names(found(filled), f"block {OTHER} {told}")


def test_sums_of_another_machine_are_a_note(filled: str, engine: Engine) -> None:
    """numpy on another processor may compute another last bit; draws then go by the stored sum."""
    change_block(engine, OTHER, partial(lighter, factor=1 + 2**-50))
    with memstore.open(filled) as memory:
        report = memory.check()
    assert report.ok and any(f"1 ({OTHER})" in note and "last bits" in note for note in report.notes)


COUNTERS = {
    "inserted": "UPDATE buffer SET inserted = -1",
    "domains": "UPDATE buffer SET domains = 9",
    "fewer domains": "UPDATE buffer SET domains = 1",
    "departed": "UPDATE buffer SET departed = departed + 1",
    "block_sum": "UPDATE buffer SET block_sum = block_sum + 1",
    "live_replays": "UPDATE buffer SET live_replays = live_replays + 1",
    "no name": "DELETE FROM domain WHERE name = 'c'",
    "another name": "UPDATE domain SET name = 'd' WHERE name = 'c'",
}


@pytest.mark.parametrize("what", COUNTERS)
def test_counters_and_domains_are_named_and_stop_nothing_else(filled: str, damage: Damage, what: str) -> None:
    damage(COUNTERS[what])
    damage("UPDATE payload SET crc32 = crc32 + 1 WHERE episode_id = 77")
    damage("UPDATE replay_event SET loss_after = loss_after + 1 WHERE id = 9")
    lines = found(filled)
    words = {"no name": "domains", "another name": "domain 3", "departed": "counter", "block_sum": "blocks"}
    assert names(lines, words.get(what, what.split()[-1].partition("_")[0])), lines
    assert names(lines, "payload", "77") and names(lines, "group", "checksum"), lines


def test_memory_of_an_open_handle_is_compared_with_the_rows(filled: str, engine: Engine) -> None:
    """The handle knows the blocks already, and would not read them again."""
    with memstore.open(filled) as memory:
        memory.sample(200)
        assert memory.check().ok
        with engine.begin() as conn:
            conn.execute(update(block).where(block.c.id == OTHER).values(data=bytes(36)))
        report = memory.check()
        assert names(list(report.problems), f"block {OTHER} ")
        copy = memory._session.committed.blocks
        copy.pages.columns[copy.page[2], COUNT, 0] += 1
    with engine.begin() as conn:
        assert len(slots_of(read_block(conn, FIRST))) == COLUMNS
