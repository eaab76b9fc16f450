"""Initial tables.

Revision ID: 0001
Revises: (none)
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None
branch_labels: None = None
depends_on: None = None

# INTEGER, not BIGINT, makes a SQLite primary key the rowid itself. Both hold 64 bits on SQLite.
Int64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Small = sa.SmallInteger().with_variant(sa.Integer(), "sqlite")
Float: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "buffer",
        sa.Column("id", Int64, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("capacity", Int64, nullable=False),
        sa.Column("epsilon", Float, nullable=False),
        sa.Column("alpha", Float, nullable=False),
        sa.Column("strategy", sa.Text(), nullable=False),
        sa.Column("eviction", sa.Text(), nullable=False),
        sa.Column("max_replays", Int64),
        sa.Column("signature", sa.Text()),
        sa.Column("seed", Int64, nullable=False),
        sa.Column("created_at", Float, nullable=False),
        sa.Column("created_by", sa.Text(), nullable=False),
        sa.Column("revision", Int64, nullable=False),
        sa.Column("inserted", Int64, nullable=False),
        sa.Column("events", Int64, nullable=False),
        sa.Column("domains", Int64, nullable=False),
        sa.Column("strata", Int64, nullable=False),
        sa.Column("live_replays", Int64, nullable=False),
        sa.Column("high_water", Float),
        sa.Column("reservoir_floor", Int64),
        sa.PrimaryKeyConstraint("id", name="pk_buffer"),
        sa.UniqueConstraint("name", name="uq_buffer_name"),
        sqlite_autoincrement=True,
        sqlite_strict=True,
    )
    op.create_table(
        "domain",
        sa.Column("id", Int64, autoincrement=False, nullable=False),
        sa.Column("buffer_id", Int64, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_domain"),
        sa.UniqueConstraint("buffer_id", "name", name="uq_domain_buffer_id_name"),
        sqlite_strict=True,
    )
    op.create_table(
        "episode",
        sa.Column("id", Int64, autoincrement=False, nullable=False),
        sa.Column("buffer_id", Int64, nullable=False),
        sa.Column("domain_id", Int64, nullable=False),
        sa.Column("timestamp", Float, nullable=False),
        sa.Column("level", sa.Integer()),
        sa.Column("key", sa.Text()),
        sa.Column("extra", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_episode"),
        sqlite_strict=True,
    )
    op.create_index("ix_episode_buffer_id_timestamp", "episode", ["buffer_id", "timestamp"])
    op.create_index("ix_episode_domain_id_timestamp", "episode", ["domain_id", "timestamp"])
    op.create_table(
        "episode_key",
        sa.Column("buffer_id", Int64, nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("episode_id", Int64, nullable=False),
        sa.PrimaryKeyConstraint("buffer_id", "key", name="pk_episode_key"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_table(
        "episode_tag",
        sa.Column("buffer_id", Int64, nullable=False),
        sa.Column("tag", sa.Text(), nullable=False),
        sa.Column("episode_id", Int64, nullable=False),
        sa.Column("ordinal", Small, nullable=False),
        sa.PrimaryKeyConstraint("buffer_id", "tag", "episode_id", name="pk_episode_tag"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )
    op.create_index("ix_episode_tag_episode_id", "episode_tag", ["episode_id"])
    op.create_table(
        "payload",
        sa.Column("episode_id", Int64, autoincrement=False, nullable=False),
        sa.Column("crc32", Int64, nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("episode_id", name="pk_payload"),
        sqlite_strict=True,
    )
    op.create_table(
        "replay_metadata",
        sa.Column("episode_id", Int64, autoincrement=False, nullable=False),
        sa.Column("buffer_id", Int64, nullable=False),
        sa.Column("loss", Float),
        sa.Column("replay_count", Int64, nullable=False),
        sa.Column("last_replayed_at", Float),
        sa.Column("stratum_id", Int64, nullable=False),
        sa.Column("position", Int64, nullable=False),
        sa.Column("eviction_group", Int64),
        sa.Column("eviction_key", Int64),
        sa.PrimaryKeyConstraint("episode_id", name="pk_replay_metadata"),
        sqlite_strict=True,
    )
    op.create_index("ix_replay_metadata_buffer_id_loss", "replay_metadata", ["buffer_id", "loss"])
    op.create_index(
        "ix_replay_metadata_eviction",
        "replay_metadata",
        ["buffer_id", "eviction_group", "eviction_key"],
        sqlite_where=sa.text("eviction_key IS NOT NULL"),
        postgresql_where=sa.text("eviction_key IS NOT NULL"),
    )
    op.create_index("ix_replay_metadata_stratum_id_position", "replay_metadata", ["stratum_id", "position"])
    op.create_table(
        "stratum",
        sa.Column("id", Int64, autoincrement=False, nullable=False),
        sa.Column("buffer_id", Int64, nullable=False),
        sa.Column("domain_id", Int64, nullable=False),
        sa.Column("bucket", Small, nullable=False),
        sa.Column("count", Int64, nullable=False),
        sa.Column("weight_sum", Float, nullable=False),
        sa.Column("loss_sum", Float, nullable=False),
        sa.Column("revision", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_stratum"),
        sa.UniqueConstraint("buffer_id", "domain_id", "bucket", name="uq_stratum_buffer_id_domain_id_bucket"),
        sqlite_strict=True,
    )
    op.create_index("ix_stratum_buffer_id_revision", "stratum", ["buffer_id", "revision"])
    op.create_table(
        "replay_event",
        sa.Column("id", Int64, autoincrement=False, nullable=False),
        sa.Column("episode_id", Int64, nullable=False),
        sa.Column("at", Float, nullable=False),
        sa.Column("step", Int64),
        sa.Column("consumer", sa.Text()),
        sa.Column("strategy", sa.Text()),
        sa.Column("loss_before", Float),
        sa.Column("loss_after", Float, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_replay_event"),
        sqlite_strict=True,
    )
    op.create_table(
        "checkpoint",
        sa.Column("buffer_id", Int64, nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("document", sa.Text(), nullable=False),
        sa.Column("data", sa.LargeBinary(), nullable=False),
        sa.Column("crc32", Int64, nullable=False),
        sa.Column("rng", sa.Text(), nullable=False),
        sa.Column("created_at", Float, nullable=False),
        sa.Column("revision", Int64, nullable=False),
        sa.Column("inserted", Int64, nullable=False),
        sa.PrimaryKeyConstraint("buffer_id", "name", name="pk_checkpoint"),
        sqlite_strict=True,
    )


def downgrade() -> None:
    raise NotImplementedError("memstore has no downgrades; restore the copy that 'memstore upgrade' made")
