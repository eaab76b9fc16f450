"""``docs/schema.md``: every table and view, column by column.

Written anew by

    python -m tests.support.schema_page > docs/schema.md

from the tables that the code declares, the views that the migrations make, and the descriptions below.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Table, UniqueConstraint, create_engine, inspect
from sqlalchemy.types import Float, Integer, LargeBinary, SmallInteger, Text, TypeEngine

from memstore.storage import schema, upgrade
from memstore.storage.address import parse_url
from memstore.storage.database import Database

INTRODUCTION = f"""\
# Tables and views

For programs beside the library. Schema {upgrade.HEAD}; written by
`python -m tests.support.schema_page > docs/schema.md`.

**What may be relied on.** The views `v_episode`, `v_domain` and `v_history`: their names, and the names, order and
meaning of their columns; a later schema only adds columns at the end. Tables may change with any schema revision
(`SELECT version_num FROM {schema.VERSION_TABLE}`). Read whatever you like and write nothing: counters, sums and
positions belong together.

**Ids.** Episodes, domains, strata and events each have 64-bit ids: buffer `b` gives out
`(b - 1) * 2^{schema.SEQUENCE_BITS} + 1`, the next one, and so on, without gaps, in the order of commits, and none
of them twice. All are below 2^53, so JSON and float64 columns keep them exact.

**Times** are float64 seconds since 1970 (UTC), by the clock of the process that wrote them; an episode's
`timestamp` is whatever was given to `add`. **Losses** are finite and at least 0. What is not known is NULL: the
loss of an episode that was never measured, the step of an update that was given none.

**Opening it during training.** Readers and writers never wait for each other, and a statement sees whole commits
only. Open it read-only:

```sh
sqlite3 'file:run.db?mode=ro' 'SELECT * FROM v_domain'
PGOPTIONS='-c default_transaction_read_only=on' psql postgresql://user@host/database -c 'SELECT * FROM v_domain'
duckdb -c "ATTACH 'run.db' AS run (TYPE sqlite, READ_ONLY); SELECT * FROM run.v_domain"
datasette run.db        # without --immutable, which would not see what training commits
```

Where nothing can be made beside the file (`mode=ro` then says "unable to open"), `?immutable=1` reads it, if it has no
`-wal` and nobody writes it: sqlite3 would not notice, `memstore.open` does. Copy a database with `memstore backup`, put
one back with `memstore restore`, and never take `run.db` without its `run.db-wal`, or delete that: it holds commits.

