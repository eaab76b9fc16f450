"""The table of heads: what is known of every block without its slots, 104 bytes for 80 episodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.blocks.pages import Opened, Pages
from memstore.buffer.blocks.slots import NO_ID, SLOTS, Flags, Floats, Ints, among
from memstore.errors import ConfigError, StoreCorrupt
from memstore.storage.schema import SEQUENCE_BITS
from memstore.storage.stored import damaged

Heads = NDArray[np.void]
"""Array of ``HEAD``, in the order of names."""

HEAD = np.dtype(
    [
        ("name", "<i8"),
        ("domain", "<i8"),
        ("first", "<i8"),
        ("last", "<i8"),
        ("least", "<f8"),
        ("largest", "<f8"),
        ("mean", "<f8"),
        ("sum", "<f8"),
        ("key", "<i8"),
        ("stamp", "<i8"),
        ("token", "<i8"),
        ("unit", "<i4"),
        ("put", "<i2"),
        ("live", "<i2"),
        ("gaps", "<i2"),
    ],
    align=True,
)
"""A head has these fields.

Name and domain; first and last live id (``NO_ID`` and -1 of an empty block); least and largest measured loss (inf and
-inf where there is none); mean of the measured losses (0 where there is none); sum of the weights of the measured ones,
in units of ``2 ** unit``; least eviction key (``NO_ID`` where there is none); stamp; token of the write that stored the
block as it is (0: it is not stored so); how many episodes were put in since the block was made, how many are live, how
many of these were never measured.
"""

MAX_DOMAIN = 2**23 - 1
"""A domain and a sequence of 40 bits fit one number of 64, by which blocks are found."""

ROUNDING = 1e-9
"""Sums that another machine stored may have this relative distance from those that this one computes."""

KeyOf = Callable[[Ints], Ints]
"""Such a function returns the eviction keys of episodes. A key depends on the id alone."""

_stamps = itertools.count(1)


def new_stamp() -> int:
    """Return a number that no content of this process had before. It tells contents apart; nothing drawn depends on it.

    A count for each copy would not do: a transaction that was rolled back and its successor would count alike.
    """
    return next(_stamps)


def own(heads: Heads, *new: Heads) -> Heads:
    """Return a copy of the table, with more rows behind it."""
    # As whole numbers: numpy copies rows of a structured array one by one, 190 us for 8,363 of them, and not 10.
    return np.concatenate([rows.view(np.int64) for rows in (heads, *new)]).view(HEAD)


def with_changes(heads: Heads, changed: Heads) -> Heads:
    """Return the heads of a later moment, at which these are others, or new, and no block has vanished."""
    known, at = among(changed["name"], heads["name"])
    both = own(heads, changed[~known])
    both[at[known]] = changed[known]
    return both if (np.diff(both["name"]) > 0).all() else both[np.argsort(both["name"])]


def fingerprint(heads: Heads) -> int:
    """Return one number of 64 bits with a sign for the names and tokens of all blocks.

    It stands in the buffer's row. A process that follows the writes of others notices by it that it misses a block,
    has one too many, or has one of a write that the server forgot.
    """
    with np.errstate(over="ignore"):
        mixed = heads["name"] * np.int64(-7046029254386353131) + heads["token"]
        mixed ^= mixed >> np.int64(29)
        mixed *= np.int64(-4658895280553007687)
        return int(mixed.sum())


def alike(one: Heads, other: Heads) -> Flags:
    """Flag the heads with the same sum, as far as two machines may round it differently."""
    with np.errstate(over="ignore", under="ignore"):
        sums = np.ldexp(one["sum"], one["unit"] - other["unit"])
    flags: Flags = np.isclose(sums, other["sum"], rtol=ROUNDING, atol=0.0)
    return flags


def head_rows(names: Ints, domains: Ints) -> Heads:
    """Return heads of empty blocks."""
    heads = np.zeros(len(names), HEAD)
    heads["name"], heads["domain"] = names, domains
    heads["first"], heads["last"], heads["key"] = NO_ID, -1, NO_ID
    heads["least"], heads["largest"] = np.inf, -np.inf
    return heads


def describe(heads: Heads, blocks: Opened, pages: Pages) -> Floats:
    """Compute all fields of these heads that follow from the content, except the eviction key.

    Returns
    -------
    array, shape (blocks, slots)
        The cumulative weights behind the sums.
    """
    loss, count = blocks.loss, blocks.count
    heads["least"] = np.fmin.reduce(loss, axis=1, initial=np.inf)
    heads["largest"] = np.fmax.reduce(loss, axis=1, initial=-np.inf)
    heads["live"] = count
    measured = loss >= 0
    known = measured.sum(axis=1)
    heads["gaps"] = count - known
    # In units of 2 ** 8, an exact division, no sum of 80 losses overflows. The mean may round above the largest loss.
    scaled = (np.where(measured, loss, 0.0) * 2.0**-8).cumsum(axis=1)[:, -1]
    heads["mean"] = np.minimum(scaled / np.maximum(known, 1) * 2.0**8, np.maximum(heads["largest"], 0.0))
    some = count > 0
    heads["first"] = np.where(some, blocks.ids[:, 0], NO_ID)
    heads["last"] = np.where(some, blocks.ids[np.arange(len(blocks)), np.maximum(count, 1) - 1], -1)
    heads["stamp"], heads["token"] = new_stamp(), 0
    steps, heads["unit"] = pages.weigh(loss)
    heads["sum"] = steps[:, -1]
    return steps


def least_keys(blocks: Opened, key_of: KeyOf) -> Ints:
    """Return the least eviction key in each block."""
    keys = np.full(blocks.used.shape, NO_ID)
    keys[blocks.used] = key_of(blocks.ids[blocks.used])
    least: Ints = np.minimum.reduce(keys, axis=1, initial=NO_ID)
    return least


@dataclass(frozen=True, slots=True)
class Directory:
    """Blocks by domain, and those of a domain by name: which block an episode stands in, if it is live.

    Names of a domain ascend. So an episode can only be in the last block of its domain with a name up to its id.
    """

    keys: Ints
    order: Ints

    @classmethod
    def of(cls, heads: Heads) -> Directory:
        """Make a directory of these heads."""
        keys = _keys(heads["domain"], heads["name"])
        order = np.argsort(keys, kind="stable")
        return cls(keys[order], order)

    @classmethod
    def read(cls, heads: Heads) -> Directory:
        """Make it of heads that come from elsewhere.

        Raises
        ------
        StoreCorrupt
            The blocks of a domain overlap, so that an episode would be looked for in the wrong one.
        """
        made = cls.of(heads)
        for name, other in made.overlaps(heads)[:1]:
            raise damaged(f"block {name}", f"reaches into block {other} of the same domain")
        return made

    def overlaps(self, heads: Heads) -> list[tuple[int, int]]:
        """Return the names of neighbours if the last episode of the first one may stand in the second one only."""
        name, last, domain = (heads[field][self.order] for field in ("name", "last", "domain"))
        over = np.flatnonzero((domain[1:] == domain[:-1]) & (last[:-1] >= name[1:]))
        return list(zip(name[over].tolist(), name[over + 1].tolist(), strict=True))

    def extended(self, heads: Heads, old: int) -> Directory:
        """Return this one with the blocks from place ``old`` on."""
        keys = _keys(heads["domain"][old:], heads["name"][old:])
        order = np.argsort(keys)
        at = np.searchsorted(self.keys, keys[order])
        return Directory(np.insert(self.keys, at, keys[order]), np.insert(self.order, at, order + old))

    def find(self, domains: Ints, ids: Ints) -> Ints:
        """Return the place of the only block that may hold each episode; -1 where there is none."""
        if not len(self.keys):
            return np.full(len(ids), -1)
        wanted = _keys(domains, ids)
        at = np.searchsorted(self.keys, wanted, side="right") - 1
        there = (at >= 0) & (self.keys[at] >> SEQUENCE_BITS == wanted >> SEQUENCE_BITS)
        return np.where(there, self.order[at], -1)

    def last(self, domains: Ints) -> Ints:
        """Return the place of the last block of each domain; -1 where there is none."""
        return self.find(domains, np.full(len(domains), (1 << SEQUENCE_BITS) - 1))


def _keys(domains: Ints, ids: Ints) -> Ints:
    keys: Ints = (domains << SEQUENCE_BITS) | (ids & ((1 << SEQUENCE_BITS) - 1))
    return keys


def check_newcomers(heads: Heads, ids: Ints, domains: Ints) -> None:
    """Raise unless these episodes can be appended.

    Raises
    ------
    StoreCorrupt
        Their ids do not ascend, or are not above all that were appended before.
    ConfigError
        A domain has a number that no block can have.
    """
    known = max(int(heads["name"][-1]), int(heads["last"].max())) if len(heads) else -1
    if ids[0] <= known or (ids[1:] <= ids[:-1]).any():
        raise StoreCorrupt(f"episode {ids[0]} cannot follow {known}: ids ascend; run 'memstore check'")
    if int(domains.max()) > MAX_DOMAIN or int(domains.min()) < 0:
        raise ConfigError(f"a buffer has at most {MAX_DOMAIN} domains; give related episodes the same domain")


def merged_groups(heads: Heads, order: Ints) -> list[list[int]]:
    """Return places of blocks that are to become one, in the order of their names; empty blocks are in none.

    Of each domain from left to right: a block joins those before it while together they are at most half full.
    """
    alive = order[heads["live"][order] > 0]
    groups: list[list[int]] = []
    size, domain = 0, -1
    for place, live, of in zip(
        alive.tolist(), heads["live"][alive].tolist(), heads["domain"][alive].tolist(), strict=True
    ):
        if of == domain and size + live <= SLOTS // 2:
            groups[-1].append(place)
            size += live
        else:
            groups.append([place])
            size, domain = live, of
    return sorted(groups)
