"""``check`` reads all stored data once, and compares each part with the other parts that must agree with it.

It proves the following, or names the episodes, events and blocks for which it does not hold.

1. The rows of blocks are those that the buffer's row knows. Each head is that of its content. No two blocks overlap.
2. The log since the rows of blocks were stored is complete and unchanged. With it, the rows give the blocks that a
   process opens, and an open handle has the same blocks in memory.
3. The tables are the blocks, if the log since the fold is laid over them: for every live episode, in every column. What
   else the tables hold waits for deletion.
4. The log agrees with itself: numbers without gaps, chains, counts of replays, losses from one event to the next.
5. The counters, the tally and the losses at the add agree with the log.
6. Rows that never change match their checksums.

A buffer that nobody can open is examined as far as it can be read.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import TypeVar

import numpy as np
from sqlalchemy import Connection, Table, func, select

from memstore.buffer.blocks.rows import problems as block_problems
from memstore.buffer.blocks.slots import Ints
from memstore.buffer.snapshot import Rows, Snapshot, key_of, law_of
from memstore.buffer.tail import Tail
from memstore.episodes.inputs import invalid_losses
from memstore.episodes.payloads import all_payloads
from memstore.errors import MemstoreError, StoreCorrupt
from memstore.storage import stored
from memstore.storage.backends import Backend
from memstore.storage.schema import episode, episode_tag, of_buffer, payload, replay_event, replay_metadata
from memstore.storage.stored import UNREADABLE
from memstore.storage.upgrade import HEAD
from memstore.types import CheckReport
from memstore.upkeep.loaded import Loaded, load, rounded, unlike
from memstore.upkeep.recorded import Recorded
from memstore.upkeep.sealed import Seals, Unsealed, tell
from memstore.upkeep.window import Window

T = TypeVar("T")

MOST_FINDINGS = 20
"""A part of the examination reports at most this many findings."""

ADVICE = "; run 'memstore check'"
"""An error that names damage goes on with this. A finding ends before it."""

SAID = {
    "loss": "loss",
    "lowest": "lowest loss",
    "replay_count": "number of replays",
    "domain": "domain",
    "last_event": "last event",
    "last_replayed_at": "time of the last replay",
}
"""The columns of the slots, and what a finding calls them."""

Follow = Callable[[], Snapshot]
"""Gives the snapshot of an open handle, at the moment of the examination."""


def check(conn: Connection, backend: Backend, number: int, follow: Follow | None = None) -> CheckReport:
    """Examine the pages and definitions of the database, then all data of the buffer.

    The rows of the buffer are read again, as far as they can be read. With ``follow``, the blocks in the memory of an
    open handle are compared with them.
    """
    started = time.perf_counter()
    findings = _Findings(backend)
    for part in (backend.integrity, backend.foreign, partial(backend.altered, revision=HEAD), backend.missing):
        findings.of(partial(part, conn))
    episodes, notes, unchecked = 0, [], list(backend.unchecked())
    loaded = findings.attempt(lambda: load(conn, backend, number))
    if loaded is None:
        unchecked.append("the data of the buffer: they mean nothing without its settings")
    else:
        episodes = _examine(loaded, findings, unchecked, follow)
        for part in (partial(rounded, loaded.snapshot.state.blocks), partial(_since_the_fold, loaded.snapshot)):
            notes += findings.attempt(partial(_listed, part)) or []
    seconds = time.perf_counter() - started
    return CheckReport(episodes, findings.told(), (*backend.notes(conn), *notes), seconds, tuple(unchecked))


def _examine(loaded: Loaded, findings: _Findings, unchecked: list[str], follow: Follow | None) -> int:
    """Examine the data, and return the number of live episodes."""
    snapshot, unsealed, window = loaded.snapshot, Unsealed(), Window(loaded.snapshot)
    findings.of(lambda: loaded.problems)
    findings.of(partial(_blocks, loaded))
    if loaded.counted:
        findings.of(partial(_log, snapshot))
    rows = findings.attempt(lambda: loaded.rows(window))
    if rows is not None:
        for part in _Examination(loaded, rows, window).parts():
            findings.of(part)
    if follow is not None and loaded.opens:
        findings.of(lambda: unlike(snapshot, follow()))
    recorded = Recorded(loaded, window, rows if loaded.counted else None, unsealed)
    for part in (*Seals(snapshot, unsealed).parts(), recorded.findings):
        findings.of(part)
    unchecked += _unknowable(loaded, recorded)
    return 0 if rows is None else len(rows)


class _Findings:
    """The findings of all parts. A part that cannot go on does not stop the others."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._problems: list[str] = []

    def of(self, part: Callable[[], Iterable[str]]) -> None:
        """Take the findings of a part, at most ``MOST_FINDINGS``."""
        self.attempt(lambda: self._take(part()))

    def attempt(self, work: Callable[[], T]) -> T | None:
        """Return the result of the work, or None if damaged data made it fail. That is a finding."""
        try:
            return work()
        except StoreCorrupt as exc:
            self._problems.append(str(exc))
        except (MemstoreError, *UNREADABLE) as exc:
            self._problems.append(f"reading stopped: {exc} ({type(exc).__name__})")
        except Exception as exc:
            # A damaged file may make the driver raise an error. That is a finding, not a crash.
            if self._backend.classify(exc) is None:
                raise
            self._problems.append(f"reading stopped: {exc}")
        return None

    def _take(self, findings: Iterable[str]) -> None:
        rest = iter(findings)
        self._problems.extend(islice(rest, MOST_FINDINGS))
        if next(rest, None) is not None:
            self._problems.append(f"more than {MOST_FINDINGS} findings like the last one: the others are left out")

    def told(self) -> tuple[str, ...]:
        """Return each finding once, without the advice to run the check."""
        return tuple(dict.fromkeys(problem.partition(ADVICE)[0] for problem in self._problems))


