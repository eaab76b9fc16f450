"""The tables, as SQLAlchemy Core ``Table`` objects, and the numbering of ids.

There are no foreign keys, because there is one write path (``episodes/insert``, ``buffer/blocks``). It removes an
episode from every table in one transaction, and ``check`` finds orphans. A row with a NULL in ``checksum`` was written
before schema 0004.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Column,
    ColumnElement,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    UniqueConstraint,
)
from sqlalchemy.dialects.sqlite import REAL
from sqlalchemy.types import TypeEngine

VERSION_TABLE = "memstore_version"

SEQUENCE_BITS = 40
"""An id is the buffer's number, shifted by this many bits, plus a sequence number within the buffer.

Episodes, domains, blocks and events have such ids.
"""

MAX_BUFFERS = 8191
"""A database holds at most this many buffers over its life.

13 bits of buffer number above 40 bits of sequence keep every id below 2**53. Such ids are exact in JSON and in floats.
"""

# INTEGER, not BIGINT, makes a SQLite primary key the rowid itself. Both hold 64 bits on SQLite.
Id = BigInteger().with_variant(Integer(), "sqlite")
Count = BigInteger().with_variant(Integer(), "sqlite")
Small = SmallInteger().with_variant(Integer(), "sqlite")
Float: TypeEngine[float] = Double().with_variant(REAL(), "sqlite")

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

buffer = Table(
    "buffer",
    metadata,
    Column("id", Id, primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    # The settings are fixed at creation, or changed by configure().
    Column("capacity", Count, nullable=False),
    Column("epsilon", Float, nullable=False),
    Column("alpha", Float, nullable=False),
    Column("strategy", Text, nullable=False),
    Column("eviction", Text, nullable=False),
    Column("max_replays", Count),
    Column("signature", Text),
    Column("limiter", Text),
    Column("history", Text),
    Column("seed", Count, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("created_by", Text, nullable=False),
    # Every writer changes the counters, under the lock on this row.
    Column("revision", Count, nullable=False),
    Column("inserted", Count, nullable=False),
    Column("events", Count, nullable=False),
    Column("domains", Count, nullable=False),
    Column("live_replays", Count, nullable=False),
    Column("high_water", Float),
    Column("reservoir_floor", Count),
    Column("recorded", Count, nullable=False, server_default="0"),
    Column("departed", Count, nullable=False, server_default="0"),
    Column("token", Count, nullable=False, server_default="0"),
    # The log: its last event, a sum over its entries, and the last event that the history has forgotten.
    Column("logged", Count, nullable=False, server_default="0"),
    Column("log_sum", Count, nullable=False, server_default="0"),
    Column("history_from", Count, nullable=False, server_default="0"),
    # The rows of blocks stand at this point of the log, and the other tables at that one.
    Column("stored_inserted", Count, nullable=False, server_default="0"),
    Column("stored_logged", Count, nullable=False, server_default="0"),
    Column("stored_sum", Count, nullable=False, server_default="0"),
    Column("block_sum", Count, nullable=False, server_default="0"),
    Column("folded_inserted", Count, nullable=False, server_default="0"),
    Column("folded_logged", Count, nullable=False, server_default="0"),
    Column("fold_at", Count, nullable=False, server_default="0"),
    Column("waiting_bytes", Count, nullable=False, server_default="0"),
    # Checksums of the settings, and of the counters; see memstore.storage.checksums.
    Column("checksum", Count),
    Column("counters_checksum", Count),
    sqlite_autoincrement=True,
    sqlite_strict=True,
)

domain = Table(
    "domain",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("buffer_id", Id, nullable=False),
    Column("name", Text, nullable=False),
    Column("checksum", Count),
    UniqueConstraint("buffer_id", "name"),
    sqlite_strict=True,
)

episode = Table(
    "episode",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("buffer_id", Id, nullable=False),
    Column("domain_id", Id, nullable=False),
    Column("timestamp", Float, nullable=False),
    Column("level", Count),
    Column("key", Text),
    Column("extra", Text),
    Column("checksum", Count),
    Column("loss_at_add", Float),
    Index(None, "buffer_id", "timestamp"),
    Index(None, "domain_id", "timestamp"),
    sqlite_strict=True,
)

# A key outlives its episode: a retry with the same key returns the first id even after the episode was evicted.
episode_key = Table(
    "episode_key",
    metadata,
    Column("buffer_id", Id, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("episode_id", Id, nullable=False),
    Column("checksum", Count),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)

episode_tag = Table(
    "episode_tag",
    metadata,
    Column("buffer_id", Id, primary_key=True),
    Column("tag", Text, primary_key=True),
    Column("episode_id", Id, primary_key=True),
    Column("ordinal", Small, nullable=False),
    Index(None, "episode_id"),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)

payload = Table(
    "payload",
    metadata,
    Column("episode_id", Id, primary_key=True, autoincrement=False),
    Column("crc32", Count, nullable=False),
    Column("data", LargeBinary, nullable=False),
    sqlite_strict=True,
)

replay_metadata = Table(
    "replay_metadata",
    metadata,
    Column("episode_id", Id, primary_key=True, autoincrement=False),
    Column("buffer_id", Id, nullable=False),
    Column("loss", Float),
    Column("lowest_loss", Float),
    Column("replay_count", Count, nullable=False),
    Column("last_replayed_at", Float),
    Column("last_event_id", Id),
    Index(None, "buffer_id", "loss"),
    sqlite_strict=True,
)
# A block's id is that of the first episode that was ever put into it. The head stands in front of the content, in the
# same row: in a table of its own it would make an update of 256 at 1M episodes write 387 pages of SQLite's log and not
# 256, and take 3.2 ms and not 2.1. Reading all heads takes 26 ms here, and 22 there.
# On PostgreSQL the content is stored plainly: blobs of 3.8 KB would be compressed and moved out of the row otherwise.
block = Table(
    "block",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("buffer_id", Id, nullable=False),
    Column("domain_id", Id, nullable=False),
    Column("first_id", Id),
    Column("last_id", Id),
    Column("least_loss", Float),
    Column("largest_loss", Float),
    Column("mean_loss", Float, nullable=False),
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
    # A process that follows another one reads the heads that were stored since.
    Index(
        None,
        "buffer_id",
        "revision",
        postgresql_using="brin",
        postgresql_with={"pages_per_range": 4, "autosummarize": "on"},
    ),
    sqlite_strict=True,
)

# Each buffer with a limiter has one row. It is not in the buffer's row, because a draw must not wait for its writer.
limiter = Table(
    "limiter",
    metadata,
    Column("buffer_id", Id, primary_key=True, autoincrement=False),
    Column("drawn", Count, nullable=False),
    sqlite_strict=True,
)

lease = Table(
    "lease",
    metadata,
    Column("buffer_id", Id, primary_key=True),
    Column("episode_id", Id, primary_key=True),
    Column("token", Text, nullable=False),
    Column("consumer", Text, nullable=False),
    Column("expires_at", Float, nullable=False),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)

# Events that happened in one call have one row with their common facts. Its id is the number of the first event.
event_group = Table(
    "event_group",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("buffer_id", Id, nullable=False),
    Column("what", Text, nullable=False),
    Column("reason", Text),
    Column("at", Float, nullable=False),
    Column("step", Count),
    Column("consumer", Text),
    Column("strategy", Text),
    Column("count", Count, nullable=False),
    Column("checksum", Count),
    # Number of recorded events ever, those of this group included. NULL before schema 0005.
    Column("recorded", Count),
    # 1 if the history does not record these events. They are in the log until the fold.
    Column("unrecorded", Small),
    Index(None, "buffer_id", "at"),
    Index(None, "buffer_id", "step"),
    sqlite_strict=True,
)

# The events of one episode are a chain. Each event names the previous one, and replay_metadata names the last one. The
# partial index finds the last event of an episode that left. An index on the episode would make an append of 256 events
# take 5.6 ms, not 1.2 ms (SQLite, 5M events of 1M episodes).
replay_event = Table(
    "replay_event",
    metadata,
    Column("id", Id, primary_key=True, autoincrement=False),
    Column("group_id", Id, nullable=False),
    Column("episode_id", Id, nullable=False),
    Column("domain_id", Id),
    Column("loss_before", Float),
    Column("loss_after", Float),
    Column("probability", Float),
    Column("weight", Float),
    Column("previous_id", Id),
    Column("ends", Small),
    # The episode's number of replays after this event. NULL before schema 0005.
    Column("nth", Count),
    Column("unrecorded", Small),
    sqlite_strict=True,
)
Index(
    "ix_replay_event_end",
    replay_event.c.episode_id,
    sqlite_where=replay_event.c.ends.is_not(None),
    postgresql_where=replay_event.c.ends.is_not(None),
)

# The tally holds sums over all replays, by domain and by slot of the count of replays. It stays when events are pruned.
replay_tally = Table(
    "replay_tally",
    metadata,
    Column("buffer_id", Id, primary_key=True, autoincrement=False),
    Column("slot", Count, primary_key=True, autoincrement=False),
    Column("domain_id", Id, primary_key=True, autoincrement=False),
    Column("replays", Count, nullable=False),
    Column("loss_sum", Float, nullable=False),
    Column("last_step", Count),
    Column("last_at", Float, nullable=False),
    sqlite_with_rowid=False,
    sqlite_strict=True,
)

checkpoint = Table(
    "checkpoint",
    metadata,
    Column("buffer_id", Id, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("document", Text, nullable=False),
    Column("data", LargeBinary, nullable=False),
    Column("crc32", Count, nullable=False),
    Column("rng", Text, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("revision", Count, nullable=False),
    Column("inserted", Count, nullable=False),
    Column("checksum", Count),
    sqlite_strict=True,
)


def first_id(buffer_id: int) -> int:
    """Return the id just below the first id of this buffer. Sequence number 1 of buffer 1 is id 1."""
    return (buffer_id - 1) << SEQUENCE_BITS


def id_range(buffer_id: int) -> tuple[int, int]:
    """Return the smallest and the largest id that the buffer can ever issue, both inclusive."""
    return first_id(buffer_id) + 1, first_id(buffer_id + 1)


def of_buffer(buffer_id: int, ids: ColumnElement[int]) -> ColumnElement[bool]:
    """Return the condition that an id belongs to the buffer."""
    return ids.between(*id_range(buffer_id))
