"""Find the first episodes in an order by heads: the oldest, the smallest losses, the smallest keys.

A head bounds what its block holds, so the k first of a buffer stand in the k blocks with the least bounds, and in the
blocks with a bound that is not beyond the k-th of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import KeyOf
from memstore.buffer.blocks.pages import Opened
from memstore.buffer.blocks.slots import PLACE_BITS, Flags, Ints

Values = NDArray[np.int64] | NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class First:
    """The first in an order: their ids, their places, and what they are ordered by."""

    ids: Ints
    places: Ints
    values: Values


def oldest(copy: Copy, count: int, domain: int | None = None) -> First:
    """Return the live episodes with the smallest ids (of this domain), smallest first."""
    among = copy.heads["live"] > 0
    if domain is not None:
        among &= copy.domains == domain
    return _first(copy, count, copy.heads["first"], among, lambda opened: (opened.ids, opened.used))


def oldest_unmeasured(copy: Copy, count: int) -> First:
    """Return the never measured episodes with the smallest ids, smallest first."""

    def values(opened: Opened) -> tuple[Values, Flags]:
        return opened.ids, opened.used & np.isnan(opened.loss)

    return _first(copy, count, copy.heads["first"], copy.heads["gaps"] > 0, values)


def smallest_losses(copy: Copy, count: int) -> First:
    """Return the measured episodes with the smallest losses, smallest first; of equal ones the older first."""

    def values(opened: Opened) -> tuple[Values, Flags]:
        loss = opened.loss
        return loss, loss >= 0

    return _first(copy, count, copy.heads["least"], copy.heads["live"] > copy.heads["gaps"], values)


def smallest_keys(copy: Copy, count: int, key_of: KeyOf) -> First:
    """Return the episodes with the smallest eviction keys, smallest first; of equal ones the older first."""

    def values(opened: Opened) -> tuple[Values, Flags]:
        keys = opened.ids.copy()
        keys[opened.used] = key_of(keys[opened.used])
        return keys, opened.used

    return _first(copy, count, copy.heads["key"], copy.heads["live"] > 0, values)


def _first(
    copy: Copy,
    count: int,
    bounds: Values,
    among: Flags,
    values_of: Callable[[Opened], tuple[Values, Flags]],
) -> First:
    """Return the ``count`` first by value, then id, in these blocks."""
    blocks = np.flatnonzero(among)
    if count <= 0 or not len(blocks):
        return First(np.zeros(0, np.int64), np.zeros(0, np.int64), bounds[:0])
    bound, oldest_id = bounds[blocks], copy.heads["first"][blocks]
    chosen = _least(bound, oldest_id, count)
    ids, places, values = _opened(copy, blocks[chosen], values_of)
    best = np.lexsort((ids, values))[:count]
    if len(chosen) < len(blocks):
        # An equal value of an older episode may be in a block that was not opened; so may be more, if bounds are not
        # bounds of the counted episodes (the oldest episode of a block may be measured).
        rest = np.ones(len(blocks), np.bool_)
        rest[chosen] = False
        if len(best) == count:
            last, last_id = values[best[-1]], ids[best[-1]]
            rest &= (bound < last) | ((bound == last) & (oldest_id < last_id))
        if rest.any():
            more = _opened(copy, blocks[rest], values_of)
            ids, places = np.concatenate([ids, more[0]]), np.concatenate([places, more[1]])
            values = np.concatenate([values, more[2]])
            best = np.lexsort((ids, values))[:count]
    return First(ids[best], places[best], values[best])


def _least(bound: Values, oldest_id: Ints, count: int) -> Ints:
    """Return places of the ``count`` least, by bound, then oldest id."""
    if count >= len(bound):
        return np.arange(len(bound))
    limit = np.partition(bound, count - 1)[count - 1]
    below = np.flatnonzero(bound < limit)
    equal = np.flatnonzero(bound == limit)
    equal = equal[np.argsort(oldest_id[equal], kind="stable")[: count - len(below)]]
    return np.sort(np.concatenate([below, equal]))


def _opened(copy: Copy, blocks: Ints, values_of: Callable[[Opened], tuple[Values, Flags]]) -> tuple[Ints, Ints, Values]:
    opened = copy.open(np.sort(blocks))
    values, flags = values_of(opened)
    block, slot = np.nonzero(flags)
    return opened.ids[flags], (opened.blocks[block] << PLACE_BITS) + slot, values[flags]
