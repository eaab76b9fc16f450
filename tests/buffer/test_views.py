"""Sums of views are those of the contents, bit for bit, on every path; so what is drawn is the same on each of them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from memstore.buffer.blocks import copy as copies
from memstore.buffer.blocks.copy import Copy, Found
from memstore.buffer.blocks.heads import Heads
from memstore.buffer.blocks.pages import Opened, Pages
from memstore.buffer.blocks.slots import PLACE_BITS, Flags, Floats, Ints, Slots
from memstore.buffer.blocks.views import KEPT, View, Views
from memstore.buffer.blocks.weights import Law, steps_of, unit_of
from memstore.draws.aged import Ages, aged
from memstore.draws.even import balanced, domain_counts, uniform
from memstore.draws.weighted import Masses, weighted
from memstore.errors import StoreCorrupt
from tests.buffer import test_copy
from tests.buffer.model import OWN, LossAbove, Model, cold, in_memory, rebuilt, step

EPSILON = 1e-6
STEEP = Law(50.0, EPSILON)
TOP = 1e308


@dataclass(frozen=True)
class OfDomain:
    """Of one domain, measured or not."""

    domain: int

    def passing(self, slots: Slots, domains: Ints) -> Flags:
        of_it: Flags = domains == self.domain
        return of_it

    def reach(self, heads: Heads) -> tuple[Flags, Flags]:
        of_it = heads["domain"] == self.domain
        return of_it, of_it


@dataclass(frozen=True)
class BySlots:
    """Any test, with heads that tell nothing."""

    test: LossAbove | OfDomain

    def passing(self, slots: Slots, domains: Ints) -> Flags:
        return self.test.passing(slots, domains)

    def reach(self, heads: Heads) -> tuple[Flags, Flags]:
        return np.ones(len(heads), np.bool_), np.zeros(len(heads), np.bool_)


KINDS = [
    (OWN, None),
    (STEEP, None),
    (Law(0.0, EPSILON), None),
    (OWN, LossAbove(1.0)),
    (Law(1.0, EPSILON), OfDomain(2)),
    (None, None),
    (None, OfDomain(1)),
    (OWN, OfDomain(1)),
    (None, LossAbove(0.4)),
]


def numbers(view: View) -> list[bytes]:
    """All that is drawn from."""
    names = ("name", "live") if view.law is None else ("name", "live", "gaps", "sums", "unit")
    return [getattr(view, name).tobytes() for name in names]


def steps(view: View, copy: Copy) -> list[bytes]:
    """The steps of blocks that may be chosen; others are never asked for."""
    blocks = np.flatnonzero(view.sums > 0) if view.law is not None else np.zeros(0, np.int64)
    if not len(blocks):
        return []
    values, start, count = view.steps_in(copy, blocks)
    return [values[a : a + n].tobytes() for a, n in zip(start.tolist(), count.tolist(), strict=True)]


def everything_drawn(copy: Copy, views: Views, model: Model, seed: int) -> list[Any]:
    """Ids and probabilities of all kinds of draws, and what is left of the generator."""
    rng, out = np.random.default_rng(seed), []
    for law, test in KINDS:
        view = views.get(copy, law, test)
        for replacement in (False, True):
            if law is not None:
                places = weighted(copy, view, TOP, rng, 7, replacement=replacement)
                out += [Masses.of(view, TOP).ends.tobytes(), Masses.of(view, TOP).total]
            else:
                places = uniform(copy, view, rng, 7, replacement=replacement)
                shares = np.ones(len(domain_counts(copy, view)[0]))
                out.append(copy.read(balanced(copy, view, rng, 5, shares, replacement=replacement)).ids.tolist())
                ages = Ages(1.0, model.inserted)
                found = aged(copy, view, ages, model.domains_of, rng, 5, replacement=replacement)
                out.append(copy.read(found).ids.tolist())
            out += [copy.read(places).ids.tolist(), copy.domains[places >> PLACE_BITS].tolist()]
    return [*out, str(rng.bit_generator.state)]


def follow(seed: int, length: int = 60) -> None:
    """Run a program, some of it rolled back, with views that are kept; compare them with views of the same content."""
    rng = np.random.default_rng(seed)
    copy, model, views = Copy.of(OWN), Model(), Views()
    savepoints: list[tuple[Copy, Model]] = []
    for turn in range(length):
        savepoints = [*savepoints[-5:], (copy, model.copy())]
        copy = step(rng, copy, model, scale=3)
        other, fresh = rebuilt(copy), Views()
        for law, test in KINDS[: 3 if turn % 2 else None]:
            kept, new = views.get(copy, law, test), fresh.get(other, law, test)
            assert numbers(kept) == numbers(new), "the numbers are those of the contents"
            assert steps(kept, copy) == steps(new, other)
        if model.live:
            expected = everything_drawn(other, fresh, model, turn)
            assert everything_drawn(copy, views, model, turn) == expected
            if turn % 4 == 0:
                assert everything_drawn(cold(copy), Views(), model, turn) == expected
        if rng.random() < 0.3:
            copy, model = savepoints[int(rng.integers(0, len(savepoints)))]
            model = model.copy()


@pytest.mark.parametrize("seed", range(4))
def test_sums_and_draws_are_those_of_the_contents(seed: int, small_blocks: int) -> None:
    follow(seed)


def test_sums_are_those_of_the_contents_in_whole_blocks() -> None:
    follow(99, 25)


def test_how_many_views_are_kept_changes_nothing(small_blocks: int) -> None:
    rng = np.random.default_rng(7)
    copy, model, views = Copy.of(OWN), Model(), Views()
    for _ in range(30):
        copy = step(rng, copy, model, scale=3)
        for alpha in range(KEPT + 3):
            law = Law(alpha / 4 + 1, EPSILON)
            assert numbers(views.get(copy, law)) == numbers(View.of(copy, law))
    assert len(views._kept) == KEPT


def test_stored_sums_stand_for_contents(small_blocks: int) -> None:
    """A process that opens the buffer draws by sums in the heads, and reads only the blocks that it draws from."""
    rng = np.random.default_rng(8)
    copy, model = Copy.of(OWN), Model()
    for _ in range(40):
        copy = step(rng, copy, model, scale=3)
    stored = cold(copy)
    views = Views()
    views.get(stored, OWN)
    assert in_memory(stored) == 0
    for seed in range(20):
        places = weighted(stored, views.get(stored, OWN), TOP, np.random.default_rng(seed), 3)
        assert places.tolist() == weighted(copy, View.of(copy, OWN), TOP, np.random.default_rng(seed), 3).tolist()
        assert in_memory(stored) <= 20 * (seed + 1)
    assert everything_drawn(stored, views, model, 5) == everything_drawn(copy, Views(), model, 5)


def test_heads_tell_what_slots_tell(small_blocks: int) -> None:
    """A test of a whole block by its head gives the numbers that its slots give, bit for bit, and opens no block."""
    rng = np.random.default_rng(13)
    copy, model, whole = Copy.of(OWN), Model(), 0
    for _ in range(60):
        copy = step(rng, copy, model, scale=3)
        for law in (None, OWN, STEEP):
            for test in (OfDomain(1), OfDomain(2), LossAbove(0.4), LossAbove(1.0)):
                by_heads, by_slots = View.of(copy, law, test), View.of(copy, law, BySlots(test))
                assert numbers(by_heads) == numbers(by_slots)
                whole += int((test.reach(copy.heads)[1] & (copy.heads["live"] > 0)).sum())
        if model.live:
            ids = np.array(sorted(model.live)[::3], np.int64)
            out = copy.locate(ids, model.domains_of(ids))
            for law in (None, OWN):
                for test in (OfDomain(1), LossAbove(0.4)):
                    by_heads, by_slots = View.of(copy, law, test), View.of(copy, law, BySlots(test))
                    assert numbers(by_heads.without(copy, out.places)) == numbers(by_slots.without(copy, out.places))
        stored = cold(copy)
        for law in (None, OWN):
            View.of(stored, law, OfDomain(1))
        assert in_memory(stored) == 0
    assert whole > 500


def test_excluded_episodes_are_as_if_they_had_left(small_blocks: int) -> None:
    rng = np.random.default_rng(9)
    copy, model = Copy.of(OWN), Model()
    for _ in range(40):
        copy = step(rng, copy, model, scale=4)
    out = np.array(sorted(model.live)[::3], np.int64)
    found = copy.locate(out, model.domains_of(out))
    assert copy.read(found.places).ids.tolist() == out.tolist()
    left = copy.departed(found)
    for law, test in KINDS:
        view, expected = View.of(copy, law, test).without(copy, found.places), View.of(left, law, test)
        assert numbers(view) == numbers(expected)
        twice = View.of(copy, law, test).without(copy, found.places[::2]).without(copy, found.places[1::2])
        assert numbers(twice) == numbers(expected)


def test_pages_that_a_copy_refers_to_are_not_written_again(small_blocks: int) -> None:
    """Hundreds of times more contents are written than pages exist, while old copies stay as they were."""
    rng = np.random.default_rng(12)
    copy, model = Copy.of(OWN), Model()
    old: list[tuple[Copy, list[bytes]]] = []
    for turn in range(400):
        copy = step(rng, copy, model, scale=2)
        if turn % 20 == 0:
            old = [*old[-4:], (copy, copy.open(np.arange(len(copy))).contents())]
        for before, contents in old:
            assert before.open(np.arange(len(before))).contents() == contents
    most = sum(len(before) for before, _ in old) + 2 * len(copy)
    assert len(copy.pages) < 3 * most


def test_holes_and_zeros_change_no_bit() -> None:
    """Sequential sums do not notice zeros in between, so neither departures nor padding do. Pairwise sums would."""
    rng = np.random.default_rng(10)
    pairwise = 0
    for _ in range(300):
        log2 = 0.6 * rng.normal(0, 3, int(rng.integers(1, 100)))
        holes = np.full(120, -np.inf)
        holes[np.sort(rng.choice(120, len(log2), replace=False))] = log2
        dense, sparse = steps_of(log2[None])[0][0, -1], steps_of(holes[None])[0][0, -1]
        assert dense == sparse
        pairwise += np.exp2(log2).sum() != np.exp2(holes).sum()
    assert pairwise > 30, "else this test would tell nothing"


def test_weights_do_not_depend_on_their_neighbours() -> None:
    """numpy computes many logarithms at once: a weight must be the same alone, and at any place of any length."""
    loss = np.exp(np.random.default_rng(11).normal(0, 30, 700))
    for law in (OWN, STEEP, Law(1.0, 1e-300)):
        whole = law.log2(loss)
        powers = np.exp2(whole % 300)
        for start, length in itertools.product(range(17), (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 33)):
            part = slice(start, start + length)
            assert law.log2(loss[part]).tobytes() == whole[part].tobytes()
            assert np.exp2((whole % 300)[part]).tobytes() == powers[part].tobytes()
        slots = np.zeros(700, [("id", "<i8"), ("loss", "<f8"), ("more", "<i8", 2)])
        slots["loss"] = loss
        assert law.log2(slots["loss"]).tobytes() == whole.tobytes()


def test_units_are_powers_of_two_that_follow_from_the_largest_weight() -> None:
    log2 = np.array([-53_700.0, -1000.0, -256.5, -256.0, -1.0, 0.0, 255.9, 256.0, 51_200.0, -np.inf])
    assert unit_of(log2).tolist() == [-53_760, -1024, -512, 0, 0, 0, 0, 512, 51_200, 0]
    for value in log2[:-1].tolist():
        steps, unit = steps_of(np.full((1, 120), value))
        assert np.isfinite(steps).all() and steps[0, 0] >= 2.0**-256
        assert math.isclose(unit[0] + np.log2(steps[0, -1]), value + math.log2(120), rel_tol=1e-14)


# Mutations: each is a tempting way to do it, and each is caught by the tests above.


def sums_by_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add to the sum what has changed."""
    honest = Copy._set

    def set_(self: Copy, blocks: Opened, **words: bool) -> Copy:
        before = self.heads["sum"][blocks.blocks]
        honest(self, blocks, **words)
        self.heads["sum"][blocks.blocks] = before + (self.heads["sum"][blocks.blocks] - before)
        return self

    monkeypatch.setattr(Copy, "_set", set_)


