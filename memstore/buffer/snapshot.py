"""One consistent view of a buffer: its counters, domains and blocks, and the rows of its episodes."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Select, Table, select

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import KeyOf, fingerprint
from memstore.buffer.blocks.lottery import keys_of_ids
from memstore.buffer.blocks.pages import Opened
from memstore.buffer.blocks.rows import Write, domains_of, fetching, read_heads, write_changes
from memstore.buffer.blocks.slots import Floats, Ints
from memstore.buffer.blocks.weights import Law
from memstore.buffer.counters import Counters, read_buffer, write_counters, write_settings
from memstore.buffer.settings import ReadStrategy, Settings
from memstore.storage import checksums, stored
from memstore.storage.backends import Backend
from memstore.storage.schema import domain, first_id, id_range, of_buffer, replay_metadata
from memstore.types import EvictionPolicy

FOLD_EVERY = 32768
"""Blocks are merged after this number of adds, replays and departures."""


@dataclass(slots=True)
class Rows:
    """The slots of some live episodes, with their domains.

    A ``loss`` that was never measured is NaN. ``last_event`` is 0 if no event of the episode was recorded.
    """

    ids: Ints
    loss: Floats
    replay_count: Ints
    domain: Ints
    last_event: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: NDArray[np.int64] | NDArray[np.bool_]) -> Self:
        """Return the rows at these places, or the flagged rows if ``which`` is a mask."""
        return type(self)(*(getattr(self, name)[which] for name in self.__match_args__))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of one part after the other."""
        names = cls.__match_args__
        empty = (np.empty(0, np.float64 if name == "loss" else np.int64) for name in names)
        return cls(
            *(np.concatenate([e, *(getattr(part, n) for part in parts)]) for e, n in zip(empty, names, strict=True))
        )

    @classmethod
    def none(cls) -> Self:
        """Return no rows."""
        return cls.join([])

    @classmethod
    def of(cls, opened: Opened, domains: Ints) -> Self:
        """Return all rows of these blocks, block after block. ``domains`` are those of all blocks of the copy."""
        slots = opened.slots
        return cls(slots.ids, slots.loss, slots.count, domains[opened.blocks][opened.ordinal], slots.event)


