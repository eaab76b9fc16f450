"""Knowledge that a process keeps about the episodes that pass conditions.

The process keeps only facts that are committed, and never replaces a list by an older one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from memstore.buffer.blocks.slots import Ints
from memstore.buffer.blocks.views import Views
from memstore.buffer.counters import Counters
from memstore.buffer.snapshot import Snapshot
from memstore.draws.conditions import is_settled
from memstore.draws.population import Demand, Population

V = TypeVar("V")

KEPT = 8
"""A process keeps this many populations, and this many lists of ids: the ones that were used last."""

RENEWED = 2
"""A list of ids is read again after this many newcomers for each live episode. Most of its ids have left by then."""


@dataclass(frozen=True, slots=True)
class KnownIds:
    """Ids of the episodes that pass a settled condition.

    The list holds all passing episodes that were live at ``revision``, and some that have left. It was read when
    ``read`` episodes had been inserted. The newcomers up to number ``inserted`` were appended later.
    """

    ids: Ints
    revision: int
    read: int
    inserted: int

    @classmethod
    def of(cls, ids: Ints, counters: Counters) -> KnownIds:
        """Return a list that was read in a snapshot with these counters."""
        return cls(ids, counters.revision, counters.inserted, counters.inserted)


@dataclass(slots=True)
class Populations:
    """The populations of one buffer that a process keeps, and the lists of ids that it tests candidates with."""

    _kept: OrderedDict[tuple[str, str], Population] = field(default_factory=OrderedDict)
    _ids: OrderedDict[tuple[str, str], KnownIds] = field(default_factory=OrderedDict)
    views: Views = field(default_factory=Views)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, snapshot: Snapshot, demand: Demand, *, keep: bool) -> Population:
        """Return the population in this snapshot. ``keep`` it only if the snapshot shows committed data."""
        if not is_settled(demand.condition):
            return demand.read(snapshot)
        key = demand.key
        with self._lock:
            old = self._kept.get(key)
        stale = old is None or old.counters.revision > snapshot.state.counters.revision
        found = demand.read(snapshot) if old is None or stale else demand.followed(snapshot, old)
        if keep and (old is None or not stale):
            with self._lock:
                _put(self._kept, key, found, KEPT)
        return found

    def ids(self, snapshot: Snapshot, demand: Demand, *, keep: bool) -> Ints:
        """Return the ascending ids of all live episodes that pass, and of some that have left."""
        key, counters = demand.key, snapshot.state.counters
        with self._lock:
            old = self._ids.get(key)
        if old is not None and old.revision > counters.revision:
            # This snapshot is older than the list: it may hold episodes that left before the list was read.
            return demand.ids(snapshot, 0)
        if old is None or (keep and counters.inserted - old.read > RENEWED * snapshot.live):
            now = KnownIds.of(demand.ids(snapshot, 0), counters)
        elif counters.inserted == old.inserted:
            now = old
        else:
            new = demand.ids(snapshot, snapshot.first_id + old.inserted)
            now = KnownIds(np.concatenate([old.ids, new]), old.revision, old.read, counters.inserted)
        if keep:
            with self._lock:
                _put(self._ids, key, now, KEPT)
        return now.ids

    def clear(self) -> None:
        """Forget everything: commits may have been undone."""
        with self._lock:
            self._kept, self._ids = OrderedDict(), OrderedDict()
        self.views.clear()

    def after_fork(self) -> None:
        """Start empty in a child, with a new lock, because another thread of the parent may have held the old one."""
        self._lock = threading.Lock()
        self.views.after_fork()
        self.clear()


def _put(kept: OrderedDict[tuple[str, str], V], key: tuple[str, str], value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
