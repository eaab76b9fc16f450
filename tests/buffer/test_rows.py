"""Blocks in real databases: what is written comes back, and what was altered is ``StoreCorrupt``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import pytest
from sqlalchemy import Connection, text

from memstore.buffer.blocks import rows as module
from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import Heads, own, with_changes
from memstore.buffer.blocks.lottery import reservoir_keys
from memstore.buffer.blocks.rows import Write, domains_of, fetching, read_heads, write_changes
from memstore.buffer.blocks.slots import SLOTS, Ints
from memstore.buffer.blocks.views import View, Views
from memstore.buffer.blocks.weights import Law
from memstore.draws.weighted import weighted
from memstore.errors import StoreCorrupt
from memstore.storage.address import parse_url
from memstore.storage.database import Database
from memstore.storage.schema import block, episode, first_id
from memstore.storage.upgrade import ensure_schema
from tests.buffer.model import OWN, Model, add, in_memory, replay, same_heads, step

BUFFER = 3


def keys(ids: Ints) -> Ints:
    return reservoir_keys(7, ids - first_id(BUFFER))


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """A database with the tables."""
    database = Database(parse_url(url))
    ensure_schema(database)
    yield database
    database.close()


class Stored:
    """A copy and what is stored of it; every write has a revision and a token."""

    def __init__(self, database: Database, buffer_id: int = BUFFER) -> None:
        self.database, self.buffer_id = database, buffer_id
        self.copy = Copy.of(OWN, key_of=keys)
        self.revision = 0
        self.rng = np.random.default_rng(buffer_id)

    def write(self, change: Callable[[Copy], Copy], fail: bool = False) -> None:
        """Change the copy, and make the rows those of it."""
        token = int(self.rng.integers(-(2**63), 2**63))

        def work(conn: Connection) -> Copy:
            backend = self.database.backend
            write = Write(self.revision + 1, token)
            changed = change(self.reading(conn))
            stored = write_changes(conn, backend, self.buffer_id, self.copy.heads, changed, write)
            if fail:
                raise ZeroDivisionError
            return stored

        self.copy, self.revision = self.database.in_write(work), self.revision + 1

    def reading(self, conn: Connection) -> Copy:
        """The copy, with what is not in memory read by this connection."""
        return self.copy.reading(fetching(conn, self.database.backend))

    def read(self, conn: Connection) -> Copy:
        """The copy of a process that has just opened the buffer."""
        backend = self.database.backend
        return Copy.of(
            OWN, read_heads(conn, backend, self.buffer_id), fetch=fetching(conn, backend), key_of=self.copy.key_of
        )

    def check(self) -> None:
        """What is stored is the copy, bit for bit, and draws alike."""

        def work(conn: Connection) -> None:
            opened, mine = self.read(conn), self.reading(conn)
            assert same_heads(opened.heads, mine.heads)
            assert in_memory(opened) == 0
            for alpha in (OWN, None):
                if alpha is not None and mine.live:
                    one, other = (
                        weighted(of, Views().get(of, alpha), 5.0, np.random.default_rng(1), 4) for of in (opened, mine)
                    )
                    assert one.tolist() == other.tolist()
            every = np.arange(len(opened))
            assert opened.open(every).contents() == mine.open(every).contents()

        self.database.in_read(work)


def shifted(model: Model, buffer_id: int) -> Model:
    """A model whose ids are those of a buffer."""
    model.inserted = first_id(buffer_id)
    return model


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_stored_is_the_copy(seed: int, database: Database, small_blocks: int) -> None:
    rng = np.random.default_rng(seed)
    stored, other = Stored(database), Stored(database, 1)
    model, second = shifted(Model(), BUFFER), Model()
    for turn in range(25):
        stored.write(lambda copy: step(rng, copy, model, scale=2))
        if turn % 5 == 0:
            other.write(lambda copy: step(rng, copy, second))
        stored.check()
    other.check()


def test_a_write_that_fails_leaves_all_as_it_was(database: Database, small_blocks: int) -> None:
    rng = np.random.default_rng(3)
    stored, model = Stored(database), shifted(Model(), BUFFER)
    for _ in range(8):
        stored.write(lambda copy: step(rng, copy, model, scale=2))
    for _ in range(4):
        with pytest.raises(ZeroDivisionError):
            stored.write(lambda copy: step(rng, copy, model.copy(), scale=2), fail=True)
        stored.check()


def test_another_process_reads_what_has_changed(database: Database, small_blocks: int) -> None:
    rng = np.random.default_rng(4)
    stored, model = Stored(database), shifted(Model(), BUFFER)
    stored.write(lambda copy: add(rng, copy, model, 60, 3))
    before, revision = stored.copy, stored.revision
    ids = np.array(sorted(model.live))[[3, 4, 40]]
    domains = model.domains_of(ids)
    one = np.ones(3, np.int64)
    stored.write(lambda copy: copy.patched(copy.locate(ids, domains), np.full(3, 7.5), one, one))
    stored.write(lambda copy: add(rng, copy, model, 9, 3))

    def work(conn: Connection) -> Heads:
        assert not len(read_heads(conn, database.backend, BUFFER, after=stored.revision))
        assert not len(read_heads(conn, database.backend, BUFFER + 1))
        return read_heads(conn, database.backend, BUFFER, after=revision)

    news = database.in_read(work)
    changed = stored.copy.heads["stamp"] != np.append(before.heads["stamp"], np.zeros(99))[: len(stored.copy)]
    assert same_heads(news, stored.copy.heads[changed])
    assert 0 < len(news) < len(stored.copy)


def sums(stored: Stored, conn: Connection) -> bytes:
    return View.of(stored.reading(conn), Law(2.0, 1e-6)).sums.tobytes()


def test_two_processes_write_in_turn(database: Database, small_blocks: int) -> None:
    """Each follows the other by the heads that changed, or by all where blocks have vanished."""
    rng, model = np.random.default_rng(7), shifted(Model(), BUFFER)
    first, second = Stored(database), Stored(database)
    second.rng = np.random.default_rng(99)
    kept = vanished = 0
    for turn in range(40):
        writer, other = (first, second) if rng.random() < 0.5 else (second, first)
        writer.write(lambda copy: step(rng, copy, model, scale=2))
        if turn % 8 == 7:
            writer.write(Copy.merged)

        def follow(conn: Connection, other: Stored = other, count: int = len(writer.copy)) -> Copy:
            nonlocal vanished
            mine = other.reading(conn)
            heads = with_changes(mine.heads, read_heads(conn, database.backend, BUFFER, after=other.revision))
            if len(heads) != count:
                vanished += 1
                heads = read_heads(conn, database.backend, BUFFER)
            return mine.replaced(heads)

        other.copy, other.revision = database.in_read(follow), writer.revision
        kept += in_memory(other.copy)
        assert same_heads(other.copy.heads, writer.copy.heads)
        other.check()
        one, two = database.in_read(partial(sums, first)), database.in_read(partial(sums, second))
        assert one == two
    assert kept > 100 and vanished > 2


def test_a_server_that_forgot_writes_is_noticed(database: Database, small_blocks: int) -> None:
    """The same revision with another content: the token tells."""
    rng, model = np.random.default_rng(8), shifted(Model(), BUFFER)
    stored = Stored(database)
    stored.write(lambda copy: add(rng, copy, model, 30, 2))
    before, revision = stored.copy, stored.revision
    rows = database.in_read(lambda conn: [dict(row) for row in conn.execute(block.select()).mappings()])
    stored.write(lambda copy: replay(rng, copy, model.copy(), 8))
    forgotten = stored.copy

    def forget(conn: Connection) -> None:
        conn.execute(block.delete())
        conn.execute(block.insert(), rows)

    database.in_write(forget)
    stored.copy, stored.revision = before, revision
    stored.write(lambda copy: replay(rng, copy, model.copy(), 8))
    assert stored.revision == revision + 1

    def work(conn: Connection) -> None:
        heads = read_heads(conn, database.backend, BUFFER)
        copy = forgotten.reading(fetching(conn, database.backend)).replaced(heads)
        assert in_memory(copy) < len(copy)
        every = np.arange(len(copy))
        assert copy.open(every).contents() == stored.copy.open(every).contents()

    database.in_read(work)


def filled(database: Database) -> Stored:
    rng = np.random.default_rng(5)
    stored, model = Stored(database), shifted(Model(), BUFFER)
    for _ in range(3):
        stored.write(lambda copy: add(rng, copy, model, 20, 3))
    return stored


DAMAGE = [
    *((name, "+ 1") for name in (*module.NUMBERS, "revision", "token", "checksum") if name != "id"),
    *((name, "* 0.5 + 0.001") for name in module.REALS),
]


@pytest.mark.parametrize("damage", DAMAGE, ids=lambda damage: damage[0])
def test_every_column_is_guarded(damage: tuple[str, str], database: Database, small_blocks: int) -> None:
    column, change = damage
    stored = filled(database)
    name = int(stored.copy.heads["name"][2])

    def alter(conn: Connection) -> None:
        value = f"coalesce({column}, 0) {change}"
        conn.execute(text(f"UPDATE block SET {column} = {value} WHERE id = :id"), {"id": name})

    def read(conn: Connection) -> None:
        opened = stored.read(conn)
        opened.open(np.arange(len(opened)))

    database.in_write(alter)
    with pytest.raises(StoreCorrupt, match=f"block {name}"):
        database.in_read(read)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE block SET data = (SELECT data FROM block AS other WHERE other.id = :other) WHERE id = :id",
        "UPDATE block SET data = :short WHERE id = :id",
        "UPDATE block SET least_loss = NULL, largest_loss = NULL WHERE id = :id",
        "UPDATE block SET live = 0, unmeasured = 0 WHERE id = :id",
        "UPDATE block SET unit = 513 WHERE id = :id",
        "UPDATE block SET id = id + 1 WHERE id = :id",
        "UPDATE block SET weight_sum = -1 WHERE id = :id",
        "UPDATE block SET weight_sum = 1e200 WHERE id = :id",
        "UPDATE block SET unit = -9223372036854775808 WHERE id = :id",
    ],
)
def test_rows_that_cannot_be_are_damage(statement: str, database: Database, small_blocks: int) -> None:
    stored = filled(database)
    name, other = stored.copy.heads["name"][[2, 3]].tolist()
    values = {"id": name, "other": other, "short": b"abcdefgh"}
    named = {key: value for key, value in values.items() if f":{key}" in statement}
    database.in_write(lambda conn: conn.execute(text(statement), named))

    def read(conn: Connection) -> None:
        opened = stored.read(conn)
        opened.open(np.arange(len(opened)))

    with pytest.raises(StoreCorrupt, match=f"block {name + ('id + 1' in statement)}"):
        database.in_read(read)


def test_blocks_that_overlap_are_damage(database: Database, small_blocks: int) -> None:
    """With right checksums: an episode would be looked for in the wrong block, and not found."""
    stored = filled(database)
    heads = own(stored.copy.heads)
    of = stored.copy.directory.order[:2]
    assert heads["domain"][of[0]] == heads["domain"][of[1]]
    heads["last"][of[0]] = heads["name"][of[1]]
    for make in (partial(Copy.of, OWN), stored.copy.replaced):
        with pytest.raises(StoreCorrupt, match=f"block {heads['name'][of[0]]} reaches into"):
            make(heads)


def test_a_block_of_two_buffers_is_damage(database: Database, small_blocks: int) -> None:
    stored = filled(database)
    database.in_write(lambda conn: conn.execute(text("UPDATE block SET buffer_id = 1")))
    with pytest.raises(StoreCorrupt, match="said to be of another one"):
        database.in_read(stored.read)


def test_domains_of_episodes_are_looked_up(database: Database) -> None:
    def work(conn: Connection) -> list[int]:
        ids = [first_id(BUFFER) + number for number in (3, 5, 9)]
        columns = {"id": ids, "buffer_id": [BUFFER] * 3, "domain_id": [first_id(BUFFER) + of for of in (2, 1, 7)]}
        database.backend.insert(conn, episode, columns | {"timestamp": [0.5] * 3})
        wanted = first_id(BUFFER) + np.array([9, 4, 3, 9, 5, 10, 2])
        assert domains_of(conn, database.backend, BUFFER, wanted[[1]]).tolist() == [0]
        with pytest.raises(StoreCorrupt, match="a domain of another one"):
            domains_of(conn, database.backend, BUFFER + 1, wanted)
        domains: list[int] = domains_of(conn, database.backend, BUFFER, wanted).tolist()
        return domains

    assert database.in_write(work) == [7, 0, 2, 7, 1, 0, 0]


def test_a_block_that_vanished_is_damage(database: Database, small_blocks: int) -> None:
    stored = filled(database)
    name = int(stored.copy.heads["name"][2])

    def read(conn: Connection) -> None:
        opened = stored.read(conn)
        conn.execute(text("DELETE FROM block WHERE id = :id"), {"id": name})
        opened.open(np.arange(len(opened)))

    with pytest.raises(StoreCorrupt, match=f"block {name}"):
        database.in_write(read)


def test_contents_are_found_by_their_index(database: Database, small_blocks: int) -> None:
    """Each draw reads the blocks that it needs by look-ups, also when nothing is kept in memory."""
    stored = filled(database)
    if database.backend.shared:
        return  # the plan of a server for a table of 20 rows says nothing; the statement is that of every look-up

    def work(conn: Connection) -> list[str]:
        statement = "SELECT t.id FROM json_each('[1, 2]') AS j CROSS JOIN block AS t ON t.id = j.value"
        return [str(row[-1]) for row in conn.execute(text(f"EXPLAIN QUERY PLAN {statement}"))]

    plan = database.in_read(work)
    assert any("SEARCH t USING" in line and "PRIMARY KEY" in line for line in plan), plan
    assert len(stored.copy) > 10


def test_whole_blocks_are_stored_and_read(database: Database) -> None:
    rng = np.random.default_rng(6)
    stored, model = Stored(database), shifted(Model(), BUFFER)
    stored.write(lambda copy: add(rng, copy, model, 3000, 2))
    assert stored.copy.heads["live"].max() == SLOTS
    stored.check()
