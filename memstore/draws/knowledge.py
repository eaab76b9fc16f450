"""Knowledge that a process keeps about the facts of episodes: lists of ids, with labels; and the views of the blocks.

Facts never change. So a list stays right when newcomers are added to it, and the blocks tell who has left. The process
keeps only facts that are committed, and never replaces a list by an older one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from typing import Any, Self

import numpy as np

from memstore.buffer.blocks.slots import Ints, among
from memstore.buffer.blocks.views import Views
from memstore.buffer.counters import Counters
from memstore.buffer.snapshot import Snapshot
from memstore.queries.columns import Column, Condition
from memstore.queries.sql import Scope
from memstore.testing import count

KEPT = 8
"""A process keeps this many lists: those that were used last."""

RENEWED = 2
"""A list is read again after this many newcomers for each live episode. Most of its episodes have left by then."""


@dataclass(frozen=True, slots=True)
class Facts:
    """Ids of the episodes that pass a condition on facts and, if a column was asked for, labels of their values in it.

    The list holds all passing episodes that were live at ``revision``, and some that have left. It was read when
    ``read`` episodes had been inserted. The newcomers up to number ``inserted`` were appended later.

    Attributes
    ----------
    ids : int64 array
        Ascending.
    label : int64 array
        A number for the value of each episode, -1 if it has none; empty if no column was asked for.
    numbers : dict
        The number of each value.
    """

    ids: Ints
    label: Ints
    numbers: dict[Any, int]
    revision: int
    read: int
    inserted: int

    @classmethod
    def none(cls, counters: Counters) -> Self:
        """Return an empty list, to which episodes are added in a snapshot with these counters."""
        nobody = np.zeros(0, np.int64)
        return cls(nobody, nobody, {None: -1}, counters.revision, counters.inserted, counters.inserted)

    def extended(self, rows: list[tuple[Any, ...]], inserted: int) -> Self:
        """Return the list with more episodes, given as rows of the id and the value."""
        if not rows:
            return replace(self, inserted=inserted)
        numbers, (ids, *values) = dict(self.numbers), zip(*rows, strict=True)
        label = [numbers.setdefault(value, len(numbers)) for value in values[0]] if values else []
        return replace(
            self,
            ids=np.concatenate([self.ids, np.array(ids, np.int64)]),
            label=np.concatenate([self.label, np.array(label, np.int64)]),
            numbers=numbers,
            inserted=inserted,
        )

    def labels_of(self, ids: Ints) -> Ints:
        """Return the labels of these episodes, -1 for those that are not in the list."""
        known, at = among(ids, self.ids)
        return np.where(known, self.label[at], -1) if len(self.ids) else np.full(len(ids), -1)


@dataclass(slots=True)
class Knowledge:
    """The lists of one buffer that a process keeps, and its views."""

    views: Views = field(default_factory=Views)
    _lists: OrderedDict[tuple[str, str], Facts] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def facts(self, snapshot: Snapshot, condition: Condition, by: Column | None = None, *, keep: bool) -> Facts:
        """List all live episodes that pass a condition on facts, and some that have left.

        Parameters
        ----------
        by : Column, optional
            Labels are numbers of the values in this column.
        keep : bool
            True if the snapshot shows only committed data. Then the process keeps the list.
        """
        key, counters = (str(condition), "" if by is None else f"{by} {by.kind}"), snapshot.state.counters
        with self._lock:
            old = self._lists.get(key)
        if old is not None and old.revision > counters.revision:
            # This snapshot is older than the list: it may hold episodes that left before the list was read.
            return Facts.none(counters).extended(_read(snapshot, condition, by), counters.inserted)
        if old is None or (keep and counters.inserted - old.read > RENEWED * snapshot.live):
            now = Facts.none(counters).extended(_read(snapshot, condition, by), counters.inserted)
        elif counters.inserted == old.inserted:
            now = old
        else:
            after = snapshot.first_id + old.inserted
            now = old.extended(_read(snapshot, condition, by, after), counters.inserted)
        if keep:
            with self._lock:
                self._lists[key] = now
                self._lists.move_to_end(key)
                while len(self._lists) > KEPT:
                    self._lists.popitem(last=False)
        return now

    def clear(self) -> None:
        """Forget everything: commits may have been undone."""
        with self._lock:
            self._lists = OrderedDict()
        self.views.clear()

    def after_fork(self) -> None:
        """Start empty in a child, with a new lock, because another thread of the parent may have held the old one."""
        self._lock = threading.Lock()
        self.views.after_fork()
        self.clear()


def _read(
    snapshot: Snapshot, condition: Condition, by: Column | None, after: int | None = None
) -> list[tuple[Any, ...]]:
    """Return the ids of the passing episodes above ``after``, ascending, and the values of a column."""
    if after is None:
        count("scans")
    columns = [] if by is None else [by]
    scope = Scope.of(snapshot, "episodes", columns, condition, after=after)
    query = scope.select(scope.identity(), *map(scope.expression, columns))
    return snapshot.backend.fetch(snapshot.conn, query.order_by(scope.identity()))