@dataclass(slots=True)
class State:
    """The copy that a process has of a buffer's settings, counters, domain names and blocks, at one revision.

    Attributes
    ----------
    blocks : Copy
        The blocks as they are.
    stored : Copy
        The blocks as their rows in the database are. A write makes other ``blocks``, and stores them when it ends.
    """

    buffer_id: int
    settings: Settings
    counters: Counters
    blocks: Copy
    stored: Copy
    read_strategy: ReadStrategy
    domain_names: list[str] = field(default_factory=list)
    _codes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, conn: Connection, backend: Backend, buffer_id: int, read_strategy: ReadStrategy) -> State:
        """Read everything. ``read_strategy`` parses the stored strategy; the strategies are in a room above."""
        settings, counters = read_buffer(conn, backend, buffer_id, read_strategy)
        heads = read_heads(conn, backend, buffer_id)
        blocks = Copy.of(law_of(settings), heads, key_of=key_of(buffer_id, settings))
        state = cls(buffer_id, settings, counters, blocks, blocks, read_strategy)
        return state._following(conn, backend, blocks)

    def reload(self, conn: Connection, backend: Backend) -> State:
        """Read everything again."""
        return State.load(conn, backend, self.buffer_id, self.read_strategy)

    def copy(self) -> State:
        """Return an independent copy. Both share the domain names until one is added, and the blocks are a value."""
        return replace(self, counters=self.counters.copy())

    def detached(self, contents: int) -> State:
        """Return the same state without a connection, for later snapshots, with at most ``contents`` in memory."""
        blocks = self.stored.detached().forgotten(contents)
        return replace(self, blocks=blocks, stored=blocks)

    def at(self, conn: Connection, backend: Backend) -> State:
        """Return this state if the snapshot has the same revision, else a state at the revision of the snapshot.

        Only the changed heads are read. Contents of blocks are read when they are needed, in this snapshot.
        """
        then = self.counters
        settings, counters = read_buffer(conn, backend, self.buffer_id, self.read_strategy)
        now = replace(self, settings=settings, counters=counters)
        if (counters.revision, counters.token) == (then.revision, then.token):
            now.blocks = now.stored = self.stored.reading(fetching(conn, backend))
            return now
        same_law = law_of(settings) == law_of(self.settings) and settings.eviction == self.settings.eviction
        if counters.revision <= then.revision or not same_law:
            # The snapshot is older than the copy, because another thread has committed since; or a server forgot
            # commits; or all sums are others.
            return self.reload(conn, backend)
        if counters.fold_at == then.fold_at:
            blocks = self.stored.followed(read_heads(conn, backend, self.buffer_id, after=then.revision))
            if fingerprint(blocks.heads) == counters.block_sum:
                return now._following(conn, backend, blocks)
        # Blocks were merged, or the server forgot commits that this process knew.
        return now._following(conn, backend, self.stored.replaced(read_heads(conn, backend, self.buffer_id)))

    def counted(self, conn: Connection, backend: Backend) -> State:
        """Return a state with the settings and counters of now, and with the old blocks.

        It is for work that holds no lock and no snapshot, and reads no block.
        """
        settings, counters = read_buffer(conn, backend, self.buffer_id, self.read_strategy)
        return replace(self, settings=settings, counters=counters)

    def _following(self, conn: Connection, backend: Backend, blocks: Copy) -> State:
        """Take over these blocks, which must agree with the counters, and read new names of domains."""
        what, counters = f"buffer {self.buffer_id}", self.counters
        if fingerprint(blocks.heads) != counters.block_sum:
            raise stored.damaged(what, "has other blocks than its row says")
        self.blocks = self.stored = blocks.reading(fetching(conn, backend))
        domains = max(counters.domains, int(blocks.domains.max(initial=0)))
        if domains > len(self.domain_names):
            self._load_domains(conn)
        if domains > len(self.domain_names):
            raise stored.damaged(what, f"has names of {len(self.domain_names)} domains only")
        return self

    def _load_domains(self, conn: Connection) -> None:
        known = first_id(self.buffer_id) + len(self.domain_names)
        query = select(domain.c.id, domain.c.name).where(domain.c.buffer_id == self.buffer_id, domain.c.id > known)
        rows = conn.execute(query.order_by(domain.c.id)).all()
        for number, row in enumerate(rows, known + 1):
            stored.whole(row.id, f"domain {row.id!r:.40}: its id", number, number)
            stored.text(row.name, f"domain {row.id}: its name")
        self._extend_domains([row.name for row in rows])

    def _extend_domains(self, names: list[str]) -> None:
        start = len(self.domain_names) + 1
        self._codes = self._codes | {name: start + i for i, name in enumerate(names)}
        self.domain_names = self.domain_names + names

    def store_domains(self, conn: Connection, backend: Backend, names: list[str]) -> Ints:
        """Store the new names, and return the number of each domain within the buffer, counted from 1."""
        new = [name for name in dict.fromkeys(names) if name not in self._codes]
        if new:
            start = first_id(self.buffer_id) + len(self.domain_names) + 1
            columns: dict[str, list[Any]] = {
                "id": list(range(start, start + len(new))),
                "buffer_id": [self.buffer_id] * len(new),
                "name": new,
                "checksum": [checksums.of_row(start + i, name) for i, name in enumerate(new)],
            }
            backend.insert(conn, domain, columns)
            self._extend_domains(new)
        return np.array([self._codes[name] for name in names], np.int64)

    def domain_name(self, domain_id: int, what: str) -> str:
        """Return the name of the domain with this id. ``what`` names the owner of the domain in an error."""
        return stored.named(self.domain_names, stored.whole(domain_id, what) - first_id(self.buffer_id), what)

    def domain_code(self, name: str) -> int | None:
        """Return the number of a domain. None if the buffer never had an episode of it."""
        return self._codes.get(name)

    def store_settings(self, conn: Connection, settings: Settings) -> None:
        """Give the buffer these settings, and the blocks their sums and keys. The caller holds its lock."""
        write_settings(conn, self.buffer_id, settings)
        if law_of(settings) != law_of(self.settings) or settings.eviction != self.settings.eviction:
            self.blocks = self.blocks.configured(law_of(settings), key_of(self.buffer_id, settings))
        self.settings = settings

    def flush(self, conn: Connection, backend: Backend) -> None:
        """Write all changes, under a new revision. The caller holds the buffer's lock."""
        counters = self.counters
        counters.revision += 1
        counters.token = secrets.randbits(64) - 2**63 or 1
        if counters.log_length >= counters.fold_at:
            self.blocks = self.blocks.merged()
            counters.fold_at = counters.log_length + FOLD_EVERY
        write = Write(counters.revision, counters.token, counters.inserted, counters.recorded)
        self.blocks = self.stored = write_changes(conn, backend, self.buffer_id, self.stored, self.blocks, write)
        counters.block_sum = fingerprint(self.blocks.heads)
        counters.domains = len(self.domain_names)
        write_counters(conn, backend, self.buffer_id, counters)