def _blocks(loaded: Loaded) -> Iterator[str]:
    snapshot, state = loaded.snapshot, loaded.snapshot.state
    law, keys = law_of(state.settings), key_of(state.buffer_id, state.settings)
    expected = state.counters.block_sum if loaded.counted else None
    yield from block_problems(snapshot.conn, snapshot.backend, state.buffer_id, law, keys, expected)


def _log(snapshot: Snapshot) -> Iterator[str]:
    """Examine the points of the log that the buffer's row names, and the entries between two of them."""
    counters = snapshot.state.counters
    folded, blocks, head = (counters.folded_inserted, counters.folded_logged), counters.stored, counters.head
    if not all(a <= b <= c for a, b, c in zip(folded, blocks[:2], head[:2], strict=True)):
        yield "the points of the log in the buffer's row are not in order: tables, blocks, end of the log"
        return
    tail = Tail.read(snapshot.conn, snapshot.backend, snapshot.state.buffer_id, blocks, head)
    if tail.end(blocks, head) != head:
        yield "the log since the blocks were stored is not the one that the buffer's row knows"


def _listed(part: Callable[[], Iterator[str]]) -> list[str]:
    return list(part())


def _since_the_fold(snapshot: Snapshot) -> Iterator[str]:
    """Tell how much the next fold has to do."""
    counters, first = snapshot.state.counters, snapshot.first_id
    if not counters.unfolded:
        return
    v = replay_event.c
    left = select(v.episode_id).where(
        v.id > first + counters.folded_logged, v.ends == 1, v.id <= first + counters.logged
    )
    rows, size = func.count(), func.coalesce(func.sum(func.length(payload.c.data)), 0)
    count, waiting = snapshot.conn.execute(select(rows, size).where(payload.c.episode_id.in_(left))).one()
    yield (
        f"buffer {snapshot.state.buffer_id}: the log has {counters.unfolded:,} entries since the last fold, and "
        f"{count:,} payloads ({waiting:,} bytes) of departed episodes wait for deletion"
    )


def _unknowable(loaded: Loaded, recorded: Recorded) -> Iterator[str]:
    for what, count in recorded.unsealed.items():
        if count:
            yield f"{count:,} {what} were written before schema 0004 and have no checksum"
    if not loaded.opens:
        yield "the blocks against the tables: nobody can open the buffer, so the live episodes are those of the tables"
    if not loaded.counted:
        yield "everything that the counters of the buffer would tell: they cannot be read"
    if not recorded.is_whole:
        yield "losses and the tally against all replays ever: the history is not whole"
    if recorded.snapshot.settings.limiter is not None:
        yield "the count of the limiter: draws change it without the lock"


