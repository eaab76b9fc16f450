"""A buffer as a dict: slow, obvious, and with no code of memstore's; and programs that run on both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import HEAD, Directory, Heads, describe, head_rows, least_keys, own
from memstore.buffer.blocks.pages import opened
from memstore.buffer.blocks.slots import Flags, Floats, Ints, Slots, sealed, unsealed
from memstore.buffer.blocks.views import View
from memstore.buffer.blocks.weights import Law
from memstore.draws.weighted import Masses

TOKEN = 2**64 - 3

OWN = Law(0.6, 1e-6)
"""The law of the copies here, if nothing else is said."""


@dataclass(frozen=True)
class LossAbove:
    """Measured, and above a limit."""

    limit: float

    def passing(self, slots: Slots, domains: Ints) -> Flags:
        above: Flags = slots.loss > self.limit
        return above

    def reach(self, heads: Heads) -> tuple[Flags, Flags]:
        return heads["largest"] > self.limit, (heads["least"] > self.limit) & (heads["gaps"] == 0)


def log2_probability(view: View, top: float, slots: Slots) -> Floats:
    """Base-2 logarithms of the probabilities of a first draw, for slots that the view allows."""
    assert view.law is not None
    log2 = view.law.log2(slots.loss)
    log2[np.isnan(log2)] = view.law.log2_unmeasured(top)
    probability: Floats = log2 - Masses.of(view, top).log2_total
    return probability


@dataclass
class Episode:
    """One live episode."""

    domain: int
    loss: float
    lowest: float
    count: int = 0
    event: int = 0
    at: float = math.nan


@dataclass
class Model:
    """Live episodes by id, and the counters of the log."""

    live: dict[int, Episode] = field(default_factory=dict)
    inserted: int = 0
    events: int = 0

    def copy(self) -> Model:
        """An independent copy."""
        return Model({number: replace(e) for number, e in self.live.items()}, self.inserted, self.events)

    def domains_of(self, ids: Ints) -> Ints:
        """Domains, 0 for what is not live."""
        return np.array([self.live[i].domain if i in self.live else 0 for i in ids.tolist()], np.int64)

    def weights(self, alpha: float, epsilon: float, top: float) -> dict[int, float]:
        """Base-2 logarithm of each weight."""
        return {
            number: alpha * math.log2(top if math.isnan(e.loss) else e.loss + epsilon)
            for number, e in self.live.items()
        }


def law_of(log2: dict[int, float]) -> dict[int, float]:
    """Probabilities of a first draw."""
    top = max(log2.values())
    total = math.fsum(2.0 ** (x - top) for x in log2.values())
    return {number: 2.0 ** (x - top) / total for number, x in log2.items()}


def random_losses(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Losses of every size: ordinary ones mostly, and some that are extreme, equal, zero, or not there."""
    loss = rng.lognormal(0, 2, count)
    odd = np.array([np.nan, 0.0, -0.0, 1.0, 1e-300, 1e12, 1e308, 5e-324])
    which = rng.random(count) < 0.4
    loss[which] = rng.choice(odd, int(which.sum()))
    return loss


