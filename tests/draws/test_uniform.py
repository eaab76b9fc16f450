"""Uniform: every live episode alike, whatever its loss, domain and age; without replacement every subset alike."""

from __future__ import annotations

import numpy as np
import pytest

import memstore
from memstore import EpisodicMemory
from tests.support.laws import must_follow, must_refute, plackett_luce, sets, share, subsets_p_value, tally
from tests.support.models import Model, act, payload


@pytest.fixture
def lived_in(path: str) -> tuple[EpisodicMemory, Model]:
    memory = memstore.open(path, strategy="uniform", capacity=120, seed=1)
    model = Model(capacity=120, eviction="fifo")
    rng = np.random.default_rng(1)
    for _ in range(150):
        act(memory, model, rng)
    return memory, model


def test_first_draws(lived_in: tuple[EpisodicMemory, Model]) -> None:
    memory, model = lived_in
    with memory:
        ids = memory.sample(20_000, replacement=True).ids
    assert np.isin(ids, model.ids).all()
    counts = np.bincount(np.searchsorted(model.ids, ids), minlength=len(model.ids))
    must_follow(counts, np.full(len(model.ids), 1 / len(model.ids)))
    must_refute(counts, share(np.where(np.isnan(model.loss), 1.5, 1.0)))
    # Every (domain, bucket) alike instead of every row.
    strata = np.array([f"{d} {np.ceil(2 * np.log2(x + 1e-6))}" for d, x in zip(model.domain, model.loss, strict=True)])
    _, stratum, sizes = np.unique(strata, return_inverse=True, return_counts=True)
    must_refute(counts, share(1 / sizes[stratum]))


def test_every_row_is_in_as_many_batches(lived_in: tuple[EpisodicMemory, Model]) -> None:
    memory, model = lived_in
    with memory:
        batches = [memory.sample(25).ids for _ in range(800)]
    assert all(len(set(ids.tolist())) == 25 for ids in batches)
    counts = np.bincount(np.searchsorted(model.ids, np.concatenate(batches)), minlength=len(model.ids))
    assert subsets_p_value(counts, np.full(800, 25)) > 1e-6
    # Counts of independent draws would deviate more: the test sees what is too even as well as what is too uneven.
    uneven = counts.copy()
    uneven[:60] += 15
    uneven[60:120] -= 15
    assert subsets_p_value(uneven, np.full(800, 25)) < 1e-6


def test_sequences_by_enumeration(path: str) -> None:
    with memstore.open(path, strategy="uniform", seed=2) as memory:
        memory.extend(payload(6), loss=[0.0, 1.0, 1e6, 1.0, 0.5, 3.0], domain=["a", "b", "a", "a", "c", "b"])
        memory.delete([5])
        kept = np.array([1, 2, 3, 4, 6])
        drawn = [tuple(np.searchsorted(kept, memory.sample(3).ids).tolist()) for _ in range(1200)]
    law = plackett_luce(np.ones(5), 3)
    must_follow(*tally(drawn, law))
    must_follow(*tally(map(frozenset, drawn), sets(law)))
    must_refute(*tally(drawn, plackett_luce(np.array([1.0, 1.0, 1.0, 1.0, 1.5]), 3)))
