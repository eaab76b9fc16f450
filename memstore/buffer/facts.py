"""The facts of an episode, which never change. They are compared with the checksum that was stored with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, select

from memstore.storage import checksums, stored
from memstore.storage.schema import episode, of_buffer

COLUMNS = ("id", "timestamp", "level", "key", "extra", "domain_id", "checksum")
"""These columns of ``episode`` are its facts. The tags are facts too, and are in another table."""


def texts_of(
    keys: Sequence[str | None], extras: Sequence[str | None], tags: Sequence[tuple[str, ...]]
) -> list[tuple[str | None, ...]]:
    """Return key, extra and tags of each episode.

    The list is empty if no episode has any of them, which saves 1 % of an ``extend``.
    """
    if keys.count(None) == len(keys) and extras.count(None) == len(keys) and not any(tags):
        return []
    return [(key, extra, *named) for key, extra, named in zip(keys, extras, tags, strict=True)]


def unlike(rows: Sequence[tuple[Any, ...]], tags: Mapping[int, Sequence[str]]) -> list[int]:
    """Return the ids of the rows that differ from their checksums. Rows without a checksum are skipped.

    A row holds the values of ``COLUMNS``.
    """
    rows = [row for row in rows if row[-1] is not None]
    if not rows:
        return []
    ids, times, levels, keys, extras, domains, sums = zip(*rows, strict=True)
    what = f"table {episode.name}"
    for texts in (keys, extras):
        if not set(map(type, texts)) <= {str, type(None)}:
            raise stored.damaged(what, "holds a value that is no text")
    numbers, when = stored.wholes(ids, what), stored.reals(times, what, nullable=False)
    level = stored.wholes(levels, what, unknown=checksums.NO_LEVEL).tolist()
    named = [(key, extra, *tags.get(i, ())) for i, key, extra in zip(ids, keys, extras, strict=True)]
    computed = checksums.of_facts(numbers, stored.wholes(domains, what), when.tolist(), level, named)
    return [int(i) for i in numbers[computed != stored.wholes(sums, what)]]


def verify(rows: Sequence[tuple[Any, ...]], tags: Mapping[int, Sequence[str]]) -> None:
    """Raise ``StoreCorrupt`` for the first row that differs from its checksum."""
    for number in unlike(rows, tags)[:1]:
        raise stored.damaged(f"episode {number}", "does not match the checksum of its facts", episode_id=number)


def refuse_unreadable(conn: Connection, buffer_id: int) -> None:
    """Raise ``StoreCorrupt`` for the first live episode with an extra that is no JSON, if there is one."""
    c = episode.c
    query = select(c.id, c.extra).where(of_buffer(buffer_id, c.id), c.extra.is_not(None)).order_by(c.id)
    for number, extra in conn.execute(query):
        stored.extra(extra, number)
