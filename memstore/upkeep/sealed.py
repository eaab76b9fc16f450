"""Rows compared with the checksums that were written beside them, and everything stored parsed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Table, func, select

from memstore.buffer.counters import SEALED, Counters, counters_checksum, counters_columns
from memstore.buffer.facts import COLUMNS, unlike
from memstore.buffer.snapshot import Snapshot
from memstore.episodes.checkpoint import examine
from memstore.errors import StoreCorrupt
from memstore.storage import checksums, stored
from memstore.storage.schema import (
    buffer,
    domain,
    episode,
    episode_key,
    episode_tag,
    event_group,
    id_range,
    lease,
    limiter,
    stratum,
)

CHUNK = 4096


@dataclass
class Unsealed:
    """How many rows of each table have no checksum, being older than those."""

    counts: dict[str, int] = field(default_factory=dict)

    def without(self, what: str, rows: int) -> None:
        """Note so many of them."""
        if rows:
            self.counts[what] = self.counts.get(what, 0) + rows

    def notes(self) -> Iterator[str]:
        """In one sentence a kind."""
        for what, count in self.counts.items():
            yield f"{count:,} {what} were written before schema 0004 and have no checksum"


@dataclass(frozen=True)
class Seals:
    """The examinations of one buffer; each yields its findings."""

    snapshot: Snapshot
    unsealed: Unsealed
    keys: dict[int, str] = field(default_factory=dict)
    """Key of each live episode that has one, once the facts were examined."""

    def parts(self) -> tuple[Callable[[], Iterator[str]], ...]:
        """In the order in which they must run."""
        rows = (self.buffer_row, self.names, self.strata)
        return (*rows, self.facts, self.known_keys, self.checkpoints, self.others)

    def buffer_row(self) -> Iterator[str]:
        """Settings and counters."""
        own = buffer.c.id == self.snapshot.state.buffer_id
        names = (*SEALED, *counters_columns(), "checksum", "counters_checksum")
        row = self.snapshot.conn.execute(select(*(buffer.c[name] for name in names)).where(own)).one()._mapping
        self.unsealed.without("buffer rows", (row["checksum"] is None) + (row["counters_checksum"] is None))
        stored.real(row["created_at"], "the buffer's time of creation")
        if row["checksum"] not in (None, checksums.of_row(*(row[name] for name in SEALED))):
            yield "the buffer's settings, name or signature do not match their checksum"
        counters = Counters(*(row[name] for name in counters_columns()))
        if row["counters_checksum"] not in (None, counters_checksum(counters)):
            yield "the buffer's counters do not match their checksum"

    def names(self) -> Iterator[str]:
        """Domains."""
        rows = self._of(domain, "id", "name", "checksum")
        self.unsealed.without("domains", sum(row[-1] is None for row in rows))
        for number, name, seal in rows:
            if seal not in (None, checksums.of_row(number, name)):
                yield f"domain {number} does not match its checksum"

    def strata(self) -> Iterator[str]:
        """The rows of the sampling index."""
        names = ("id", "domain_id", "bucket", "count", "weight_sum", "loss_sum", "revision", "checksum")
        every = self._of(stratum, *names)
        rows = [row for row in every if row[-1] is not None]
        self.unsealed.without("strata", len(every) - len(rows))
        if not rows:
            return
        what = stratum.name
        columns: list[Any] = [
            stored.reals(values, what, nullable=False) if name.endswith("_sum") else stored.wholes(values, what)
            for name, values in zip(names, zip(*rows, strict=True), strict=True)
        ]
        columns[1] = columns[1] - (id_range(self.snapshot.state.buffer_id)[0] - 1)
        wrong = columns[0][checksums.of_columns(*columns[:-1]) != columns[-1]]
        if len(wrong):
            yield f"{some(wrong)} strata do not match their checksums"

    def facts(self) -> Iterator[str]:
        """What never changes of an episode."""
        low, high = id_range(self.snapshot.state.buffer_id)
        c, conn = episode.c, self.snapshot.conn
        wrong: list[int] = []
        unreadable: list[int] = []
        after = low - 1
        while True:
            query = select(*(c[name] for name in COLUMNS)).where(c.id > after, c.id <= high).order_by(c.id).limit(CHUNK)
            rows = [tuple(row) for row in conn.execute(query)]
            if not rows:
                break
            wrong += unlike(rows, self._tags(after, rows[-1][0]))
            self.unsealed.without("episodes", sum(row[-1] is None for row in rows))
            for number, timestamp, _, key, extra, domain_id, _ in rows:
                stored.real(timestamp, f"episode {number}: its timestamp")
                self.snapshot.state.domain_name(domain_id, number)
                if key is not None:
                    self.keys[number] = key
                if extra is not None and not _is_json(extra, number):
                    unreadable.append(number)
            after = stored.onward(rows[-1][0], after, f"the rows of {episode.name}")
        if wrong:
            yield f"{some(wrong)} do not match the checksums of their facts"
        if unreadable:
            yield f"{some(unreadable)} have an extra that is no JSON"

    def _tags(self, after: int, last: int) -> dict[int, list[str]]:
        c = episode_tag.c
        query = select(c.episode_id, c.tag).where(c.episode_id > after, c.episode_id <= last)
        tags: dict[int, list[str]] = {}
        for number, tag in self.snapshot.conn.execute(query.order_by(c.episode_id, c.ordinal)):
            tags.setdefault(number, []).append(stored.text(tag, f"episode {number}: a tag"))
        return tags

    def known_keys(self) -> Iterator[str]:
        """Keys ever given, and those of the live episodes."""
        c, state = episode_key.c, self.snapshot.state
        low, _ = id_range(state.buffer_id)
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
            self.unsealed.without("keys", seal is None)
            known[number] = key
        wrong = [number for number, key in self.keys.items() if known.get(number) != key]
        if wrong:
            yield f"{some(wrong)} are not known by their keys"
        left = select(episode.c.id).where(episode.c.id.in_(select(c.episode_id).where(c.buffer_id == state.buffer_id)))
        if unnamed := list(self.snapshot.conn.scalars(left.where(episode.c.key.is_(None)))):
            yield f"{some(unnamed)} are known by keys that they do not have"

    def checkpoints(self) -> Iterator[str]:
        """Every one, by its checksums, and read."""
        for finding, sealed in examine(self.snapshot):
            self.unsealed.without("checkpoints", not sealed)
            if finding is not None:
                yield finding

    def others(self) -> Iterator[str]:
        """Rows whose id is of this buffer, and that say that they are of another."""
        conn, number = self.snapshot.conn, self.snapshot.state.buffer_id
        low, high = id_range(number)
        keyed = ((episode, "id"), (domain, "id"), (stratum, "id"), (event_group, "id"))
        for table, key in (*keyed, (episode_tag, "episode_id"), (episode_key, "episode_id")):
            strangers = (table.c[key].between(low, high), table.c.buffer_id != number)
            if count := conn.scalars(select(func.count()).select_from(table).where(*strangers)).one():
                yield f"{count} rows of {table.name} name another buffer than their id"
        for row in conn.execute(select(lease.c.expires_at, lease.c.episode_id).where(lease.c.buffer_id == number)):
            stored.real(row[0], f"the lease of episode {row[1]}: its end")
        rows = conn.scalars(select(limiter.c.drawn).where(limiter.c.buffer_id == number)).all()
        if len(rows) != (self.snapshot.settings.limiter is not None):
            yield "the account of the limiter is missing, or there is one without a limiter"

    def _of(self, table: Table, *names: str) -> list[tuple[Any, ...]]:
        low, high = id_range(self.snapshot.state.buffer_id)
        query = select(*(table.c[name] for name in names)).where(table.c.id.between(low, high)).order_by(table.c.id)
        return [tuple(row) for row in self.snapshot.conn.execute(query)]


def some(ids: Any) -> str:
    """How many, and the first few."""
    shown = ", ".join(str(int(i)) for i in ids[:5])
    return f"{len(ids)} ({shown}{' ...' if len(ids) > 5 else ''})"


def _is_json(text: Any, number: int) -> bool:
    try:
        stored.extra(text, number)
    except StoreCorrupt:
        return False
    return True
