"""The examination of the history: it is compared with itself, with the tally and with the replay metadata."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select

from memstore.buffer.snapshot import Rows, Snapshot
from memstore.buffer.strata import Floats, Ints
from memstore.episodes.log import EVENT, GROUP, LARGEST_TALLIED, group_checksum, slot_of
from memstore.storage import stored
from memstore.storage.schema import event_group, id_range, of_buffer, replay_event, replay_metadata, replay_tally
from memstore.upkeep.sealed import Unsealed, pages, some, tell

PAGE = 512
"""The examination reads this many groups at a time."""

TOLERANCE = 1e-9
"""The sums of a tally from a migration may have this relative error. The migration added events in another order."""

_t, _m = replay_tally.c, replay_metadata.c


@dataclass(frozen=True)
class Log:
    """All events of the history, as columns. ``first`` is the number of the oldest event.

    ``ends`` is true for the last event of an episode that has left. ``replayed`` is true for replays. ``groups`` holds
    the rows of the groups, in order.
    """

    first: int
    episode: Ints
    domain: Ints
    previous: Ints
    before: Floats
    after: Floats
    at: Floats
    ends: NDArray[np.bool_]
    replayed: NDArray[np.bool_]
    groups: list[dict[str, Any]]

    def __len__(self) -> int:
        return len(self.episode)


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
        problems: list[str] = []
        log = self._log(problems)
        yield from problems
        if problems:
            return  # the other examinations need a whole log
        counters = self.snapshot.state.counters
        self.is_whole = int(log.replayed.sum()) == counters.events
        yield from self._chains(log)
        yield from self._replays(log)
        yield from self._tally(log)

    def _log(self, problems: list[str]) -> Log:
        """Read all events, and append to ``problems`` the findings about their groups."""
        conn, v = self.snapshot.conn, replay_event.c
        pages: list[tuple[Any, ...]] = []
        groups: list[dict[str, Any]] = []
        expected = None
        for page in self._groups():
            first, end = page[0]["id"], page[-1]["id"] + page[-1]["count"]
            query = select(*(v[name] for name in (*EVENT, "ends", "group_id"))).where(v.id >= first, v.id < end)
            columns = _columns(conn.execute(query.order_by(v.id)).all())
            for group in page:
                if expected not in (None, group["id"]):
                    problems.append(f"events before {group['id']} are missing, or twice there")
                expected = group["id"] + group["count"]
                problems += self._group(group, columns, group["id"] - first)
                if len(problems) > len(page):
                    return _log_of(0, [], [])
            pages.append(columns)
            groups += page
        following = self.snapshot.first_id + self.snapshot.state.counters.recorded + 1
        log = _log_of(groups[0]["id"] if groups else following, pages, groups)
        own = of_buffer(self.snapshot.state.buffer_id, v.id)
        there = conn.scalars(select(func.count()).select_from(replay_event).where(own)).one()
        if there != len(log):
            problems.append(f"{there} events are there where the groups of events say {len(log)}")
        if expected not in (None, following) and not problems:
            problems.append(f"event {expected} would be the next, by the buffer's counter of events it is {following}")
        return log

    def _groups(self) -> Iterator[list[dict[str, Any]]]:
        """Yield the rows of the groups, a page at a time."""
        _, high = id_range(self.snapshot.state.buffer_id)
        names = (*GROUP, "checksum")
        for rows in pages(self.snapshot, event_group, names, PAGE):
            page = [dict(zip(names, row, strict=True)) for row in rows]
            for group in page:
                what = f"group {group['id']} of events"
                stored.whole(group["count"], f"{what}: its count", 1, high - group["id"] + 1)
                stored.real(group["at"], f"{what}: its time")
            yield page

    def _group(self, group: dict[str, Any], columns: tuple[Any, ...], start: int) -> Iterator[str]:
        part = {name: values[start : start + group["count"]] for name, values in zip(EVENT, columns, strict=False)}
        number, count = group["id"], group["count"]
        if len(part["id"]) != count or not np.array_equal(part["id"], np.arange(number, number + count)):
            yield f"groups of events: {number} has another number of events than it says, or other events"
        elif (columns[-1][start : start + count] != number).any():
            yield f"events of group {number} say that they are of another"
        elif group["checksum"] is None:
            self.unsealed.without("events", count)
        elif group["checksum"] != group_checksum(group, part):
            yield f"groups of events: {number} does not match its checksum"
        unknown = np.isnan(part["loss_after"])
        if unknown.any() if group["what"] == "replayed" else not unknown.all():
            yield f"groups of events: {number} has replays without a loss, or departures with one"
        for name in ("loss_before", "loss_after"):
            if (part[name] < 0).any() or np.isinf(part[name]).any():
                yield f"groups of events: {number} has losses that are negative or infinite"

    def _chains(self, log: Log) -> Iterator[str]:
        """Examine the chains, in which each event names the previous event of the same episode.

        The row of a live episode names its last event. The last event of an episode that has left ends its chain.
        """
        order = np.argsort(log.episode, kind="stable")
        episode, number = log.episode[order], order + log.first
        follows, last = np.diff(episode, prepend=-1) == 0, np.diff(episode, append=-1) != 0
        live, previous = np.isin(episode, self.rows.ids), log.previous[order]
        wrong = np.where(follows, previous != np.roll(number, 1), previous >= log.first)
        yield from tell(number, wrong, "name an event before them that is not the one before", kind="events ")
        wrong = log.ends[order] != (last & ~live)
        yield from tell(number, wrong, "end a chain that goes on, or end it without saying so", kind="events ")
        heads = number[last & live]
        place = np.searchsorted(self.rows.ids, episode[last & live])
        named = self.rows.last_event.copy()
        named[place] -= heads
        wrong = np.where(np.isin(np.arange(len(named)), place), named != 0, named >= log.first)
        yield from tell(self.rows.ids, wrong, "name as their last event one that is not")

    def _replays(self, log: Log) -> Iterator[str]:
        """Compare the rows with the replays of their episodes, if all replays are known."""
        columns = (_m.episode_id, _m.lowest_loss, _m.last_replayed_at)
        found = self.snapshot.conn.execute(select(*columns).where(self.snapshot.own).order_by(_m.episode_id)).all()
        ids, lowest, at = zip(*found, strict=True) if found else ((), (), ())
        what = f"table {replay_metadata.name}"
        lowest_loss, replayed_at = stored.reals(lowest, what), stored.reals(at, what)
        if not np.array_equal(stored.wholes(ids, what), self.rows.ids) or np.isinf(replayed_at).any():
            yield "the replay metadata holds times that cannot be"
            return
        never, tell_of = self.rows.replay_count == 0, partial(tell, self.rows.ids)
        yield from tell_of(never != np.isnan(replayed_at), "have a time of their last replay and none, or the reverse")
        yield from tell_of(never & ~_same(lowest_loss, self.rows.loss), "have a smallest loss that cannot be")
        if not self.is_whole:
            return
        mine = log.replayed & np.isin(log.episode, self.rows.ids)
        place, loss = np.searchsorted(self.rows.ids, log.episode[mine]), log.after[mine]
        last, time, least = np.full(len(ids), np.nan), np.full(len(ids), np.nan), np.full(len(ids), np.inf)
        last[place], time[place] = loss, log.at[mine]
        np.minimum.at(least, place, np.fmin(loss, log.before[mine]))
        counts = np.bincount(place, minlength=len(ids))
        yield from tell_of(counts != self.rows.replay_count, "have another number of replays than the history")
        yield from tell_of(~(_same(last, self.rows.loss) | never), "have another loss than the history")
        yield from tell_of(~(_same(least, lowest_loss) | never), "have another smallest loss than the history")
        yield from tell_of(~_same(time, replayed_at), "were last replayed at another time than the history says")

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
        slots = tally.keys() | computed.keys()
        wrong = [slot for slot in slots if not _alike(tally.get(slot), computed.get(slot), exact)]
        if wrong:
            yield f"the tally differs from the history in slots {some(sorted(slot for slot, _ in wrong))}"


def _tallied(log: Log) -> dict[tuple[int, int], list[Any]]:
    """Return the tally of the history, by slot and domain. It is counted like the stored one: group after group."""
    tally: dict[tuple[int, int], list[Any]] = {}
    replays, start = 0, 0
    for group in log.groups:
        part = slice(start, start := start + group["count"])
        if group["what"] != "replayed":
            continue
        slot, known = slot_of(replays + 1), log.domain[part] > 0
        found, place = np.unique(log.domain[part][known], return_inverse=True)
        sums = np.bincount(place, np.minimum(log.after[part][known], LARGEST_TALLIED))
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


def _columns(rows: Any) -> tuple[Any, ...]:
    """Return the columns of ``EVENT``, then ``ends`` and the group."""
    names = (*EVENT, "ends", "group_id")
    columns = zip(*rows, strict=True) if rows else ((),) * len(names)
    return tuple(
        stored.reals(values, f"{replay_event.name}: {name}")
        if EVENT.get(name) is float
        else stored.wholes(values, f"{replay_event.name}: {name}", unknown=0)
        for name, values in zip(names, columns, strict=True)
    )


def _log_of(first: int, pages: list[tuple[Any, ...]], groups: list[dict[str, Any]]) -> Log:
    pages = pages or [_columns([])]
    _, episode, domain, before, after, _, _, previous, ends, _ = (
        np.concatenate([page[i] for page in pages]) for i in range(len(pages[0]))
    )
    counts = [group["count"] for group in groups]
    at, replayed = np.zeros(len(episode)), np.zeros(len(episode), np.bool_)
    if min(counts, default=0) >= 0 and sum(counts) == len(episode):  # a damaged count may be 1e12
        at = np.repeat(np.array([group["at"] for group in groups], np.float64), counts)
        replayed = np.repeat(np.array([group["what"] == "replayed" for group in groups], np.bool_), counts)
    return Log(first, episode, domain, previous, before, after, at, ends != 0, replayed, groups)
