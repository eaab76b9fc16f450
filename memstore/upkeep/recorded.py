"""The examination of the history: it is compared with itself, with the tally and with the replay metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from memstore.buffer.blocks.slots import Floats
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.episodes.log import EVENT, GROUP, LARGEST_TALLIED, group_checksum, slot_of
from memstore.storage import stored
from memstore.storage.schema import event_group, id_range, replay_event, replay_tally
from memstore.upkeep.sealed import Unsealed, tell

GROUPS, EVENTS = 4096, 65536
"""Rows read at a time."""

TOLERANCE = 1e-9
"""The sums of a tally from a migration may have this relative error. The migration added events in another order."""

_t = replay_tally.c
_GROUP = (*GROUP, "checksum", "recorded", "unrecorded")
_EVENT = (*EVENT, "ends", "group_id", "unrecorded")


@dataclass(frozen=True)
class Log:
    """The history: the columns of all its events, and the rows of their groups, both in the order of their numbers."""

    events: dict[str, NDArray[Any]]
    groups: list[dict[str, Any]]

    @classmethod
    def read(cls, snapshot: Snapshot) -> Log:
        """Read all that is there."""
        pages = [stored.arrays(replay_event, _EVENT, [])]
        pages += (stored.arrays(replay_event, _EVENT, rows) for rows in snapshot.pages(replay_event, _EVENT, EVENTS))
        columns = map(np.concatenate, zip(*pages, strict=True))
        groups = (row for rows in snapshot.pages(event_group, _GROUP, GROUPS) for row in rows)
        return cls(dict(zip(_EVENT, columns, strict=True)), [dict(zip(_GROUP, row, strict=True)) for row in groups])

    def __len__(self) -> int:
        return len(self.events["id"])

    def events_of(self, group: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """Return the columns of the events that the group should have by their numbers."""
        start, end = np.searchsorted(self.events["id"], (group["id"], group["id"] + group["count"]))
        return {name: values[start:end] for name, values in self.events.items()}

    def each(self, name: str) -> NDArray[Any]:
        """Return for each event what its group has in this column, if the groups have all events."""
        counts = np.array([group["count"] for group in self.groups], np.int64)
        return np.repeat(np.array([group[name] for group in self.groups], object), counts)


@dataclass
class Recorded:
    """The examination of one buffer's history."""

    snapshot: Snapshot
    rows: Rows
    unsealed: Unsealed
    is_whole: bool = False
    """True if every replay of the buffer is in the log. Only then the results of the replays can be compared."""

    def findings(self) -> Iterator[str]:
        """Yield each finding in one sentence."""
        log, sound = Log.read(self.snapshot), True
        for problem in self._groups(log):
            sound = False
            yield problem
        if not sound:
            return  # the other examinations need a whole log
        replayed = log.each("what") == "replayed"
        self.is_whole = int(replayed.sum()) == self.snapshot.state.counters.events
        yield from self._chains(log)
        yield from self._replays(log, replayed)
        yield from self._tally(log)

    def _groups(self, log: Log) -> Iterator[str]:
        """Examine the groups, and the numbers of their events, which have no gaps."""
        _, high = id_range(self.snapshot.state.buffer_id)
        expected, events, counters = None, 0, self.snapshot.state.counters
        for group in log.groups:
            number, what = group["id"], f"group {group['id']} of events"
            stored.real(group["at"], f"{what}: its time")
            count = stored.whole(group["count"], f"{what}: its count", 1, high - number + 1)
            events += count
            if not group["unrecorded"]:
                # Until schema 0005 every event was recorded, so the number of the last event was their number.
                so_far = group["recorded"] or number - self.snapshot.first_id + count - 1
                if expected not in (None, so_far - count):
                    yield f"events before {number} are missing, or twice there"
                expected = so_far
            yield from self._group(group, log.events_of(group))
        if events != len(log):
            yield f"{len(log)} events are there where the groups of events say {events}"
        if expected not in (None, counters.recorded):
            yield f"{expected} events are recorded by the last group, and {counters.recorded} by the buffer's counter"

    def _group(self, group: dict[str, Any], events: dict[str, NDArray[Any]]) -> Iterator[str]:
        number, count = group["id"], group["count"]
        if len(events["id"]) != count:
            yield f"groups of events: {number} has another number of events than it says"
        elif (events["group_id"] != number).any():
            yield f"events of group {number} say that they are of another"
        elif group["checksum"] is None:
            self.unsealed["events"] += count
        elif group["checksum"] != group_checksum(group, events):
            yield f"groups of events: {number} does not match its checksum"
        unknown = np.isnan(events["loss_after"])
        if unknown.any() if group["what"] == "replayed" else not unknown.all():
            yield f"groups of events: {number} has replays without a loss, or departures with one"
        for name in ("loss_before", "loss_after"):
            if (events[name] < 0).any() or np.isinf(events[name]).any():
                yield f"groups of events: {number} has losses that are negative or infinite"

    def _chains(self, log: Log) -> Iterator[str]:
        """Examine the chains, in which each event names the previous event of the same episode.

        The row of a live episode names its last event. The last event of an episode that has left ends its chain.
        """
        order = np.argsort(log.events["episode_id"], kind="stable")
        recorded = log.events["unrecorded"][order] != 1
        # The fold marks the last recorded event of an episode whose departure is not recorded.
        waiting = log.events["episode_id"][order][~recorded & (log.events["ends"][order] == 1)]
        order = order[recorded]
        number, episode, previous, ends = (log.events[n][order] for n in ("id", "episode_id", "previous_id", "ends"))
        first = int(number.min(initial=2**63 - 1))
        follows, last = np.diff(episode, prepend=-1) == 0, np.diff(episode, append=-1) != 0
        live = np.isin(episode, self.rows.ids)
        wrong = np.where(follows, previous != np.roll(number, 1), previous >= first)
        yield from tell("events {} name an event before them that is not the one before", number[wrong])
        wrong = ((ends != 0) != (last & ~live)) & ~np.isin(episode, waiting)
        yield from tell("events {} end a chain that goes on, or end it without saying so", number[wrong])
        heads = number[last & live]
        place = np.searchsorted(self.rows.ids, episode[last & live])
        named = self.rows.last_event.copy()
        named[place] -= heads
        wrong = np.where(np.isin(np.arange(len(named)), place), named != 0, named >= first)
        yield from tell("{} name as their last event one that is not", self.rows.ids[wrong])

    def _replays(self, log: Log, replayed: NDArray[np.bool_]) -> Iterator[str]:
        """Compare the rows with the replays of their episodes, if all replays are known."""
        ids, lowest_loss, replayed_at = self.rows.ids, self.rows.lowest, self.rows.last_replayed_at
        never = self.rows.replay_count == 0
        untimely = never != np.isnan(replayed_at)
        yield from tell("{} have a time of their last replay and none, or the reverse", ids[untimely])
        unlike = never & ~_same(lowest_loss, self.rows.loss)
        yield from tell("{} have a smallest loss that cannot be", ids[unlike])
        if not self.is_whole:
            return
        mine = replayed & np.isin(log.events["episode_id"], ids)
        episode, before, loss = (log.events[name][mine] for name in ("episode_id", "loss_before", "loss_after"))
        place = np.searchsorted(ids, episode)
        last, time, least = np.full(len(ids), np.nan), np.full(len(ids), np.nan), np.full(len(ids), np.inf)
        last[place], time[place] = loss, log.each("at")[mine]
        np.minimum.at(least, place, np.fmin(loss, before))
        counts = np.bincount(place, minlength=len(ids))
        for wrong, what in (
            (counts != self.rows.replay_count, "have another number of replays than the history"),
            (~(_same(last, self.rows.loss) | never), "have another loss than the history"),
            (~(_same(least, lowest_loss) | never), "have another smallest loss than the history"),
            (~_same(time, replayed_at), "were last replayed at another time than the history says"),
        ):
            yield from tell(f"{{}} {what}", ids[wrong])

    def _tally(self, log: Log) -> Iterator[str]:
        state = self.snapshot.state
        names = ("slot", "domain_id", "replays", "loss_sum", "last_step", "last_at")
        found = self.snapshot.conn.execute(select(*(_t[name] for name in names)).where(_t.buffer_id == state.buffer_id))
        tally: dict[tuple[int, int], list[Any]] = {}
        for slot, domain_id, replays, loss_sum, step, at in found:
            what = f"the tally of slot {slot!r:.30}"
            stored.whole(slot, what, 1, max(state.counters.events, 1))
            state.domain_name(domain_id, what)
            stored.whole(replays, what, 1, state.counters.events)
            tally[slot, domain_id] = [replays, stored.real(loss_sum, what, 0.0), step, stored.real(at, what)]
            if slot_of(slot) != slot:
                yield f"{what} cannot be"
        if sum(replays for replays, *_ in tally.values()) > state.counters.events:
            yield "the tally has more replays than there were"
        if not self.is_whole or not self.snapshot.settings.history.record:
            return
        exact = all(group["checksum"] is not None for group in log.groups)
        computed = _tallied(log)
        slots = sorted(tally.keys() | computed.keys())
        wrong = [slot for slot in slots if not _alike(tally.get(slot), computed.get(slot), exact)]
        yield from tell("the tally differs from the history in slots {}", [slot for slot, _ in wrong])


