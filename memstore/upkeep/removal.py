"""Many episodes removed at once: by ids, or by a condition, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from sqlalchemy import select

from memstore.buffer.snapshot import Snapshot
from memstore.buffer.strata import Ints
from memstore.episodes.insert import remove
from memstore.episodes.log import Group
from memstore.queries.columns import Condition
from memstore.queries.sql import Scope
from memstore.storage import stored

AT_ONCE = 8192
"""Episodes found and removed together: some MB of what is known of them, whatever their number in all."""


def passing(snapshot: Snapshot, condition: Condition) -> Iterator[Ints]:
    """Ids of the episodes that pass, oldest first, some at a time; those given out may be removed meanwhile."""
    scope = Scope.of(snapshot, "episodes", (), condition, by_id=True)
    tables, passes = scope.rows(condition)
    query = select(scope.identity()).select_from(tables).where(passes).order_by(scope.identity()).limit(AT_ONCE)
    after = 0
    while True:
        found = np.array(snapshot.conn.scalars(query.where(scope.identity() > after)).all(), np.int64)
        if len(found):
            yield found
        if len(found) < AT_ONCE:
            return
        after = stored.onward(int(found[-1]), after, "the episodes that pass")


def remove_all(snapshot: Snapshot, parts: Iterable[Ints], group: Group) -> Ints:
    """Remove the live ones of these ids, with ``group`` in the history; returns them."""
    removed = [np.empty(0, np.int64)]
    for ids in parts:
        for start in range(0, len(ids), AT_ONCE):
            rows = snapshot.find(ids[start : start + AT_ONCE])
            remove(snapshot, (rows, group))
            removed.append(rows.ids)
    return np.concatenate(removed)
