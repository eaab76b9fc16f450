"""Blocks with their heads in place of strata and positions; the columns of the complete log and of the fold.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import secrets
from functools import partial
from typing import Any

import numpy as np
import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.sqlite import REAL

from memstore.buffer.blocks.heads import fingerprint, head_rows
from memstore.buffer.blocks.lottery import keys_of_ids
from memstore.buffer.blocks.rows import Write, from_tables, write_changes
from memstore.buffer.blocks.weights import Law
from memstore.storage import checksums, stored

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
    conn = op.get_bind()
    for row in conn.execute(sa.text("SELECT * FROM buffer ORDER BY id")).mappings().all():
        _convert(conn, dict(row))
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


def _convert(conn: sa.Connection, row: dict[str, Any]) -> None:
    """Make the blocks of a buffer from its tables, and bring its counters up to date."""
    number, where = row["id"], f"buffer {row['id']}"
    if row["counters_checksum"] not in (None, checksums.of_row(*(row[name] for name in OLD_COUNTERS))):
        raise stored.damaged(where, "has counters that do not match their checksum")
    alpha, epsilon = (stored.real(row[name], f"{where}: its {name}", 0.0) for name in ("alpha", "epsilon"))
    law = Law(alpha, epsilon)
    reservoir = row["eviction"] == "reservoir"
    key_of = partial(keys_of_ids, stored.whole(row["seed"], f"{where}: its seed"), number) if reservoir else None
    backend = op.get_context().config.attributes["backend"]
    after = from_tables(conn, backend, number, law, key_of)
    token = secrets.randbits(64) - 2**63 or 1
    row["revision"] += 1
    nothing = head_rows(*[np.empty(0, np.int64)] * 2)
    after = write_changes(conn, backend, number, nothing, after, Write(row["revision"], token))
    point = {"inserted": row["inserted"], "logged": row["recorded"]}
    row |= dict.fromkeys(ADDED, 0) | {
        "departed": row["inserted"] - after.live,
        "token": token,
        "block_sum": fingerprint(after.heads),
        "logged": row["recorded"],
        **{f"{stage}_{name}": value for stage in ("stored", "folded") for name, value in point.items()},
    }
    row["counters_checksum"] = checksums.of_row(*(row[name] for name in NEW_COUNTERS))
    changed = (*ADDED, "revision", "counters_checksum")
    setting = ", ".join(f"{name} = :{name}" for name in changed)
    conn.execute(sa.text(f"UPDATE buffer SET {setting} WHERE id = :id"), {name: row[name] for name in (*changed, "id")})


def downgrade() -> None:
    raise NotImplementedError("memstore has no downgrades; restore the copy that 'memstore upgrade' made")
