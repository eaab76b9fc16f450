"""The removal of many episodes, by ids or by a condition, a bounded number at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator

import numpy as np
from sqlalchemy import select

from memstore.buffer.session import Session
from memstore.buffer.snapshot import Snapshot
from memstore.buffer.strata import Ints
from memstore.episodes.inputs import check_ids
from memstore.episodes.insert import remove
from memstore.episodes.log import Group
from memstore.errors import InvalidValue
from memstore.queries.columns import EVERY, Condition
from memstore.queries.parser import as_condition
from memstore.queries.sql import Scope
from memstore.storage import stored
from memstore.types import Ids

AT_ONCE = 8192
"""This many episodes are found and removed together. So the rows in memory take only some MB."""


def delete(session: Session, ids: Ids | None, where: Condition | str | None, consumer: str) -> int:
    """Remove the live episodes among these ids, or all that pass a condition, in one commit. Return their number."""
    if (ids is None) == (where is None):
        raise InvalidValue("delete takes either ids or where=...; clear() removes every episode")
    if where is not None:
        condition = as_condition(where)
        return _remove(session, lambda s: passing(s, condition), consumer)
    wanted = check_ids([] if ids is None else ids)
    return _remove(session, lambda _: [wanted], consumer)


def clear(session: Session, consumer: str) -> int:
    """Remove every live episode, in one commit, and return their number."""
    return _remove(session, lambda s: passing(s, EVERY), consumer)


def _remove(session: Session, which: Callable[[Snapshot], Iterable[Ints]], consumer: str) -> int:
    group = Group(time.time(), consumer, "deleted")
    removed = session.write(lambda s: remove_all(s, which(s), group))
    session.cache.drop(removed.tolist())
    return len(removed)


def passing(snapshot: Snapshot, condition: Condition) -> Iterator[Ints]:
    """Yield the ids of the passing episodes, oldest first, in pages. A page may be removed before the next is read."""
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
    """Remove the live episodes among these ids, with ``group`` in the history, and return the removed ids."""
    removed = [np.empty(0, np.int64)]
    for ids in parts:
        for start in range(0, len(ids), AT_ONCE):
            rows = snapshot.find(ids[start : start + AT_ONCE])
            remove(snapshot, (rows, group))
            removed.append(rows.ids)
    return np.concatenate(removed)
