"""PrioritizedRecency: P ~ age ** -alpha over what is live, age counted in insertions."""

from __future__ import annotations

import numpy as np
import pytest

import memstore
from memstore import EpisodicMemory, PrioritizedRecency
from memstore.draws.arithmetic import power_sum
from tests.support.laws import Floats, Ints, must_follow, must_refute, plackett_luce, share, tally
from tests.support.models import payload

ALPHAS = (0.5, 1.0, 2.0)


def ages(memory: EpisodicMemory, count: int, alpha: float) -> Ints:
    batch = memory.sample(count, strategy=PrioritizedRecency(alpha), replacement=True)
    newest = memory.stats().total_inserted
    assert (batch.age == newest + 1 - batch.ids).all()
    return batch.age


def law(live: Ints, alpha: float) -> Floats:
    return share(live.astype(np.float64) ** -alpha)


def counted(drawn: Ints, live: Ints) -> Ints:
    assert np.isin(drawn, live).all()
    at = np.argsort(live)
    counts = np.bincount(np.searchsorted(live[at], drawn), minlength=len(live))
    back = np.empty_like(counts)
    back[at] = counts
    return back


def check(drawn: Ints, live: Ints, alpha: float) -> None:
    counts = counted(drawn, live)
    must_follow(counts, law(live, alpha))
    must_refute(counts, law(live, alpha + 0.15))
    must_refute(counts, law(live, alpha - 0.15))
    if live.min() == 1:
        # Off by one: no less than a factor of 2 ** alpha for the newest.
        must_refute(counts, law(live + 1, alpha))
    if live.max() > len(live):
        # Age as the rank among those still live.
        must_refute(counts, law(np.argsort(np.argsort(live)) + 1, alpha))


@pytest.mark.parametrize("alpha", ALPHAS)
def test_without_holes(path: str, alpha: float) -> None:
    with memstore.open(path, strategy="prioritized_recency", capacity=300, seed=1) as memory:
        memory.extend(payload(1000))  # 700 left, the oldest first
        live = np.arange(1, 301)
        drawn = ages(memory, 40_000, alpha)
        check(drawn, live, alpha)
        # The floor of a continuous inverse CDF gives age n the integral from n to n + 1.
        edges = np.append(live, 301).astype(np.float64)
        area = np.log(edges) if alpha == 1 else edges ** (1 - alpha) / (1 - alpha)
        if alpha >= 1:
            must_refute(counted(drawn, live), np.diff(area) / (area[-1] - area[0]))


def with_holes(path: str) -> tuple[EpisodicMemory, Ints]:
    """The newest gone, the oldest gone, others gone by deletion and by eviction of the lowest loss."""
    rng = np.random.default_rng(2)
    memory = memstore.open(path, strategy="prioritized_recency", eviction="lowest_loss", capacity=200, seed=2)
    loss = rng.lognormal(0, 1, 700)
    memory.extend(payload(700), loss=loss)
    # Each newcomer takes the place of the easiest one then live, and never its own.
    live: list[int] = []
    for i in range(700):
        if len(live) == 200:
            live.remove(min(live, key=loss.__getitem__))
        live.append(i)
    ids = np.array(live) + 1
    gone = np.concatenate([ids[:5], ids[-7:], rng.choice(ids[5:-7], 30, replace=False)])
    memory.delete(gone)
    return memory, 701 - np.setdiff1d(ids, gone)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_with_holes(path: str, alpha: float) -> None:
    memory, live = with_holes(path)
    with memory:
        assert len(memory) == len(live) and live.min() > 1 and live.max() > 2 * len(live)
        check(ages(memory, 40_000, alpha), live, alpha)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_a_few_survivors_of_many(path: str, alpha: float) -> None:
    """So few candidates are live that every round is poor: a scan finishes, with and without replacement."""
    rng = np.random.default_rng(3)
    with memstore.open(path, strategy="prioritized_recency", seed=3) as memory:
        ids = memory.extend(payload(6000))
        kept = np.sort(rng.choice(np.concatenate([ids[:3000], ids[-40:]]), 60, replace=False))
        memory.delete(np.setdiff1d(ids, kept))
        live = 6001 - kept
        counts = counted(ages(memory, 60_000, alpha), live)
        must_follow(counts, law(live, alpha))
        must_refute(counts, law(live, alpha + 0.3))
        first = [memory.sample(10, strategy=PrioritizedRecency(alpha)).age[0] for _ in range(150)]
        must_follow(counted(np.array(first), live), law(live, alpha))


@pytest.mark.parametrize(("alpha", "count"), [(1.0, 3)])
def test_without_replacement_by_enumeration(path: str, alpha: float, count: int) -> None:
    """Thirteen live of twenty: more than four times as many as drawn, so nothing is scanned at once."""
    gone = np.array([1, 5, 6, 7, 13, 19, 20])
    with memstore.open(path, strategy=PrioritizedRecency(alpha), seed=4) as memory:
        ids = memory.extend(payload(20))
        memory.delete(gone)
        kept = np.setdiff1d(ids, gone)
        drawn = [tuple(np.searchsorted(kept, memory.sample(count).ids).tolist()) for _ in range(1000)]
    age = 21.0 - kept
    must_follow(*tally(drawn, plackett_luce(age**-alpha, count)))
    must_refute(*tally(drawn, plackett_luce((age - 2) ** -alpha, count)))
    must_refute(*tally(drawn, plackett_luce(age ** -(alpha + 0.3), count)))


def test_a_scan_of_six_rows(path: str) -> None:
    with memstore.open(path, strategy=PrioritizedRecency(1.0), seed=5) as memory:
        memory.extend(payload(8))
        memory.delete([2, 8])
        kept = np.array([1, 3, 4, 5, 6, 7])
        drawn = [tuple(np.searchsorted(kept, memory.sample(4).ids).tolist()) for _ in range(1000)]
    must_follow(*tally(drawn, plackett_luce(1 / (9.0 - kept), 4)))
    must_refute(*tally(drawn, plackett_luce(1 / (8.0 - kept), 4)))


def test_age_does_not_depend_on_clocks(path: str) -> None:
    with memstore.open(path, strategy=PrioritizedRecency(2.0), seed=6) as memory:
        memory.extend(payload(20), timestamp=np.arange(20.0)[::-1])
        drawn = ages(memory, 5000, 2.0)
    must_follow(counted(drawn, np.arange(1, 21)), law(np.arange(1, 21), 2.0))
    must_refute(counted(21 - drawn, np.arange(1, 21)), law(np.arange(1, 21), 2.0))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 0.999999, 1.0, 1.000001, 1.7, 2.0, 5.0])
def test_power_sum_is_the_sum(alpha: float) -> None:
    for first in (1, 2, 17, 1000, 10**6):
        for count in (1, 2, 63, 64, 65, 66, 128, 1000, 100_000):
            n = np.arange(first, first + count, dtype=np.float64)
            exact = (n**-alpha)[::-1].sum()  # smallest first; numpy adds pairwise
            assert np.isclose(power_sum(first, first + count - 1, alpha), exact, rtol=1e-11, atol=0)
            # One step aside is seen while it is more than rounding.
            if alpha and 1 - ((first + count) / first) ** -alpha > 1e-4 * count:
                assert not np.isclose(power_sum(first + 1, first + count, alpha), exact, rtol=1e-11, atol=0)
