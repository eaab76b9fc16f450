"""Policy ``reservoir_loss``: newcomer number t enters a full buffer with probability capacity / t, exactly.

The plan is made for thousands of seeds of the buffer's lottery, by the code and on the tables that an ``extend`` uses.
Losses grow with t and the smallest leaves, so the episodes kept are the last ones that entered. What is kept follows
by enumeration of who entered. Small numbers are tried, for there one more or less is most of the law. (Whether a chance
of exactly capacity / t wins cannot be seen: it is one of 2**63.)
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

import memstore
from memstore.buffer.snapshot import Snapshot
from memstore.buffer.tail import Newcomers
from memstore.episodes.eviction import plan
from memstore.storage.schema import first_id
from tests.support.laws import must_follow, must_refute, tally

SEEDS = 1500
Kept = tuple[int, ...]


def law(capacity: int, offered: int, chance: Callable[[int], float]) -> dict[Kept, float]:
    """Probability of each set of kept episodes when newcomer t enters a full buffer with this chance."""
    found: dict[Kept, float] = {}
    for entered in itertools.product([False, True], repeat=offered - capacity):
        probability, kept = 1.0, list(range(1, capacity + 1))
        for t, enters in enumerate(entered, capacity + 1):
            share = min(1.0, chance(t))
            probability *= share if enters else 1 - share
            kept = [*kept, t][-capacity:] if enters else kept
        found[tuple(kept)] = found.get(tuple(kept), 0.0) + probability
    return {kept: found.get(kept, 0.0) for kept in itertools.combinations(range(1, offered + 1), capacity)}


def planned(snapshot: Snapshot, capacity: int, offered: int, seed: int) -> Kept:
    """Which of the newcomers 1 .. offered an empty buffer with this seed keeps."""
    settings = replace(snapshot.settings, capacity=capacity, seed=seed)
    empty = Snapshot(snapshot.conn, snapshot.backend, replace(snapshot.state, settings=settings))
    number = np.arange(1, offered + 1)
    ids, one = first_id(snapshot.state.buffer_id) + number, np.ones(offered, np.int64)
    newcomers = Newcomers(ids, one, number.astype(float), one)
    return tuple(number[plan(empty, newcomers).staying].tolist())


@pytest.mark.parametrize(("capacity", "offered"), [(1, 4), (2, 5), (3, 6)])
def test_a_newcomer_enters_with_probability_capacity_over_offered(path: str, capacity: int, offered: int) -> None:
    with memstore.open(path, capacity=10, eviction="reservoir_loss", seed=1) as memory:
        kept = memory._session.read(lambda s: [planned(s, capacity, offered, seed) for seed in range(SEEDS)])
    right, *wrong = (
        law(capacity, offered, chance)
        for chance in (
            lambda t: capacity / t,
            lambda t: capacity / (t + 1),
            lambda t: capacity / (t - 1),
            lambda t: (capacity - 1) / t,
            lambda t: (capacity + 1) / t,
        )
    )
    counts, probabilities = tally(kept, right)
    must_follow(counts, probabilities)
    for other in wrong:
        must_refute(counts, np.array(list(other.values())))
