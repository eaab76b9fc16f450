"""The log. This module appends events in groups, tallies replays, and forgets old events.

The events of one call make a group: one row for the facts that they share, and one row for each event. An event names
the previous event of the same episode. So the history of an episode is a chain, and needs no index.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, case, select

from memstore.buffer.blocks.slots import Floats, Ints, begins
from memstore.buffer.counters import Counters
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.buffer.tail import NO_COUNT, Events, Newcomers
from memstore.config import History
from memstore.storage import checksums, stored
from memstore.storage.schema import event_group, replay_event, replay_tally

_g, _v = event_group.c, replay_event.c

PRUNE_EVERY = 1024
"""The log is searched for events that may be deleted after at most this many new events."""

PRUNED_AT_ONCE = 16 * PRUNE_EVERY
"""One write deletes at most this many events, so that no write takes long."""

PRUNE_PAGE = 64
"""This many groups of events are read at a time, to find those that may be deleted. Usually few may be."""

SLACK = 4
"""With ``max_events``, the log may hold one in this many events more, or 64 more.

To delete events in every write would cost 20 % of the write.
"""

LARGEST_TALLIED = 1e290
"""A larger loss counts as this loss in the tally, so that the sum of 2**53 losses is still a float."""

RESOLUTION_BITS = 8
"""The tally has 2**8 slots for each doubling of the number of replays."""

GROUP = ("id", "buffer_id", "what", "reason", "at", "step", "consumer", "strategy", "count")
EVENT = ("id", "episode_id", "domain_id", "loss_before", "loss_after", "probability", "weight", "previous_id")
"""The events of a group have these columns. The checksum of a group covers these and ``GROUP``."""


class Group(NamedTuple):
    """The facts that the events of one call share: time, consumer, kind, reason, step, strategy."""

    at: float
    consumer: str | None
    what: str = "replayed"
    reason: str | None = None
    step: int | None = None
    strategy: str | None = None


def depart(snapshot: Snapshot, group: Group, rows: Rows, turned_away: Newcomers | None = None) -> None:
    """Log that episodes leave. Newcomers that were turned away leave too."""
    strangers = Newcomers.none() if turned_away is None else turned_away
    if not (len(rows) or len(strangers)):
        return
    unknown = np.full(len(rows) + len(strangers), np.nan)
    entries = {
        "domain": np.concatenate([rows.domain, strangers.domains]),
        "loss_before": np.concatenate([rows.loss, strangers.loss]),
        "loss_after": unknown,
        "previous_id": np.concatenate([rows.last_event, np.zeros(len(strangers), np.int64)]),
        "nth": np.concatenate([rows.replay_count, np.full(len(strangers), NO_COUNT)]),
        "ends": np.ones(len(unknown), np.int64),
    }
    snapshot.state.counters.departed += len(unknown)
    log(snapshot, group, np.concatenate([rows.ids, strangers.ids]), entries)


def log(snapshot: Snapshot, group: Group, episodes: Ints, columns: Mapping[str, Any]) -> Ints:
    """Append one event for each episode, in the order given.

    The history shows an event if the buffer's policy records its episode. The other events make a group of their own.
    They stay until the fold, because other processes follow the log.

    Parameters
    ----------
    snapshot : Snapshot
    group : Group
    episodes : int64, shape (n,)
        An id that comes twice gets two events. The second one names the first one.
    columns : dict of arrays, shape (n,)
        ``domain``, the number of the domain within the buffer, and other columns of the table: ``loss_after``, ``nth``
        and ``previous_id`` at least. None leaves a column out. NaN means unknown, and a ``previous_id`` of 0 means that
        there is no previous event.

    Returns
    -------
    int64, shape (n,)
        The last recorded event of each episode after this one: the event itself, or the one before it. 0 for none.
    """
    if not len(episodes):
        return np.zeros(0, np.int64)
    policy, counters = snapshot.settings.history, snapshot.state.counters
    kept = np.ones(len(episodes), np.bool_) if policy.is_complete else _hashed(episodes) < policy.record
    order = np.argsort(~kept, kind="stable")
    numbers = np.empty(len(episodes), np.int64)
    numbers[order] = snapshot.first_id + counters.logged + 1 + np.arange(len(episodes))
    written = {name: values for name, values in columns.items() if values is not None and name != "domain"}
    written |= {"id": numbers, "episode_id": episodes, "domain_id": columns["domain"] + snapshot.first_id}
    written["previous_id"] = previous = _chained(episodes, columns["previous_id"], numbers, kept)
    before, counters.recorded = counters.recorded, counters.recorded + int(kept.sum())
    for which, unrecorded in ((kept, None), (~kept, 1)):
        if which.any():
            _append(snapshot, group, {name: values[which] for name, values in written.items()}, unrecorded)
    _happened(counters, group, columns, written, kept, order)
    slack = _slack(policy)
    if counters.recorded // slack != before // slack:
        prune(snapshot, policy, group.at, PRUNED_AT_ONCE)
    return np.where(kept, numbers, previous)


def _append(snapshot: Snapshot, group: Group, events: dict[str, NDArray[Any]], unrecorded: int | None) -> None:
    """Write a group and its events. ``unrecorded`` is 1 if the history does not record them."""
    first, count = int(events["id"][0]), len(events["id"])
    facts = {"id": first, "buffer_id": snapshot.state.buffer_id, "count": count, **group._asdict()}
    facts["checksum"] = group_checksum(facts, events)
    facts["recorded"] = None if unrecorded else snapshot.state.counters.recorded
    facts["unrecorded"] = unrecorded
    snapshot.backend.insert(snapshot.conn, event_group, {name: [value] for name, value in facts.items()})
    rows: dict[str, list[Any]] = {
        name: stored.nullable(values) if values.dtype.kind == "f" else values.tolist()
        for name, values in events.items()
    }
    rows["previous_id"] = [number or None for number in rows["previous_id"]]
    rows["nth"] = [None if number == NO_COUNT else number for number in rows["nth"]]
    rows |= {"group_id": [first] * count, "unrecorded": [unrecorded] * count}
    snapshot.backend.insert(snapshot.conn, replay_event, rows)


def _happened(
    counters: Counters,
    group: Group,
    columns: Mapping[str, Any],
    written: Mapping[str, NDArray[Any]],
    kept: NDArray[np.bool_],
    order: Ints,
) -> None:
    """Move the end of the log behind the events that were written."""
    count = len(order)
    events = Events(
        written["id"],
        written["episode_id"],
        columns["domain"],
        columns["loss_after"],
        columns["nth"],
        written["previous_id"],
        np.full(count, group.at),
        np.full(count, "ends" in columns),
        ~kept,
    )
    counters.happened(events)


def group_checksum(facts: Mapping[str, Any], events: Mapping[str, NDArray[Any]]) -> int:
    """Return the checksum of a group and its events. NaN and 0 stand for unknown.

    Only columns of floats may be missing. The checksum leaves out ``ends``, because that column changes later.
    """
    unknown = np.full(facts["count"], np.nan)
    columns = [events.get(name, unknown) for name in EVENT]
    return checksums.of_row(*(facts[name] for name in GROUP), checksums.of_block(*columns))


def repeats(ids: Ints) -> tuple[Ints, Ints]:
    """Return the places where an id comes again, and for each of them the place where the id came before."""
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    return order[again], order[again - 1]


def _chained(ids: Ints, previous: Ints, numbers: Ints, kept: NDArray[np.bool_]) -> Ints:
    """Return the previous recorded event of each event: ``previous``, or one of the same episode in this call."""
    chained = previous.copy()
    again, before = repeats(ids)
    if not len(again):
        return chained
    chained[again] = np.where(kept[before], numbers[before], previous[before])
    return chained


def events_of(snapshot: Snapshot, episodes: Sequence[int]) -> list[int]:
    """Return the numbers of the recorded events of these episodes, live or not, oldest first.

    Raises
    ------
    StoreCorrupt
        An event names an event that is not before it. Without this error a chain could be endless.
    """
    backend, shown = snapshot.backend, snapshot.first_id + snapshot.state.counters.history_from
    rows = snapshot.find(np.array(episodes, np.int64))
    begin = case((_v.unrecorded.is_(None), _v.id), else_=_v.previous_id)
    ends = select(begin).where(backend.one_of(_v.episode_id, episodes), _v.ends.is_not(None))
    starts = {*rows.last_event.tolist(), *snapshot.conn.scalars(ends).all()} - {0, None}
    if not starts:
        return []

    def previous(number: ColumnElement[int]) -> ColumnElement[int]:
        # A join would make PostgreSQL read the whole table, because it does not know that the chains are short.
        return select(_v.previous_id).where(_v.id == number).scalar_subquery()

    first = select(_v.id, _v.previous_id).where(backend.one_of(_v.id, sorted(starts)))
    links = first.cte("chain", recursive=True)
    before = links.c.previous_id
    # A damaged chain may be a circle, or lead into other chains. UNION takes each event once, and only smaller numbers
    # follow.
    links = links.union(select(before, previous(before)).where(before.is_not(None), before < links.c.id))
    found = snapshot.conn.execute(select(links.c.id, links.c.previous_id).order_by(links.c.id)).all()
    for number, earlier in found:
        if earlier is not None and earlier >= number:
            raise stored.damaged(f"event {number}", f"names event {earlier} as the one before it")
    return [number for number, _ in found if number > shown]


def slot_of(number: int) -> int:
    """Return the slot of the tally that counts the replay with this number.

    Slots become wider with the number: each doubling of the number has 256 slots. So the tally stays small for ever,
    and any long part of the history has enough slots for a picture.
    """
    shift = max(number.bit_length() - RESOLUTION_BITS - 1, 0)
    return number >> shift << shift


def tally(snapshot: Snapshot, group: Group, domains: Ints, loss: Floats) -> None:
    """Count replays with their domains and losses. A batch counts in the slot of its first replay."""
    if not snapshot.settings.history.record:
        return
    order = np.argsort(domains, kind="stable")
    first = begins(domains[order])
    found, place = domains[order][first], np.empty(len(domains), np.int64)
    place[order] = np.cumsum(first) - 1
    columns: dict[str, list[Any]] = {
        "buffer_id": [snapshot.state.buffer_id] * len(found),
        "slot": [slot_of(snapshot.state.counters.events + 1)] * len(found),
        "domain_id": (found + snapshot.first_id).tolist(),
        "replays": np.bincount(place).tolist(),
        "loss_sum": np.bincount(place, np.minimum(loss, LARGEST_TALLIED)).tolist(),
        "last_step": [group.step] * len(found),
        "last_at": [group.at] * len(found),
    }
    snapshot.backend.accumulate(snapshot.conn, replay_tally, ("replays", "loss_sum"), columns)


def prune(snapshot: Snapshot, policy: History, now: float, most: float = math.inf) -> int:
    """Forget the oldest groups that the policy need not keep, about ``most`` events. Return the number forgotten.

    The history ends there at once. The fold deletes the rows, because other processes may follow the log until then.
    """
    if policy.max_events is None and policy.max_age is None:
        return 0
    first, counters = snapshot.first_id, snapshot.state.counters
    names = (_g.id, _g["count"], _g.at, _g.recorded)
    query = select(*names).where(_g.id <= first + counters.logged, _g.unrecorded.is_(None))
    gone = 0
    for group_id, count, at, recorded in chain.from_iterable(
        stored.paged(
            *(snapshot.conn, query, _g.id, PRUNE_PAGE, f"the rows of {event_group.name}"),
            after=first + counters.history_from,
        )
    ):
        last = group_id - first + count - 1
        so_far = last if recorded is None else recorded  # until schema 0005, all events were recorded
        over = policy.max_events is not None and so_far <= counters.recorded - policy.max_events
        stale = policy.max_age is not None and at < now - policy.max_age
        if not (over or stale) or gone >= most:
            break
        counters.history_from, gone = last, gone + count
    return gone


def _slack(policy: History) -> int:
    """Return the number of new events after which old events are deleted."""
    return PRUNE_EVERY if policy.max_events is None else min(PRUNE_EVERY, max(64, policy.max_events // SLACK))


def _hashed(ids: Ints) -> Floats:
    """Return a number in [0, 1) for each id, by the finalizer of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53
