"""The tables of blocks, for the next revision of the schema: a sketch that no database has yet.

``migrations/next`` makes them. They stand apart from ``schema.metadata``, which is what databases have today.
"""

from __future__ import annotations

from sqlalchemy import Column, Index, LargeBinary, MetaData, Table

from memstore.storage.schema import Count, Float, Id, Small, metadata

next_metadata = MetaData(naming_convention=metadata.naming_convention)

# Narrow, and apart from the contents: a process that opens a buffer reads all heads and no content. A block's id is
# that of the first episode that was ever put into it.
head = Table(
    "head",
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
    Index(
        None,
        "buffer_id",
        "revision",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 4, "autosummarize": "on"},
    ),
    sqlite_strict=True,
)

# Plain storage on PostgreSQL: blobs of 3.8 KB would be compressed and moved out of the row otherwise.
block = Table(
    "block",
    next_metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("token", Count, nullable=False),
    Column("data", LargeBinary, nullable=False),
    sqlite_strict=True,
)
