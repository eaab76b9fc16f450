"""Blocks that are made from the tables of a real memory say what the memory says: probabilities, victims, keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pytest
from sqlalchemy import Connection, create_engine, select, text

import memstore
from memstore.buffer.blocks.copy import Copy, Found
from memstore.buffer.blocks.lottery import reservoir_keys
from memstore.buffer.blocks.order import oldest, smallest_keys, smallest_losses
from memstore.buffer.blocks.rows import domains_of, table_pages
from memstore.buffer.blocks.slots import PLACE_BITS, Ints
from memstore.buffer.blocks.views import View
from memstore.buffer.blocks.weights import Law
from memstore.draws.aged import Ages, log2_total
from memstore.draws.even import domain_counts
from memstore.draws.weighted import least_log2
from memstore.errors import StoreCorrupt
from memstore.storage.schema import buffer
from tests.buffer.model import log2_probability
from tests.support.helpers import OpenMemory

T = TypeVar("T")
SEED = 7
EPSILON = 1e-6


def grown(open_memory: OpenMemory, **settings: object) -> memstore.EpisodicMemory:
    """A memory in which things have happened; every third newcomer is not measured."""
    rng = np.random.default_rng(1)
    memory = open_memory(capacity=300, epsilon=EPSILON, seed=SEED, **settings)
    for turn in range(9):
        loss = None if turn % 3 == 2 else rng.lognormal(0, 2, 60)
        memory.extend({"x": rng.random((60, 2))}, domain=[f"d{of}" for of in rng.integers(0, 5, 60)], loss=loss)
        batch = memory.sample(40)
        memory.update(batch, loss=rng.lognormal(0, 2, len(batch.ids)))
    return memory


def reading(memory: memstore.EpisodicMemory, work: Callable[[Connection], T]) -> T:
    return memory._session.database.in_read(work)


def copy_of(memory: memstore.EpisodicMemory) -> Copy:
    memory.fold()
    backend = memory._session.database.backend

    def work(conn: Connection) -> Copy:
        copy = Copy.of(Law(0.6, EPSILON), key_of=keys)
        for page in table_pages(conn, backend, 1):
            copy = page.appended_to(copy)
        return copy

    return reading(memory, work)


def keys(ids: Ints) -> Ints:
    return reservoir_keys(SEED, ids)


def located(memory: memstore.EpisodicMemory, copy: Copy, ids: Ints) -> Found:
    backend = memory._session.database.backend
    return copy.locate(ids, reading(memory, lambda conn: domains_of(conn, backend, 1, ids)))


@pytest.fixture
def damage(url: str) -> Callable[[str], None]:
    """Change the tables past memstore; with this fixture the memory need not be sound afterwards."""

    def change(statement: str) -> None:
        engine = create_engine(url)
        with engine.begin() as conn:
            conn.execute(text(statement))
        engine.dispose()

    return change


@pytest.mark.parametrize("alpha", [0.6, 1.0, 0.0])
def test_probabilities_and_weights_are_those_of_the_memory(alpha: float, open_memory: OpenMemory) -> None:
    memory = grown(open_memory)
    copy, law = copy_of(memory), Law(alpha, EPSILON)
    top = float(reading(memory, lambda conn: conn.execute(select(buffer.c.high_water)).scalar_one()))
    strategy = memstore.PrioritizedLoss(alpha)
    batch = memory.sample(64, strategy=strategy, beta=0.5, exact_probability=True)
    found = located(memory, copy, batch.ids)
    assert found.live.all()
    assert copy.live == len(memory)
    assert found.slots.loss.tobytes() == batch.loss.tobytes()
    assert found.slots.count.tolist() == batch.replay_count.tolist()
    log2 = log2_probability(View.of(copy, law), top, found.slots)
    assert batch.probability is not None
    np.testing.assert_allclose(np.exp2(log2), batch.probability, rtol=1e-9)
    least = copy.read(copy.locate(*least_of(copy)).places)
    smallest = log2_probability(View.of(copy, law), top, least)[0]
    np.testing.assert_allclose(np.exp2(-0.5 * (log2 - smallest)), batch.weight, rtol=1e-9)
    assert smallest <= log2.min() + 1e-12
    assert least_log2(copy, law, top) == law.log2(least.loss)[0]


def least_of(copy: Copy) -> tuple[Ints, Ints]:
    first = smallest_losses(copy, 1)
    return first.ids, copy.domains[first.places >> PLACE_BITS]


def test_recency_and_domains_are_those_of_the_memory(open_memory: OpenMemory) -> None:
    memory = grown(open_memory)
    memory.delete(memory.sample(20).ids)
    copy = copy_of(memory)
    ages = Ages(0.8, 540)
    batch = memory.sample(32, strategy=memstore.PrioritizedRecency(0.8), exact_probability=True)
    assert batch.age.tolist() == (541 - batch.ids).tolist()
    log2 = ages.log2(batch.ids) - log2_total(copy, View.of(copy, None), ages)
    assert batch.probability is not None
    np.testing.assert_allclose(np.exp2(log2), batch.probability, rtol=1e-9)
    balanced = memory.sample(32, strategy=memstore.DomainBalanced())
    domains, counts = domain_counts(copy, View.of(copy, None))
    found = located(memory, copy, balanced.ids)
    of = copy.domains[found.places >> PLACE_BITS]
    assert balanced.probability is not None
    np.testing.assert_allclose(
        1 / len(domains) / counts[np.searchsorted(domains, of)], balanced.probability, rtol=1e-12
    )


@pytest.mark.parametrize("policy", ["fifo", "lowest_loss", "largest_domain", "reservoir"])
def test_victims_are_those_of_the_memory(policy: str, open_memory: OpenMemory) -> None:
    memory = grown(open_memory, eviction=policy)
    before = copy_of(memory)
    memory.add({"x": np.zeros(2)}, domain="d0", loss=1e9)
    after = copy_of(memory)
    every, stayed = (copy.open(np.arange(len(copy))).slots.ids.tolist() for copy in (before, after))
    gone = set(every) - set(stayed)
    match policy:
        case "fifo":
            assert gone == set(oldest(before, 1).ids.tolist())
        case "lowest_loss":
            assert gone == set(smallest_losses(before, 1).ids.tolist())
        case "largest_domain":
            domains, counts = domain_counts(before, View.of(before, None))
            largest = domains[counts >= counts.max() - 1].tolist()
            assert gone <= {int(oldest(before, 1, domain).ids[0]) for domain in largest}
        case _:
            assert gone <= set(smallest_keys(before, 1, keys).ids.tolist())


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE replay_metadata SET loss = -1 WHERE episode_id = 541",
        "UPDATE replay_metadata SET replay_count = -1 WHERE episode_id = 541",
        "DELETE FROM episode WHERE id = 541",
        "UPDATE episode SET domain_id = 99999999999 WHERE id = 541",
        "UPDATE episode SET domain_id = 0 WHERE id = 541",
    ],
)
def test_tables_that_cannot_be_make_no_blocks(
    statement: str, open_memory: OpenMemory, damage: Callable[[str], None]
) -> None:
    memory = grown(open_memory)
    memory.extend({"x": np.zeros((2, 2))}, loss=[1.0, 2.0])
    assert copy_of(memory).live == 300
    damage(statement)
    with pytest.raises(StoreCorrupt):
        copy_of(memory)
