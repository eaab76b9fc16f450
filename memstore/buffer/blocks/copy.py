"""The copy: all blocks of a buffer, and their heads, as of one moment.

A copy is a value: a change makes another copy, which shares all blocks that did not change. So a transaction or a
savepoint needs no more than the copy that it began with. At 1M episodes the new tables of a write take 50 us.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from memstore.buffer.blocks.heads import (
    HEAD,
    NO_ID,
    Directory,
    Heads,
    KeyOf,
    check_newcomers,
    describe,
    head_rows,
    least_keys,
    merged_groups,
    own,
)
from memstore.buffer.blocks.opened import Opened, cut
from memstore.buffer.blocks.slots import SLOTS, Flags, Floats, Ints, Slots, canonical, new_slots
from memstore.storage.stored import damaged

Fetch = Callable[[Heads], list[bytes]]
"""Reads the contents of these blocks, as of the same moment, from where they are stored."""


def nothing_stored(heads: Heads) -> list[bytes]:
    """Stand for a ``Fetch`` where all contents are in memory."""
    raise damaged(f"block {heads['name'][0]}", "is not in memory, and nothing is known of where it is stored")


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Episodes looked for in a copy: the blocks that may hold them, and where in these each one stands (-1: not live).

    One that is looked for twice is there twice. A change to these episodes is a change of this copy only: what was
    found in an older one would undo what happened since.
    """

    copy: Copy
    opened: Opened
    place: Ints

    @property
    def live(self) -> Flags:
        """Which are live."""
        return self.place >= 0

    @property
    def slots(self) -> Slots:
        """The slots of the live ones."""
        return self.opened.slots[self.place[self.live]]


