"""Weights of episodes, and their sums in units of a power of two.

A weight is ``priority ** alpha``. With alpha up to 50 and losses from 0 to 1e308 its logarithm lies between -54,000 and
52,000, so each block has a unit ``2 ** u`` of its own, found from its largest weight. Units are multiples of ``UNIT``:
most blocks of most buffers have the unit 1. Sums are compared after they are brought to the largest unit, which is
exact: the terms that become zero by that are less than ``2 ** -700`` of the total.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memstore.buffer.blocks.slots import Floats, Ints

UNIT = 512
"""Units have this distance, as base-2 logarithms.

The largest weight of a block is from ``2 ** -256`` to ``2 ** 256`` units. A sum of 2**40 of them is far from the
largest float, and a weight too small to be a normal number is below ``2 ** -760`` of the largest.
"""

FAR = -4096
"""A unit so far below the largest one makes zero of every sum."""


@dataclass(frozen=True, slots=True)
class Law:
    """``(loss + epsilon) ** alpha``; equal laws give equal weights."""

    alpha: float
    epsilon: float

    def log2(self, loss: Floats) -> Floats:
        """Return base-2 logarithms of the weights, NaN for the never measured."""
        # In a new array without gaps: numpy may compute a strided one by other instructions, and to other bits.
        log2: Floats = np.log2(loss + self.epsilon)
        log2 *= self.alpha
        return log2

    def log2_unmeasured(self, top: float) -> float:
        """Return the same for the never measured. Their priority is the largest ever measured."""
        return self.alpha * float(np.log2(top))


def unit_of(log2: Floats) -> Ints:
    """Return the unit of blocks with these largest weights (as logarithms); 0 where nothing has a weight."""
    some = np.where(np.isfinite(log2), log2, 0.0)
    return (np.floor((some + UNIT // 2) / UNIT) * UNIT).astype(np.int64)


def steps_of(log2: Floats) -> tuple[Floats, Ints]:
    """Return cumulative sums of the weights in each row, and their units.

    Parameters
    ----------
    log2 : array, shape (blocks, slots)
        Logarithms of the weights, -inf for what cannot be drawn and for cells that are no slots.

    Returns
    -------
    steps : array, shape (blocks, slots)
        In units. The last of a row is the sum of the block: the sequential sum of the slots in their order. A zero in
        between changes nothing of it, so neither holes nor cells that are no slots do.
    unit : array, shape (blocks,)
        Base-2 logarithms of the units.
    """
    unit = unit_of(np.maximum.reduce(log2, axis=1, initial=-np.inf))
    return np.exp2(log2 - unit[:, None]).cumsum(axis=1), unit


def in_largest_unit(sums: Floats, unit: Ints, least: float = -np.inf) -> tuple[Floats, int]:
    """Return sums in the largest unit of those above zero, and that unit; it is at least that of the weight ``least``.

    ``least`` is a logarithm.
    """
    wanted = int(unit_of(np.array(least))) if np.isfinite(least) else None
    if len(unit) and unit.min() == (same := int(unit.max())) and wanted in (None, same):
        return sums, same  # as it is in ordinary training
    used = unit[sums > 0]
    largest = int(used.max()) if len(used) else 0
    if wanted is not None:
        largest = max(largest, wanted) if len(used) else wanted
    return np.ldexp(sums, np.maximum(unit - largest, FAR)), largest
