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

# Each buffer has the ids above FIRST, up to LAST.
FIRST, LAST = "((b.id - 1) << 40)", "(b.id << 40)"

# avg() is not used, because PostgreSQL's avg() also sums squares, and a square that does not fit a float is an error.
SUM = "sum(CASE WHEN m.loss < 1e290 THEN m.loss WHEN m.loss >= 1e290 THEN 1e290 END)"
MEAN_LOSS = f"CASE WHEN {SUM} < 1e-300 THEN 0 ELSE {SUM} / nullif(count(m.loss), 0) END"
BEFORE = "coalesce(m.lowest_loss, e.loss_at_add)"

# The views read the tables, and lay the log since the last fold over them, as memstore.buffer.overlay does it.
# CROSS JOIN makes SQLite take the buffers first, and look up the part of the log of each. Columns that are computed are
# cast: otherwise SQLite would use no index behind UNION ALL, and programs would be told wrong types.
VIEWS = {
    "live_replay_metadata": f"""
        WITH touched AS MATERIALIZED (
            SELECT v.episode_id, b.id AS buffer_id, max(v.id) AS event, min(v.loss_after) AS lowest,
                count(v.ends) AS endings
            FROM buffer AS b CROSS JOIN replay_event AS v
            WHERE v.id > {FIRST} + b.folded_logged AND v.id <= {LAST}
            GROUP BY v.episode_id, b.id
        )
        SELECT m.episode_id, m.buffer_id, m.loss, m.lowest_loss, m.replay_count, m.last_replayed_at, m.last_event_id
        FROM replay_metadata AS m LEFT JOIN touched AS t ON t.episode_id = m.episode_id
        WHERE t.episode_id IS NULL
        UNION ALL
        SELECT e.id, b.id, e.loss_at_add, e.loss_at_add, CAST(0 AS BIGINT), CAST(NULL AS DOUBLE PRECISION),
            CAST(NULL AS BIGINT)
        FROM buffer AS b CROSS JOIN episode AS e LEFT JOIN touched AS t ON t.episode_id = e.id
        WHERE e.id > {FIRST} + b.folded_inserted AND e.id <= {LAST} AND t.episode_id IS NULL
        UNION ALL
        SELECT t.episode_id, t.buffer_id, v.loss_after,
            CAST(CASE WHEN {BEFORE} < t.lowest THEN {BEFORE} ELSE t.lowest END AS DOUBLE PRECISION),
            v.nth, g.at, CAST(CASE WHEN v.unrecorded IS NULL THEN v.id ELSE v.previous_id END AS BIGINT)
        FROM touched AS t JOIN replay_event AS v ON v.id = t.event
        LEFT JOIN event_group AS g ON g.id = v.group_id
        LEFT JOIN replay_metadata AS m ON m.episode_id = t.episode_id
        LEFT JOIN episode AS e ON e.id = t.episode_id
        WHERE t.endings < 1
    """,
    "v_episode": """
        SELECT e.id AS episode_id, b.name AS buffer, d.name AS domain, e.timestamp, e.level, e.key, e.extra,
            m.loss, m.lowest_loss, CAST(m.loss - m.lowest_loss AS DOUBLE PRECISION) AS rise, m.replay_count,
            m.last_replayed_at, CAST(length(p.data) AS BIGINT) AS payload_bytes
        FROM episode AS e
        JOIN live_replay_metadata AS m ON m.episode_id = e.id
        JOIN buffer AS b ON b.id = e.buffer_id
        JOIN domain AS d ON d.id = e.domain_id
        LEFT JOIN payload AS p ON p.episode_id = e.id
    """,
    "v_domain": f"""
        SELECT b.name AS buffer, d.name AS domain, CAST(coalesce(s.episodes, 0) AS BIGINT) AS episodes,
            CAST(coalesce(s.never_measured, 0) AS BIGINT) AS never_measured,
            CAST(s.mean_loss AS DOUBLE PRECISION) AS mean_loss,
            CAST(s.highest_loss AS DOUBLE PRECISION) AS highest_loss,
            CAST((SELECT coalesce(sum(t.replays), 0) FROM replay_tally AS t
                  WHERE t.buffer_id = d.buffer_id AND t.domain_id = d.id) AS BIGINT) AS replays
        FROM domain AS d
        JOIN buffer AS b ON b.id = d.buffer_id
        LEFT JOIN (
            SELECT e.domain_id, count(*) AS episodes, count(*) - count(m.loss) AS never_measured,
                {MEAN_LOSS} AS mean_loss, max(m.loss) AS highest_loss
            FROM live_replay_metadata AS m JOIN episode AS e ON e.id = m.episode_id
            GROUP BY e.domain_id
        ) AS s ON s.domain_id = d.id
    """,
    "v_history": f"""
        SELECT v.id AS event, b.name AS buffer, v.episode_id, d.name AS domain, g.what, g.reason,
            g.at, g.step, g.consumer, g.strategy, v.loss_before, v.loss_after, v.probability, v.weight
        FROM replay_event AS v
        JOIN event_group AS g ON g.id = v.group_id
        JOIN buffer AS b ON b.id = g.buffer_id
        LEFT JOIN domain AS d ON d.id = v.domain_id
        WHERE v.unrecorded IS NULL AND v.id > {FIRST} + b.history_from
    """,
}


def upgrade() -> None:
    for name in ("v_episode", "v_domain", "v_history"):
        op.execute(f"DROP VIEW {name}")
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
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")


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


def _given() -> dict[str, Any]:
    """Return what memstore gives to its migrations: the backend, and perhaps a function that is told the progress."""
    config = op.get_context().config
    assert config is not None
    return config.attributes


def _counted() -> Callable[[int], None]:
    """Return a function that takes a number of converted rows, and reports how many of all rows are done."""
    report = _given().get("progress")
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
    backend = _given()["backend"]
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
