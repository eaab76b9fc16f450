"""Whether every promise about the stored rows holds: everything is read once and compared."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Table, and_, func, or_, select, union_all

from memstore.codec import Signature
from memstore.episodes import all_payloads
from memstore.errors import StoreCorrupt
from memstore.eviction import Newcomers, order_keys
from memstore.schema import (
    UNMEASURED,
    episode,
    episode_tag,
    event_group,
    first_id,
    id_range,
    payload,
    replay_event,
    replay_metadata,
)
from memstore.snapshot import Rows, Snapshot
from memstore.strata import Ints, Strata, bucket_of, log2_priority
from memstore.types import CheckReport

SUM_TOLERANCE = 1e-6
"""Error allowed in a stored sum, per row: rounding alone reaches 1e-10 after 1e9 updates of a stratum."""


def check(snapshot: Snapshot) -> CheckReport:
    """Examine the database's pages, then the buffer's strata, rows and payloads."""
    problems: list[str] = []
    episodes = 0
    try:
        problems += snapshot.backend.integrity(snapshot.conn)
        examination = _Examination(snapshot, snapshot.unverified())
        episodes = len(examination.rows)
        problems += examination.problems()
    except Exception as exc:
        # Whatever a damaged file makes the driver raise is a finding, not a crash.
        if not isinstance(exc, StoreCorrupt) and snapshot.backend.classify(exc) is None:
            raise
        problems.append(f"reading stopped: {exc}")
    return CheckReport(episodes, tuple(problems), tuple(snapshot.backend.notes(snapshot.conn)))


@dataclass(frozen=True)
class _Examination:
    snapshot: Snapshot
    rows: Rows

    def problems(self) -> Iterator[str]:
        """Each finding in one sentence that names the first few episodes or strata."""
        strata = self.snapshot.state.strata
        outside = (self.rows.stratum < 0) | (self.rows.stratum >= len(strata))
        if outside.any():
            yield f"{_some(self.rows.ids[outside])} stand in strata that do not exist"
            return
        yield from self._standing()
        yield from self._positions()
        yield from self._sums()
        yield from self._counters()
        yield from self._tables()
        yield from self._eviction_order()
        yield from self._history()
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
        for what, bad in (
            ("have an infinite or negative loss", invalid),
            ("stand in a stratum for never-measured episodes though measured, or the reverse", misplaced),
            ("have a priority above the bound of their stratum", above),
        ):
            if bad.any():
                yield f"{_some(self.rows.ids[bad])} {what}"
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
            yield f"positions are not 0 .. count - 1 in strata {_some(strata.ids(sparse))}"
        different = np.flatnonzero(counts != strata.count)
        if len(different):
            yield f"the count is wrong in strata {_some(strata.ids(different))}"

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
                yield f"the {what} sum is wrong in strata {_some(strata.ids(off))}"

    def _counters(self) -> Iterator[str]:
        state, rows = self.snapshot.state, self.rows
        replays = int(rows.replay_count.sum())
        if replays != state.counters.live_replays:
            yield f"the buffer counts {state.counters.live_replays} replays of live episodes, they have {replays}"
        if len(rows) and int(rows.ids[-1]) - first_id(state.buffer_id) > state.counters.inserted:
            yield f"episode {rows.ids[-1]} is newer than the buffer's insertion counter, {state.counters.inserted}"
        if len(rows) > state.settings.capacity:
            yield f"{len(rows)} live episodes exceed the capacity of {state.settings.capacity}"
        if len(state.strata) != state.counters.strata or len(state.domain_names) != state.counters.domains:
            yield "the numbers of strata or domains differ from the buffer's counters"

    def _tables(self) -> Iterator[str]:
        ids = self.rows.ids
        for table, key in ((episode, "id"), (payload, "episode_id"), (episode_tag, "episode_id")):
            found = self._column(table, key, key)
            if table is not episode_tag and len(absent := np.setdiff1d(ids, found)):
                yield f"{_some(absent)} have no row in table {table.name}"
            if len(orphans := np.setdiff1d(found, ids)):
                yield f"{_some(orphans)} are orphans in table {table.name}"
        in_episode = np.isin(ids, self._column(episode, "id", "id"))
        domain_ids = self._column(episode, "id", "domain_id")
        if in_episode.all() and len(domain_ids) == len(ids):
            other = domain_ids - first_id(self.snapshot.state.buffer_id) != self._domain
            if other.any():
                yield f"{_some(ids[other])} stand in a stratum of another domain"
        strangers = select(func.count()).where(
            self.snapshot.own, replay_metadata.c.buffer_id != self.snapshot.state.buffer_id
        )
        if count := self.snapshot.conn.scalars(strangers).one():
            yield f"{count} rows of {replay_metadata.name} name another buffer than their id"

    def _column(self, table: Table, key: str, column: str) -> NDArray[np.int64]:
        low, high = id_range(self.snapshot.state.buffer_id)
        query = select(table.c[column]).where(table.c[key].between(low, high)).order_by(table.c[key])
        return np.array(self.snapshot.conn.scalars(query).all(), np.int64)

    def _eviction_order(self) -> Iterator[str]:
        expected = order_keys(self.snapshot, Newcomers(self.rows.ids, self._domain, self.rows.loss))
        m = replay_metadata.c
        query = select(m.eviction_group, m.eviction_key).where(self.snapshot.own).order_by(m.episode_id)
        stored = self.snapshot.conn.execute(query)
        pairs = zip(zip(*expected, strict=True), stored, strict=True)
        wrong = np.array([should != tuple(row) for should, row in pairs], np.bool_)
        if wrong.any():
            yield f"{_some(self.rows.ids[wrong])} have the wrong place in the order of eviction"

    def _history(self) -> Iterator[str]:
        m, v, g = replay_metadata.c, replay_event.c, event_group.c
        conn, state = self.snapshot.conn, self.snapshot.state
        wrong = or_(m.lowest_loss > m.loss, m.loss.is_(None) != m.lowest_loss.is_(None))
        if ids := list(conn.scalars(select(m.episode_id).where(self.snapshot.own, wrong))):
            yield f"{_some(ids)} have a smallest loss that cannot be"
        low, high = id_range(state.buffer_id)
        end = low + state.counters.recorded
        oldest, newest = conn.execute(select(func.min(v.id), func.max(v.id)).where(v.id.between(low, high))).one()
        if newest is not None and newest >= end:
            yield f"event {newest} is newer than the buffer's counter of events, {state.counters.recorded}"
        never = and_(v.id.is_(None), m.last_event_id >= (end if oldest is None else oldest))  # older ones were pruned
        last = replay_metadata.outerjoin(replay_event, v.id == m.last_event_id)
        wrong = or_(v.episode_id != m.episode_id, never)
        if ids := list(conn.scalars(select(m.episode_id).select_from(last).where(self.snapshot.own, wrong))):
            yield f"{_some(ids)} name as their last event one of another episode, or one that is not there"
        said = select(g.id, g["count"].label("count")).where(g.id.between(low, high))
        found = select(v.group_id, -func.count()).where(v.id.between(low, high)).group_by(v.group_id)
        both = union_all(said, found).subquery().c
        uneven = select(both.id).group_by(both.id).having(func.sum(both["count"]) != 0).order_by(both.id)
        if ids := list(conn.scalars(uneven)):
            yield f"{_some(ids)} groups of events have more or fewer than they say"

    def _payloads(self) -> Iterator[str]:
        if self.snapshot.state.signature is None:
            return
        signature = Signature.from_json(self.snapshot.state.signature)
        damaged: list[int] = []
        for ids, blobs in all_payloads(self.snapshot, damaged):
            try:
                signature.decode(blobs)
            except StoreCorrupt as exc:
                yield f"a payload among episodes {ids[0]} .. {ids[-1]} does not fit the signature: {exc}"
        if damaged:
            yield f"the payloads of episodes {_some(np.array(damaged, np.int64))} do not match their checksums"


def _some(ids: Ints | list[int]) -> str:
    shown = ", ".join(str(int(i)) for i in ids[:5])
    return f"{len(ids)} ({shown}{' ...' if len(ids) > 5 else ''})"
