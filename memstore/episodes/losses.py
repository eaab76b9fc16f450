"""Losses are a log, replay metadata its fold.

``append`` records what was replayed; ``fold`` applies losses to metadata and strata. ``update`` calls one after the
other in one transaction; nothing above this module may assume that they always will be so close.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.snapshot import Rows, Snapshot
from memstore.buffer.strata import FALL_BEFORE_MOVE, Floats, Ints, bucket_of, write_positions
from memstore.episodes.insert import remove
from memstore.episodes.log import Group, record, tally
from memstore.storage.schema import replay_metadata


@dataclass(frozen=True, slots=True)
class Replay:
    """Losses measured in one step, one for each id, with what the draw said of them where there was one."""

    ids: Ints
    loss: Floats
    probability: Floats | None = None
    weight: Floats | None = None

    def take(self, which: NDArray[np.bool_]) -> Replay:
        """The replays at these places."""
        drawn = (None if values is None else values[which] for values in (self.probability, self.weight))
        return Replay(self.ids[which], self.loss[which], *drawn)


def update(snapshot: Snapshot, group: Group, replay: Replay) -> tuple[Ints, Ints]:
    """Record the replays of live episodes and give them their new losses; returns the ids updated and missing.

    An id given twice is two replays; its last loss stays.
    """
    distinct = np.unique(replay.ids)
    rows = snapshot.find(distinct)
    replay = replay.take(np.isin(replay.ids, rows.ids))
    ids, loss = replay.ids, replay.loss
    place = np.searchsorted(rows.ids, ids)
    order = np.argsort(place, kind="stable")
    again = np.flatnonzero(place[order][1:] == place[order][:-1]) + 1
    before = rows.loss[place]
    before[order[again]] = loss[order[again - 1]]
    numbers = append(snapshot, group, replay, rows, place, before)
    snapshot.state.counters.measured(loss, snapshot.settings.epsilon)

    last, lowest, last_event = np.empty(len(rows)), np.full(len(rows), np.inf), rows.last_event.copy()
    last[place] = loss
    np.minimum.at(lowest, place, loss)
    np.maximum.at(last_event, place, numbers)
    replays = np.bincount(place, minlength=len(rows))
    fold(snapshot, rows, Folded(last, lowest, replays, last_event), group.at)
    limit = snapshot.settings.max_replays
    if limit is not None:
        exhausted = snapshot.find(rows.ids[rows.replay_count + replays >= limit])
        remove(snapshot, (exhausted, replace(group, what="exhausted", reason="max_replays", strategy=None)))
    return rows.ids, np.setdiff1d(distinct, rows.ids)


def append(snapshot: Snapshot, group: Group, replay: Replay, rows: Rows, place: Ints, before: Floats) -> Ints:
    """Record one event per replay, in the order given; ``place`` is its row, NaN before means never measured."""
    domains = snapshot.state.strata.domain[rows.stratum][place]
    tally(snapshot, group, domains, replay.loss)
    columns = {
        "domain": domains,
        "loss_before": before,
        "loss_after": replay.loss,
        "probability": replay.probability,
        "weight": replay.weight,
        "previous_id": rows.last_event[place],
    }
    snapshot.state.counters.events += len(replay.ids)
    return record(snapshot, group, replay.ids, columns)


@dataclass(frozen=True, slots=True)
class Folded:
    """What events come to, for each row: the last and the smallest loss, how many, the last one recorded."""

    loss: Floats
    lowest: Floats
    replays: Ints
    last_event: Ints


def fold(snapshot: Snapshot, rows: Rows, folded: Folded, at: float) -> None:
    """Set the losses of live rows (each once, in id order), and move those whose stratum no longer fits.

    A row moves when its priority rose above its stratum's bound, which must hold, or fell ``FALL_BEFORE_MOVE`` buckets
    below it; so most updates touch no entry of the sampling index.
    """
    state, settings = snapshot.state, snapshot.settings
    strata, loss = state.strata, folded.loss
    if not len(rows):
        return
    state.counters.live_replays += int(folded.replays.sum())

    wanted, standing = bucket_of(loss, settings.epsilon), strata.bucket[rows.stratum]
    # A never-measured stratum lies below every bucket, so leaving it is a rise too.
    moving = (wanted > standing) | (wanted <= standing - FALL_BEFORE_MOVE)
    target = rows.stratum.copy()
    target[moving] = strata.ensure(strata.domain[rows.stratum[moving]], wanted[moving])
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
        "lowest_loss": folded.lowest,
        "replay_count": rows.replay_count + folded.replays,
        "last_replayed_at": np.full(len(rows), at),
        "last_event_id": folded.last_event,
    }
    places = {"stratum_id": strata.ids(target), "position": position}
    write_positions(snapshot.conn, snapshot.backend, displaced, displaced_to)
    for which, written in ((~moving, columns), (moving, columns | places)):
        if which.any():
            chosen = {name: values[which].tolist() for name, values in written.items()}
            chosen["last_event_id"] = [number or None for number in chosen["last_event_id"]]
            snapshot.backend.update(snapshot.conn, replay_metadata, "episode_id", chosen, least="lowest_loss")
