"""The history in groups and chains, with departures and a tally; the lowest loss; views for other programs.

Revision ID: 0003
Revises: 0002
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: None = None
depends_on: None = None

Int64 = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
Float: sa.types.TypeEngine[float] = sa.Double().with_variant(sa.REAL(), "sqlite")

# A group is a run of events that share time, step, consumer and strategy. Within a run, the number of an event minus
# its rank among such events is constant.
GROUPED = """
    SELECT *, min(id) OVER (PARTITION BY buffer_id, at, step, consumer, strategy, island) AS group_id
    FROM (
        SELECT *, id - row_number() OVER (PARTITION BY buffer_id, at, step, consumer, strategy ORDER BY id) AS island
        FROM (SELECT *, ((id - 1) >> 40) + 1 AS buffer_id FROM flat_event) AS own
    ) AS ranked
"""
GROUPS = f"""
    INSERT INTO event_group (id, buffer_id, what, at, step, consumer, strategy, count)
    SELECT group_id, buffer_id, 'replayed', at, step, consumer, strategy, count(*)
    FROM ({GROUPED}) AS grouped GROUP BY group_id, buffer_id, at, step, consumer, strategy
"""
EVENTS = f"""
    INSERT INTO replay_event
        (id, group_id, episode_id, domain_id, loss_before, loss_after, previous_id, ends)
    SELECT g.id, g.group_id, g.episode_id, e.domain_id, g.loss_before, g.loss_after,
        lag(g.id) OVER (PARTITION BY g.episode_id ORDER BY g.id),
        CASE WHEN e.id IS NULL AND lead(g.id) OVER (PARTITION BY g.episode_id ORDER BY g.id) IS NULL THEN 1 END
    FROM ({GROUPED}) AS g LEFT JOIN episode AS e ON e.id = g.episode_id ORDER BY g.id
"""
LOWEST = """
    UPDATE replay_metadata SET last_event_id = known.last,
        lowest_loss = CASE WHEN loss <= known.lowest THEN loss ELSE known.lowest END
    FROM (
        SELECT episode_id, max(id) AS last,
            min(CASE WHEN loss_before < loss_after THEN loss_before ELSE loss_after END) AS lowest
        FROM replay_event GROUP BY episode_id
    ) AS known WHERE known.episode_id = replay_metadata.episode_id AND loss IS NOT NULL
"""
SUMS = """
    SELECT g.buffer_id, g.id - ((g.buffer_id - 1) << 40), v.domain_id, count(*),
        sum(CASE WHEN v.loss_after < 1e290 THEN v.loss_after ELSE 1e290 END), g.step, g.at
    FROM replay_event AS v JOIN event_group AS g ON g.id = v.group_id
    WHERE v.domain_id IS NOT NULL GROUP BY g.buffer_id, g.id, v.domain_id, g.step, g.at ORDER BY g.id
