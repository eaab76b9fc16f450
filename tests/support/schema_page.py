"""Writes ``docs/schema.md``, which describes every table and view, column by column.

The command

    python -m tests.support.schema_page > docs/schema.md

writes the page from the tables that the code declares, the views that the migrations make, and the descriptions below.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sqlalchemy import Table, UniqueConstraint, create_engine, inspect
from sqlalchemy.types import Float, Integer, LargeBinary, SmallInteger, Text, TypeEngine

from memstore.buffer import folding
from memstore.storage import schema, upgrade
from memstore.storage.address import parse_url
from memstore.storage.database import Database

INTRODUCTION = f"""\
# Tables and views

This page is for programs that read the database without the library. It describes schema {upgrade.HEAD}. The command
`python -m tests.support.schema_page > docs/schema.md` writes it.

**What you can rely on.** The views `v_episode`, `v_domain` and `v_history` keep their names, and the names, order and
meaning of their columns. A later schema only adds columns at the end. Tables, and the view `live_replay_metadata`, may
change with any schema revision (`SELECT version_num FROM {schema.VERSION_TABLE}`). Read what you like, but write
nothing: counters, sums and blocks depend on each other.

**The log, and the tables that follow it.** What happens is appended to a log, and to nothing else. The log of a buffer
has three kinds of entries: a row of `episode` for each episode that came, with its `payload` and its tags; a row of
`replay_event` for each loss update; and a row of `replay_event` with `ends` = 1 for each episode that left. The row of
`buffer` counts them: `inserted` episodes and `logged` events. From time to time one write brings the other tables to
the end of the log. This is a *fold*: it writes the rows of `block` and of `replay_metadata`, deletes what is left of
episodes that left, and deletes the events that the history does not keep. Between two folds

- `replay_metadata` is as it was at the last fold, and has no row for episodes that came since;
- `episode`, `payload` and `episode_tag` also hold episodes that left since;
- `replay_event` and `event_group` also hold events that the history does not record (`unrecorded` = 1), and events that
  it has forgotten (up to number `history_from`);
- a row of `block` is as it was when blocks were last stored, and others may be missing.

The tables stand at `folded_inserted` and `folded_logged`, the blocks at `stored_inserted` and `stored_logged`. They are
behind by at most {folding.SMALLEST_WINDOW:,} to {folding.LARGEST_WINDOW:,} entries: four for each episode of the
capacity, within these bounds. They fold earlier when 64 MiB of payloads have come. `memstore fold`, `memory.fold()` and
`memory.close()` fold at once, and so does a new policy by `configure`. A killed process leaves the log as it is, and
the next fold is made by whoever writes. A fold never changes what is drawn.

**The views are right at any time.** They lay the log since the fold over the tables, as the library does. After a fold
this costs nothing. With a full window (1M episodes, 131,072 entries; seconds of CPU, SQLite 3.40):

| question | folded | full window |
|---|---|---|
| `SELECT avg(loss) FROM v_episode` | 0.38 | 0.85 |
| `SELECT * FROM v_episode WHERE episode_id = ...` | 0.0001 | 0.08 |
| `SELECT * FROM v_domain` | 0.77 | 1.2 |
| `SELECT count(*) FROM v_history` | 0.04 | 0.04 |
| `SELECT avg(loss) FROM live_replay_metadata` | 0.12 | 0.48 |
| the same, ten largest losses where `buffer_id = 1` | 0.07 | 0.22 |

So run `memstore fold` before you ask for much. To read tables without the views, join with `live_replay_metadata`: it
has a row for each live episode and no other.

**Ids.** Episodes, domains, blocks and events have 64-bit ids. Buffer `b` gives them the numbers
`(b - 1) * 2^{schema.SEQUENCE_BITS} + 1` and so on, in the order of commits, without gaps, and no number twice. All ids
are below 2^53, so JSON and float64 columns hold them exactly.

**Times** are float64 seconds since 1970 (UTC), by the clock of the process that wrote them. Only the `timestamp` of an
episode is different: it is the number that was given to `add`. **Losses** are finite and at least 0. A value that is
not known is NULL, such as the loss of an episode that was never measured, or the step of an update without a step.

**Reading during training.** Readers and writers never wait for each other, and a statement sees only whole commits.
Open the database read-only:

