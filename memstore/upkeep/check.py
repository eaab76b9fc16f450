"""``check`` reads all stored data once, and compares each part with the other parts that must agree with it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Table, func, or_, select

from memstore.buffer.snapshot import Rows, Snapshot
from memstore.buffer.strata import Ints, Strata, bucket_of, log2_priority
from memstore.episodes.eviction import Newcomers, order_keys
from memstore.episodes.payloads import all_payloads
from memstore.errors import MemstoreError, StoreCorrupt
from memstore.storage.schema import UNMEASURED, episode, episode_tag, payload, replay_metadata
from memstore.storage.stored import UNREADABLE
from memstore.storage.upgrade import HEAD
from memstore.types import CheckReport
from memstore.upkeep.recorded import Recorded
from memstore.upkeep.sealed import Seals, Unsealed, rows_of, some, tell

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
    unchecked = [*backend.unchecked(), *unsealed.notes(), *_unknowable(recorded)]
    notes = tuple(backend.notes(conn))
    seconds = time.perf_counter() - started
    return CheckReport(len(found[0]), tuple(dict.fromkeys(problems)), notes, seconds, tuple(unchecked))


def _unknowable(recorded: Recorded) -> Iterator[str]:
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
            yield f"{some(self.rows.ids[outside])} stand in strata that do not exist"
            return
        yield from self._standing()
        yield from self._positions()
        yield from self._sums()
        yield from self._counters()
        yield from self._tables()
        yield from self._eviction_order()
        yield from self._lowest()
        yield from self._payloads()

    @cached_property
    def _bucket(self) -> Ints:
        return self.snapshot.state.strata.bucket[self.rows.stratum]

    @cached_property
    def _domain(self) -> Ints:
        return self.snapshot.state.strata.domain[self.rows.stratum]

    def _standing(self) -> Iterator[str]:
        loss, epsilon = self.rows.loss, self.snapshot.settings.epsilon
        measured = ~np.isnan(loss)
        invalid = measured & ~(np.isfinite(loss) & (loss >= 0))
        misplaced = measured != (self._bucket != UNMEASURED)
        sound = measured & ~invalid & ~misplaced
        above = np.zeros(len(loss), np.bool_)
        above[sound] = bucket_of(loss[sound], epsilon) > self._bucket[sound]
        ids, stratum = self.rows.ids, "a stratum for never-measured episodes"
        yield from tell(ids, invalid, "have an infinite or negative loss")
        yield from tell(ids, misplaced, f"stand in {stratum} though measured, or the reverse")
        yield from tell(ids, above, "have a priority above the bound of their stratum")
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
        if len(sparse):
            yield f"positions are not 0 .. count - 1 in strata {some(strata.ids(sparse))}"
        different = np.flatnonzero(counts != strata.count)
        if len(different):
            yield f"the count is wrong in strata {some(strata.ids(different))}"

    def _sums(self) -> Iterator[str]:
        strata, settings = self.snapshot.state.strata, self.snapshot.settings
        zeros = np.zeros(len(strata))
        fresh = Strata(strata.buffer_id, strata.domain, strata.bucket, strata.count, zeros, zeros.copy())
        with np.errstate(invalid="ignore"):  # a negative loss makes the sum NaN, which differs from any stored one
            fresh.account(self.rows.stratum, self.rows.loss, settings.epsilon, settings.alpha, 1)
        for what, stored, computed in (
            ("weight", strata.weight_sum, fresh.weight_sum),
            ("loss", strata.loss_sum, fresh.loss_sum),
        ):
            off = np.flatnonzero(~(np.abs(stored - computed) <= SUM_TOLERANCE * np.maximum(strata.count, 1)))
            if len(off):
                yield f"the {what} sum is wrong in strata {some(strata.ids(off))}"

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
        described = self._columns(episode, "id", "domain_id")
        for table, found in (
            (episode, described[0]),
            (payload, self._columns(payload, "episode_id")[0]),
            (episode_tag, self._columns(episode_tag, "episode_id")[0]),
        ):
            if table is not episode_tag and len(absent := np.setdiff1d(ids, found)):
                yield f"{some(absent)} have no row in table {table.name}"
            if len(orphans := np.setdiff1d(found, ids)):
                yield f"{some(orphans)} are orphans in table {table.name}"
        if np.array_equal(described[0], ids):
            other = described[1] - self.snapshot.first_id != self._domain
            yield from tell(ids, other, "stand in a stratum of another domain")
        strangers = select(func.count()).where(
            self.snapshot.own, replay_metadata.c.buffer_id != self.snapshot.state.buffer_id
        )
        if count := self.snapshot.conn.scalars(strangers).one():
            yield f"{count} rows of {replay_metadata.name} name another buffer than their id"

    def _columns(self, table: Table, *names: str) -> NDArray[np.int64]:
        """Return columns of whole numbers, shape (names, rows). The first column is the id, and sorts the rows."""
        return np.array(rows_of(self.snapshot, table, *names), np.int64).reshape(-1, len(names)).T

    def _eviction_order(self) -> Iterator[str]:
        expected = order_keys(self.snapshot, Newcomers.like(self.snapshot, self.rows))
        m = replay_metadata.c
        query = select(m.eviction_group, m.eviction_key).where(self.snapshot.own).order_by(m.episode_id)
        stored = self.snapshot.conn.execute(query)
        pairs = zip(zip(*expected, strict=True), stored, strict=True)
        wrong = np.array([should != tuple(row) for should, row in pairs], np.bool_)
        yield from tell(self.rows.ids, wrong, "have the wrong place in the order of eviction")

    def _lowest(self) -> Iterator[str]:
        m = replay_metadata.c
        wrong = or_(m.lowest_loss > m.loss, m.loss.is_(None) != m.lowest_loss.is_(None))
        if ids := list(self.snapshot.conn.scalars(select(m.episode_id).where(self.snapshot.own, wrong))):
            yield f"{some(ids)} have a smallest loss that cannot be"

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
        if damaged:
            yield f"the payloads of episodes {some(np.array(damaged, np.int64))} do not match their checksums"
