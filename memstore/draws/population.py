"""The episodes that pass a condition on what never changes of them, kept in memory by following the log.

The log tells all that can happen to such an episode: it comes (its id is new), its loss changes, it leaves. So a
population is brought from one snapshot to a later one by reading what was appended between them, and not by looking
up each of its episodes: 10,000 of them in 1M would take 40 ms a draw. What is derived from it, such as weights, is
brought along in the same way.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, select

from memstore.buffer.counters import Counters
from memstore.buffer.snapshot import Snapshot
from memstore.buffer.strata import Floats, Ints
from memstore.draws.arithmetic import TINY, log2_sum
from memstore.draws.rejection import positions
from memstore.queries.columns import Column, Condition, col
from memstore.queries.sql import Scope
from memstore.storage.schema import first_id, replay_event, replay_metadata
from memstore.testing import count

_v, _m = replay_event.c, replay_metadata.c
_EVENTS = (
    select(_v.episode_id, _v.loss_after).where(_v.id > bindparam("after"), _v.id <= bindparam("until")).order_by(_v.id)
)

FOLLOWED_SHARE = 4
"""When more than one in this many live episodes has changed, reading anew costs less than following."""

FORGOTTEN_SHARE = 2
"""With more labels than this many for each live episode, most are of groups that are gone: reading anew drops them."""

LAWS = 4
"""Kinds of weights that are brought along; a mixed strategy uses one or two."""


class Law(Protocol):
    """A weight for each episode; equal laws give equal weights."""

    def log2_weight(self, ids: Ints, loss: Floats) -> Floats:
        """Base-2 logarithm of each weight over the largest possible one, so never above zero."""

    def lasts(self, counters: Counters) -> bool:
        """Whether it is the same in a snapshot with these counters, for episodes whose loss is the same."""


@dataclass(frozen=True, slots=True)
class Population:
    """Live episodes that pass a condition, by id, as of the counters of a snapshot.

    ``revision``, ``inserted``, ``recorded``, ``replays`` and ``live`` are those of the whole buffer. ``label`` is the
    place among ``labels`` of what each episode has in the column that they are grouped by.
    """

    ids: Ints
    loss: Floats
    replay_count: Ints
    domain: Ints
    label: Ints
    labels: dict[Any, int]
    revision: int
    inserted: int
    recorded: int
    replays: int
    live: int
    _origin: tuple[Population, NDArray[Any]] | None = None
    _weights: dict[Law, Floats] = field(default_factory=dict)
    _domains: list[tuple[Ints, Ints, Ints]] = field(default_factory=list)

    def take(self, which: NDArray[Any]) -> Population:
        """The episodes at these places."""
        return replace(
            self,
            ids=self.ids[which],
            loss=self.loss[which],
            replay_count=self.replay_count[which],
            domain=self.domain[which],
            label=self.label[which],
            _origin=(self, which),
            _weights={},
            _domains=[],
        )

    def weight(self, law: Law) -> Floats:
        """Each one's weight over the largest possible one; it may underflow to zero."""
        found = self._weights.get(law)
        if found is None:
            if self._origin is None:
                found = np.exp2(law.log2_weight(self.ids, self.loss))
            else:
                whole, which = self._origin
                found = whole.weight(law)[which]
            self._weights[law] = found
        return found

    def log2_total(self, law: Law) -> float:
        """Base-2 logarithm of the sum of the weights."""
        total = float(self.weight(law).sum())
        return float(np.log2(total)) if total > TINY else log2_sum(law.log2_weight(self.ids, self.loss))

    def by_domain(self) -> tuple[Ints, Ints, Ints]:
        """Domains, where in ``order`` each one ends, and ``order``: places by domain, those of each in id order."""
        if not self._domains:
            sizes = np.bincount(self.domain)
            narrow = self.domain.astype(np.int16) if len(sizes) < 2**15 else self.domain  # ten times faster to sort
            domains = np.flatnonzero(sizes)
            self._domains.append((domains, np.cumsum(sizes[domains]), np.argsort(narrow, kind="stable")))
        return self._domains[0]

    def kept_laws(self, counters: Counters) -> list[Law]:
        """Laws whose weights are known and last."""
        return [law for law in list(self._weights) if law.lasts(counters)][-LAWS:]


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
        count("scans")
        return self._found(snapshot, {}, None)

    def ids(self, snapshot: Snapshot, after: int) -> Ints:
        """Ids alone, of those among the episodes after this one."""
        if not after:
            count("scans")
        scope = Scope.of(snapshot, "episodes", (), self.condition, by_id=after > 0)
        tables, passing = scope.rows(self.condition)
        identity = scope.identity()
        query = select(identity).select_from(tables).where(passing, identity > after).order_by(identity)
        return np.array(snapshot.backend.fetch(snapshot.conn, query), np.int64).reshape(-1)

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
        loss = np.array([row[1] for row in rows], np.float64)
        left = np.isnan(loss)
        missed = (counters.events - old.replays != int((~left).sum())) or (
            counters.inserted - old.inserted != live - old.live + int(left.sum())
        )
        if missed:  # events that were not recorded, or are pruned
            return self.read(snapshot)
        count("followed")
        new = self._found(snapshot, old.labels, list(range(first + old.inserted + 1, first + counters.inserted + 1)))
        gone = positions(old.ids, ids[left])
        known = old.take(_all_but(len(old.ids), gone)) if len(gone) else old
        at = np.searchsorted(known.ids, ids)
        mine = np.flatnonzero((at < len(known.ids)) & ~left)
        mine = mine[known.ids[at[mine]] == ids[mine]]
        return _advanced(known, new, at[mine], loss[mine], old.kept_laws(counters))

    def _found(self, snapshot: Snapshot, labels: dict[Any, int], among: list[int] | None) -> Population:
        table, values = (np.empty((0, 4)), []) if among == [] else self._rows(snapshot, among)
        labels = dict(labels)
        label = [labels.setdefault(value, len(labels)) for value in values] if values else np.zeros(len(table))
        counters = snapshot.state.counters
        return Population(
            table[:, 0].astype(np.int64),
            table[:, 1].copy(),
            table[:, 2].astype(np.int64),
            table[:, 3].astype(np.int64) - first_id(snapshot.state.buffer_id),
            np.asarray(label, np.int64),
            labels,
            counters.revision,
            counters.inserted,
            counters.recorded,
            counters.events,
            snapshot.state.strata.live,
        )

    def _rows(self, snapshot: Snapshot, among: list[int] | None) -> tuple[Floats, list[Any]]:
        """Ids, losses, replays and domains as a table of floats, which hold them all; and the values of ``by``."""
        used = [col.loss, col.replay_count, col.domain, *([] if self.by is None else [self.by])]
        scope = Scope.of(snapshot, "episodes", used, self.condition, by_id=among is not None)
        tables, passing = scope.rows(self.condition)
        query = select(_m.episode_id, *map(scope.expression, used)).select_from(tables).where(passing)
        if among is not None:
            query = query.where(snapshot.backend.one_of(_m.episode_id, among))
        query = query.order_by(_m.episode_id)
        if self.by is None:
            return _table(snapshot.backend.fetch(snapshot.conn, query)), []
        rows = snapshot.conn.execute(query).all()
        return _table([tuple(row[:4]) for row in rows]), [row[4] for row in rows]


