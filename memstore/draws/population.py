"""Lists of the episodes that pass a condition on facts that never change. The log keeps a list current.

Three things can happen to such an episode, and the log records each: it comes (its id is new), its loss changes, or it
leaves. So the log entries between two snapshots bring a list from the earlier to the later one. To look up each episode
again would take 40 ms a draw for 10,000 episodes in 1M.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import bindparam, select

from memstore.buffer.blocks.slots import Floats, Ints
from memstore.buffer.counters import Counters
from memstore.buffer.snapshot import Snapshot
from memstore.draws.arithmetic import is_in, where_in
from memstore.draws.conditions import Episodes
from memstore.queries.columns import Column, Condition, col
from memstore.queries.sql import Scope
from memstore.storage.schema import replay_event
from memstore.testing import count

_v = replay_event.c
_EVENTS = (
    select(_v.episode_id, _v.loss_after).where(_v.id > bindparam("after"), _v.id <= bindparam("until")).order_by(_v.id)
)

FOLLOWED_SHARE = 4
"""To read a list again costs less than to follow the log if more than one in this many live episodes has changed."""

FORGOTTEN_SHARE = 2
"""A list is read again if it has more than this many labels for each live episode. That drops the unused labels."""

COLUMNS = ("ids", "loss", "replay_count", "domain", "label")
"""A ``Population`` has these columns."""


@dataclass(frozen=True, slots=True)
class Population(Episodes):
    """Live episodes that pass a condition, in id order.

    ``counters`` holds the counters of the snapshot. ``live`` is the number of live episodes in the whole buffer. If the
    episodes are grouped by a column, ``labels`` maps the values of the column to numbers, and ``label`` holds the
    number of each episode's value.
    """

    label: Ints
    labels: dict[Any, int]
    counters: Counters
    live: int

    def take(self, which: NDArray[Any]) -> Population:
        """Return the episodes at these places, or the flagged ones if ``which`` is a mask."""
        return replace(self, **{name: getattr(self, name)[which] for name in COLUMNS})


@dataclass(frozen=True, slots=True)
class Demand:
    """The demand for a list of all episodes that pass ``condition``, labelled by the column ``by`` if there is one."""

    condition: Condition
    by: Column | None = None

    @property
    def key(self) -> tuple[str, str]:
        """Two texts that identify this demand."""
        return str(self.condition), "" if self.by is None else f"{self.by} {self.by.kind}"

    def read(self, snapshot: Snapshot) -> Population:
        """Make the list by a query over all episodes."""
        count("scans")
        return self._found(snapshot, {}, None)

    def ids(self, snapshot: Snapshot, after: int) -> Ints:
        """Return the ids of the passing episodes with an id above ``after``."""
        if not after:
            count("scans")
        scope = Scope.of(snapshot, "episodes", (), self.condition, by_id=after > 0)
        query = scope.ids().where(scope.identity() > after).order_by(scope.identity())
        return np.array(snapshot.backend.fetch(snapshot.conn, query), np.int64).reshape(-1)

    def followed(self, snapshot: Snapshot, old: Population) -> Population:
        """Bring an older list to this snapshot: by the log if it is complete, else by reading the list again.

        The log is complete if its replays and departures, and the newcomers, account for the buffer's counters.
        """
        then, now, live = old.counters, snapshot.state.counters, snapshot.live
        recorded, inserted = now.recorded - then.recorded, now.inserted - then.inserted
        replays = now.events - then.events
        if not (recorded or inserted or replays) and live == old.live:
            return old
        if (recorded + inserted) * FOLLOWED_SHARE > live or len(old.labels) > FORGOTTEN_SHARE * live:
            return self.read(snapshot)
        first = snapshot.first_id
        span = {"after": first + then.recorded, "until": first + now.recorded}
        rows = snapshot.conn.execute(_EVENTS, span).all()
        ids = np.array([row[0] for row in rows], np.int64)
        loss = np.array([row[1] for row in rows], np.float64)
        left = np.isnan(loss)
        if replays != np.sum(~left) or inserted != live - old.live + np.sum(left):
            return self.read(snapshot)  # some events were not recorded, or were pruned
        count("followed")
        new = self._found(snapshot, old.labels, list(range(first + then.inserted + 1, first + now.inserted + 1)))
        gone = where_in(old.ids, ids[left])
        known = old.take(np.delete(np.arange(len(old)), gone)) if len(gone) else old
        mine = is_in(known.ids, ids) & ~left
        at = np.searchsorted(known.ids, ids[mine])
        return _advanced(known, new, at, loss[mine])

    def _found(self, snapshot: Snapshot, labels: dict[Any, int], among: list[int] | None) -> Population:
        table, values = (np.empty((0, 4)), []) if among == [] else self._rows(snapshot, among)
        labels = dict(labels)
        label = [labels.setdefault(value, len(labels)) for value in values] if values else np.zeros(len(table))
        return Population(
            table[:, 0].astype(np.int64),
            table[:, 1].copy(),
            table[:, 2].astype(np.int64),
            table[:, 3].astype(np.int64) - snapshot.first_id,
            np.asarray(label, np.int64),
            labels,
            snapshot.state.counters.copy(),
            snapshot.live,
        )

    def _rows(self, snapshot: Snapshot, among: list[int] | None) -> tuple[Floats, list[Any]]:
        """Return a table of floats (ids, losses, replay counts, domains; whole numbers below 2**53), and the labels."""
        used = [col.loss, col.replay_count, col.domain, *([] if self.by is None else [self.by])]
        scope = Scope.of(snapshot, "episodes", used, self.condition, by_id=among is not None)
        query = scope.select(scope.identity(), *map(scope.expression, used))
        if among is not None:
            query = query.where(snapshot.backend.one_of(scope.identity(), among))
        query = query.order_by(scope.identity())
        if self.by is None:
            return _table(snapshot.backend.fetch(snapshot.conn, query)), []
        rows = snapshot.conn.execute(query).all()
        return _table([tuple(row[:4]) for row in rows]), [row[4] for row in rows]


def _table(rows: list[tuple[Any, ...]]) -> Floats:
    return np.array(rows, np.float64).reshape(-1, 4)  # None becomes NaN


def _advanced(known: Population, new: Population, at: Ints, loss: Floats) -> Population:
    """Return the known list with its later losses (in the order of events) and the newcomers."""
    changed = known.loss.copy()
    changed[at] = loss  # if an episode is there twice, its last loss stays
    replays = known.replay_count + np.bincount(at, minlength=len(known)) if len(at) else known.replay_count
    columns = {name: getattr(known, name) for name in COLUMNS} | {"loss": changed, "replay_count": replays}
    joined: dict[str, Any] = {name: _joined(column, getattr(new, name)) for name, column in columns.items()}
    return replace(new, **joined)


def _joined(column: NDArray[Any], more: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([column, more]) if len(more) else column
