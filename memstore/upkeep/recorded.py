"""The examination of the log: it is compared with itself, with the tally and with the live rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from memstore.buffer.blocks.slots import Flags, Floats
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.episodes.log import LARGEST_TALLIED, group_checksum, slot_of
from memstore.storage import stored
from memstore.storage.schema import SEQUENCE_BITS, id_range, replay_tally
from memstore.upkeep.entries import Chains, Log
from memstore.upkeep.loaded import Loaded
from memstore.upkeep.sealed import Unsealed, tell
from memstore.upkeep.window import Window

TOLERANCE = 1e-9
"""The sums of a tally from a migration may have this relative error. The migration added events in another order."""

_t = replay_tally.c


@dataclass
class Recorded:
    """The examination of one buffer's log.

    Attributes
    ----------
    window : Window
        The tables, and the log since the fold.
    rows : Rows or None
        The live rows, in id order. None if they cannot be read.
    """

    loaded: Loaded
    window: Window
    rows: Rows | None
    unsealed: Unsealed
    is_whole: bool = False
    """True if every replay of the buffer is in the history. Only then the results of the replays can be compared."""

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot in which everything is read."""
        return self.loaded.snapshot

    def findings(self) -> Iterator[str]:
        """Yield each finding in one sentence."""
        log, sound = Log.read(self.snapshot), True
        for problem in self._groups(log):
            sound = False
            yield problem
        if self.loaded.counted:
            yield from self._numbers(log)
        if not sound:
            return  # the other examinations need groups with all their events
        replays, counters = int((log.replayed & log.recorded).sum()), self.snapshot.state.counters
        self.is_whole = self.loaded.counted and replays == counters.events
        if self.loaded.counted and max(replays, counters.logged - counters.departed) > counters.events:
            yield f"the log has more replays than the {counters.events} that the buffer counts"
        yield from self._steps(log)
        if self.rows is not None:
            yield from self._chains(log, self.rows)
            yield from self._replays(log, self.rows)
        if self.loaded.counted:
            yield from self._tally(log)

    def _groups(self, log: Log) -> Iterator[str]:
        """Examine each group with its events."""
        _, high = id_range(self.snapshot.state.buffer_id)
        events = 0
        for group in log.groups:
            number, what = group["id"], f"group {group['id']} of events"
            stored.real(group["at"], f"{what}: its time")
            stored.whole(group["count"], f"{what}: its count", 1, high - number + 1)
            events += group["count"]
            yield from self._group(group, log.events_of(group))
        if events != len(log):
            yield f"{len(log)} events are there where the groups of events say {events}"

    def _numbers(self, log: Log) -> Iterator[str]:
        """Examine the numbers of events, and the counts of recorded ones, both without gaps.

        Every event since the fold is there. Before it, those are missing that the history does not record or has
        forgotten.
        """
        first, counters = self.snapshot.first_id, self.snapshot.state.counters
        edge, forgotten = first + counters.folded_logged, first + counters.history_from
        following, counted = edge + 1, None
        for group in log.groups:
            number, end = group["id"], group["id"] + group["count"] - 1
            if end > edge and number != following:
                yield f"events before {number} are missing, or twice there"
            following = max(following, end + 1)
            if number <= forgotten < end:
                yield f"group {number} of events is forgotten by the history in part only"
            if group["unrecorded"] is not None:
                if number <= edge:
                    yield f"group {number} of events is not recorded, and the fold has left it there"
                continue
            # Before schema 0005, every event was recorded, so its number tells the count.
            count = end - first if group["recorded"] is None else group["recorded"]
            if counted not in (None, count - group["count"]):
                yield f"recorded events before {number} are missing, or twice there"
            counted = count
        if following != first + counters.logged + 1:
            yield f"event {following} would be the next, by the buffer's counter of events it is another one"
        if counted not in (None, counters.recorded):
            yield f"{counted} events were recorded, by the buffer's counter {counters.recorded}"

    def _group(self, group: dict[str, Any], events: dict[str, NDArray[Any]]) -> Iterator[str]:
        number, count = group["id"], group["count"]
        if len(events["id"]) != count:
            yield f"groups of events: {number} has another number of events than it says"
        elif (events["group_id"] != number).any():
            yield f"events of group {number} say that they are of another"
        elif (events["unrecorded"] != (group["unrecorded"] or 0)).any():
            yield f"groups of events: {number} is recorded, and its events are not, or the reverse"
        elif group["checksum"] is None:
            self.unsealed["events"] += count
        elif group["checksum"] != group_checksum(group, events):
            yield f"groups of events: {number} does not match its checksum"
        edge = self.snapshot.first_id + self.snapshot.state.counters.folded_logged
        if number > edge and ((events["ends"] != 0) == (group["what"] == "replayed")).any():
            yield f"groups of events: {number} has replays that end a chain, or departures that do not"
        unknown = np.isnan(events["loss_after"])
        if unknown.any() if group["what"] == "replayed" else not unknown.all():
            yield f"groups of events: {number} has replays without a loss, or departures with one"
        for name in ("loss_before", "loss_after"):
            if (events[name] < 0).any() or np.isinf(events[name]).any():
                yield f"groups of events: {number} has losses that are negative or infinite"

    def _steps(self, log: Log) -> Iterator[str]:
        """Compare each event with the one before it of the same episode: the loss, and the number of replays.

        If unrecorded events between them are deleted, losses differ, and the number rises by more than one.
        """
        chains = Chains(log)
        edge = self.snapshot.first_id + self.snapshot.state.counters.folded_logged
        number, nth, loss = chains["id"], chains["nth"], chains["loss_after"]
        replayed = log.replayed[chains.order]
        follows = chains.follows & np.roll(replayed, 1)
        known = follows & (np.roll(nth, 1) > 0) & (nth > 0)
        rise = nth - np.roll(nth, 1)
        whole = known & (np.roll(number, 1) > edge)
        wrong = known & (rise < replayed) | whole & (rise != replayed)
        yield from tell("events {} count other replays than the event before them", number[wrong])
        wrong = (known & (rise == replayed) | whole) & ~_same(chains["loss_before"], np.roll(loss, 1))
        yield from tell("events {} begin with another loss than the event before them ended with", number[wrong])
        ranked = self.is_whole & (nth > 0) & (nth != chains.rank(replayed))
        yield from tell("events {} have another number of replays than the history", number[ranked])
        wrong = replayed & (nth == 0) & (number > edge)
        yield from tell("events {} are replays without a number", number[wrong])
        yield from self._births(chains, replayed)

    def _births(self, chains: Chains, replayed: Flags) -> Iterator[str]:
        """Compare the losses at the add with the first events of their episodes, and with rows without a replay."""
        ids, _, born = self.window.facts
        if not len(ids):
            return
        first_one = ~chains.follows & (chains["nth"] == replayed) & (replayed | (chains["ends"] != 0))
        of, before = chains["episode_id"][first_one], chains["loss_before"][first_one]
        if self.rows is not None:
            never = self.rows.replay_count == 0
            of, before = np.concatenate([of, self.rows.ids[never]]), np.concatenate([before, self.rows.loss[never]])
        there = np.isin(of, ids)
        of, before = of[there], before[there]
        place = np.searchsorted(ids, of)
        # Episodes from before schema 0005 have no loss at the add. They are the oldest ones.
        known = ~np.isnan(born)
        began = ids[np.argmax(known)] if known.any() else ids[-1] + 1
        wrong = ~_same(born[place], before) & (known[place] | (of > began))
        yield from tell("{} have another loss at their add than before their first replay", np.unique(of[wrong]))

    def _chains(self, log: Log, rows: Rows) -> Iterator[str]:
        """Examine the chains, in which each event names the recorded event of the same episode before it.

        The row of a live episode names its last event. The last event of an episode that has left ends its chain. It is
        marked by the fold if the departure itself is not recorded.
        """
        chains = Chains(log)
        number, owner, previous, ends = (chains[name] for name in ("id", "episode_id", "previous_id", "ends"))
        first = int(log.events["id"][0]) if len(log) else self.snapshot.first_id + 2**SEQUENCE_BITS + 1
        recorded = log.recorded[chains.order]
        wrong = np.where(chains.before > 0, previous != chains.before, previous >= first)
        yield from tell("events {} name an event before them that is not the one before", number[wrong])
        live, waits = np.isin(owner, rows.ids), np.isin(owner, owner[~recorded & (ends != 0)])
        wrong = recorded & ((ends != 0) != (chains.ends & ~live)) & ~(chains.ends & waits & (ends == 0))
        yield from tell("events {} end a chain that goes on, or end it without saying so", number[wrong])
        heads = number[chains.ends & live]
        place = np.searchsorted(rows.ids, owner[chains.ends & live])
        named = rows.last_event.copy()
        named[place] -= heads
        wrong = np.where(np.isin(np.arange(len(named)), place), named != 0, named >= first)
        yield from tell("{} name as their last event one that is not", rows.ids[wrong])

    def _replays(self, log: Log, rows: Rows) -> Iterator[str]:
        """Compare the rows with the replays of their episodes, if all replays are known."""
        ids, never = rows.ids, rows.replay_count == 0
        untimely = (never != np.isnan(rows.last_replayed_at)) | np.isinf(rows.last_replayed_at)
        yield from tell("{} have a time of their last replay and none, or the reverse", ids[untimely])
        unlike = never & ~_same(rows.lowest, rows.loss)
        yield from tell("{} have a smallest loss that cannot be", ids[unlike])
        if not self.is_whole:
            return
        mine = log.replayed & np.isin(log.events["episode_id"], ids)
        owner, before, loss = (log.events[name][mine] for name in ("episode_id", "loss_before", "loss_after"))
        place = np.searchsorted(ids, owner)
        last, time, least = np.full(len(ids), np.nan), np.full(len(ids), np.nan), np.full(len(ids), np.inf)
        last[place], time[place] = loss, log.each("at")[mine]
        np.minimum.at(least, place, np.fmin(loss, before))
        counts = np.bincount(place, minlength=len(ids))
        for wrong, what in (
            (counts != rows.replay_count, "have another number of replays than the history"),
            (~(_same(last, rows.loss) | never), "have another loss than the history"),
            (~(_same(least, rows.lowest) | never), "have another smallest loss than the history"),
            (~_same(time, rows.last_replayed_at), "were last replayed at another time than the history says"),
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
