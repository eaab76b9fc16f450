"""All rows of the log that are there, as arrays: in the order of their numbers, and episode by episode."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.blocks.slots import Flags, Ints
from memstore.buffer.snapshot import Snapshot
from memstore.episodes.log import EVENT, GROUP
from memstore.storage import stored
from memstore.storage.schema import event_group, replay_event

GROUPS, EVENTS = 4096, 65536
"""So many rows are read at a time."""

_GROUP = (*GROUP, "checksum", "recorded", "unrecorded")
_EVENT = (*EVENT, "ends", "nth", "unrecorded", "group_id")


@dataclass(frozen=True)
class Log:
    """The columns of all events that are there, and the rows of their groups, both in the order of their numbers."""

    events: dict[str, NDArray[Any]]
    groups: list[dict[str, Any]]

    @classmethod
    def read(cls, snapshot: Snapshot) -> Log:
        """Read all that is there."""
        pages = [stored.arrays(replay_event, _EVENT, [])]
        pages += (stored.arrays(replay_event, _EVENT, rows) for rows in snapshot.pages(replay_event, _EVENT, EVENTS))
        columns = map(np.concatenate, zip(*pages, strict=True))
        groups = (row for rows in snapshot.pages(event_group, _GROUP, GROUPS) for row in rows)
        return cls(dict(zip(_EVENT, columns, strict=True)), [dict(zip(_GROUP, row, strict=True)) for row in groups])

    def __len__(self) -> int:
        return len(self.events["id"])

    @property
    def recorded(self) -> Flags:
        """Flags of the events that the history records."""
        recorded: Flags = self.events["unrecorded"] == 0
        return recorded

    @property
    def replayed(self) -> Flags:
        """Flags of the replays, if the groups have all events."""
        replayed: Flags = self.each("what") == "replayed"
        return replayed

    def events_of(self, group: dict[str, Any]) -> dict[str, NDArray[Any]]:
        """Return the columns of the events that the group should have by their numbers."""
        start, end = np.searchsorted(self.events["id"], (group["id"], group["id"] + group["count"]))
        return {name: values[start:end] for name, values in self.events.items()}

    def each(self, name: str) -> NDArray[Any]:
        """Return for each event what its group has in this column, if the groups have all events."""
        counts = np.array([group["count"] for group in self.groups], np.int64)
        return np.repeat(np.array([group[name] for group in self.groups], object), counts)


@dataclass(frozen=True)
class Chains:
    """All events, those of an episode one after the other. The columns come in this order."""

    log: Log

    @cached_property
    def order(self) -> Ints:
        """The places of the events in the log."""
        return np.argsort(self.log.events["episode_id"], kind="stable")

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.log.events[name][self.order]

    @cached_property
    def follows(self) -> Flags:
        """Flags of the events that follow an event of the same episode."""
        follows: Flags = np.diff(self["episode_id"], prepend=-1) == 0
        return follows

    @cached_property
    def start(self) -> Ints:
        """The place of the first event of the same episode."""
        return np.maximum.accumulate(np.where(self.follows, 0, np.arange(len(self.log))))

    def rank(self, flags: Flags) -> Ints:
        """Return how many events of the same episode have the flag, up to each event and with it."""
        so_far = np.cumsum(flags)
        rank: Ints = so_far - (so_far - flags)[self.start]
        return rank

    @cached_property
    def before(self) -> Ints:
        """The number of the last recorded event of the same episode before each event. 0 if it is not there."""
        places = np.arange(len(self.log))
        last = np.maximum.accumulate(np.where(self.log.recorded[self.order], places, -1))
        last = np.concatenate([[-1], last[:-1]]).astype(np.int64)[: len(places)]
        found: Ints = np.where(last >= self.start, self["id"][last], 0)
        return found

    @cached_property
    def ends(self) -> Flags:
        """Flags of the recorded events after which no recorded event of the same episode comes."""
        recorded = self.log.recorded[self.order]
        ends: Flags = recorded & ~np.isin(self["id"], self.before[recorded])
        return ends
