"""Exact weighted draws by rejection: the law, and no database.

Candidates are proposed from *groups*, each with a number of positions and a bound on the weight at any of them, then
accepted with probability weight / bound. Accepted candidates are independent draws in proportion to weight. Without
replacement, repeats are skipped in proposal order, which is successive sampling (Plackett 1975; Luce 1959).

Between rounds the positions already drawn are taken out of the proposals, and the position is then drawn among the
others: so one dominating weight costs one short round and not a scan. (Only lowering the group's count, while still
proposing and rejecting the drawn ones, would be biased.)

Where few candidates are accepted, a list of all that may be drawn finishes the draw. What was accepted before stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from memstore.buffer.snapshot import Rows
from memstore.buffer.strata import Floats, Ints
from memstore.draws.arithmetic import TINY
from memstore.testing import count

POOR_YIELD = 16
"""A round is poor when fewer than one in this many candidates is accepted ..."""

POOR_ROUNDS = 8
"""... and after this many poor rounds a list of all finishes the draw exactly."""

KNOWN_YIELD = 3
"""Where what passes a condition is known from the second time on, a round is poor when fewer than one in this many is
accepted: at 1M rows a list of 300,000 costs 3 ms, 1,000 candidates 4."""

BLOCK = 64
"""Weights that are summed together."""

MARGIN = 8
"""One proposal from a list in this many, and so many besides, make up for repeats."""

LIST_ROUNDS = 4
"""Rounds of proposals from a list, before its keys decide: those cost more, and always suffice."""

PROBE = 64
"""Candidates of the first round behind a condition that is tested on them. They show how many pass, and so decide how
the draw goes on: by chance alone, and not by what the process knows."""

SCAN_SHARE = 4
"""A draw of more than one in this many live rows scans at once: the scan costs no more than the draw."""


@dataclass(frozen=True, slots=True)
class Groups:
    """Where candidates come from: per group, the number of positions and log2 of the bound on a weight."""

    count: Ints
    log2_bound: Floats


@dataclass(frozen=True, slots=True)
class Listing:
    """Everything that may be drawn: ids, ascending; weights over the largest possible one, which may underflow to zero;
    and their base-2 logarithms, on demand."""

    ids: Ints
    weight: Floats
    log2_weight: Callable[[], Floats]


class Source(Protocol):
    """What a strategy offers to ``draw``."""

    groups: Groups
    acceptance: float
    """Share of candidates that will be accepted, roughly: it decides how many are proposed, not what is drawn."""

    selective: bool
    """Whether accepted candidates must pass a test besides."""

    poor_yield: int
    """Candidates for each accepted one that make the first round behind a test a poor one."""

    def passing(self, rows: Rows) -> NDArray[np.bool_]:
        """Which of the rows pass it."""

    def complete(self, ids: Ints) -> Rows:
        """Rows of these episodes of a ``scan``, in this order."""

    def fetch(self, group: Ints, position: Ints) -> tuple[Rows, Ints, Floats]:
        """Rows that exist among the candidates, in proposal order; their ordinals; log2 of their weights."""

    def places(self, rows: Rows) -> tuple[Ints, Ints]:
        """Group and position of rows, the inverse of ``fetch``; group -1 for rows outside every group."""

    def scan(self) -> Listing:
        """Everything that may be drawn: by a query over all of it, where it is not known."""


def draw(
    source: Source,
    rng: np.random.Generator,
    wanted: int,
    live: int,
    taken: Rows,
    *,
    replacement: bool,
) -> Rows:
    """Draw rows in proportion to weight.

    Parameters
    ----------
    wanted, live : int
        Rows asked for; rows live in the buffer.
    taken : Rows
        Rows that must not be drawn (again).

    Returns
    -------
    Rows
        ``wanted`` of them, or all there are when fewer are left.
    """
    if not replacement and (wanted + len(taken)) * SCAN_SHARE >= live:
        return _by_scan(source, rng, wanted, taken, replacement)
    drawn: list[Rows] = []
    excluded = _places(source, taken)
    poor = 0
    patience, poor_yield = (1, source.poor_yield) if source.selective else (POOR_ROUNDS, POOR_YIELD)
    acceptance = source.acceptance
    while wanted > 0:
        proposed = PROBE if source.selective and not drawn else candidates(wanted, acceptance)
        found = _round(source, rng, proposed, excluded)
        if found is None:
            break
        if not replacement:
            # First of each id, in proposal order.
            found = found.take(np.sort(np.unique(found.ids, return_index=True)[1]))
        found = found.take(np.arange(min(len(found), wanted)))
        drawn.append(found)
        wanted -= len(found)
        if not wanted:
            break
        if not replacement:
            excluded = excluded | _places(source, found)
        poor += len(found) * poor_yield < proposed
        if source.selective:
            acceptance = len(found) / proposed  # only now is it known how many pass
        if poor >= patience:
            rest = taken if replacement else Rows.join([taken, *drawn])
            drawn.append(_by_scan(source, rng, wanted, rest, replacement))
            break
    return Rows.join(drawn)


def candidates(wanted: int, acceptance: float) -> int:
    """How many to propose so that one round is enough but for three standard deviations, within bounds."""
    share = min(max(acceptance, 1 / POOR_YIELD), 1.0)
    mean = wanted / share
    return math.ceil(mean + 3 * math.sqrt(mean * (1 - share) / share) + 8)


class _Places(dict[int, Ints]):
    """Sorted excluded positions by group."""

    def __or__(self, other: _Places) -> _Places:  # type: ignore[override]
        merged = _Places(self)
        for group, positions in other.items():
            merged[group] = np.union1d(merged[group], positions) if group in merged else positions
        return merged


def _places(source: Source, rows: Rows) -> _Places:
    if not len(rows):
        return _Places()
    group, position = source.places(rows)
    return _Places({g: np.unique(position[group == g]) for g in np.unique(group[group >= 0]).tolist()})


def _round(source: Source, rng: np.random.Generator, proposed: int, excluded: _Places) -> Rows | None:
    count("rounds")
    free = source.groups.count.copy()
    for g, positions in excluded.items():
        free[g] -= len(positions)
    chances = _cumulative(free, source.groups.log2_bound)
    if chances is None:
        return None
    group = choose(chances, rng.random(proposed))
    position = np.minimum((rng.random(proposed) * free[group]).astype(np.int64), free[group] - 1)
    threshold = rng.random(proposed)
    rows, ordinal, log2_weight = source.fetch(group, unchosen(group, position, excluded))
    accepted = threshold[ordinal] < np.exp2(log2_weight - source.groups.log2_bound[group[ordinal]])
    found = rows.take(accepted)
    return found.take(source.passing(found)) if source.selective else found


def _cumulative(free: Ints, log2_bound: Floats) -> Floats | None:
    if not (free > 0).any():
        return None
    with np.errstate(divide="ignore"):
        mass = np.log2(free) + log2_bound
    return np.cumsum(np.exp2(mass - mass.max()))


def choose(cumulative: Floats, uniform: Floats) -> Ints:
    """Index whose step of the cumulative sum holds each uniform number, never one of step zero."""
    target = uniform * cumulative[-1]
    last = int(np.searchsorted(cumulative, cumulative[-1]))
    chosen: Ints = np.minimum(np.searchsorted(cumulative, target, side="right"), last)
    return chosen


def unchosen(group: Ints, rank: Ints, excluded: dict[int, Ints]) -> Ints:
    """Position of the ``rank``-th position of each group that is not excluded."""
    position = rank.copy()
    for g, positions in excluded.items():
        inside = group == g
        if inside.any():
            shifted = positions - np.arange(len(positions))
            position[inside] += np.searchsorted(shifted, rank[inside], side="right")
    return position


def _by_scan(source: Source, rng: np.random.Generator, wanted: int, taken: Rows, replacement: bool) -> Rows:
    count("listed")
    listing = source.scan()
    chosen = from_list(listing, rng, wanted, positions(listing.ids, taken.ids), replacement=replacement)
    return source.complete(listing.ids[chosen])


def positions(ids: Ints, among: Ints) -> Ints:
    """Where in ``ids``, which ascend, those of ``among`` stand that are there; ascending, each once."""
    wanted = np.unique(among)
    at = np.searchsorted(ids, wanted)
    at, wanted = at[at < len(ids)], wanted[at < len(ids)]
    found: Ints = at[ids[at] == wanted]
    return found


def from_list(listing: Listing, rng: np.random.Generator, wanted: int, gone: Ints, *, replacement: bool) -> Ints:
    """Places of what is drawn in proportion to weight, outside ``gone``: proposed from all, what is gone is skipped.

    Skipping is successive sampling again. Rounds after the first leave out what is gone, so one dominating weight costs
    one round.
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
    """Place of the weight that each uniform number falls on, never one of weight zero; none where the sum is too small.

    A block is chosen by the blocks' sums, then a place inside: one long cumulative sum takes five times as long.
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
    """Indices of the ``wanted`` smallest of Exp(1) / weight, smallest first: successive sampling by one pass.

    Efraimidis and Spirakis, "Weighted random sampling with a reservoir", 2006.
    """
    # The ziggurat may return zero, once in 2**53.
    clocks = np.maximum(rng.exponential(size=len(log2_weight)), np.finfo(np.float64).tiny)
    keys = np.log2(clocks) - log2_weight
    return np.argsort(keys, kind="stable")[:wanted]
