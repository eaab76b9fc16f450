"""One seed, one stream: the same operations draw the same ids, and what failed or was rolled back used up nothing."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import numpy as np
import pytest

import memstore
from memstore import (
    Column,
    DomainBalanced,
    EpisodicMemory,
    Mixed,
    PrioritizedLoss,
    PrioritizedRecency,
    StoreCorrupt,
    Strategy,
    Uniform,
    col,
)
from tests.support.helpers import OpenMemory
from tests.support.models import Model, act, payload

STRATEGIES = (Uniform(), PrioritizedLoss(0.6), PrioritizedLoss(2.0), PrioritizedRecency(1.0), DomainBalanced(), Mixed())


def draws(memory: EpisodicMemory, count: int = 10) -> list[list[int]]:
    """One batch by each strategy, both with and without replacement."""
    return [memory.sample(count, strategy=s, replacement=r).ids.tolist() for s in STRATEGIES for r in (False, True)]


def life(path: str, seed: int) -> list[list[int]]:
    """Draws in between random writes, which are the same for every seed."""
    rng = np.random.default_rng(1)
    model = Model(capacity=80, eviction="lowest_loss")
    drawn = []
    with memstore.open(path, capacity=80, seed=seed) as memory:
        memory.extend(payload(20))
        for _ in range(20):
            model.add("default", None)
        for _ in range(12):
            act(memory, model, rng)
            drawn += draws(memory)
    return drawn


def test_same_seed_same_ids(path: str) -> None:
    first = life(path + "1", 7)
    assert life(path + "2", 7) == first
    others = life(path + "3", 8)
    # Nothing is shared but by chance: batches that agree in every place.
    assert sum(a == b for a, b in zip(first, others, strict=True)) == 0


@pytest.fixture
def filled(path: str) -> EpisodicMemory:
    memory = memstore.open(path, capacity=100, seed=3, cache_bytes=0)
    memory.extend(payload(100), loss=np.linspace(0, 4, 100), domain=["a", "b"] * 50)
    return memory


def test_a_failed_draw_uses_up_nothing(filled: EpisodicMemory, path: str) -> None:
    with filled as memory:
        before = memory.rng.bit_generator.state
        expected = draws(memory)
        memory.rng.bit_generator.state = before

        def change_checksums(by: int) -> None:
            with closing(sqlite3.connect(path)) as conn, conn:
                conn.execute("UPDATE payload SET crc32 = crc32 + ?", (by,))

        change_checksums(1)
        for strategy in STRATEGIES:
            with pytest.raises(StoreCorrupt):  # after the rows were drawn
                memory.sample(10, strategy=strategy)
        with pytest.raises(memstore.MemstoreError):
            memory.sample(0)
        with pytest.raises(memstore.MemstoreError):
            memory.sample(5, strategy=DomainBalanced({"nowhere": 1}))
        assert memory.rng.bit_generator.state == before
        change_checksums(-1)
        assert draws(memory) == expected


def test_a_rolled_back_transaction_rewinds(filled: EpisodicMemory) -> None:
    with filled as memory:
        before = memory.rng.bit_generator.state
        expected = draws(memory)
        memory.rng.bit_generator.state = before
        with pytest.raises(ZeroDivisionError), memory.transaction():
            assert draws(memory) == expected
            memory.update([1, 2], loss=9.0)
            with pytest.raises(KeyError), memory.transaction():
                inner = memory.rng.bit_generator.state
                memory.sample(5)
                raise KeyError
            assert memory.rng.bit_generator.state == inner
            raise ZeroDivisionError
        assert memory.rng.bit_generator.state == before
        assert draws(memory) == expected
        with memory.transaction():
            memory.sample(5)
        assert memory.rng.bit_generator.state != before


def test_a_checkpoint_resumes_the_stream(filled: EpisodicMemory, path: str) -> None:
    with filled as memory:
        draws(memory)
        with memory.transaction():
            memory.update(memory.sample(10), loss=1.0)
            memory.save_checkpoint("latest", {"step": 1})
        expected = draws(memory)
    with memstore.open(path, seed=12345) as memory:
        assert draws(memory) != expected
        assert memory.load_checkpoint("latest") == {"step": 1}
        assert draws(memory) == expected


def test_what_other_processes_see_does_not_depend_on_the_copy_of_the_strata(filled: EpisodicMemory, path: str) -> None:
    """A copy refreshed step by step and one read afresh draw alike."""
    model = Model(capacity=100, eviction="lowest_loss", inserted=100)
    rng = np.random.default_rng(2)
    with filled as memory, memstore.open(path, seed=5) as refreshed:
        for _ in range(20):
            act(memory, model, rng)
            refreshed.sample(3)
        state = refreshed.rng.bit_generator.state
        with memstore.open(path, seed=6) as fresh:
            fresh.rng.bit_generator.state = state
            assert draws(fresh) == draws(refreshed)


PINNED: dict[tuple[Strategy, bool, str], list[int]] = {
    (Uniform(), False, ""): [46, 8, 45, 135],
    (Uniform(), False, "domain = 'b'"): [155, 152, 227, 236],
    (Uniform(), True, "level = 3"): [134, 264, 14, 4],
    (Uniform(), False, "level >= 2"): [253, 189, 33, 183],
    (Uniform(), False, "loss > 2"): [285, 283, 250, 164],
    (PrioritizedLoss(0.6), True, ""): [252, 81, 254, 77],
    (PrioritizedLoss(0.6), False, "domain = 'b'"): [266, 212, 98, 221],
    (PrioritizedLoss(0.6), False, "level = 3"): [114, 154, 44, 224],
    (PrioritizedLoss(0.6), True, "level >= 2"): [296, 130, 280, 243],
    (PrioritizedLoss(0.6), False, "loss > 2"): [238, 151, 203, 170],
    (PrioritizedLoss(1.5), False, ""): [149, 164, 166, 247],
    (PrioritizedLoss(1.5), True, "domain = 'b'"): [143, 233, 80, 50],
    (PrioritizedLoss(1.5), False, "level = 3"): [84, 94, 164, 184],
    (PrioritizedLoss(1.5), False, "level >= 2"): [226, 200, 170, 127],
    (PrioritizedLoss(1.5), True, "loss > 2"): [184, 238, 219, 186],
    (PrioritizedRecency(0.8), False, ""): [283, 192, 232, 270],
    (PrioritizedRecency(0.8), False, "domain = 'b'"): [71, 17, 248, 191],
    (PrioritizedRecency(0.8), True, "level = 3"): [264, 194, 294, 284],
    (PrioritizedRecency(0.8), False, "level >= 2"): [253, 190, 278, 280],
    (PrioritizedRecency(0.8), False, "loss > 2"): [300, 231, 11, 285],
    (DomainBalanced(), True, ""): [204, 164, 186, 31],
    (DomainBalanced(), False, "domain = 'b'"): [221, 278, 245, 212],
    (DomainBalanced(), False, "level = 3"): [284, 4, 264, 214],
    (DomainBalanced(), True, "level >= 2"): [249, 94, 296, 10],
    (DomainBalanced(), False, "loss > 2"): [11, 201, 130, 117],
    (Mixed(), False, ""): [154, 119, 215, 270],
    (Mixed(), True, "domain = 'b'"): [284, 44, 173, 92],
    (Mixed(), False, "level = 3"): [84, 184, 24, 14],
    (Mixed(), False, "level >= 2"): [24, 199, 257, 8],
    (Mixed(), True, "loss > 2"): [79, 29, 113, 166],
}
"""What seed 7 drew when this test was written, one batch after the other."""


@pytest.mark.parametrize("known", [False, True], ids=["nothing known", "conditions known"])
def test_draws_stay_bit_for_bit(open_memory: OpenMemory, known: bool) -> None:
    """Another way to answer a draw must not change what is drawn."""
    memory = open_memory(seed=7, strategy=PrioritizedLoss(0.6), epsilon=0.1)
    loss = [None if i % 9 == 0 else i % 17 / 4 for i in range(300)]
    memory.extend(payload(300), loss=loss, domain=["a", "b", "c"] * 100, level=[i % 10 for i in range(300)])
    memory.update(memory.sample(40), loss=0.4)
    memory.delete(list(range(20, 300, 7)))
    if known:
        before = memory.rng.bit_generator.state
        for _ in range(2):
            for _, _, where in PINNED:
                memory.sample(1, where=where or None)
        memory.rng.bit_generator.state = before
    for (strategy, replacement, where), ids in PINNED.items():
        drawn = memory.sample(4, strategy=strategy, replacement=replacement, where=where or None)
        assert drawn.ids.tolist() == ids, (strategy, replacement, where)


PROMPT = col.extra["prompt"].number

GROUPS: dict[tuple[Column, Strategy, str], list[int]] = {
    (col.domain, Uniform(), ""): [73, 187, 116, 47],
    (col.domain, PrioritizedLoss(1.5), "level >= 2"): [250, 235, 149, 29],
    (col.level, PrioritizedRecency(0.8), ""): [208, 298, 169, 299],
    (col.level, Uniform(), "level = 1 or loss > 2"): [63, 113, 219, 149],
    (PROMPT, PrioritizedLoss(1.5), ""): [80, 40, 289, 169],
    (PROMPT, Uniform(), "level >= 2"): [9, 49, 200, 120],
    (PROMPT, PrioritizedRecency(0.8), "level = 1 or loss > 2"): [65, 185, 197, 117],
    (PROMPT, DomainBalanced({"a": 1, "b": 2}), "loss > 1"): [152, 32, 59, 299],
}
"""What seed 8 drew of groups when lists of episodes still followed the log, two pairs after two pairs."""


def test_groups_stay_bit_for_bit(open_memory: OpenMemory) -> None:
    """Whatever this process knows: labels tell which episodes are together, and not the order of groups."""
    memory = open_memory(seed=8, epsilon=0.1)
    loss = [None if i % 9 == 0 else i % 17 / 4 for i in range(300)]
    extra = [{"prompt": i % 40} if i % 5 else None for i in range(300)]
    level = [i % 10 or None for i in range(300)]
    memory.extend(payload(300), loss=loss, domain=["a", "b", "c"] * 100, level=level, extra=extra)
    memory.update(list(range(5, 300, 11)), loss=0.4)
    memory.delete(list(range(20, 300, 7)))
    before = memory.rng.bit_generator.state
    for _ in range(2):
        memory.rng.bit_generator.state = before
        for (by, strategy, where), ids in GROUPS.items():
            drawn = memory.sample_groups(2, 2, by=by, strategy=strategy, where=where or None)
            assert drawn.ids.tolist() == ids, (by, strategy, where)
