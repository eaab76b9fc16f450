"""The reservoir holds a uniform sample of everything ever offered, whatever was done to it.

A hundred small buffers, each with its own seed, live the same life. How the stream is cut into batches and
which of three handles adds them is random, and after each stage it is counted how often each place of the stream is
among the kept. Kept subsets of equal size must be equally likely, so the counts follow ``subsets_p_value``.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest
from scipy import stats

import memstore
from memstore import EpisodicMemory
from tests.support.laws import FALSE_ALARM, Ints, must_follow, must_refute, subsets_p_value
from tests.support.models import payload

SEEDS = 100
CAPACITY = 4
OFFERED = 12
GONE = np.array([2, 5, 9])
"""Places of the stream that are deleted, where they are kept, after ``OFFERED`` newcomers."""


@dataclass
class Lives:
    """What was kept after each stage: one array of places (1, 2, ...) per buffer."""

    filled: list[Ints] = field(default_factory=list)
    deleted: list[Ints] = field(default_factory=list)
    next_one: list[Ints] = field(default_factory=list)
    refilled: list[Ints] = field(default_factory=list)
    shrunk: list[Ints] = field(default_factory=list)
    grown: list[Ints] = field(default_factory=list)


def places(ids: Ints) -> Ints:
    """Ids hold the number of the buffer above 40 bits of place."""
    return np.sort(ids & (2**40 - 1))


def kept(memory: EpisodicMemory) -> Ints:
    return places(memory.sample(1000).ids) if len(memory) else np.array([], np.int64)


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Lives:
    path = str(tmp_path_factory.mktemp("reservoir") / "run.db")
    found = Lives()
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        name, settings = f"r{seed}", {"capacity": CAPACITY, "eviction": "reservoir", "strategy": "uniform"}
        one = memstore.open(path, buffer=name, seed=seed, **settings)  # type: ignore[arg-type]
        # A handle's own seed is of its draws; the reservoir's was fixed when the buffer was made.
        other = memstore.open(path, buffer=name, seed=10_000 + seed)

        def offer(count: int, rng: np.random.Generator, handles: tuple[EpisodicMemory, EpisodicMemory]) -> None:
            while count:
                part = min(count, int(rng.integers(1, 21)))
                handles[rng.integers(2)].extend(payload(part))
                count -= part

        offer(OFFERED, rng, (one, other))
        found.filled.append(kept(one))
        memory = memstore.open(path, buffer=name)
        one.close()
        memory.delete(GONE + (seed << 40))
        found.deleted.append(kept(memory))
        other.add({"x": np.float32(0)})
        found.next_one.append(kept(memory))
        offer(35, rng, (memory, other))
        found.refilled.append(kept(other))
        memory.configure(capacity=2)
        found.shrunk.append(kept(other))
        other.configure(capacity=8)
        memory.extend(payload(60))
        found.grown.append(kept(other))
        memory.close()
        other.close()
    return found


def check_uniform(samples: list[Ints], among: Ints) -> None:
    def p_value(found: list[Ints]) -> float:
        assert np.isin(np.concatenate(found), among).all()
        counts = np.bincount(np.searchsorted(among, np.concatenate(found)), minlength=len(among))
        return subsets_p_value(counts, np.array([len(sample) for sample in found]))

    assert p_value(samples) > FALSE_ALARM
    # Samples of the same sizes in which the newer half is six times as likely.
    rng = np.random.default_rng(0)
    unequal = np.where(np.arange(len(among)) < len(among) // 2, 1.0, 6.0)
    wrong = [rng.choice(among, len(s), replace=False, p=unequal / unequal.sum()) for s in samples]
    assert p_value(wrong) < FALSE_ALARM


def test_uniform_over_everything_offered(lives: Lives) -> None:
    assert all(len(sample) == CAPACITY for sample in lives.filled)
    check_uniform(lives.filled, np.arange(1, OFFERED + 1))


def test_uniform_over_what_was_not_deleted(lives: Lives) -> None:
    places = np.setdiff1d(np.arange(1, OFFERED + 1), GONE)
    assert {len(sample) for sample in lives.deleted} == {1, 2, 3, 4}
    check_uniform(lives.deleted, places)
    # Once the buffer is full again it holds the largest keys of all that were not deleted, exactly.
    assert all(len(sample) == CAPACITY for sample in lives.refilled)
    check_uniform(lives.refilled, np.setdiff1d(np.arange(1, OFFERED + 37), GONE))


def test_room_left_by_a_deletion_is_no_free_ticket(lives: Lives) -> None:
    """The newcomer next to a deletion enters with a chance between k / (t + 1) and (k + 1) / (t + 1).

    The exact one, k / (t + 1) where nothing was deleted, would need the keys of the deleted. With k = 4 the two bounds
    are far apart, at capacity 10,000 a ten-thousandth; both are far from the 1 of letting in whoever finds room.
    """
    room = [len(sample) < CAPACITY for sample in lives.deleted]
    entered = [OFFERED + 1 in sample for sample in lives.next_one]
    low, high = CAPACITY / (OFFERED + 1), (CAPACITY + 1) / (OFFERED + 1)
    count = sum(room)
    successes = sum(e for e, r in zip(entered, room, strict=True) if r)
    assert count > 50
    assert stats.binom.cdf(successes, count, low) > FALSE_ALARM
    assert stats.binom.sf(successes - 1, count, high) > FALSE_ALARM
    assert successes < 0.7 * count


def test_uniform_after_shrinking(lives: Lives) -> None:
    assert all(len(sample) == 2 for sample in lives.shrunk)
    assert all(np.isin(s, r).all() for s, r in zip(lives.shrunk, lives.refilled, strict=True))
    check_uniform(lives.shrunk, np.setdiff1d(np.arange(1, OFFERED + 37), GONE))


def test_uniform_after_growing(lives: Lives) -> None:
    """Newcomers enter with one chance, whenever they come; as long as there is room nobody leaves."""
    first = OFFERED + 37
    assert all(np.isin(s, g).all() or len(g) == 8 for s, g in zip(lives.shrunk, lives.grown, strict=True))
    assert np.mean([len(g) < 8 for g in lives.grown]) > 0.5
    check_uniform([g[g >= first] for g in lives.grown], np.arange(first, first + 60))


def test_one_stream_however_it_came(path: str) -> None:
    """Batches, handles, restarts: the kept are the same ones, not only of the same law."""
    outcomes = set()
    for way in range(4):
        other = f"{path}.{way}"
        memory = memstore.open(other, capacity=10, eviction="reservoir", strategy="uniform", seed=99)
        for start in range(0, 120, 30):
            if way == 1:
                memory.close()
                memory = memstore.open(other, seed=start)
            for part in {0: [30], 1: [7, 23], 2: [1] * 30, 3: [29, 1]}[way]:
                memory.extend(payload(part))
            if way == 3:
                with memory.transaction():
                    memory.update([1], loss=1.0)
                with pytest.raises(ZeroDivisionError), memory.transaction():
                    memory.extend(payload(50))
                    raise ZeroDivisionError
        outcomes.add(tuple(kept(memory).tolist()))
        memory.close()
    assert len(outcomes) == 1
    with memstore.open(f"{path}.x", capacity=10, eviction="reservoir", strategy="uniform", seed=98) as memory:
        memory.extend(payload(120))
        assert tuple(kept(memory).tolist()) not in outcomes


def test_reservoir_loss_lets_newcomers_in_with_chance_capacity_over_t(path: str) -> None:
    """With falling losses whoever enters pushes out the last who did, who is therefore all that is seen of it."""
    offered, capacity = 20, 3
    last = []
    for seed in range(100):
        with memstore.open(
            path, buffer=f"{seed}", capacity=capacity, eviction="reservoir_loss", strategy="uniform", seed=seed
        ) as memory:
            memory.extend(payload(offered), loss=np.arange(offered, 0, -1.0))
            found = kept(memory)
            assert found[:-1].tolist() == list(range(1, capacity))
            last.append(found[-1])
    counts = np.bincount(last, minlength=offered + 1)[capacity:]

    def law(chance: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
        enters = np.minimum(chance / np.arange(capacity, offered + 1), 1)
        enters[0] = 1
        stays = np.append(np.cumprod(1 - enters[:0:-1])[::-1], 1.0)
        return np.asarray(enters * stays)

    must_follow(counts, law(capacity))
    must_refute(counts, law(2 * capacity))
    must_refute(counts, law(capacity / 2))
