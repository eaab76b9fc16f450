"""Mixed: shares of every batch, components in their order, no episode twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import pytest

import memstore
from memstore import DomainBalanced, EpisodicMemory, Mixed, PrioritizedLoss, PrioritizedRecency, Strategy, Uniform
from tests.support.laws import (
    Floats,
    independent,
    must_follow,
    must_happen,
    must_not_happen,
    must_refute,
    plackett_luce,
    share,
    successive,
    tally,
    weights,
)
from tests.support.models import payload

LOSS = np.array([4.0, 0.1, 1.0, 0.0, 2.0, 0.5, 0.3, 8.0, 0.2, 0.6, 0.05, 1.5, 0.9])
EPSILON = 0.1
BY_LOSS, BY_AGE = PrioritizedLoss(1.0), PrioritizedRecency(1.0)


def small(path: str, count: int = len(LOSS)) -> EpisodicMemory:
    memory = memstore.open(path, strategy="mixed", epsilon=EPSILON, seed=1)
    memory.extend(payload(count), loss=LOSS[:count], domain=[f"d{i % 3}" for i in range(count)])
    return memory


def weight_of(part: Strategy, count: int = len(LOSS)) -> Floats:
    """What each component draws by, written out again."""
    if part == BY_LOSS:
        return weights(LOSS[:count], alpha=1.0, epsilon=EPSILON, highest=np.inf)
    if part == BY_AGE:
        return 1 / np.arange(count, 0, -1.0)
    assert part == Uniform()
    return np.ones(count)


@pytest.mark.parametrize(
    ("parts", "count"),
    [((BY_LOSS, Uniform()), 13), ((Uniform(), BY_LOSS), 13), ((BY_LOSS, BY_AGE), 13), ((Uniform(), BY_LOSS), 6)],
)
def test_the_second_component_draws_from_what_the_first_left(
    path: str, parts: tuple[Strategy, Strategy], count: int
) -> None:
    """Thirteen rows: candidates; six: scans."""
    with small(path, count) as memory:
        strategy = Mixed(dict.fromkeys(parts, 0.5))
        drawn = [tuple((memory.sample(2, strategy=strategy).ids - 1).tolist()) for _ in range(600)]
    first, second = (weight_of(part, count) for part in parts)
    must_follow(*tally(drawn, successive([first, second])))
    must_refute(*tally(drawn, successive([second, first])))
    must_refute(*tally(drawn, successive([first, first])))


def test_two_of_each(path: str) -> None:
    with small(path, 6) as memory:
        strategy = Mixed({BY_LOSS: 0.5, Uniform(): 0.5})
        drawn = [tuple((memory.sample(4, strategy=strategy).ids - 1).tolist()) for _ in range(800)]
    by_loss, uniform = weight_of(BY_LOSS, 6), np.ones(6)
    must_follow(*tally(drawn, successive([by_loss, by_loss, uniform, uniform])))
    must_refute(*tally(drawn, successive([by_loss, uniform, by_loss, uniform])))
    must_refute(*tally(drawn, plackett_luce(by_loss, 4)))


def test_with_replacement_each_place_is_a_draw_of_its_component(path: str) -> None:
    with small(path, 6) as memory:
        strategy = Mixed({BY_LOSS: 0.5, Uniform(): 0.5})
        drawn = [tuple((memory.sample(2, strategy=strategy, replacement=True).ids - 1).tolist()) for _ in range(800)]
        batch = memory.sample(20_000, strategy=strategy, replacement=True)
    by_loss, uniform = share(weight_of(BY_LOSS, 6)), np.full(6, 1 / 6)
    must_follow(*tally(drawn, {(i, j): by_loss[i] * uniform[j] for i in range(6) for j in range(6)}))
    must_refute(*tally(drawn, independent((by_loss + uniform) / 2, 2)))
    # Its reported probability is how often a row comes up in a batch.
    counts = np.bincount(batch.ids - 1, minlength=6)
    must_follow(counts, (by_loss + uniform) / 2)
    must_refute(counts, 0.7 * by_loss + 0.3 * uniform)
    assert batch.probability is not None
    exact = memory_probability(path, strategy)
    np.testing.assert_allclose(exact, (by_loss + uniform) / 2, rtol=1e-12)


def memory_probability(path: str, strategy: Strategy) -> Floats:
    with memstore.open(path) as memory:
        batch = memory.sample(10**6, strategy=strategy, exact_probability=True)
    assert batch.probability is not None
    return batch.probability[np.argsort(batch.ids)]


@pytest.mark.parametrize(
    ("shares", "count", "fewest"),
    [
        ({"a": 0.3, "b": 0.7}, 5, {"a": (1, 0.5), "b": (3, 0.5)}),
        ({"a": 1, "b": 1}, 3, {"a": (1, 0.5), "b": (1, 0.5)}),
        ({"a": 0.5, "b": 0.25, "c": 0.25}, 3, {"a": (1, 0.5), "b": (0, 0.75), "c": (0, 0.75)}),
        ({"a": 2, "b": 1, "c": 1}, 8, {"a": (4, 0.0), "b": (2, 0.0), "c": (2, 0.0)}),
        ({"a": 0.05, "b": 0.95}, 1, {"a": (0, 0.05), "b": (0, 0.95)}),
    ],
)
def test_shares_hold_on_average(
    path: str, shares: dict[str, float], count: int, fewest: Mapping[str, tuple[int, float]]
) -> None:
    """Components told apart by their domains; slots are whole, at most one more than the whole part."""
    with memstore.open(path, seed=2) as memory:
        memory.extend(payload(60), domain=["a", "b", "c"] * 20)
        strategy = Mixed({DomainBalanced({name: 1}): s for name, s in shares.items()})
        got = [Counter(memory.sample(count, strategy=strategy).domain.tolist()) for _ in range(500)]
    for name, (whole, chance) in fewest.items():
        assert {c[name] for c in got} <= ({whole, whole + 1} if chance else {whole})
        if chance:
            more = sum(c[name] > whole for c in got)
            must_happen(more, 500, chance)
            must_not_happen(more, 500, chance + 0.2 if chance < 0.75 else chance - 0.2)


def test_no_episode_twice_and_nothing_missing(path: str) -> None:
    strategies = [
        Mixed(),
        Mixed({Uniform(): 0.3, BY_AGE: 0.3, "domain_balanced": 0.4}),
        # A component that has nothing left leaves its slots to the others.
        Mixed({DomainBalanced({"d0": 1}): 0.5, Uniform(): 0.5}),
        Mixed({BY_LOSS: 0.01, DomainBalanced({"d1": 1}): 0.99}),
    ]
    with small(path) as memory:
        for strategy in strategies:
            for count in (1, 5, 8, 12, 13, 14, 100):
                ids = memory.sample(count, strategy=strategy).ids.tolist()
                assert len(ids) == len(set(ids)) == min(count, 13), (strategy, count)