def _tallied(log: Log) -> dict[tuple[int, int], list[Any]]:
    """Return the tally of the history, by slot and domain. It is counted like the stored one: group after group."""
    tally: dict[tuple[int, int], list[Any]] = {}
    replays = 0
    for group in log.groups:
        if group["what"] != "replayed":
            continue
        events = log.events_of(group)
        slot, known = slot_of(replays + 1), events["domain_id"] > 0
        found, place = np.unique(events["domain_id"][known], return_inverse=True)
        sums = np.bincount(place, np.minimum(events["loss_after"][known], LARGEST_TALLIED))
        for domain, count, loss in zip(found.tolist(), np.bincount(place).tolist(), sums.tolist(), strict=True):
            so_far = tally.setdefault((slot, domain), [0, 0.0, None, 0.0])
            step = so_far[2] if group["step"] is None else group["step"]
            so_far[:] = [so_far[0] + count, so_far[1] + loss, step, group["at"]]
        replays += group["count"]
    return tally


def _alike(one: list[Any] | None, other: list[Any] | None, exact: bool) -> bool:
    if one is None or other is None:
        return False
    margin = 0.0 if exact else TOLERANCE * max(one[1], other[1])
    return one[0] == other[0] and one[2:] == other[2:] and abs(one[1] - other[1]) <= margin


def _same(one: Floats, other: Floats) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = (one == other) | (np.isnan(one) & np.isnan(other))
    return same
