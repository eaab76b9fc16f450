"""DomainBalanced: quotas per domain, uniform inside; remainder slots go to a fresh random subset every time."""

from __future__ import annotations

from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest

import memstore
from memstore import ConfigError, DomainBalanced, EpisodicMemory
from tests.support.laws import (
    FALSE_ALARM,
    LawViolatedError,
    must_follow,
    must_happen,
    must_not_happen,
    must_refute,
    share,
    subsets_p_value,
    tally,
)
from tests.support.models import payload


def filled(path: str, sizes: dict[str, int], **settings: object) -> EpisodicMemory:
    """Losses differ, so that each domain has several strata."""
    memory = memstore.open(path, strategy="domain_balanced", seed=1)
    rng = np.random.default_rng(0)
    names = [name for name, size in sizes.items() for _ in range(size)]
    memory.extend(payload(len(names)), domain=names, loss=rng.lognormal(0, 2, len(names)))
    return memory


def test_equal_quotas_and_a_random_remainder(path: str) -> None:
    sizes = {"a": 400, "b": 30, "c": 12, "d": 60, "e": 9}
    with filled(path, sizes) as memory:
        batches = [memory.sample(28) for _ in range(600)]
    got = [Counter(batch.domain.tolist()) for batch in batches]
    assert all(set(count.values()) == {5, 6} for count in got)
    extra = [frozenset(d for d, n in count.items() if n == 6) for count in got]
    # 28 = 5 * 5 + 3: each triple of domains as often as the next.
    triples = {frozenset(c): 0.1 for c in combinations(sizes, 3)}
    must_follow(*tally(extra, triples))
    must_refute(*tally(extra, {c: 0.15 if "a" in c else 0.025 for c in triples}))
    # Uniform inside: subsets of five or six.
    for name, start, size in (("b", 400, 30), ("d", 442, 60)):
        rows = np.concatenate([b.ids[b.domain == name] for b in batches]) - 1 - start
        taken = np.array([count[name] for count in got])
        assert subsets_p_value(np.bincount(rows, minlength=size), taken) > FALSE_ALARM
    assert all(len(set(batch.ids.tolist())) == 28 for batch in batches)


def test_the_order_of_a_batch_says_nothing(path: str) -> None:
    """Every place of the batch is a first draw: share / size."""
    with filled(path, {"a": 10, "b": 3, "c": 7}) as memory:
        batches = [memory.sample(4).ids for _ in range(1000)]
    law = np.repeat([1 / 30, 1 / 9, 1 / 21], [10, 3, 7])
    for place in (0, 3):
        counts = np.bincount([ids[place] - 1 for ids in batches], minlength=20)
        must_follow(counts, law)
        must_refute(counts, np.full(20, 0.05))


def test_with_replacement(path: str) -> None:
    with filled(path, {"a": 50, "b": 3, "c": 7}) as memory:
        batch = memory.sample(9_000, replacement=True)
        assert Counter(batch.domain.tolist()) == {"a": 3000, "b": 3000, "c": 3000}
        counts = np.bincount(batch.ids - 1, minlength=60)
        must_follow(counts[:50], np.full(50, 0.02))
        must_follow(counts[50:53], np.full(3, 1 / 3))
        must_refute(counts, np.full(60, 1 / 60))


def test_given_weights(path: str) -> None:
    with filled(path, {"a": 100, "b": 100, "c": 100, "d": 100}) as memory:
        strategy = DomainBalanced({"a": 7, "b": 2, "c": 1, "d": 0})
        for _ in range(20):
            exact = Counter(memory.sample(20, strategy=strategy).domain.tolist())
            assert exact == {"a": 14, "b": 4, "c": 2}
        got = [Counter(memory.sample(5, strategy=strategy).domain.tolist()) for _ in range(800)]
    # 3.5, 1 and 0.5 slots: the fractions on average, one slot away at most.
    assert {c["a"] for c in got} == {3, 4} and {c["b"] for c in got} == {1} and {c["c"] for c in got} == {0, 1}
    more = sum(c["a"] == 4 for c in got)
    must_happen(more, 800, 0.5)
    must_not_happen(more, 800, 0.7)