@dataclass(frozen=True)
class _Examination:
    """The examination of the live rows: blocks, and the tables that must agree with them."""

    loaded: Loaded
    rows: Rows
    window: Window

    @property
    def snapshot(self) -> Snapshot:
        """The snapshot in which everything is read."""
        return self.loaded.snapshot

    def parts(self) -> tuple[Callable[[], Iterator[str]], ...]:
        """Return the examinations that make sense. Each yields a sentence that names the first few episodes."""
        both = (self._metadata, self._priority) if self.loaded.opens else ()
        counts = (self._counters, self._waiting) if self.loaded.counted else ()
        return (*both, *counts, self._tables, self._losses, self._payloads)

    def _metadata(self) -> Iterator[str]:
        """Compare the tables, with the log since the fold laid over them, with the blocks."""
        rows, told = self.rows, self.window.rows()
        yield from tell("{} have replay metadata and stand in no block", np.setdiff1d(told.ids, rows.ids))
        yield from tell("{} stand in a block and have no replay metadata", np.setdiff1d(rows.ids, told.ids))
        both = np.intersect1d(np.intersect1d(rows.ids, told.ids), self.window.facts[0])
        rows, told = rows.take(np.isin(rows.ids, both)), told.take(np.isin(told.ids, both))
        for name, what in SAID.items():
            one, other = getattr(rows, name), getattr(told, name)
            different = (one != other) & ~((one != one) & (other != other))
            yield from tell(f"{{}} have another {what} in their blocks than in the tables", rows.ids[different])

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
        if 0 < state.counters.fold_at <= state.counters.log_length:
            yield "the blocks should have been merged: the log has reached that point"
        if len(state.domain_names) != state.counters.domains:
            yield "the number of domains differs from the buffer's counter"

    def _waiting(self) -> Iterator[str]:
        """Compare what the tables hold beyond the fold with the buffer's row."""
        snapshot, counters = self.snapshot, self.snapshot.state.counters
        edge = snapshot.first_id + counters.folded_inserted
        early = self.window.base.ids[self.window.base.ids > edge]
        yield from tell("{} have replay metadata before the fold", early)
        waiting = select(func.coalesce(func.sum(func.length(payload.c.data)), 0)).where(
            of_buffer(snapshot.state.buffer_id, payload.c.episode_id), payload.c.episode_id > edge
        )
        found = int(snapshot.conn.scalars(waiting).one())
        if found != counters.waiting_bytes:
            yield f"payloads since the fold have {found} bytes, by the buffer's counter {counters.waiting_bytes}"

    def _tables(self) -> Iterator[str]:
        """Compare the live episodes, and those whose rows wait for deletion, with the rows of the tables."""
        ids = self.rows.ids
        known = np.concatenate([ids, self.window.departed])
        tables = ((episode, self.window.facts[0]), (payload, self._ids(payload)), (episode_tag, self._ids(episode_tag)))
        for table, found in tables:
            if table is not episode_tag:
                yield from tell(f"{{}} have no row in table {table.name}", np.setdiff1d(ids, found))
            yield from tell(f"{{}} are orphans in table {table.name}", np.setdiff1d(found, known))
        yield from tell(f"{{}} are orphans in table {replay_metadata.name}", np.setdiff1d(self.window.base.ids, known))
        strangers = select(func.count()).where(
            self.snapshot.own, replay_metadata.c.buffer_id != self.snapshot.state.buffer_id
        )
        if count := self.snapshot.conn.scalars(strangers).one():
            yield f"{count} rows of {replay_metadata.name} name another buffer than their id"

    def _losses(self) -> Iterator[str]:
        base = self.window.base
        yield from tell(
            "{} have an infinite or negative loss", base.ids[~np.isnan(base.loss) & invalid_losses(base.loss)]
        )
        wrong = (base.lowest > base.loss) | (np.isnan(base.lowest) != np.isnan(base.loss)) | (base.lowest < 0)
        yield from tell("{} have a smallest loss that cannot be", base.ids[wrong])

    def _ids(self, table: Table) -> Ints:
        (ids,) = stored.arrays(table, ("episode_id",), self.snapshot.rows(table, ("episode_id",)))
        return ids

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
