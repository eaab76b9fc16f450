"""One consistent view of a buffer: its counters, domains and blocks, and the rows of its episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Select, Table, select

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import Heads, KeyOf, fingerprint, with_changes
from memstore.buffer.blocks.lottery import keys_of_ids
from memstore.buffer.blocks.rows import domains_of, fetching, read_heads
from memstore.buffer.blocks.slots import PLACE_BITS, Floats, Ints, Slots, among, begins
from memstore.buffer.blocks.weights import Law
from memstore.buffer.counters import Counters, read_buffer, write_settings
from memstore.buffer.settings import ReadStrategy, Settings
from memstore.buffer.tail import Point, Tail
from memstore.storage import checksums, stored
from memstore.storage.backends import Backend
from memstore.storage.schema import domain, first_id, id_range, of_buffer, replay_metadata
from memstore.types import EvictionPolicy

NO_PLACE = -1
"""A row has this place if it was not read from a copy."""

REALS = frozenset({"loss", "lowest", "last_replayed_at"})
"""These columns of ``Rows`` hold floats."""


@dataclass(slots=True)
class Rows:
    """The slots of some live episodes, with their domains.

    ``loss`` and ``lowest`` of an episode that was never measured are NaN. ``last_event`` is 0 if no event of the
    episode was recorded. ``last_replayed_at`` is in seconds, and NaN if the episode was never replayed. ``places`` say
    where the slots stand in the copy that they were read from.
    """

    ids: Ints
    loss: Floats
    lowest: Floats
    replay_count: Ints
    domain: Ints
    last_event: Ints
    last_replayed_at: Floats
    places: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: NDArray[np.int64] | NDArray[np.bool_]) -> Self:
        """Return the rows at these places, or the flagged rows if ``which`` is a mask."""
        return type(self)(*(getattr(self, name)[which] for name in self.__match_args__))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of one part after the other."""
        every = (cls.none(), *parts)
        return cls(*(np.concatenate([getattr(part, name) for part in every]) for name in cls.__match_args__))

    @classmethod
    def none(cls) -> Self:
        """Return no rows."""
        columns: list[Any] = [np.empty(0, np.float64 if name in REALS else np.int64) for name in cls.__match_args__]
        return cls(*columns)

    @classmethod
    def of(cls, slots: Slots, domains: Ints, places: Ints | None = None) -> Self:
        """Return the rows of these slots, which belong to these domains and stand at these places."""
        places = np.full(len(slots), NO_PLACE) if places is None else places
        return cls(slots.ids, slots.loss, slots.lowest, slots.count, domains, slots.event, slots.at, places)