def test_unequal_fractions_hold_on_average(path: str) -> None:
    weights = {"a": 0.37, "b": 0.33, "c": 0.21, "d": 0.06, "e": 0.03}
    with filled(path, dict.fromkeys(weights, 20)) as memory:
        strategy = DomainBalanced(weights)
        got = Counter(d for _ in range(1200) for d in memory.sample(3, strategy=strategy).domain.tolist())
    for name, weight in weights.items():
        # One slot for the whole part of 3 * weight, the rest is a coin.
        whole = int(3 * weight)
        must_happen(got[name] - whole * 1200, 1200, 3 * weight - whole)
        must_not_happen(got[name] - whole * 1200, 1200, min(1.0, (3 * weight - whole) * 1.5 + 0.05))


def test_what_a_domain_cannot_give_is_spread_over_the_others(path: str) -> None:
    with filled(path, {"a": 2, "b": 100, "c": 100, "d": 7}) as memory:
        got = [Counter(memory.sample(35).domain.tolist()) for _ in range(400)]
        assert all(c["a"] == 2 and c["d"] == 7 and {c["b"], c["c"]} == {13} for c in got)
        got = [Counter(memory.sample(36).domain.tolist()) for _ in range(400)]
        assert all(c["a"] == 2 and c["d"] == 7 and {c["b"], c["c"]} == {13, 14} for c in got)
        more = sum(c["b"] == 14 for c in got)
        must_happen(more, 400, 0.5)
        must_not_happen(more, 400, 0.7)
        # Weights decide among those that have something left.
        strategy = DomainBalanced({"a": 10, "b": 3, "c": 1})
        assert Counter(memory.sample(42, strategy=strategy).domain.tolist()) == {"a": 2, "b": 30, "c": 10}
        # All there is, of the domains that count.
        assert Counter(memory.sample(500, strategy=strategy).domain.tolist()) == {"a": 2, "b": 100, "c": 100}
        assert len(set(memory.sample(500).ids.tolist())) == 209


def test_fewer_draws_than_domains(path: str) -> None:
    with filled(path, {"a": 50, "b": 1, "c": 2, "d": 10, "e": 5}) as memory:
        drawn = [frozenset(memory.sample(2).domain.tolist()) for _ in range(1200)]
    pairs = {frozenset(pair): 0.1 for pair in combinations("abcde", 2)}
    must_follow(*tally(drawn, pairs))
    with pytest.raises(LawViolatedError):  # in proportion to size, the small ones would hardly be seen
        must_follow(*tally(drawn, {p: 0.9 / 4 if "a" in p else 0.1 / 6 for p in pairs}))


def test_a_small_buffer_by_enumeration(path: str) -> None:
    with filled(path, {"a": 3, "b": 2}) as memory:
        drawn = [tuple((memory.sample(3).ids - 1).tolist()) for _ in range(1200)]
    # Two of a and one of b (3 * 2 ways), or one and two (3 ways), each half the time; six orders of each.
    law = {}
    for order in permutations(range(5), 3):
        of_a = sum(i < 3 for i in order)
        law[order] = {2: 1 / 2 / 6 / 6, 1: 1 / 2 / 3 / 6}.get(of_a, 0.0)
    must_follow(*tally(drawn, law))
    possible = [order for order, p in law.items() if p]
    must_refute(*tally(drawn, {order: 1 / len(possible) for order in possible}))


def test_a_thousand_domains_of_unequal_size(path: str) -> None:
    rng = np.random.default_rng(4)
    sizes = {f"d{i}": int(n) for i, n in enumerate(rng.integers(1, 12, 1000))}
    with filled(path, sizes) as memory:
        batches = [memory.sample(256).domain for _ in range(40)]
    assert all(len(set(names.tolist())) == 256 for names in batches)
    number = {name: i for i, name in enumerate(sizes)}
    counts = np.bincount([number[name] for names in batches for name in names.tolist()], minlength=1000)
    assert subsets_p_value(counts, np.full(40, 256)) > FALSE_ALARM
    # The first 256 in order, or each in proportion to its size.
    assert subsets_p_value(np.where(np.arange(1000) < 256, 40, 0), np.full(40, 256)) < FALSE_ALARM
    must_refute(counts, share(np.array(list(sizes.values()), np.float64)))


def test_unknown_domains_have_no_share(path: str) -> None:
    with filled(path, {"a": 5, "b": 5}) as memory:
        assert set(memory.sample(4, strategy=DomainBalanced({"a": 1, "nowhere": 3})).domain.tolist()) == {"a"}
        with pytest.raises(ConfigError, match="nowhere"):
            memory.sample(4, strategy=DomainBalanced({"nowhere": 3}))
