"""A memory as a dict of episodes and a list of events: what it must answer, whatever the log and its folds do."""

from __future__ import annotations

import copy
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from memstore import RetentionPolicy
from tests.support.laws import Floats
from tests.support.models import Model


@dataclass(frozen=True)
class Facts:
    """What was given with an episode. ``kind`` is its payload."""

    kind: int
    timestamp: float
    level: int | None
    tags: tuple[str, ...]
    key: str | None


@dataclass(frozen=True)
class Event:
    """One entry of the history. Numbers of events are left out, because a departure may be counted or not."""

    id: int
    domain: str
    what: str
    reason: str | None
    step: int | None
    strategy: str | None
    before: float | None
    after: float | None
    at: float | None = None
    """Time of the event. None for a departure, whose time nothing else tells."""

    group: int = field(default=0, compare=False)
    """Events of one group happened together. Departures that happened together have no order."""


@dataclass
class Replica(Model):
    """``Model``, which evicts by brute force, with everything else that a memory tells. Ids are those of the memory."""

    record: float = 1.0
    max_events: int | None = None
    max_replays: int | None = None
    facts: dict[int, Facts] = field(default_factory=dict)
    lowest: dict[int, float | None] = field(default_factory=dict)
    replayed_at: dict[int, float] = field(default_factory=dict)
    held: dict[int, str] = field(default_factory=dict)
    by_key: dict[str, int] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    replays: int = 0
    tally: Counter[str] = field(default_factory=Counter)
    groups: int = 0
    largest_group: int = 0

    def copy(self) -> Replica:
        """What a savepoint goes back to."""
        made = copy.copy(self)
        made.live = {number: copy.copy(e) for number, e in self.live.items()}
        for name in ("domains", "keys", "facts", "lowest", "replayed_at", "held", "by_key", "events", "tally"):
            setattr(made, name, copy.copy(getattr(self, name)))
        return made

    def extend(self, rows: Sequence[tuple[str, float | None, Facts]]) -> list[int]:
        """Take newcomers in, those with a known key excepted. Returns the id of each row."""
        before, ids, new = dict(self.live), [], []
        for domain, loss, facts in rows:
            if facts.key is not None and facts.key in self.by_key:
                ids.append(self.by_key[facts.key])
                continue
            self.add(domain, loss)
            number = self.inserted
            ids.append(number + self.first)
            new.append((number, domain, loss))
            self.facts[number], self.lowest[number] = facts, loss
            if facts.key is not None:
                self.by_key[facts.key] = number + self.first
        turned = [(number, domain, loss) for number, domain, loss in new if number not in self.live]
        left = [(i, e.domain, e.loss) for i, e in sorted(before.items()) if i not in self.live]
        self._departed(left + turned, "evicted", self.eviction)
        return ids

    def replay(
        self, ids: Sequence[int], losses: Sequence[float], step: int | None, strategy: str | None, at: float | None
    ) -> list[int]:
        """New losses, in order. Returns the ids that were live. ``at`` is what the memory tells of the moment."""
        events, updated = [], []
        for number, loss in zip(ids, losses, strict=True):
            i = number - self.first
            if i not in self.live:
                continue
            updated.append(number)
            episode = self.live[i]
            events.append(Event(number, episode.domain, "replayed", None, step, strategy, episode.loss, loss, at))
            self.update([i], [loss])
            lowest = self.lowest[i]
            self.lowest[i] = loss if lowest is None else min(loss, lowest)
            if at is not None:
                self.replayed_at[i] = at
            if self.record:
                self.tally[episode.domain] += 1
        self.replays += len(updated)
        self._recorded(events)
        if self.max_replays is not None:
            known = {number - self.first for number in updated}
            self.leave([i for i in known if self.live[i].replays >= self.max_replays], "exhausted", "max_replays", step)
        return sorted(set(updated))

    def leave(self, which: Sequence[int], what: str, reason: str | None, step: int | None = None) -> list[int]:
        """Episodes depart, if they are live. ``which`` are numbers, not ids."""
        gone = [(i, self.live[i].domain, self.live[i].loss) for i in sorted(set(which)) if i in self.live]
        self.delete([i for i, _, _ in gone])
        self._departed(gone, what, reason, step)
        return [i for i, _, _ in gone]

    def shrink(self, capacity: int) -> int:
        """Another capacity; shrinking evicts. Returns how many left."""
        before = dict(self.live)
        self.resize(capacity)
        gone = [(i, e.domain, e.loss) for i, e in sorted(before.items()) if i not in self.live]
        self._departed(gone, "resized", self.eviction)
        return len(gone)

    def consolidate(self, policy: RetentionPolicy, now: float) -> dict[str, int]:
        """What ``RetentionPolicy`` says, episode by episode. Counts by reason."""
        value = {i: self._importance(i, policy) for i in sorted(self.live)}
        staying = list(value)
        reasons: dict[str, list[int]] = {"too_old": [], "unimportant": [], "similar": [], "over_count": []}
        for i in list(staying):
            if policy.max_age is not None and self.facts[i].timestamp < now - policy.max_age:
                reasons["too_old"].append(i)
            elif value[i] < (policy.min_importance or 0.0):
                reasons["unimportant"].append(i)
        staying = [i for i in staying if i not in reasons["too_old"] + reasons["unimportant"]]
        if policy.consolidate_similar:
            seen: set[tuple[str, int]] = set()
            for i in sorted(staying, key=lambda i: (-value[i], i)):
                alike = self.live[i].domain, self.facts[i].kind
                if alike in seen:
                    reasons["similar"].append(i)
                seen.add(alike)
            staying = [i for i in staying if i not in reasons["similar"]]
        if policy.max_episodes is not None:
            surplus = max(0, len(staying) - policy.max_episodes)
            reasons["over_count"] = sorted(staying, key=lambda i: (value[i], i))[:surplus]
        for reason, which in reasons.items():
            self.leave(which, "consolidated", reason)
        return {reason: len(which) for reason, which in reasons.items()}

    def rows(self) -> list[dict[str, Any]]:
        """All that is known of each live episode, in id order."""
        found = []
        for i in sorted(self.live):
            episode, facts, lowest = self.live[i], self.facts[i], self.lowest[i]
            assert (episode.loss is None) == (lowest is None)
            found.append(
                {
                    "id": i + self.first,
                    "domain": episode.domain,
                    "timestamp": facts.timestamp,
                    "level": facts.level,
                    "key": facts.key,
                    "extra": {"kind": facts.kind},
                    "age": self.inserted + 1 - i,
                    "loss": episode.loss,
                    "lowest_loss": lowest,
                    "rise": None if episode.loss is None or lowest is None else episode.loss - lowest,
                    "replay_count": episode.replays,
                    "last_replayed_at": self.replayed_at.get(i),
                    "tags": facts.tags,
                }
            )
        return found

    def probability(self, alpha: float) -> dict[int, float]:
        """The law of draws by loss, exactly rounded."""
        loss = self.loss
        log2 = alpha * np.log2(np.where(np.isnan(loss), self.top, loss + self.epsilon))
        weight: Floats = np.exp2(log2 - log2.max())
        total = math.fsum(weight.tolist())
        return {i + self.first: float(w / total) for i, w in zip(sorted(self.live), weight.tolist(), strict=True)}

    def is_recorded(self, number: int) -> bool:
        """Whether the share of recorded episodes holds this one: SplitMix64 of its id, below the share."""
        z = (number * 0x9E3779B97F4A7C15) % 2**64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
        return self.record == 1.0 or ((z ^ (z >> 31)) >> 11) / 2**53 < self.record

    def settle(self, found: list[Event]) -> None:
        """Compare with the history that a memory tells, and take its order over for departures that have none.

        The memory may have forgotten as many of the oldest events as the setting allows.
        """
        kept, most = len(found), len(self.events)
        if self.max_events is None:
            assert kept == most
        else:
            assert kept >= min(most, self.max_events)
            assert kept <= min(most, self.max_events + max(64, self.max_events // 4) + self.largest_group)
        expected = self.events[most - kept :]
        start = 0
        for group, events in itertools.groupby(self.events, key=lambda event: event.group):
            own = list(events)
            start, end = start + len(own), start - (most - kept) + len(own)
            part = found[max(end - len(own), 0) : max(end, 0)]
            if own[0].what == "replayed":
                assert part == own[len(own) - len(part) :]
            else:
                assert {event.id: event for event in own}.items() >= {event.id: event for event in part}.items()
                assert len({event.id for event in part}) == len(part)
            expected[max(end - len(own), 0) : max(end, 0)] = [replace(event, group=group) for event in part]
        self.events = expected

    def _departed(
        self, gone: Sequence[tuple[int, str, float | None]], what: str, reason: str | None, step: int | None = None
    ) -> None:
        self._recorded([Event(i + self.first, domain, what, reason, step, None, x, None) for i, domain, x in gone])
        for i, _, _ in gone:
            self.held.pop(i, None)

    def _recorded(self, events: list[Event]) -> None:
        self.groups += 1
        kept = [replace(event, group=self.groups) for event in events if self.is_recorded(event.id)]
        self.events = self.events + kept
        self.largest_group = max(self.largest_group, len(kept))

    def _importance(self, i: int, policy: RetentionPolicy) -> float:
        loss = self.live[i].loss
        hardness = 1.0 if loss is None else 1 - 1 / (1 + loss)
        recency = float(np.exp2(-(self.inserted - i) / (policy.half_life or self.capacity)))
        use = 1 - 1 / (1 + self.live[i].replays)
        total = policy.hardness * hardness + policy.recency * recency + policy.use * use
        return total / (policy.hardness + policy.recency + policy.use)
