"""One thread works in a block that is rolled back or committed; the others see committed states and nothing else."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from memstore import EpisodicMemory, col
from tests.support.helpers import OpenMemory
from tests.support.windows import ENDLESS, window

SIZE = 60
TURNS = 25
NEVER = 1e6
"""This loss is given inside blocks only, and never committed."""


class Undone(Exception):
    """Ends a block from inside."""


def turn(memory: EpisodicMemory, number: int) -> None:
    """In one commit everything gets this number as its loss, and in the middle nothing is as it should be."""
    ids = memory.query().ids()
    with memory.transaction():
        memory.update(ids[::2], loss=NEVER)
        memory.extend({"x": np.zeros(7)}, loss=NEVER, domain="new")
        try:
            with memory.transaction():
                memory.delete(ids[:9])
                memory.update(memory.sample(5), loss=NEVER)
                raise Undone
        except Undone:
            pass
        memory.delete(where=col.domain == "new")
        memory.update(ids, loss=float(number))
        if number % 3 == 0:
            raise Undone


def looked_at(memory: EpisodicMemory, number: int) -> float:
    """One answer, by some way or other. Returns the loss that everything has in it."""
    match number % 6:
        case 0:
            assert len(memory) == SIZE
            batch = memory.sample(10, strategy="prioritized_loss")
            losses = set(batch.loss.tolist())
        case 1:
            losses = {episode.loss for episode in memory.query().all()}
        case 2:
            stats = memory.stats(exact=True)
            assert stats.buffer_size == SIZE and set(stats.domain_distribution) == {"old"}
            assert stats.total_inserted == SIZE + stats.total_evicted
            losses = set(stats.loss_quantiles.values())
        case 3:
            losses = {told.loss for told in memory.metadata(memory.query().ids())}
        case 4:
            losses = {episode.loss for episode in memory.get_many(list(range(1, SIZE + 1)))}
        case _:
            batch = memory.sample(10**6, strategy="prioritized_loss", alpha=1.4, exact_probability=True)
            assert batch.probability is not None and len(batch) == SIZE
            np.testing.assert_allclose(batch.probability, 1 / SIZE, rtol=1e-12)
            losses = set(batch.loss.tolist())
    assert len(losses) == 1, "the half of a commit was seen"
    return float(losses.pop() or 0.0)


@pytest.mark.parametrize("entries", [1, 100, ENDLESS])
def test_others_see_what_is_committed(open_memory: OpenMemory, entries: int) -> None:
    with window(entries):
        memory = open_memory(capacity=1000, strategy="prioritized_loss")
        memory.extend({"x": np.zeros(SIZE)}, loss=1.0, domain="old")
        done, seen = threading.Event(), set()

        def look(start: int) -> int:
            number = start
            while not done.is_set() or number < start + 6:
                seen.add(looked_at(memory, number))
                number += 1
            return number - start

        with ThreadPoolExecutor(3) as others:
            looks = [others.submit(look, start) for start in range(3)]
            try:
                for number in range(1, TURNS):
                    try:
                        turn(memory, number)
                    except Undone:
                        assert number % 3 == 0
            finally:
                done.set()
            assert all(look.result() >= 6 for look in looks)
        assert seen <= {1.0} | {float(n) for n in range(TURNS) if n % 3}, "what is not committed was seen"
        assert looked_at(memory, 1) == float(max(n for n in range(TURNS) if n % 3))