def sums_pairwise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sum up in the order that numpy likes, with as many empty places as there were changes of the block before."""
    honest = View._count

    def count(self: View, copy: Copy, blocks: Opened) -> None:
        honest(self, copy, blocks)
        if self.law is not None:
            log2 = self.log2_weights(blocks, copy.domains, -np.inf)
            holes = np.pad(log2, ((0, 0), (int(self.stamp.sum() % 7), 9)), constant_values=-np.inf)
            self.sums[blocks.blocks] = np.exp2(holes - self.unit[blocks.blocks][:, None]).sum(axis=1)

    monkeypatch.setattr(View, "_count", count)


def stamps_that_count_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Number the contents of a block instead of all contents: a cache without tokens."""
    honest = Copy._set

    def set_(self: Copy, blocks: Opened, **words: bool) -> Copy:
        before = self.heads["stamp"][blocks.blocks]
        honest(self, blocks, **words)
        self.heads["stamp"][blocks.blocks] = before + 1
        return self

    monkeypatch.setattr(Copy, "_set", set_)


def departures_not_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the stamps as they are when episodes depart."""
    honest = Copy.departed

    def departed(self: Copy, found: Found) -> Copy:
        left = honest(self, found)
        left.heads["stamp"] = self.heads["stamp"]
        return left

    monkeypatch.setattr(Copy, "departed", departed)


def pages_taken_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take pages that only savepoints refer to."""
    honest = Pages.register

    def register(self: Pages, user: Copy) -> None:
        self._users.clear()
        honest(self, user)

    monkeypatch.setattr(Pages, "register", register)


