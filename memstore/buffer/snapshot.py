"""One consistent view of a buffer: counters, domains and strata, and the rows they lead to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Connection, and_, bindparam, func, select

from memstore.buffer.counters import Counters, Row, read_buffer, write_counters
from memstore.buffer.strata import Floats, Ints, Strata
from memstore.config import Settings
from memstore.errors import StoreCorrupt
from memstore.storage import checksums, stored
from memstore.storage.backends import Backend
from memstore.storage.prepared import Prepared
from memstore.storage.schema import domain, first_id, id_range, replay_metadata

COLUMNS = ("episode_id", "loss", "replay_count", "stratum_id", "position", "last_event_id")
"""Columns of ``replay_metadata`` that make ``Rows``."""

_m = replay_metadata.c

_own = _m.episode_id.between(bindparam("low"), bindparam("high"))
_OLDEST = Prepared(select(func.min(_m.episode_id)).where(_own))
_NEWEST = Prepared(select(func.max(_m.episode_id)).where(_own))
# Not min(): NULLs stand first in the index, and min() would walk over all of them.
_SMALLEST_LOSS = Prepared(
    select(_m.loss).where(_m.buffer_id == bindparam("buffer"), _m.loss.is_not(None)).order_by(_m.loss).limit(1)
)


@dataclass(slots=True)
class Rows:
    """Replay metadata of some episodes, as columns.

    ``loss`` is NaN where never measured, ``last_event`` 0 where none was recorded, or it was not read (by ``locate``).
    """

    ids: Ints
    loss: Floats
    replay_count: Ints
    stratum: Ints
    position: Ints
    last_event: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: NDArray[np.int64] | NDArray[np.bool_]) -> Rows:
        """The rows at these places."""
        return Rows(*(getattr(self, name)[which] for name in _FIELDS))

    @staticmethod
    def join(parts: list[Rows]) -> Rows:
        """One after the other."""
        if len(parts) == 1:
            return parts[0]
        columns = {name: [getattr(part, name) for part in parts] for name in _FIELDS}
        empty = {name: np.empty(0, np.float64 if name == "loss" else np.int64) for name in _FIELDS}
        return Rows(*(np.concatenate([empty[name], *columns[name]]) for name in _FIELDS))

    @staticmethod
    def none() -> Rows:
        """No rows."""
        return Rows.join([])


_FIELDS = tuple(field.name for field in fields(Rows))


@dataclass(slots=True)
class State:
    """A process's copy of a buffer's settings, counters, domain names and strata, at one revision."""

    buffer_id: int
    settings: Settings
    signature: str | None
    counters: Counters
    strata: Strata
    domain_names: list[str] = field(default_factory=list)
    _codes: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, conn: Connection, backend: Backend, buffer_id: int) -> State:
        """Read everything."""
        row, changed = read_buffer(conn, backend, buffer_id, since=-1)
        state = cls(buffer_id, row.settings, row.signature, Counters(revision=-1), Strata(buffer_id))
        return state._updated(conn, row, changed)

    def copy(self) -> State:
        """An independent copy; the domain names are shared until one is added."""
        return replace(self, counters=self.counters.copy(), strata=self.strata.copy())

    def at(self, conn: Connection, backend: Backend) -> State:
        """This state if the snapshot has its revision, else a copy brought to the snapshot's revision.

        Only what changed since is read: 10,000 domains do not mean 100,000 rows a draw.
        """
        row, changed = read_buffer(conn, backend, self.buffer_id, since=self.counters.revision)
        if row.counters.revision == self.counters.revision:
            return self
        if row.counters.revision < self.counters.revision:
            # The snapshot is older than the copy: another thread committed meanwhile.
            return State.load(conn, backend, self.buffer_id)
        return self.copy()._updated(conn, row, changed)

    def _updated(self, conn: Connection, row: Row, changed: list[tuple[Any, ...]]) -> State:
        self.strata.refresh(changed)
        highest = int(self.strata.domain.max(initial=0))
        if max(row.counters.domains, highest) > len(self.domain_names):
            self._load_domains(conn)
        if max(row.counters.domains, highest) > len(self.domain_names):
            raise stored.damaged(f"buffer {self.buffer_id}", f"has names of {len(self.domain_names)} domains only")
        self.settings, self.signature, self.counters = row.settings, row.signature, row.counters
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

    def domain_codes(self, conn: Connection, backend: Backend, names: list[str]) -> Ints:
        """The number of each domain within the buffer; new names are stored."""
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

    def possible(self, rows: Rows) -> Rows:
        """The same rows.

        Raises
        ------
        StoreCorrupt
            When one stands where no row can stand, or has a loss or a count that no row can have.
        """
        bad = (rows.stratum < 0) | (rows.stratum >= len(self.strata)) | (rows.position < 0) | (rows.replay_count < 0)
        bad |= (rows.loss < 0) | np.isinf(rows.loss) | (rows.last_event < 0)
        if not bad.any():
            bad = rows.position >= self.strata.count[rows.stratum]
        if bad.any():
            number = int(rows.ids[bad][0])
            raise stored.damaged(f"episode {number}: its replay metadata", "cannot be as stored", episode_id=number)
        return rows

    def domain_name(self, domain_id: int, episode_id: int) -> str:
        """Name of the domain with this id, which the episode is said to be of."""
        return stored.named(
            self.domain_names, domain_id - first_id(self.buffer_id), f"episode {episode_id}: its domain"
        )

    def domain_code(self, name: str) -> int | None:
        """The number of a domain, None when the buffer never saw it."""
        return self._codes.get(name)

    def flush(self, conn: Connection, backend: Backend) -> None:
        """Write what changed, under a new revision; the caller holds the buffer's lock."""
        self.counters.revision += 1
        self.strata.flush(conn, backend, self.counters.strata, self.counters.revision)
        self.counters.strata = len(self.strata)
        self.counters.domains = len(self.domain_names)
        write_counters(conn, backend, self.buffer_id, self.counters)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What a draw reads: a state and the connection whose snapshot it describes."""

    conn: Connection
    backend: Backend
    state: State

    @property
    def settings(self) -> Settings:
        """The buffer's settings."""
        return self.state.settings

    @property
    def live(self) -> int:
        """Number of live episodes."""
        return self.state.strata.live

    def locate(self, strata: Ints, positions: Ints) -> Rows:
        """The rows at these places, in the order given.

        Raises
        ------
        StoreCorrupt
            When a place is empty: positions within a stratum are dense.
        """
        found = self.backend.locate(self.conn, self.state.strata.ids(strata), positions)
        if len(found) != len(strata):
            raise StoreCorrupt(
                f"{len(strata)} positions of the sampling index hold {len(found)} rows; run 'memstore check'"
            )
        # A join returns rows in any order; the draw's law depends on the proposal order.
        ordinal, ids, loss, count = zip(*sorted(found), strict=True) if found else ((), (), (), ())
        if ordinal != tuple(range(len(strata))):
            raise StoreCorrupt("a position of the sampling index holds two rows; run 'memstore check'")
        unread = np.zeros(len(ids), np.int64)
        what = replay_metadata.name
        rows = Rows(
            stored.wholes(ids, what), stored.reals(loss, what), stored.wholes(count, what), *(strata, positions, unread)
        )
        return self.state.possible(rows)

    def find(self, ids: Ints) -> Rows:
        """The live ones among these ids that are the buffer's own, in id order, each once."""
        low, high = id_range(self.state.buffer_id)
        own = np.unique(ids[(ids >= low) & (ids <= high)])
        if not len(own):
            return Rows.none()
        rows = self.backend.select(self.conn, replay_metadata, COLUMNS, "episode_id", own.tolist())
        return self.state.possible(rows_of(self.state, sorted(rows)))

    def scan(self) -> Rows:
        """Every live row, in id order, in time proportional to the buffer."""
        return self.state.possible(self.unverified())

    def unverified(self) -> Rows:
        """Every row of the buffer, in id order, whether it can be or not."""
        query = select(*(_m[name] for name in COLUMNS)).where(self.own).order_by(_m.episode_id)
        return rows_of(self.state, [tuple(row) for row in self.conn.execute(query)])

    def looked_up(self, ids: Ints) -> Rows:
        """The rows of these live episodes, in this order."""
        found = self.find(ids)
        return found.take(np.searchsorted(found.ids, ids))

    def oldest_id(self) -> int:
        """Smallest live id."""
        return int(_OLDEST.scalar(self.conn, self.backend, **self._range))

    def newest_id(self) -> int:
        """Largest live id."""
        return int(_NEWEST.scalar(self.conn, self.backend, **self._range))

    def smallest_loss(self) -> float | None:
        """Smallest measured loss, None when nothing is measured."""
        found: float | None = _SMALLEST_LOSS.scalar(self.conn, self.backend, buffer=self.state.buffer_id)
        return found

    def newest_possible(self) -> int:
        """The id last given out, whether its episode is still there or not."""
        return first_id(self.state.buffer_id) + self.state.counters.inserted

    def age(self, ids: Ints) -> Ints:
        """Episodes inserted since, counting itself: the newest id has age 1."""
        return self.newest_possible() + 1 - ids

    def of_age(self, age: Ints) -> Ints:
        """Inverse of ``age``, which is its own inverse."""
        return self.age(age)

    @property
    def _range(self) -> dict[str, int]:
        return dict(zip(("low", "high"), id_range(self.state.buffer_id), strict=True))

    @property
    def own(self) -> ColumnElement[bool]:
        """Condition on ``replay_metadata``: rows of this buffer, by their ids."""
        low, high = id_range(self.state.buffer_id)
        return and_(_m.episode_id >= low, _m.episode_id <= high)


def rows_of(state: State, rows: Sequence[tuple[Any, ...]]) -> Rows:
    """Rows from what a query for ``COLUMNS`` found."""
    ids, loss, count, strata, position, last = zip(*rows, strict=True) if rows else ((),) * len(COLUMNS)
    what = f"table {replay_metadata.name}"
    return Rows(
        stored.wholes(ids, what),
        stored.reals(loss, what),
        stored.wholes(count, what),
        state.strata.rows(stored.wholes(strata, what).tolist()),
        stored.wholes(position, what),
        stored.wholes(last, what, unknown=0),
    )
