"""The log behind the history: events appended in groups, a tally of replays, and what may be forgotten of them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import ColumnElement, Row, delete, select, union_all

from memstore.buffer.snapshot import Rows, Snapshot
from memstore.buffer.strata import Floats, Ints
from memstore.config import History
from memstore.episodes.eviction import Newcomers
from memstore.storage import checksums, stored
from memstore.storage.backends.base import UNAWAITED
from memstore.storage.schema import event_group, first_id, id_range, replay_event, replay_metadata, replay_tally

_g, _v, _m = event_group.c, replay_event.c, replay_metadata.c

PRUNE_EVERY = 1024
"""Events after which the log is looked at for what may go, at the latest ..."""

PRUNED_AT_ONCE = 16 * PRUNE_EVERY
"""... and how many of them may go then, so that no write takes long."""

SLACK = 4
"""One in so many more than must be kept may be there, or 64: to prune after every write would cost a fifth of it."""

LARGEST_TALLIED = 1e290
"""Losses beyond count as this in the tally: 2**53 of them add up to a float."""

RESOLUTION_BITS = 8


GROUP = ("id", "buffer_id", "what", "reason", "at", "step", "consumer", "strategy", "count")
EVENT: dict[str, type] = {
    "id": int,
    "episode_id": int,
    "domain_id": int,
    "loss_before": float,
    "loss_after": float,
    "probability": float,
    "weight": float,
    "previous_id": int,
}
"""Columns of a group and of its events that the group's checksum is of."""


@dataclass(frozen=True, slots=True)
class Group:
    """What events that happen at once have in common: what, when, by whom and why."""

    at: float
    consumer: str | None
    what: str = "replayed"
    reason: str | None = None
    step: int | None = None
    strategy: str | None = None


def depart(snapshot: Snapshot, group: Group, rows: Rows, turned_away: Newcomers | None = None) -> None:
    """Record that episodes leave, newcomers that do not get in among them."""
    strangers = Newcomers.none() if turned_away is None else turned_away
    columns = {
        "domain": np.concatenate([snapshot.state.strata.domain[rows.stratum], strangers.domains]),
        "loss_before": np.concatenate([rows.loss, strangers.loss]),
        "previous_id": np.concatenate([rows.last_event, np.zeros(len(strangers), np.int64)]),
        "ends": np.ones(len(rows) + len(strangers), np.int64),
    }
    numbers = record(snapshot, group, np.concatenate([rows.ids, strangers.ids]), columns)
    last = columns["previous_id"][(numbers == 0) & (columns["previous_id"] > 0)]
    if len(last):
        # Recorded under an earlier policy: what there is of these must be found without their rows all the same.
        ended = {"id": last.tolist(), "ends": [1] * len(last)}
        snapshot.backend.update(snapshot.conn, replay_event, "id", ended)


def record(snapshot: Snapshot, group: Group, ids: Ints, columns: Mapping[str, NDArray[Any] | None]) -> Ints:
    """Append one event per id, in the order given, as far as the buffer's policy asks for it.

    ``columns`` are the numbers of the domains, and of the events' other columns what there is; NaN is stored as
    unknown, and so is a previous event of 0. An episode's second event in here follows its first.

    Returns
    -------
    int64 array
        Number of each event, 0 where none was recorded.
    """
    policy = snapshot.settings.history
    counters, buffer_id = snapshot.state.counters, snapshot.state.buffer_id
    kept = _recorded(policy, ids)
    count = int(kept.sum())
    numbers = np.zeros(len(ids), np.int64)
    if not count:
        return numbers
    first = first_id(buffer_id) + counters.recorded + 1
    numbers[kept] = np.arange(first, first + count)
    before, counters.recorded = counters.recorded, counters.recorded + count
    backend, conn = snapshot.backend, snapshot.conn
    written = {name: values if values is None else values[kept] for name, values in columns.items()}
    previous = columns.get("previous_id")
    written["previous_id"] = None if previous is None else _chained(ids, previous, numbers)[kept]
    if (domains := written.pop("domain", None)) is not None:
        written["domain_id"] = domains + first_id(buffer_id)
    facts = {"id": first, "buffer_id": buffer_id, "count": count, **asdict(group)}
    facts["checksum"] = group_checksum(facts, {"id": numbers[kept], "episode_id": ids[kept]} | written)
    backend.insert(conn, event_group, {name: [value] for name, value in facts.items()})
    events: dict[str, list[Any]] = {
        "id": numbers[kept].tolist(),
        "group_id": [first] * count,
        "episode_id": ids[kept].tolist(),
    }
    for name, values in written.items():
        if name == "previous_id" and values is not None:
            events[name] = [value or None for value in values.tolist()]
        elif values is not None:
            events[name] = [None if value != value else value for value in values.tolist()]
    backend.insert(conn, replay_event, events)
    slack = _slack(policy)
    if counters.recorded // slack != before // slack:
        prune(snapshot, policy, group.at, PRUNED_AT_ONCE)
    return numbers


def group_checksum(facts: Mapping[str, Any], events: Mapping[str, NDArray[Any] | None]) -> int:
    """Of a group and its events, but for ``ends``, which changes; NaN and 0 stand for what is not known."""
    count = facts["count"]
    unknown = {float: np.full(count, np.nan), int: np.zeros(count, np.int64)}
    columns = [unknown[kind] if (values := events.get(name)) is None else values for name, kind in EVENT.items()]
    return checksums.of_row(*(facts[name] for name in GROUP), checksums.of_block(*columns))