def counts_relative(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add one for each event in place of taking the count that it names."""
    honest = Copy.patched

    def patched(self: Copy, found: Found, loss: Floats, count: Ints, event: Ints) -> Copy:
        before = np.zeros(len(count), np.int64)
        before[found.live] = found.slots.count
        return honest(self, found, loss, before + 1, event)

    monkeypatch.setattr(Copy, "patched", patched)


def state_changed_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Change the tables that a savepoint still has."""
    monkeypatch.setattr(copies, "own", lambda rows, *new: rows if not new else np.concatenate([rows, *new]))


@pytest.mark.parametrize(
    "mutate",
    [
        sums_by_difference,
        sums_pairwise,
        stamps_that_count_changes,
        departures_not_noticed,
        pages_taken_too_early,
        state_changed_in_place,
    ],
    ids=lambda mutate: mutate.__name__,
)
def test_mutations_are_caught(
    mutate: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch, small_blocks: int
) -> None:
    mutate(monkeypatch)
    with pytest.raises((AssertionError, StoreCorrupt)):
        for seed in range(6):
            follow(seed)


def test_relative_counts_are_caught(monkeypatch: pytest.MonkeyPatch, small_blocks: int) -> None:
    counts_relative(monkeypatch)
    with pytest.raises(AssertionError):
        test_copy.test_patches_may_come_twice_and_in_any_order(small_blocks)