```sh
sqlite3 'file:run.db?mode=ro' 'SELECT * FROM v_domain'
PGOPTIONS='-c default_transaction_read_only=on' psql postgresql://user@host/database -c 'SELECT * FROM v_domain'
duckdb -c "ATTACH 'run.db' AS run (TYPE sqlite, READ_ONLY); SELECT * FROM run.v_domain"
datasette run.db        # without --immutable: with it, new commits of the training are not seen
```

If no file can be created beside the database, `mode=ro` fails with "unable to open". Then `?immutable=1` reads it, but
only if there is no `-wal` file and nobody writes it. sqlite3 does not notice a writer; `memstore.open` does.
Copy a database with `memstore backup`, and put a copy back with `memstore restore`. Never copy `run.db` without its
`run.db-wal`, and never delete `run.db-wal`: it holds commits.

While a reader keeps one transaction open, SQLite's log and PostgreSQL's dead rows cannot be cleaned up; so do not keep
one open for hours. `v_episode` finds rows quickly by `episode_id`, and in a `buffer` by `timestamp`; `v_history` finds
them by `event`. Other conditions scan all rows. `memory.query()` and `memory.history()` are faster for many of them.
"""


INT, FLOAT, TEXT = "int64", "float64", "text"
View = dict[str, tuple[str, str]]

VIEWS: dict[str, tuple[str, View]] = {
    "live_replay_metadata": (
        "The table `replay_metadata` as it would be after a fold: one row for each live episode.",
        {
            "episode_id": (INT, "the episode"),
            "buffer_id": (INT, "its buffer"),
            "loss": (FLOAT, "last measured loss"),
            "lowest_loss": (FLOAT, "smallest loss ever measured"),
            "replay_count": (INT, "number of loss updates"),
            "last_replayed_at": (FLOAT, "time of the last loss update"),
            "last_event_id": (INT, "its last recorded event, where its chain begins; NULL or 0: no event"),
        },
    ),
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
            "rise": (FLOAT, "`loss - lowest_loss`: how much was forgotten"),
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
            "never_measured": (INT, "live episodes without a loss"),
            "mean_loss": (FLOAT, "mean of the last measured losses"),
            "highest_loss": (FLOAT, "largest of the last measured losses"),
            "replays": (
                INT,
                "all loss updates, also of episodes that have left; none are counted while history is off",
            ),
        },
    ),
    "v_history": (
        "One row for each recorded event: a replay, or a departure.",
        {
            "event": (INT, "number of the event; in a buffer, numbers grow in the order of commits"),
            "buffer": (TEXT, "name of the buffer"),
            "episode_id": (INT, "the episode, live or not"),
            "domain": (TEXT, "its domain; NULL only if the event is older than schema 0003 and the episode had left"),
            "what": (TEXT, "`replayed`, `evicted`, `deleted`, `consolidated`, `exhausted` or `resized`"),
            "reason": (TEXT, "the rule by which it left: the eviction policy, or a limit of the retention policy"),
            "at": (FLOAT, "time of the event"),
            "step": (INT, "the trainer's step, as given to `update`"),
            "consumer": (TEXT, "the consumer that replayed it, or made it leave"),
            "strategy": (TEXT, "the strategy that drew the batch; NULL if `update` was given ids"),
            "loss_before": (FLOAT, "loss before the event"),
            "loss_after": (FLOAT, "loss after the event; NULL for a departure"),
            "probability": (FLOAT, "probability of the draw, as in the batch"),
            "weight": (FLOAT, "importance weight, as in the batch"),
        },
    ),
}

TABLES: dict[str, tuple[str, dict[str, str]]] = {
    "buffer": (
        "One row for each buffer: its settings and its counters. Every writer changes the counters and locks this row.",
        {
            "id": "number of the buffer, from 1; never used again",
            "name": "as given to `open`",
            "capacity": "largest number of live episodes",
            "epsilon": "added to a loss to make a priority",
            "alpha": "exponent of the weights that blocks have sums of",
            "strategy": "default strategy, JSON",
            "eviction": "name of the eviction policy",
            "max_replays": "loss updates after which an episode leaves; NULL: no limit",
            "signature": "fields of the payloads, JSON; NULL before the first add",
            "limiter": "`SamplesPerInsert`, JSON; NULL: no limiter",
            "history": "rules of the history (which events, for how long), JSON; NULL: all events, for ever",
            "seed": "seed of the random streams",
            "created_at": "time of creation",
            "created_by": "version of memstore that created the buffer",
            "revision": "number of the last commit",
            "inserted": "number of episodes ever offered; also the sequence of the newest id",
            "events": "number of all loss updates",
            "domains": "number of all domains; also the sequence of the newest id",
            "live_replays": "sum of the live episodes' `replay_count`",
            "high_water": "largest priority ever measured; NULL before the first",
            "reservoir_floor": "largest key that left the reservoir; NULL before the first, and under other policies",
            "recorded": "number of all events that the history ever recorded",
            "departed": "number of episodes that ever left, those included that a reservoir turned away",
            "token": "random number of the last commit",
            "logged": "number of all events, recorded or not; also the sequence of the newest id",
            "log_sum": "sum of a checksum of each entry of the log, modulo 2^64",
            "history_from": "sequence of the last event that the history has forgotten",
            "stored_inserted": "the rows of blocks stand at this number of episodes",
            "stored_logged": "the rows of blocks stand at this number of events",
            "stored_sum": "`log_sum` at that point",
            "block_sum": "a number made of the names and tokens of all rows of blocks",
            "folded_inserted": "the other tables stand at this number of episodes",
            "folded_logged": "the other tables stand at this number of events",
            "fold_at": "blocks are merged, and all is folded, when `inserted + logged` reaches this",
            "waiting_bytes": "bytes of the payloads that came since the fold",
            "checksum": "checksum of settings, name, signature and creation; NULL if older than schema 0004",
            "counters_checksum": "checksum of the counters; NULL only if no write came since schema 0003",
        },
    ),
    "domain": (
        "Names of domains. A row stays after its episodes have left.",
        {
            "id": "the domain's id",
            "buffer_id": "its buffer",
            "name": "as given to `add`",
            "checksum": "checksum of id and name; NULL if older than schema 0004",
        },
    ),
    "episode": (
        "The part of an episode that never changes. Episodes that left are deleted by the fold.",
        {
            "id": "the episode's id",
            "buffer_id": "its buffer",
            "domain_id": "its domain",
            "timestamp": "as given to `add`",
            "level": "as given to `add`",
            "key": "idempotency key, as given to `add`",
            "extra": "JSON, as given to `add`",
            "checksum": "checksum of the columns before it and of the tags; NULL if older than schema 0004",
            "loss_at_add": "the loss given to `add`; NULL: none, or older than schema 0005",
        },
    ),
    "episode_key": (
        "All keys ever used. A row stays after its episode has left.",
        {
            "buffer_id": "its buffer",
            "key": "as given to `add`",
            "episode_id": "the first episode with this key",
            "checksum": "checksum of key and id; NULL if older than schema 0004",
        },
    ),
    "episode_tag": (
        "Tags of episodes. Those of episodes that left are deleted by the fold.",
        {
            "buffer_id": "its buffer",
            "tag": "as given to `add`",
            "episode_id": "the episode",
            "ordinal": "index of the tag in the list given to `add`, from 0",
        },
    ),
    "payload": (
        "Payloads of episodes. Those of episodes that left are deleted by the fold.",
        {
            "episode_id": "the episode",
            "crc32": "CRC-32 of `data`, started from the id",
            "data": "the fields one after the other, in the layout of the buffer's signature",
        },
    ),
    "replay_metadata": (
        "The part of a live episode that changes, as it was at the last fold. `live_replay_metadata` has it as it is.",
        {
            "episode_id": "the episode",
            "buffer_id": "its buffer",
            "loss": "last measured loss",
            "lowest_loss": "smallest loss ever measured",
            "replay_count": "number of loss updates",
            "last_replayed_at": "time of the last loss update",
            "last_event_id": "its last recorded event, where its chain begins; NULL or 0: no event",
        },
    ),
    "block": (
        "The sampling index. A block is up to 80 episodes of one domain, in the order of their ids.",
        {
            "id": "name of the block: the first episode that was ever put into it",
            "buffer_id": "its buffer",
            "domain_id": "its domain",
            "first_id": "smallest live id; NULL: the block is empty",
            "last_id": "largest live id; NULL: the block is empty",
            "least_loss": "smallest measured loss; NULL: none is measured",
            "largest_loss": "largest measured loss; NULL: none is measured",
            "mean_loss": "mean of the measured losses; 0: none is measured",
            "weight_sum": "sum of (loss + epsilon)^alpha over the measured ones, in units of 2^`unit`",
            "unit": "a multiple of 512; 0 as long as weights are between 2^-256 and 2^256",
            "eviction_key": "smallest random key of its episodes under `reservoir`; else NULL",
            "put": "episodes that were put into it since it was made; 80: it takes no more",
            "live": "live episodes in it",
            "unmeasured": "how many of these were never measured",
            "revision": "revision of the buffer when the row was written",
            "token": "the buffer's `token` when the row was written",
            "checksum": "checksum of the row's other columns without `buffer_id` and `data`",
            "data": "CRC-32; ids, losses, lowest losses, replay counts, last events, times, 8 bytes each; NaN, 0: none",
        },
    ),
    "limiter": (
        "One row for each buffer with a limiter.",
        {"buffer_id": "the buffer", "drawn": "episodes drawn, as the limiter counts them"},
    ),
    "lease": (
        "Leased episodes: each is held by one consumer.",
        {
            "buffer_id": "its buffer",
            "episode_id": "the episode",
            "token": "the same for all episodes of a batch",
            "consumer": "the consumer that holds it",
            "expires_at": "end of the lease, by the database's clock",
        },
    ),
    "event_group": (
        "Events that happened together, with the values that they have in common.",
        {
            "id": "number of the first event",
            "buffer_id": "their buffer",
            "what": "as in `v_history`",
            "reason": "as in `v_history`",
            "at": "time of the events",
            "step": "the trainer's step, as given to `update`",
            "consumer": "the consumer that replayed the episodes, or made them leave",
            "strategy": "the strategy that drew the batch",
            "count": "number of the events; their numbers have no gaps",
            "checksum": "checksum of the row, and of the events without `ends`; NULL if older than schema 0004",
            "recorded": "`recorded` of the buffer after these events; NULL if unrecorded, or older than schema 0005",
            "unrecorded": "1 if the history does not record these events; the fold deletes them. Otherwise NULL",
        },
    ),
    "replay_event": (
        "Events: replays and departures. The recorded events of an episode form a chain.",
        {
            "id": "number of the event",
            "group_id": "its group",
            "episode_id": "the episode, live or not",
            "domain_id": "its domain",
            "loss_before": "loss before the event",
            "loss_after": "loss after the event; NULL for a departure",
            "probability": "probability of the draw, as in the batch",
            "weight": "importance weight, as in the batch",
            "previous_id": "the episode's recorded event before this one, which may be forgotten; NULL: none",
            "ends": "1 for a departure, and for the last recorded event of an episode whose departure is not recorded",
            "nth": "`replay_count` after it; NULL: a newcomer was turned away, or the event is older than schema 0005",
            "unrecorded": "1 if the history does not record it; the fold deletes it. Otherwise NULL",
        },
    ),
    "replay_tally": (
        "Sums over replays. They stay after events have been pruned.",
        {
            "buffer_id": "the buffer",
            "slot": "number of a batch's first replay, rounded down to a multiple of 1/512 to 1/256 of itself",
            "domain_id": "the domain",
            "replays": "number of replays",
            "loss_sum": "sum of the measured losses; each counts as 1e290 at most",
            "last_step": "last step given to `update`",
            "last_at": "time of the last replay",
        },
    ),
    "checkpoint": (
        "Saved states of trainers.",
        {
            "buffer_id": "its buffer",
            "name": "as given to `save_checkpoint`",
            "document": "the state without its arrays and bytes, JSON",
            "data": "the arrays and bytes, one after the other",
            "crc32": "CRC-32 of `document`, `data` and `rng`",
            "rng": "state of the random generator, JSON",
            "created_at": "time of the save",
            "revision": "revision of the buffer at that time",
            "inserted": "number of episodes ever offered, at that time",
            "checksum": "checksum of name, time and counters; NULL if older than schema 0004",
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
