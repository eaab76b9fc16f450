"""New losses. Replays are appended to the log, then applied to the blocks.

``update`` calls ``append`` and ``fold`` in one transaction. Code outside of this module must not rely on that.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.blocks.copy import Found
from memstore.buffer.blocks.slots import Floats, Ints, distinct
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.episodes.insert import remove
from memstore.episodes.log import Group, log, repeats, tally


@dataclass(frozen=True, slots=True)
class Replay:
    """The losses that were measured in one step, one for each id.

    ``probability``, ``weight`` and ``domain`` are those of the draw. They are None if the ids do not come from a draw.
    """

    ids: Ints
    loss: Floats
    probability: Floats | None = None
    weight: Floats | None = None
    domain: NDArray[np.str_] | None = None

    def take(self, which: NDArray[np.bool_]) -> Replay:
        """Return the replays at these places."""
        probability, weight = (None if v is None else v[which] for v in (self.probability, self.weight))
        domain = None if self.domain is None else self.domain[which]
        return Replay(self.ids[which], self.loss[which], probability, weight, domain)


def update(snapshot: Snapshot, group: Group, replay: Replay) -> tuple[Ints, Ints]:
    """Record the replays of live episodes and give them their new losses.

    An id that comes twice is two replays, and its last loss stays. An episode that reaches ``max_replays`` leaves.

    Returns
    -------
    tuple of int64 arrays
        The updated ids, and the ids that are not live. Both are sorted and without repetition.
    """
    rows, place = snapshot.matched(replay.ids, replay.domain)
    missing = place < 0
    strangers = distinct(replay.ids[missing])
    if len(strangers):
        replay, place = replay.take(~missing), place[~missing]
    again, earlier = repeats(place)
    before = rows.loss[place]
    before[again] = replay.loss[earlier]
    numbers = append(snapshot, group, replay, rows, place, before)
    snapshot.state.counters.measured(replay.loss, snapshot.settings.epsilon)
    fold(snapshot, rows, place, replay.loss, numbers, group.at)
    limit = snapshot.settings.max_replays
    if limit is not None:
        exhausted = snapshot.find(rows.ids[rows.replay_count + np.bincount(place, minlength=len(rows)) >= limit])
        remove(snapshot, (exhausted, group._replace(what="exhausted", reason="max_replays", strategy=None)))
    return rows.ids, strangers


def append(snapshot: Snapshot, group: Group, replay: Replay, rows: Rows, place: Ints, before: Floats) -> Ints:
    """Log one event for each replay, in the order given, and return the last recorded events, as ``log`` does.

    ``place`` is the row of each replay. ``before`` is the loss before the replay, NaN if never measured.
    """
    domains = rows.domain[place]
    tally(snapshot, group, domains, replay.loss)
    columns = {
        "domain": domains,
        "loss_before": before,
        "loss_after": replay.loss,
        "probability": replay.probability,
        "weight": replay.weight,
        "previous_id": rows.last_event[place],
        "nth": rows.replay_count[place] + _rank(place) + 1,
    }
    snapshot.state.counters.events += len(replay.ids)
    return log(snapshot, group, replay.ids, columns)


def _rank(place: Ints) -> Ints:
    """Return how many replays of the same row come before each replay."""
    rank = np.zeros(len(place), np.int64)
    for at, before in zip(*repeats(place), strict=True):  # usually there are none
        rank[at] = rank[before] + 1
    return rank


def fold(snapshot: Snapshot, rows: Rows, place: Ints, loss: Floats, numbers: Ints, at: float) -> None:
    """Apply replays to the blocks. The last loss of each row stays.

    Parameters
    ----------
    snapshot : Snapshot
    rows : Rows
        Live rows, each once, in id order. Each row has a replay.
    place, loss, numbers : arrays, shape (n,)
        Row, loss and last recorded event of each replay, in the order of the replays. The number is 0 if there is none.
    at : float
        Time of the replays, in seconds.
    """
    if not len(rows):
        return
    snapshot.state.counters.live_replays += len(place)
    last, lowest, last_event = np.empty(len(rows)), np.full(len(rows), np.inf), np.zeros(len(rows), np.int64)
    last[place] = loss
    np.minimum.at(lowest, place, loss)
    np.maximum.at(last_event, place, numbers)
    count = rows.replay_count + np.bincount(place, minlength=len(rows))
    blocks = snapshot.state.blocks
    snapshot.state.blocks = blocks.patched(Found(blocks, rows.places), last, count, last_event, lowest, at)
