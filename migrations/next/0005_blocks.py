"""Blocks, each with its head. A sketch: it stands outside of ``versions`` until the library uses them.

Revision ID: 0005
Revises: 0004
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.sqlite import REAL

revision: str = "0005"
down_revision: str | None = "0004"
branch_labels: None = None
depends_on: None = None

Int64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Int16 = sa.SmallInteger().with_variant(sa.Integer(), "sqlite")
Double: sa.types.TypeEngine[float] = sa.Double().with_variant(REAL(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "block",
        sa.Column("id", Int64, autoincrement=False),
        sa.Column("buffer_id", Int64, nullable=False),
        sa.Column("domain_id", Int64, nullable=False),
        sa.Column("first_id", Int64),
        sa.Column("last_id", Int64),
        sa.Column("least_loss", Double),
        sa.Column("largest_loss", Double),
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
    if op.get_context().dialect.name == "postgresql":
        op.execute("ALTER TABLE block ALTER COLUMN data SET STORAGE PLAIN")


def downgrade() -> None:
    raise NotImplementedError("memstore has no downgrades; restore the copy that 'memstore upgrade' made")
