"""Compares the tables, indexes and views of a SQLite file with those that the migrations make.

All definitions are read (0.3 ms) when a file is opened, before anything else. A view or a trigger in the file, or an
expression in a definition, would run whenever memstore reads or writes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from memstore.storage.schema import VERSION_TABLE, metadata


class Definition(NamedTuple):
    """A row of ``sqlite_master``."""

    kind: str
    name: str
    table: str
    sql: str | None


REVISION = "0005"
"""The fingerprints in ``LAYOUT`` belong to this schema revision."""

LAYOUT: dict[str, str] = {
    "block": "59d1cae1457df079",
    "buffer": "7fcaa6ac64e273b7",
    "checkpoint": "0cd6e2a0a4e323c5",
    "domain": "feae5b3e58248558",
    "episode": "c05b5daa10dc62b5",
    "episode_key": "eeb479fd1e0b0f59",
    "episode_tag": "1552a6c96b28e98d",
    "event_group": "7aed5b50c4b92a56",
    "ix_block_buffer_id_revision": "683099f126d9f6e1",
    "ix_episode_buffer_id_timestamp": "eac59a46533dc3b5",
    "ix_episode_domain_id_timestamp": "ac1c9426dc3e45ad",
    "ix_episode_tag_episode_id": "b21f831b29a1ed4e",
    "ix_event_group_buffer_id_at": "89159f738ef4ac6f",
    "ix_event_group_buffer_id_step": "17e171e012196592",
    "ix_replay_event_end": "a8cc861f81e95f93",
    "ix_replay_metadata_buffer_id_loss": "a8ad3d8b11e3abbc",
    "lease": "fe522cb04cbb73bf",
    "limiter": "fbde75dee5206a96",
    "live_replay_metadata": "cf4fc45670aa6dbc",
    "memstore_version": "02794125572e94e3",
    "payload": "0fdb7929f08e2613",
    "replay_event": "558f65bac4200695",
    "replay_metadata": "74d6dc26743c80a6",
    "replay_tally": "eb85899240f2c7e3",
    "v_domain": "ffbc185b37fe6af0",
    "v_episode": "b2ebdc8769a9d49c",
    "v_history": "8f86eb5f60941c40",
}
"""Each definition has this ``fingerprint``. ``python -m tests.support.layout`` writes them again."""

VIEWS = frozenset({"live_replay_metadata", "v_domain", "v_episode", "v_history"})
"""memstore's views have these names."""

TABLES = frozenset({VERSION_TABLE, *metadata.tables})
"""memstore's tables have these names."""


def fingerprint(sql: str) -> str:
    """Return the first 16 digits of the SHA-256 of a definition, without its spaces and quotes.

    Spaces and quotes depend on the version of the library that wrote the definition.
    """
    return hashlib.sha256(re.sub(r"[\s\"`\[\]]+", "", sql).lower().encode("utf-8", "replace")).hexdigest()[:16]


def foreign(found: Iterable[Definition]) -> Iterator[str]:
    """Find triggers on memstore's tables, and objects of the wrong kind under memstore's names."""
    for kind, name, table, sql in found:
        if kind == "trigger" and table.lower() in TABLES | VIEWS:
            yield f"a trigger {name!r} on {table!r}"
        elif name.lower() in TABLES and (kind != "table" or not (sql or "").upper().startswith("CREATE TABLE")):
            yield f"a {'virtual table' if kind == 'table' else kind} {name!r}"
        elif name.lower() in VIEWS and kind != "view":
            yield f"a {kind} {name!r}"


def altered(found: Iterable[Definition]) -> Iterator[str]:
    """Find definitions that differ from the newest revision, and tables that are missing."""
    seen = set()
    for kind, name, table, sql in found:
        lowered = name.lower()
        seen.add(lowered)
        if lowered in LAYOUT:
            if fingerprint(sql or "") != LAYOUT[lowered]:
                yield f"the {kind} {name!r} is not as memstore defines it"
        elif table.lower() in TABLES and sql is not None:
            yield f"the {kind} {name!r} on {table!r} is not memstore's"
    for name in sorted(TABLES - seen):
        yield f"the table {name!r} is missing"


def missing(found: Iterable[Definition]) -> Iterator[str]:
    """Find indexes and views that are missing."""
    names = {definition.name.lower() for definition in found}
    for name in sorted(LAYOUT.keys() - names - TABLES):
        yield f"the {'view' if name in VIEWS else 'index'} {name!r} is missing"