"""

# avg() is not used, because PostgreSQL's avg() also sums squares, and a square that does not fit a float is an error.
SUM = "sum(CASE WHEN m.loss < 1e290 THEN m.loss WHEN m.loss >= 1e290 THEN 1e290 END)"
MEAN_LOSS = f"CASE WHEN {SUM} < 1e-300 THEN 0 ELSE {SUM} / nullif(count(m.loss), 0) END"

# Expressions are cast for programs that ask for the types of columns. Without a cast, length() would be an int4.
VIEWS = {
    "v_episode": """
        SELECT e.id AS episode_id, b.name AS buffer, d.name AS domain, e.timestamp, e.level, e.key, e.extra,
            m.loss, m.lowest_loss, CAST(m.loss - m.lowest_loss AS DOUBLE PRECISION) AS rise, m.replay_count,
            m.last_replayed_at, CAST(length(p.data) AS BIGINT) AS payload_bytes
        FROM episode AS e
        JOIN replay_metadata AS m ON m.episode_id = e.id
        JOIN buffer AS b ON b.id = e.buffer_id
        JOIN domain AS d ON d.id = e.domain_id
        LEFT JOIN payload AS p ON p.episode_id = e.id
    """,
    "v_domain": f"""
        SELECT b.name AS buffer, d.name AS domain, CAST(count(m.episode_id) AS BIGINT) AS episodes,
            CAST(count(m.episode_id) - count(m.loss) AS BIGINT) AS never_measured,
            CAST({MEAN_LOSS} AS DOUBLE PRECISION) AS mean_loss,
            CAST(max(m.loss) AS DOUBLE PRECISION) AS highest_loss,
            CAST((SELECT coalesce(sum(t.replays), 0) FROM replay_tally AS t
                  WHERE t.buffer_id = d.buffer_id AND t.domain_id = d.id) AS BIGINT) AS replays
        FROM domain AS d
        JOIN buffer AS b ON b.id = d.buffer_id
        LEFT JOIN episode AS e ON e.domain_id = d.id
        LEFT JOIN replay_metadata AS m ON m.episode_id = e.id
        GROUP BY d.id, d.buffer_id, b.name, d.name
    """,
    "v_history": """
        SELECT v.id AS event, b.name AS buffer, v.episode_id, d.name AS domain, g.what, g.reason,
            g.at, g.step, g.consumer, g.strategy, v.loss_before, v.loss_after, v.probability, v.weight
        FROM replay_event AS v
        JOIN event_group AS g ON g.id = v.group_id
        JOIN buffer AS b ON b.id = g.buffer_id
        LEFT JOIN domain AS d ON d.id = v.domain_id
    """,
}


def upgrade() -> None:
    op.add_column("buffer", sa.Column("history", sa.Text()))
    op.add_column("buffer", sa.Column("recorded", Int64, nullable=False, server_default="0"))
    op.add_column("replay_metadata", sa.Column("lowest_loss", Float))
    op.add_column("replay_metadata", sa.Column("last_event_id", Int64))
    if _postgres():  # constraints keep their names if their table is renamed
        op.drop_constraint("pk_replay_event", "replay_event")
        for name in ("id", "episode_id"):
            op.alter_column("replay_event", name, nullable=True)
    op.rename_table("replay_event", "flat_event")
    _create_tables()
    op.execute("UPDATE buffer SET recorded = events")
    op.execute(GROUPS)
    op.execute(EVENTS)
    op.drop_table("flat_event")
    ended = sa.text("ends IS NOT NULL")
    op.create_index("ix_replay_event_end", "replay_event", ["episode_id"], sqlite_where=ended, postgresql_where=ended)
    op.execute("UPDATE replay_metadata SET lowest_loss = loss")
    op.execute(LOWEST)
    _tally()
    if _postgres():
        op.execute("ALTER TABLE replay_tally SET (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.0)")
    for name, query in VIEWS.items():
        op.execute(f"CREATE VIEW {name} AS {query}")


def _postgres() -> bool:
    return op.get_bind().dialect.name == "postgresql"


def _create_tables() -> None:
    op.create_table(
        "event_group",
        sa.Column("id", Int64, autoincrement=False, nullable=False),
        sa.Column("buffer_id", Int64, nullable=False),
        sa.Column("what", sa.Text(), nullable=False),
        sa.Column("reason", sa.Text()),
        sa.Column("at", Float, nullable=False),
        sa.Column("step", Int64),
        sa.Column("consumer", sa.Text()),
        sa.Column("strategy", sa.Text()),
        sa.Column("count", Int64, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_event_group"),
        sqlite_strict=True,
    )
    op.create_index("ix_event_group_buffer_id_at", "event_group", ["buffer_id", "at"])
    op.create_index("ix_event_group_buffer_id_step", "event_group", ["buffer_id", "step"])
    op.create_table(
        "replay_event",
        sa.Column("id", Int64, autoincrement=False, nullable=False),
        sa.Column("group_id", Int64, nullable=False),
        sa.Column("episode_id", Int64, nullable=False),
        sa.Column("domain_id", Int64),
        sa.Column("loss_before", Float),
        sa.Column("loss_after", Float),
        sa.Column("probability", Float),
        sa.Column("weight", Float),
        sa.Column("previous_id", Int64),
        sa.Column("ends", sa.SmallInteger().with_variant(sa.Integer(), "sqlite")),
        sa.PrimaryKeyConstraint("id", name="pk_replay_event"),
        sqlite_strict=True,
    )
    op.create_table(
        "replay_tally",
        sa.Column("buffer_id", Int64, autoincrement=False, nullable=False),
        sa.Column("slot", Int64, autoincrement=False, nullable=False),
        sa.Column("domain_id", Int64, autoincrement=False, nullable=False),
        sa.Column("replays", Int64, nullable=False),
        sa.Column("loss_sum", Float, nullable=False),
        sa.Column("last_step", Int64),
        sa.Column("last_at", Float, nullable=False),
        sa.PrimaryKeyConstraint("buffer_id", "slot", "domain_id", name="pk_replay_tally"),
        sqlite_strict=True,
        sqlite_with_rowid=False,
    )


def _tally() -> None:
    tallies: dict[tuple[int, int, int], list[float]] = {}
    last: dict[tuple[int, int, int], tuple[int | None, float]] = {}
    for buffer_id, number, domain_id, replays, losses, step, at in op.get_bind().execute(sa.text(SUMS)):
        shift = max(number.bit_length() - 9, 0)
        place = (buffer_id, number >> shift << shift, domain_id)
        so_far = tallies.setdefault(place, [0, 0.0])
        so_far[0] += replays
        so_far[1] += losses
        known = last.get(place, (None, at))[0]
        last[place] = (known if step is None else step, at)
    table = sa.table(
        "replay_tally",
        *(
            sa.column(name)
            for name in ("buffer_id", "slot", "domain_id", "replays", "loss_sum", "last_step", "last_at")
        ),
    )
    rows = [dict(zip(table.c.keys(), (*place, *tallies[place], *last[place]), strict=True)) for place in tallies]
    if rows:
        op.bulk_insert(table, rows)


def downgrade() -> None:
    raise NotImplementedError("memstore has no downgrades; restore the copy that 'memstore upgrade' made")
