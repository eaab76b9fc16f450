"""The eviction policies. They decide which episodes leave at capacity. Each is a small frozen class.

A plan is made before anything is written. It does not depend on the division of the newcomers into batches: ``extend``
with n episodes keeps the same episodes as n calls of ``add``.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.blocks.lottery import keys_of_ids
from memstore.buffer.blocks.order import oldest, oldest_unmeasured, smallest_keys, smallest_losses
from memstore.buffer.blocks.slots import Ints, among
from memstore.buffer.snapshot import Snapshot
from memstore.buffer.tail import Newcomers
from memstore.errors import ConfigError, MemoryFull
from memstore.types import EvictionPolicy
from memstore.values.shown import shown


@dataclass(frozen=True, slots=True)
class Plan:
    """The decision of a policy: the places of the live episodes that leave, and flags of the newcomers that stay.

    A newcomer that does not stay still uses up an id and gets an event in the history.
    """

    leaving: Ints
    staying: NDArray[np.bool_]
    reservoir_floor: int | None = None


class Eviction(ABC):
    """A rule that decides which episodes leave when the memory is at capacity.

    Policies are immutable, comparable, and stored by name. An eviction is part of the commit that needs the room.
    """

    name: ClassVar[EvictionPolicy]
    always_plans: ClassVar[bool] = False
    """True if a newcomer may be turned away while there is room."""

    @abstractmethod
    def plan(self, snapshot: Snapshot, newcomers: Newcomers) -> Plan:
        """Decide which episodes leave so that the newcomers fit. Nothing is written."""


@dataclass(frozen=True)
class Fifo(Eviction):
    """The policy by which the oldest episode leaves, in the order of insertion."""

    name: ClassVar[EvictionPolicy] = EvictionPolicy.FIFO

    def plan(self, snapshot: Snapshot, newcomers: Newcomers) -> Plan:
        excess = excess_of(snapshot, newcomers)
        leaving = oldest(snapshot.state.blocks, excess).places
        return Plan(leaving, np.arange(len(newcomers)) >= excess - len(leaving))


@dataclass(frozen=True)
class LowestLoss(Eviction):
    """The policy by which the episode with the smallest measured loss leaves, the oldest among equals.

    If no episode was measured, the oldest leaves. A newcomer never leaves to make room for itself.
    """

    name: ClassVar[EvictionPolicy] = EvictionPolicy.LOWEST_LOSS

    def plan(self, snapshot: Snapshot, newcomers: Newcomers) -> Plan:
        return _evict_easiest(snapshot, newcomers, np.ones(len(newcomers), np.bool_))


@dataclass(frozen=True)
class LargestDomain(Eviction):
    """The policy by which the oldest episode of the domain with the most episodes leaves. It protects rare domains."""

    name: ClassVar[EvictionPolicy] = EvictionPolicy.LARGEST_DOMAIN

    def plan(self, snapshot: Snapshot, newcomers: Newcomers) -> Plan:
        heads = snapshot.state.blocks.heads
        counts = np.bincount(heads["domain"], heads["live"], len(snapshot.state.domain_names) + 1).astype(np.int64)
        evictions = np.zeros(len(counts), np.int64)
        total = snapshot.live
        for domain in [None] * max(total - snapshot.settings.capacity, 0) + newcomers.domains.tolist():
            if domain is not None:
                counts[domain] += 1
                total += 1
            if total > snapshot.settings.capacity:
                largest = int(counts.argmax())
                if domain is not None and counts[domain] == counts[largest]:
                    largest = domain
                counts[largest] -= 1
                evictions[largest] += 1
                total -= 1
        staying = np.ones(len(newcomers), np.bool_)
        leaving = [np.empty(0, np.int64)]
        for domain in np.flatnonzero(evictions).tolist():
            victims = oldest(snapshot.state.blocks, int(evictions[domain]), domain).places
            leaving.append(victims)
            staying[np.flatnonzero(newcomers.domains == domain)[: evictions[domain] - len(victims)]] = False
        return Plan(np.concatenate(leaving), staying)


@dataclass(frozen=True)
class Reservoir(Eviction):
    """The policy by which a uniform random sample stays of all episodes ever offered.

    Each of the ``t`` episodes offered so far is in the buffer with probability ``k / t``, for a capacity of ``k``
    (Vitter 1985, "Random sampling with a reservoir"). Each episode gets one random key, and the episodes with the
    largest keys stay. After deletions, or after the capacity has grown, a newcomer's probability is
    ``(k + 1) / (t + 1)`` until the buffer is full again. That favours newcomers by a share of 1 / capacity.

    A buffer gets this policy at its creation. ``configure`` refuses it if episodes have left under another policy,
    because the remaining episodes are no uniform sample.
    """

    name: ClassVar[EvictionPolicy] = EvictionPolicy.RESERVOIR
    always_plans: ClassVar[bool] = True

    def plan(self, snapshot: Snapshot, newcomers: Newcomers) -> Plan:
        keys = reservoir_keys(snapshot, newcomers.ids)
        floor = snapshot.state.counters.reservoir_floor
        # The floor is the largest key that ever left. A newcomer with a smaller key would have left already, so it
        # must not profit from deletions or growth. Until the reservoir is full again, the chance of a newcomer is
        # (k + 1) / (t + 1) in place of k / t.
        staying = np.ones(len(newcomers), np.bool_) if floor is None else keys > floor
        excess = snapshot.live + int(staying.sum()) - snapshot.settings.capacity
        if excess <= 0:
            return Plan(np.empty(0, np.int64), staying, floor)
        blocks = snapshot.state.blocks
        assert blocks.key_of is not None
        first = smallest_keys(blocks, excess, blocks.key_of)
        old_keys, old_ids = first.values.astype(np.int64), first.ids
        ids = np.concatenate([old_ids, newcomers.ids[staying]])
        all_keys = np.concatenate([old_keys, keys[staying]])
        out = np.lexsort((ids, all_keys))[:excess]
        floor = int(all_keys[out].max())
        leaving = out[out < len(old_ids)]
        return Plan(first.places[leaving], staying & ~np.isin(newcomers.ids, ids[out]), floor)


@dataclass(frozen=True)
class ReservoirLoss(Eviction):
    """The policy by which a newcomer enters as into a reservoir, and the smallest measured loss leaves.

    A newcomer enters with probability ``k / t``, for a capacity of ``k`` and ``t`` episodes offered so far. Then the
    episode with the smallest measured loss leaves. This is a heuristic: the remaining sample is not uniform.
    """

    name: ClassVar[EvictionPolicy] = EvictionPolicy.RESERVOIR_LOSS

    def plan(self, snapshot: Snapshot, newcomers: Newcomers) -> Plan:
        offered = newcomers.ids - snapshot.first_id
        uniform = reservoir_keys(snapshot, newcomers.ids) / 2.0**63
        room = max(snapshot.settings.capacity - snapshot.live, 0)
        lottery = uniform < snapshot.settings.capacity / np.maximum(offered, 1)
        entering = lottery | (np.arange(len(newcomers)) < room)
        return _evict_easiest(snapshot, newcomers, entering)


@dataclass(frozen=True)
class Refuse(Eviction):
    """The policy by which no episode leaves. ``MemoryFull`` refuses newcomers that do not fit. Its name is ``none``."""

    name: ClassVar[EvictionPolicy] = EvictionPolicy.NONE

    def plan(self, snapshot: Snapshot, newcomers: Newcomers) -> Plan:
        capacity = snapshot.settings.capacity
        if not len(newcomers):
            raise ConfigError(
                f"the buffer holds {snapshot.live} episodes and evicts none: delete some before shrinking it to "
                f"{capacity}"
            )
        raise MemoryFull(
            f"{len(newcomers)} new episodes do not fit: {snapshot.live} of {capacity} places are taken and the "
            "eviction policy is 'none'; delete(...) some, configure(capacity=...) or configure(eviction=...)"
        )


_POLICIES: dict[EvictionPolicy, Eviction] = {
    policy.name: policy for policy in (Fifo(), LowestLoss(), LargestDomain(), Reservoir(), ReservoirLoss(), Refuse())
}


def as_eviction(value: Eviction | EvictionPolicy | str) -> Eviction:
    """Return the policy with this name. A policy is returned as it is.

    Raises
    ------
    ConfigError
        No policy has this name.
    """
    if isinstance(value, Eviction) and value in _POLICIES.values():
        return value
    if not isinstance(value, str) or value not in _POLICIES:
        known = ", ".join(policy.value for policy in EvictionPolicy)
        raise ConfigError(f"unknown eviction policy {shown(value)}; expected a policy such as Fifo() or one of {known}")
    return _POLICIES[EvictionPolicy(value)]


def default_eviction(strategy_name: str) -> Eviction:
    """Return the default policy for a strategy. The choice is that of the origin.

    Only the choice for DomainBalanced differs: ``largest_domain`` protects rare domains.
    """
    goes_with: dict[str, Eviction] = {
        "prioritized_loss": LowestLoss(),
        "mixed": LowestLoss(),
        "domain_balanced": LargestDomain(),
    }
    return goes_with.get(strategy_name, Fifo())


def plan(snapshot: Snapshot, newcomers: Newcomers) -> Plan:
    """Decide which episodes leave, by the buffer's eviction policy, so that these newcomers fit.

    Raises
    ------
    MemoryFull
        The newcomers do not all fit, and the policy is ``none``.
    """
    policy = _POLICIES[snapshot.settings.eviction]
    if excess_of(snapshot, newcomers) <= 0 and not policy.always_plans:
        return Plan(np.empty(0, np.int64), np.ones(len(newcomers), np.bool_))
    return policy.plan(snapshot, newcomers)


def excess_of(snapshot: Snapshot, newcomers: Newcomers) -> int:
    """Return the number of episodes beyond the capacity if all newcomers entered."""
    return snapshot.state.counters.live + len(newcomers) - snapshot.settings.capacity


def reservoir_keys(snapshot: Snapshot, ids: Ints) -> Ints:
    """Return 63 random bits for each episode. They depend only on the buffer's seed and the number of the insertion.

    Philox is a counter-based generator (Salmon et al. 2011). Block n of its stream belongs to insertion n. So the keys
    are the same for any number of writers, batches and restarts.
    """
    return keys_of_ids(snapshot.settings.seed, snapshot.state.buffer_id, ids)


def _evict_easiest(snapshot: Snapshot, newcomers: Newcomers, entering: NDArray[np.bool_]) -> Plan:
    """Plan that the easiest episode leaves before each newcomer enters. So no newcomer displaces itself.

    The easiest episode has the smallest measured loss. If no episode was measured, it is the oldest.
    """
    room = snapshot.settings.capacity - snapshot.live
    evictions = int(entering.sum()) - room
    measured = smallest_losses(snapshot.state.blocks, evictions)
    unmeasured = oldest_unmeasured(snapshot.state.blocks, evictions - len(measured.ids))
    # A sorted list is a heap. Never-measured episodes come last.
    heap = [(False, loss, number) for loss, number in zip(measured.values.tolist(), measured.ids.tolist(), strict=True)]
    heap += [(True, 0.0, number) for number in unmeasured.ids.tolist()]
    gone = [heapq.heappop(heap)[-1] for _ in range(-room)]
    for number, loss in zip(newcomers.ids[entering].tolist(), newcomers.loss[entering].tolist(), strict=True):
        if room > 0:
            room -= 1
        else:
            gone.append(heapq.heappop(heap)[-1])
        heapq.heappush(heap, (True, 0.0, number) if loss != loss else (False, loss, number))
    left = np.sort(np.array(gone, np.int64))
    ids = np.concatenate([measured.ids, unmeasured.ids])
    places = np.concatenate([measured.places, unmeasured.places])
    return Plan(places[among(ids, left)[0]], entering & ~among(newcomers.ids, left)[0])
