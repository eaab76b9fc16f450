"""The reservoir's keys of any episodes: the same numbers as a generator gives one after the other.

Philox is a function of a counter (Salmon et al. 2011), here computed for many counters at once. A generator that is
moved to the first of them would have to run through all in between: of episodes that stayed long, millions.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.blocks.slots import Ints
from memstore.storage.schema import first_id

Words = NDArray[np.uint64]

ROUNDS = 10
_MULTIPLIERS = np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157)
_WEYL = 0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


def reservoir_keys(seed: int, sequence: Ints) -> Ints:
    """Return 63 random bits for each insertion number, a function of it and of the buffer's seed alone.

    Equal to the first word of each block of ``numpy.random.Philox(key=seed, counter=number)``.
    """
    # The generator counts up before it gives the first block.
    first = sequence.astype(np.uint64) + np.uint64(1)
    counter = [first, *(np.zeros(len(sequence), np.uint64) for _ in range(3))]
    key = [seed & 0xFFFFFFFFFFFFFFFF, seed >> 64 & 0xFFFFFFFFFFFFFFFF]
    for _ in range(ROUNDS):
        high0, low0 = _product(_MULTIPLIERS[0], counter[0])
        high1, low1 = _product(_MULTIPLIERS[1], counter[2])
        counter = [high1 ^ counter[1] ^ np.uint64(key[0]), low1, high0 ^ counter[3] ^ np.uint64(key[1]), low0]
        key = [(part + weyl) & 0xFFFFFFFFFFFFFFFF for part, weyl in zip(key, _WEYL, strict=True)]
    keys: Ints = (counter[0] >> np.uint64(1)).astype(np.int64)
    return keys


def keys_of_ids(seed: int, buffer_id: int, ids: Ints) -> Ints:
    """Return the reservoir's keys of episodes of this buffer."""
    return reservoir_keys(seed, ids - first_id(buffer_id))


def _product(a: np.uint64, b: Words) -> tuple[Words, Words]:
    """Return the high and the low 64 bits of a product of 128."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> _HALF, b & _LOW, b >> _HALF
    low, cross = a_low * b_low, a_high * b_low
    middle = (low >> _HALF) + (cross & _LOW) + a_low * b_high
    high: Words = a_high * b_high + (cross >> _HALF) + (middle >> _HALF)
    with np.errstate(over="ignore"):
        return high, a * b
