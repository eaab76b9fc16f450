"""Draws without replacement follow Plackett and Luce: compared, sequence by sequence, with exact enumeration.

``memstore.draws.weighted.weighted`` has three ways to finish (one round of proposals, more rounds without the chosen,
keys); each is forced in turn, and all must give the same law.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

import memstore
from memstore import PrioritizedLoss
from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.views import View
from memstore.buffer.blocks.weights import Law
from memstore.draws import weighted as draws
from memstore.testing import counting
from tests.support.laws import (
    Draw,
    Floats,
    Ints,
    chosen_subtracted_and_rejected,
    independent,
    must_follow,
    must_refute,
    plackett_luce,
    sets,
    short_rounds_redone,
    tally,
    weights,
    whole_batch_redrawn,
)
from tests.support.models import payload

NEVER, AT_ONCE = 0, 10**9
"""Values of SCAN_SHARE."""

LAW = Law(1.0, 1e-9)


@dataclass
class Table:
    """Episodes in blocks: row i weighs ``weight[i]``, and stands in block ``group[i]``."""

    weight: Floats
    group: Ints
    rounds: int = 0
    scans: int = 0

    def copy(self) -> Copy:
        """The blocks; row i is episode i + 1."""
        ids = np.arange(1, len(self.weight) + 1)
        return Copy.of(LAW).appended(ids, self.group + 1, self.weight - LAW.epsilon)


TABLES: dict[str, Table] = {
    # A group of one; weights equal inside the last group.
    "mixed": Table(np.array([1.0, 0.6, 2.0, 3.5, 0.2, 0.2, 0.2]), np.array([0, 0, 1, 1, 2, 2, 2])),
    "dominated": Table(np.array([40.0, *np.linspace(0.5, 1.5, 12)]), np.array([0, *[1] * 6, *[2] * 6])),
    "one group": Table(np.array([5.0, 1.0, 1.0, 2.0, 0.1]), np.zeros(5, np.int64)),
}


@dataclass(frozen=True)
class Path:
    """Constants of ``memstore.draws.weighted`` that lead a draw one way."""

    scan_share: int
    proposals: Callable[[int, int], int] = draws.proposals
    rounds: int = 10**9

    def force(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(draws, "SCAN_SHARE", self.scan_share)
        monkeypatch.setattr(draws, "proposals", self.proposals)
        monkeypatch.setattr(draws, "ROUNDS", self.rounds)


PATHS = {
    "one long round": Path(NEVER, lambda wanted, number: 100 * wanted),
    "short rounds": Path(NEVER, lambda wanted, number: wanted),
    "one candidate a round": Path(NEVER, lambda wanted, number: 1),
    "short round, then scan": Path(NEVER, lambda wanted, number: wanted + 1, 1),
    "scan at once": Path(AT_ONCE),
}


def sequences(
    source: Table, count: int, times: int, *, taken: Ints | None = None, replacement: bool = False
) -> list[Draw]:
    rng, copy = np.random.default_rng(11), source.copy()
    view = View.of(copy, LAW)
    if taken is not None:
        view = view.without(copy, copy.locate(taken + 1, source.group[taken] + 1).places)
    with counting() as counts:
        drawn = [draws.weighted(copy, view, 1.0, rng, count, replacement=replacement) for _ in range(times)]
    source.rounds, source.scans = counts.rounds, counts.listed
    return [tuple((copy.read(places).ids - 1).tolist()) for places in drawn]


@pytest.mark.parametrize("way", PATHS)
@pytest.mark.parametrize(("table", "count"), [("mixed", 4), ("dominated", 3)])
def test_every_path_gives_the_same_law(monkeypatch: pytest.MonkeyPatch, way: str, table: str, count: int) -> None:
    PATHS[way].force(monkeypatch)
    source = Table(TABLES[table].weight, TABLES[table].group)
    # Scans are the fastest and have no other test of such power.
    times = 6000 if way == "scan at once" else 1000
    drawn = sequences(source, count, times)
    law = plackett_luce(source.weight, count)
    must_follow(*tally(drawn, law))
    must_follow(*tally(map(frozenset, drawn), sets(law)))
    must_refute(*tally(drawn, plackett_luce(source.weight ** (0.9 if times > 1000 else 0.7), count)))

    match way:
        case "one long round":
            assert source.scans == 0 and source.rounds < 1.1 * times
        case "short rounds" | "one candidate a round":
            assert source.scans == 0 and source.rounds > 1.2 * times
        case "short round, then scan":
            assert source.rounds == times and source.scans > 0.2 * times
        case "scan at once":
            assert source.rounds == 0 and source.scans == times


def test_the_tempting_shortcuts_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    PATHS["short rounds"].force(monkeypatch)
    for table in ("mixed", "one group"):
        source = Table(TABLES[table].weight, TABLES[table].group)
        drawn = sequences(source, 3, 3500)
        must_follow(*tally(drawn, plackett_luce(source.weight, 3)))
        must_refute(*tally(drawn, whole_batch_redrawn(source.weight, 3)))
        must_refute(*tally(drawn, short_rounds_redone(source.weight, 3, accepted=4)))
        if table == "mixed":  # with a single group the two agree
            must_refute(*tally(drawn, chosen_subtracted_and_rejected(source.weight, source.group, 3)))
    # The enumerations themselves: with room enough, no round is short.
    redone = short_rounds_redone(source.weight, 3, accepted=3000)
    exact = plackett_luce(source.weight, 3)
    np.testing.assert_allclose([redone[d] for d in exact], list(exact.values()), rtol=1e-6)


@pytest.mark.parametrize("way", PATHS)
def test_what_was_taken_before_is_left_out(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    PATHS[way].force(monkeypatch)
    source = Table(TABLES["mixed"].weight, TABLES["mixed"].group)
    taken = np.array([3, 5])
    drawn = sequences(source, 2, 1200, taken=taken)
    left = source.weight.copy()
    left[taken] = 0
    must_follow(*tally(drawn, plackett_luce(left, 2)))
    # As if the taken ones still counted in their groups, although they are rejected.
    size = np.bincount(source.group)
    free = size - np.bincount(source.group[taken], minlength=3)
    must_refute(*tally(drawn, plackett_luce(left * (free / size)[source.group], 2)))


@pytest.mark.parametrize("way", ["one long round", "short rounds", "short round, then scan"])
def test_with_replacement_every_path_draws_independently(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    PATHS[way].force(monkeypatch)
    source = Table(TABLES["mixed"].weight, TABLES["mixed"].group)
    drawn = sequences(source, 3, 1200, replacement=True)
    must_follow(*tally(drawn, independent(source.weight, 3)))
    must_refute(*tally(drawn, independent(source.weight**0.7, 3)))


@pytest.mark.parametrize("way", PATHS)
def test_all_that_is_left_is_drawn_and_nothing_twice(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    PATHS[way].force(monkeypatch)
    source = Table(TABLES["dominated"].weight, TABLES["dominated"].group)
    for count in (12, 13, 14, 100):
        for drawn in sequences(source, count, 20):
            assert len(set(drawn)) == len(drawn) == min(count, 13)
    assert all(sorted(d) == [0, 2] for d in sequences(source, 5, 20, taken=np.array([1, *range(3, 13)])))


# The same through the public interface, on a database.


@pytest.mark.parametrize("way", ["as it comes", "short round, then scan"])
def test_a_dominating_loss_among_thirteen(path: str, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    """More than four times as many rows as draws: no scan at once. One of them is never measured."""
    if way in PATHS:
        PATHS[way].force(monkeypatch)
    loss = np.array([1e6, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1e-3, 0.0])
    with memstore.open(path, strategy=PrioritizedLoss(0.3), epsilon=0.1, seed=5) as memory:
        first = memory.extend(payload(13), loss=np.where(loss > 100, 2.0, 5 * loss), domain=["a", "b", "c"] * 4 + ["a"])
        memory.update(first, loss=loss)  # so that some bounds are stale
        drawn = [tuple((memory.sample(3).ids - 1).tolist()) for _ in range(1500)]
    weight = weights(loss, alpha=0.3, epsilon=0.1, highest=1e6)
    law = plackett_luce(weight, 3)
    must_follow(*tally(drawn, law))
    must_follow(*tally(map(frozenset, drawn), sets(law)))
    must_refute(*tally(drawn, plackett_luce(weights(loss, alpha=0.4, epsilon=0.1, highest=1e6), 3)))
    must_refute(*tally(drawn, plackett_luce(weights(loss, alpha=0.3, epsilon=1e-3, highest=1e6), 3)))
    must_refute(*tally(drawn, whole_batch_redrawn(weight, 3)))


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_six_rows_are_scanned(path: str, alpha: float) -> None:
    loss = np.array([0.5, 1.0, 1.5, np.nan, 0.0, 1.0])
    with memstore.open(path, strategy=PrioritizedLoss(alpha), epsilon=0.2, seed=6) as memory:
        memory.extend(payload(6), loss=[None if np.isnan(x) else x for x in loss.tolist()])
        drawn = [tuple((memory.sample(3).ids - 1).tolist()) for _ in range(1500)]
    must_follow(*tally(drawn, plackett_luce(weights(loss, alpha=alpha, epsilon=0.2, highest=1.7), 3)))
    must_refute(*tally(drawn, plackett_luce(weights(loss, alpha=alpha + 0.4, epsilon=0.2, highest=1.7), 3)))


def test_one_of_a_million_to_one_comes_first(path: str) -> None:
    """A loss a billion times the others': first in every batch, the others uniform, and no round is poor for long."""
    loss = np.full(400, 1e-3)
    loss[200] = 1e6
    with memstore.open(path, strategy=PrioritizedLoss(1.0), epsilon=1e-6, seed=7) as memory:
        memory.extend(payload(400), loss=loss)
        batches = [memory.sample(20).ids for _ in range(300)]
    # 300 * 20 draws in which another row could come first, at 4e-7 each.
    assert all(batch[0] == 201 and len(set(batch.tolist())) == 20 for batch in batches)
    others = np.bincount(np.concatenate(batches), minlength=401)[1:]
    must_follow(np.delete(others, 200), np.full(399, 1 / 399))
