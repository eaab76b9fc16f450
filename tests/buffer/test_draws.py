"""The laws of draws from the copy: what its numbers say, what is drawn, and how much work it takes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.slots import PLACE_BITS, Floats, Ints
from memstore.buffer.blocks.views import View, Views
from memstore.buffer.blocks.weights import Law
from memstore.draws import weighted as module
from memstore.draws.aged import Ages, aged, log2_total
from memstore.draws.even import balanced, domain_counts, uniform
from memstore.draws.weighted import Masses, least_log2, weighted
from memstore.testing import Counts, counting
from tests.buffer.model import OWN, LossAbove, Model, law_of, log2_probability, slots_of, step
from tests.support.laws import (
    LawViolatedError,
    must_follow,
    must_refute,
    plackett_luce,
    share,
    subsets_p_value,
    tally,
    whole_batch_redrawn,
)

EPSILON = 1e-6
NAN = math.nan

HEAVY = np.array([1.0, 2.0, 0.5, 1.0, 3.0, 1400.0, 1.0, 0.1, 2.0, 1.5, 1.0, 0.7])  # one of 12 has 99 %
TAIL = np.exp(np.random.default_rng(0).normal(0, 3, 12))
MIXED = np.array([1.0, NAN, 0.5, NAN, 3.0, 0.0, 1.0, 0.1, NAN, 1.5, 1.0, 0.7])
EXTREME = np.array([0.0, 1e-300, 1.0, 1e12, 1e308, NAN, 1e308, 1.0, 1e12, 1e-6, 1e300, NAN])
LOSSES = {"heavy": HEAVY, "tail": TAIL, "mixed": MIXED, "extreme": EXTREME, "new": np.full(12, NAN)}
TOPS = {"heavy": 1400.0, "tail": 1e4, "mixed": 4.0, "extreme": 1e308, "new": 1.0}


def copy_of(loss: Floats, domains: int = 3) -> Copy:
    """Episodes 1, 2, ... of domains in turn. The measured ones came with a loss of 1e12, and were replayed down."""
    ids = np.arange(1, len(loss) + 1)
    domain = (ids - 1) % domains + 1
    copy = Copy.of(OWN).appended(ids, domain, np.where(np.isnan(loss), np.nan, 1e12))
    measured = np.flatnonzero(~np.isnan(loss))
    one = np.ones(len(measured), np.int64)
    return copy.patched(copy.locate(ids[measured], domain[measured]), loss[measured], one, one)


def weights(loss: Floats, alpha: float, top: float) -> dict[int, float]:
    """Base-2 logarithms by episode."""
    return {
        number: alpha * math.log2(top if math.isnan(value) else value + EPSILON)
        for number, value in enumerate(loss.tolist(), 1)
    }


def stated(copy: Copy, view: View, top: float) -> dict[int, float]:
    """The law that the numbers of a view come to, from which blocks and slots are chosen."""
    masses = Masses.of(view, top)
    law = {}
    blocks = np.diff(masses.ends, prepend=0.0)
    for block in range(len(copy)):
        slots = copy.open(np.array([block])).slots
        steps, start, count = view.steps_in(copy, np.array([block]))
        steps = steps[start[0] : start[0] + count[0]]
        inside = np.diff(steps, prepend=0.0)
        for number, loss, height in zip(slots.ids.tolist(), slots.loss.tolist(), inside.tolist(), strict=True):
            measured = blocks[block] / masses.total * height / steps[-1] if height else 0.0
            law[number] = masses.gap_weight / masses.total if math.isnan(loss) else float(measured)
    return law


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.5, 50.0])
@pytest.mark.parametrize("name", LOSSES)
def test_the_numbers_state_the_law(name: str, alpha: float, small_blocks: int) -> None:
    copy, top = copy_of(LOSSES[name]), TOPS[name]
    view = View.of(copy, Law(alpha, EPSILON))
    log2 = weights(LOSSES[name], alpha, top)
    expected, law = law_of(log2), stated(copy, view, top)
    assert math.isclose(sum(law.values()), 1.0, rel_tol=1e-14)
    for number, probability in expected.items():
        assert math.isclose(law[number], probability, rel_tol=1e-11, abs_tol=1e-15), number
    largest = max(log2.values())
    total = largest + math.log2(math.fsum(2.0 ** (x - largest) for x in log2.values()))
    assert math.isclose(Masses.of(view, top).log2_total, total, rel_tol=1e-13, abs_tol=1e-12)


def test_probabilities_are_those_of_the_law_whatever_happened(small_blocks: int) -> None:
    """At every point of a program, with losses of every size, they sum to 1 over all live episodes."""
    rng = np.random.default_rng(20)
    copy, model, views = Copy.of(OWN), Model(), Views()
    for _ in range(80):
        copy = step(rng, copy, model, scale=2)
        slots, _ = slots_of(copy)
        for alpha in (0.0, 0.6, 1.0, 50.0) if model.live else ():
            view = views.get(copy, Law(alpha, EPSILON))
            probability = dict(zip(slots.ids.tolist(), np.exp2(log2_probability(view, 1e308, slots)), strict=True))
            assert math.isclose(sum(probability.values()), 1.0, rel_tol=1e-11)
            for number, expected in law_of(model.weights(alpha, EPSILON, 1e308)).items():
                assert math.isclose(probability[number], expected, rel_tol=1e-10, abs_tol=1e-300)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 3.0])
def test_totals_by_age_are_those_of_the_law(alpha: float, small_blocks: int) -> None:
    copy, ages = copy_of(np.ones(400)), Ages(alpha, 405)
    for leaving in ((), (1, 2, 3), (200,)):
        ids = np.array(leaving, np.int64)
        left = copy.departed(copy.locate(ids, (ids - 1) % 3 + 1))
        total = math.fsum((406.0 - number) ** -alpha for number in range(1, 401) if number not in leaving)
        assert math.isclose(log2_total(left, View.of(left, None), ages), math.log2(total), rel_tol=1e-12)
    few = View.of(copy, None).without(copy, copy.locate(np.array([7]), np.array([1])).places)
    total = math.fsum((406.0 - number) ** -alpha for number in range(1, 401) if number != 7)
    assert math.isclose(log2_total(copy, few, ages), math.log2(total), rel_tol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_the_least_weight_is_known_by_heads(name: str, small_blocks: int) -> None:
    copy = copy_of(LOSSES[name])
    for alpha in (0.0, 0.6, 50.0):
        least = min(weights(LOSSES[name], alpha, TOPS[name]).values())
        assert math.isclose(least_log2(copy, Law(alpha, EPSILON), TOPS[name]), least, rel_tol=1e-14)


@pytest.mark.parametrize("alpha", [0.6, 1.0])
@pytest.mark.parametrize("name", ["heavy", "tail", "mixed"])
def test_first_draws_follow_the_law(name: str, alpha: float, small_blocks: int) -> None:
    copy, top = copy_of(LOSSES[name]), TOPS[name]
    view = View.of(copy, Law(alpha, EPSILON), None)
    places = weighted(copy, view, top, np.random.default_rng(1), 60_000, replacement=True)
    counts = np.bincount(copy.read(places).ids - 1, minlength=12)
    law = np.array(list(law_of(weights(LOSSES[name], alpha, top)).values()))
    must_follow(counts, law)
    must_refute(counts, share(law**1.1))
    if name == "mixed":
        must_refute(counts, share(np.where(np.isnan(MIXED), 0, law)))


def test_sums_without_the_never_measured_are_caught(monkeypatch: pytest.MonkeyPatch, small_blocks: int) -> None:
    honest = Masses.of
    monkeypatch.setattr(Masses, "of", lambda view, top: replace(honest(view, top), gap_weight=0.0))
    with pytest.raises(LawViolatedError):
        test_first_draws_follow_the_law("mixed", 0.6, small_blocks)


def pairs(draw: Callable[[np.random.Generator], Ints], copy: Copy, number: int, size: int = 2) -> list[tuple[int, ...]]:
    """Draws, as episodes counted from 0."""
    rng = np.random.default_rng(2)
    places = [draw(rng) for _ in range(number)]
    assert {len(of) for of in places} == {size}
    ids = copy.read(np.concatenate(places)).ids - 1
    return [tuple(row) for row in ids.reshape(-1, size).tolist()]


@pytest.mark.parametrize("by_keys", [False, True], ids=["rounds", "keys"])
@pytest.mark.parametrize("name", ["heavy", "tail", "mixed"])
def test_draws_without_replacement_are_successive(
    name: str, by_keys: bool, small_blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SCAN_SHARE", 99 if by_keys else 4)
    monkeypatch.setattr(module, "proposals", lambda wanted, number: wanted)  # many short rounds
    loss, top = LOSSES[name], TOPS[name]
    copy = copy_of(loss)
    view = View.of(copy, Law(1.0, EPSILON), None)
    with counting() as counts:
        seen = pairs(lambda rng: weighted(copy, view, top, rng, 2), copy, 3000)
    assert (counts.listed, counts.rounds > 0) == ((3000, False) if by_keys else (counts.listed, True))
    weight = np.where(np.isnan(loss), top, loss + EPSILON)
    must_follow(*tally(seen, plackett_luce(weight, 2)))
    wrong = (
        plackett_luce(np.where(np.isnan(loss), 1.0, weight), 2) if name == "mixed" else whole_batch_redrawn(weight, 2)
    )
    must_refute(*tally(seen, wrong))


def test_draws_behind_a_test_and_without_the_excluded(small_blocks: int) -> None:
    loss = np.concatenate([MIXED, HEAVY, TAIL])
    copy = copy_of(loss)
    chosen = [number for number, value in enumerate(loss.tolist()) if value > 0.9 and number not in (16, 17, 30)]
    views = Views()
    ids = np.array([17, 18, 31])
    places = copy.locate(ids, (ids - 1) % 3 + 1).places
    view = views.get(copy, Law(1.0, EPSILON), LossAbove(0.9)).without(copy, places)
    weight = loss[chosen] + EPSILON
    seen = pairs(lambda rng: weighted(copy, view, 1.0, rng, 2), copy, 4000)
    law = {tuple(chosen[at] for at in pair): p for pair, p in plackett_luce(weight, 2).items()}
    must_follow(*tally(seen, law))
    even = views.get(copy, None, LossAbove(0.9)).without(copy, places)
    places = uniform(copy, even, np.random.default_rng(3), 9000, replacement=True)
    seen_evenly = Counter((copy.read(places).ids - 1).tolist())
    must_follow(np.array([seen_evenly[number] for number in chosen]), np.full(len(chosen), 1 / len(chosen)))
    assert set(seen_evenly) == set(chosen)
    everyone = uniform(copy, even, np.random.default_rng(3), 99)
    assert sorted((copy.read(everyone).ids - 1).tolist()) == chosen
    everyone = weighted(copy, view, 1.0, np.random.default_rng(3), 99)
    assert sorted((copy.read(everyone).ids - 1).tolist()) == chosen


def test_heavier_by_far_comes_first_at_any_size(small_blocks: int) -> None:
    """With alpha 50 a loss twice as large weighs 2**50 times as much: the order of a draw is that of the losses."""
    rng = np.random.default_rng(4)
    loss = rng.permutation(2.0 ** np.arange(-480.0, 1000.0, 37.0))
    copy = copy_of(loss)
    view = View.of(copy, Law(50.0, 1e-300), None)
    for wanted in (3, 9, 40):
        places = weighted(copy, view, 1.0, rng, wanted)
        assert copy.read(places).loss.tolist() == sorted(loss.tolist(), reverse=True)[:wanted]


def test_every_episode_is_drawn_once_where_more_are_wanted() -> None:
    copy = copy_of(np.concatenate([EXTREME] * 5))
    rng = np.random.default_rng(5)
    for view in (View.of(copy, Law(50.0, EPSILON), None), View.of(copy, Law(0.0, EPSILON), None)):
        assert sorted(weighted(copy, view, 1e308, rng, 999).tolist()) == sorted(
            (block << PLACE_BITS) + slot for block in range(3) for slot in range(20)
        )
    assert len(set(uniform(copy, View.of(copy, None, None), rng, 999).tolist())) == 60


def test_nothing_is_drawn_from_nothing(small_blocks: int) -> None:
    rng = np.random.default_rng(6)
    empty = copy_of(MIXED).departed_until(99)
    for copy in (Copy.of(OWN), empty, empty.merged()):
        plain, even = View.of(copy, Law(0.6, EPSILON)), View.of(copy, None, None)
        for replacement in (False, True):
            assert not len(weighted(copy, plain, 1.0, rng, 5, replacement=replacement))
            assert not len(uniform(copy, even, rng, 5, replacement=replacement))
            shares = np.ones(len(domain_counts(copy, even)[0]))
            assert not len(balanced(copy, even, rng, 5, shares, replacement=replacement))
            ages = Ages(1.0, 12)
            assert not len(aged(copy, even, ages, lambda ids: ids, rng, 5, replacement=replacement))
    copy = copy_of(MIXED)
    assert not len(weighted(copy, View.of(copy, Law(0.6, EPSILON), LossAbove(1e9)), 1.0, rng, 5, replacement=True))
    assert not len(copy.read(np.zeros(0, np.int64)))


def test_uniform_draws_are_uniform(small_blocks: int) -> None:
    copy = copy_of(np.ones(40)).departed_until(3, 1).departed_until(8, 2)
    live = np.sort(slots_of(copy)[0].ids)
    view, rng = View.of(copy, None, None), np.random.default_rng(7)
    drawn_ids = [copy.read(uniform(copy, view, rng, 5)).ids for _ in range(2000)]
    assert {len(set(ids.tolist())) for ids in drawn_ids} == {5}
    counts = np.bincount(np.searchsorted(live, np.concatenate(drawn_ids)), minlength=len(live))
    assert subsets_p_value(counts, np.full(2000, 5)) > 1e-6


@pytest.mark.parametrize("replacement", [False, True])
def test_quotas_are_those_of_the_domains(replacement: bool, small_blocks: int) -> None:
    loss = np.arange(1.0, 61.0)
    copy = copy_of(loss).departed_until(40, 2)
    view, rng = View.of(copy, None, None), np.random.default_rng(8)
    domains, sizes = domain_counts(copy, view)
    assert (domains.tolist(), sizes.tolist()) == ([1, 2, 3], [20, 7, 20])
    by_domain, counts = Counter[int](), Counter[int]()
    for _ in range(1500):
        places = balanced(copy, view, rng, 8, np.array([2.0, 1.0, 1.0]), replacement=replacement)
        ids, of = copy.read(places).ids.tolist(), copy.domains[places >> PLACE_BITS].tolist()
        assert sorted(Counter(of).items()) == [(1, 4), (2, 2), (3, 2)]
        by_domain.update(of)
        counts.update(ids)
        assert replacement or len(set(ids)) == 8
    ones = np.array([counts[number] for number in range(1, 61, 3)])
    if replacement:
        must_follow(ones, np.full(20, 1 / 20))
    else:
        assert subsets_p_value(ones, np.full(1500, 4)) > 1e-6
    none = balanced(copy, view, rng, 8, np.array([0.0, 1.0, 0.0]), replacement=replacement)
    assert set(copy.domains[none >> PLACE_BITS].tolist()) == {2}
    assert len(none) == (8 if replacement else 7)


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.5])
@pytest.mark.parametrize("holes", [False, True])
def test_draws_by_age_follow_the_law(alpha: float, holes: bool, small_blocks: int) -> None:
    copy = copy_of(np.ones(40))
    ids = np.arange(1, 41)
    if holes:
        gone = ids[ids % 7 > 1]
        copy = copy.departed(copy.locate(gone, (gone - 1) % 3 + 1))
    live = np.sort(slots_of(copy)[0].ids)
    view, rng, ages = View.of(copy, None, None), np.random.default_rng(9), Ages(alpha, 43)

    def draw(rng: np.random.Generator, wanted: int, replacement: bool) -> Ints:
        return aged(copy, view, ages, lambda of: (of - 1) % 3 + 1, rng, wanted, replacement=replacement)

    weight: Floats = (44.0 - live.astype(np.float64)) ** -alpha
    places = draw(rng, 30_000, True)
    counts = np.bincount(np.searchsorted(live, copy.read(places).ids), minlength=len(live))
    must_follow(counts, share(weight))
    must_refute(counts, share(weight * (44.0 - live) ** -0.1))
    seen = pairs(lambda rng: draw(rng, 2, False), copy, 1500)
    law = {tuple(int(live[at]) - 1 for at in pair): p for pair, p in plackett_luce(weight, 2).items()}
    must_follow(*tally(seen, law))


def test_draws_by_age_behind_a_test(small_blocks: int) -> None:
    copy = copy_of(np.tile([1.0, 5.0, NAN, 2.0], 60))
    view, rng = View.of(copy, None, LossAbove(4.0)), np.random.default_rng(10)
    live = np.arange(2, 241, 4)
    for replacement in (False, True):
        places = aged(copy, view, Ages(1.0, 240), lambda of: (of - 1) % 3 + 1, rng, 12, replacement=replacement)
        assert set(copy.read(places).loss.tolist()) == {5.0}
    places = aged(copy, view, Ages(1.0, 240), lambda of: (of - 1) % 3 + 1, rng, 20_000, replacement=True)
    counts = np.bincount(np.searchsorted(live, copy.read(places).ids), minlength=60)
    must_follow(counts, share(1.0 / (241 - live)))


def large(loss: Floats) -> Copy:
    return Copy.of(OWN).appended(np.arange(1, len(loss) + 1), np.arange(len(loss)) % 10 + 1, loss)


def spiked() -> Copy:
    """A loss of 1e12 that is replayed down to 1."""
    rng = np.random.default_rng(11)
    copy = large(np.where(np.arange(20_000) == 777, 1e12, rng.lognormal(0, 1, 20_000)))
    return copy.patched(copy.locate(np.array([778]), np.array([8])), np.ones(1), np.ones(1, np.int64), np.array([1]))


def one_of_99_percent() -> Copy:
    return large(np.where(np.arange(20_000) == 777, 99.0 * 20_000, 1.0))


def log_normal(sigma: float) -> Copy:
    return large(np.random.default_rng(12).lognormal(0, sigma, 20_000))


COSTS: dict[str, tuple[Callable[[], Copy], float, LossAbove | None]] = {
    "spike replayed down": (spiked, 1.0, None),
    "one weight of 99 %": (one_of_99_percent, 1.0, None),
    "log-normal 3": (lambda: log_normal(3.0), 0.6, None),
    "log-normal 3, alpha 1": (lambda: log_normal(3.0), 1.0, None),
    "log-normal 1, alpha 2": (lambda: log_normal(1.0), 2.0, None),
    "never measured": (lambda: large(np.full(20_000, NAN)), 0.6, None),
    "1 % pass": (lambda: log_normal(1.0), 0.6, LossAbove(float(np.exp(2.3263)))),
    "most have left": (lambda: log_normal(1.0).departed_until(17_000), 0.6, None),
}


@pytest.mark.parametrize("case", COSTS)
def test_a_draw_takes_two_rounds_at_most(case: str) -> None:
    make, alpha, test = COSTS[case]
    copy = make()
    view = View.of(copy, Law(alpha, EPSILON), test)
    wanted = 32 if test is not None else 256
    rounds = []
    for seed in range(40):
        with counting() as counts:
            places = weighted(copy, view, 1e12, np.random.default_rng(seed), wanted)
        assert len(set(places.tolist())) == wanted
        assert (counts.listed, counts.scans) == (0, 0)
        rounds.append(counts.rounds)
    assert max(rounds) <= 2


def test_a_draw_with_replacement_takes_one_round_and_a_large_one_one_pass() -> None:
    copy = log_normal(3.0)
    view = View.of(copy, Law(1.0, EPSILON), None)
    with counting() as counts:
        weighted(copy, view, 1.0, np.random.default_rng(0), 5000, replacement=True)
    assert counts == Counts()
    with counting() as counts:
        weighted(copy, view, 1.0, np.random.default_rng(0), 5000)
    assert counts == Counts(listed=1)


def test_work_is_bounded_where_weights_differ_beyond_measure() -> None:
    copy = log_normal(3.0)
    view = View.of(copy, Law(50.0, EPSILON), None)
    with counting() as counts:
        places = weighted(copy, view, 1.0, np.random.default_rng(0), 256)
    assert counts == Counts(rounds=module.ROUNDS, listed=1)
    found = copy.read(places).loss
    assert len(set(places.tolist())) == 256
    assert np.median(found) > np.quantile(slots_of(copy)[0].loss, 0.99)


class Recorder:
    """A generator that tells what was asked of it."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.asked: list[tuple[str, str]] = []

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def ask(*args: Any, **words: Any) -> Any:
            self.asked.append((name, str((args, words))))
            return getattr(self.rng, name)(*args, **words)

        return ask


def test_the_use_of_random_numbers_follows_from_whole_numbers() -> None:
    """How many are taken in a round: by how many are wanted, and may be drawn; not by sums, or by what is cached."""
    asked = []
    for copy in (log_normal(0.1), log_normal(0.5), large(np.full(20_000, NAN)), large(np.ones(20_000))):
        rng: Any = Recorder(3)
        weighted(copy, View.of(copy, Law(0.6, EPSILON)), 7.0, rng, 64)
        weighted(copy, View.of(copy, Law(0.6, EPSILON)), 7.0, rng, 64, replacement=True)
        weighted(copy, View.of(copy, Law(0.6, EPSILON)), 7.0, rng, 6000)
        uniform(copy, View.of(copy, None, None), rng, 64)
        aged(copy, View.of(copy, None, None), Ages(1.0, 20_000), lambda ids: (ids - 1) % 10 + 1, rng, 64)
        asked.append(rng.asked)
    assert asked[0] == asked[1] == asked[2] == asked[3]
