"""The eviction policies, which decide who leaves at capacity: one small frozen class each.

A plan is made before anything is written. It does not depend on how the newcomers are cut into batches: ``extend`` of n
episodes keeps the same episodes as n calls of ``add``.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import and_, func, select

from memstore.buffer.snapshot import Rows, Snapshot
from memstore.buffer.strata import Floats, Ints
from memstore.errors import ConfigError, MemoryFull
from memstore.storage.schema import replay_metadata
from memstore.storage.stored import damaged
from memstore.types import EvictionPolicy
from memstore.values.shown import shown

_m = replay_metadata.c


@dataclass(frozen=True, slots=True)
class Newcomers:
    """Episodes about to be inserted: ids, numbers of their domains, and losses (NaN if never measured)."""

    ids: Ints
    domains: Ints
    loss: Floats

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, which: NDArray[np.bool_]) -> Newcomers:
        """Return the newcomers at these places."""
        return Newcomers(self.ids[which], self.domains[which], self.loss[which])

    @staticmethod
    def like(snapshot: Snapshot, rows: Rows) -> Newcomers:
        """Return live episodes as if they were newcomers."""
        return Newcomers(rows.ids, snapshot.state.strata.domain[rows.stratum], rows.loss)

    @staticmethod
    def none() -> Newcomers:
        """Return nobody: for a buffer that shrinks."""
        return Newcomers(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0))


@dataclass(frozen=True, slots=True)
class Plan:
    """Which live episodes leave, and which newcomers stay.

    A newcomer that does not stay still uses up an id and gets an event in the history.
    """

    leaving: Ints
    staying: NDArray[np.bool_]
    reservoir_floor: int | None = None


Order = tuple[list[int | None], list[int | None]]
"""Values of the columns (eviction_group, eviction_key) of some episodes."""


class Eviction(ABC):
    """A rule for who leaves when the memory is at capacity. Values are immutable, comparable, and stored by name."""

    name: ClassVar[EvictionPolicy]
    always_plans: ClassVar[bool] = False
    """True if a newcomer may be turned away while there is room."""

    @abstractmethod
    def plan(self, snapshot: Snapshot, newcomers: Newcomers) -> Plan:
        """Decide who leaves so that the newcomers fit."""

    def order(self, snapshot: Snapshot, newcomers: Newcomers) -> Order:
        """Return the order in which these episodes leave, as stored; None for a policy that needs no such order."""
        return [None] * len(newcomers), [None] * len(newcomers)


@dataclass(frozen=True)
class Fifo(Eviction):
    """The oldest leaves."""

    name: ClassVar[EvictionPolicy] = EvictionPolicy.FIFO

    def plan(self, snapshot: Snapshot, newcomers: Newcomers) -> Plan:
        excess = excess_of(snapshot, newcomers)
        leaving = _first(snapshot, min(excess, snapshot.live))
        return Plan(leaving, np.arange(len(newcomers)) >= excess - len(leaving))


@dataclass(frozen=True)
class LowestLoss(Eviction):
    """The smallest measured loss leaves, never the newcomer; where nothing is measured, the oldest."""

    name: ClassVar[EvictionPolicy] = EvictionPolicy.LOWEST_LOSS

    def plan(self, snapshot: Snapshot, newcomers: Newcomers) -> Plan:
        return _evict_easiest(snapshot, newcomers, np.ones(len(newcomers), np.bool_))


@dataclass(frozen=True)
class LargestDomain(Eviction):
    """The oldest episode of the domain with the most episodes leaves."""

    name: ClassVar[EvictionPolicy] = EvictionPolicy.LARGEST_DOMAIN

    def plan(self, snapshot: Snapshot, newcomers: Newcomers) -> Plan:
        counts = np.concatenate([[0], snapshot.state.strata.sizes(len(snapshot.state.domain_names))])
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
            oldest = _by_key(snapshot, domain, int(evictions[domain]))[0]
            leaving.append(oldest)
            staying[np.flatnonzero(newcomers.domains == domain)[: evictions[domain] - len(oldest)]] = False
        return Plan(np.concatenate(leaving), staying)

    def order(self, snapshot: Snapshot, newcomers: Newcomers) -> Order:
        return newcomers.domains.tolist(), newcomers.ids.tolist()


@dataclass(frozen=True)
class Reservoir(Eviction):
    """A uniform sample of everything ever offered stays (Vitter 1985, by one random key per episode).

    After deletions or growth, and until the buffer is full again, newcomers are favoured by a share of 1 / capacity.
    """

    name: ClassVar[EvictionPolicy] = EvictionPolicy.RESERVOIR
    always_plans: ClassVar[bool] = True

    def plan(self, snapshot: Snapshot, newcomers: Newcomers) -> Plan:
        keys = reservoir_keys(snapshot, newcomers.ids)
        floor = snapshot.state.counters.reservoir_floor
        # The floor is the largest key that ever left. A newcomer below it would have left already, so it does not
        # profit from deletions or growth. Until the reservoir is full again, the chance of a newcomer is
        # (k + 1) / (t + 1) in place of k / t.
        staying = np.ones(len(newcomers), np.bool_) if floor is None else keys > floor
        excess = snapshot.live + int(staying.sum()) - snapshot.settings.capacity
        if excess <= 0:
            return Plan(np.empty(0, np.int64), staying, floor)
        old_ids, old_keys = _by_key(snapshot, 0, excess)
        ids = np.concatenate([old_ids, newcomers.ids[staying]])
        all_keys = np.concatenate([old_keys, keys[staying]])
        out = np.lexsort((ids, all_keys))[:excess]
        floor = int(all_keys[out].max())
        leaving = out[out < len(old_ids)]
        return Plan(old_ids[leaving], staying & ~np.isin(newcomers.ids, ids[out]), floor)

    def order(self, snapshot: Snapshot, newcomers: Newcomers) -> Order:
        return [0] * len(newcomers), reservoir_keys(snapshot, newcomers.ids).tolist()


@dataclass(frozen=True)
class ReservoirLoss(Eviction):
    """A newcomer enters with the probability of a reservoir; then the smallest measured loss leaves.

    This is a heuristic: the sample is not uniform.
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
    """Nothing leaves: ``MemoryFull`` refuses newcomers that do not fit."""

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
    """Return a policy from itself or its name.

    Raises
    ------
    ConfigError
        There is no such policy.
    """
    if isinstance(value, Eviction) and value in _POLICIES.values():
        return value
    if not isinstance(value, str) or value not in _POLICIES:
        known = ", ".join(policy.value for policy in EvictionPolicy)
        raise ConfigError(f"unknown eviction policy {shown(value)}; expected a policy such as Fifo() or one of {known}")
    return _POLICIES[EvictionPolicy(value)]


