"""The course of losses and replays for each domain, from the tally, the heads of the blocks and the index on loss."""

from __future__ import annotations

import numpy as np
from sqlalchemy import func, select

from memstore.buffer.blocks.slots import Floats, Ints
from memstore.buffer.snapshot import Snapshot
from memstore.draws.strategy import Strategy
from memstore.draws.targets import domain_sizes, domain_targets
from memstore.queries.columns import col
from memstore.queries.query import Query
from memstore.queries.records import LossTrend, ReplayShare
from memstore.storage.schema import replay_tally
from memstore.types import Episode

_t = replay_tally.c

HARDEST = 100
"""Before ``forgotten`` scans, it looks at this many of the hardest episodes for each episode to return."""

MOST_LOOKED_AT = 1000
"""``forgotten`` looks at no more than this many of the hardest, which costs a tenth of a scan of 1M episodes."""


def forgotten(snapshot: Snapshot, n: int) -> list[Episode]:
    """Return the ``n`` episodes with the largest rise of the loss above its lowest value, largest first.

    A loss cannot have risen by more than its own size. So the hardest episodes are looked at first, through the index
    on loss. The replay metadata is scanned only if they do not decide the answer.
    """
    whole = Query(lambda ask: ask(snapshot), "episodes")
    risen = whole.filter(col.rise > 0).order_by(col.rise.descending).limit(n)
    hardest = (
        whole.filter(col.loss.is_known()).order_by(col.loss.descending).limit(max(n, min(HARDEST * n, MOST_LOOKED_AT)))
    )
    rows = hardest.select(col.id, col.loss, col.rise).arrays()
    best = np.lexsort((rows["id"], -rows["rise"]))[:n]
    decided = len(best) == n and rows["rise"][best[-1]] > rows["loss"][-1]
    return (risen.filter(col.id.in_(rows["id"][best].tolist())) if decided else risen).all()


def loss_trend(snapshot: Snapshot, most: int, *, by_domain: bool) -> list[LossTrend]:
    """Return the mean losses in the course of the replays, at most ``most`` points for each domain or for all."""
    query = select(_t.slot, _t.domain_id, _t.replays, _t.loss_sum, _t.last_step, _t.last_at)
    query = query.where(_t.buffer_id == snapshot.state.buffer_id).order_by(_t.slot, _t.domain_id)
    rows = snapshot.conn.execute(query).all()
    if not rows:
        return []
    slot, domain, replays, losses, step, at = (np.array(column) for column in zip(*rows, strict=True))
    step = step.astype(np.float64)  # None becomes NaN
    point = (slot - 1) * most // snapshot.state.counters.events
    lines = domain if by_domain else np.zeros(len(slot), np.int64)
    trends = []
    for line in np.unique(lines).tolist():
        own = lines == line
        found, place = np.unique(point[own], return_inverse=True)
        count = np.bincount(place, replays[own]).astype(np.int64)
        trends.append(
            LossTrend(
                snapshot.state.domain_name(line, "the tally: a domain") if by_domain else None,
                _last(step[own], place, len(found)),
                _last(at[own], place, len(found)),
                count,
                np.bincount(place, losses[own]) / count,
            )
        )
    return trends


def replay_share(snapshot: Snapshot, strategy: Strategy) -> list[ReplayShare]:
    """Return each domain's share of episodes and replays, and the share that the strategy aims at, largest first."""
    names = snapshot.state.domain_names
    query = select(_t.domain_id, func.sum(_t.replays)).where(_t.buffer_id == snapshot.state.buffer_id)
    counted = {domain: int(count) for domain, count in snapshot.conn.execute(query.group_by(_t.domain_id))}
    replays = [counted.get(number, 0) for number in range(snapshot.first_id + 1, snapshot.first_id + len(names) + 1)]
    episodes = domain_sizes(snapshot).tolist()
    losses, measured = (column.tolist() for column in mean_losses(snapshot))
    targets = domain_targets(strategy, snapshot)
    shares = [
        ReplayShare(
            domain=name,
            episodes=episodes[i],
            episode_share=episodes[i] / max(sum(episodes), 1),
            unmeasured=episodes[i] - measured[i],
            mean_loss=losses[i] if measured[i] else None,
            replays=replays[i],
            replay_share=replays[i] / max(sum(replays), 1),
            target=None if targets is None else float(targets[i]),
        )
        for i, name in enumerate(names)
    ]
    return sorted(shares, key=lambda share: (-share.episodes, share.domain))


def mean_losses(snapshot: Snapshot) -> tuple[Floats, Ints]:
    """Return for each domain the mean of its measured losses (0.0 if there are none), and their number."""
    heads, domains = snapshot.state.blocks.heads, len(snapshot.state.domain_names)
    measured, part = heads["live"] - heads["gaps"].astype(np.int64), heads["domain"] - 1
    totals = np.bincount(part, measured, domains)
    # Each mean gets its share before it is added, so that no sum overflows.
    means = np.bincount(part, heads["mean"] * (measured / np.maximum(totals[part], 1)), domains)
    return means.astype(np.float64), totals.astype(np.int64)


def _last(values: Floats, place: Ints, points: int) -> Floats:
    """Return the largest value at each point. NaN if a point has none."""
    largest = np.full(points, -np.inf)
    np.fmax.at(largest, place, values)
    return np.where(np.isneginf(largest), np.nan, largest)
