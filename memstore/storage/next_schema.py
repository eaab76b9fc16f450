"""The table of blocks, for the next revision of the schema: a sketch that no database has yet.

``migrations/next`` makes it. It stands apart from ``schema.metadata``, which is what databases have today.
"""

from __future__ import annotations

from sqlalchemy import Column, Index, LargeBinary, MetaData, Table

from memstore.storage.schema import Count, Float, Id, Small, metadata

next_metadata = MetaData(naming_convention=metadata.naming_convention)

# A block's id is that of the first episode that was ever put into it. The head stands in front of the content, in the
# same row: in a table of its own it would make an update of 256 at 1M episodes write 387 pages of SQLite's log and not
# 256, and take 3.2 ms and not 2.1. Reading all heads takes 26 ms here, and 22 there.
# On PostgreSQL the content is stored plainly: blobs of 3.8 KB would be compressed and moved out of the row otherwise.
block = Table(
    "block",
    next_metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("buffer_id", Id, nullable=False),
    Column("domain_id", Id, nullable=False),
    Column("first_id", Id),
    Column("last_id", Id),
    Column("least_loss", Float),
    Column("largest_loss", Float),
    # In units of 2 ** unit, by the buffer's epsilon and alpha.
    Column("weight_sum", Float, nullable=False),
    Column("unit", Count, nullable=False),
    Column("eviction_key", Count),
    Column("put", Small, nullable=False),
    Column("live", Small, nullable=False),
    Column("unmeasured", Small, nullable=False),
    Column("revision", Count, nullable=False),
    Column("token", Count, nullable=False),
    Column("checksum", Count, nullable=False),
    Column("data", LargeBinary, nullable=False),
    # 0.6 ms of such an update on SQLite, for processes that follow another one's writes. It is not needed any more when
    # they follow the log.
    Index(
        None,
        "buffer_id",
        "revision",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 4, "autosummarize": "on"},
    ),
    sqlite_strict=True,
)
