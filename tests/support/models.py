"""A replay memory as a dict and a loop: slow, obvious, sharing no code with memstore; and random histories of both."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from memstore import EpisodicMemory
from tests.support.laws import Floats, Ints


@dataclass
class Episode:
    """What the laws depend on."""

    domain: str
    loss: float | None
    replays: int = 0


@dataclass
class Model:
    """One buffer. Every newcomer is taken in by itself: what ``extend`` does must not depend on the batch."""

    capacity: int
    eviction: str
    epsilon: float = 1e-6
    seed: int = 0
    first: int = 0
    """Added to the numbers used here it makes ids: memstore's second buffer in a file starts above 2**40, and so on."""
    live: dict[int, Episode] = field(default_factory=dict)
    inserted: int = 0
    highest: float | None = None
    floor: int = -1
    domains: dict[str, int] = field(default_factory=dict)
    keys: dict[int, int] = field(default_factory=dict)

    def add(self, domain: str, loss: float | None) -> None:
        """One newcomer."""
        self.inserted += 1
        self.domains.setdefault(domain, len(self.domains))
        self._measure(loss)
        if self._enters():
            # Under these two nobody displaces itself; under the others the newcomer counts as here already.
            before = self.eviction in ("lowest_loss", "reservoir_loss")
            if before and len(self.live) == self.capacity:
                self._evict(None)
            self.live[self.inserted] = Episode(domain, loss)
            if len(self.live) > self.capacity:
                self._evict(domain)

    def update(self, ids: list[int], losses: list[float]) -> None:
        """New losses; ids no longer live are skipped."""
        for i, loss in zip(ids, losses, strict=True):
            if i in self.live:
                self._measure(loss)
                self.live[i].loss = loss
                self.live[i].replays += 1

    def delete(self, ids: list[int]) -> None:
        """Remove; ids no longer live are skipped."""
        for i in ids:
            self.live.pop(i, None)

    def resize(self, capacity: int) -> None:
        """Another capacity; shrinking evicts."""
        self.capacity = capacity
        while len(self.live) > capacity:
            self._evict(None)

    @property
    def top(self) -> float:
        """Priority of a never-measured episode."""
        return 1.0 if self.highest is None else self.highest

    @property
    def ids(self) -> Ints:
        """Live ids, oldest first."""
        return np.array(sorted(self.live), np.int64)

    @property
    def loss(self) -> Floats:
        """Losses in the order of ``ids``, NaN where never measured."""
        losses = [self.live[i].loss for i in sorted(self.live)]
        return np.array([math.nan if loss is None else loss for loss in losses])

    @property
    def domain(self) -> list[str]:
        """Domains in the order of ``ids``."""
        return [self.live[i].domain for i in sorted(self.live)]

    @property
    def age(self) -> Ints:
        """Insertions since, in the order of ``ids``: the newest ever has age 1."""
        return self.inserted + 1 - self.ids

    def key(self, number: int) -> int:
        """63 bits of block ``number`` of a Philox stream."""
        if number not in self.keys:
            self.keys[number] = int(np.random.Philox(key=self.seed, counter=number).random_raw()) >> 1
        return self.keys[number]

    def _measure(self, loss: float | None) -> None:
        if loss is not None:
            self.highest = max(self.highest or 0.0, loss + self.epsilon)

    def _enters(self) -> bool:
        if self.eviction == "reservoir":
            return self.key(self.inserted) > self.floor
        if self.eviction == "reservoir_loss" and len(self.live) >= self.capacity:
            return self.key(self.inserted) / 2**63 < self.capacity / self.inserted
        return True

    def _evict(self, newcomer: str | None) -> None:
        if self.eviction == "fifo":
            leaves = min(self.live)
        elif self.eviction == "reservoir":
            leaves = min(self.live, key=self.key)
            self.floor = self.key(leaves)
        elif self.eviction == "largest_domain":
            held = Counter(e.domain for e in self.live.values())
            sizes = {name: held[name] for name in self.domains}
            # Of equally large ones the newcomer's own, else the one that came first.
            name = max(sizes, key=lambda d: (sizes[d], d == newcomer, -self.domains[d]))
            leaves = min(i for i, e in self.live.items() if e.domain == name)
        else:
            measured = [(e.loss, i) for i, e in self.live.items() if e.loss is not None]
            leaves = min(measured)[1] if measured else min(self.live)
        del self.live[leaves]


def random_loss(rng: np.random.Generator, *, tame: bool = False) -> float | None:
    """None, zero, a tie, or anything over twelve orders of magnitude; tame: seldom None, and within two orders."""
    kind = rng.choice(["none", "tie", "wide", "usual"], p=[0.08, 0.1, 0.0, 0.82] if tame else [0.2, 0.2, 0.2, 0.4])
    if kind == "none":
        return None
    if kind == "tie":
        return float(rng.integers(3))
    return float(10 ** rng.uniform(-6, 6)) if kind == "wide" else float(rng.lognormal(0, 0.7))


def new_loss(rng: np.random.Generator, loss: float | None, *, tame: bool = False) -> float:
    """What an update may bring: the same, a rise, a fall within a bucket or two, a fall by many, zero."""
    if loss is None:
        return float(rng.lognormal(0, 0.7))
    rise = 1 + 1 / (0.1 + loss) if tame else 30.0
    return float(loss * rng.choice([1.0, 0.8, 0.55, 1e-3, 1.1, rise, 0.0], p=[0.1, 0.3, 0.2, 0.1, 0.15, 0.1, 0.05]))


def payload(count: int) -> dict[str, Any]:
    """Something to store."""
    return {"x": np.zeros(count, np.float32)}


def act(memory: EpisodicMemory, model: Model, rng: np.random.Generator, *, tame: bool = False) -> None:
    """One random change, made to both."""
    kind = rng.choice(["add", "extend", "update", "delete"], p=[0.2, 0.4, 0.3, 0.1])
    if kind == "add":
        domain, loss = f"d{rng.integers(4)}", random_loss(rng, tame=tame)
        memory.add({"x": np.float32(0)}, domain=domain, loss=loss)
        model.add(domain, loss)
    elif kind == "extend":
        count = int(rng.integers(1, 40))
        names = [f"d{i}" for i in rng.integers(4, size=count)]
        losses = [random_loss(rng, tame=tame) for _ in names]
        memory.extend(payload(count), domain=names, loss=losses)
        for domain, loss in zip(names, losses, strict=True):
            model.add(domain, loss)
    elif model.inserted:
        # Mostly live ones, some evicted long ago, some given twice.
        ids = rng.integers(1, model.inserted + 1, size=rng.integers(1, 12))
        if model.live:
            ids = np.concatenate([ids, rng.choice(model.ids, size=rng.integers(1, 40))])
        if kind == "delete":
            ids = ids[-5:]
            memory.delete(ids + model.first)
            model.delete(ids.tolist())
        else:
            before = [model.live[i].loss if i in model.live else None for i in ids.tolist()]
            after = [new_loss(rng, loss, tame=tame) for loss in before]
            memory.update(ids + model.first, loss=after)
            model.update(ids.tolist(), after)
