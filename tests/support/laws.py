"""The laws that draws must follow, in closed form or by enumeration, and the tests that hold counts against them.

Every test in this folder has a fixed seed, so for given versions of numpy and memstore it always passes or always
fails. A false alarm can only appear when a stream of random numbers changes; ``FALSE_ALARM`` is its probability per
comparison. There are about 530 comparisons, so a change of streams turns this folder red once in 1,900 times.
(Pearson's statistic
has a heavier tail than chi-square where cells expect few draws: in 20,000 simulations of skewed laws, pooled as
``p_value`` does it, twice as many as should lay beyond the 1e-4 quantile.)

Each comparison comes with wrong laws that it must refute (``must_refute``): proof that the counts suffice to tell them
apart, and that the test can fail.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from itertools import permutations
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import stats

FALSE_ALARM = 1e-6

FEWEST_EXPECTED = 10.0
"""Cells that expect fewer draws are pooled."""

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Draw = tuple[int, ...]
Outcome = TypeVar("Outcome", bound=Hashable)


class LawViolatedError(AssertionError):
    """What was drawn does not follow the law."""


def p_value(counts: Ints, law: Floats) -> float:
    """Pearson's chi-square test of independent draws; which cells are pooled depends on the law alone."""
    assert counts.shape == law.shape and law.min() >= 0 and abs(law.sum() - 1) < 1e-9
    if counts[law == 0].any():
        return 0.0
    order = np.argsort(law, kind="stable")
    expected = np.cumsum(law[order]) * counts.sum()
    observed = np.cumsum(counts[order])
    ends = [0]
    reached = 0.0
    for i, mass in enumerate(expected.tolist(), 1):
        if mass - reached >= FEWEST_EXPECTED:
            ends.append(i)
            reached = mass
    ends[-1] = len(order)
    expected, observed = (np.diff(np.concatenate([[0], sums])[ends]) for sums in (expected, observed))
    assert len(expected) > 1, "too few draws to compare anything"
    return float(stats.chi2.sf(((observed - expected) ** 2 / expected).sum(), len(expected) - 1))


def must_follow(counts: Ints, law: Floats) -> None:
    """Raise unless independent draws, counted per cell, are credible under the law."""
    if (p := p_value(counts, law)) < FALSE_ALARM:
        raise LawViolatedError(f"{counts.sum()} draws have p = {p:.2g}: {counts[:12]} of {counts.sum() * law[:12]}")


def must_refute(counts: Ints, wrong: Floats) -> None:
    """Raise if the test that ``must_follow`` is would let a wrong law pass."""
    try:
        must_follow(counts, wrong)
    except LawViolatedError:
        return
    raise AssertionError(f"{counts.sum()} draws cannot be told from a wrong law")


def tally(drawn: Iterable[Outcome], law: Mapping[Outcome, float]) -> tuple[Ints, Floats]:
    """Counts and probabilities of the outcomes of a law given as a mapping."""
    seen = Counter(drawn)
    if stranger := set(seen) - set(law):
        raise LawViolatedError(f"drawn, but impossible: {stranger}")
    return np.array([seen[outcome] for outcome in law], np.int64), np.array(list(law.values()))


def must_happen(successes: int, trials: int, probability: float) -> None:
    """Raise unless the number of successes is credible: exact binomial test."""
    if (p := float(stats.binomtest(successes, trials, probability).pvalue)) < FALSE_ALARM:
        raise LawViolatedError(f"{successes} of {trials} at {probability:.4g} have p = {p:.2g}")


def must_not_happen(successes: int, trials: int, wrong: float) -> None:
    """Raise if ``must_happen`` would let a wrong probability pass."""
    try:
        must_happen(successes, trials, wrong)
    except LawViolatedError:
        return
    raise AssertionError(f"{successes} of {trials} cannot be told from a wrong probability, {wrong:.4g}")


def subsets_p_value(counts: Ints, sizes: Ints) -> float:
    """Chi-square test that subsets (``sizes`` of each) of equally likely elements contained each as often as counted.

    A subset of n of N elements covers each with f = n / N, and two of them with covariance -f (1 - f) / (N - 1). So
    the squared deviations, over the variance, times (N - 1) / N, follow chi-square with N - 1 degrees of freedom.
    """
    elements = len(counts)
    assert counts.sum() == sizes.sum()
    share = sizes / elements
    deviation = counts - share.sum()
    statistic = (deviation**2).sum() / (share * (1 - share)).sum() * (elements - 1) / elements
    return float(stats.chi2.sf(statistic, elements - 1))


