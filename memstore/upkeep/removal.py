"""The removal of many episodes, by ids or by a condition, a bounded number at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np

from memstore.buffer.blocks.slots import Ints
from memstore.buffer.session import Session
from memstore.buffer.snapshot import Snapshot
from memstore.episodes.inputs import check_ids
from memstore.episodes.insert import remove
from memstore.episodes.log import Group
from memstore.errors import InvalidValue
from memstore.queries.columns import Condition
from memstore.queries.parser import as_condition
from memstore.queries.sql import Scope
from memstore.types import Ids

AT_ONCE = 8192
"""This many episodes are removed together. So the rows in memory take only some MB."""


def delete(session: Session, ids: Ids | None, where: Condition | str | None, consumer: str) -> int:
    """Remove the live episodes among these ids, or all that pass a condition, in one commit. Return their number."""
    if (ids is None) == (where is None):
        raise InvalidValue("delete takes either ids or where=...; clear() removes every episode")
    group = Group(time.time(), consumer, "deleted")
    condition = None if where is None else as_condition(where)
    wanted = check_ids([] if ids is None else ids)

    def work(snapshot: Snapshot) -> list[int]:
        removed: list[int] = []
        for page in _pages_of(wanted) if condition is None else _passing(snapshot, condition):
            rows = snapshot.find(page)
            remove(snapshot, (rows, group))
            removed += rows.ids.tolist()
        return removed

    removed = session.write(work)
    session.cache.drop(removed)
    return len(removed)


def _pages_of(ids: Ints) -> Iterator[Ints]:
    return (ids[start : start + AT_ONCE] for start in range(0, len(ids), AT_ONCE))


def _passing(snapshot: Snapshot, condition: Condition) -> Iterator[Ints]:
    """Yield the ids of the passing episodes, oldest first, in pages.

    All ids are read before the first page, 8 bytes each. A query for each page would read the log since the fold again,
    which grows with each removal.
    """
    scope = Scope.of(snapshot, "episodes", (), condition)
    query = scope.ids().order_by(scope.identity())
    yield from _pages_of(np.fromiter(snapshot.conn.scalars(query), np.int64))
