"""One consistent view of a buffer: its counters, domains and strata, and the rows of its episodes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, Select, Table, bindparam, func, select

from memstore.buffer.counters import Counters, read_buffer, write_counters, write_settings
from memstore.buffer.settings import ReadStrategy, Settings
from memstore.buffer.strata import Floats, Ints, Strata
from memstore.errors import StoreCorrupt
from memstore.storage import checksums, stored
from memstore.storage.backends import Backend
from memstore.storage.prepared import Prepared
from memstore.storage.schema import domain, first_id, id_range, of_buffer, replay_metadata

COLUMNS = ("episode_id", "loss", "replay_count", "stratum_id", "position", "last_event_id")
"""These columns of ``replay_metadata`` make ``Rows``, in the order of its fields."""

_m = replay_metadata.c

_own = _m.episode_id.between(bindparam("low"), bindparam("high"))
_OLDEST = Prepared(select(func.min(_m.episode_id)).where(_own))
_NEWEST = Prepared(select(func.max(_m.episode_id)).where(_own))
# This query does not use min(), because NULLs come first in the index, and min() would walk over all of them.
_SMALLEST_LOSS = Prepared(
    select(_m.loss).where(_m.buffer_id == bindparam("buffer"), _m.loss.is_not(None)).order_by(_m.loss).limit(1)
)


@dataclass(slots=True)
class Located:
    """The columns that a draw reads of some episodes: replay metadata, and the place in the sampling index.

    A ``loss`` that was never measured is NaN. ``stratum`` is an index into the arrays of ``Strata``.
    """

    ids: Ints
    loss: Floats
    replay_count: Ints
    stratum: Ints
    position: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: NDArray[np.int64] | NDArray[np.bool_]) -> Self:
        """Return the rows at these places, or the flagged rows if ``which`` is a mask."""
        return type(self)(*(getattr(self, name)[which] for name in self.__match_args__))

    @classmethod
    def join(cls, parts: Sequence[Self]) -> Self:
        """Return the rows of one part after the other."""
        parts = [part for part in parts if len(part)]
        if len(parts) == 1:
            return parts[0]
        names = cls.__match_args__
        empty = (np.empty(0, np.float64 if name == "loss" else np.int64) for name in names)
        return cls(
            *(np.concatenate([e, *(getattr(part, n) for part in parts)]) for e, n in zip(empty, names, strict=True))
        )

    @classmethod
    def none(cls) -> Self:
        """Return no rows."""
        return cls.join([])

    def impossible(self, strata: Strata) -> NDArray[np.bool_]:
        """Flag the rows with an impossible loss, an impossible count, or an impossible place."""
        bad = (self.stratum < 0) | (self.stratum >= len(strata)) | (self.position < 0) | (self.replay_count < 0)
        bad |= (self.loss < 0) | np.isinf(self.loss)
        if not bad.any():
            bad = self.position >= strata.count[self.stratum]
        return bad


@dataclass(slots=True)
class Rows(Located):
    """The whole replay metadata of some episodes. A change of episodes needs it.

    ``last_event`` is 0 if no event of the episode was recorded.
    """

    last_event: Ints

    def impossible(self, strata: Strata) -> NDArray[np.bool_]:
        """Flag the impossible rows, including those with a negative event number."""
        return Located.impossible(self, strata) | (self.last_event < 0)


L = TypeVar("L", bound=Located)


@dataclass(slots=True)
class State:
    """The copy that a process has of a buffer's settings, counters, domain names and strata, at one revision."""

    buffer_id: int
    settings: Settings
    counters: Counters
    strata: Strata
    read_strategy: ReadStrategy
    domain_names: list[str] = field(default_factory=list)
    _codes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, conn: Connection, backend: Backend, buffer_id: int, read_strategy: ReadStrategy) -> State:
        """Read everything. ``read_strategy`` parses the stored strategy; the strategies are in a room above."""
        settings, counters, changed = read_buffer(conn, backend, buffer_id, -1, read_strategy)
        return cls(buffer_id, settings, counters, Strata(buffer_id), read_strategy)._updated(conn, changed)

    def reload(self, conn: Connection, backend: Backend) -> State:
        """Read everything again."""
        return State.load(conn, backend, self.buffer_id, self.read_strategy)

    def copy(self) -> State:
        """Return an independent copy. Both share the domain names until one is added."""
        return replace(self, counters=self.counters.copy(), strata=self.strata.copy())

    def at(self, conn: Connection, backend: Backend) -> State:
        """Return this state if the snapshot has the same revision, else a copy at the revision of the snapshot.

        Only the changed strata are read. So with 10,000 domains a draw does not read 100,000 strata.
        """
        known = self.counters.revision
        settings, counters, changed = read_buffer(conn, backend, self.buffer_id, known, self.read_strategy)
        if counters.revision == known:
            return self
        if counters.revision < known:
            # The snapshot is older than the copy, because another thread has committed since.
            return self.reload(conn, backend)
        return replace(self, settings=settings, counters=counters, strata=self.strata.copy())._updated(conn, changed)

    def _updated(self, conn: Connection, changed: list[tuple[Any, ...]]) -> State:
        self.strata.refresh(changed)
        domains = max(self.counters.domains, int(self.strata.domain.max(initial=0)))
        if domains > len(self.domain_names):
            self._load_domains(conn)
        if domains > len(self.domain_names):
            raise stored.damaged(f"buffer {self.buffer_id}", f"has names of {len(self.domain_names)} domains only")
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

    def verified(self, rows: L) -> L:
        """Return the same rows after a check that none is impossible.

        Raises
        ------
        StoreCorrupt
            A row is impossible. The message names the episode.
        """
        bad = rows.impossible(self.strata)
        if bad.any():
            number = int(rows.ids[bad][0])
            raise stored.damaged(f"episode {number}: its replay metadata", "has impossible values", episode_id=number)
        return rows

    def domain_name(self, domain_id: int, what: str) -> str:
        """Return the name of the domain with this id. ``what`` names the owner of the domain in an error."""
        return stored.named(self.domain_names, stored.whole(domain_id, what) - first_id(self.buffer_id), what)

    def domain_code(self, name: str) -> int | None:
        """Return the number of a domain. None if the buffer never had an episode of it."""
        return self._codes.get(name)

    def store_settings(self, conn: Connection, settings: Settings) -> None:
        """Give the buffer these settings. The caller holds its lock."""
        write_settings(conn, self.buffer_id, settings)
        self.settings = settings

    def flush(self, conn: Connection, backend: Backend) -> None:
        """Write all changes, under a new revision. The caller holds the buffer's lock."""
        self.counters.revision += 1
        self.strata.flush(conn, backend, self.counters.strata, self.counters.revision)
        self.counters.strata = len(self.strata)
        self.counters.domains = len(self.domain_names)
        write_counters(conn, backend, self.buffer_id, self.counters)


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
        """Id just below all ids of the buffer. Episodes, events, domains and strata are numbered from here."""
        return first_id(self.state.buffer_id)

    @property
    def live(self) -> int:
        """Number of live episodes."""
        return self.state.strata.live

    def locate(self, strata: Ints, positions: Ints) -> Located:
        """Return the rows at these places, in the order given.

        Raises
        ------
        StoreCorrupt
            A place is empty or holds two rows. Positions within a stratum are dense.
        """
        found = self.backend.locate(self.conn, self.state.strata.ids(strata), positions)
        if len(found) != len(strata):
            raise StoreCorrupt(
                f"{len(strata)} positions of the sampling index hold {len(found)} rows; run 'memstore check'"
            )
        # A join returns rows in any order, but the law of the draw depends on the order of the proposals.
        found = sorted(found)
        if [row[0] for row in found] != list(range(len(strata))):
            raise StoreCorrupt("a position of the sampling index holds two rows; run 'memstore check'")
        ids, loss, count = stored.arrays(replay_metadata, COLUMNS[:3], [row[1:] for row in found])
        return self.state.verified(Located(ids, loss, count, strata, positions))

    def find(self, ids: Ints) -> Rows:
        """Return the rows of the live episodes of the buffer among these ids, in id order, each once."""
        low, high = id_range(self.state.buffer_id)
        own = np.unique(ids[(ids >= low) & (ids <= high)])
        if not len(own):
            return Rows.none()
        rows = self.backend.select(self.conn, replay_metadata, COLUMNS, "episode_id", own.tolist())
        return self.state.verified(rows_from(self.state, sorted(rows)))

    def rows_of(self, ids: Ints) -> Rows:
        """Return the rows of these live episodes, in this order."""
        found = self.find(ids)
        return found.take(np.searchsorted(found.ids, ids))

    def scan(self) -> Rows:
        """Return every live row, in id order. The time is proportional to the size of the buffer."""
        return self.state.verified(self.unverified())

    def unverified(self) -> Rows:
        """Return every row of the buffer, in id order, even impossible rows."""
        return rows_from(self.state, self.rows(replay_metadata, COLUMNS))

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

    def oldest_id(self) -> int:
        """Return the smallest live id."""
        return int(_OLDEST.scalar(self.conn, self.backend, **self._range))

    def newest_id(self) -> int:
        """Return the largest live id."""
        return int(_NEWEST.scalar(self.conn, self.backend, **self._range))

    def smallest_loss(self) -> float | None:
        """Return the smallest measured loss. None if no loss was measured.

        Raises
        ------
        StoreCorrupt
            The stored loss is impossible.
        """
        found = _SMALLEST_LOSS.scalar(self.conn, self.backend, buffer=self.state.buffer_id)
        return None if found is None else stored.real(found, "the smallest loss", 0.0)

    def newest_possible(self) -> int:
        """Return the id that was given out last. Its episode may have left."""
        return self.first_id + self.state.counters.inserted

    def age(self, ids: Ints) -> Ints:
        """Return the age of each id: the number of episodes inserted from it on, itself included."""
        return self.newest_possible() + 1 - ids

    @property
    def _range(self) -> dict[str, int]:
        return dict(zip(("low", "high"), id_range(self.state.buffer_id), strict=True))

    @property
    def own(self) -> ColumnElement[bool]:
        """Condition on ``replay_metadata`` that selects the rows of this buffer, by their ids."""
        return of_buffer(self.state.buffer_id, _m.episode_id)


def rows_from(state: State, rows: Sequence[tuple[Any, ...]]) -> Rows:
    """Return the rows that a query for ``COLUMNS`` found."""
    ids, loss, count, strata, position, last = stored.arrays(replay_metadata, COLUMNS, rows)
    return Rows(ids, loss, count, state.strata.indices(strata), position, last)
