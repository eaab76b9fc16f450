"""What a process knows of episodes that pass conditions: only of what is committed, and never taken back in time."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from memstore.buffer.snapshot import Snapshot
from memstore.buffer.strata import Ints
from memstore.draws.population import Demand, Population
from memstore.storage.schema import first_id

V = TypeVar("V")

KEPT = 8
"""Populations that a process keeps, those used last, and as many lists of ids."""

RENEWED = 2
"""Newcomers for each live episode after which a list is read anew, since most of its ids have left."""

REMEMBERED = 64
"""Conditions that a process remembers to have seen, those seen last."""


@dataclass(frozen=True, slots=True)
class Passing:
    """Ids of episodes that pass a settled condition: of all that were live at ``revision``, and some that have left.

    All were read when ``read`` episodes had been inserted, and newcomers since, up to ``inserted``.
    """

    ids: Ints
    revision: int
    read: int
    inserted: int


@dataclass(slots=True)
class Populations:
    """A process's populations of one buffer, and lists of ids to test candidates by."""

    _kept: OrderedDict[tuple[str, str], Population] = field(default_factory=OrderedDict)
    _passing: OrderedDict[tuple[str, str], Passing] = field(default_factory=OrderedDict)
    _seen: OrderedDict[tuple[str, str], None] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def get(self, snapshot: Snapshot, demand: Demand, *, keep: bool) -> Population:
        """The population in this snapshot; ``keep`` is for snapshots of what is committed."""
        key = demand.key
        with self._lock:
            old = self._kept.get(key)
        counters = snapshot.state.counters
        if old is None or old.revision > counters.revision:
            found = demand.read(snapshot)
        else:
            found = demand.followed(snapshot, old)
        if keep and (old is None or old.revision <= found.revision):
            with self._lock:
                _put(self._kept, key, found, KEPT)
        return found

    def passing(self, snapshot: Snapshot, demand: Demand, *, keep: bool) -> Ints | None:
        """Ids of all live episodes that pass, perhaps with some that have left; None where asking costs less.

        A condition that is never asked for again must not cost a scan, so ids are read when it is seen for the second
        time, unless its population is known.
        """
        key, counters = demand.key, snapshot.state.counters
        with self._lock:
            old, population, seen = self._passing.get(key), self._kept.get(key), key in self._seen
            _put(self._seen, key, None, REMEMBERED)
        if old is None and population is not None:
            old = Passing(population.ids, population.revision, population.inserted, population.inserted)
        if old is not None and old.revision > counters.revision:
            return None  # an episode that has left since may be live in this snapshot
        if old is None and not (seen and keep):
            return None
        if old is None or (keep and counters.inserted - old.read > RENEWED * snapshot.state.strata.live):
            now = Passing(demand.ids(snapshot, 0), counters.revision, counters.inserted, counters.inserted)
        elif counters.inserted == old.inserted:
            now = old
        else:
            new = demand.ids(snapshot, first_id(snapshot.state.buffer_id) + old.inserted)
            now = Passing(np.concatenate([old.ids, new]), old.revision, old.read, counters.inserted)
        if keep:
            with self._lock:
                _put(self._passing, key, now, KEPT)
        return now.ids

    def clear(self) -> None:
        """Forget all: what was read may be undone since."""
        with self._lock:
            self._kept.clear()
            self._passing.clear()
            self._seen.clear()

    def after_fork(self) -> None:
        """Start anew in a child: another thread of the parent may have held the lock."""
        self._lock = threading.Lock()
        self._kept, self._passing, self._seen = OrderedDict(), OrderedDict(), OrderedDict()


def _put(kept: OrderedDict[tuple[str, str], V], key: tuple[str, str], value: V, most: int) -> None:
    kept[key] = value
    kept.move_to_end(key)
    while len(kept) > most:
        kept.popitem(last=False)
