"""Checksums of data that no other number confirms: settings, counters, facts, keys, names, strata, events.

Revision ID: 0004
Revises: 0003
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"
branch_labels: None = None
depends_on: None = None

Int64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
TABLES = ("buffer", "domain", "episode", "episode_key", "stratum", "event_group", "checkpoint")


def upgrade() -> None:
    # Rows from before this revision get NULL, because nobody knows if they have changed since they were written.
    for table in TABLES:
        op.add_column(table, sa.Column("checksum", Int64))
    op.add_column("buffer", sa.Column("counters_checksum", Int64))


def downgrade() -> None:
    raise NotImplementedError("memstore has no downgrades; restore the copy that 'memstore upgrade' made")
