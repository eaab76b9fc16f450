"""Exact weighted draws by rejection. This module holds the mathematics and uses no database.

Candidates are proposed from *bins*. A bin has a number of positions, and a bound on the weight at each of them. A
candidate is accepted with probability weight / bound. Accepted candidates are independent draws in proportion to
weight. Without replacement, repeats are skipped in the order of proposal. That is successive sampling, the
Plackett-Luce law (Plackett 1975; Luce 1959).

Between rounds the drawn positions are taken out of the proposals. The next position is then drawn among the other
positions. So one dominating weight costs one short round and not a scan. (It would be biased to lower only the count
of the bin, and to go on proposing and rejecting the drawn positions.)

If few candidates are accepted, a list of all rows that may be drawn finishes the draw. Rows that were accepted before
stay in the batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.snapshot import Located
from memstore.buffer.blocks.slots import Floats, Ints
from memstore.draws.arithmetic import TINY, where_in
from memstore.draws.conditions import Flags
from memstore.draws.pool import Request
from memstore.testing import count

POOR_YIELD = 16
"""A round is poor if it accepts fewer than one in this many candidates."""

POOR_ROUNDS = 8
"""After this many poor rounds a list of all rows that may be drawn finishes the draw."""

KNOWN_YIELD = 3
"""This replaces ``POOR_YIELD`` behind a condition with a list that the log keeps current.

Such a list is cheap from the second draw on. At 1M rows a list of 300,000 costs 3 ms, and 1,000 candidates cost 4 ms.
"""

BLOCK = 64
"""A block holds this many weights, which are summed together."""

MARGIN = 8
"""A list proposes ``wanted / MARGIN + MARGIN`` rows more than it needs, to make up for repeats."""

LIST_ROUNDS = 4
"""A list makes at most this many rounds of proposals. Then random keys finish: they cost more and always suffice."""

PROBE = 64
"""The first round behind a filter has this many candidates. The number that passes decides how the draw goes on.

