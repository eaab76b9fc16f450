"""Rows of blocks, changed by somebody who can compute checksums: only what the rows mean can then tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sqlalchemy import Connection, Engine, insert, select, update

from memstore.buffer.blocks.heads import fingerprint, head_rows
from memstore.buffer.blocks.rows import ABSENT, ALL_BITS, NUMBERS, REALS, Write
from memstore.buffer.blocks.slots import Ints, columns_of, sealed
from memstore.buffer.counters import COUNTERS, Counters, counters_checksum
from memstore.storage import checksums
from memstore.storage.schema import block, buffer, first_id

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


def set_counters(conn: Connection, number: int, **values: Any) -> None:
    """Give the buffer's row these counters, and the checksum of all of them."""
    own = buffer.c.id == number
    row = dict(conn.execute(select(*(buffer.c[name] for name in COUNTERS)).where(own)).mappings().one()) | values
    conn.execute(update(buffer).where(own).values(**row, counters_checksum=counters_checksum(Counters(**row))))