def default_eviction(strategy_name: str) -> Eviction:
    """Return the policy that goes with a strategy, as in the origin.

    Only DomainBalanced differs: its policy protects rare domains.
    """
    goes_with: dict[str, Eviction] = {
        "prioritized_loss": LowestLoss(),
        "mixed": LowestLoss(),
        "domain_balanced": LargestDomain(),
    }
    return goes_with.get(strategy_name, Fifo())


def plan(snapshot: Snapshot, newcomers: Newcomers) -> Plan:
    """Decide who leaves, by the buffer's eviction policy, so that these newcomers fit.

    Raises
    ------
    MemoryFull
        They do not all fit, and the policy is ``none``.
    StoreCorrupt
        The strata count rows that are not there.
    """
    policy = _POLICIES[snapshot.settings.eviction]
    if snapshot.live > snapshot.settings.capacity:
        _refuse_miscounted(snapshot)
    if excess_of(snapshot, newcomers) <= 0 and not policy.always_plans:
        return Plan(np.empty(0, np.int64), np.ones(len(newcomers), np.bool_))
    return policy.plan(snapshot, newcomers)


def _refuse_miscounted(snapshot: Snapshot) -> None:
    """Raise ``StoreCorrupt`` if the strata count rows that are not there.

    Only a buffer that shrinks holds more than its capacity; in any other case that is damage.
    """
    found = snapshot.conn.scalars(select(func.count()).select_from(replay_metadata).where(snapshot.own)).one()
    if found != snapshot.live:
        raise damaged(f"buffer {snapshot.state.buffer_id}", f"has {found} rows where its strata count {snapshot.live}")


