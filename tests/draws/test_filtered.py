"""Draws behind a condition, and of whole groups: the strategy's law among the episodes that pass, and nobody else.

Which episodes pass, and their law, is computed here from what was stored; the ways to draw are told apart by what they
read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import memstore
from memstore import (
    Column,
    Condition,
    DomainBalanced,
    EpisodicMemory,
    Mixed,
    PrioritizedLoss,
    PrioritizedRecency,
    Strategy,
    Uniform,
    col,
)
from memstore.testing import Counts, counting
from tests.support.helpers import OpenMemory
from tests.support.laws import (
    Draw,
    Floats,
    Ints,
    must_follow,
    must_refute,
    plackett_luce,
    share,
    subsets_p_value,
    successive,
    tally,
    weights,
)
from tests.support.models import payload

EPSILON, INDEX_ALPHA = 0.1, 0.7
EVERYTHING = 10**6


@dataclass
class World:
    """What was stored, as columns in id order; ids begin with 1."""

    ids: Ints
    domain: NDArray[np.str_]
    level: Ints
    loss: Floats
    replays: Ints
    highest: float
    inserted: int

    @property
    def age(self) -> Ints:
        return self.inserted + 1 - self.ids

    def law(self, strategy: Strategy, passing: NDArray[np.bool_]) -> Floats:
        """The law of one draw among those that pass."""
        weight: Floats
        match strategy:
            case Uniform():
                weight = np.ones(len(self.ids))
            case PrioritizedLoss():
                weight = weights(self.loss, alpha=strategy.alpha, epsilon=EPSILON, highest=self.highest)
            case PrioritizedRecency():
                weight = np.power(self.age, -strategy.alpha, dtype=np.float64)
            case DomainBalanced():
                sizes = Counter(self.domain[passing].tolist())
                given = strategy.weights or dict.fromkeys(sizes, 1.0)
                weight = np.array([given.get(d, 0.0) / sizes[d] if sizes[d] else 0.0 for d in self.domain.tolist()])
            case Mixed():
                return np.asarray(sum(v * self.law(part, passing) for part, v in strategy.components.items()))
            case _:
                raise AssertionError(strategy)
        return share(np.where(passing, weight, 0.0))


def fill(memory: EpisodicMemory, count: int, rng: np.random.Generator) -> World:
    """Episodes of five unequal domains and 50 levels; some never measured, some replayed, some gone."""
    domain = np.array([f"d{i}" for i in rng.choice(5, size=count, p=[0.4, 0.3, 0.15, 0.1, 0.05])])
    level = rng.integers(50, size=count)
    loss = rng.lognormal(size=count)
    loss[::11] = np.nan
    memory.extend(payload(count), domain=domain.tolist(), level=level.tolist(), loss=losses(loss))
    highest = float(np.nanmax(loss)) + EPSILON
    replays = np.zeros(count, np.int64)
    # By less than a half-octave, by more, and up: bounds of strata are tight for some and loose for others.
    again = rng.choice(count, count // 40, replace=False)
    loss[again] = rng.lognormal(size=len(again))
    replays[again] = 1
    memory.update(again + 1, loss=loss[again])
    highest = max(highest, float(loss[again].max()) + EPSILON)
    left = rng.random(count) > 0.2
    memory.delete(np.flatnonzero(~left) + 1)
    ids = np.flatnonzero(left) + 1
    return World(ids, domain[left], level[left], loss[left], replays[left], highest, count)


def losses(values: Floats) -> list[float | None]:
    """NaN as never measured."""
    return [None if np.isnan(x) else x for x in values.tolist()]


Passing = Callable[[World], NDArray[np.bool_]]
CONDITIONS: dict[str, tuple[Condition, Passing]] = {
    "domains": (col.domain.in_(["d1", "d3"]), lambda w: np.isin(w.domain, ["d1", "d3"])),
    "not a domain": (col.domain != "d0", lambda w: w.domain != "d0"),
    "immutable, sparse": (col.level == 7, lambda w: w.level == 7),
    "immutable, dense": (col.level >= 20, lambda w: w.level >= 20),
    "loss, high": (col.loss > 2, lambda w: w.loss > 2),
    "loss, low": (col.loss <= 0.75, lambda w: w.loss <= 0.75),
    "never measured": (col.loss.is_missing(), lambda w: np.isnan(w.loss)),
    "domain, loss and level": (
        (col.loss > 1) & (col.level < 25) & (col.domain != "d0"),
        lambda w: (w.loss > 1) & (w.level < 25) & (w.domain != "d0"),
    ),
    "mutable, sparse": (col.replay_count >= 1, lambda w: w.replays >= 1),
    "young": (col.age <= 300, lambda w: w.age <= 300),
    "either": ((col.domain == "d4") | (col.loss > 4), lambda w: (w.domain == "d4") | (w.loss > 4)),
}

STRATEGIES: dict[Strategy, Strategy] = {
    Uniform(): PrioritizedLoss(0.4),
    PrioritizedLoss(INDEX_ALPHA): PrioritizedLoss(1.0),
    PrioritizedLoss(1.5): PrioritizedLoss(1.0),
    PrioritizedLoss(0.0): PrioritizedLoss(0.4),
    PrioritizedRecency(0.8): PrioritizedRecency(0.3),
    DomainBalanced(): Uniform(),
    DomainBalanced({"d1": 1, "d2": 2, "d3": 4}): DomainBalanced(),
    Mixed({PrioritizedLoss(INDEX_ALPHA): 0.5, PrioritizedRecency(0.8): 0.25, DomainBalanced(): 0.25}): Uniform(),
}
"""Each with another one, whose law the draws must refute where it differs enough."""

REFUTABLE = 0.1
"""Sum of the absolute differences of two laws: (0.1 / 2)**2 / 2 nats at least, so 15 nats, 1e-6, in 12,000 draws. Most
differ by more."""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EpisodicMemory, World]]:
    path = str(tmp_path_factory.mktemp("large") / "run.db")
    with memstore.open(path, strategy=PrioritizedLoss(INDEX_ALPHA), epsilon=EPSILON, seed=1) as memory:
        yield memory, fill(memory, 1900, np.random.default_rng(0))


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_with_replacement(large: tuple[EpisodicMemory, World], strategy: Strategy) -> None:
    refuted = 0
    memory, world = large
    for name, (condition, passes) in CONDITIONS.items():
        passing = passes(world)
        law = world.law(strategy, passing)
        drawn = memory.sample(2000, strategy=strategy, replacement=True, where=condition)
        counts = np.bincount(np.searchsorted(world.ids, drawn.ids), minlength=len(world.ids))
        assert np.isin(drawn.ids, world.ids[passing]).all(), name
        must_follow(counts, law)
        wrong = world.law(STRATEGIES[strategy], passing)
        if np.abs(law - wrong).sum() > 3 * REFUTABLE:
            must_refute(counts, wrong)
            refuted += 1
    assert refuted >= 4


@pytest.mark.parametrize("strategy", STRATEGIES, ids=str)
def test_probability_and_all_that_pass(large: tuple[EpisodicMemory, World], strategy: Strategy) -> None:
    """Fewer match than are asked for: each of them once; what the strategy leaves out stays out."""
    memory, world = large
    for name, (condition, passes) in CONDITIONS.items():
        law = world.law(strategy, passes(world))
        every = memory.sample(EVERYTHING, strategy=strategy, where=condition, exact_probability=True)
        assert sorted(every.ids.tolist()) == world.ids[law > 0].tolist(), name
        assert every.probability is not None
        place = np.searchsorted(world.ids, every.ids)
        np.testing.assert_allclose(every.probability, law[place], rtol=1e-9)
        assert abs(every.probability.sum() - 1) < 1e-9
        np.testing.assert_array_equal(every.loss, world.loss[place])
        np.testing.assert_array_equal(every.domain, world.domain[place])
        np.testing.assert_array_equal(every.replay_count, world.replays[place])

        some = memory.sample(20, strategy=strategy, where=condition, exact_probability=True, beta=0.5)
        assert some.probability is not None and len(set(some.ids.tolist())) == min(20, int((law > 0).sum()))
        np.testing.assert_allclose(some.probability, law[np.searchsorted(world.ids, some.ids)], rtol=1e-9)
        assert some.weight.max() <= 1 + 1e-9  # over the whole buffer, so below it by a constant factor
        if not isinstance(strategy, Mixed):
            ratio = some.weight * np.sqrt(some.probability)
            np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_probability_by_loss_is_always_known(large: tuple[EpisodicMemory, World]) -> None:
    memory, world = large
    by_loss = PrioritizedLoss(INDEX_ALPHA)
    for name in ("domains", "immutable, dense", "immutable, sparse"):
        condition, passes = CONDITIONS[name]
        batch = memory.sample(20, strategy=by_loss, where=condition)
        law = world.law(by_loss, passes(world))
        np.testing.assert_allclose(np.asarray(batch.probability), law[np.searchsorted(world.ids, batch.ids)], rtol=1e-9)


# Without replacement: seven episodes, or fewer, pass among many others.

LOSS = np.array([9.0, 0.5, 1.0, np.nan, 0.2, 2.0, 0.05])
"""Of those that pass. One is never measured, one outweighs the others."""
OTHERS_LOSS = (0.0, 1.0, 30.0)
"""Of the others: the strata hold them together, and the highest loss ever is theirs."""


@dataclass
class Few:
    """A memory in which few episodes pass, and what each strategy draws them by."""

    memory: EpisodicMemory
    ids: Ints
    age: Ints
    loss: Floats

    def weight(self, strategy: Strategy) -> Floats:
        match strategy:
            case PrioritizedLoss():
                return weights(self.loss, alpha=strategy.alpha, epsilon=EPSILON, highest=30 + EPSILON)
            case PrioritizedRecency():
                return np.asarray(self.age**-strategy.alpha)
        return np.ones(len(self.ids))

    def sequences(self, batches: Iterator[Any]) -> list[Draw]:
        """Places of what was drawn; anything else among them breaks the law."""
        place = {number: i for i, number in enumerate(self.ids.tolist())}
        return [tuple(place.get(number, -1) for number in batch.ids.tolist()) for batch in batches]


def few(memory: EpisodicMemory, others: int, passing: int = len(LOSS)) -> Few:
    """The seven, level 1 and replayed, stand among the others, level 0 and never replayed."""
    count = others + passing
    at = np.linspace(0, count - 1, passing).astype(int)
    loss = np.resize(OTHERS_LOSS, count)
    loss[at] = LOSS[:passing]
    level = np.zeros(count, int)
    level[at] = 1
    domain = ["a", "b"] * (count // 2) + ["a"] * (count % 2)
    memory.extend(payload(count), loss=losses(loss), level=level.tolist(), domain=domain)
    return Few(memory, at + 1, count - at, loss[at])


SPARSE = col.level == 1


@pytest.fixture
def ways() -> Iterator[Counts]:
    """Counts how many rounds of candidates draws take, and how many lists."""
    with counting() as counts:
        yield counts


BY_LOSS, BY_AGE = PrioritizedLoss(INDEX_ALPHA), PrioritizedRecency(0.8)


@pytest.mark.parametrize(
    ("strategy", "wrong", "others", "condition"),
    [
        (BY_LOSS, PrioritizedLoss(1.5), 250, SPARSE),
        (BY_AGE, PrioritizedRecency(0.0), 250, SPARSE),
        (Uniform(), PrioritizedLoss(0.8), 250, SPARSE & (col.domain >= "a")),
        (BY_LOSS, PrioritizedLoss(1.5), 30, SPARSE),
        (BY_AGE, PrioritizedRecency(0.0), 30, SPARSE & (col.id > 0)),
    ],
    ids=str,
)
def test_without_replacement(
    path: str, ways: Counts, strategy: Strategy, wrong: Strategy, others: int, condition: Condition
) -> None:
    """Drawn by testing candidates, from the list of those that pass, and begun one way and ended the other."""
    times = 160
    with memstore.open(path, strategy=BY_LOSS, epsilon=EPSILON, seed=3) as memory:
        known = few(memory, others, 6)
        drawn = known.sequences(memory.sample(2, strategy=strategy, where=condition) for _ in range(times))
    law = plackett_luce(known.weight(strategy), 2)
    must_follow(*tally(drawn, law))
    must_refute(*tally(drawn, plackett_luce(known.weight(wrong), 2)))
    if strategy == BY_LOSS:
        assert ways.listed in (0, times), "the number of those that pass decides"


def test_without_replacement_on_every_database(open_memory: OpenMemory, ways: Counts) -> None:
    memory = open_memory(strategy=BY_LOSS, epsilon=EPSILON)
    known = few(memory, 150, 5)
    drawn = known.sequences(memory.sample(2, where=SPARSE) for _ in range(250))
    must_follow(*tally(drawn, plackett_luce(known.weight(BY_LOSS), 2)))
    must_refute(*tally(drawn, plackett_luce(known.weight(Uniform()), 2)))
    assert ways.scans == 1
    batch = memory.sample(4000, where=SPARSE, replacement=True)
    counts = np.bincount(np.searchsorted(known.ids, batch.ids), minlength=5)
    law = share(known.weight(BY_LOSS))
    must_follow(counts, law)
    must_refute(counts, share(known.weight(PrioritizedLoss(0.5))))
    np.testing.assert_allclose(np.asarray(batch.probability), law[np.searchsorted(known.ids, batch.ids)], rtol=1e-9)


def test_a_condition_on_what_changes(path: str, ways: Counts) -> None:
    """Listed anew for every draw: what passed before may not pass now."""
    with memstore.open(path, strategy=BY_LOSS, epsilon=EPSILON, seed=4) as memory:
        known = few(memory, 150, 6)
        memory.update(known.ids[:3], loss=LOSS[:3])
        replayed = Few(memory, known.ids[:3], known.age[:3], known.loss[:3])
        drawn = replayed.sequences(memory.sample(2, where=col.replay_count > 0) for _ in range(150))
        must_follow(*tally(drawn, plackett_luce(replayed.weight(BY_LOSS), 2)))
        memory.update(known.ids[3:], loss=1.0)
        known.loss[3:] = 1.0
        drawn = known.sequences(memory.sample(2, where=col.replay_count > 0) for _ in range(150))
    must_follow(*tally(drawn, plackett_luce(known.weight(BY_LOSS), 2)))
    assert not ways.scans


def test_mixed_components_draw_from_what_is_left(path: str) -> None:
    with memstore.open(path, strategy=BY_LOSS, epsilon=EPSILON, seed=5) as memory:
        known = few(memory, 150)
        for parts in ((BY_LOSS, BY_AGE), (Uniform(), BY_LOSS)):
            strategy = Mixed(dict.fromkeys(parts, 0.5))
            drawn = known.sequences(memory.sample(2, strategy=strategy, where=SPARSE) for _ in range(150))
            first, second = (known.weight(part) for part in parts)
            must_follow(*tally(drawn, successive([first, second])))
            must_refute(*tally(drawn, successive([second, first])))
        for count in (3, 6, 7, 8, 100):
            ids = memory.sample(count, strategy=Mixed({BY_LOSS: 0.6, BY_AGE: 0.4}), where=SPARSE).ids.tolist()
            assert len(set(ids)) == len(ids) == min(count, 7) and set(ids) <= set(known.ids.tolist())


def test_quotas_count_the_episodes_that_pass(path: str) -> None:
    """Two of one domain and four of another: one of each in every pair, whichever is larger in the whole buffer."""
    with memstore.open(path, seed=6) as memory:
        memory.extend(payload(200), domain=["a"] * 180 + ["b"] * 20, level=[*[1] * 2, *[0] * 178, *[1] * 4, *[0] * 16])
        members = {"a": [1, 2], "b": [181, 182, 183, 184]}
        pairs = {frozenset((a, b)): 1 / 8 for a in members["a"] for b in members["b"]}
        drawn = [memory.sample(2, strategy="domain_balanced", where=SPARSE).ids.tolist() for _ in range(300)]
        must_follow(*tally(map(frozenset, drawn), pairs))
        must_follow(*tally((ids[0] <= 2 for ids in drawn), {True: 0.5, False: 0.5}))
        # What a domain is too small to give, the other gives.
        for count in (5, 6, 7):
            ids = memory.sample(count, strategy="domain_balanced", where=SPARSE).ids.tolist()
            assert len(set(ids)) == min(count, 6) and {1, 2} <= set(ids)


@pytest.mark.parametrize("strategy", [BY_LOSS, BY_AGE], ids=str)
def test_leased_episodes_are_left_out(path: str, strategy: Strategy) -> None:
    with memstore.open(path, strategy=BY_LOSS, epsilon=EPSILON, seed=7) as memory:
        known = few(memory, 60, 6)
        memory.lease(10, where=col.level == 0)  # of no account
        held = memory.lease(2, where=SPARSE).ids
        drawn = []
        for _ in range(120):
            batch = memory.lease(2, strategy=strategy, where=SPARSE)
            drawn.append(batch)
            memory.release(batch)
        assert not np.isin(np.concatenate([batch.ids for batch in drawn]), held).any()
        weight = known.weight(strategy)
        left = np.where(np.isin(known.ids, held), 0, weight)
        sequences = known.sequences(iter(drawn))
        must_follow(*tally(sequences, plackett_luce(left, 2)))
        assert any(sequence not in plackett_luce(weight[:2], 2) for sequence in sequences)
        # All that are free; the probability is that of a draw among all that pass.
        rest = memory.lease(100, strategy=strategy, where=SPARSE, exact_probability=True)
        assert sorted([*rest.ids.tolist(), *held.tolist()]) == known.ids.tolist()
        place = np.searchsorted(known.ids, rest.ids)
        np.testing.assert_allclose(np.asarray(rest.probability), share(weight)[place], rtol=1e-9)
        with pytest.raises(memstore.MemoryEmpty, match="where level = 1"):
            memory.lease(1, where=SPARSE)


# The same without a database, which gives the power to see small mistakes.


GROUP_SIZES = (4, 2, 7, 3, 4, 1, 5)


@dataclass
class Prompts:
    """Groups of unequal sizes, their members spread over the buffer."""

    memory: EpisodicMemory
    prompt: Ints
    loss: Floats

    def members(self, prompt: int) -> Ints:
        """Ids, oldest first."""
        return np.flatnonzero(self.prompt == prompt) + 1

    @property
    def age(self) -> Ints:
        return np.arange(len(self.prompt), 0, -1)


@pytest.fixture
def prompts(path: str) -> Iterator[Prompts]:
    rng = np.random.default_rng(9)
    prompt = rng.permutation(np.repeat(np.arange(-1, len(GROUP_SIZES)), [20, *GROUP_SIZES]))
    loss = rng.lognormal(size=len(prompt))
    loss[::7] = np.nan
    extra = [{"prompt": int(p), "name": f"p{p}"} if p >= 0 else None for p in prompt.tolist()]
    with memstore.open(path, epsilon=EPSILON, seed=10) as memory:
        memory.extend(
            payload(len(prompt)), loss=losses(loss), extra=extra, domain=["a", "b", "c", "d"] * 11 + ["a"] * 2
        )
        yield Prompts(memory, prompt, loss)


PROMPT = col.extra["prompt"].number


def test_groups_are_uniform_among_the_complete(prompts: Prompts) -> None:
    """Whatever their sizes, and each at most once."""
    complete = [i for i, size in enumerate(GROUP_SIZES) if size >= 4]
    counts, sizes = np.zeros(len(GROUP_SIZES), np.int64), []
    for n in (1, 2, 3) * 150:
        batch = prompts.memory.sample_groups(n, 4, by=PROMPT)
        assert batch.group is not None and batch.group.tolist() == np.repeat(np.arange(n), 4).tolist()
        drawn = prompts.prompt[batch.ids - 1].reshape(n, 4)
        assert (drawn == drawn[:, :1]).all() and len(set(drawn[:, 0].tolist())) == n
        assert len(set(batch.ids.tolist())) == 4 * n
        counts += np.bincount(drawn[:, 0], minlength=len(counts))
        sizes.append(n)
    assert counts.sum() == counts[complete].sum()
    assert subsets_p_value(counts[complete], np.array(sizes)) > 1e-6
    first = np.array([prompts.prompt[prompts.memory.sample_groups(1, 4, by=PROMPT).ids[0] - 1] for _ in range(400)])
    counts = np.bincount(first, minlength=len(GROUP_SIZES))[complete]
    must_follow(counts, np.full(4, 1 / 4))
    must_refute(counts, np.array(GROUP_SIZES)[complete] / 20)


@pytest.mark.parametrize("strategy", [Uniform(), PrioritizedLoss(1.3), BY_AGE], ids=str)
def test_within_a_group_the_strategys_law(prompts: Prompts, strategy: Strategy) -> None:
    highest = float(np.nanmax(prompts.loss)) + EPSILON
    every: Floats = np.ones(len(prompts.loss))
    if isinstance(strategy, PrioritizedLoss):
        every = weights(prompts.loss, alpha=strategy.alpha, epsilon=EPSILON, highest=highest)
    elif isinstance(strategy, PrioritizedRecency):
        every = np.power(prompts.age, -strategy.alpha, dtype=np.float64)
    drawn: dict[int, list[Draw]] = {}
    for _ in range(200):
        batch = prompts.memory.sample_groups(10, 2, by=PROMPT, strategy=strategy)
        assert len(batch) == 2 * 6 and batch.probability is not None  # all but the group of one
        for pair, probability in zip(batch.ids.reshape(-1, 2), batch.probability.reshape(-1, 2), strict=True):
            prompt = int(prompts.prompt[pair[0] - 1])
            place = np.searchsorted(prompts.members(prompt), pair)
            drawn.setdefault(prompt, []).append(tuple(place.tolist()))
            law = share(every[prompts.members(prompt) - 1])
            np.testing.assert_allclose(probability, law[place] / 6, rtol=1e-9)
    assert sorted(drawn) == [0, 1, 2, 3, 4, 6]
    for prompt, pairs in drawn.items():
        weight = every[prompts.members(prompt) - 1]
        must_follow(*tally(pairs, plackett_luce(weight, 2)))
        if prompt in (2, 6):
            must_refute(*tally(pairs, plackett_luce(weight * np.arange(1, len(weight) + 1) ** 2, 2)))


BY: dict[str, tuple[Column, Callable[[int], Any]]] = {
    "domain": (col.domain, lambda i: f"d{i % 3}"),
    "level": (col.level, lambda i: i % 4 or None),
    "key": (col.key, lambda i: f"k{i}"),
    "text": (col.extra["v"].text, lambda i: [f"t{i % 5}", 3, None, True][i % 4]),
    "number": (col.extra["v"].number, lambda i: [i % 3, i % 3 + 0.5, "1", False, None][i % 5]),
    "flag": (col.extra["v"].flag, lambda i: [True, False, 1, "true", None][i % 5]),
    "nested": (col.extra["v"]["w"].text, lambda i: [{"w": f"t{i % 3}"}, {"w": 1}, {}, "w"][i % 4]),
}


def test_groups_by_each_kind_of_column(open_memory: OpenMemory) -> None:
    """Values of another type are missing, and what is missing forms no group."""
    for by in BY:
        grouped_by(open_memory(buffer=by), by)


def grouped_by(memory: EpisodicMemory, by: str) -> None:
    column, value = BY[by]
    count = 90
    values = [value(i) for i in range(count)]
    given: dict[str, Any] = {by: values} if column.name != "extra" else {"extra": [{"v": v} for v in values]}
    first = int(memory.extend(payload(count), **given)[0])
    kinds: dict[str, Any] = {"text": str, "number": (int, float), "flag": bool}
    expected: dict[Any, set[int]] = {}
    for i, v in enumerate(values, first):
        grouped = v.get("w") if by == "nested" and isinstance(v, dict) else v
        if by == "nested":
            grouped = grouped if isinstance(grouped, str) and isinstance(v, dict) else None
        elif by in kinds and not (isinstance(v, kinds[by]) and (by == "flag" or not isinstance(v, bool))):
            grouped = None
        if grouped is not None:
            expected.setdefault(grouped, set()).add(i)
    for size in (1, 5, min(map(len, expected.values())), max(map(len, expected.values()))):
        complete = {v: ids for v, ids in expected.items() if len(ids) >= size}
        if not complete:
            with pytest.raises(memstore.MemoryEmpty):
                memory.sample_groups(3, size, by=column)
            continue
        batch = memory.sample_groups(count, size, by=column)  # fewer are complete: those
        assert batch.group is not None and batch.probability is not None
        assert batch.group.tolist() == np.repeat(np.arange(len(complete)), size).tolist()
        parts = [set(part) for part in batch.ids.reshape(-1, size).tolist()]
        assert all(len(part) == size for part in parts)
        assert sorted(v for part in parts for v, ids in complete.items() if part <= ids) == sorted(complete)
        for part, probability in zip(parts, batch.probability.reshape(-1, size), strict=True):
            (ids,) = (ids for ids in complete.values() if part <= ids)
            np.testing.assert_allclose(probability, 1 / len(complete) / len(ids), rtol=1e-9)


def test_groups_behind_a_condition(prompts: Prompts) -> None:
    """Complete is a group with enough members that pass; on the loss, what passes is asked for anew."""
    memory = prompts.memory
    for condition, passing in (
        (col.domain.in_(["a", "b"]), np.arange(len(prompts.prompt)) % 4 < 2),
        (col.loss > 0.8, prompts.loss > 0.8),
    ):
        passing = passing.copy()
        passing[-2:] |= condition == col.domain.in_(["a", "b"])
        members = Counter(prompts.prompt[passing].tolist())
        complete = {p for p, n in members.items() if n >= 2 and p >= 0}
        assert 1 < len(complete) < len(members)
        for _ in range(20):
            batch = memory.sample_groups(50, 2, by=PROMPT, where=condition, strategy=PrioritizedLoss(1.0))
            assert passing[batch.ids - 1].all()
            assert set(prompts.prompt[batch.ids - 1].tolist()) == complete and len(batch) == 2 * len(complete)
    with pytest.raises(memstore.MemoryEmpty):
        memory.sample_groups(1, 2, by=PROMPT, where=col.domain == "nowhere")


def test_what_a_strategy_leaves_out_is_in_no_group(prompts: Prompts) -> None:
    """Weight zero is never drawn, so it completes no group either."""
    strategy = DomainBalanced({"a": 1.0, "b": 3.0})
    domain = np.array(["a", "b", "c", "d"] * 11 + ["a"] * 2)
    each = np.select([domain == "a", domain == "b"], [0.25 / 13, 0.75 / 11], 0.0)
    possible = Counter(prompts.prompt[each > 0].tolist())
    complete = {p for p, n in possible.items() if n >= 2 and p >= 0}
    for _ in range(30):
        batch = prompts.memory.sample_groups(50, 2, by=PROMPT, strategy=strategy)
        assert set(prompts.prompt[batch.ids - 1].tolist()) == complete and set(batch.domain.tolist()) == {"a", "b"}
        assert batch.probability is not None
        for pair, probability in zip(batch.ids.reshape(-1, 2), batch.probability.reshape(-1, 2), strict=True):
            within = each[prompts.members(int(prompts.prompt[pair[0] - 1])) - 1].sum()
            np.testing.assert_allclose(probability, each[pair - 1] / within / len(complete), rtol=1e-9)