So only the random numbers decide it, and the lists that the process happens to keep do not.
"""

SCAN_SHARE = 4
"""A draw of at least one in this many live rows uses the list at once, because a scan costs no more than the draw."""


@dataclass(frozen=True, slots=True)
class Bins:
    """The bins that candidates come from. Each bin has a number of positions, and log2 of its bound on a weight."""

    count: Ints
    log2_bound: Floats


@dataclass(frozen=True, slots=True)
class Listing:
    """The list of all rows that may be drawn: ascending ids, and their weights.

    ``weight`` is relative to the largest possible weight, and may underflow to zero. ``log2_weight`` computes the
    logarithms, which do not underflow.
    """

    ids: Ints
    weight: Floats
    log2_weight: Callable[[], Floats]


@dataclass(frozen=True, slots=True)
class Filter:
    """An additional test that accepted candidates must pass.

    If fewer than one in ``poor_yield`` candidates passes in the first round, a list of all passing rows costs less.
    """

    passing: Callable[[Located], Flags]
    poor_yield: int = POOR_YIELD


class Candidates(Protocol):
    """The source of a draw: it gives proposals with their weights, and the list of all rows that may be drawn."""

    live: int
    """An upper bound on the number of rows that may be drawn."""

    bins: Bins

    acceptance: float
    """Estimated share of candidates that are accepted. It decides the number of proposals, and never what is drawn."""

    filter: Filter | None

    def fetch(self, bins: Ints, positions: Ints) -> tuple[Located, Ints, Floats]:
        """Return the rows that exist at these places, the ordinals of their places, and log2 of their weights."""

    def places(self, rows: Located) -> tuple[Ints, Ints]:
        """Return the bin and the position of each row: the inverse of ``fetch``."""

    def listing(self) -> Listing:
        """Return the list of all rows that may be drawn. This may need a scan."""

    def rows_of(self, ids: Ints) -> Located:
        """Return the rows with these ids, in this order. The ids come from the listing."""


def draw(candidates: Candidates, request: Request) -> Located:
    """Draw rows in proportion to weight.

    Returns
    -------
    Located
        ``request.count`` rows in the order drawn. Without replacement, all rows that are left if they are fewer.
    """
    wanted, sieve = request.count, candidates.filter
    if not request.replacement and (wanted + len(request.taken)) * SCAN_SHARE >= candidates.live:
        return draw_listed(candidates, request)
    drawn, excluded = Located.none(), _excluding(candidates, request.taken, {})
    patience, poor_yield = (POOR_ROUNDS, POOR_YIELD) if sieve is None else (1, sieve.poor_yield)
    proposed = proposals(wanted, candidates.acceptance) if sieve is None else PROBE
    while (found := _round(candidates, request.rng, proposed, excluded)) is not None:
        if not request.replacement:
            # Only the first candidate of each id counts, in the order of proposal.
            found = found.take(np.sort(np.unique(found.ids, return_index=True)[1]))
        found = found.take(np.arange(min(len(found), wanted)))
        drawn = Located.join([drawn, found])
        wanted -= len(found)
        if not wanted:
            break
        patience -= len(found) * poor_yield < proposed
        if not patience:
            if len(drawn):
                count("completed")
            return Located.join([drawn, draw_listed(candidates, request.after(drawn, wanted))])
        if not request.replacement:
            excluded = _excluding(candidates, found, excluded)
        # Behind a filter, only the last round shows which share of the candidates passes.
        proposed = proposals(wanted, candidates.acceptance if sieve is None else len(found) / proposed)
    return drawn


def proposals(wanted: int, acceptance: float) -> int:
    """Return the number of candidates that makes one round enough, with a margin of three standard deviations.

    The assumed acceptance is at least ``1 / POOR_YIELD``.
    """
    share = min(max(acceptance, 1 / POOR_YIELD), 1.0)
    mean = wanted / share
    return math.ceil(mean + 3 * math.sqrt(mean * (1 - share) / share) + 8)


def _excluding(candidates: Candidates, rows: Located, excluded: dict[int, Ints]) -> dict[int, Ints]:
    """Return the excluded positions of each bin, ascending: the ``excluded`` ones and the positions of the rows."""
    if not len(rows):
        return excluded
    bins, at = candidates.places(rows)
    none = np.empty(0, np.int64)
    return excluded | {b: np.union1d(excluded.get(b, none), at[bins == b]) for b in np.unique(bins).tolist()}


def _round(
    candidates: Candidates, rng: np.random.Generator, proposed: int, excluded: dict[int, Ints]
) -> Located | None:
    """Return the accepted rows of one round; None if no position is left to propose."""
    count("rounds")
    free = candidates.bins.count.copy()
    for b, positions in excluded.items():
        free[b] -= len(positions)
    chances = _cumulative(free, candidates.bins.log2_bound)
    if chances is None:
        return None
    bins = choose(chances, rng.random(proposed))
    position = np.minimum((rng.random(proposed) * free[bins]).astype(np.int64), free[bins] - 1)
    threshold = rng.random(proposed)
    rows, ordinal, log2_weight = candidates.fetch(bins, unchosen(bins, position, excluded))
    found = rows.take(threshold[ordinal] < np.exp2(log2_weight - candidates.bins.log2_bound[bins[ordinal]]))
    return found if candidates.filter is None else found.take(candidates.filter.passing(found))


def _cumulative(free: Ints, log2_bound: Floats) -> Floats | None:
    if not (free > 0).any():
        return None
    with np.errstate(divide="ignore"):
        mass = np.log2(free) + log2_bound
    return np.cumsum(np.exp2(mass - mass.max()))


def choose(cumulative: Floats, uniform: Floats) -> Ints:
    """Return the step of the cumulative sum that each uniform number falls on. No step of size zero is returned."""
    target = uniform * cumulative[-1]
    last = int(np.searchsorted(cumulative, cumulative[-1]))
    chosen: Ints = np.minimum(np.searchsorted(cumulative, target, side="right"), last)
    return chosen


def unchosen(bins: Ints, rank: Ints, excluded: dict[int, Ints]) -> Ints:
    """Return, for each bin, its ``rank``-th position among those that are not excluded."""
    position = rank.copy()
    for b, positions in excluded.items():
        inside = bins == b
        if inside.any():
            shifted = positions - np.arange(len(positions))
            position[inside] += np.searchsorted(shifted, rank[inside], side="right")
    return position


def even_ranks(request: Request, total: int, gone: Ints) -> Ints:
    """Return ranks below ``total``, all with the same probability.

    Without replacement no rank is one of the ascending ``gone``.
    """
    if request.replacement:
        return request.rng.integers(0, total, request.count)
    free = total - len(gone)
    ranks = request.rng.choice(free, min(request.count, free), replace=False)
    return unchosen(np.zeros(len(ranks), np.int64), ranks, {0: gone})


def draw_listed(candidates: Candidates, request: Request) -> Located:
    """Draw rows from the list of all rows that may be drawn."""
    count("listed")
    listing = candidates.listing()
    gone = where_in(listing.ids, request.taken.ids)
    chosen = from_list(listing, request.rng, request.count, gone, replacement=request.replacement)
    return candidates.rows_of(listing.ids[chosen])


def from_list(listing: Listing, rng: np.random.Generator, wanted: int, gone: Ints, *, replacement: bool) -> Ints:
    """Return places in the listing, drawn in proportion to weight, outside ``gone``.

    The first round proposes from all places and skips those in ``gone``. That is successive sampling too. Later rounds
    propose only from the other places, so one dominating weight costs one round.
    """
    chosen = np.empty(0, np.int64)
    few = replacement or (wanted + len(gone)) * SCAN_SHARE < len(listing.ids)
    for number in range(LIST_ROUNDS if few else 0):
        left = wanted - len(chosen)
        if not left:
            break
        weight = _without(listing.weight, gone) if number else listing.weight
        proposed = choose_among(weight, rng.random(left + left // MARGIN + MARGIN))
        proposed = proposed[~np.isin(proposed, gone)]
        if not replacement:
            proposed = proposed[np.sort(np.unique(proposed, return_index=True)[1])]
            gone = np.union1d(gone, proposed[:left])
        chosen = np.concatenate([chosen, proposed[:left]])
    if len(chosen) == wanted:
        return chosen
    return np.concatenate([chosen, _by_keys(listing, rng, wanted - len(chosen), gone, replacement)])


def choose_among(weight: Floats, uniform: Floats) -> Ints:
    """Return the place of the weight that each uniform number falls on. No weight of zero is chosen.

    The result is empty if the sum of the weights is at most ``TINY``. The sums of the blocks choose a block, then the
    weights inside choose a place. One long cumulative sum would take five times as long.
    """
    sums = np.add.reduceat(weight, np.arange(0, len(weight), BLOCK)) if len(weight) else weight
    ends = np.cumsum(sums)
    if not len(ends) or ends[-1] <= TINY:
        return np.empty(0, np.int64)
    block = choose(ends, uniform)
    inside = block[:, None] * BLOCK + np.arange(BLOCK)
    steps = np.where(inside < len(weight), weight[np.minimum(inside, len(weight) - 1)], 0.0).cumsum(axis=1)
    target = uniform * ends[-1] - np.where(block > 0, ends[block - 1], 0.0)
    last = (steps < steps[:, -1:]).sum(axis=1)
    places: Ints = block * BLOCK + np.minimum((steps <= target[:, None]).sum(axis=1), last)
    return places


def _without(weight: Floats, gone: Ints) -> Floats:
    left = weight.copy()
    left[gone] = 0.0
    return left


def _by_keys(listing: Listing, rng: np.random.Generator, wanted: int, gone: Ints, replacement: bool) -> Ints:
    log2_weight = listing.log2_weight().copy()
    log2_weight[gone] = -np.inf
    possible = np.flatnonzero(np.isfinite(log2_weight))
    log2_weight = log2_weight[possible]
    if replacement and len(possible):
        cumulative = np.cumsum(np.exp2(log2_weight - log2_weight.max()))
        return possible[choose(cumulative, rng.random(wanted))]
    return possible[smallest_keys(rng, log2_weight, wanted)]


def smallest_keys(rng: np.random.Generator, log2_weight: Floats, wanted: int) -> NDArray[np.int64]:
    """Return the places of the ``wanted`` smallest keys Exp(1) / weight, smallest first.

    That is successive sampling in one pass (Efraimidis and Spirakis 2006, "Weighted random sampling with a reservoir";
    their key ``u ** (1 / w)`` is ``exp(-key)`` of this one). Keys are compared as logarithms.
    """
    # The ziggurat algorithm of numpy may return zero, once in 2**53.
    clocks = np.maximum(rng.exponential(size=len(log2_weight)), np.finfo(np.float64).tiny)
    keys = np.log2(clocks) - log2_weight
    return np.argsort(keys, kind="stable")[:wanted]