def _chained(ids: Ints, previous: Ints, numbers: Ints) -> Ints:
    order = np.argsort(ids, kind="stable")
    again = np.flatnonzero(ids[order][1:] == ids[order][:-1]) + 1
    chained = previous.copy()
    chained[order[again]] = numbers[order[again - 1]]
    return chained


def events_of(snapshot: Snapshot, episodes: Sequence[int]) -> list[int]:
    """Numbers of the recorded events of these episodes, live or not, oldest first.

    Raises
    ------
    StoreCorrupt
        When an event names one that is not before it: a chain that is followed has an end.
    """
    backend = snapshot.backend
    heads = select(_m.last_event_id.label("id")).where(backend.one_of(_m.episode_id, episodes))
    ends = select(_v.id).where(backend.one_of(_v.episode_id, episodes), _v.ends.is_not(None))
    start = union_all(heads, ends).subquery()

    def previous(number: ColumnElement[int]) -> ColumnElement[int]:
        # Not a join: PostgreSQL does not know how short chains are, and would read the whole table beside one.
        return select(_v.previous_id).where(_v.id == number).scalar_subquery()

    chain = select(start.c.id, previous(start.c.id).label("previous_id")).cte("chain", recursive=True)
    before = chain.c.previous_id
    # Each event once, and only downwards: a damaged chain may be a circle, or lead into others.
    chain = chain.union(select(before, previous(before)).where(before.is_not(None), before < chain.c.id))
    rows = snapshot.conn.execute(select(chain.c.id, chain.c.previous_id).order_by(chain.c.id)).all()
    for number, earlier in rows:
        if earlier is not None and earlier >= number:
            raise stored.damaged(f"event {number}", f"names event {earlier} as the one before it")
    return [number for number, _ in rows]


def slot_of(number: int) -> int:
    """Where the replay of this number is tallied: slots widen with the number, 256 to each doubling of it.

    So the tally stays small for ever, and any stretch of the history that is worth a picture has enough of them.
    """
    shift = max(number.bit_length() - RESOLUTION_BITS - 1, 0)
    return number >> shift << shift


def tally(snapshot: Snapshot, group: Group, domains: Ints, loss: Floats) -> None:
    """Count replays, given the number of each one's domain; a batch counts in the slot of its first replay."""
    if not snapshot.settings.history.record:
        return
    found, place = np.unique(domains, return_inverse=True)
    columns: dict[str, list[Any]] = {
        "buffer_id": [snapshot.state.buffer_id] * len(found),
        "slot": [slot_of(snapshot.state.counters.events + 1)] * len(found),
        "domain_id": (found + first_id(snapshot.state.buffer_id)).tolist(),
        "replays": np.bincount(place).tolist(),
        "loss_sum": np.bincount(place, np.minimum(loss, LARGEST_TALLIED)).tolist(),
        "last_step": [group.step] * len(found),
        "last_at": [group.at] * len(found),
    }
    snapshot.backend.accumulate(snapshot.conn, replay_tally, ("replays", "loss_sum"), columns)


def prune(snapshot: Snapshot, policy: History, now: float, most: float = math.inf) -> int:
    """Forget the oldest groups of events that the policy need not keep, about ``most`` events of them.

    Returns how many events went.
    """
    if policy.max_events is None and policy.max_age is None:
        return 0
    low, _ = id_range(snapshot.state.buffer_id)
    last = first_id(snapshot.state.buffer_id) + snapshot.state.counters.recorded
    cutoff, gone = low - 1, 0
    for group_id, count, at in _groups(snapshot, low, last):
        over = policy.max_events is not None and group_id + count - 1 <= last - policy.max_events
        stale = policy.max_age is not None and at < now - policy.max_age
        if not (over or stale) or gone >= most:
            break
        cutoff, gone = group_id + count - 1, gone + count
    if gone:
        for table, key in ((replay_event, _v.id), (event_group, _g.id)):
            snapshot.conn.execute(delete(table).where(key >= low, key <= cutoff), execution_options={UNAWAITED: True})
    return gone


def _groups(snapshot: Snapshot, low: int, last: int) -> Iterator[Row[int, int, float]]:
    """Groups of events, oldest first: a few and then more at a time, for mostly few may go."""
    page, most_at_once = 8, 4096
    while True:
        query = select(_g.id, _g["count"], _g.at).where(_g.id >= low, _g.id <= last).order_by(_g.id).limit(page)
        found = snapshot.conn.execute(query).all()
        yield from found
        if len(found) < page:
            return
        reached = stored.onward(found[-1][0], low - 1, f"the rows of {event_group.name}")
        low, page = reached + 1, min(4 * page, most_at_once)


def _slack(policy: History) -> int:
    """Return the number of events between two looks for what may go."""
    return PRUNE_EVERY if policy.max_events is None else min(PRUNE_EVERY, max(64, policy.max_events // SLACK))


def _recorded(policy: History, ids: Ints) -> NDArray[np.bool_]:
    """True where the policy records the events of the episode."""
    return np.ones(len(ids), np.bool_) if policy.is_complete else _hashed(ids) < policy.record


def _hashed(ids: Ints) -> Floats:
    """A number in [0, 1) for each id, by the finalizer of SplitMix64 (Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        z = ids.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(11)).astype(np.float64) / 2.0**53