def weights(loss: Floats, *, alpha: float, epsilon: float, highest: float) -> Floats:
    """(loss + epsilon) ** alpha; where never measured (NaN), the highest priority ever measured, to the alpha."""
    return np.asarray(np.where(np.isnan(loss), highest, loss + epsilon) ** alpha)


def share(weight: Floats) -> Floats:
    """Probabilities of one draw."""
    scaled = weight / weight.max()
    return np.asarray(scaled / scaled.sum())


def plackett_luce(weight: Floats, count: int) -> dict[Draw, float]:
    """Successive sampling: each draw in proportion to weight among those left, in order of drawing."""
    return successive([weight] * count)


def successive(weight_of_each: Sequence[Floats]) -> dict[Draw, float]:
    """Successive sampling without replacement whose weights may differ from draw to draw."""
    law: dict[Draw, float] = {(): 1.0}
    for weight in weight_of_each:
        longer: dict[Draw, float] = {}
        for drawn, probability in law.items():
            left = weight.copy()
            left[list(drawn)] = 0.0
            for i in np.flatnonzero(left).tolist():
                longer[(*drawn, i)] = probability * float(left[i] / left.sum())
        law = longer
    return law


def independent(weight: Floats, count: int) -> dict[Draw, float]:
    """With replacement: the product of the shares."""
    law: dict[Draw, float] = {(): 1.0}
    for _ in range(count):
        law = {(*d, i): p * q for d, p in law.items() for i, q in enumerate(share(weight).tolist())}
    return law


def sets(law: Mapping[Draw, float]) -> dict[frozenset[int], float]:
    """The law of what was drawn, whatever its order."""
    unordered: dict[frozenset[int], float] = {}
    for drawn, probability in law.items():
        unordered[frozenset(drawn)] = unordered.get(frozenset(drawn), 0.0) + probability
    return unordered


# Wrong laws: what the tempting ways to draw without replacement do instead.


def whole_batch_redrawn(weight: Floats, count: int) -> dict[Draw, float]:
    """Drawing ``count`` with replacement, again and again until all of them differ."""
    law = {d: float(np.prod(weight[list(d)] / weight.sum())) for d in permutations(range(len(weight)), count)}
    total = sum(law.values())
    return {d: p / total for d, p in law.items()}


def chosen_subtracted_and_rejected(weight: Floats, group: Ints, count: int) -> dict[Draw, float]:
    """Taking the chosen off their group's count, but proposing and rejecting them all the same."""
    size = np.bincount(group)
    law: dict[Draw, float] = {(): 1.0}
    for _ in range(count):
        longer: dict[Draw, float] = {}
        for drawn, probability in law.items():
            left = size - np.bincount(group[list(drawn)], minlength=len(size))
            effective = weight * left[group] / size[group]
            effective[list(drawn)] = 0.0
            for i in np.flatnonzero(effective).tolist():
                longer[(*drawn, i)] = probability * float(effective[i] / effective.sum())
        law = longer
    return law


def short_rounds_redone(weight: Floats, count: int, accepted: int) -> dict[Draw, float]:
    """Throwing a round of ``accepted`` draws away unless it holds ``count`` different ones.

    The law of successive sampling, times the chance that the waiting time (a sum of geometric ones) is short enough.
    """
    chance = share(weight)
    law = {}
    for drawn, probability in plackett_luce(weight, count).items():
        repeat = np.concatenate([[0.0], np.cumsum(chance[list(drawn)])[:-1]])
        # Element j: probability that j draws were needed so far.
        waiting = np.zeros(accepted + 1)
        waiting[0] = 1.0
        for r in repeat:
            step = np.zeros(accepted + 1)
            step[1:] = (1 - r) * r ** np.arange(accepted)
            waiting = np.convolve(waiting, step)[: accepted + 1]
        law[drawn] = probability * float(waiting.sum())
    total = sum(law.values())
    return {d: p / total for d, p in law.items()}
