"""How losses and replays went, by domain: from the tally, the strata and the index on loss."""

from __future__ import annotations

from typing import Any

import numpy as np
from sqlalchemy import func, select

from memstore.buffer.snapshot import Snapshot
from memstore.draws.strategy import Strategy
from memstore.draws.targets import domain_targets
from memstore.queries.columns import col
from memstore.queries.query import Query
from memstore.queries.records import EpisodeSummary, LossTrend, ReplayShare
from memstore.storage.schema import UNMEASURED, first_id, replay_tally

_t = replay_tally.c
HARDEST = 100
"""How many of the hardest episodes ``forgotten`` looks at for each one asked for, before it scans ..."""
MOST_LOOKED_AT = 1000
"""... and at most: 1,000 look-ups cost a tenth of a scan of 1M."""


def forgotten(snapshot: Snapshot, n: int) -> list[EpisodeSummary]:
    """Return the episodes whose loss has risen furthest above its lowest, furthest first.

    None can have risen by more than its loss. So the hardest are looked at first, by the index on loss; where they do
    not decide it, the replay metadata is scanned.
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
    slot, domain_id, replays, losses, step, at = (np.array(column) for column in zip(*rows, strict=True))
    step = np.array([np.nan if value is None else float(value) for value in step.tolist()])
    point = (slot - 1) * most // snapshot.state.counters.events
    codes = domain_id - first_id(snapshot.state.buffer_id) if by_domain else np.zeros(len(slot), np.int64)
    trends = []
    for code in np.unique(codes).tolist():
        own = codes == code
        found, place = np.unique(point[own], return_inverse=True)
        count = np.bincount(place, replays[own]).astype(np.int64)
        trends.append(
            LossTrend(
                snapshot.state.domain_names[code - 1] if by_domain else None,
                _last(step[own], place, len(found)),
                _last(at[own], place, len(found)),
                count,
                np.bincount(place, losses[own]) / count,
            )
        )
    return trends


def replay_share(snapshot: Snapshot, strategy: Strategy) -> list[ReplayShare]:
    """Return what each domain has of the episodes and replays, and what the strategy aims at, largest first."""
    names, strata = snapshot.state.domain_names, snapshot.state.strata
    query = select(_t.domain_id, func.sum(_t.replays)).where(_t.buffer_id == snapshot.state.buffer_id)
    first = first_id(snapshot.state.buffer_id) + 1
    replays = np.zeros(len(names))
    for domain_id, count in snapshot.conn.execute(query.group_by(_t.domain_id)):
        replays[domain_id - first] = count
    domain, unknown = strata.domain - 1, strata.bucket == UNMEASURED
    episodes = np.bincount(domain, strata.count, len(names))
    unmeasured = np.bincount(domain[unknown], strata.count[unknown], len(names))
    losses = strata.mean_losses(len(names))
    targets = domain_targets(strategy, snapshot)
    shares = [
        ReplayShare(
            domain=name,
            episodes=int(episodes[i]),
            episode_share=float(episodes[i] / max(episodes.sum(), 1)),
            unmeasured=int(unmeasured[i]),
            mean_loss=float(losses[i]) if episodes[i] > unmeasured[i] else None,
            replays=int(replays[i]),
            replay_share=float(replays[i] / max(replays.sum(), 1)),
            target=None if targets is None else float(targets[i]),
        )
        for i, name in enumerate(names)
    ]
    return sorted(shares, key=lambda share: (-share.episodes, share.domain))


def _last(values: np.ndarray[Any, np.dtype[np.float64]], place: Any, points: int) -> Any:
    largest = np.full(points, -np.inf)
    np.fmax.at(largest, place, values)
    return np.where(np.isneginf(largest), np.nan, largest)
