"""Blocks with their heads in place of strata and positions; the columns of the complete log and of the fold.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.sqlite import REAL

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import fingerprint
from memstore.buffer.blocks.lottery import keys_of_ids
from memstore.buffer.blocks.rows import Write, fetching, table_pages, write_changes
from memstore.buffer.blocks.weights import Law
from memstore.buffer.folding import window
from memstore.storage import checksums, stored
from memstore.storage.schema import id_range

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: None = None
depends_on: None = None

Int64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Int16 = sa.SmallInteger().with_variant(sa.Integer(), "sqlite")
Double: sa.types.TypeEngine[float] = sa.Double().with_variant(REAL(), "sqlite")

OLD_COUNTERS = (
    *("revision", "inserted", "events", "domains", "strata", "live_replays", "high_water", "reservoir_floor"),
    "recorded",
)
NEW_COUNTERS = (
    *("revision", "inserted", "events", "domains", "live_replays", "high_water", "reservoir_floor", "recorded"),
    *("departed", "token", "logged", "log_sum", "history_from", "stored_inserted", "stored_logged", "stored_sum"),
    *("block_sum", "folded_inserted", "folded_logged", "fold_at", "waiting_bytes"),
)
ADDED = tuple(name for name in NEW_COUNTERS if name not in OLD_COUNTERS)


def upgrade() -> None:
    _create_tables()
    for name in ADDED:
        op.add_column("buffer", sa.Column(name, Int64, nullable=False, server_default="0"))
    op.add_column("episode", sa.Column("loss_at_add", Double))
    op.add_column("event_group", sa.Column("recorded", Int64))
    op.add_column("event_group", sa.Column("unrecorded", Int16))
    op.add_column("replay_event", sa.Column("nth", Int64))
    op.add_column("replay_event", sa.Column("unrecorded", Int16))
    conn, told = op.get_bind(), _counted()
    for row in conn.execute(sa.text("SELECT * FROM buffer ORDER BY id")).mappings().all():
        _convert(conn, dict(row), told)
    # An old process that is still open fails from now on: its statements name what is gone.
    op.drop_table("stratum")
    op.drop_index("ix_replay_metadata_stratum_id_position", "replay_metadata")
    op.drop_index("ix_replay_metadata_eviction", "replay_metadata")
    for name in ("stratum_id", "position", "eviction_group", "eviction_key"):
        op.drop_column("replay_metadata", name)
    op.drop_column("buffer", "strata")


def _create_tables() -> None:
    op.create_table(
        "block",
        sa.Column("id", Int64, autoincrement=False, nullable=False),
        sa.Column("buffer_id", Int64, nullable=False),
        sa.Column("domain_id", Int64, nullable=False),
        sa.Column("first_id", Int64),
        sa.Column("last_id", Int64),
        sa.Column("least_loss", Double),
        sa.Column("largest_loss", Double),
        sa.Column("mean_loss", Double, nullable=False),
        sa.Column("weight_sum", Double, nullable=False),
        sa.Column("unit", Int64, nullable=False),
        sa.Column("eviction_key", Int64),
        sa.Column("put", Int16, nullable=False),
        sa.Column("live", Int16, nullable=False),
        sa.Column("unmeasured", Int16, nullable=False),
        sa.Column("revision", Int64, nullable=False),
        sa.Column("token", Int64, nullable=False),
        sa.Column("checksum", Int64, nullable=False),
        sa.Column("data", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_block"),
        sqlite_strict=True,
    )
    op.create_index(
        "ix_block_buffer_id_revision",
        "block",
        ["buffer_id", "revision"],
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 4, "autosummarize": "on"},
    )
    if op.get_bind().dialect.name == "postgresql":
        # Blobs of 3.8 KB would be compressed, and moved out of the row. Each update leaves some dead rows of that size.
        op.execute("ALTER TABLE block ALTER COLUMN data SET STORAGE PLAIN")
        op.execute("ALTER TABLE block SET (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0)")


def _counted() -> Callable[[int], None]:
    """Return a function that takes a number of converted rows, and reports how many of all rows are done."""
    report = op.get_context().config.attributes.get("progress")
    total, done = op.get_bind().scalars(sa.text("SELECT count(*) FROM replay_metadata")).one(), 0

    def more(rows: int) -> None:
        nonlocal done
        done += rows
        if report is not None:
            report(done, total)

    return more


def _convert(conn: sa.Connection, row: dict[str, Any], told: Callable[[int], None]) -> None:
    """Make the blocks of a buffer from its tables, and bring its counters up to date."""
    number, where = row["id"], f"buffer {row['id']}"
    if row["counters_checksum"] not in (None, checksums.of_row(*(row[name] for name in OLD_COUNTERS))):
        raise stored.damaged(where, "has counters that do not match their checksum")
    row["revision"] += 1
    write = Write(row["revision"], secrets.randbits(64) - 2**63 or 1)
    after = _write_blocks(conn, row, write, told)
    logged = _last_event(conn, number, row["recorded"])
    point = {"inserted": row["inserted"], "logged": logged}
    row |= dict.fromkeys(ADDED, 0) | {
        "departed": row["inserted"] - after.live,
        "token": write.token,
        "block_sum": fingerprint(after.heads),
        "logged": logged,
        "fold_at": row["inserted"] + logged + window(row["capacity"]),
        **{f"{stage}_{name}": value for stage in ("stored", "folded") for name, value in point.items()},
    }
    row["counters_checksum"] = checksums.of_row(*(row[name] for name in NEW_COUNTERS))
    changed = (*ADDED, "revision", "counters_checksum")
    setting = ", ".join(f"{name} = :{name}" for name in changed)
    conn.execute(sa.text(f"UPDATE buffer SET {setting} WHERE id = :id"), {name: row[name] for name in (*changed, "id")})


def _write_blocks(conn: sa.Connection, row: dict[str, Any], write: Write, told: Callable[[int], None]) -> Copy:
    """Write the blocks of a buffer, and return them. Their contents are written and forgotten page by page."""
    number, where = row["id"], f"buffer {row['id']}"
    backend = op.get_context().config.attributes["backend"]
    alpha, epsilon = (stored.real(row[name], f"{where}: its {name}", 0.0) for name in ("alpha", "epsilon"))
    reservoir = row["eviction"] == "reservoir"
    key_of = partial(keys_of_ids, stored.whole(row["seed"], f"{where}: its seed"), number) if reservoir else None
    copy = Copy.of(Law(alpha, epsilon), fetch=fetching(conn, backend), key_of=key_of)
    for page in table_pages(conn, backend, number):
        copy = write_changes(conn, backend, number, copy.heads, page.appended_to(copy), write).forgotten(0)
        told(len(page))
    return copy


def _last_event(conn: sa.Connection, number: int, recorded: int) -> int:
    """Return the sequence number of the buffer's last event.

    Until this revision only recorded events had numbers, without gaps. So this is ``recorded``, and never below a
    number that was given out, even if that counter is damaged.
    """
    low, high = id_range(number)
    last = sa.text("SELECT max(id) FROM replay_event WHERE id BETWEEN :low AND :high")
    largest = conn.scalars(last, {"low": low, "high": high}).one()
    return max(recorded, 0 if largest is None else largest - low + 1)


def downgrade() -> None:
    raise NotImplementedError("memstore has no downgrades; restore the copy that 'memstore upgrade' made")
