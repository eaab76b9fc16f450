"""Draws by age, the newer the likelier: ages are proposed, and an age without a live episode is no candidate.

Ages change with every newcomer, so blocks have no sums of them. An octave of ages is chosen by its size and by the
weight of its youngest age, an age in it evenly, and accepted by its weight over that one: more than half are, for
exponents up to 2. Where many episodes have left between others, or few pass a test, keys decide after a few rounds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.pages import Opened
from memstore.buffer.blocks.slots import PLACE_BITS, Floats, Ints
from memstore.buffer.blocks.views import View
from memstore.draws.arithmetic import log2_sum, power_sum
from memstore.draws.weighted import ROUNDS, SCAN_SHARE, by_keys, choose
from memstore.testing import count

MOST_PROPOSED = 16
"""This is the largest number of ages that a round proposes for each episode wanted."""

DomainsOf = Callable[[Ints], Ints]
"""Domains of episodes, live or not; any number where it is not known."""


@dataclass(frozen=True, slots=True)
class Ages:
    """``age ** -alpha``, age 1 for the id that was given out last.

    Attributes
    ----------
    newest : int
        The id that was given out last, whether its episode is live or not.
    """

    alpha: float
    newest: int

    def log2(self, ids: Ints) -> Floats:
        """Return base-2 logarithms of the weights."""
        log2: Floats = np.log2((self.newest + 1 - ids).astype(np.float64))
        log2 *= -self.alpha
        return log2

    def span(self, copy: Copy) -> tuple[int, int]:
        """Return the ages of the newest and of the oldest live episode."""
        return self.newest + 1 - int(copy.heads["last"].max()), self.newest + 1 - int(copy.heads["first"].min())

    def octaves(self, copy: Copy) -> tuple[Ints, Ints]:
        """Return the youngest age of each octave that live episodes span, and how many ages it has."""
        youngest, oldest = self.span(copy)
        edges = 2 ** np.arange(oldest.bit_length() + 1, dtype=np.int64)
        first = np.maximum(edges[:-1], youngest)
        return first, np.maximum(np.minimum(edges[1:], oldest + 1) - first, 0)


def aged(
    copy: Copy,
    view: View,
    ages: Ages,
    domains_of: DomainsOf,
    rng: np.random.Generator,
    wanted: int,
    *,
    replacement: bool = False,
) -> Ints:
    """Draw places in proportion to the law of ages, among those that the view (without a law) allows."""
    left = int(view.live.sum())
    wanted = (wanted if left else 0) if replacement else min(wanted, left)
    places = np.zeros(0, np.int64)
    if wanted and (replacement or wanted * SCAN_SHARE < left):
        first, size = ages.octaves(copy)
        for _ in range(ROUNDS):
            if len(places) == wanted:
                break
            count("rounds")
            number = _proposals(wanted - len(places), int(size.sum()), left)
            found = _round(copy, view, ages, domains_of, rng, number, first, size)
            places = np.concatenate([places, found])
            if not replacement:
                places = places[np.sort(np.unique(places, return_index=True)[1])]
            places = places[:wanted]
    if len(places) == wanted:
        return places
    if replacement:
        return np.concatenate([places, _listed(copy, view, ages, rng, wanted - len(places))])
    rest = view.without(copy, places) if len(places) else view
    return np.concatenate([places, by_keys(copy, rest, rng, wanted - len(places), _weigher(copy, rest, ages))])


def log2_total(copy: Copy, view: View, ages: Ages) -> float:
    """Return the logarithm of the sum of the weights of all that the view allows: a formula, or one pass over them.

    The formula is for buffers in which no episode has left between others that stayed.
    """
    youngest, oldest = ages.span(copy)
    whole = view.test is None and not len(view.excluded)
    if whole and oldest - youngest + 1 == int(view.live.sum()):
        return float(np.log2(power_sum(youngest, oldest, ages.alpha)))
    # One sum a chunk: 7 ms at 1M episodes. With all weights in one array it takes 11 ms.
    chunks = copy.chunks(np.flatnonzero(view.live > 0))
    sums = [log2_sum(ages.log2(opened.ids[view.allowed(opened, copy.domains)])) for opened in chunks]
    return log2_sum(np.array(sums))


def _proposals(wanted: int, span: int, left: int) -> int:
    """Return how many ages a round proposes: by whole numbers alone."""
    return min(wanted * span * 3 // (2 * left), wanted * MOST_PROPOSED) + 16


def _round(
    copy: Copy,
    view: View,
    ages: Ages,
    domains_of: DomainsOf,
    rng: np.random.Generator,
    number: int,
    first: Ints,
    size: Ints,
) -> Ints:
    """Return places of the accepted among so many proposed ages, in the order of the proposals."""
    with np.errstate(divide="ignore"):
        mass = np.log2(size) - ages.alpha * np.log2(first)
    ends = np.cumsum(np.exp2(mass - mass.max()))
    which, inside, threshold = rng.random((3, number))
    octave = choose(ends, which * ends[-1])
    age = first[octave] + np.minimum((inside * size[octave]).astype(np.int64), size[octave] - 1)
    ids = ages.newest + 1 - age[threshold < np.exp2(-ages.alpha * np.log2(age / first[octave]))]
    places = copy.locate(ids, domains_of(ids)).places
    places = places[places >= 0]
    if view.test is None and not len(view.excluded):
        return places
    blocks, ordinal = np.unique(places >> PLACE_BITS, return_inverse=True)
    allowed = view.allowed(copy.open(blocks), copy.domains)
    passing: Ints = places[allowed[ordinal, places & ((1 << PLACE_BITS) - 1)]]
    return passing


def _weigher(copy: Copy, view: View, ages: Ages) -> Callable[[Opened], Floats]:
    def weigh(opened: Opened) -> Floats:
        allowed = view.allowed(opened, copy.domains)
        log2 = np.full(allowed.shape, -np.inf)
        log2[allowed] = ages.log2(opened.ids[allowed])
        return log2

    return weigh


def _listed(copy: Copy, view: View, ages: Ages, rng: np.random.Generator, wanted: int) -> Ints:
    """Draw with replacement by one pass over all that may be drawn, 16 bytes for each."""
    count("listed")
    weigh, parts, weights = _weigher(copy, view, ages), [], []
    for opened in copy.chunks(np.flatnonzero(view.live > 0)):
        log2 = weigh(opened)
        row, slot = np.nonzero(log2 > -np.inf)
        parts.append((opened.blocks[row] << PLACE_BITS) + slot)
        weights.append(log2[row, slot])
    every = np.concatenate(weights)
    ends = np.cumsum(np.exp2(every - every.max()))
    listed: Ints = np.concatenate(parts)[choose(ends, rng.random(wanted) * ends[-1])]
    return listed
