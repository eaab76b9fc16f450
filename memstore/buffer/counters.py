"""The ``buffer`` row, with the settings and the counters of a buffer. A writer locks the row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from operator import attrgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, delete, insert, select, update

from memstore.buffer.settings import COLUMNS as SETTINGS
from memstore.buffer.settings import ReadStrategy, Settings, read_settings
from memstore.buffer.tail import Events, Newcomers, Point
from memstore.errors import ConfigError, StoreCorrupt
from memstore.storage import checksums, stored
from memstore.storage.backends import Backend
from memstore.storage.backends.clauses import update_one
from memstore.storage.schema import MAX_BUFFERS, SEQUENCE_BITS, buffer, metadata, of_buffer


@dataclass(slots=True)
class Counters:
    """The columns of the ``buffer`` row that change with the data.

    Attributes
    ----------
    revision : int
        Number of writes to the buffer. Each call that changes the buffer counts one.
    inserted : int
        Number of episodes ever offered. It is also the sequence number of the last id.
    events : int
        Number of replays ever. The column has an old name: these are not the events of the history.
    domains : int
        Number of the buffer's domains.
    live_replays : int
        Number of replays of the live episodes.
    high_water : float or None
        Largest priority ever measured. None before any.
    reservoir_floor : int or None
        Largest random key of an episode that a reservoir ever removed. None before any.
    recorded : int
        Number of events ever recorded in the history.
    departed : int
        Number of episodes that ever left, those included that a reservoir turned away.
    token : int
        Random number of the last write. With the revision it tells if a copy of the blocks is current.
    logged : int
        Number of events ever, recorded or not. It is also the sequence number of the last event.
    log_sum : int
        The sum of the checksums of all entries of the log; see ``tail.Point``.
    history_from : int
        Sequence number of the last event that the history has forgotten.
    stored_inserted, stored_logged, stored_sum : int
        The point of the log that the rows of blocks stand at.
    block_sum : int
        The ``fingerprint`` of the rows of all blocks.
    folded_inserted, folded_logged : int
        The point of the log that the other tables stand at.
    fold_at : int
        Blocks are merged, and all is folded, by the write with which ``log_length`` reaches this.
    waiting_bytes : int
        Bytes of the payloads that came since the fold.
    """

    revision: int = 0
    inserted: int = 0
    events: int = 0
    domains: int = 0
    live_replays: int = 0
    high_water: float | None = None
    reservoir_floor: int | None = None
    recorded: int = 0
    departed: int = 0
    token: int = 0
    logged: int = 0
    log_sum: int = 0
    history_from: int = 0
    stored_inserted: int = 0
    stored_logged: int = 0
    stored_sum: int = 0
    block_sum: int = 0
    folded_inserted: int = 0
    folded_logged: int = 0
    fold_at: int = 0
    waiting_bytes: int = 0

    @property
    def top_priority(self) -> float:
        """Priority of a never-measured episode: the largest priority ever measured, 1.0 before any."""
        return 1.0 if self.high_water is None else self.high_water

    @property
    def live(self) -> int:
        """Number of live episodes. The blocks tell it too, and ``check`` compares both."""
        return self.inserted - self.departed

    @property
    def log_length(self) -> int:
        """Number of adds, replays and departures ever."""
        return self.inserted + self.logged

    @property
    def head(self) -> Point:
        """The end of the log."""
        return Point(self.inserted, self.logged, self.log_sum)

    @property
    def stored(self) -> Point:
        """The point of the log that the rows of blocks stand at."""
        return Point(self.stored_inserted, self.stored_logged, self.stored_sum)

    @property
    def unfolded(self) -> int:
        """Number of entries of the log that the tables do not have yet."""
        return self.log_length - self.folded_inserted - self.folded_logged

    @property
    def is_folded(self) -> bool:
        """True if the tables stand at the end of the log."""
        return (self.folded_inserted, self.folded_logged) == (self.inserted, self.logged)

    def entered(self, newcomers: Newcomers, offered: int) -> None:
        """Count newcomers of a write, and put those that entered into the log. Some of ``offered`` may not enter."""
        self._moved(self.head.moved(newcomers.checksums(), inserted=offered))

    def happened(self, events: Events) -> None:
        """Put events into the log."""
        self._moved(self.head.moved(events.checksums(), logged=len(events)))

    def _moved(self, head: Point) -> None:
        self.inserted, self.logged, self.log_sum = head

    def measured(self, loss: NDArray[np.float64], epsilon: float) -> None:
        """Raise the largest priority ever measured to that of these losses. A loss of NaN does not count."""
        known = loss[~np.isnan(loss)]
        if len(known):
            self.high_water = max(self.high_water or 0.0, float(known.max()) + epsilon)

    def copy(self) -> Counters:
        """Return an independent copy."""
        return replace(self)


COUNTERS = tuple(f.name for f in fields(Counters))
"""The columns that ``Counters`` holds, in its order."""

_values = attrgetter(*COUNTERS)

LIMITED = (
    *("inserted", "domains", "recorded", "departed", "logged", "history_from"),
    *("stored_inserted", "stored_logged", "folded_inserted", "folded_logged"),
)
"""These counters are sequence numbers, and have ``SEQUENCE_BITS``."""

_ROW = ("signature", *SETTINGS, *COUNTERS)
SEALED = ("id", "name", "signature", "created_at", "created_by", *SETTINGS)
"""The checksum in column ``checksum`` covers these columns. ``counters_checksum`` covers the counters."""


def buffer_id(conn: Connection, name: str) -> int | None:
    """Return the number of the buffer with this name. None if there is none."""
    return conn.scalars(select(buffer.c.id).where(buffer.c.name == name)).one_or_none()


def buffer_names(conn: Connection) -> list[str]:
    """Return the names of all buffers, in the order of creation."""
    return list(conn.scalars(select(buffer.c.name).order_by(buffer.c.id)))


def create_buffer(conn: Connection, name: str, settings: Settings, now: float, version: str) -> int:
    """Insert the row of a new, empty buffer, and return its number."""
    values = settings.columns() | asdict(Counters()) | {"counters_checksum": counters_checksum(Counters())}
    statement = insert(buffer).values(name=name, created_at=now, created_by=version, **values)
    number = int(conn.execute(statement.returning(buffer.c.id)).scalar_one())
    if number > MAX_BUFFERS:
        raise ConfigError(f"a database holds at most {MAX_BUFFERS} buffers over its life; use another file")
    write_settings(conn, number, settings)
    return number


def write_settings(conn: Connection, number: int, settings: Settings) -> None:
    """Store the settings, with the row's checksum. The caller holds the buffer's lock."""
    own = buffer.c.id == number
    conn.execute(update(buffer).where(own).values(settings.columns()))
    sealed = conn.execute(select(*(buffer.c[name] for name in SEALED)).where(own)).one()
    conn.execute(update(buffer).where(own).values(checksum=checksums.of_row(*sealed)))


def drop_buffer(conn: Connection, number: int) -> None:
    """Delete a buffer and everything in it. Its number is never used again."""
    for table in metadata.sorted_tables:
        key = next(iter(table.primary_key))
        own = key == number if key.name == "buffer_id" or table is buffer else of_buffer(number, key)
        conn.execute(delete(table).where(own))


def counters_checksum(counters: Counters) -> int:
    """Return the checksum that is stored with these counters."""
    return checksums.of_row(*_values(counters))


def read_buffer(
    conn: Connection, backend: Backend, number: int, read_strategy: ReadStrategy
) -> tuple[Settings, Counters]:
    """Return settings and counters."""
    found = backend.read_buffer(conn, number, _ROW)
    if found is None:
        raise StoreCorrupt(f"buffer {number} has vanished from the database; was it dropped, or the file replaced?")
    signature, *rest = found
    split = len(SETTINGS)
    settings = read_settings(number, read_strategy, signature, *rest[:split])
    return settings, checked_counters(number, rest[split:])


def checked_counters(number: int, values: Sequence[Any]) -> Counters:
    """Return the counters of a buffer from their columns.

    Raises
    ------
    StoreCorrupt
        A value is impossible. The message names it.
    """
    counters = Counters(*values)
    for name in LIMITED:
        stored.whole(getattr(counters, name), f"buffer {number}: its counter {name}", 0, 2**SEQUENCE_BITS)
    for name in ("revision", "events", "live_replays", "fold_at", "waiting_bytes"):
        stored.whole(getattr(counters, name), f"buffer {number}: its counter {name}")
    for name in ("token", "block_sum", "log_sum", "stored_sum"):
        stored.whole(getattr(counters, name), f"buffer {number}: its {name}", -(2**63))
    if counters.high_water is not None:
        stored.real(counters.high_water, f"buffer {number}: its high_water", 0.0)
    if counters.reservoir_floor is not None:
        stored.whole(counters.reservoir_floor, f"buffer {number}: its reservoir_floor")
    return counters


def write_counters(conn: Connection, backend: Backend, number: int, counters: Counters) -> None:
    """Store the counters. The caller holds the buffer's lock."""
    values = _values(counters)
    names = (*COUNTERS, "counters_checksum")
    backend.execute(
        conn, update_one(backend.mark, buffer.name, names, "id"), (*values, checksums.of_row(*values), number)
    )