@dataclass(slots=True)
class State:
    """The copy that a process has of a buffer's settings, counters, domain names and blocks, at one revision.

    Attributes
    ----------
    blocks : Copy
        The blocks as they are.
    rows : Heads
        The heads as their rows in the database are. They stand at an earlier point of the log, ``counters.stored``.
    must_store, must_fold : bool
        True if this write has to store the blocks, or to fold all tables, when it ends.
    """

    buffer_id: int
    settings: Settings
    counters: Counters
    blocks: Copy
    rows: Heads
    read_strategy: ReadStrategy
    domain_names: list[str] = field(default_factory=list)
    must_store: bool = False
    must_fold: bool = False
    _codes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, conn: Connection, backend: Backend, buffer_id: int, read_strategy: ReadStrategy) -> State:
        """Read everything. ``read_strategy`` parses the stored strategy; the strategies are in a room above."""
        settings, counters = read_buffer(conn, backend, buffer_id, read_strategy)
        rows = read_heads(conn, backend, buffer_id)
        blocks = Copy.of(law_of(settings), rows, key_of=key_of(buffer_id, settings))
        state = cls(buffer_id, settings, counters, blocks, rows, read_strategy)
        if not state._follow(conn, backend, rows, counters.stored):
            raise stored.damaged(f"buffer {buffer_id}", "has other blocks, or another log, than its row says")
        return state

    def reload(self, conn: Connection, backend: Backend) -> State:
        """Read everything again."""
        return State.load(conn, backend, self.buffer_id, self.read_strategy)

    def detached(self, contents: int) -> State:
        """Return the same state without a connection, for later snapshots, with at most ``contents`` in memory."""
        return replace(self, blocks=self.blocks.detached().forgotten(contents))

    def at(self, conn: Connection, backend: Backend) -> State:
        """Return the state at the revision of the snapshot. It is another object, with counters of its own.

        The log tells what has changed. If rows of blocks were stored since, their heads are read too. Contents of
        blocks are read when they are needed, in this snapshot.
        """
        then = self.counters
        now = self.counted(conn, backend)
        settings, counters = now.settings, now.counters
        if (counters.revision, counters.token) == (then.revision, then.token):
            now.blocks = self.blocks.reading(fetching(conn, backend))
            return now
        same_law = law_of(settings) == law_of(self.settings) and settings.eviction == self.settings.eviction
        if counters.revision <= then.revision or not same_law:
            # The snapshot is older than the copy, because another thread has committed since; or a server forgot
            # commits; or all sums are others.
            return self.reload(conn, backend)
        rows, known = self.rows, then.head
        if counters.stored != then.stored or counters.fold_at != then.fold_at:
            merged = counters.fold_at != then.fold_at
            changed = read_heads(conn, backend, self.buffer_id, after=-1 if merged else then.revision)
            rows, known = changed if merged else with_changes(self.rows, changed), counters.stored
        followed = now._follow(conn, backend, rows, known)
        # If this process knew commits that the server forgot, the log does not continue what the process knew.
        return now if followed else self.reload(conn, backend)

    def counted(self, conn: Connection, backend: Backend) -> State:
        """Return a state with the settings and counters of now, and with the old blocks.

        It is for work that holds no lock and no snapshot, and reads no block.
        """
        settings, counters = read_buffer(conn, backend, self.buffer_id, self.read_strategy)
        # Every call makes a state, and dataclasses.replace() would take five times as long.
        return State(
            *(self.buffer_id, settings, counters, self.blocks, self.rows, self.read_strategy, self.domain_names),
            _codes=self._codes,
        )

    def _follow(self, conn: Connection, backend: Backend, rows: Heads, known: Point) -> bool:
        """Bring the blocks to the end of the log.

        Parameters
        ----------
        rows : Heads
            The heads of now. If they are others than before, the blocks begin from them.
        known : Point
            The point of the log that the blocks to begin from stand at.

        Returns
        -------
        bool
            False if the rows or the log are others than the counters say. Nothing has changed then.
        """
        counters = self.counters
        if fingerprint(rows) != counters.block_sum:
            return False
        tail = Tail.read(conn, backend, self.buffer_id, known, counters.head)
        if tail.end(known, counters.head) != counters.head:
            return False
        blocks = self.blocks if rows is self.rows else self.blocks.replaced(rows)
        self.rows, self.blocks = rows, tail.applied(blocks.reading(fetching(conn, backend)))
        domains = max(counters.domains, int(self.blocks.domains.max(initial=0)))
        if domains > len(self.domain_names):
            self._load_domains(conn)
        if domains > len(self.domain_names):
            raise stored.damaged(f"buffer {self.buffer_id}", f"has names of {len(self.domain_names)} domains only")
        return True

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

    def domain_codes(self, names: list[str]) -> Ints:
        """Return the numbers of these domains, 0 for a domain that the buffer never had."""
        known = self._codes.get
        return np.array([known(name, 0) for name in names], np.int64)

    def domain_code(self, name: str) -> int | None:
        """Return the number of a domain. None if the buffer never had an episode of it."""
        return self._codes.get(name)

    def store_settings(self, conn: Connection, settings: Settings) -> None:
        """Give the buffer these settings, and the blocks their sums and keys. The caller holds its lock."""
        write_settings(conn, self.buffer_id, settings)
        if law_of(settings) != law_of(self.settings) or settings.eviction != self.settings.eviction:
            self.blocks = self.blocks.configured(law_of(settings), key_of(self.buffer_id, settings))
            self.must_store = True  # processes that read the rows need the sums of the new law
        self.settings = settings


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

    def find(self, ids: Ints) -> Rows:
        """Return the rows of the live episodes of the buffer among these ids, in id order, each once."""
        return self.matched(ids)[0]

    def matched(self, ids: Ints, names: NDArray[np.str_] | None = None) -> tuple[Rows, Ints]:
        """Return the rows of the live episodes among these ids, in id order, each once, and the row of each id.

        The row of an id that is not live is -1. ``names`` are the domains of the ids, if the caller knows them, and
        save a look-up. A wrong name does no harm.
        """
        order = np.argsort(ids, kind="stable")
        ordered = ids[order]
        first = begins(ordered)
        own = ordered[first]
        low, high = id_range(self.state.buffer_id)
        inside = (own >= low) & (own <= high)
        own, chosen = own[inside], order[first][inside]
        if names is None or names.shape != ids.shape:
            rows = self._live(own, self.domains_of(own))
        else:
            rows = self._live(own, self.state.domain_codes(names[chosen].tolist()))
            if len(rows) < len(own):
                missing = own[~among(own, rows.ids)[0]]
                more = self._live(missing, self.domains_of(missing))
                if len(more):
                    rows = Rows.join([rows, more])
                    rows = rows.take(np.argsort(rows.ids))
        if len(rows) == len(ids):
            row = np.empty(len(ids), np.int64)
            row[order] = np.arange(len(ids))
            return rows, row
        live, at = among(ids, rows.ids)
        return rows, np.where(live, at, -1)

    def _live(self, ids: Ints, domains: Ints) -> Rows:
        """Return the rows of the live episodes among these ids, which belong to these domains."""
        found = self.state.blocks.locate(ids, domains)
        places = found.places[found.live]
        return Rows.of(self.state.blocks.read(places), domains[found.live], places)

    def at_places(self, places: Ints) -> Rows:
        """Return the rows of the live episodes at these places."""
        if not len(places):
            return Rows.none()
        blocks = self.state.blocks
        return Rows.of(blocks.read(places), blocks.domains[places >> PLACE_BITS], places)

    def domains_of(self, ids: Ints) -> Ints:
        """Return the domains of these episodes; 0 for one that has no row."""
        return domains_of(self.conn, self.backend, self.state.buffer_id, ids)

    def scan(self) -> Rows:
        """Return every live row, in id order. The time is proportional to the size of the buffer."""
        blocks = self.state.blocks
        opened = blocks.chunks(np.arange(len(blocks)))
        rows = Rows.join(
            [Rows.of(some.slots, blocks.domains[some.blocks][some.ordinal], some.places) for some in opened]
        )
        return rows.take(np.argsort(rows.ids))

    def rows(self, table: Table, names: Sequence[str]) -> list[Any]:
        """Return these columns of the buffer's rows of a table. The first column is the id, and sorts the rows."""
        return list(self.conn.execute(self._rows(table, names).order_by(table.c[names[0]])))

    def pages(self, table: Table, names: Sequence[str], size: int) -> Iterator[list[Any]]:
        """Yield the rows of ``rows``, ``size`` at a time. No two rows may have the same id."""
        key, (low, high) = table.c[names[0]], id_range(self.state.buffer_id)
        query = select(*(table.c[name] for name in names)).where(key <= high)
        return stored.paged(self.conn, query, key, size, f"the rows of {table.name}", low - 1)

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