def order_keys(snapshot: Snapshot, newcomers: Newcomers) -> Order:
    """Return the order that the buffer's eviction policy gives these episodes."""
    return _POLICIES[snapshot.settings.eviction].order(snapshot, newcomers)


def excess_of(snapshot: Snapshot, newcomers: Newcomers) -> int:
    """Return by how many episodes the capacity would be exceeded."""
    return snapshot.live + len(newcomers) - snapshot.settings.capacity


def reservoir_keys(snapshot: Snapshot, ids: Ints) -> Ints:
    """Return 63 random bits for each episode, a function of the buffer's seed and the insertion number alone.

    Philox is counter-based (Salmon et al. 2011): block n of its stream belongs to insertion n. So the keys are the
    same for any number of writers, batches and restarts.
    """
    sequence = ids - snapshot.first_id
    if not len(sequence):
        return np.empty(0, np.int64)
    first, last = int(sequence.min()), int(sequence.max())
    stream = np.random.Philox(key=snapshot.settings.seed, counter=first)
    blocks = stream.random_raw(4 * (last - first + 1))[::4]
    return (blocks[sequence - first] >> np.uint64(1)).astype(np.int64)


def _evict_easiest(snapshot: Snapshot, newcomers: Newcomers, entering: NDArray[np.bool_]) -> Plan:
    """Plan that before each newcomer enters, the smallest measured loss leaves. So no newcomer displaces itself."""
    room = snapshot.settings.capacity - snapshot.live
    evictions = int(entering.sum()) - room
    measured = _measured_easiest(snapshot, evictions)
    heapq.heapify(measured)
    unmeasured = _first(snapshot, evictions - len(measured), unmeasured=True).tolist()
    unmeasured.reverse()
    gone: list[int] = []

    def evict() -> None:
        if measured:
            gone.append(heapq.heappop(measured)[1])
        elif unmeasured:
            gone.append(unmeasured.pop())

    for _ in range(max(-room, 0)):
        evict()
    room = max(room, 0)
    waiting: list[int] = []
    for episode_id, loss, enters in zip(newcomers.ids.tolist(), newcomers.loss.tolist(), entering, strict=True):
        if not enters:
            continue
        if room > 0:
            room -= 1
        elif measured or unmeasured:
            evict()
        else:
            # Only newcomers that were never measured are left: the oldest of them leaves.
            gone.append(waiting.pop(0))
        if loss == loss:
            heapq.heappush(measured, (loss, episode_id))
        else:
            waiting.append(episode_id)
    left = np.array(gone, np.int64)
    return Plan(left[~np.isin(left, newcomers.ids)], entering & ~np.isin(newcomers.ids, left))


def _first(snapshot: Snapshot, count: int, *, unmeasured: bool = False) -> Ints:
    """Return the oldest live ids, or the oldest of never-measured episodes."""
    if count <= 0:
        return np.empty(0, np.int64)
    # The index on loss finds the never-measured ones: its NULLs stand together, in id order.
    which = and_(_m.buffer_id == snapshot.state.buffer_id, _m.loss.is_(None)) if unmeasured else snapshot.own
    query = select(_m.episode_id).where(which).order_by(_m.episode_id).limit(count)
    return np.array(snapshot.conn.scalars(query).all(), np.int64)


def _measured_easiest(snapshot: Snapshot, count: int) -> list[tuple[float, int]]:
    """Return loss and id of the measured episodes with the smallest losses."""
    if count <= 0:
        return []
    query = select(_m.loss, _m.episode_id).where(_m.buffer_id == snapshot.state.buffer_id, _m.loss.is_not(None))
    rows = snapshot.conn.execute(query.order_by(_m.loss, _m.episode_id).limit(count))
    return [(loss, episode_id) for loss, episode_id in rows]


def _by_key(snapshot: Snapshot, group: int, count: int) -> tuple[Ints, Ints]:
    """Return ids and keys of the first rows in the policy's order."""
    query = select(_m.episode_id, _m.eviction_key).where(
        _m.buffer_id == snapshot.state.buffer_id, _m.eviction_group == group, _m.eviction_key.is_not(None)
    )
    rows = snapshot.conn.execute(query.order_by(_m.eviction_key, _m.episode_id).limit(count)).all()
    return np.array([r[0] for r in rows], np.int64), np.array([r[1] for r in rows], np.int64)
