"""``check`` reads all stored data once, and compares each part with the other parts that must agree with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
from sqlalchemy import Table, func, or_, select

from memstore.buffer.snapshot import Rows, Snapshot
from memstore.buffer.strata import Ints, Strata, bucket_of, log2_priority
from memstore.episodes.eviction import Newcomers, order_keys
from memstore.episodes.inputs import invalid_losses
from memstore.episodes.payloads import all_payloads
from memstore.errors import MemstoreError, StoreCorrupt
from memstore.storage import stored
from memstore.storage.schema import UNMEASURED, episode, episode_tag, payload, replay_metadata
from memstore.storage.stored import UNREADABLE
from memstore.storage.upgrade import HEAD
from memstore.types import CheckReport
from memstore.upkeep.recorded import Recorded
from memstore.upkeep.sealed import Seals, Unsealed, tell

MOST_FINDINGS = 20
"""An examination reports at most this many findings."""

SUM_TOLERANCE = 1e-6
"""A stored sum may have this error for each row. Rounding alone reaches 1e-10 after 1e9 updates of a stratum."""


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

    unsealed, found = Unsealed(), [Rows.none()]

    def rows() -> Iterator[str]:
        found[0] = snapshot.unverified()
        yield from _Examination(snapshot, found[0]).problems()

    for part in (backend.integrity, backend.foreign, partial(backend.altered, revision=HEAD), backend.missing):
        examine(partial(part, conn))
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
    """The examination of the live rows: replay metadata, strata, and the tables that must agree with them."""

    snapshot: Snapshot
    rows: Rows

    def problems(self) -> Iterator[str]:
        """Yield each finding in one sentence that names the first few episodes or strata."""
        strata = self.snapshot.state.strata
        outside = (self.rows.stratum < 0) | (self.rows.stratum >= len(strata))
        if outside.any():
            yield from tell("{} stand in strata that do not exist", self.rows.ids[outside])
            return
        tables = (self._tables, self._eviction_order, self._lowest, self._payloads)
        for part in (self._standing, self._positions, self._sums, self._counters, *tables):
            yield from part()

    def _standing(self) -> Iterator[str]:
        ids, loss, epsilon = self.rows.ids, self.rows.loss, self.snapshot.settings.epsilon
        bucket = self.snapshot.state.strata.bucket[self.rows.stratum]
        measured = ~np.isnan(loss)
        invalid = measured & invalid_losses(loss)
        misplaced = measured != (bucket != UNMEASURED)
        sound = measured & ~invalid & ~misplaced
        above = bucket_of(loss[sound], epsilon) > bucket[sound]
        yield from tell("{} have an infinite or negative loss", ids[invalid])
        other = "a stratum for never-measured episodes though measured, or the reverse"
        yield from tell(f"{{}} stand in {other}", ids[misplaced])
        yield from tell("{} have a priority above the bound of their stratum", ids[sound][above])
        top = np.log2(self.snapshot.state.counters.top_priority)
        if sound.any() and log2_priority(loss[sound], epsilon, 1.0).max() > top + 1e-12:
            yield "the buffer's largest priority is below that of a live episode"

    def _positions(self) -> Iterator[str]:
        strata = self.snapshot.state.strata
        order = np.lexsort((self.rows.position, self.rows.stratum))
        stratum, position = self.rows.stratum[order], self.rows.position[order]
        counts = np.bincount(stratum, minlength=len(strata))
        starts = np.cumsum(counts) - counts
        sparse = np.unique(stratum[position != np.arange(len(order)) - starts[stratum]])
        yield from tell("positions are not 0 .. count - 1 in strata {}", strata.ids(sparse))
        yield from tell("the count is wrong in strata {}", strata.ids(np.flatnonzero(counts != strata.count)))

    def _sums(self) -> Iterator[str]:
        strata, settings = self.snapshot.state.strata, self.snapshot.settings
        zeros = np.zeros(len(strata))
        fresh = Strata(strata.buffer_id, strata.domain, strata.bucket, strata.count, zeros, zeros.copy())
        with np.errstate(invalid="ignore"):  # a negative loss makes the sum NaN, which differs from any stored one
            fresh.account(self.rows.stratum, self.rows.loss, settings.epsilon, settings.alpha, 1)
        for what, there, computed in (
            ("weight", strata.weight_sum, fresh.weight_sum),
            ("loss", strata.loss_sum, fresh.loss_sum),
        ):
            off = np.flatnonzero(~(np.abs(there - computed) <= SUM_TOLERANCE * np.maximum(strata.count, 1)))
            yield from tell(f"the {what} sum is wrong in strata {{}}", strata.ids(off))

    def _counters(self) -> Iterator[str]:
        state, rows = self.snapshot.state, self.rows
        replays = int(rows.replay_count.sum())
        if replays != state.counters.live_replays:
            yield f"the buffer counts {state.counters.live_replays} replays of live episodes, they have {replays}"
        if len(rows) and rows.ids[-1] > self.snapshot.newest_possible():
            yield f"episode {rows.ids[-1]} is newer than the buffer's insertion counter, {state.counters.inserted}"
        if len(rows) > state.settings.capacity:
            yield f"{len(rows)} live episodes exceed the capacity of {state.settings.capacity}"
        if len(state.strata) != state.counters.strata or len(state.domain_names) != state.counters.domains:
            yield "the numbers of strata or domains differ from the buffer's counters"

    def _tables(self) -> Iterator[str]:
        ids = self.rows.ids
        described, domains = self._columns(episode, "id", "domain_id")
        (packed,), (tagged,) = self._columns(payload, "episode_id"), self._columns(episode_tag, "episode_id")
        for table, found in ((episode, described), (payload, packed), (episode_tag, tagged)):
            if table is not episode_tag:
                yield from tell(f"{{}} have no row in table {table.name}", np.setdiff1d(ids, found))
            yield from tell(f"{{}} are orphans in table {table.name}", np.setdiff1d(found, ids))
        if np.array_equal(described, ids):
            domain = self.snapshot.state.strata.domain[self.rows.stratum]
            yield from tell("{} stand in a stratum of another domain", ids[domains - self.snapshot.first_id != domain])
        strangers = select(func.count()).where(
            self.snapshot.own, replay_metadata.c.buffer_id != self.snapshot.state.buffer_id
        )
        if count := self.snapshot.conn.scalars(strangers).one():
            yield f"{count} rows of {replay_metadata.name} name another buffer than their id"

    def _columns(self, table: Table, *names: str) -> list[Ints]:
        """Return columns of whole numbers. The first is the id; the rows are in its order."""
        return stored.arrays(table, names, self.snapshot.rows(table, names))

    def _eviction_order(self) -> Iterator[str]:
        expected = order_keys(self.snapshot, Newcomers.like(self.snapshot, self.rows))
        rows = self.snapshot.rows(replay_metadata, ("episode_id", "eviction_group", "eviction_key"))
        wrong = [row[0] for row, *order in zip(rows, *expected, strict=True) if list(row[1:]) != order]
        yield from tell("{} have the wrong place in the order of eviction", wrong)

    def _lowest(self) -> Iterator[str]:
        m = replay_metadata.c
        wrong = or_(m.lowest_loss > m.loss, m.loss.is_(None) != m.lowest_loss.is_(None))
        ids = self.snapshot.conn.scalars(select(m.episode_id).where(self.snapshot.own, wrong)).all()
        yield from tell("{} have a smallest loss that cannot be", ids)

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
