"""The contents of several blocks side by side, for work on all of them at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.blocks.slots import SLOT, Flags, Ints, Slots


@dataclass(frozen=True, slots=True)
class Opened:
    """Blocks (their places in the copy, ascending, each once), the slots of each, and all slots, one after the other.

    The slots cannot be written. ``ordinal`` and ``start`` are of the block of each slot, and of each block.
    """

    blocks: Ints
    count: Ints
    slots: Slots

    @classmethod
    def of(cls, blocks: Ints, contents: Sequence[bytes], count: Ints | None = None) -> Opened:
        """Put these contents side by side; ``count`` saves time where the slots of each are counted already."""
        if count is None:
            count = np.fromiter(map(len, contents), np.int64, len(contents)) // SLOT.itemsize
        return cls(blocks, count, np.frombuffer(b"".join(contents), SLOT))

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def start(self) -> Ints:
        """Where the slots of each block begin."""
        start: Ints = np.cumsum(self.count) - self.count
        return start

    @property
    def ordinal(self) -> Ints:
        """Which of these blocks each slot is of."""
        return np.repeat(np.arange(len(self.blocks)), self.count)

    def writable(self) -> Slots:
        """Return a copy of the slots."""
        # Not slots.copy(): numpy copies a structured array one by one, 190 us for 256 blocks, and not 20.
        return np.frombuffer(bytearray(self.slots.tobytes()), SLOT)

    def find(self, ordinal: Ints, ids: Ints) -> Ints:
        """Return the place in ``slots`` of each id, looked for in the block of this ordinal; -1 where it is not."""
        if not len(self.slots):
            return np.full(len(ids), -1)
        start = self.start[ordinal]
        rank = reached(self.slots["id"], start, self.count[ordinal], ids) - 1
        place = start + np.maximum(rank, 0)
        found = (rank >= 0) & (self.slots["id"][np.minimum(place, len(self.slots) - 1)] == ids)
        return np.where(found, place, -1)

    def nth(self, flags: Flags, ordinal: Ints, rank: Ints) -> Ints:
        """Return the slot, counted from the beginning of its block, that is the ``rank``-th of those with the flag."""
        flagged = np.flatnonzero(flags)
        count = np.bincount(self.ordinal[flagged], minlength=len(self))
        slot: Ints = flagged[(np.cumsum(count) - count)[ordinal] + rank] - self.start[ordinal]
        return slot

    def grid(self, values: NDArray[Any], fill: Any) -> NDArray[Any]:
        """Return one row a block of the values of its slots, filled up to the length of the longest."""
        width = int(self.count.max(initial=0))
        if width * len(self.count) == len(values):
            return values.reshape(len(self.count), width)
        rows = np.full((len(self.count), width), fill, values.dtype)
        rows[self._used] = values
        return rows

    def ungrid(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the values of the slots, one after the other, from rows as ``grid`` makes them."""
        return rows.reshape(-1) if rows.size == len(self.slots) else rows[self._used]

    @property
    def _used(self) -> Flags:
        return np.arange(int(self.count.max(initial=0))) < self.count[:, None]


def cut(values: NDArray[Any], count: Ints) -> list[bytes]:
    """Return the bytes of so many values for each block; copies, since a view would keep all others in memory."""
    raw = values.tobytes()
    ends = (np.cumsum(count) * values.itemsize).tolist()
    return [raw[a:b] for a, b in zip([0, *ends], ends, strict=False)]


def reached(values: NDArray[Any], start: Ints, count: Ints, target: NDArray[Any]) -> Ints:
    """Return how many of the ``count`` values from ``start`` on, which ascend, are at most ``target``.

    A binary search in each segment, all of them at once.
    """
    found = np.zeros(len(target), np.int64)
    step = 1 << int(count.max(initial=0)).bit_length() >> 1
    while step:
        tried = found + step
        place = start + np.minimum(tried, np.maximum(count, 1)) - 1
        found = np.where((tried <= count) & (values[np.minimum(place, len(values) - 1)] <= target), tried, found)
        step >>= 1
    return found
