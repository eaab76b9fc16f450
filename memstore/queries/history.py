"""The replay history, asked for by keywords."""

from __future__ import annotations

from memstore.config import check_name
from memstore.episodes.inputs import check_count, check_ids
from memstore.errors import InvalidValue
from memstore.queries.columns import Condition, col, constant_of
from memstore.queries.query import Query
from memstore.queries.records import ReplayEvent
from memstore.types import Ids, Steps, Time
from memstore.values.shown import shown
from memstore.values.times import check_limit


def history(
    events: Query,
    episode: Ids | None,
    domain: str | None,
    consumer: str | None,
    steps: Steps | None,
    since: Time | None,
    until: Time | None,
    limit: int | None,
) -> list[ReplayEvent]:
    """Return the events that pass every given test, in order. With ``limit``, return only that many of the newest."""
    tests: list[Condition | None] = [
        None if episode is None else col.id.in_(check_ids(episode).tolist()),
        None if domain is None else col.domain == check_name("domain", domain),
        None if consumer is None else col.consumer == check_name("consumer", consumer),
        None if steps is None else _within(steps),
        None if since is None else col.at >= check_limit("since", since),
        None if until is None else col.at <= check_limit("until", until),
    ]
    query = events.filter(*(test for test in tests if test is not None))
    if limit is None:
        return query.all()
    newest: list[ReplayEvent] = query.order_by(col.event.descending).limit(check_count(limit, "limit")).all()
    return newest[::-1]


def _within(steps: Steps) -> Condition:
    ends = steps if isinstance(steps, (tuple, list)) else (steps, steps)
    if len(ends) != 2:
        raise InvalidValue(f"steps must be one step or (first, last), got {shown(steps)}")
    first, last = (constant_of("steps", "int", end) for end in ends)
    assert isinstance(first, (int, float)) and isinstance(last, (int, float))
    if first > last or int(first) != first or int(last) != last:
        raise InvalidValue(f"steps must be whole numbers (first, last) with first <= last, got {shown(steps)}")
    return col.step.between(int(first), int(last))
