"""Contents in memory: a page for each block, in a few large arrays that all copies of a buffer share.

A page is written once, for a new content of a block, and not again while any copy refers to it. So older copies stay as
they are, and one write costs the pages of the blocks that it changes. Which pages are free is found by looking at all
copies that are alive, when there is no free page left: at 1M episodes every few writes, in 60 us.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol
from weakref import ref

import numpy as np

from memstore.buffer.blocks.slots import (
    COLUMNS,
    ID,
    LOSS,
    NO_ID,
    PLACE_BITS,
    REALS,
    SLOTS,
    Flags,
    Floats,
    Ints,
    Slots,
    canonical,
    columns_of,
)
from memstore.buffer.blocks.weights import Law, steps_of

EMPTY = 0
"""The page of all blocks that nothing was put into yet."""

MANY = 64
"""More references to copies than this are searched for copies that are gone.

They have no callbacks, as a ``WeakSet`` has: Python swallows an interrupt that falls into one.
"""

SPARE = 256
"""Free pages that there are to be, besides one for each eight that are used, when there was none left."""


class User(Protocol):
    """A copy: it refers to pages."""

    @property
    def page(self) -> Ints:
        """Page of each block, -1 where its content is not in memory."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Contents of blocks: their places in the copy (ascending, each once), their slots, and how many each has.

    Attributes
    ----------
    columns : array, shape (blocks, COLUMNS, SLOTS)
        What is behind the slots of a block is ``empty``.
    """

    blocks: Ints
    count: Ints
    columns: Ints

    def __len__(self) -> int:
        return len(self.blocks)

    @property
    def ids(self) -> Ints:
        """Ids, a row for each block, ``NO_ID`` behind them."""
        return self.columns[:, ID]

    @property
    def loss(self) -> Floats:
        """Losses, a row for each block, NaN behind them; in an array of their own."""
        return np.ascontiguousarray(self.columns[:, LOSS]).view(np.float64)

    @property
    def used(self) -> Flags:
        """Flags: True for a cell that is a slot."""
        return np.arange(self.columns.shape[2]) < self.count[:, None]

    @property
    def slots(self) -> Slots:
        """All slots, block after block."""
        return Slots.of(self.columns.transpose(1, 0, 2)[:, self.used])

    @property
    def ordinal(self) -> Ints:
        """For each of ``slots``, the place of its block among these blocks."""
        return np.repeat(np.arange(len(self.blocks)), self.count)

    @property
    def places(self) -> Ints:
        """Place of each of ``slots`` in the copy."""
        block, slot = np.nonzero(self.used)
        places: Ints = (self.blocks[block] << PLACE_BITS) + slot
        return places

    def contents(self) -> list[bytes]:
        """Return the content of each block."""
        columns = self.columns.astype("<i8", copy=False)
        return [rows[:, :count].tobytes() for rows, count in zip(columns, self.count.tolist(), strict=True)]


def empty(blocks: int) -> Ints:
    """Return the columns of empty blocks."""
    columns = np.zeros((blocks, COLUMNS, SLOTS), np.int64)
    columns[:, ID] = NO_ID
    columns[:, REALS] = canonical(np.full(1, np.nan))
    return columns


def opened(blocks: Ints, contents: Sequence[bytes]) -> Opened:
    """Return blocks that hold these contents."""
    columns, count = empty(len(blocks)), np.zeros(len(blocks), np.int64)
    for at, content in enumerate(contents):
        rows = columns_of(content)
        count[at] = rows.shape[1]
        columns[at, :, : count[at]] = rows
    return Opened(blocks, count, columns)


def compacted(blocks: Opened, stays: Flags) -> Opened:
    """Return the blocks with only those slots that stay."""
    count = stays.sum(axis=1)
    fewer = Opened(blocks.blocks, count, empty(len(blocks)))
    into = fewer.used
    for column in range(COLUMNS):
        fewer.columns[:, column][into] = blocks.columns[:, column][stays]
    return fewer


@dataclass(frozen=True, slots=True)
class _Arrays:
    """All pages: their slots, the cumulative weights of these, and when each page was used last."""

    columns: Ints
    steps: Floats
    used_at: Ints

    @classmethod
    def of(cls, pages: int) -> _Arrays:
        return cls(empty(pages), np.zeros((pages, SLOTS)), np.zeros(pages, np.int64))

    def extended(self, pages: int) -> _Arrays:
        more = _Arrays.of(pages)
        columns, used_at = np.concatenate([self.columns, more.columns]), np.concatenate([self.used_at, more.used_at])
        return _Arrays(columns, np.concatenate([self.steps, more.steps]), used_at)


class Pages:
    """The pages, and for each the cumulative weights of its slots by one law, the buffer's own.

    Safe for threads, and for interrupts at any moment: a page that was taken and not used is found to be free later.
    The tables of a copy are not safe, but no two threads change the same copy.
    """

    def __init__(self, law: Law) -> None:
        self.law = law
        self._arrays = _Arrays.of(1)  # one reference, so a reader has arrays of the same length
        self._clock = 0
        self._free = np.zeros(0, np.int64)
        self._users: list[ref[User]] = []
        self._many = MANY
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._arrays.columns)

    @property
    def columns(self) -> Ints:
        """Slots, shape (pages, COLUMNS, SLOTS)."""
        return self._arrays.columns

    @property
    def steps(self) -> Floats:
        """Cumulative weights, shape (pages, SLOTS)."""
        return self._arrays.steps

    @property
    def size(self) -> int:
        """Bytes of all pages, free ones included."""
        return self.columns.nbytes + self.steps.nbytes

    def register(self, user: User) -> None:
        """Keep the pages that this copy refers to, as long as it lives."""
        with self._lock:
            self._users.append(ref(user))
            if len(self._users) > self._many:
                self._users = [known for known in self._users if known() is not None]
                self._many = MANY + 2 * len(self._users)

    def used(self, pages: Ints) -> None:
        """Note that these are used now."""
        self._clock += 1
        self._arrays.used_at[pages] = self._clock

    def used_first(self, pages: Ints, most: int) -> Ints:
        """Return the places of the ``most`` pages that were not used for the longest time."""
        return np.argsort(self._arrays.used_at[pages], kind="stable")[:most]

    def weigh(self, loss: Floats) -> tuple[Floats, Ints]:
        """Return the steps and units of blocks with these losses by the buffer's law."""
        log2 = self.law.log2(loss)
        log2[np.isnan(log2)] = -np.inf
        return steps_of(log2)

    def write(self, user: User, blocks: Ints, columns: Ints, steps: Floats) -> None:
        """Give these blocks of a registered copy, which nobody else has yet, pages of their own with this content."""
        with self._lock:
            self._write(user, blocks, columns, steps)

    def fill(self, user: User, blocks: Ints, columns: Ints, steps: Floats) -> None:
        """Give pages with this content to those of the blocks that have none.

        Another thread may have read the same content from the same copy. Then its page stays: it may be in use.
        """
        with self._lock:
            none = user.page[blocks] < 0
            self._write(user, blocks[none], columns[none], steps[none])

    def _write(self, user: User, blocks: Ints, columns: Ints, steps: Floats) -> None:
        pages = self._taken(len(blocks))
        self.columns[pages] = columns
        self.steps[pages] = steps
        self.used(pages)
        user.page[blocks] = pages

    def _taken(self, count: int) -> Ints:
        if len(self._free) < count:
            self._free = self._unused()
            wanted = count + SPARE + (len(self) - len(self._free)) // 8
            if len(self._free) < max(count, wanted // 2):
                # A reader of the old arrays finds the contents of its pages there.
                self._arrays = self._arrays.extended(wanted - len(self._free))
                self._free = self._unused()
        taken, self._free = self._free[:count], self._free[count:]
        return taken

    def _unused(self) -> Ints:
        used = np.zeros(len(self), np.bool_)
        used[EMPTY] = True
        for known in self._users:
            if (user := known()) is not None:
                used[user.page[user.page >= 0]] = True
        return np.flatnonzero(~used)


def reached(values: Ints | Floats, start: Ints, count: Ints, target: Ints | Floats) -> Ints:
    """Return how many of the ``count`` values from ``start`` on, which ascend, are at most ``target``.

    A binary search in each segment, all of them at once.
    """
    found = np.zeros(len(target), np.int64)
    step = 1 << int(count.max(initial=0)).bit_length() >> 1
    while step:
        tried = found + step
        place = start + np.minimum(tried, np.maximum(count, 1)) - 1
        found = np.where((tried <= count) & (values[place] <= target), tried, found)
        step >>= 1
    return found
