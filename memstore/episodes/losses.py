"""New losses: what was replayed is appended to the log, then applied to the replay metadata and the strata.

``update`` calls ``append`` and ``fold`` in one transaction. Code outside of this module must not rely on that.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.snapshot import Rows, Snapshot
from memstore.buffer.strata import FALL_BEFORE_MOVE, Floats, Ints, bucket_of, write_positions
from memstore.episodes.insert import remove
from memstore.episodes.log import Group, record, repeats, tally
from memstore.storage.schema import replay_metadata


@dataclass(frozen=True, slots=True)
class Replay:
    """Losses measured in one step, one for each id.

    ``probability`` and ``weight`` are those of the draw, None if the ids were not drawn.
    """

    ids: Ints
    loss: Floats
    probability: Floats | None = None
    weight: Floats | None = None

    def take(self, which: NDArray[np.bool_]) -> Replay:
        """Return the replays at these places."""
        drawn = (None if values is None else values[which] for values in (self.probability, self.weight))
        return Replay(self.ids[which], self.loss[which], *drawn)


def update(snapshot: Snapshot, group: Group, replay: Replay) -> tuple[Ints, Ints]:
    """Record the replays of live episodes and give them their new losses.

    An id that comes twice is two replays; its last loss stays. An episode that reaches ``max_replays`` leaves.

    Returns
    -------
    tuple of int64 arrays
        Ids that were updated, and ids that are not live, each sorted and without repetition.
    """
    distinct = np.unique(replay.ids)
    rows = snapshot.find(distinct)
    replay = replay.take(np.isin(replay.ids, rows.ids))
    ids, loss = replay.ids, replay.loss
    place = np.searchsorted(rows.ids, ids)
    before = rows.loss[place]
    again, earlier = repeats(ids)
    before[again] = loss[earlier]
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
    """Record one event for each replay, in the order given; returns their numbers.

    ``place`` is the row of each replay. ``before`` is the loss before it, NaN if never measured.
    """
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
    """What the replays of each row come to: last and smallest loss, number of replays, last recorded event."""

    loss: Floats
    lowest: Floats
    replays: Ints
    last_event: Ints


def fold(snapshot: Snapshot, rows: Rows, folded: Folded, at: float) -> None:
    """Set the losses of live rows (each once, in id order), and move rows that no longer fit their stratum.

    A priority above the bound of the stratum must move its row. One below moves it only if it fell by
    ``FALL_BEFORE_MOVE`` buckets, so most updates touch no entry of the sampling index.
    """
    state, settings = snapshot.state, snapshot.settings
    strata, loss = state.strata, folded.loss
    if not len(rows):
        return
    state.counters.live_replays += int(folded.replays.sum())

    wanted, standing = bucket_of(loss, settings.epsilon), strata.bucket[rows.stratum]
    # The stratum of never-measured episodes lies below every bucket, so leaving it is a rise too.
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