@dataclass(frozen=True, slots=True, eq=False)
class Copy:
    """Heads in the order of names; contents, None where they are not in memory; where blocks are found.

    Contents that are read are kept, here and in what is made of this copy from then on.
    """

    heads: Heads = field(default_factory=lambda: np.zeros(0, HEAD))
    contents: list[bytes | None] = field(default_factory=list)
    directory: Directory = field(default_factory=lambda: Directory.of(np.zeros(0, HEAD)))
    fetch: Fetch = nothing_stored
    key_of: KeyOf | None = None

    def __len__(self) -> int:
        return len(self.heads)

    @property
    def live(self) -> int:
        """Number of live episodes."""
        return int(self.heads["live"].sum())

    @property
    def domains(self) -> Ints:
        """Domain of each block."""
        domains: Ints = self.heads["domain"]
        return domains

    def reading(self, fetch: Fetch) -> Copy:
        """Return this copy, with what is not in memory read in another way."""
        return replace(self, fetch=fetch)

    def open(self, blocks: Ints) -> Opened:
        """Return the contents of these blocks (ascending, each once), read where they are not in memory.

        Raises
        ------
        StoreCorrupt
            What is read does not agree with the heads.
        """
        places = blocks.tolist()
        contents = [self.contents[place] for place in places]
        if None in contents:
            self._read(blocks[[content is None for content in contents]])
            contents = [self.contents[place] for place in places]
        return Opened.of(blocks, contents, self.heads["live"][blocks].astype(np.int64))

    def _read(self, blocks: Ints) -> None:
        heads = self.heads[blocks]
        contents = self.fetch(heads)
        found = Opened.of(blocks, contents)
        expected = heads.copy()
        if len(contents) == len(blocks):
            describe(expected, found)
            expected["stamp"] = heads["stamp"]
            if self.key_of is not None:
                expected["key"] = least_keys(found, self.key_of)
        unlike = np.flatnonzero(expected != heads) if len(contents) == len(blocks) else np.arange(len(blocks))
        if len(unlike):
            raise damaged(f"block {heads['name'][unlike[0]]}", "does not agree with its head")
        for place, content in zip(blocks.tolist(), contents, strict=True):
            self.contents[place] = content

    def locate(self, ids: Ints, domains: Ints) -> Found:
        """Find episodes, each in its domain. One whose domain is not as given is not found."""
        block = self.directory.find(domains, ids)
        known = block >= 0
        blocks, ordinal = np.unique(block[known], return_inverse=True)
        opened = self.open(blocks)
        place = np.full(len(ids), -1)
        place[known] = opened.find(ordinal, ids[known])
        return Found(self, opened, place)

    def patched(self, found: Found, loss: Floats, count: Ints, event: Ints) -> Copy:
        """Give each live episode that was found its loss, count and last event.

        All are absolute. The largest event of an episode stays, whatever the order; what is older than the slot says is
        passed over. So a patch may come twice, and patches of different moments may come in any order.
        """
        assert found.copy is self, "episodes were found in another copy"
        slots = found.opened.writable()
        newer = np.flatnonzero(found.place >= 0)
        newer = newer[event[newer] > slots["event"][found.place[newer]]]
        newer = newer[np.argsort(event[newer], kind="stable")]
        place = found.place[newer]  # of assignments to the same place the last one stays
        slots["loss"][place] = canonical(loss[newer])
        slots["count"][place] = count[newer]
        slots["event"][place] = event[newer]
        return self._own()._set(found.opened.blocks, cut(slots, found.opened.count), same_ids=True)

    def departed(self, found: Found) -> Copy:
        """Take out the episodes that were found live."""
        assert found.copy is self, "episodes were found in another copy"
        stays = np.ones(len(found.opened.slots), np.bool_)
        stays[found.place[found.live]] = False
        return self._kept(found.opened, stays)

    def departed_until(self, watermark: int, domain: int | None = None) -> Copy:
        """Take out all episodes (of this domain) up to this id."""
        touched = self.heads["first"] <= watermark
        if domain is not None:
            touched &= self.domains == domain
        opened = self.open(np.flatnonzero(touched))
        return self._kept(opened, opened.slots["id"] > watermark)

    def _kept(self, opened: Opened, stays: Flags) -> Copy:
        count = np.bincount(opened.ordinal[stays], minlength=len(opened)).astype(np.int64)
        return self._own()._set(opened.blocks, cut(opened.slots[stays], count))

    def appended(self, ids: Ints, domains: Ints, loss: Floats) -> Copy:
        """Add episodes that were never replayed; the ids ascend, and are above all that were ever added.

        A newcomer enters the last block of its domain; where ``SLOTS`` episodes were put into that, a new one. So where
        an episode stands depends on the newcomers of its domain since the last merging, and on no departure.
        """
        if not len(ids):
            return self
        check_newcomers(self.heads, ids, domains)
        order = np.argsort(domains, kind="stable")
        some, first, sizes = np.unique(domains[order], return_index=True, return_counts=True)
        last = self.directory.last(some)
        room = np.where(last >= 0, SLOTS - self.heads["put"][last] if len(self) else 0, 0)
        rank = np.arange(len(ids)) - np.repeat(first + room, sizes)  # below 0: there is room for it
        begins = np.flatnonzero((rank >= 0) & (rank % SLOTS == 0))
        names = ids[order[begins]]
        place = np.empty(len(names), np.int64)
        place[np.argsort(names)] = len(self) + np.arange(len(names))
        began = np.cumsum((rank >= 0) & (rank % SLOTS == 0)) - 1
        target = np.repeat(last, sizes)
        target[rank >= 0] = place[began[rank >= 0]]
        grown = self._own(head_rows(np.sort(names), domains[order[begins]][np.argsort(names)]))
        by_block = np.argsort(target, kind="stable")
        blocks, count = np.unique(target, return_counts=True)
        pieces = cut(new_slots(ids, loss)[order[by_block]], count)
        grown.heads["put"][blocks] += count.astype(np.int16)
        opened = grown.open(blocks)
        contents = [old + new for old, new in zip(cut(opened.slots, opened.count), pieces, strict=True)]
        return grown._set(blocks, contents)

    def merged(self) -> Copy:
        """Drop empty blocks, and let neighbours of a domain that are together at most half full become one.

        The result depends on heads alone. Contents, and so what is drawn, stay as they are, but for rounding.
        """
        groups = merged_groups(self.heads, self.directory.order)
        if len(groups) == len(self):
            return self
        kept = np.array([group[0] for group in groups], np.int64)
        heads = self.heads[kept]
        contents = [self.contents[place] for place in kept.tolist()]
        joined = [at for at, group in enumerate(groups) if len(group) > 1]
        for at in joined:
            opened = self.open(np.array(groups[at], np.int64))
            contents[at] = opened.slots.tobytes()
            heads["put"][at] = len(opened.slots)
        smaller = replace(self, heads=heads, contents=contents, directory=Directory.of(heads))
        return smaller._set(np.array(joined, np.int64), [contents[at] or b"" for at in joined])

    def _own(self, new: Heads | None = None) -> Copy:
        """Return a copy with tables of its own, with these empty blocks behind the others."""
        if new is None or not len(new):
            return replace(self, heads=own(self.heads), contents=self.contents.copy())
        heads = own(self.heads, new)
        contents = [*self.contents, *[b""] * len(new)]
        return replace(self, heads=heads, contents=contents, directory=self.directory.extended(heads, len(self)))

    def _set(self, blocks: Ints, contents: Sequence[bytes], *, same_ids: bool = False) -> Copy:
        """Let these blocks hold this, in a copy whose tables nobody else has."""
        if not len(blocks):
            return self
        opened = Opened.of(blocks, contents)
        heads = self.heads[blocks]
        describe(heads, opened)
        if not same_ids:
            heads["key"] = NO_ID if self.key_of is None else least_keys(opened, self.key_of)
        self.heads[blocks] = heads
        for place, content in zip(blocks.tolist(), contents, strict=True):
            self.contents[place] = content
        return self