def some(rng: np.random.Generator, model: Model, most: int) -> Ints:
    """Ids, live mostly, some of them twice, and some that left or never came."""
    ids = np.array(sorted(model.live), np.int64)
    count = int(rng.integers(1, most + 1))
    strangers = rng.integers(1, model.inserted + 3, max(count // 8, 1))
    return np.concatenate([rng.choice(ids, count) if len(ids) else ids, strangers])


def add(rng: np.random.Generator, copy: Copy, model: Model, count: int, domains: int) -> Copy:
    """Append newcomers."""
    ids = np.arange(model.inserted + 1, model.inserted + count + 1)
    domain, loss = rng.integers(1, domains + 1, count), random_losses(rng, count)
    model.inserted += count
    for number, of, value in zip(ids.tolist(), domain.tolist(), loss.tolist(), strict=True):
        model.live[number] = Episode(of, value + 0.0, value + 0.0)
    return copy.appended(ids, domain, loss)


def replay(rng: np.random.Generator, copy: Copy, model: Model, most: int) -> Copy:
    """Give losses, in an order that is not that of the events."""
    ids = some(rng, model, most)
    loss = random_losses(rng, len(ids))
    loss[np.isnan(loss)] = 2.5
    count, event = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    lowest, when = loss.copy(), float(model.events)
    domains = model.domains_of(ids)
    for at, number in enumerate(ids.tolist()):
        model.events += 1
        if number in model.live:
            e = model.live[number]
            e.loss, e.count, e.event, e.at = float(loss[at]) + 0.0, e.count + 1, model.events, when
            e.lowest = float(np.fmin(e.lowest, e.loss))
            count[at], event[at], lowest[at] = e.count, e.event, e.lowest
    order = rng.permutation(len(ids))
    found = copy.locate(ids[order], domains[order])
    assert found.live.tolist() == [number in model.live for number in ids[order].tolist()]
    return copy.patched(found, loss[order], count[order], event[order], lowest[order], when)


def leave(rng: np.random.Generator, copy: Copy, model: Model, most: int) -> Copy:
    """Let episodes depart."""
    ids = some(rng, model, most)
    gone = copy.departed(copy.locate(ids, model.domains_of(ids)))
    for number in ids.tolist():
        model.live.pop(number, None)
    return gone


def leave_until(rng: np.random.Generator, copy: Copy, model: Model) -> Copy:
    """Let the oldest depart, of all domains or of one."""
    ids = sorted(model.live)
    watermark = ids[min(int(rng.integers(0, 12)), len(ids) - 1)] if ids else 0
    domain = int(rng.integers(1, 4)) if rng.random() < 0.5 else None
    for number in ids:
        if number <= watermark and domain in (None, model.live[number].domain):
            del model.live[number]
    return copy.departed_until(watermark, domain)


def step(rng: np.random.Generator, copy: Copy, model: Model, domains: int = 3, scale: int = 1) -> Copy:
    """Do one thing at random."""
    match int(rng.integers(0, 12)):
        case 0 | 1 | 2 | 3:
            return add(rng, copy, model, int(rng.integers(1, 14 * scale)), domains)
        case 4 | 5 | 6 | 7:
            return replay(rng, copy, model, 16 * scale)
        case 8 | 9:
            return leave(rng, copy, model, 9 * scale)
        case 10:
            return leave_until(rng, copy, model)
        case _:
            return copy.merged()


def slots_of(copy: Copy) -> tuple[Slots, Ints]:
    """All slots in the order of blocks, and the domain of each."""
    found = copy.open(np.arange(len(copy)))
    return found.slots, copy.domains[found.ordinal]


def rebuilt(copy: Copy) -> Copy:
    """The same blocks from what is stored of them, with heads made anew from the contents."""
    stored = cold(copy)
    heads = head_rows(copy.heads["name"], copy.heads["domain"])
    heads["put"] = copy.heads["put"]
    found = opened(np.arange(len(copy)), stored.fetch(copy.heads))
    again = Copy.of(copy.pages.law, fetch=stored.fetch, key_of=copy.key_of)
    describe(heads, found, again.pages)
    if copy.key_of is not None:
        heads["key"] = least_keys(found, copy.key_of)
    again = replace(again, heads=heads, page=np.full(len(heads), -1), directory=Directory.of(heads))
    again.open(np.arange(len(again)))
    return again


def cold(copy: Copy) -> Copy:
    """The same copy with nothing in memory: every content is read when it is needed, from its stored form."""
    names, domains = copy.heads["name"], copy.domains
    contents = copy.open(np.arange(len(copy))).contents()
    parts = zip(contents, names.tolist(), domains.tolist(), strict=True)
    read = unsealed([sealed(*part, TOKEN) for part in parts], names, domains, [TOKEN] * len(copy))
    stored = dict(zip(names.tolist(), read, strict=True))

    def fetch(heads: Heads) -> list[bytes]:
        return [stored[name] for name in heads["name"].tolist()]

    heads = own(copy.heads)
    heads["token"] = TOKEN - 2**64
    return Copy.of(copy.pages.law, heads, fetch=fetch, key_of=copy.key_of)


def in_memory(copy: Copy) -> int:
    """How many contents are in memory."""
    return int((copy.page >= 0).sum())


def same_heads(one: Heads, other: Heads) -> bool:
    """True if all but stamps and tokens are equal, bit for bit."""
    names = [name for name in HEAD.names or () if name not in ("stamp", "token")]
    return all(one[name].tobytes() == other[name].tobytes() for name in names)


def check(copy: Copy, model: Model) -> None:
    """The copy holds what the model holds, and each head and place is what follows from the contents."""
    slots, domains = slots_of(copy)
    live = sorted(model.live.items())
    order = np.argsort(slots.ids)
    assert slots.ids[order].tolist() == [number for number, _ in live]
    for column, name in ((slots.loss, "loss"), (slots.lowest, "lowest"), (slots.at, "at")):
        assert column[order].tobytes() == np.array([getattr(e, name) for _, e in live], np.float64).tobytes()
    assert slots.count[order].tolist() == [e.count for _, e in live]
    assert slots.event[order].tolist() == [e.event for _, e in live]
    assert domains[order].tolist() == [e.domain for _, e in live]
    assert copy.live == len(model.live)
    heads = copy.heads
    assert (np.diff(heads["name"]) > 0).all()
    again = rebuilt(copy)
    assert same_heads(again.heads, heads)
    assert again.directory.keys.tolist() == copy.directory.keys.tolist()
    assert again.directory.order.tolist() == copy.directory.order.tolist()
    ids = np.arange(1, model.inserted + 2)
    found = copy.locate(ids, model.domains_of(ids))
    assert ids[found.live].tolist() == sorted(model.live)
    assert found.slots.ids.tolist() == sorted(model.live)


def batches(rng: np.random.Generator, count: int) -> Iterator[slice]:
    """Cut so many into batches of random sizes."""
    start = 0
    while start < count:
        end = min(start + int(rng.integers(1, 9)), count)
        yield slice(start, end)
        start = end


def as_ints(values: Iterable[int]) -> Ints:
    """An array, also of nothing."""
    return np.array(list(values), np.int64)
