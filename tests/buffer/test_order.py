"""Who leaves first, found by heads: as a sort of everything says, and few blocks are opened for it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import Heads
from memstore.buffer.blocks.lottery import reservoir_keys
from memstore.buffer.blocks.order import First, oldest, oldest_unmeasured, smallest_keys, smallest_losses
from memstore.buffer.blocks.slots import PLACE_BITS, Ints
from tests.buffer.model import OWN, Model, cold, in_memory, slots_of, step

COUNTS = (0, 1, 2, 3, 7, 20, 10_000)


def keys(ids: Ints) -> Ints:
    """Keys that are often equal, so that ties matter."""
    return reservoir_keys(3, ids) % 5


def check_order(copy: Copy, model: Model, count: int) -> None:
    """Compare all orders with a sort."""
    live = sorted(model.live.items())

    def check(found: First, expected: list[tuple[float, int]]) -> None:
        expected = sorted(expected)[:count]
        assert list(zip(found.values.tolist(), found.ids.tolist(), strict=True)) == expected
        domains = copy.domains[found.places >> PLACE_BITS].tolist()
        assert domains == [model.live[number].domain for _, number in expected]

    check(oldest(copy, count), [(number, number) for number, _ in live])
    for domain in (1, 2, 9):
        check(oldest(copy, count, domain), [(number, number) for number, e in live if e.domain == domain])
    check(oldest_unmeasured(copy, count), [(number, number) for number, e in live if math.isnan(e.loss)])
    check(smallest_losses(copy, count), [(e.loss, number) for number, e in live if not math.isnan(e.loss)])
    of = keys(np.array([number for number, _ in live], np.int64)).tolist()
    check(smallest_keys(copy, count, keys), [(key, number) for key, (number, _) in zip(of, live, strict=True)])


@pytest.mark.parametrize("seed", range(4))
def test_orders_are_those_of_a_sort(seed: int, small_blocks: int) -> None:
    rng = np.random.default_rng(seed)
    copy, model = Copy.of(OWN, key_of=keys), Model()
    for _ in range(60):
        copy = step(rng, copy, model)
        for count in COUNTS:
            check_order(copy, model, count)


def grown(loss: Callable[[np.random.Generator, int], np.ndarray[tuple[int], np.dtype[np.float64]]]) -> Copy:
    rng = np.random.default_rng(5)
    count = 60_000
    return Copy.of(OWN, key_of=keys).appended(np.arange(1, count + 1), rng.integers(1, 11, count), loss(rng, count))


@pytest.mark.parametrize(
    "loss",
    [
        lambda rng, count: rng.lognormal(0, 1, count),
        lambda rng, count: np.ones(count),
        lambda rng, count: rng.integers(0, 3, count).astype(np.float64),
        lambda rng, count: np.full(count, np.nan),
        lambda rng, count: np.where(rng.random(count) < 0.5, np.nan, rng.lognormal(0, 1, count)),
    ],
    ids=["all differ", "all equal", "three values", "never measured", "half of them measured"],
)
@pytest.mark.parametrize("find", [oldest, oldest_unmeasured, smallest_losses])
def test_few_blocks_are_opened(find: Callable[[Copy, int], First], loss: Callable[..., object]) -> None:
    """Ties included: many blocks hold a loss of 0."""
    whole = grown(loss)  # type: ignore[arg-type]
    copy, read = cold(whole), []
    fetch = copy.fetch

    def fetching(heads: Heads) -> list[bytes]:
        read.append(len(heads))
        return fetch(heads)

    copy = copy.reading(fetching)
    assert len(copy) > 500
    for count in (1, 32):
        before = sum(read)
        found = find(copy, count)
        assert len(found.ids) in (0, count)
        assert sum(read) - before <= 4 * count + 10, "a block of each domain may reach back behind the last one found"


def test_keys_open_few_blocks_too() -> None:
    whole = grown(lambda rng, count: np.ones(count))

    def key_of(ids: Ints) -> Ints:
        return reservoir_keys(11, ids)

    copy = cold(Copy.of(OWN, key_of=key_of).appended(*columns(whole)))
    found = smallest_keys(copy, 32, key_of)
    every = key_of(np.arange(1, 60_001))
    assert found.ids.tolist() == (np.argsort(every)[:32] + 1).tolist()
    assert in_memory(copy) <= 32


def columns(copy: Copy) -> tuple[Ints, Ints, np.ndarray[tuple[int], np.dtype[np.float64]]]:
    slots, domains = slots_of(copy)
    order = np.argsort(slots.ids)
    return slots.ids[order], domains[order], slots.loss[order]
