"""The end of a write, and the fold, which brings the tables to the end of the log.

A write appends to the log and to nothing else. The rows of blocks, the replay metadata, and the rows of departed
episodes are brought up to date by the fold, in one transaction, under the buffer's lock. Nothing that is drawn depends
on it: the copy of the blocks is always at the end of the log. Only the merging of blocks changes the copy, and it takes
place where the log crosses ``fold_at``, which all processes read in the buffer's row.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from sqlalchemy import Connection, select

from memstore.buffer.blocks.heads import fingerprint
from memstore.buffer.blocks.rows import Write, write_changes
from memstore.buffer.blocks.slots import Slots, begins
from memstore.buffer.counters import write_counters
from memstore.buffer.snapshot import State
from memstore.storage import stored
from memstore.storage.backends import Backend
from memstore.storage.schema import episode, episode_tag, event_group, first_id, payload, replay_event, replay_metadata
from memstore.testing import count

SMALLEST_WINDOW, LARGEST_WINDOW = 8192, 131072
"""The log grows by this number of adds, replays and departures at least, and at most, between two mergings."""

ENTRIES_AN_EPISODE = 4
"""Within these limits, the log grows by this number of entries for each episode of the capacity.

A larger window costs less for each entry, because more of the entries are of the same episodes. It costs more when a
process opens the buffer after a crash, or asks the tables a question.
"""

WAITING_BYTES = 64 * 2**20
"""The fold takes place after this number of bytes of new payloads. About as many bytes wait for deletion then."""

PAGE = 16384
"""The fold writes this many rows of replay metadata at a time."""


def window(capacity: int) -> int:
    """Return the number of log entries between two mergings."""
    return min(max(ENTRIES_AN_EPISODE * capacity, SMALLEST_WINDOW), LARGEST_WINDOW)


def finish(state: State, conn: Connection, backend: Backend, contents: int) -> None:
    """Write the counters under a new revision, after a fold if one is due. The caller holds the buffer's lock.

    Parameters
    ----------
    contents : int
        So many contents of blocks may be in memory and not in the database. If there are more, all blocks are stored.
    """
    counters = state.counters
    counters.revision += 1
    counters.token = secrets.randbits(64) - 2**63 or 1
    if counters.log_length >= counters.fold_at:
        state.blocks = state.blocks.merged()
        counters.fold_at = counters.log_length + window(state.settings.capacity)
        state.must_fold = True
    if state.must_fold or counters.waiting_bytes >= WAITING_BYTES:
        fold(state, conn, backend)
    elif state.must_store or np.count_nonzero(state.blocks.heads["token"] == 0) > contents:
        _store(state, conn, backend)
    state.must_fold = state.must_store = False
    counters.domains = len(state.domain_names)
    write_counters(conn, backend, state.buffer_id, counters)


def fold(state: State, conn: Connection, backend: Backend) -> None:
    """Bring all tables to the end of the log. The caller holds the buffer's lock, and writes the counters."""
    count("folds")
    counters = state.counters
    _store(state, conn, backend)
    for slots in _touched(state, conn, backend):
        _write_metadata(state.buffer_id, conn, backend, slots)
    _delete_departed(state, conn, backend)
    _forget(state, conn, backend)
    counters.folded_inserted, counters.folded_logged = counters.inserted, counters.logged
    counters.waiting_bytes = 0


def _store(state: State, conn: Connection, backend: Backend) -> None:
    """Write the rows of all blocks that have changed."""
    counters = state.counters
    write = Write(counters.revision, counters.token)
    state.blocks = write_changes(conn, backend, state.buffer_id, state.rows, state.blocks, write)
    state.rows = state.blocks.heads
    counters.stored_inserted, counters.stored_logged, counters.stored_sum = counters.head
    counters.block_sum = fingerprint(state.rows)


def _touched(state: State, conn: Connection, backend: Backend) -> Iterator[Slots]:
    """Yield the slots of the live episodes that came or were replayed since the last fold, in id order."""
    first, counters = first_id(state.buffer_id), state.counters
    e, v = episode.c, replay_event.c
    came = select(e.id, e.domain_id).where(e.id > first + counters.folded_inserted, e.id <= first + counters.inserted)
    replayed = select(v.episode_id, v.domain_id).where(
        v.id > first + counters.folded_logged, v.id <= first + counters.logged, v.ends.is_(None)
    )
    rows = [*backend.fetch(conn, came), *backend.fetch(conn, replayed)]
    if not rows:
        return
    ids, domains = (stored.wholes(column, "the log since the fold") for column in zip(*rows, strict=True))
    order = np.argsort(ids, kind="stable")
    order = order[begins(ids[order])]
    places = state.blocks.locate(ids[order], domains[order] - first).places
    places = places[places >= 0]
    for start in range(0, len(places), PAGE):
        yield state.blocks.read(places[start : start + PAGE])


def _write_metadata(buffer_id: int, conn: Connection, backend: Backend, slots: Slots) -> None:
    reals = {"loss": slots.loss, "lowest_loss": slots.lowest, "last_replayed_at": slots.at}
    columns: dict[str, Sequence[Any]] = {
        "episode_id": slots.ids.tolist(),
        "buffer_id": [buffer_id] * len(slots),
        "replay_count": slots.count.tolist(),
        "last_event_id": [number or None for number in slots.event.tolist()],
        **{name: stored.nullable(values) for name, values in reals.items()},
    }
    # One statement for all. An UPDATE of 16,384 rows that exist takes 1.2 times as long on SQLite, and 1.8 times on
    # PostgreSQL; an INSERT of new rows takes 0.8 times as long.
    backend.accumulate(conn, replay_metadata, (), columns)


def _delete_departed(state: State, conn: Connection, backend: Backend) -> None:
    mark = backend.mark
    gone = f"SELECT episode_id FROM {replay_event.name} WHERE id > {mark} AND id <= {mark} AND ends = 1"
    described = (replay_metadata, payload, episode_tag)
    for table, key in (*((table, "episode_id") for table in described), (episode, "id")):
        backend.execute(conn, f"DELETE FROM {table.name} WHERE {key} IN ({gone})", _window(state))


def _forget(state: State, conn: Connection, backend: Backend) -> None:
    """Delete the events that the history does not record, or has forgotten."""
    events, groups, mark = replay_event.name, event_group.name, backend.mark
    inside = f"id > {mark} AND id <= {mark} AND unrecorded = 1"
    # The chain of an episode that left begins at its last recorded event, so that event is marked.
    last = f"SELECT previous_id FROM {events} WHERE {inside} AND ends = 1 AND previous_id IS NOT NULL"
    backend.execute(conn, f"UPDATE {events} SET ends = 1 WHERE id IN ({last})", _window(state))
    forgotten = (first_id(state.buffer_id), first_id(state.buffer_id) + state.counters.history_from)
    for table in (events, groups):
        backend.execute(conn, f"DELETE FROM {table} WHERE {inside}", _window(state))
        backend.execute(conn, f"DELETE FROM {table} WHERE id > {mark} AND id <= {mark}", forgotten)


def _window(state: State) -> tuple[int, int]:
    first = first_id(state.buffer_id)
    return first + state.counters.folded_logged, first + state.counters.logged
