"""The tables ``episode`` and ``replay_metadata`` as they would be now, for queries between two folds.

Until the fold, ``episode``, ``payload`` and ``episode_tag`` still hold what has left, and ``replay_metadata`` is as it
was at the last fold. The log since then tells the difference, so it is laid over the tables. If the tables are at the
end of the log, they are read as they are.

Nothing is written for this, so it works on a read-only file and on a standby server. The cost is about that of reading
the log since the fold once, and of looking up each episode in it.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import (
    CTE,
    Column,
    ColumnElement,
    FromClause,
    Select,
    case,
    cast,
    exists,
    func,
    literal,
    null,
    select,
    true,
)

from memstore.buffer.snapshot import Snapshot
from memstore.storage.schema import episode, event_group, id_range, replay_event, replay_metadata

_e, _m, _v, _g = episode.c, replay_metadata.c, replay_event.c, event_group.c

METADATA = tuple(_m.keys())
"""The table ``replay_metadata`` has these columns, in this order."""


def is_live(snapshot: Snapshot, ids: ColumnElement[int]) -> ColumnElement[bool]:
    """Return the condition that the episodes with these ids are live. Each has a row in table ``episode``, or had one.

    An episode has left if an event ends it. The partial index on such events answers this for one episode or for all.
    """
    counters = snapshot.state.counters
    if counters.folded_logged == counters.logged:
        return true()
    ending = replay_event.alias("ending").c
    return ~exists().where(ending.episode_id == ids, ending.ends.is_not(None))


def live_episode(snapshot: Snapshot) -> FromClause:
    """Return table ``episode``, or the query for its rows of live episodes."""
    counters = snapshot.state.counters
    if counters.folded_logged == counters.logged:
        return episode
    return select(episode).where(is_live(snapshot, _e.id)).subquery("live_episode")


def replay_metadata_now(
    snapshot: Snapshot, names: Collection[str] = METADATA, among: Sequence[int] | None = None
) -> FromClause:
    """Return table ``replay_metadata``, or the query for the rows that it would have now.

    The rows are of three kinds: of episodes that the log since the fold does not name, which the table holds as they
    are; of newcomers that it does not name again; and of the others. So the first, large part is read with the indexes.

    Parameters
    ----------
    snapshot : Snapshot
    names : collection of str
        Only these columns are needed, besides ``episode_id`` and ``buffer_id``. Others may be missing in the query.
    among : sequence of int, optional
        The caller adds the condition that an episode is one of these. The events of others are passed over.
    """
    counters = snapshot.state.counters
    if counters.is_folded:
        return replay_metadata
    wanted = [name for name in METADATA if name in names or name in ("episode_id", "buffer_id")]
    buffer_id, last = snapshot.state.buffer_id, id_range(snapshot.state.buffer_id)[1]
    newcomer = (_e.id > snapshot.first_id + counters.folded_inserted, _e.id <= last)
    unchanged, came = _columns(wanted, dict(_m)), _columns(wanted, _at_add(buffer_id))
    if counters.folded_logged == counters.logged:
        return select(*unchanged).union_all(select(*came).where(*newcomer)).subquery("live_replay_metadata")
    touched = _touched(snapshot, last, among)
    parts = [
        _untouched(select(*unchanged), touched, _m.episode_id),
        _untouched(select(*came).where(*newcomer), touched, _e.id),
        _replayed(wanted, touched, buffer_id),
    ]
    return parts[0].union_all(*parts[1:]).subquery("live_replay_metadata")


def _touched(snapshot: Snapshot, last: int, among: Sequence[int] | None) -> CTE:
    """Return the episodes that the log since the fold names: the last event, the lowest loss, and departures."""
    after = snapshot.first_id + snapshot.state.counters.folded_logged
    query = select(
        _v.episode_id,
        func.max(_v.id).label("event"),
        func.min(_v.loss_after).label("lowest"),
        func.count(_v.ends).label("endings"),
    ).where(_v.id > after, _v.id <= last)
    if among:
        query = query.where(snapshot.backend.one_of(_v.episode_id, among))
    return query.group_by(_v.episode_id).cte("touched").prefix_with("MATERIALIZED")


def _untouched(query: Select[Any], touched: CTE, ids: ColumnElement[int]) -> Select[Any]:
    """Leave out the touched episodes. A join, because PostgreSQL may look up a long NOT IN row by row."""
    return query.outerjoin(touched, touched.c.episode_id == ids).where(touched.c.episode_id.is_(None))


def _replayed(wanted: list[str], touched: CTE, buffer_id: int) -> Select[Any]:
    """Return the query for the touched episodes that are live: each is as its last event left it."""
    before = func.coalesce(_m.lowest_loss, _e.loss_at_add)
    now = {
        "episode_id": _v.episode_id,
        "buffer_id": literal(buffer_id),
        "loss": _v.loss_after,
        "lowest_loss": case((before < touched.c.lowest, before), else_=touched.c.lowest),
        "replay_count": _v.nth,
        "last_replayed_at": _g.at,
        "last_event_id": case((_v.unrecorded.is_(None), _v.id), else_=_v.previous_id),
    }
    tables = touched.join(replay_event, _v.id == touched.c.event)
    if "lowest_loss" in wanted:
        tables = tables.outerjoin(replay_metadata, _m.episode_id == touched.c.episode_id)
        tables = tables.outerjoin(episode, _e.id == touched.c.episode_id)
    if "last_replayed_at" in wanted:
        tables = tables.outerjoin(event_group, _g.id == _v.group_id)
    # PostgreSQL expects that a third of the rows passes "less than 1", and that hardly any passes "= 0" or "is NULL".
    # With hardly any it would look up row by row.
    return select(*_columns(wanted, now)).select_from(tables).where(touched.c.endings < 1)


def _at_add(buffer_id: int) -> dict[str, ColumnElement[Any]]:
    """Return the replay metadata of an episode that was never replayed."""
    return {
        "episode_id": _e.id,
        "buffer_id": literal(buffer_id),
        "loss": _e.loss_at_add,
        "lowest_loss": _e.loss_at_add,
        "replay_count": literal(0),
        "last_replayed_at": null(),
        "last_event_id": null(),
    }


def _columns(wanted: list[str], values: dict[str, ColumnElement[Any]]) -> list[ColumnElement[Any]]:
    """Return the wanted columns under their names.

    All have the types of the table. Otherwise SQLite would compute all rows before it tests and sorts them, because its
    condition for the use of indexes behind UNION ALL is that columns have equal types.
    """
    typed = {name: value if isinstance(value, Column) else cast(value, _m[name].type) for name, value in values.items()}
    return [typed[name].label(name) for name in wanted]
