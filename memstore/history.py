"""Losses are a log, replay metadata its fold.

``append`` records what was replayed; ``fold`` applies losses to metadata and strata. ``update`` calls one after the
other in one transaction; nothing above this module may assume that they always will be so close.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memstore.episodes import remove
from memstore.schema import first_id, replay_event, replay_metadata
from memstore.snapshot import Rows, Snapshot
from memstore.strata import FALL_BEFORE_MOVE, Floats, Ints, bucket_of, write_positions


@dataclass(frozen=True, slots=True)
class Replay:
    """Who replayed, when and how: what the events of one update share."""

    at: float
    step: int | None
    consumer: str | None
    strategy: str | None


def update(snapshot: Snapshot, replay: Replay, ids: Ints, loss: Floats) -> tuple[Ints, Ints]:
    """Record the replays of live episodes and give them their new losses; returns the ids updated and missing.

    An id given twice is two replays; its last loss stays.
    """
    distinct = np.unique(ids)
    rows = snapshot.find(distinct)
    live = np.isin(ids, rows.ids)
    ids, loss = ids[live], loss[live]
    place = np.searchsorted(rows.ids, ids)
    order = np.argsort(place, kind="stable")
    again = np.flatnonzero(place[order][1:] == place[order][:-1]) + 1
    before = rows.loss[place]
    before[order[again]] = loss[order[again - 1]]
    append(snapshot, replay, ids, before, loss)
    snapshot.state.counters.measured(loss, snapshot.settings.epsilon)

    last = np.empty(len(rows))
    last[place] = loss
    replays = np.bincount(place, minlength=len(rows))
    fold(snapshot, rows, last, replays, replay.at)
    limit = snapshot.settings.max_replays
    if limit is not None:
        remove(snapshot, snapshot.find(rows.ids[rows.replay_count + replays >= limit]))
    return rows.ids, np.setdiff1d(distinct, rows.ids)


def append(snapshot: Snapshot, replay: Replay, ids: Ints, before: Floats, after: Floats) -> None:
    """Record one event per replayed episode, numbered in the order given; NaN before means never measured."""
    counters = snapshot.state.counters
    first = first_id(snapshot.state.buffer_id) + counters.events + 1
    count = len(ids)
    counters.events += count
    columns = {
        "id": list(range(first, first + count)),
        "episode_id": ids.tolist(),
        "at": [replay.at] * count,
        "step": [replay.step] * count,
        "consumer": [replay.consumer] * count,
        "strategy": [replay.strategy] * count,
        "loss_before": [None if loss != loss else loss for loss in before.tolist()],
        "loss_after": after.tolist(),
    }
    snapshot.backend.insert(snapshot.conn, replay_event, columns)


def fold(snapshot: Snapshot, rows: Rows, loss: Floats, replays: Ints, at: float) -> None:
    """Set the losses of live rows (each once, in id order), and move those whose stratum no longer fits.

    A row moves when its priority rose above its stratum's bound, which must hold, or fell ``FALL_BEFORE_MOVE`` buckets
    below it; so most updates touch no entry of the sampling index.
    """
    state, settings = snapshot.state, snapshot.settings
    strata = state.strata
    if not len(rows):
        return
    state.counters.live_replays += int(replays.sum())

    wanted, standing = bucket_of(loss, settings.epsilon), strata.bucket[rows.stratum]
    # A never-measured stratum lies below every bucket, so leaving it is a rise too.
    moving = (wanted > standing) | (wanted <= standing - FALL_BEFORE_MOVE)
    target = rows.stratum.copy()
    target[moving] = strata.find(strata.domain[rows.stratum[moving]], wanted[moving])
    movers = rows.take(moving)
    position = rows.position.copy()
    position[moving], displaced, displaced_to = strata.rearrange(
        snapshot.conn, snapshot.backend, (movers.stratum, movers.position), target[moving]
    )
    strata.account(rows.stratum, rows.loss, settings.epsilon, settings.alpha, -1)
    strata.account(target, loss, settings.epsilon, settings.alpha, +1)

    columns = {
        "episode_id": rows.ids,
        "loss": loss,
        "replay_count": rows.replay_count + replays,
        "last_replayed_at": np.full(len(rows), at),
    }
    places = {"stratum_id": strata.ids(target), "position": position}
    write_positions(snapshot.conn, snapshot.backend, displaced, displaced_to)
    for which, written in ((~moving, columns), (moving, columns | places)):
        if which.any():
            chosen = {name: values[which].tolist() for name, values in written.items()}
            snapshot.backend.update(snapshot.conn, replay_metadata, "episode_id", chosen)
