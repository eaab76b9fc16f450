"""The copy: all blocks of a buffer, and their heads, as of one moment.

A copy is a value: a change makes another copy, which shares all pages that did not change. So a transaction or a
savepoint needs no more than the copy that it began with, and a reader no lock. At 1M episodes a write takes 15 us for
tables of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np

from memstore.buffer.blocks.heads import (
    HEAD,
    Directory,
    Heads,
    KeyOf,
    alike,
    check_newcomers,
    describe,
    head_rows,
    least_keys,
    merged_groups,
    own,
)
from memstore.buffer.blocks.pages import EMPTY, Opened, Pages, compacted, empty, opened, reached
from memstore.buffer.blocks.slots import (
    AT,
    COLUMNS,
    COUNT,
    EVENT,
    ID,
    LOSS,
    LOWEST,
    NO_ID,
    PLACE_BITS,
    SLOTS,
    Flags,
    Floats,
    Ints,
    Slots,
    among,
    canonical,
    distinct,
    runs,
)
from memstore.buffer.blocks.weights import Law
from memstore.storage.stored import damaged

CHUNK = 512
"""A pass over all blocks opens this many at a time: 2 MB, and 5 MB for the arrays computed from them."""

Fetch = Callable[[Heads], list[bytes]]
"""Reads the contents of these blocks, as of the same moment, from where they are stored."""


def nothing_stored(heads: Heads) -> list[bytes]:
    """Stand for a ``Fetch`` where all contents are in memory."""
    raise damaged(f"block {heads['name'][0]}", "is not in memory, and nothing is known of where it is stored")


@dataclass(frozen=True, slots=True, eq=False)
class Found:
    """Places of episodes looked for in a copy, -1 for those that are not live.

    One that is looked for twice is there twice. A change to these episodes is a change of this copy only: what was
    found in an older one would undo later changes.
    """

    copy: Copy
    places: Ints

    @property
    def live(self) -> Flags:
        """Flags: True for an episode that is live."""
        return self.places >= 0

    @property
    def slots(self) -> Slots:
        """The slots of the live ones."""
        return self.copy.read(self.places[self.live])


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Copy:
    """Heads in the order of names; the page of each block, -1 where it is not in memory; where blocks are found.

    Contents that are read are kept, here and in what is made of this copy from then on.
    """

    heads: Heads
    page: Ints
    pages: Pages
    directory: Directory
    fetch: Fetch
    key_of: KeyOf | None

    def __post_init__(self) -> None:
        self.pages.register(self)

    @classmethod
    def of(
        cls, law: Law, heads: Heads | None = None, *, fetch: Fetch = nothing_stored, key_of: KeyOf | None = None
    ) -> Copy:
        """Return a copy with these heads and nothing in memory; empty without heads.

        Parameters
        ----------
        law : Law
            The buffer's own, by which the sums of the heads are.
        key_of : callable, optional
            The eviction keys of episodes, where the policy has some.
        """
        heads = np.zeros(0, HEAD) if heads is None else heads
        return cls(heads, np.full(len(heads), -1), Pages(law), Directory.read(heads), fetch, key_of)

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
        return Copy(self.heads, self.page, self.pages, self.directory, fetch, self.key_of)

    def detached(self) -> Copy:
        """Return this copy without a way to read what is not in memory."""
        return self.reading(nothing_stored)

    def replaced(self, heads: Heads) -> Copy:
        """Return the copy of a later snapshot with these heads. Contents that are the same stay in memory.

        They are the same where the token is: it is another one in each write, also where a server forgot some.
        """
        known, at = among(heads["name"], self.heads["name"])
        known &= (heads["token"] != 0) & (heads["token"] == self.heads["token"][at] if len(self) else known)
        heads, page = own(heads), np.full(len(heads), -1)
        page[known] = self.page[at[known]]
        heads["stamp"][known] = self.heads["stamp"][at[known]]
        return replace(self, heads=heads, page=page, directory=Directory.read(heads))

    def as_stored(self, blocks: Ints, token: int) -> Copy:
        """Return this copy, with these blocks stored as they are by the write of this token."""
        heads = own(self.heads)
        heads["token"][blocks] = token
        return replace(self, heads=heads)

    def paged(self, blocks: Ints) -> Ints:
        """Return the pages of these blocks, after reading what is not in memory.

        Raises
        ------
        StoreCorrupt
            What is read does not agree with the heads.
        """
        pages = self.page[blocks]
        if pages.min(initial=0) < 0:
            self._read(distinct(blocks[pages < 0]))
            pages = self.page[blocks]
        self.pages.used(pages)
        return pages

    def forgotten(self, most: int) -> Copy:
        """Return this copy with only so many contents in memory, those used last; others are read when needed.

        What is not stored as it is stays in any case.
        """
        if len(self) <= most:
            return self
        excess = int((self.page >= 0).sum()) - most
        stored = np.flatnonzero((self.page >= 0) & (self.heads["token"] != 0))
        if excess <= 0 or not len(stored):
            return self
        page = self.page.copy()
        page[stored[self.pages.used_first(page[stored], excess)]] = -1
        return replace(self, page=page)

    def configured(self, law: Law, key_of: KeyOf | None) -> Copy:
        """Return this copy with sums by another law, or keys of another policy; it reads all contents."""
        other = replace(self, heads=own(self.heads), page=np.full(len(self), -1), pages=Pages(law), key_of=key_of)
        for blocks in self.chunks(np.arange(len(self))):
            other._set(blocks)
        return other

    def open(self, blocks: Ints) -> Opened:
        """Return the contents of these blocks (ascending, each once), in arrays of their own."""
        pages = self.paged(blocks)
        return Opened(blocks, self.heads["live"][blocks].astype(np.int64), self.pages.columns[pages])

    def chunks(self, blocks: Ints) -> Iterator[Opened]:
        """Yield the contents of these blocks, ``CHUNK`` of them at a time."""
        for start in range(0, len(blocks), CHUNK):
            yield self.open(blocks[start : start + CHUNK])

    def read(self, places: Ints) -> Slots:
        """Return the slots at these places."""
        pages = self.paged(places >> PLACE_BITS)
        return Slots.of(np.ascontiguousarray(self.pages.columns[pages, :, places & ((1 << PLACE_BITS) - 1)].T))

    def locate(self, ids: Ints, domains: Ints) -> Found:
        """Find episodes, each in its domain. An episode of another domain is not found."""
        block = self.directory.find(domains, ids)
        places = np.full(len(ids), -1)
        known = np.flatnonzero(block >= 0)
        block, wanted = block[known], ids[known]
        pages = self.paged(block)
        flat = self.pages.columns.reshape(-1)
        start = pages * (COLUMNS * SLOTS) + ID * SLOTS
        slot = reached(flat, start, self.heads["live"][block].astype(np.int64), wanted) - 1
        there = slot >= 0
        there[there] = flat[start[there] + slot[there]] == wanted[there]
        places[known[there]] = (block[there] << PLACE_BITS) + slot[there]
        return Found(self, places)

    def patched(
        self,
        found: Found,
        loss: Floats,
        count: Ints,
        event: Ints,
        lowest: Floats | None = None,
        at: Floats | float = np.nan,
    ) -> Copy:
        """Give each live episode that was found its loss, count, last event, and time of the last replay.

        All are absolute. The largest count of an episode stays, whatever the order; a patch with a count that is not
        above that of the slot changes at most the lowest loss. That becomes ``lowest`` (``loss`` by default) if this is
        smaller. So a patch may come twice, and patches may come in any order.
        """
        assert found.copy is self, "episodes were found in another copy"
        live = np.argsort(count, kind="stable")  # of assignments to the same place the last one stays
        live = live[found.live[live]]
        block, slot = found.places[live] >> PLACE_BITS, found.places[live] & ((1 << PLACE_BITS) - 1)
        blocks = distinct(block)
        ordinal = np.searchsorted(blocks, block)
        changed = self.open(blocks)
        least = changed.columns[:, LOWEST].view(np.float64)
        np.fmin.at(least, (ordinal, slot), (loss if lowest is None else lowest)[live] + 0.0)
        newer = count[live] > changed.columns[ordinal, COUNT, slot]
        live, ordinal, slot = live[newer], ordinal[newer], slot[newer]
        changed.columns[ordinal, LOSS, slot] = canonical(loss[live])
        changed.columns[ordinal, COUNT, slot] = count[live]
        changed.columns[ordinal, EVENT, slot] = event[live]
        changed.columns[ordinal, AT, slot] = canonical(np.broadcast_to(at, len(count))[live])
        return self._own()._set(changed, same_ids=True)

    def departed(self, found: Found) -> Copy:
        """Take out the episodes that were found live."""
        assert found.copy is self, "episodes were found in another copy"
        places = found.places[found.live]
        blocks = distinct(places >> PLACE_BITS)
        thinned = self.open(blocks)
        stays = thinned.used
        stays[np.searchsorted(blocks, places >> PLACE_BITS), places & ((1 << PLACE_BITS) - 1)] = False
        return self._own()._set(compacted(thinned, stays))

    def departed_until(self, watermark: int, domain: int | None = None) -> Copy:
        """Take out all episodes (of this domain) up to this id."""
        touched = self.heads["first"] <= watermark
        if domain is not None:
            touched &= self.domains == domain
        thinned = self.open(np.flatnonzero(touched))
        return self._own()._set(compacted(thinned, thinned.used & (thinned.ids > watermark)))

    def appended(
        self,
        ids: Ints,
        domains: Ints,
        loss: Floats,
        count: Ints | int = 0,
        event: Ints | int = 0,
        lowest: Floats | None = None,
        at: Floats | float = np.nan,
    ) -> Copy:
        """Add episodes; the ids ascend, and are above all that were ever added.

        Newcomers were never replayed, and their lowest loss is their loss. The other columns are for a copy that is
        built from the tables of a database.

        A newcomer enters the last block of its domain; where ``SLOTS`` episodes were put into that, a new one. So where
        an episode stands depends on the newcomers of its domain since the last merging, and on no departure.
        """
        if not len(ids):
            return self
        check_newcomers(self.heads, ids, domains)
        order = np.argsort(domains, kind="stable")
        target, names = self._targets(ids[order], domains[order])
        grown = self._own(head_rows(names, domains[np.searchsorted(ids, names)]) if len(names) else None)
        by_block = np.argsort(target, kind="stable")
        order = order[by_block]
        blocks, first, more = runs(target[by_block])
        filled = grown.open(blocks)
        ordinal = np.arange(len(blocks)).repeat(more)
        slot = filled.count[ordinal] + np.arange(len(ids)) - first[ordinal]
        new = np.empty((len(ids), COLUMNS), np.int64)
        new[:, ID] = ids[order]
        new[:, LOSS] = new[:, LOWEST] = canonical(loss[order])
        if lowest is not None:
            new[:, LOWEST] = canonical(lowest[order])
        new[:, AT] = canonical(at[order] if isinstance(at, np.ndarray) else np.full(1, at))
        new[:, COUNT] = count[order] if isinstance(count, np.ndarray) else count
        new[:, EVENT] = event[order] if isinstance(event, np.ndarray) else event
        filled.columns[ordinal, :, slot] = new
        grown.heads["put"][blocks] += more.astype(np.int16)
        return grown._set(Opened(blocks, filled.count + more, filled.columns))

    def _targets(self, ids: Ints, domains: Ints) -> tuple[Ints, Ints]:
        """Return the block that each newcomer enters, and the names of those that are new; they come by domain."""
        some, first, sizes = runs(domains)
        last = self.directory.last(some)
        room = np.where(last >= 0, SLOTS - self.heads["put"][last], 0) if len(self) else np.zeros_like(last)
        rank = np.arange(len(ids)) - (first + room).repeat(sizes)  # below 0: there is room for it
        if rank[-1] < 0 and (rank < 0).all():
            return last.repeat(sizes), ids[:0]
        begins = (rank >= 0) & (rank % SLOTS == 0)
        names = ids[begins]
        place = len(self) + np.argsort(np.argsort(names))  # blocks stand in the order of names
        target = np.repeat(last, sizes)
        target[rank >= 0] = place[np.cumsum(begins)[rank >= 0] - 1]
        return target, np.sort(names)

    def merged(self) -> Copy:
        """Drop empty blocks, and let neighbours of a domain that are together at most half full become one.

        The result depends on heads alone. Contents stay as they are, and draws stay the same, except for rounding.
        """
        groups = merged_groups(self.heads, self.directory.order)
        if len(groups) == len(self):
            return self
        kept = np.array([group[0] for group in groups], np.int64)
        heads = self.heads[kept]
        joined = [at for at, group in enumerate(groups) if len(group) > 1]
        result = Opened(np.array(joined, np.int64), np.zeros(len(joined), np.int64), empty(len(joined)))
        for at, block in enumerate(joined):
            part = self.open(np.array(groups[block], np.int64))
            heads["put"][block] = result.count[at] = part.count.sum()
            result.columns[at, :, : result.count[at]] = part.columns.transpose(1, 0, 2)[:, part.used]
        fewer = replace(self, heads=heads, page=self.page[kept], directory=Directory.of(heads))
        return fewer._set(result)

    def _own(self, new: Heads | None = None) -> Copy:
        """Return a copy with tables of its own, with these empty blocks behind the others."""
        if new is None or not len(new):
            return Copy(own(self.heads), self.page.copy(), self.pages, self.directory, self.fetch, self.key_of)
        heads = own(self.heads, new)
        page = np.concatenate([self.page, np.full(len(new), EMPTY)])
        return replace(self, heads=heads, page=page, directory=self.directory.extended(heads, len(self)))

    def _set(self, blocks: Opened, *, same_ids: bool = False) -> Copy:
        """Let these blocks hold this, in a copy with tables of its own."""
        if not len(blocks):
            return self
        heads = self.heads[blocks.blocks]
        steps = describe(heads, blocks, self.pages)
        if not same_ids:
            heads["key"] = NO_ID if self.key_of is None else least_keys(blocks, self.key_of)
        self.heads[blocks.blocks] = heads
        self.pages.write(self, blocks.blocks, blocks.columns, steps)
        return self

    def _read(self, blocks: Ints) -> None:
        heads = self.heads[blocks]
        contents = self.fetch(heads)
        if len(contents) != len(blocks):
            raise damaged(f"block {heads['name'][0]}", f"is one of {len(blocks)}, and {len(contents)} were found")
        found, expected = opened(blocks, contents), own(heads)
        steps = describe(expected, found, self.pages)
        expected["key"] = NO_ID if self.key_of is None else least_keys(found, self.key_of)
        like = alike(expected, heads)
        for name in ("stamp", "token", "sum", "unit"):
            expected[name] = heads[name]
        unlike = np.flatnonzero((expected != heads) | ~like)
        if len(unlike):
            raise damaged(f"block {heads['name'][unlike[0]]}", "does not agree with its head")
        self.pages.fill(self, blocks, found.columns, steps)
