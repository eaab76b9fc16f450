"""Rows that were changed by somebody who can compute checksums. Only the meaning of the rows can tell it then."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, insert, select, update

from memstore.buffer.blocks.heads import describe, fingerprint, head_rows
from memstore.buffer.blocks.pages import Pages, opened
from memstore.buffer.blocks.rows import ABSENT, ALL_BITS, NUMBERS, REALS, Write
from memstore.buffer.blocks.slots import Ints, columns_of, sealed
from memstore.buffer.blocks.weights import Law
from memstore.buffer.counters import COUNTERS, Counters, counters_checksum
from memstore.buffer.tail import Tail
from memstore.episodes.log import EVENT, GROUP, group_checksum
from memstore.storage import checksums, stored
from memstore.storage.backends import Backend
from memstore.storage.schema import block, buffer, event_group, first_id, id_range, replay_event

Row = dict[str, Any]
Change = Callable[[Row, Ints], object]


def head_checksum(row: Row) -> int:
    """The checksum of a row of ``block``, by its columns."""
    own = {"domain_id": first_id(row["buffer_id"])}
    values = [ABSENT.get(name) if row[name] is None else row[name] - own.get(name, 0) for name in (*NUMBERS, *REALS)]
    columns = [np.array([value]) for value in (*values, *(row[name] for name in Write._fields))]
    return int(checksums.of_columns(*columns)[0])


def resealed(row: Row, slots: Ints) -> Row:
    """The row with these slots, and with the checksums that belong to it."""
    domain = row["domain_id"] - first_id(row["buffer_id"])
    content = np.ascontiguousarray(slots, "<i8").tobytes()
    return row | {
        "checksum": head_checksum(row),
        "data": sealed(content, row["id"], domain, row["token"] & ALL_BITS),
    }


def slots_of(row: Row) -> Ints:
    """The slots of a row, which may be changed."""
    return columns_of(bytes(row["data"])[4:]).copy()


def read_block(conn: Connection, name: int) -> Row:
    """A row of ``block``."""
    return dict(conn.execute(select(block).where(block.c.id == name)).mappings().one())


def change_block(engine: Engine, name: int, change: Change, *, as_new: bool = False) -> None:
    """Change the row of a block and its slots, in place, and all checksums above it.

    With ``as_new`` the row is inserted beside the old one.
    """
    with engine.begin() as conn:
        row = read_block(conn, name)
        slots = slots_of(row)
        other = change(row, slots)
        made = resealed(row, other if isinstance(other, np.ndarray) else slots)
        conn.execute(insert(block).values(made) if as_new else update(block).where(block.c.id == name).values(made))
        for number in conn.scalars(select(buffer.c.id)).all():
            set_counters(conn, number, block_sum=block_sum(conn, number))


def block_sum(conn: Connection, number: int) -> int:
    """The fingerprint of the rows of blocks."""
    rows = conn.execute(select(block.c.id, block.c.token).where(block.c.buffer_id == number).order_by(block.c.id)).all()
    heads = head_rows(np.array([row.id for row in rows], np.int64), np.zeros(len(rows), np.int64))
    heads["token"] = [row.token for row in rows]
    return fingerprint(heads)


def described(row: Row, slots: Ints) -> None:
    """Let the head in the row be that of these slots, by the default law."""
    head = head_rows(np.array([row["id"]]), np.array([row["domain_id"] - first_id(row["buffer_id"])]))
    content = np.ascontiguousarray(slots, "<i8").tobytes()
    describe(head, opened(np.zeros(1, np.int64), [content]), Pages(Law(0.6, 1e-6)))
    for name, field in (NUMBERS | REALS).items():
        if field not in ("name", "domain", "put", "key"):
            value = head[field][0].item()
            row[name] = None if value == ABSENT.get(name) else value


def reseal_log(conn: Connection, backend: Backend, number: int) -> None:
    """Give all groups, and the sum over the log, the checksums that belong to what is there."""
    low, high = id_range(number)
    for group in conn.execute(select(event_group).where(event_group.c.id.between(low, high))).mappings().all():
        query = select(*(replay_event.c[name] for name in EVENT)).where(replay_event.c.group_id == group["id"])
        rows = conn.execute(query.order_by(replay_event.c.id)).all()
        events = dict(zip(EVENT, stored.arrays(replay_event, EVENT, rows), strict=True))
        if len(rows) == group["count"]:
            checksum = group_checksum({name: group[name] for name in GROUP}, events)
            conn.execute(update(event_group).where(event_group.c.id == group["id"]).values(checksum=checksum))
    columns = select(*(buffer.c[name] for name in COUNTERS)).where(buffer.c.id == number)
    counters = Counters(*conn.execute(columns).one())
    tail = Tail.read(conn, backend, number, counters.stored, counters.head)
    set_counters(conn, number, log_sum=tail.end(counters.stored, counters.head).log_sum)


def set_counters(conn: Connection, number: int, **values: Any) -> None:
    """Give the buffer's row these counters, and the checksum of all of them."""
    own = buffer.c.id == number
    row = dict(conn.execute(select(*(buffer.c[name] for name in COUNTERS)).where(own)).mappings().one()) | values
    conn.execute(update(buffer).where(own).values(**row, counters_checksum=counters_checksum(Counters(**row))))
