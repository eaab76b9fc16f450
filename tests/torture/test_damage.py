"""Damaged and hostile databases: a right answer or ``StoreCorrupt``, in time; ``check`` knows of every other answer."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from sqlalchemy import create_engine, inspect, make_url

import memstore
from memstore.buffer.blocks.slots import LOSS, LOWEST, Ints
from memstore.cli import main
from memstore.storage.backends import layout
from memstore.storage.upgrade import HEAD
from tests.support.helpers import postgres_only
from tests.support.layout import made
from tests.support.resealed import Row, change_block
from tests.torture.damage import (
    FINE,
    LONGEST,
    answers,
    edited,
    judged,
    prepare,
    prepare_file,
    run_flips,
    table,
)
from tests.torture.hostile import EDITS, HOSTILE

FULL = os.environ.get("MEMSTORE_TORTURE") == "full"
FLIPS = 2000 if FULL else 60

Sound = tuple[Path, dict[str, str]]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Sound:
    """A prepared file and its answers."""
    file = tmp_path_factory.mktemp("sound") / "sound.db"
    prepare_file(file)
    copy = file.with_name("copy.db")
    copy.write_bytes(file.read_bytes())
    found = answers(str(copy))
    assert found["check"] == "ok"
    return file, found


def test_flipped_bits(tmp_path: Path) -> None:
    outcomes = run_flips(tmp_path, FLIPS, seed=11)
    print(table(outcomes))
    assert all(outcome.kind in FINE for outcome in outcomes), table(outcomes)
    assert {outcome.kind for outcome in outcomes} == set(FINE)


@pytest.mark.parametrize("edit", EDITS)
def test_edited_rows(sound: Sound, tmp_path: Path, edit: str) -> None:
    """Whatever the answers then are, ``check`` finds each of these, or the memory refuses to open."""
    copy = tmp_path / "edited.db"
    edited(sound[0], copy, [EDITS[edit]])
    outcome = judged(edit, str(copy), sound[1])
    assert outcome.kind in FINE, outcome
    assert not outcome.detail.endswith(" ok"), outcome


@postgres_only
def test_edited_rows_on_a_server(url: str) -> None:
    prepare(url)
    engine = create_engine(url)
    tables = inspect(engine).get_table_names()
    with engine.begin() as conn:
        conn.exec_driver_sql("CREATE SCHEMA kept")
        for name in tables:
            conn.exec_driver_sql(f"CREATE TABLE kept.{name} AS TABLE {name}")
    unnoticed = []
    for edit, statement in EDITS.items():
        with engine.begin() as conn:
            assert conn.exec_driver_sql(statement.replace("9e999", "'Infinity'::float8")).rowcount, edit
        with suppress(memstore.StoreCorrupt), memstore.open(url, create=False) as memory:
            if memory.check().ok:
                unnoticed.append(edit)
        with engine.begin() as conn:
            for name in tables:
                conn.exec_driver_sql(f"TRUNCATE {name}")
                conn.exec_driver_sql(f"INSERT INTO {name} OVERRIDING SYSTEM VALUE SELECT * FROM kept.{name}")
    engine.dispose()
    assert not unnoticed
    with memstore.open(url, create=False) as memory:
        assert memory.check().ok


@pytest.mark.parametrize("what", HOSTILE)
def test_hostile_definitions_are_refused_at_opening(sound: Sound, tmp_path: Path, what: str) -> None:
    copy = tmp_path / "hostile.db"
    edited(sound[0], copy, HOSTILE[what])
    started = time.monotonic()
    with pytest.raises((memstore.NotAMemstore, memstore.StoreCorrupt)):
        memstore.open(copy)
    result = CliRunner().invoke(main, ["check", str(copy)])
    assert result.exit_code == 3 and len(result.output.splitlines()) == 1 and result.output.startswith("memstore: ")
    assert time.monotonic() - started < LONGEST


@postgres_only
@pytest.mark.parametrize(
    "statements",
    [
        ["ALTER TABLE buffer RENAME TO old", "CREATE VIEW buffer AS SELECT * FROM old"],
        ["CREATE RULE spy AS ON INSERT TO payload DO ALSO NOTHING"],
        ["ALTER TABLE episode ADD COLUMN colour text"],
    ],
)
def test_hostile_definitions_on_a_server(url: str, statements: list[str]) -> None:
    prepare(url)
    engine = create_engine(url)
    with engine.begin() as conn:
        for statement in statements:
            conn.exec_driver_sql(statement)
    engine.dispose()
    with pytest.raises((memstore.NotAMemstore, memstore.StoreCorrupt)):
        memstore.open(url)


def test_a_missing_index_is_found_by_check(url: str) -> None:
    prepare(url)
    engine = create_engine(url)
    with engine.begin() as conn:
        conn.exec_driver_sql("DROP INDEX ix_block_buffer_id_revision")
    engine.dispose()
    with memstore.open(url) as memory:
        assert any("ix_block_buffer_id_revision" in problem for problem in memory.check().problems)


def test_check_says_how_long_it_took_and_what_it_left_out(url: str) -> None:
    with memstore.open(url, limiter=memstore.SamplesPerInsert(2.0), history=None) as memory:
        memory.add({"x": 1.0}, loss=1.0)
        memory.update([1], loss=2.0)
        report = memory.check()
    assert report.ok and report.seconds > 0
    assert any("limiter" in what for what in report.unchecked) and any("history" in what for what in report.unchecked)
    address = make_url(url)
    output = CliRunner().invoke(main, ["check", address.render_as_string(hide_password=False)]).output
    assert " s\n" in output and "not checked: " in output


def test_the_fingerprints_are_those_of_the_newest_schema() -> None:
    assert layout.REVISION == HEAD and made() == layout.LAYOUT, "run: python -m tests.support.layout"
    assert {name for name in layout.LAYOUT if name.startswith(("v_", "live_"))} == layout.VIEWS


def test_connections_trust_no_file(path: str) -> None:
    with memstore.open(path) as memory, memory._session.database.engine.connect() as conn:
        assert conn.exec_driver_sql("PRAGMA trusted_schema").scalar() == 0
        assert conn.exec_driver_sql("PRAGMA cell_size_check").scalar() == 1


def test_one_bad_extra_is_named_and_stops_nothing_else(url: str) -> None:
    prepare(url)
    engine = create_engine(url)
    with engine.begin() as conn:
        number = conn.exec_driver_sql("SELECT max(id) FROM episode").scalar()
        conn.exec_driver_sql(EDITS["extra"])
    engine.dispose()
    with memstore.open(url) as memory:
        assert len(memory.query().select(memstore.col.id, memstore.col.loss).result()) == len(memory)
        for ask in (memory.query().all, memory.query().filter(memstore.col.extra["pid"].number > 1).ids):
            with pytest.raises(memstore.StoreCorrupt, match=str(number)) as raised:
                ask()
            assert raised.value.episode_id == number


def test_an_impossible_loss_makes_no_weight_of_other_episodes(url: str) -> None:
    """The smallest loss of the buffer is in the weight of every row, whether its episode is drawn or not."""

    def lower(_row: Row, slots: Ints) -> None:
        slots[LOSS].view(np.float64)[3] = slots[LOWEST].view(np.float64)[3] = -5.0

    with memstore.open(url, seed=1, strategy="prioritized_loss") as memory:
        memory.extend({"x": [0.0] * 200}, loss=[1.0] * 200)
    engine = create_engine(url)
    change_block(engine, 81, lower)
    with memstore.open(url, seed=1) as memory:
        with pytest.raises(memstore.StoreCorrupt, match="block 81 holds an episode 84 that cannot be"):
            memory.sample(200, beta=0.4)
        assert any("block 81 holds an episode 84" in problem for problem in memory.check().problems)
    change_block(engine, 81, lambda row, slots: row.update(least_loss=-5.0))
    engine.dispose()
    with pytest.raises(memstore.StoreCorrupt, match="block 81 has a head that cannot be"):
        memstore.open(url, seed=1)


def test_an_error_of_the_users_own_stays_what_it_is(path: str) -> None:
    def broken(_snapshot: object) -> None:
        raise ValueError("mine")

    with memstore.open(path) as memory, pytest.raises(ValueError, match="mine"):
        memory._session.read(broken)


def test_rows_from_before_are_not_checked_and_said_to_be_so(sound: Sound, tmp_path: Path) -> None:
    copy = tmp_path / "old.db"
    copy.write_bytes(sound[0].read_bytes())
    with closing(sqlite3.connect(copy)) as connection:
        for table_name in ("buffer", "domain", "episode", "episode_key", "event_group", "checkpoint"):
            connection.execute(f"UPDATE {table_name} SET checksum = NULL")
        connection.execute("UPDATE buffer SET counters_checksum = NULL")
        connection.commit()
    with memstore.open(copy) as memory:
        report = memory.check()
    assert report.ok, report.problems
    assert sum("before schema 0004" in what for what in report.unchecked) == 6
