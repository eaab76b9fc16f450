"""The tail of the log: what has happened since a point, and the copy of the blocks after it.

The log has three kinds of entries. A newcomer is a row of ``episode``, with its loss at the add. A replay and a
departure are rows of ``replay_event``. All entries are absolute: an event holds the loss and the number of replays
after it. So the tail is applied by kinds: newcomers first, then replays, then departures.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import MAX_DOMAIN
from memstore.buffer.blocks.slots import Flags, Floats, Ints, among, begins
from memstore.storage import checksums, stored
from memstore.storage.backends import Backend
from memstore.storage.schema import episode, event_group, first_id, replay_event

_e, _v, _g = episode.c, replay_event.c, event_group.c

NO_COUNT = -1
"""This stands for the number of replays of a newcomer that never entered."""


class Point(NamedTuple):
    """A point of the log, between two writes.

    Attributes
    ----------
    inserted, logged : int
        Sequence numbers of the last episode and of the last event.
    log_sum : int
        The sum of the checksums of all entries, modulo 2**64, with a sign.
    """

    inserted: int
    logged: int
    log_sum: int

    def moved(self, checksum: NDArray[np.int64], *, inserted: int = 0, logged: int = 0) -> Point:
        """Return the point behind more entries, which have these checksums."""
        total = (self.log_sum + _mixed(checksum) + 2**63) % 2**64 - 2**63
        return Point(self.inserted + inserted, self.logged + logged, total)


def _mixed(checksum: NDArray[np.int64]) -> int:
    """Return the sum of the checksums, after each was mixed.

    A checksum is linear in its columns. So the plain sum would stay the same, or nearly so, if two rows exchanged a
    value.
    """
    with np.errstate(over="ignore"):
        mixed = checksum * np.int64(-7046029254386353131)
        mixed ^= mixed >> np.int64(29)
        mixed *= np.int64(-4658895280553007687)
        mixed ^= mixed >> np.int64(32)
        return int(mixed.sum())


@dataclass(frozen=True, slots=True)
class Newcomers:
    """Episodes that entered: ids, numbers of domains, losses (NaN if never measured), and checksums of their facts."""

    ids: Ints
    domains: Ints
    loss: Floats
    facts: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: Flags) -> Newcomers:
        """Return the newcomers at these places."""
        return Newcomers(self.ids[which], self.domains[which], self.loss[which], self.facts[which])

    @staticmethod
    def none() -> Newcomers:
        """Return no newcomers."""
        whole = np.empty(0, np.int64)
        return Newcomers(whole, whole, np.empty(0), whole)

    def checksums(self) -> Ints:
        """Return the checksum of each entry. The facts tell it from another episode with the same number and loss."""
        return checksums.of_columns(self.ids, self.domains, self.loss, self.facts)


@dataclass(frozen=True, slots=True)
class Events:
    """Replays and departures, in the order of their numbers.

    Attributes
    ----------
    ids, episodes, domains : int64 arrays
        Numbers of the events, their episodes, and the numbers of the domains within the buffer.
    loss : float64 array
        Loss after the event. NaN for a departure.
    count : int64 array
        Number of replays of the episode after the event. ``NO_COUNT`` for a newcomer that a reservoir turned away.
    previous : int64 array
        The previous recorded event of the episode. 0 for none.
    at : float64 array
        Time of the event in seconds.
    ends, unrecorded : bool arrays
        Flags of departures, and of events that the history does not record.
    """

    ids: Ints
    episodes: Ints
    domains: Ints
    loss: Floats
    count: Ints
    previous: Ints
    at: Floats
    ends: Flags
    unrecorded: Flags

    def __len__(self) -> int:
        return len(self.ids)

    def checksums(self) -> Ints:
        """Return the checksum of each entry."""
        flags = self.ends.astype(np.int64) + 2 * self.unrecorded
        return checksums.of_columns(
            self.ids, self.episodes, self.domains, self.loss, self.count, self.previous, self.at, flags
        )


@dataclass(frozen=True, slots=True)
class Tail:
    """The entries of the log between two points."""

    newcomers: Newcomers
    events: Events

    @classmethod
    def read(cls, conn: Connection, backend: Backend, buffer_id: int, after: Point, until: Point) -> Tail:
        """Read the entries behind ``after``, up to ``until``.

        Raises
        ------
        StoreCorrupt
            An entry cannot be as it is stored.
        """
        return cls(
            _newcomers(conn, backend, buffer_id, after.inserted, until.inserted),
            _events(conn, backend, buffer_id, after.logged, until.logged),
        )

    def end(self, after: Point, until: Point) -> Point:
        """Return the point that the tail reaches from ``after``, if it was read up to ``until``.

        It differs from ``until`` if the log does not continue the log that was known at ``after``.
        """
        moved = after.moved(self.newcomers.checksums(), inserted=until.inserted - after.inserted)
        return moved.moved(self.events.checksums(), logged=len(self.events))

    def applied(self, copy: Copy) -> Copy:
        """Return the copy after these entries."""
        new, events = self.newcomers, self.events
        copy = copy.appended(new.ids, new.domains, new.loss)
        replays = np.flatnonzero(~events.ends)
        if len(replays):
            copy = _replayed(copy, events, replays)
        gone = events.ends & (events.count != NO_COUNT)
        if gone.any():
            copy = copy.departed(copy.locate(events.episodes[gone], events.domains[gone]))
        return copy


def _replayed(copy: Copy, events: Events, replays: Ints) -> Copy:
    """Return the copy after these replays. The last replay of each episode tells its loss, the smallest its lowest."""
    order = replays[np.argsort(events.episodes[replays], kind="stable")]
    episodes, loss = events.episodes[order], events.loss[order]
    first = np.flatnonzero(begins(episodes))
    last = order[np.append(first[1:], len(order)) - 1]
    recorded = np.where(events.unrecorded, events.previous, events.ids)
    found = copy.locate(events.episodes[last], events.domains[last])
    lowest = np.minimum.reduceat(loss, first)
    return copy.patched(found, events.loss[last], events.count[last], recorded[last], lowest, events.at[last])


def _newcomers(conn: Connection, backend: Backend, buffer_id: int, after: int, until: int) -> Newcomers:
    if until <= after:
        return Newcomers.none()
    first, what = first_id(buffer_id), f"table {episode.name}"
    query = select(_e.id, _e.domain_id, _e.loss_at_add, _e.checksum).where(
        _e.id > first + after, _e.id <= first + until
    )
    rows = backend.fetch(conn, query.order_by(_e.id))
    ids, domains, loss, facts = zip(*rows, strict=True) if rows else ((), (), (), ())
    found = Newcomers(
        *(stored.wholes(ids, what), stored.wholes(domains, what) - first, stored.reals(loss, what)),
        stored.wholes(facts, what, unknown=0),
    )
    known = (found.domains > 0) & (found.domains <= MAX_DOMAIN)
    if ((found.loss < 0) | np.isinf(found.loss) | ~known).any():
        raise stored.damaged(what, f"holds an episode after {first + after} with an impossible loss or domain")
    return found


_EVENT = (
    _v.id,
    _v.episode_id,
    _v.domain_id,
    _v.loss_after,
    func.coalesce(_v.nth, NO_COUNT),
    func.coalesce(_v.previous_id, 0),
    func.coalesce(_v.ends, 0),
    func.coalesce(_v.unrecorded, 0),
    _v.group_id,
)


def _events(conn: Connection, backend: Backend, buffer_id: int, after: int, until: int) -> Events:
    first, what = first_id(buffer_id), f"table {replay_event.name}"
    low, high = first + after, first + until
    rows = groups = []
    if until > after:
        rows = backend.fetch(conn, select(*_EVENT).where(_v.id > low, _v.id <= high).order_by(_v.id))
        groups = backend.fetch(conn, select(_g.id, _g.at).where(_g.id > low, _g.id <= high).order_by(_g.id))
    ids, episodes, domains, loss, count, previous, ends, unrecorded, group = (
        zip(*rows, strict=True) if rows else [()] * len(_EVENT)
    )
    events = Events(
        stored.wholes(ids, what),
        stored.wholes(episodes, what),
        stored.wholes(domains, what) - first,
        stored.reals(loss, what),
        stored.wholes(count, what),
        stored.wholes(previous, what),
        _times(stored.wholes(group, what), groups, what),
        stored.wholes(ends, what) != 0,
        stored.wholes(unrecorded, what) != 0,
    )
    possible = events.ends | (np.isfinite(events.loss) & (events.loss >= 0) & (events.count > 0))
    possible &= (events.domains > 0) & (events.domains <= MAX_DOMAIN)
    if not possible.all():
        raise stored.damaged(f"event {events.ids[~possible][0]}", "cannot be as it is stored")
    return events


def _times(group: Ints, groups: list[tuple[int, float]], what: str) -> Floats:
    """Return the time of each event, which is that of its group. NaN if the group is none of these.

    The group may stand before the events that were asked for, if the log is not the one that the process knew. NaN is
    another time than that in the log's sum, so ``Tail.end`` tells it.
    """
    numbers, at = zip(*groups, strict=True) if groups else ((), ())
    known, times = stored.wholes(numbers, what), stored.reals(at, f"table {event_group.name}", nullable=False)
    there, place = among(group, known)
    return np.where(there, times[place], np.nan) if len(known) else np.full(len(group), np.nan)