A reader that keeps one transaction open for hours keeps SQLite's log, or PostgreSQL's dead rows, from being cleaned
up. `v_episode` finds rows by `episode_id`, and within a `buffer` by `timestamp`; `v_history` by `event`. Other
conditions scan; `memory.query()` and `memory.history()` know shorter ways.
"""


INT, FLOAT, TEXT = "int64", "float64", "text"
View = dict[str, tuple[str, str]]

VIEWS: dict[str, tuple[str, View]] = {
    "v_episode": (
        "One row for each live episode.",
        {
            "episode_id": (INT, "the episode's id"),
            "buffer": (TEXT, "name of its buffer"),
            "domain": (TEXT, "as given to `add`"),
            "timestamp": (FLOAT, "as given to `add`; the time of the call by default"),
            "level": (INT, "as given to `add`"),
            "key": (TEXT, "idempotency key, as given to `add`"),
            "extra": (TEXT, "JSON, as given to `add`"),
            "loss": (FLOAT, "last measured loss"),
            "lowest_loss": (FLOAT, "smallest loss ever measured"),
            "rise": (FLOAT, "`loss - lowest_loss`: what was forgotten"),
            "replay_count": (INT, "number of loss updates"),
            "last_replayed_at": (FLOAT, "time of the last loss update"),
            "payload_bytes": (INT, "size of the encoded payload"),
        },
    ),
    "v_domain": (
        "One row for each domain that a buffer has ever held.",
        {
            "buffer": (TEXT, "name of the buffer"),
            "domain": (TEXT, "name of the domain"),
            "episodes": (INT, "live episodes"),
            "never_measured": (INT, "those of them without a loss"),
            "mean_loss": (FLOAT, "mean of the last measured losses"),
            "highest_loss": (FLOAT, "largest of them"),
            "replays": (INT, "loss updates ever, of episodes that have left too; none while the history is off"),
        },
    ),
    "v_history": (
        "One row for each recorded event: a replay, or a departure.",
        {
            "event": (INT, "number of the event; in each buffer they grow in the order of commits"),
            "buffer": (TEXT, "name of the buffer"),
            "episode_id": (INT, "the episode, live or not"),
            "domain": (TEXT, "its domain; NULL only for events older than schema 0003 of episodes that had left"),
            "what": (TEXT, "`replayed`, `evicted`, `deleted`, `consolidated`, `exhausted` or `resized`"),
            "reason": (TEXT, "by which rule it left: the eviction policy, a limit of the retention policy"),
            "at": (FLOAT, "time of the event"),
            "step": (INT, "the trainer's step, as given to `update`"),
            "consumer": (TEXT, "who replayed it, or made it leave"),
            "strategy": (TEXT, "what drew the batch; NULL when `update` was given ids"),
            "loss_before": (FLOAT, "loss until then"),
            "loss_after": (FLOAT, "loss from then on; NULL for a departure"),
            "probability": (FLOAT, "as in the batch that drew it"),
            "weight": (FLOAT, "as in the batch that drew it"),
        },
    ),
}

TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "buffer": (
        "One row for each buffer: its settings, and counters that every writer changes under the lock on this row.",
        {
            "id": "number of the buffer, from 1; never used again",
            "name": "as given to `open`",
            "capacity": "most live episodes",
            "epsilon": "added to a loss to make a priority",
            "alpha": "exponent of the stored weight sums",
            "strategy": "default strategy, JSON",
            "eviction": "what leaves at capacity",
            "max_replays": "loss updates after which an episode leaves; NULL: none",
            "signature": "fields of the payloads, JSON; NULL before the first add",
            "limiter": "`SamplesPerInsert`, JSON; NULL: none",
            "history": "what the history records and how long, JSON; NULL: everything, for ever",
            "seed": "where random streams begin",
            "created_at": "time of creation",
            "created_by": "version of memstore that created it",
            "revision": "number of the last commit",
            "inserted": "episodes ever offered; also the sequence of the newest id",
            "events": "loss updates ever",
            "domains": "domains ever; also the sequence of the newest id",
            "strata": "strata ever; also the sequence of the newest id",
            "live_replays": "sum of the live episodes' `replay_count`",
            "high_water": "largest priority ever measured; NULL before any",
            "reservoir_floor": "largest key that left the reservoir; NULL before any, and under other policies",
            "recorded": "events ever recorded; also the sequence of the newest id",
            "checksum": "of the row's settings, name, signature and creation; NULL before schema 0004",
            "counters_checksum": "of the row's counters, from `revision` to `recorded`; NULL before schema 0004",
        },
    ),
    "domain": (
        "Names of domains; a row stays when its episodes have left.",
        {
            "id": "the domain's id",
            "buffer_id": "its buffer",
            "name": "as given to `add`",
            "checksum": "of the row's id and name; NULL before schema 0004",
        },
    ),
    "episode": (
        "What never changes of a live episode.",
        {
            "id": "the episode's id",
            "buffer_id": "its buffer",
            "domain_id": "its domain",
            "timestamp": "as given to `add`",
            "level": "as given to `add`",
            "key": "idempotency key, as given to `add`",
            "extra": "JSON, as given to `add`",
            "checksum": "of the row's facts, and the tags; NULL before schema 0004",
        },
    ),
    "episode_key": (
        "Every key ever used; stays when the episode leaves.",
        {
            "buffer_id": "its buffer",
            "key": "as given to `add`",
            "episode_id": "the first episode with this key",
            "checksum": "of the row's key and id; NULL before schema 0004",
        },
    ),
    "episode_tag": (
        "Tags of live episodes.",
        {
            "buffer_id": "its buffer",
            "tag": "as given to `add`",
            "episode_id": "the episode",
            "ordinal": "place in the order given, from 0",
        },
    ),
    "payload": (
        "Payloads of live episodes.",
        {
            "episode_id": "the episode",
            "crc32": "CRC-32 of `data`, started from the id",
            "data": "the fields one after the other, as the buffer's signature says",
        },
    ),
    "replay_metadata": (
        "What changes of a live episode.",
        {
            "episode_id": "the episode",
            "buffer_id": "its buffer",
            "loss": "last measured loss",
            "lowest_loss": "smallest loss ever measured",
            "replay_count": "number of loss updates",
            "last_replayed_at": "time of the last loss update",
            "stratum_id": "stratum where it stands",
            "position": "its place there, 0 to `count - 1` without gaps",
            "last_event_id": "its last recorded event, where its chain begins; NULL or 0: none",
            "eviction_group": "domain's sequence under `largest_domain`, 0 under `reservoir`; NULL under others",
            "eviction_key": "order of leaving within the group: the id, or the reservoir's random key",
        },
    ),
    "stratum": (
        "The sampling index: episodes of one domain whose priorities lie in one half-octave or a little below.",
        {
            "id": "the stratum's id",
            "buffer_id": "its buffer",
            "domain_id": "its domain",
            "bucket": f"no priority in it is above 2^(bucket / 2); {schema.UNMEASURED}: never measured",
            "count": "live episodes in it",
            "weight_sum": "sum of (priority / 2^(bucket / 2))^alpha",
            "loss_sum": "sum of loss / 2^(bucket / 2)",
            "revision": "revision of the buffer when it last changed",
            "checksum": "of the row's other columns; NULL before schema 0004",
        },
    ),
    "limiter": (
        "One row for each buffer with a limiter.",
        {"buffer_id": "the buffer", "drawn": "episodes drawn, as the limiter counts them"},
    ),
    "lease": (
        "Episodes that one consumer holds.",
        {
            "buffer_id": "its buffer",
            "episode_id": "the episode",
            "token": "the same for all of a batch",
            "consumer": "who holds it",
            "expires_at": "when it is free again; by the database's clock",
        },
    ),
    "event_group": (
        "What events that happened at once have in common.",
        {
            "id": "number of the first of them",
            "buffer_id": "their buffer",
            "what": "as in `v_history`",
            "reason": "as in `v_history`",
            "at": "time of the events",
            "step": "the trainer's step, as given to `update`",
            "consumer": "who replayed, or made them leave",
            "strategy": "what drew the batch",
            "count": "how many they are, numbered without gaps",
            "checksum": "of the row's other columns, and of the events but for `ends`; NULL before schema 0004",
        },
    ),
    "replay_event": (
        "Recorded events, each of one episode; those of an episode are a chain.",
        {
            "id": "number of the event",
            "group_id": "its group",
            "episode_id": "the episode, live or not",
            "domain_id": "its domain",
            "loss_before": "loss until then",
            "loss_after": "loss from then on; NULL for a departure",
            "probability": "as in the batch that drew it",
            "weight": "as in the batch that drew it",
            "previous_id": "the episode's event before this; NULL: none. It may have been pruned",
            "ends": "1 for the last event of an episode that has left, otherwise NULL",
        },
    ),
    "replay_tally": (
        "What replays come to; stays when events are pruned.",
        {
            "buffer_id": "the buffer",
            "slot": "number of a batch's first replay, rounded down to a multiple of 1/512 to 1/256 of itself",
            "domain_id": "the domain",
            "replays": "number of replays",
            "loss_sum": "sum of the losses measured, each counted as 1e290 at most",
            "last_step": "last step that was given",
            "last_at": "time of the last replay",
        },
    ),
    "checkpoint": (
        "Trainers' states.",
        {
            "buffer_id": "its buffer",
            "name": "as given to `save_checkpoint`",
            "document": "the state without its arrays and bytes, JSON",
            "data": "the arrays and bytes, one after the other",
            "crc32": "CRC-32 of `document`, `data` and `rng`",
            "rng": "state of the random generator, JSON",
            "created_at": "when it was saved",
            "revision": "revision of the buffer then",
            "inserted": "episodes ever offered then",
            "checksum": "of the row's name, time and counters; NULL before schema 0004",
        },
    ),
}

_KINDS: list[tuple[type[TypeEngine[Any]], str]] = [
    (SmallInteger, "int16"),
    (Integer, INT),
    (Float, FLOAT),
    (Text, TEXT),
    (LargeBinary, "bytes"),
]


def kind(column: TypeEngine[Any]) -> str:
    """Name of a column's type on the page."""
    return next(name for known, name in _KINDS if isinstance(column, known))


