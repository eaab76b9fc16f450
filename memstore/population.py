"""The episodes that pass a condition on what never changes of them, kept in memory by following the log.

The log tells all that can happen to such an episode: it comes (its id is new), its loss changes, it leaves. So a
population is brought from one snapshot to a later one by reading what was appended between them, and not by looking
up each of its episodes: 10,000 of them in 1M would take 40 ms a draw.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sqlalchemy import bindparam, select

from memstore.columns import Column, Condition, col
from memstore.draws import POOR_YIELD
from memstore.predicates import Scope
from memstore.schema import first_id, replay_event, replay_metadata
from memstore.snapshot import Snapshot
from memstore.strata import Floats, Ints

_v, _m = replay_event.c, replay_metadata.c
_EVENTS = (
    select(_v.episode_id, _v.loss_after).where(_v.id > bindparam("after"), _v.id <= bindparam("until")).order_by(_v.id)
)

KEPT = 8
"""Populations that a process keeps, those used last."""

FOLLOWED_SHARE = 4
"""When more than one in this many live episodes has changed, reading anew costs less than following."""

FORGOTTEN_SHARE = 2
"""With more labels than this many for each live episode, most are of groups that are gone: reading anew drops them."""


@dataclass(frozen=True, slots=True)
class Population:
    """Live episodes that pass a condition, by id, as of the counters of a snapshot.

    ``replays`` and ``live`` are those of the whole buffer. ``label`` is the place among ``labels`` of what each episode
    has in the column that they are grouped by.
    """

    ids: Ints
    loss: Floats
    domain: Ints
    label: Ints
    labels: dict[Any, int]
    inserted: int
    recorded: int
    replays: int
    live: int

    def take(self, which: np.ndarray[Any, np.dtype[np.bool_]]) -> Population:
        """The episodes at these places."""
        return _with(self, self.ids[which], self.loss[which], self.domain[which], self.label[which])


def _with(old: Population, ids: Ints, loss: Floats, domain: Ints, label: Ints) -> Population:
    return Population(ids, loss, domain, label, old.labels, old.inserted, old.recorded, old.replays, old.live)


@dataclass(frozen=True, slots=True)
class Demand:
    """Which population: of all episodes that pass ``condition``, labelled by ``by`` where they are to be grouped."""

    condition: Condition
    by: Column | None = None

    @property
    def key(self) -> tuple[str, str]:
        """What tells it from others."""
        return str(self.condition), "" if self.by is None else f"{self.by} {self.by.kind}"

    def read(self, snapshot: Snapshot) -> Population:
        """The population by a query over all episodes."""
        return self._found(snapshot, {}, None)

    def followed(self, snapshot: Snapshot, old: Population) -> Population:
        """The population of a later snapshot than the old one's."""
        counters, live = snapshot.state.counters, snapshot.state.strata.live
        now = (counters.recorded, counters.inserted, counters.events, live)
        if (old.recorded, old.inserted, old.replays, old.live) == now:
            return old
        news = (counters.recorded - old.recorded) + (counters.inserted - old.inserted)
        if news * FOLLOWED_SHARE > live or len(old.labels) > FORGOTTEN_SHARE * live:
            return self.read(snapshot)
        first = first_id(snapshot.state.buffer_id)
        span = {"after": first + old.recorded, "until": first + counters.recorded}
        rows = snapshot.conn.execute(_EVENTS, span).all()
        ids = np.array([row[0] for row in rows], np.int64)
        loss = np.array([np.nan if row[1] is None else row[1] for row in rows])
        left = np.isnan(loss)
        missed = (counters.events - old.replays != int((~left).sum())) or (
            counters.inserted - old.inserted != live - old.live + int(left.sum())
        )
        if missed:  # events that were not recorded, or are pruned
            return self.read(snapshot)
        new = self._found(snapshot, old.labels, list(range(first + old.inserted + 1, first + counters.inserted + 1)))
        known = old.take(~np.isin(old.ids, ids[left]))
        place = np.searchsorted(known.ids, ids)
        mine = np.flatnonzero((place < len(known.ids)) & ~left)
        mine = mine[known.ids[place[mine]] == ids[mine]]
        changed = known.loss.copy()
        changed[place[mine]] = loss[mine]  # in the order of events: the last one stays
        return _with(
            new,
            np.concatenate([known.ids, new.ids]),
            np.concatenate([changed, new.loss]),
            np.concatenate([known.domain, new.domain]),
            np.concatenate([known.label, new.label]),
        )

    def _found(self, snapshot: Snapshot, labels: dict[Any, int], among: list[int] | None) -> Population:
        rows: Sequence[Any] = [] if among == [] else self._rows(snapshot, among)
        labels = dict(labels)
        label = [labels.setdefault(row[3], len(labels)) for row in rows] if self.by is not None else [0] * len(rows)
        counters = snapshot.state.counters
        return Population(
            np.array([row[0] for row in rows], np.int64),
            np.array([np.nan if row[1] is None else row[1] for row in rows], np.float64),
            np.array([row[2] for row in rows], np.int64) - first_id(snapshot.state.buffer_id),
            np.array(label, np.int64),
            labels,
            counters.inserted,
            counters.recorded,
            counters.events,
            snapshot.state.strata.live,
        )

    def _rows(self, snapshot: Snapshot, among: list[int] | None) -> Sequence[Any]:
        used = [col.loss, col.domain, *([] if self.by is None else [self.by])]
        scope = Scope.of(snapshot, "episodes", used, self.condition, by_id=among is not None)
        tables, passing = scope.rows(self.condition)
        query = select(_m.episode_id, *(scope.expression(column) for column in used)).select_from(tables).where(passing)
        if among is not None:
            query = query.where(snapshot.backend.one_of(_m.episode_id, among))
        return snapshot.conn.execute(query.order_by(_m.episode_id)).all()


@dataclass(slots=True)
class Populations:
    """A process's populations of one buffer; only of what is committed, and never taken back in time."""

    _kept: OrderedDict[tuple[str, str], Population] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tells_of_few(self, demand: Demand, live: int) -> bool:
        """Whether a draw among ``live`` episodes is going to need the population, so few of them were in it."""
        with self._lock:
            old = self._kept.get(demand.key)
        return old is not None and len(old.ids) * POOR_YIELD < live

    def get(self, snapshot: Snapshot, demand: Demand, *, keep: bool) -> Population:
        """The population in this snapshot; ``keep`` is for snapshots of what is committed."""
        with self._lock:
            old = self._kept.get(demand.key)
        counters = snapshot.state.counters
        if old is None or old.recorded > counters.recorded or old.inserted > counters.inserted:
            found = demand.read(snapshot)
        else:
            found = demand.followed(snapshot, old)
        if keep:
            with self._lock:
                self._kept[demand.key] = found
                self._kept.move_to_end(demand.key)
                while len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
        return found

    def clear(self) -> None:
        """Forget all: what was read may be undone since."""
        with self._lock:
            self._kept.clear()

    def after_fork(self) -> None:
        """Start anew in a child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._kept = OrderedDict()
