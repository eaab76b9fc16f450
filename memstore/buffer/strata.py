"""The sampling index: strata, their dense positions, their counts and sums.

A stratum is a pair (domain, bucket). The bucket is the half-octave of the episode's priority when it was placed. The
bound ``2 ** (bucket / 2)`` is at least the priority of every episode inside. So a row that is drawn uniformly from a
stratum, and accepted with probability ``(priority / bound) ** alpha``, is drawn exactly in proportion to its weight.

Bounds and weights are kept as base-2 logarithms. A bound, a weight or a product of both may exceed the range of a
float, but its logarithm never does.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection

from memstore.errors import StoreCorrupt
from memstore.storage import checksums, stored
from memstore.storage.backends import Backend
from memstore.storage.schema import SEQUENCE_BITS, UNMEASURED, first_id, replay_metadata, stratum

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

FALL_BEFORE_MOVE = 2
"""A row with a fallen loss moves only if it stands this many buckets too high. So most updates move no row."""

LEAST_BUCKET, LARGEST_BUCKET = -2148, 2049
"""These are the least and the largest bucket that a measured episode can have."""

REFRESHED = ("id", "domain_id", "bucket", "count", "weight_sum", "loss_sum")
"""A process copies these columns of ``stratum``."""


def log2_priority(loss: Floats, epsilon: float, top_priority: float) -> Floats:
    """Return log2 of each priority: ``loss + epsilon``, or ``top_priority`` if the loss is NaN."""
    # The sum cannot overflow near the largest float, because epsilon is below half a unit in its last place.
    return np.log2(np.where(np.isnan(loss), top_priority, loss + epsilon))


def bucket_of(loss: Floats, epsilon: float) -> Ints:
    """Return the bucket with the closest bound for each loss, or ``UNMEASURED`` if the loss is NaN."""
    buckets = np.ceil(2.0 * log2_priority(loss, epsilon, 1.0)).astype(np.int64)
    return np.where(np.isnan(loss), UNMEASURED, buckets)


@dataclass(slots=True)
class Strata:
    """The copy that a process has of the strata of one buffer. Index ``i`` has the sequence number ``i + 1``."""

    buffer_id: int
    domain: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    bucket: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    count: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    weight_sum: Floats = field(default_factory=lambda: np.empty(0, np.float64))
    loss_sum: Floats = field(default_factory=lambda: np.empty(0, np.float64))
    _index: dict[tuple[int, int], int] = field(default_factory=dict)
    _order: Ints = field(default_factory=lambda: np.empty(0, np.int64))
    _changed: set[int] = field(default_factory=set)

    def __len__(self) -> int:
        return len(self.count)

    @property
    def live(self) -> int:
        """Number of live episodes."""
        return int(self.count.sum())

    def copy(self) -> Strata:
        """Return an independent copy. Both share one lookup table; each use checks its entry against the arrays."""
        changing = {name: getattr(self, name).copy() for name in ("count", "weight_sum", "loss_sum", "_changed")}
        return replace(self, **changing)

    def occupied(self) -> Ints:
        """Return the strata that hold episodes, in (domain, bucket) order. Every cumulative sum uses this order."""
        if len(self._order) != len(self):
            self._order = np.lexsort((self.bucket, self.domain))
        return self._order[self.count[self._order] > 0]

    def log2_bound(self, strata: Ints, top_priority: float) -> Floats:
        """Return log2 of the largest priority that is possible in each stratum."""
        buckets = self.bucket[strata]
        return np.where(buckets == UNMEASURED, np.log2(top_priority), buckets / 2.0)

    def relative_weight(self, strata: Ints, loss: Floats, epsilon: float, alpha: float) -> Floats:
        """Return ``(priority / bound) ** alpha`` of rows in these strata. It is 1 if the loss is NaN."""
        relative = alpha * (log2_priority(loss, epsilon, 1.0) - self.bucket[strata] / 2.0)
        return np.exp2(np.where(np.isnan(loss), 0.0, relative))

    def _relative_loss(self, strata: Ints, loss: Floats) -> Floats:
        measured = ~np.isnan(loss)
        # The division has two steps, because 2 ** (bucket / 2) alone may exceed the range of a float.
        root = np.exp2(np.where(measured, -self.bucket[strata] / 4.0, 0.0))
        return np.where(measured, loss, 0.0) * root * root

    def sizes(self, domains: int) -> Ints:
        """Return the number of episodes in each domain. Domain ``d`` is at ``d - 1``."""
        return np.bincount(self.domain - 1, self.count, domains).astype(np.int64)

    def mean_losses(self, part: Ints, parts: int) -> tuple[Floats, Ints]:
        """Return for each part the mean of its measured losses (0.0 if there are none), and their number.

        ``part`` is the part that each stratum belongs to.
        """
        measured = (self.bucket != UNMEASURED) & (self.count > 0)
        part, root = part[measured], np.exp2(self.bucket[measured] / 4.0)
        totals = np.bincount(part, self.count[measured], parts)
        # Each sum is divided before it can overflow.
        losses = self.loss_sum[measured] / totals[part] * root * root
        return np.bincount(part, losses, parts).astype(np.float64), totals.astype(np.int64)

    def ids(self, indices: Ints) -> Ints:
        """Return the ids of the strata with these indices."""
        return indices + (first_id(self.buffer_id) + 1)

    def indices(self, ids: Ints) -> Ints:
        """Return the indices of the strata with these ids."""
        return ids - (first_id(self.buffer_id) + 1)

    def ensure(self, domains: Ints, buckets: Ints) -> Ints:
        """Return the index of the stratum of each (domain, bucket). Strata that do not exist yet are made."""
        pairs = list(zip(domains.tolist(), buckets.tolist(), strict=True))
        new = [pair for pair in dict.fromkeys(pairs) if not self._has(pair)]
        if new:
            self._append(np.array([d for d, _ in new], np.int64), np.array([b for _, b in new], np.int64))
        return np.array([self._index[pair] for pair in pairs], np.int64)

    def _has(self, pair: tuple[int, int]) -> bool:
        # A rolled-back transaction may have left an entry for a stratum that does not exist, or for another stratum.
        at = self._index.get(pair)
        return at is not None and at < len(self) and (self.domain[at], self.bucket[at]) == pair

    def _append(self, domains: Ints, buckets: Ints) -> None:
        start, extra = len(self), len(domains)
        self.domain = np.concatenate([self.domain, domains])
        self.bucket = np.concatenate([self.bucket, buckets])
        self.count = np.concatenate([self.count, np.zeros(extra, np.int64)])
        self.weight_sum = np.concatenate([self.weight_sum, np.zeros(extra)])
        self.loss_sum = np.concatenate([self.loss_sum, np.zeros(extra)])
        for at in range(start, start + extra):
            self._index[int(self.domain[at]), int(self.bucket[at])] = at
        self._changed.update(range(start, start + extra))

    def account(self, strata: Ints, loss: Floats, epsilon: float, alpha: float, sign: int) -> None:
        """Add rows to the sums of their strata (``sign=1``), or subtract them (``sign=-1``).

        The sums of an empty stratum are exactly zero.
        """
        np.add.at(self.weight_sum, strata, sign * self.relative_weight(strata, loss, epsilon, alpha))
        np.add.at(self.loss_sum, strata, sign * self._relative_loss(strata, loss))
        touched = np.unique(strata)
        empty = touched[self.count[touched] == 0]
        self.weight_sum[empty] = 0.0
        self.loss_sum[empty] = 0.0
        # These are sums of positive numbers, so rounding must not leave them below zero.
        self.weight_sum[touched] = np.maximum(self.weight_sum[touched], 0.0)
        self.loss_sum[touched] = np.maximum(self.loss_sum[touched], 0.0)
        self._changed.update(touched.tolist())

    def reweigh(self, strata: Ints, loss: Floats, epsilon: float, alpha: float) -> None:
        """Recompute every weight sum from the stratum and the loss of every live row."""
        self.weight_sum[:] = 0.0
        np.add.at(self.weight_sum, strata, self.relative_weight(strata, loss, epsilon, alpha))
        self._changed.update(range(len(self)))

    def rearrange(
        self, conn: Connection, backend: Backend, leaving: tuple[Ints, Ints], entering: Ints
    ) -> tuple[Ints, Ints, Ints]:
        """Let rows leave and enter so that positions stay dense. Entering rows fill the holes first, then the tail.

        Parameters
        ----------
        leaving : (strata, positions)
            The places of the leaving rows.
        entering : array
            The stratum of each entering row.

        Returns
        -------
        positions : array, shape of ``entering``
            The new positions of the entering rows.
        moved_ids, moved_positions : arrays
            Rows of the tail that must move into the remaining holes, and those holes.
        """
        stratum, hole, rank = _ranked(*leaving)
        holes, newcomers = np.bincount(stratum, minlength=len(self)), np.bincount(entering, minlength=len(self))
        before = self.count
        self.count = after = before - holes + newcomers
        self._changed.update(np.flatnonzero(holes + newcomers).tolist())

        first_hole = np.cumsum(holes) - holes
        came, place, nth = _ranked(entering, np.arange(len(entering)))
        positions = np.empty(len(entering), np.int64)
        positions[place] = before[came] + nth - holes[came]
        fills = nth < holes[came]
        positions[place[fills]] = hole[first_hole[came[fills]] + nth[fills]]

        # There are as many places beyond the new end as unfilled holes. A place that still holds a row gives it to one
        # of these holes.
        unfilled = rank >= newcomers[stratum]
        stratum, hole = stratum[unfilled], hole[unfilled]
        tail = after[stratum] + rank[unfilled] - newcomers[stratum]
        surviving = ~np.isin(_keys(stratum, tail), _keys(stratum, hole))
        fill = hole[hole < after[stratum]]
        return positions, *self._locate_tail(conn, backend, stratum[surviving], tail[surviving], fill)

    def _locate_tail(
        self, conn: Connection, backend: Backend, strata: Ints, positions: Ints, fill: Ints
    ) -> tuple[Ints, Ints]:
        found = sorted(backend.locate(conn, self.ids(strata), positions))
        if [ordinal for ordinal, *_ in found] != list(range(len(fill))):
            raise StoreCorrupt(f"positions of buffer {self.buffer_id} are not dense; run 'memstore check'")
        return np.array([row[1] for row in found], np.int64), fill

    def refresh(self, changed: list[tuple[Any, ...]]) -> None:
        """Copy the changes by other processes: the columns ``REFRESHED`` of each changed stratum."""
        if not changed:
            return
        ids, domains, buckets, counts, *sums = stored.arrays(stratum, REFRESHED, changed)
        at, domains = self.indices(ids), domains - first_id(self.buffer_id)
        self._refuse(at, domains, buckets, counts, *sums)
        new = at >= len(self)
        if new.any():
            self._append(domains[new], buckets[new])
        self.count[at], self.weight_sum[at], self.loss_sum[at] = counts, *sums
        self._changed.clear()

    def _refuse(self, at: Ints, domains: Ints, buckets: Ints, counts: Ints, weights: Floats, losses: Floats) -> None:
        """Raise ``StoreCorrupt`` for impossible strata. They would decide the use of memory and the length of loops."""
        known = np.minimum(at, len(self) - 1) if len(self) else at
        possible = (buckets == UNMEASURED) | ((buckets >= LEAST_BUCKET) & (buckets <= LARGEST_BUCKET))
        possible &= (domains > 0) & (domains < 1 << SEQUENCE_BITS) & (counts >= 0) & (counts < 1 << SEQUENCE_BITS)
        for sums in (weights, losses):
            possible &= np.isfinite(sums) & (sums >= 0)
        if len(self):
            old = at < len(self)
            possible[old] &= (self.domain[known[old]] == domains[old]) & (self.bucket[known[old]] == buckets[old])
        new = at[at >= len(self)]
        if not possible.all() or at.min() < 0 or not np.array_equal(new, np.arange(len(self), len(self) + len(new))):
            bad = self.ids(at[~possible]).tolist()[:1] or ["that is missing, or twice there"]
            raise stored.damaged(f"buffer {self.buffer_id}: stratum {bad[0]}", "has impossible values")

    def flush(self, conn: Connection, backend: Backend, stored: int, revision: int) -> None:
        """Write the changed strata. The first ``stored`` strata exist in the database already."""
        changed = np.array(sorted(self._changed), np.int64)
        self._changed.clear()
        known, new = changed[changed < stored], changed[changed >= stored]
        if len(known):
            backend.update(conn, stratum, "id", self._contents(known, revision))
        if len(new):
            identity = {
                "buffer_id": [self.buffer_id] * len(new),
                "domain_id": (self.domain[new] + first_id(self.buffer_id)).tolist(),
                "bucket": self.bucket[new].tolist(),
            }
            backend.insert(conn, stratum, identity | self._contents(new, revision))

    def _contents(self, strata: Ints, revision: int) -> dict[str, list[Any]]:
        ids, revisions = self.ids(strata), np.full(len(strata), revision)
        count, weight_sum, loss_sum = self.count[strata], self.weight_sum[strata], self.loss_sum[strata]
        return {
            "id": ids.tolist(),
            "checksum": checksums.of_columns(
                ids, self.domain[strata], self.bucket[strata], count, weight_sum, loss_sum, revisions
            ).tolist(),
            "count": count.tolist(),
            "weight_sum": weight_sum.tolist(),
            "loss_sum": loss_sum.tolist(),
            "revision": revisions.tolist(),
        }


def _ranked(strata: Ints, values: Ints) -> tuple[Ints, Ints, Ints]:
    """Return strata and values in (stratum, value) order, and the rank of each value within its stratum."""
    order = np.lexsort((values, strata))
    strata = strata[order]
    return strata, values[order], np.arange(len(order)) - np.searchsorted(strata, strata)


def _keys(strata: Ints, positions: Ints) -> Ints:
    return strata << 43 | positions


def write_positions(conn: Connection, backend: Backend, ids: Ints, positions: Ints) -> None:
    """Store the new positions of moved rows."""
    if len(ids):
        backend.update(
            conn, replay_metadata, "episode_id", {"episode_id": ids.tolist(), "position": positions.tolist()}
        )
