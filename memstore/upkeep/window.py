"""The log since the fold, laid over the tables: what they mean now, computed without the blocks and without SQL."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from memstore.buffer.blocks.slots import Floats, Ints, Slots, among
from memstore.buffer.snapshot import NO_PLACE, Rows, Snapshot
from memstore.buffer.tail import NO_COUNT, Point, Tail
from memstore.storage import stored
from memstore.storage.schema import episode, replay_metadata


@dataclass(frozen=True)
class Window:
    """The log since the fold, and the tables of one buffer. Each part is read when it is needed first."""

    snapshot: Snapshot

    @cached_property
    def tail(self) -> Tail:
        """The entries of the log since the fold."""
        snapshot, counters = self.snapshot, self.snapshot.state.counters
        folded = Point(counters.folded_inserted, counters.folded_logged, 0)
        return Tail.read(snapshot.conn, snapshot.backend, snapshot.state.buffer_id, folded, counters.head)

    @property
    def departed(self) -> Ints:
        """The episodes that entered and have left since the fold. Their rows may wait for deletion."""
        events = self.tail.events
        left: Ints = events.episodes[events.ends & (events.count != NO_COUNT)]
        return left

    @cached_property
    def facts(self) -> tuple[Ints, Ints, Floats]:
        """The columns of table ``episode``: ids, domains within the buffer, losses at the add (NaN if unknown)."""
        names = ("id", "domain_id", "loss_at_add")
        ids, domains, born = stored.arrays(episode, names, self.snapshot.rows(episode, names))
        return ids, domains - self.snapshot.first_id, born

    @cached_property
    def base(self) -> Rows:
        """The replay metadata as they are stored. The domain is 0 for an episode without facts."""
        names = ("episode_id", "loss", "lowest_loss", "replay_count", "last_event_id", "last_replayed_at")
        ids, loss, lowest, count, event, at = stored.arrays(
            replay_metadata, names, self.snapshot.rows(replay_metadata, names)
        )
        described, domains, _ = self.facts
        known, place = among(ids, described)
        of = np.where(known, domains[place], 0) if len(described) else np.zeros_like(ids)
        return Rows.of(Slots(ids, loss, lowest, count, event, at), of)

    def rows(self) -> Rows:
        """Return the live rows in id order: the base, the newcomers, and the replays and departures of both."""
        new, events = self.tail.newcomers, self.tail.events
        none, unknown = np.zeros(len(new), np.int64), np.full(len(new), np.nan)
        nowhere = np.full(len(new), NO_PLACE)
        came = Rows(new.ids, new.loss, new.loss.copy(), none, new.domains, none.copy(), unknown, nowhere)
        rows = Rows.join([self.base, came.take(~np.isin(new.ids, self.base.ids))])
        rows = rows.take(np.argsort(rows.ids))
        known, place = among(events.episodes, rows.ids)
        replays = known & ~events.ends
        place = place[replays]
        # The events are in the order of their numbers, and of assignments to the same place the last one stays.
        rows.loss[place], rows.replay_count[place] = events.loss[replays], events.count[replays]
        rows.last_replayed_at[place] = events.at[replays]
        rows.last_event[place] = np.where(events.unrecorded, events.previous, events.ids)[replays]
        np.fmin.at(rows.lowest, place, events.loss[replays])
        return rows.take(~np.isin(rows.ids, self.departed))
