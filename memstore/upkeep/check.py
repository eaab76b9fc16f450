"""``check`` reads all stored data once, and compares each part with the other parts that must agree with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Table, func, select

from memstore.buffer.blocks.rows import from_tables
from memstore.buffer.blocks.rows import problems as block_problems
from memstore.buffer.snapshot import Rows, Snapshot, key_of, law_of
from memstore.buffer.tail import Point, Tail
from memstore.episodes.payloads import all_payloads
from memstore.errors import MemstoreError, StoreCorrupt
from memstore.storage import stored
from memstore.storage.schema import episode, episode_tag, payload, replay_metadata
from memstore.storage.stored import UNREADABLE
from memstore.storage.upgrade import HEAD
from memstore.types import CheckReport
from memstore.upkeep.recorded import Recorded
from memstore.upkeep.sealed import Seals, Unsealed, tell

MOST_FINDINGS = 20
"""An examination reports at most this many findings."""


def check(snapshot: Snapshot) -> CheckReport:
    """Examine the pages and definitions of the database, then all data of the buffer."""
    started = time.perf_counter()
    backend, conn = snapshot.backend, snapshot.conn
    problems: list[str] = []

    def examine(part: Callable[[], Iterable[str]]) -> None:
        try:
            problems.extend(islice(part(), MOST_FINDINGS))
        except (MemstoreError, *UNREADABLE) as exc:
            problems.append(f"reading stopped: {exc} ({type(exc).__name__})")
        except Exception as exc:
            # A damaged file may make the driver raise an error. That is a finding, not a crash.
            if backend.classify(exc) is None:
                raise
            problems.append(f"reading stopped: {exc}")

    unsealed, found, state = Unsealed(), [Rows.none()], snapshot.state

    def rows() -> Iterator[str]:
        found[0] = snapshot.scan()
        counters = state.counters
        folded = Point(counters.folded_inserted, counters.folded_logged, 0)
        tail = Tail.read(conn, backend, state.buffer_id, folded, counters.head)
        yield from _Examination(snapshot, found[0], tail).problems()

    for part in (backend.integrity, backend.foreign, partial(backend.altered, revision=HEAD), backend.missing):
        examine(partial(part, conn))
    blocks = (state.buffer_id, law_of(state.settings), key_of(state.buffer_id, state.settings))
    examine(lambda: block_problems(conn, backend, *blocks))
    examine(rows)
    recorded = Recorded(snapshot, found[0], unsealed)
    for examination in (*Seals(snapshot, unsealed).parts(), recorded.findings):
        examine(examination)
    unchecked = [*backend.unchecked(), *_unknowable(recorded)]
    notes = tuple(backend.notes(conn))
    seconds = time.perf_counter() - started
    return CheckReport(len(found[0]), tuple(dict.fromkeys(problems)), notes, seconds, tuple(unchecked))


def _unknowable(recorded: Recorded) -> Iterator[str]:
    for what, count in recorded.unsealed.items():
        if count:
            yield f"{count:,} {what} were written before schema 0004 and have no checksum"
    if not recorded.is_whole:
        yield "lowest losses, times of last replays and the tally: the history is not whole, so it cannot confirm them"
    if recorded.snapshot.settings.limiter is not None:
        yield "the count of the limiter: draws change it without the lock"


@dataclass(frozen=True)
class _Examination:
    """The examination of the live rows: blocks, and the tables that must agree with them."""

    snapshot: Snapshot
    rows: Rows
    tail: Tail
    """What the log says since the fold."""

    def problems(self) -> Iterator[str]:
        """Yield each finding in one sentence that names the first few episodes."""
        for part in (self._metadata, self._priority, self._counters, self._tables, self._payloads):
            yield from part()

    def _metadata(self) -> Iterator[str]:
        """Compare the replay metadata with the blocks, after the entries of the log that the tables lack."""
        snapshot, state = self.snapshot, self.snapshot.state
        key = key_of(state.buffer_id, state.settings)
        tables = from_tables(snapshot.conn, snapshot.backend, state.buffer_id, law_of(state.settings), key)
        told = replace(snapshot, state=replace(state, blocks=self.tail.applied(tables))).scan()
        yield from tell("{} have replay metadata and stand in no block", np.setdiff1d(told.ids, self.rows.ids))
        yield from tell("{} stand in a block and have no replay metadata", np.setdiff1d(self.rows.ids, told.ids))
        if np.array_equal(told.ids, self.rows.ids):
            alike = np.ones(len(told), np.bool_)
            for name in ("loss", "lowest", "replay_count", "last_event", "last_replayed_at", "domain"):
                one, other = getattr(told, name), getattr(self.rows, name)
                alike &= (one == other) | (np.isnan(one) & np.isnan(other))
            yield from tell("{} stand in their blocks with other values than in the replay metadata", told.ids[~alike])

    def _priority(self) -> Iterator[str]:
        highest = self.snapshot.state.blocks.heads["largest"].max(initial=-np.inf)
        top = np.log2(self.snapshot.state.counters.top_priority)
        if highest >= 0 and np.log2(highest + self.snapshot.settings.epsilon) > top + 1e-12:
            yield "the buffer's largest priority is below that of a live episode"

    def _counters(self) -> Iterator[str]:
        state, rows = self.snapshot.state, self.rows
        replays = int(rows.replay_count.sum())
        if replays != state.counters.live_replays:
            yield f"the buffer counts {state.counters.live_replays} replays of live episodes, they have {replays}"
        if len(rows) and rows.ids[-1] > self.snapshot.newest_possible():
            yield f"episode {rows.ids[-1]} is newer than the buffer's insertion counter, {state.counters.inserted}"
        if len(rows) != state.counters.inserted - state.counters.departed:
            yield f"{len(rows)} episodes are live, by the counters of adds and departures it is another number"
        if len(rows) > state.settings.capacity:
            yield f"{len(rows)} live episodes exceed the capacity of {state.settings.capacity}"
        if len(state.domain_names) != state.counters.domains:
            yield "the number of domains differs from the buffer's counter"

    def _tables(self) -> Iterator[str]:
        ids = self.rows.ids
        # The rows of episodes that have left wait for the fold.
        waiting = self.tail.events.episodes[self.tail.events.ends]
        (described,) = self._columns(episode, "id")
        (packed,), (tagged,) = self._columns(payload, "episode_id"), self._columns(episode_tag, "episode_id")
        for table, found in ((episode, described), (payload, packed), (episode_tag, tagged)):
            if table is not episode_tag:
                yield from tell(f"{{}} have no row in table {table.name}", np.setdiff1d(ids, found))
            orphans = np.setdiff1d(np.setdiff1d(found, ids), waiting)
            yield from tell(f"{{}} are orphans in table {table.name}", orphans)
        strangers = select(func.count()).where(
            self.snapshot.own, replay_metadata.c.buffer_id != self.snapshot.state.buffer_id
        )
        if count := self.snapshot.conn.scalars(strangers).one():
            yield f"{count} rows of {replay_metadata.name} name another buffer than their id"

    def _columns(self, table: Table, *names: str) -> list[NDArray[Any]]:
        """Return columns of a table. The first is the id; the rows are in its order."""
        return stored.arrays(table, names, self.snapshot.rows(table, names))

    def _payloads(self) -> Iterator[str]:
        signature = self.snapshot.settings.signature
        if signature is None:
            return
        damaged: list[int] = []
        for ids, blobs in all_payloads(self.snapshot, damaged):
            try:
                signature.decode(blobs)
            except StoreCorrupt as exc:
                yield f"a payload among episodes {ids[0]} .. {ids[-1]} does not fit the signature: {exc}"
        yield from tell("the payloads of episodes {} do not match their checksums", damaged)
