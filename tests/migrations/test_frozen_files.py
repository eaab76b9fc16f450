"""Old databases come through the upgrade bit for bit, and numbers of events are never given twice."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, MetaData, Table, create_engine, inspect, select, text

import memstore
from memstore.storage import upgrade
from memstore.storage.schema import SEQUENCE_BITS, VERSION_TABLE
from tests.migrations.assets import make
from tests.migrations.helpers import create, sql
from tests.support.helpers import sqlite_only

ASSETS = sorted((Path(__file__).parent / "assets").glob("v000[1-4].db"))
MADE_ANEW = {VERSION_TABLE, "stratum", "block", "buffer"}
"""Tables that the upgrade changes or drops. The others keep the columns that they had."""

each_asset = pytest.mark.parametrize("asset", ASSETS, ids=lambda asset: asset.stem)


def test_there_are_four() -> None:
    """An empty folder would pass the tests below."""
    assert [asset.stem for asset in ASSETS] == ["v0001", "v0002", "v0003", "v0004"]


def put_back(asset: Path, url: str) -> None:
    """Make a database of the schema of a frozen file that holds its rows."""
    revision = asset.stem.removeprefix("v")
    with pytest.MonkeyPatch.context() as past:
        past.setattr(upgrade, "REVISIONS", (revision,))
        past.setattr(upgrade, "HEAD", revision)
        create(url)
    engine = create_engine(url)
    with closing(sqlite3.connect(asset)) as source, engine.begin() as conn:
        source.row_factory = sqlite3.Row
        for name in inspect(conn).get_table_names():
            rows = [dict(row) for row in source.execute(f'SELECT * FROM "{name}"')]
            if rows and name != VERSION_TABLE:
                conn.execute(Table(name, MetaData(), autoload_with=conn).insert(), rows)
        if conn.dialect.name == "postgresql":
            conn.execute(text("SELECT setval(pg_get_serial_sequence('buffer', 'id'), (SELECT max(id) FROM buffer))"))
    engine.dispose()


@pytest.fixture
def old(url: str, asset: Path) -> str:
    """A database like the frozen file, on either kind of database."""
    put_back(asset, url)
    return url


def stored(url: str) -> dict[str, list[dict[str, Any]]]:
    """All rows of all tables, by their primary keys."""

    def rows(conn: Connection, name: str) -> list[dict[str, Any]]:
        table = Table(name, MetaData(), autoload_with=conn)
        return [dict(row) for row in conn.execute(select(table).order_by(*table.primary_key)).mappings()]

    engine = create_engine(url)
    with engine.begin() as conn:
        found = {name: rows(conn, name) for name in inspect(conn).get_table_names()}
    engine.dispose()
    return found


@each_asset
def test_every_row_stays_as_it_was(old: str, asset: Path) -> None:
    """Bit for bit, in all columns that the old and the new table have."""
    before = stored(old)
    told: list[tuple[int, int]] = []
    upgrade.upgrade(old, backup=False, on_progress=lambda *progress: told.append(progress))
    after = stored(old)
    compared = before.keys() - MADE_ANEW
    if asset.stem < "v0003":
        compared -= {"replay_event"}  # revision 0003 makes groups of it
    assert len(compared) >= 7
    for name in compared:
        assert len(before[name]) == len(after[name])
        for was, now in zip(before[name], after[name], strict=True):
            assert {column: now[column] for column in was.keys() & now.keys()} == {
                column: value for column, value in was.items() if column in now
            }
    assert after["block"] and not {"stratum"} & after.keys()
    live = len(before["replay_metadata"])
    assert told[-1] == (live, live) and told == sorted(told)


@each_asset
def test_all_is_read_back_and_goes_on(old: str, asset: Path) -> None:
    """On SQLite and on PostgreSQL; sound at once, after new episodes and losses, and after a fold."""
    upgrade.upgrade(old, backup=False)
    names = memstore.buffers(old)
    for name in names:
        with memstore.open(old, buffer=name, create=False) as memory:
            assert memory.check().problems == ()
            assert memory.fold() == 0, "the upgrade leaves nothing to fold"
    with memstore.open(old, create=False) as memory:
        make.verify(memory, asset.stem.removeprefix("v"))
        make.go_on(memory)
        assert memory.check().problems == ()
        assert memory.fold() > 0
        assert memory.check().problems == ()
    for name, verify in (
        ("ragged", make.verify_ragged),
        ("shared", make.verify_shared),
        ("leaving", make.verify_leaving),
    ):
        if name in names:
            with memstore.open(old, buffer=name, create=False) as memory:
                verify(memory)
                assert memory.check().problems == ()


# --- numbers of events -------------------------------------------------------------------------------------------


def numbers(url: str) -> list[int]:
    return [number for (number,) in sql(url, "SELECT id FROM replay_event ORDER BY id")]


def counters(url: str, buffer: str) -> dict[str, int]:
    names = ("recorded", "logged", "events", "inserted", "departed", "stored_logged", "folded_logged", "history_from")
    (row,) = sql(url, f"SELECT {', '.join(names)} FROM buffer WHERE name = '{buffer}'")
    return dict(zip(names, row, strict=True))


def prune(url: str, first: int, until: int) -> None:
    """Delete old groups whole, as a limit of the history did."""
    low, high = first + 1, first + until
    sql(url, f"DELETE FROM replay_event WHERE id BETWEEN {low} AND {high}")
    sql(url, f"DELETE FROM event_group WHERE id BETWEEN {low} AND {high}")


@pytest.mark.parametrize("asset", ASSETS[2:], ids=lambda asset: asset.stem)
def test_numbers_go_on_after_a_pruned_history(old: str) -> None:
    """Also where nothing of it is left."""
    (number,) = [number for number, name in sql(old, "SELECT id, name FROM buffer") if name == "leaving"]
    first = number - 1 << SEQUENCE_BITS
    (recorded,) = sql(old, f"SELECT recorded FROM buffer WHERE id = {number}")[0]
    prune(old, first, recorded)
    upgrade.upgrade(old, backup=False)
    found = counters(old, "leaving")
    assert (found["recorded"], found["logged"], found["history_from"]) == (recorded, recorded, 0)
    with memstore.open(old, buffer="leaving", create=False) as memory:
        assert memory.check().problems == () and memory.history() == []
        memory.update(memory.sample(1), loss=0.5)
        replay, departure = memory.history()  # the second replay of an episode is its last here
        assert (replay.event, departure.event) == (first + recorded + 1, first + recorded + 2)
        assert memory.check().problems == ()


@sqlite_only
@pytest.mark.parametrize("asset", ASSETS[2:], ids=lambda asset: asset.stem)
def test_a_counter_that_went_back_gives_no_number_twice(old: str) -> None:
    """No version did that, but somebody may restore one table. The numbers of the rows count too."""
    known = {name for (name,) in sql(old, "SELECT name FROM pragma_table_info('buffer')")}
    unsealed = ", counters_checksum = NULL" if "counters_checksum" in known else ""
    sql(old, f"UPDATE buffer SET recorded = 1{unsealed} WHERE id = 1")
    largest = max(number for number in numbers(old) if number < 1 << SEQUENCE_BITS)
    upgrade.upgrade(old, backup=False)
    assert counters(old, "default")["logged"] == largest
    with memstore.open(old, create=False) as memory:
        memory.update(memory.sample(2), loss=[0.5, 0.25])
    assert len(numbers(old)) == len(set(numbers(old)))