def _table(rows: list[tuple[Any, ...]]) -> Floats:
    return np.array(rows, np.float64).reshape(-1, 4)  # None as NaN


def _all_but(size: int, gone: Ints) -> NDArray[np.bool_]:
    kept = np.ones(size, np.bool_)
    kept[gone] = False
    return kept


def _advanced(known: Population, new: Population, at: Ints, loss: Floats, laws: list[Law]) -> Population:
    """What was known with these later losses, in the order of events, and with newcomers; with the laws' weights."""
    changed = _patched(known.loss, at, loss)  # an episode may be there twice: the last one stays
    replays = known.replay_count
    if len(at):
        replays = replays.copy()
        np.add.at(replays, at, 1)
    same = len(new.ids) == 0 and known._origin is None
    after = replace(
        new,
        ids=_joined(known.ids, new.ids),
        loss=_joined(changed, new.loss),
        replay_count=_joined(replays, new.replay_count),
        domain=_joined(known.domain, new.domain),
        label=_joined(known.label, new.label),
        _domains=known._domains if same else [],
    )
    for law in laws:
        weight = _patched(known.weight(law), at, np.exp2(law.log2_weight(known.ids[at], changed[at])))
        after._weights[law] = _joined(weight, np.exp2(law.log2_weight(new.ids, new.loss)))
    return after


def _patched(column: Floats, at: Ints, values: Floats) -> Floats:
    if np.array_equal(column[at], values):  # a law of exponent zero copies nothing
        return column
    patched = column.copy()
    patched[at] = values
    return patched


def _joined(column: NDArray[Any], more: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([column, more]) if len(more) else column
