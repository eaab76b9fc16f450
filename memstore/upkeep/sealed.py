"""The examination of rows by the checksums that were stored with them, and of stored texts by parsing them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, select

from memstore.buffer.blocks.slots import Ints
from memstore.buffer.counters import COUNTERS, SEALED, Counters, counters_checksum
from memstore.buffer.facts import COLUMNS, unlike
from memstore.buffer.snapshot import Snapshot
from memstore.episodes.checkpoint import examine
from memstore.errors import StoreCorrupt
from memstore.storage import checksums, stored
from memstore.storage.schema import (
    block,
    buffer,
    domain,
    episode,
    episode_key,
    episode_tag,
    event_group,
    lease,
    limiter,
    of_buffer,
)

CHUNK = 4096
"""The examination reads this many episodes at a time."""


Unsealed = Counter[str]
"""Numbers of the rows that have no checksum because they are older than checksums, by their kind."""


@dataclass(frozen=True)
class Seals:
    """The examinations of one buffer. Each yields one sentence for each finding."""

    snapshot: Snapshot
    unsealed: Unsealed
    keys: dict[int, str] = field(default_factory=dict)
    """The key of each live episode that has one. The examination of the facts fills this mapping."""

    def parts(self) -> tuple[Callable[[], Iterator[str]], ...]:
        """Return the examinations in the order in which they must run."""
        rows = (self.buffer_row, self.names)
        return (*rows, self.facts, self.known_keys, self.checkpoints, self.others)

    def buffer_row(self) -> Iterator[str]:
        """Examine the settings and counters."""
        own = buffer.c.id == self.snapshot.state.buffer_id
        names = (*SEALED, *COUNTERS, "checksum", "counters_checksum")
        row = self.snapshot.conn.execute(select(*(buffer.c[name] for name in names)).where(own)).one()._mapping
        self.unsealed["buffer rows"] += (row["checksum"] is None) + (row["counters_checksum"] is None)
        stored.real(row["created_at"], "the buffer's time of creation")
        if row["checksum"] not in (None, checksums.of_row(*(row[name] for name in SEALED))):
            yield "the buffer's settings, name or signature do not match their checksum"
        counters = Counters(*(row[name] for name in COUNTERS))
        if row["counters_checksum"] not in (None, counters_checksum(counters)):
            yield "the buffer's counters do not match their checksum"

    def names(self) -> Iterator[str]:
        """Examine the domains."""
        for number, name, seal in self.snapshot.rows(domain, ("id", "name", "checksum")):
            self.unsealed["domains"] += seal is None
            if seal not in (None, checksums.of_row(number, name)):
                yield f"domain {number} does not match its checksum"

    def facts(self) -> Iterator[str]:
        """Examine the facts of the episodes, which never change."""
        wrong: list[int] = []
        unreadable: list[int] = []
        for rows in self.snapshot.pages(episode, COLUMNS, CHUNK):
            wrong += unlike(rows, self._tags(rows[0][0], rows[-1][0]))
            self.unsealed["episodes"] += sum(row[-1] is None for row in rows)
            for number, timestamp, _, key, extra, domain_id, _ in rows:
                stored.real(timestamp, f"episode {number}: its timestamp")
                self.snapshot.state.domain_name(domain_id, f"episode {number}: its domain")
                if key is not None:
                    self.keys[number] = key
                if extra is not None and not _is_json(extra, number):
                    unreadable.append(number)
        yield from tell("{} do not match the checksums of their facts", wrong)
        yield from tell("{} have an extra that is no JSON", unreadable)

    def _tags(self, first: int, last: int) -> dict[int, list[str]]:
        c = episode_tag.c
        query = select(c.episode_id, c.tag).where(c.episode_id.between(first, last))
        tags: dict[int, list[str]] = {}
        for number, tag in self.snapshot.conn.execute(query.order_by(c.episode_id, c.ordinal)):
            tags.setdefault(number, []).append(stored.text(tag, f"episode {number}: a tag"))
        return tags

    def known_keys(self) -> Iterator[str]:
        """Examine the keys ever given, and compare them with those of the live episodes."""
        c, state, low = episode_key.c, self.snapshot.state, self.snapshot.first_id + 1
        query = select(c.key, c.episode_id, c.checksum).where(c.buffer_id == state.buffer_id)
        known: dict[int, str] = {}
        for key, number, seal in self.snapshot.conn.execute(query):
            what = f"the key {key!r:.60}"
            if seal not in (None, checksums.of_row(key, number)):
                yield f"{what} does not match its checksum"
            elif not low <= number < low + state.counters.inserted:
                yield f"{what} is of episode {number}, which was never given out"
            elif number in known:
                yield f"{what} and {known[number]!r:.60} are both of episode {number}"
            self.unsealed["keys"] += seal is None
            known[number] = key
        wrong = [number for number, key in self.keys.items() if known.get(number) != key]
        yield from tell("{} are not known by their keys", wrong)
        left = select(episode.c.id).where(episode.c.id.in_(select(c.episode_id).where(c.buffer_id == state.buffer_id)))
        unnamed = self.snapshot.conn.scalars(left.where(episode.c.key.is_(None))).all()
        yield from tell("{} are known by keys that they do not have", unnamed)

    def checkpoints(self) -> Iterator[str]:
        """Examine every checkpoint by its checksums, and read it."""
        for finding, sealed in examine(self.snapshot):
            self.unsealed["checkpoints"] += not sealed
            if finding is not None:
                yield finding

    def others(self) -> Iterator[str]:
        """Find rows with an id of another buffer than they name, and examine leases and the limiter's account."""
        conn, number = self.snapshot.conn, self.snapshot.state.buffer_id
        keyed = ((episode, "id"), (domain, "id"), (block, "id"), (event_group, "id"))
        for table, key in (*keyed, (episode_tag, "episode_id"), (episode_key, "episode_id")):
            strangers = (of_buffer(number, table.c[key]), table.c.buffer_id != number)
            if count := conn.scalars(select(func.count()).select_from(table).where(*strangers)).one():
                yield f"{count} rows of {table.name} name another buffer than their id"
        outside = (block.c.buffer_id == number, ~of_buffer(number, block.c.id))
        if count := conn.scalars(select(func.count()).select_from(block).where(*outside)).one():
            yield f"{count} blocks of buffer {number} have numbers of another one"
        for row in conn.execute(select(lease.c.expires_at, lease.c.episode_id).where(lease.c.buffer_id == number)):
            stored.real(row[0], f"the lease of episode {row[1]}: its end")
        rows = conn.scalars(select(limiter.c.drawn).where(limiter.c.buffer_id == number)).all()
        if len(rows) != (self.snapshot.settings.limiter is not None):
            yield "the account of the limiter is missing, or there is one without a limiter"


def tell(finding: str, ids: Sequence[int] | Ints) -> Iterator[str]:
    """Yield the finding if it is about any ids; ``{}`` in it becomes their number and the first few."""
    if len(ids):
        first = ", ".join(str(int(i)) for i in ids[:5])
        yield finding.format(f"{len(ids)} ({first}{' ...' if len(ids) > 5 else ''})")


def _is_json(text: Any, number: int) -> bool:
    try:
        stored.extra(text, number)
    except StoreCorrupt:
        return False
    return True