def view_columns() -> dict[str, list[str]]:
    """Columns of every view that the migrations make."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "empty.db"
        database = Database(parse_url(file))
        upgrade.ensure_schema(database)
        database.close()
        engine = create_engine(f"sqlite:///{file}")
        inspector = inspect(engine)
        found = {
            name: [str(column["name"]) for column in inspector.get_columns(name)] for name in inspector.get_view_names()
        }
        engine.dispose()
    return found


def page() -> str:
    """All of the page."""
    return "\n".join([INTRODUCTION, "## Views", *_views(), "", "## Tables", *_tables()]) + "\n"


def _views() -> Iterator[str]:
    found = view_columns()
    for name, (about, columns) in VIEWS.items():
        yield f"\n### {name}\n\n{about}\n\n| column | type | holds |\n|---|---|---|"
        for column in found[name]:
            yield "| {} | {} | {} |".format(f"`{column}`", *columns[column])


def _tables() -> Iterator[str]:
    for name, table in schema.metadata.tables.items():
        about, columns = TABLES[name]
        yield f"\n### {name}\n\n{about} {_keys(table)}\n\n| column | type | NULL | holds |\n|---|---|---|---|"
        for column in table.columns:
            missing = "yes" if column.nullable else ""
            yield f"| `{column.name}` | {kind(column.type)} | {missing} | {columns[column.name]} |"


def _keys(table: Table) -> str:
    indexes = sorted(_named(index.columns) for index in table.indexes)
    unique = sorted(
        _named(constraint.columns) for constraint in table.constraints if isinstance(constraint, UniqueConstraint)
    )
    parts = [f"primary key {_named(table.primary_key.columns)}"]
    parts += [f"unique {columns}" for columns in unique] + [f"index {columns}" for columns in indexes]
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def _named(columns: Iterable[Any]) -> str:
    return "(" + ", ".join(f"`{column.name}`" for column in columns) + ")"


if __name__ == "__main__":
    print(page(), end="")