def law_of(settings: Settings) -> Law:
    """Return the law by which the blocks of a buffer with these settings have their sums."""
    return Law(settings.alpha, settings.epsilon)


def key_of(buffer_id: int, settings: Settings) -> KeyOf | None:
    """Return the eviction keys of a buffer with these settings. None if its policy has none."""
    if settings.eviction != EvictionPolicy.RESERVOIR:
        return None
    return partial(keys_of_ids, settings.seed, buffer_id)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One consistent view of a buffer: a state, and the connection with the snapshot that the state describes."""

    conn: Connection
    backend: Backend
    state: State

    @property
    def settings(self) -> Settings:
        """Settings of the buffer."""
        return self.state.settings

    @property
    def first_id(self) -> int:
        """Id just below all ids of the buffer. Episodes, events, domains and blocks are numbered from here."""
        return first_id(self.state.buffer_id)

    @property
    def live(self) -> int:
        """Number of live episodes."""
        return self.state.blocks.live

    def find(self, ids: Ints, names: NDArray[np.str_] | None = None) -> Rows:
        """Return the rows of the live episodes of the buffer among these ids, in id order, each once.

        ``names`` are their domains, if the caller knows them, and save a look-up. A wrong name does no harm.
        """
        low, high = id_range(self.state.buffer_id)
        inside = (ids >= low) & (ids <= high)
        own, first = np.unique(ids[inside], return_index=True)
        if not len(own):
            return Rows.none()
        blocks = self.state.blocks
        if names is None or names.shape != ids.shape:
            domains = self.domains_of(own)
        else:
            domains = np.array([self.state.domain_code(name) or 0 for name in names[inside][first].tolist()], np.int64)
            missing = ~blocks.locate(own, domains).live
            if missing.any():
                domains[missing] = self.domains_of(own[missing])
        found = blocks.locate(own, domains)
        slots = found.slots
        return Rows(slots.ids, slots.loss, slots.count, domains[found.live], slots.event)

    def domains_of(self, ids: Ints) -> Ints:
        """Return the domains of these episodes; 0 for one that has no row."""
        return domains_of(self.conn, self.backend, self.state.buffer_id, ids)

    def rows_of(self, ids: Ints) -> Rows:
        """Return the rows of these live episodes, in this order."""
        found = self.find(ids)
        return found.take(np.searchsorted(found.ids, ids))

    def scan(self) -> Rows:
        """Return every live row, in id order. The time is proportional to the size of the buffer."""
        blocks = self.state.blocks
        parts = [Rows.of(opened, blocks.domains) for opened in blocks.chunks(np.arange(len(blocks)))]
        rows = Rows.join(parts)
        return rows.take(np.argsort(rows.ids))

    def rows(self, table: Table, names: Sequence[str]) -> list[Any]:
        """Return these columns of the buffer's rows of a table. The first column is the id, and sorts the rows."""
        return list(self.conn.execute(self._rows(table, names).order_by(table.c[names[0]])))

    def pages(self, table: Table, names: Sequence[str], size: int) -> Iterator[list[Any]]:
        """Yield the rows of ``rows``, ``size`` at a time. No two rows may have the same id."""
        query, key = self._rows(table, names), table.c[names[0]]
        return stored.paged(self.conn, query, key, size, f"the rows of {table.name}")

    def _rows(self, table: Table, names: Sequence[str]) -> Select[Any]:
        own = of_buffer(self.state.buffer_id, table.c[names[0]])
        return select(*(table.c[name] for name in names)).where(own)

    def newest_possible(self) -> int:
        """Return the id that was given out last. Its episode may have left."""
        return self.first_id + self.state.counters.inserted

    def age(self, ids: Ints) -> Ints:
        """Return the age of each id: the number of episodes inserted from it on, itself included."""
        return self.newest_possible() + 1 - ids

    @property
    def own(self) -> ColumnElement[bool]:
        """Condition on ``replay_metadata`` that selects the rows of this buffer, by their ids."""
        return of_buffer(self.state.buffer_id, replay_metadata.c.episode_id)
