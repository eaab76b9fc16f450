"""What replay buffers promise, as found in the tests of memstore's peers: research/peers.md section 5, by number.

Numbers left out belong to later issues: 11 (LIFO), 12 (staleness), 13 (groups), 15 (epochs), 19 (keep the best k), 22
(versioned updates), 23 and 24 (flow control, queues), 30 (compression), 31 to 34 (sequences). 39 to 41 are in
tests/torture and test_lifecycle.py, 42 in test_lifecycle.py. Where memstore decides otherwise than a peer, the
docstring says so.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memstore
from memstore import (
    ConfigError,
    DomainBalanced,
    EpisodeNotFound,
    EpisodicMemory,
    EvictionPolicy,
    InvalidValue,
    MemoryEmpty,
    MemoryFull,
    Mixed,
    PayloadError,
    PrioritizedLoss,
    Uniform,
)
from memstore.buffer import folding
from memstore.storage.upgrade import known_revisions, upgrade
from tests.migrations.assets import make
from tests.support.helpers import Child, OpenMemory, Sql, agree, drawn, everything, in_child, law, live_ids, row, rows

ASSETS = Path(__file__).parents[1] / "migrations" / "assets"


def priorities(memory: EpisodicMemory, alpha: float, losses: dict[int, float], epsilon: float) -> dict[int, float]:
    """P(i) ~ (loss + epsilon) ** alpha, by the formula."""
    weights = {i: (loss + epsilon) ** alpha for i, loss in losses.items()}
    total = math.fsum(weights.values())
    return {i: weight / total for i, weight in weights.items()}


# Selectors


def test_01_unknown_ids_are_reported_and_change_nothing(open_memory: OpenMemory) -> None:
    """1. Update and delete of an unknown id say so, and change nothing."""
    memory = open_memory(capacity=10)
    ids = memory.extend(rows(3), loss=[1.0, 2.0, 3.0])
    before = everything(memory, ids)
    result = memory.update([999, 2**52], loss=[5.0, 6.0])
    assert result.updated.tolist() == [] and result.missing.tolist() == [999, 2**52]
    assert memory.delete([999]) == 0
    with pytest.raises(EpisodeNotFound, match="999"):
        memory.get(999)
    assert 999 not in memory
    assert everything(memory, ids) == before
    assert memory.stats().total_events == 0


def test_01_the_same_key_is_not_inserted_twice(open_memory: OpenMemory) -> None:
    """1. A peer refuses a duplicate key; in memstore it is a no-op that returns the first id: a retry is safe."""
    memory = open_memory(capacity=10)
    first = memory.add(row(1), key="a", loss=1.0)
    assert memory.add(row(2), key="a", loss=9.0) == first
    assert memory.extend(rows(3), key=["b", "a", "b"]).tolist() == [first + 1, first, first + 1]
    assert len(memory) == 2
    assert memory.get(first).payload["number"] == 1 and memory.get(first).loss == 1.0


@pytest.mark.parametrize("loss", [-1.0, -1e-300, math.nan, math.inf, -math.inf])
def test_02_negative_and_nan_priorities_are_refused(open_memory: OpenMemory, loss: float) -> None:
    """2. On add and on update, with the state unchanged."""
    memory = open_memory(capacity=10)
    ids = memory.extend(rows(3), loss=[1.0, 2.0, 3.0])
    before, revision = everything(memory, ids), memory.stats().revision
    with pytest.raises(InvalidValue, match="loss"):
        memory.add(row(9), loss=loss)
    with pytest.raises(InvalidValue, match="loss"):
        memory.extend(rows(3), loss=[1.0, loss, 1.0])
    with pytest.raises(InvalidValue, match=f"episode {ids[1]}"):
        memory.update(ids, loss=[1.0, loss, 1.0])
    assert len(memory) == 3
    assert everything(memory, ids) == before
    assert memory.stats().revision == revision


@pytest.mark.parametrize("alpha", [0.0, 0.6, 1.0, 2.0])
def test_03_all_losses_zero_is_uniform(open_memory: OpenMemory, alpha: float) -> None:
    """3. And the reported probability is 1/N."""
    memory = open_memory(strategy=PrioritizedLoss(alpha))
    ids = memory.extend(rows(7), loss=0.0)
    probability = law(memory)
    assert probability == pytest.approx({int(i): 1 / 7 for i in ids}, rel=1e-12)
    assert agree(drawn(memory), probability)


@pytest.mark.parametrize("strategy", ["uniform", "prioritized_loss", "prioritized_recency", "mixed", "domain_balanced"])
def test_04_frequency_matches_the_reported_probability(open_memory: OpenMemory, strategy: str) -> None:
    """4. After a mix of inserts, updates, evictions and deletions."""
    memory = open_memory(capacity=60, strategy=strategy)
    rng = np.random.default_rng(4)
    for turn in range(30):
        memory.extend(
            rows(5, 5 * turn),
            domain=rng.choice(["a", "b", "c"], 5, p=[0.7, 0.2, 0.1]).tolist(),
            loss=[None if rng.random() < 0.2 else float(x) for x in rng.lognormal(0, 2, 5)],
        )
        batch = memory.sample(10)
        memory.update(batch, loss=rng.lognormal(0, 2, len(batch)))
        if turn % 5 == 0:
            memory.delete(batch.ids[:2])
    probability = law(memory)
    assert sum(probability.values()) == pytest.approx(1)
    assert agree(drawn(memory, 40_000), probability)


def test_05_zero_losses_stay_reachable_through_epsilon(open_memory: OpenMemory) -> None:
    """5. Peers never draw a zero priority; memstore keeps it reachable: P ~ (0 + epsilon) ** alpha, epsilon fixed."""
    memory = open_memory(strategy=PrioritizedLoss(1.0), epsilon=0.01)
    zero, one = memory.extend(rows(2), loss=[0.0, 1.0]).tolist()
    probability = law(memory)
    assert probability == pytest.approx({zero: 0.01 / 1.02, one: 1.01 / 1.02})
    counts = drawn(memory)
    assert counts[zero] > 0
    assert agree(counts, probability)


def test_05_an_infinite_loss_is_refused(memory: EpisodicMemory) -> None:
    """5. Peers draw an infinite priority first; memstore's losses are finite."""
    with pytest.raises(InvalidValue, match="inf"):
        memory.add(row(0), loss=math.inf)
    assert len(memory) == 0


@pytest.mark.parametrize("scale", [1e-5, 1e5, 1e250])
def test_06_scale_invariance(open_memory: OpenMemory, scale: float) -> None:
    """6. Losses times a constant give the same law, as long as epsilon is small beside them."""
    losses = np.array([1.0, 2.0, 3.0, 10.0])
    laws = []
    for factor in (1.0, scale):
        memory = open_memory(buffer=f"x{factor}", strategy=PrioritizedLoss(0.6), epsilon=1e-12)
        memory.extend(rows(4), loss=losses * factor)
        laws.append(list(law(memory).values()))
        assert agree(drawn(memory), law(memory))
    assert sorted(laws[1]) == pytest.approx(sorted(laws[0]), rel=1e-6)


def test_07_tiny_weights_survive_the_removal_of_huge_ones(open_memory: OpenMemory) -> None:
    """7. No negative or stale sums: what is left is drawn by its own weights."""
    memory = open_memory(strategy=PrioritizedLoss(1.0), epsilon=1e-15)
    huge = memory.extend(rows(5), loss=[1e300, 1e308, 1e200, 1e16, 1e12])
    tiny = memory.extend(rows(2, 5), loss=[1e-9, 3e-9]).tolist()
    memory.delete(huge[:3])
    memory.update(huge[3:], loss=0.0)
    memory.delete(huge[3:])
    probability = law(memory)
    assert probability == pytest.approx(dict(zip(tiny, (0.25, 0.75), strict=True)), rel=1e-5)
    assert agree(drawn(memory), probability)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0, 2.0])
def test_08_another_alpha_reweights_from_the_raw_loss(open_memory: OpenMemory, alpha: float) -> None:
    """8. alpha = 0 is uniform; any other re-weights exactly, per call or for good."""
    memory = open_memory(strategy=PrioritizedLoss(0.6), epsilon=1e-3)
    losses = dict(zip(memory.extend(rows(4), loss=[0.0, 0.5, 1.0, 4.0]).tolist(), [0.0, 0.5, 1.0, 4.0], strict=True))
    expected = priorities(memory, alpha, losses, 1e-3)
    assert law(memory, alpha=alpha) == pytest.approx(expected)
    assert agree(drawn(memory, alpha=alpha), expected)
    memory.configure(alpha=alpha)
    assert law(memory) == pytest.approx(expected)
    if alpha == 0:
        assert set(law(memory).values()) == {0.25}


def test_08_a_negative_alpha_is_refused(open_memory: OpenMemory) -> None:
    """8. Wherever one can be given."""
    memory = open_memory()
    memory.add(row(0), loss=1.0)
    for attempt in (
        lambda: PrioritizedLoss(-0.1),
        lambda: memory.sample(1, strategy="prioritized_loss", alpha=-0.1),
        lambda: memory.configure(strategy="prioritized_loss", alpha=-1.0),
        lambda: memory.configure(strategy="prioritized_loss", alpha=math.nan),
        lambda: open_memory(buffer="other", strategy="prioritized_loss", alpha=-1.0),
    ):
        with pytest.raises(ConfigError, match="alpha"):
            attempt()


def test_09_a_never_measured_episode_has_the_highest_priority_ever_measured(open_memory: OpenMemory) -> None:
    """9. Transformed by alpha once. Peers recompute the maximum when its item falls; memstore's mark never falls."""
    memory = open_memory(strategy=PrioritizedLoss(0.5), epsilon=1e-6)
    new = memory.add(row(0))
    low = memory.add(row(1), loss=1.0)
    assert law(memory) == pytest.approx({new: 0.5, low: 0.5}, rel=1e-5)  # 1.0 before any, and 1.0 after this one
    high = memory.add(row(2), loss=9.0)
    expected = {new: 3 / 7, low: 1 / 7, high: 3 / 7}
    assert law(memory) == pytest.approx(expected, rel=1e-5)
    assert agree(drawn(memory), law(memory))
    memory.update(high, loss=1.0)
    assert law(memory) == pytest.approx({new: 3 / 5, low: 1 / 5, high: 1 / 5}, rel=1e-5)
    memory.delete(high)
    assert law(memory) == pytest.approx({new: 3 / 4, low: 1 / 4}, rel=1e-5)
    assert memory.stats().max_priority == pytest.approx(9.0, rel=1e-5)


@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("normalize", ["buffer", "batch"])
def test_10_importance_weights(open_memory: OpenMemory, beta: float, normalize: Any) -> None:
    """10. (p_i / p_min) ** -beta, at most 1; p_min counts zero-loss and never-measured rows too."""
    memory = open_memory(strategy=PrioritizedLoss(0.6), epsilon=1e-3)
    memory.extend(rows(6), loss=[0.0, 0.1, 0.5, 1.0, 4.0, None])
    batch = memory.sample(3, beta=beta, normalize=normalize)
    probability = law(memory)
    own = np.array([probability[i] for i in batch.ids.tolist()])
    smallest = own.min() if normalize == "batch" else min(probability.values())
    assert batch.weight == pytest.approx((own / smallest) ** -beta)
    assert (batch.weight <= 1 + 1e-12).all()
    assert batch.probability == pytest.approx(own)


def test_10_equal_priorities_give_weight_1(open_memory: OpenMemory) -> None:
    """10. And so does a buffer of one."""
    memory = open_memory(strategy="prioritized_loss")
    memory.add(row(0), loss=0.3)
    assert memory.sample(1, beta=1.0).weight.tolist() == [1.0]
    memory.extend(rows(4), loss=0.3)
    assert memory.sample(5, beta=0.7).weight == pytest.approx(np.ones(5), rel=1e-12)


def test_14_exact_proportions_in_every_batch(open_memory: OpenMemory) -> None:
    """14. Each batch has each component's share, and covers every source."""
    memory = open_memory(strategy=DomainBalanced(), capacity=200)
    memory.extend(rows(100), domain=["big"] * 88 + ["small"] * 8 + ["tiny"] * 4)
    for _ in range(20):
        assert np.unique(memory.sample(12).domain, return_counts=True)[1].tolist() == [4, 4, 4]
        weighted = memory.sample(8, strategy=DomainBalanced({"big": 1, "small": 3}))
        assert np.unique(weighted.domain, return_counts=True)[1].tolist() == [2, 6]
        # Tiny cannot give its 6: what is missing comes from the others.
        short = memory.sample(8, strategy=DomainBalanced({"big": 1, "tiny": 3}))
        assert np.unique(short.domain, return_counts=True)[1].tolist() == [4, 4]
        only = {"big": DomainBalanced({"big": 1}), "small": DomainBalanced({"small": 1})}
        mixed = memory.sample(10, strategy=Mixed({only["big"]: 0.7, only["small"]: 0.3}))
        assert np.unique(mixed.domain, return_counts=True)[1].tolist() == [7, 3]
        assert len(set(mixed.ids.tolist())) == 10


def test_14_fractional_shares_hold_on_average(open_memory: OpenMemory) -> None:
    """14. Slots that do not divide evenly are randomised: no component loses its remainder for ever."""
    memory = open_memory(capacity=200)
    memory.extend(rows(100), domain=["a"] * 50 + ["b"] * 50)
    strategy = Mixed({DomainBalanced({"a": 1}): 0.5, DomainBalanced({"b": 1}): 0.5})
    of_a = [int((memory.sample(3, strategy=strategy).domain == "a").sum()) for _ in range(400)]
    assert set(of_a) == {1, 2}
    assert 1.35 < np.mean(of_a) < 1.65


@pytest.mark.parametrize("strategy", ["uniform", "prioritized_loss", "prioritized_recency", "mixed", "domain_balanced"])
def test_16_empty_and_short_memories(open_memory: OpenMemory, strategy: str) -> None:
    """16. An empty memory raises; one that is too small gives all it has, each once; with replacement, the count."""
    memory = open_memory(strategy=strategy)
    with pytest.raises(MemoryEmpty, match="no episode"):
        memory.sample(1)
    with pytest.raises(LookupError):
        memory.sample(4, replacement=True)
    ids = memory.extend(rows(3), loss=[0.0, 1.0, None], domain=["a", "b", "b"])
    assert sorted(memory.sample(1000).ids.tolist()) == ids.tolist()
    assert len(memory.sample(50, replacement=True)) == 50
    memory.delete(ids)
    with pytest.raises(MemoryEmpty):
        memory.sample(1)


# Table, eviction, flow


def test_17_fifo_evicts_the_oldest_one_by_one(open_memory: OpenMemory) -> None:
    """17. Overflow evicts exactly one, by the policy's rule."""
    memory = open_memory(capacity=3, eviction="fifo")
    for i in range(10):
        newest = memory.add(row(i), loss=100.0 - i)
        assert live_ids(memory) == list(range(max(1, newest - 2), newest + 1))


def test_17_lowest_loss_evicts_the_easiest_and_never_the_newcomer(open_memory: OpenMemory) -> None:
    """17. Of measured ones; never measured is not easy; among equals the oldest; the newcomer stays."""
    memory = open_memory(capacity=3, eviction="lowest_loss")
    a, b, c = memory.extend(rows(3), loss=[5.0, 1.0, None]).tolist()
    d = memory.add(row(3), loss=0.5)
    assert live_ids(memory) == [a, c, d]
    e = memory.add(row(4))
    assert live_ids(memory) == [a, c, e]
    memory.update(a, loss=7.0)
    f = memory.add(row(5))
    assert live_ids(memory) == [c, e, f]
    g = memory.add(row(6))
    assert live_ids(memory) == [e, f, g]
    assert b not in memory


def test_17_lowest_loss_follows_the_latest_loss(open_memory: OpenMemory) -> None:
    """17. An update changes who leaves."""
    memory = open_memory(capacity=3, eviction="lowest_loss")
    a, b, c = memory.extend(rows(3), loss=[1.0, 2.0, 3.0]).tolist()
    memory.update([a, c], loss=[9.0, 0.1])
    memory.add(row(3), loss=5.0)
    assert a in memory and b in memory and c not in memory


def test_17_largest_domain_protects_the_rare(open_memory: OpenMemory) -> None:
    """17. The oldest of the domain that holds most leaves."""
    memory = open_memory(capacity=6, eviction="largest_domain")
    rare = memory.extend(rows(2), domain="rare").tolist()
    for i in range(30):
        memory.add(row(i), domain="common")
        assert set(rare) <= set(live_ids(memory))
    assert memory.stats().domain_distribution == {"rare": 2, "common": 4}
    assert live_ids(memory)[-4:] == [29, 30, 31, 32]


def test_17_reservoir_keeps_a_uniform_sample(open_memory: OpenMemory) -> None:
    """17. Of everything ever offered: early and late ones alike, over many seeds."""
    kept = np.zeros(40)
    for seed in range(60):
        memory = open_memory(buffer=f"r{seed}", capacity=10, eviction="reservoir", strategy="uniform", seed=seed)
        memory.extend(rows(25))
        memory.extend(rows(15, 25))
        assert len(memory) == 10
        for episode in memory.get_many(live_ids(memory)):
            kept[episode.payload["number"]] += 1
        memory.close()
    # 60 x 10 of 40 places: 15 each expected, variance 60 * 1/4 * 3/4.
    assert abs(kept[:20].sum() - 300) < 50
    assert ((kept - 15) ** 2).sum() / (60 * 3 / 16) < 80  # chi-square, 39 degrees: p > 1e-4


def test_17_policy_none_refuses(open_memory: OpenMemory) -> None:
    """17. With everything as it was."""
    memory = open_memory(capacity=3, eviction="none")
    ids = memory.extend(rows(2), loss=1.0)
    with pytest.raises(MemoryFull, match="none"):
        memory.extend(rows(2, 2))
    assert live_ids(memory) == ids.tolist()
    assert memory.add(row(9)) == 3
    with pytest.raises(MemoryFull):
        memory.add(row(10))


@pytest.mark.parametrize("policy", [p for p in EvictionPolicy if p is not EvictionPolicy.NONE])
def test_17_never_beyond_capacity(open_memory: OpenMemory, policy: EvictionPolicy) -> None:
    """17. At any step, and exactly at it from then on (a reservoir's deletions leave room until it is drawn again)."""
    memory = open_memory(capacity=20, eviction=policy)
    rng = np.random.default_rng(17)
    added = 0
    for count in [1, 5, 13, 1, 1, 7, 45, 3, 20]:
        memory.extend(rows(count, added), domain=rng.choice(["a", "b"], count).tolist(), loss=rng.random(count))
        added += count
        assert len(memory) == min(added, 20)
        memory.update(memory.sample(5), loss=rng.random(min(added, 5)))
    assert memory.stats().total_inserted == added
    assert memory.stats().total_evicted == added - 20


@pytest.mark.parametrize("policy", [p for p in EvictionPolicy if p is not EvictionPolicy.NONE])
def test_17_batches_keep_what_single_adds_keep(open_memory: OpenMemory, policy: EvictionPolicy) -> None:
    """17. The outcome does not depend on how the newcomers were cut into batches."""
    losses = np.random.default_rng(3).random(40).round(1).tolist()
    losses = [None if i % 7 == 3 else loss for i, loss in enumerate(losses)]
    domains = ["a" if i % 3 else "b" for i in range(40)]
    kept = []
    for cut in (1, 4, 40):
        memory = open_memory(buffer=f"by {cut}", capacity=12, eviction=policy)
        first = 0
        for start in range(0, 40, cut):
            part = slice(start, start + cut)
            ids = memory.extend(rows(len(losses[part]), start), loss=losses[part], domain=domains[part])
            first = first or int(ids[0])
        kept.append([i - first for i in live_ids(memory)])
    assert kept[0] == kept[1] == kept[2]
    assert len(kept[0]) == 12


def _overflow(memory: EpisodicMemory, turns: int) -> int:
    most = 0
    for turn in range(turns):
        memory.extend(rows(3, turn), loss=[0.1, 0.5, 1.0])
        most = max(most, len(memory))
    return most


def test_17_never_beyond_capacity_with_several_processes(open_memory: OpenMemory) -> None:
    """17. Two processes overflow one memory; none ever sees it beyond capacity."""
    memory = open_memory(capacity=10, eviction="lowest_loss")
    children = [Child(_overflow, memory, 40) for _ in range(2)]
    assert [child.result() for child in children] == [10, 10]
    assert len(memory) == 10
    assert memory.stats().total_inserted == 240


def test_18_replay_count_counts_loss_updates(open_memory: OpenMemory) -> None:
    """18. Peers count draws; memstore counts loss updates, as the origin did: a draw writes nothing."""
    memory = open_memory()
    ids = memory.extend(rows(3), loss=1.0)
    for _ in range(5):
        memory.sample(3)
    assert [m.replay_count for m in memory.metadata(ids)] == [0, 0, 0]
    memory.update(ids[:2], loss=0.5)
    memory.update([ids[0], ids[0]], loss=[0.4, 0.3])
    found = memory.metadata(ids)
    assert [m.replay_count for m in found] == [3, 1, 0]
    assert [m.loss for m in found] == [0.3, 0.5, 1.0]
    assert [m.last_replayed_at is None for m in found] == [False, False, True]
    assert memory.stats().total_replays == 4
    batch = memory.sample(3)
    assert dict(zip(batch.ids.tolist(), batch.replay_count.tolist(), strict=True)) == {1: 3, 2: 1, 3: 0}


def test_18_max_replays_removes(open_memory: OpenMemory, sql: Sql) -> None:
    """18. After ``max_replays`` loss updates the episode leaves, in the commit of the last one."""
    memory = open_memory(max_replays=2)
    a, b, c = memory.extend(rows(3), loss=1.0).tolist()
    memory.update([a, b], loss=0.5)
    assert len(memory) == 3
    result = memory.update([a, c], loss=0.25)
    assert result.updated.tolist() == [a, c]
    assert live_ids(memory) == [b, c]
    memory.update([c, c, c], loss=0.1)
    assert live_ids(memory) == [b]
    # The history of what left stays.
    assert sql("SELECT episode_id, loss_after FROM v_history WHERE what = 'replayed' ORDER BY event") == [
        (a, 0.5),
        (b, 0.5),
        (a, 0.25),
        (c, 0.25),
        (c, 0.1),
        (c, 0.1),
        (c, 0.1),
    ]
    assert sql("SELECT episode_id, reason, loss_before FROM v_history WHERE what = 'exhausted' ORDER BY event") == [
        (a, "max_replays", 0.25),
        (c, "max_replays", 0.1),
    ]
    memory.configure(max_replays=None)
    memory.update([b, b, b], loss=0.1)
    assert live_ids(memory) == [b]


def test_20_unknown_ids_in_a_batch_are_skipped(open_memory: OpenMemory) -> None:
    """20. Known ones are applied, and the result says which; under "skip" also which losses were refused."""
    memory = open_memory()
    a, b, c = memory.extend(rows(3), loss=1.0).tolist()
    memory.delete(b)
    result = memory.update([c, b, 777, a], loss=[3.0, 2.0, 7.0, 1.5])
    assert result.updated.tolist() == [a, c]
    assert result.missing.tolist() == [b, 777]
    assert result.rejected.tolist() == []
    assert [m.loss for m in memory.metadata([a, c])] == [1.5, 3.0]
    result = memory.update([c, b, a], loss=[math.nan, 1.0, 4.0], on_invalid="skip")
    assert result.updated.tolist() == [a] and result.missing.tolist() == [b] and result.rejected.tolist() == [c]
    assert [m.loss for m in memory.metadata([a, c])] == [4.0, 3.0]


def test_21_a_late_update_does_not_touch_the_newcomer(open_memory: OpenMemory) -> None:
    """21. Ids are never reused: what was drawn and then evicted is missing, not somebody else."""
    memory = open_memory(capacity=4, eviction="fifo", strategy="uniform")
    memory.extend(rows(4), loss=1.0)
    batch = memory.sample(4)
    new = memory.extend(rows(4, 4), loss=2.0)
    before = everything(memory, new)
    result = memory.update(batch, loss=99.0)
    assert result.updated.tolist() == []
    assert result.missing.tolist() == sorted(batch.ids.tolist())
    assert everything(memory, new) == before


def test_21_ids_are_not_reused_after_the_last_one_is_deleted(open_memory: OpenMemory) -> None:
    """21. Neither within a process, nor after a restart, nor when everything is gone."""
    memory = open_memory()
    ids = memory.extend(rows(3))
    memory.delete(ids)
    memory.close()
    again = open_memory()
    assert len(again) == 0
    assert again.add(row(0)) == ids[-1] + 1


# Data fidelity


def test_25_stats_have_no_side_effect_and_are_serialisable(open_memory: OpenMemory) -> None:
    """25. Not even on the generator, empty memories included."""
    for buffer in ("empty", "full"):
        memory = open_memory(buffer=buffer)
        if buffer == "full":
            memory.extend(rows(20), domain=["a", "b"] * 10, loss=[None, 1.0] * 10)
        revision, state = memory.stats().revision, str(memory.rng.bit_generator.state)
        for exact in (False, True):
            document = json.loads(json.dumps(memory.stats(exact=exact).to_dict(), allow_nan=False))
            assert document["buffer_size"] == len(memory)
        assert memory.stats().revision == revision
        assert str(memory.rng.bit_generator.state) == state
    stats = memory.stats()
    assert (stats.buffer_size, stats.capacity, stats.unmeasured, stats.avg_loss) == (20, 1_000_000, 10, 1.0)
    assert stats.domain_distribution == {"a": 10, "b": 10}
    assert stats.strategy == "mixed" and stats.total_replays == 0


def test_26_round_trip(open_memory: OpenMemory) -> None:
    """26. Shape, dtype, nested and ragged fields; test_payloads.py has every dtype."""
    payload = {
        "half": np.array([1.5, -0.0, np.inf, np.nan], np.float16),
        "long": np.array([1, 2], np.longdouble) / 3,
        "flag": np.array([[True], [False]]),
        "deep": {"bytes": b"\x00\xff", "text": "\u00e9\U0001f600", "more": {"u8": np.arange(256, dtype=np.uint8)}},
        "count": 7,
    }
    memory = open_memory()
    copy = {**payload, "half": payload["half"].copy()}  # type: ignore[attr-defined]
    found = memory.get(memory.add(payload)).payload
    for name in ("half", "long", "flag"):
        assert found[name].dtype == payload[name].dtype  # type: ignore[attr-defined]
        np.testing.assert_array_equal(found[name], payload[name])
    assert found["deep"]["bytes"] == b"\x00\xff" and found["deep"]["text"] == "\u00e9\U0001f600"
    assert found["count"] == 7 and type(found["count"]) is int
    found["half"][:] = 0
    np.testing.assert_array_equal(payload["half"], copy["half"])


def test_27_a_loss_update_leaves_the_rest_as_it_was(open_memory: OpenMemory) -> None:
    """27. Peers update columns of a row; here the payload is immutable, and the metadata changes and reads alone."""
    memory = open_memory()
    one = memory.add(row(1), domain="math", level=3, tags=("b", "a"), key="k", extra={"a": [1, None]}, timestamp=12.5)
    before = memory.get(one)
    memory.update(one, loss=0.5)
    after = memory.get(one)
    assert after.payload["number"] == 1 and (after.payload["x"] == before.payload["x"]).all()
    assert (after.domain, after.level, after.tags, after.key) == ("math", 3, ("b", "a"), "k")
    assert (after.extra, after.timestamp) == ({"a": [1, None]}, 12.5)
    assert before.loss is None and after.loss == 0.5 and after.replay_count == 1
    assert memory.metadata(one) == [memstore.ReplayMetadata(one, 0.5, "math", 12.5, 1, after.last_replayed_at)]
    assert (after.lowest_loss, after.rise, after.age, before.rise) == (0.5, 0.0, 1, None)
    batch = memory.sample(1)
    assert set(batch.keys()) == set(dict(batch)) == {"x", "number"}
    assert {name: value is batch[name] for name, value in batch.items()} == {"x": True, "number": True}
    with pytest.raises(TypeError, match="not iterable"):  # over rows, or over fields?
        iter(batch)  # type: ignore[call-overload]


def test_28_a_dtype_conflict_is_refused(open_memory: OpenMemory) -> None:
    """28. Nothing is cast silently, nothing written."""
    memory = open_memory()
    memory.add(row(0))
    for bad in (
        {"x": np.zeros(4, np.float64), "number": 1},
        {"x": np.zeros(4, np.float32), "number": 1.0},
        {"x": np.zeros(4, np.float32), "number": "1"},
        {"x": np.zeros(4, np.float32)},
        {"x": np.zeros(4, np.float32), "number": 1, "more": 2},
    ):
        with pytest.raises(PayloadError):
            memory.add(bad)
    with pytest.raises(PayloadError, match=r"astype\('float32'\)"):
        memory.add({"x": np.zeros(4), "number": 1})
    assert len(memory) == 1 and memory.stats().total_inserted == 1


def test_28_a_shape_conflict_is_refused_with_the_way_to_declare_it_ragged(open_memory: OpenMemory) -> None:
    """28. A peer turns the column ragged; memstore keeps the signature, and the message has the line that helps."""
    memory = open_memory(buffer="fixed")
    memory.add({"tokens": np.arange(3, dtype=np.int32)})
    with pytest.raises(PayloadError) as refusal:
        memory.add({"tokens": np.arange(5, dtype=np.int32)})
    advice = "signature={'tokens': ('int32', (None,))}"
    assert advice in str(refusal.value)
    ragged = open_memory(buffer="ragged", signature={"tokens": ("int32", (None,))})
    for n in (3, 5, 0):
        ragged.add({"tokens": np.arange(n, dtype=np.int32)})
    batch = ragged.sample(3, strategy="uniform")
    assert sorted(len(tokens) for tokens in batch["tokens"]) == [0, 3, 5]
    padded, mask = memstore.pad(batch["tokens"])
    assert padded.shape == mask.shape == (3, 5) and mask.sum() == 8


@pytest.mark.parametrize("way", ["delete", "evict", "retain", "replay", "shrink"])
def test_29_the_payload_goes_with_its_episode(open_memory: OpenMemory, sql: Sql, way: str) -> None:
    """29. Peers count references to shared payloads; here every episode has its own, gone with the next fold."""
    memory = open_memory(capacity=5, eviction="fifo", max_replays=1 if way == "replay" else None)
    ids = memory.extend(rows(5), tags=["t"], loss=1.0, timestamp=[1.0, 1.0, 1.0, 100.0, 100.0])
    if way == "delete":
        memory.delete(ids[:3])
    elif way == "evict":
        memory.extend(rows(3, 5))
    elif way == "retain":
        memory.consolidate(memstore.RetentionPolicy(max_age=50.0), now=120.0)
    elif way == "replay":
        memory.update(ids[:3], loss=1.0)
    else:
        memory.configure(capacity=2)
    memory.fold()
    for table, column in (("payload", "episode_id"), ("episode", "id"), ("episode_tag", "episode_id")):
        left = {i for (i,) in sql(f"SELECT {column} FROM {table}")}
        assert not left & set(ids[:3].tolist()), table
        assert set(ids[3:].tolist()) <= left, table
    for gone in ids[:3].tolist():
        with pytest.raises(EpisodeNotFound):
            memory.get(gone)


def test_29_room_is_used_again(
    open_memory: OpenMemory, tidy: Callable[[], None], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """29. A full memory whose history is bounded does not grow on disk however long it runs."""
    monkeypatch.setattr(folding, "SMALLEST_WINDOW", 400)  # until the log crosses it, empty blocks stay
    memory = open_memory(capacity=50, eviction="fifo", history=memstore.History(max_events=100))
    sizes = []
    for turn in range(6):
        for _ in range(10):
            memory.extend({"x": np.full((25, 1000), turn, np.float64)})
        memory.fold()
        sizes.append(sum(size for part, size in memory.stats().bytes_on_disk.items() if part != "wal"))
        tidy()
        memory.close()
        memory = open_memory()
    # What is freed on a server is not all of one piece; on SQLite larger numbers take a byte more. Three turns without
    # it would double the size.
    assert sizes[-1] <= sizes[2] * (1.01 if url.startswith("sqlite") else 1.1)


# Durability


def _continued(url: str, count: int) -> tuple[list[Any], list[list[int]], dict[str, Any]]:
    with memstore.open(url, create=False) as memory:
        assert memory.resumed
        state = memory.load_checkpoint("latest")
        facts = everything(memory, live_ids(memory))
        memory.load_checkpoint("latest")
        return facts, [memory.sample(8).ids.tolist() for _ in range(count)], state


def test_35_a_new_process_continues_exactly(open_memory: OpenMemory, url: str) -> None:
    """35. Items, order, losses, counts, and the next draws with them."""
    memory = open_memory(capacity=30)
    rng = np.random.default_rng(35)
    for turn in range(10):
        memory.extend(rows(5, turn), domain=["a", "b", "a", "b", "c"], loss=rng.random(5), tags=["t"], extra=turn)
        memory.update(memory.sample(4), loss=rng.random(4))
    memory.save_checkpoint("latest", {"step": 10, "weights": np.arange(3.0)})
    state, ids = str(memory.rng.bit_generator.state), live_ids(memory)
    facts = everything(memory, ids)
    assert str(memory.load_checkpoint("latest")["weights"].tolist()) == "[0.0, 1.0, 2.0]"
    assert str(memory.rng.bit_generator.state) == state
    draws = [memory.sample(8).ids.tolist() for _ in range(5)]
    memory.close()
    found, continued, checkpoint = in_child(_continued, url, 5)
    assert found == facts
    assert continued == draws
    assert checkpoint["step"] == 10 and checkpoint["weights"].tolist() == [0.0, 1.0, 2.0]


def test_36_opening_and_loading_twice_duplicates_nothing(open_memory: OpenMemory) -> None:
    """36. Loading a checkpoint restores the trainer's state, and never adds episodes."""
    memory = open_memory()
    ids = memory.extend(rows(5), loss=1.0)
    memory.save_checkpoint("c", {"n": 1})
    facts, revision = everything(memory, ids), memory.stats().revision
    for _ in range(3):
        again = open_memory()
        assert again.resumed
        assert again.load_checkpoint("c") == again.load_checkpoint("c") == {"n": 1}
        assert len(again) == 5 and everything(again, ids) == facts
    assert memory.stats().revision == revision
    assert memory.checkpoints() == ["c"]


def test_37_a_failed_save_leaves_the_previous_state(open_memory: OpenMemory) -> None:
    """37. The old checkpoint loads, and there is no half of the new one."""
    memory = open_memory()
    memory.extend(rows(5), loss=1.0)
    memory.save_checkpoint("c", {"weights": np.arange(5), "step": 1})
    before = str(memory.rng.bit_generator.state)
    for bad in ({"weights": np.arange(9), "step": object()}, {"f": lambda: 0}, {"o": np.array([None])}):
        with pytest.raises(PayloadError):
            memory.save_checkpoint("c", bad)
        with pytest.raises(PayloadError):
            memory.save_checkpoint("new", bad)
    with pytest.raises(RuntimeError, match="power"), memory.transaction():
        memory.save_checkpoint("c", {"weights": np.arange(7), "step": 2})
        memory.save_checkpoint("new", {})
        raise RuntimeError("power")
    assert memory.checkpoints() == ["c"]
    state = memory.load_checkpoint("c")
    assert state["step"] == 1 and state["weights"].tolist() == [0, 1, 2, 3, 4]
    assert str(memory.rng.bit_generator.state) == before


@pytest.mark.parametrize("asset", sorted(ASSETS.glob("v*.db")), ids=lambda asset: asset.name)
def test_38_files_of_every_release_open(asset: Path, tmp_path: Path) -> None:
    """38. A frozen file per schema, made by assets/make.py, reads back whole, and goes on working."""
    copy = shutil.copy(asset, tmp_path / "old.db")
    before = asset.read_bytes()
    upgrade(copy, backup=False)
    with memstore.open(copy, create=False) as memory:
        make.verify(memory, asset.stem.removeprefix("v"))
        make.go_on(memory)
        report = memory.check()
        assert report.ok, report.problems
    assert memstore.buffers(copy)[:2] == ["default", "ragged"]
    with memstore.open(copy, buffer="ragged", create=False) as memory:
        make.verify_ragged(memory)
        assert memory.check().ok
    if "shared" in memstore.buffers(copy):
        with memstore.open(copy, buffer="shared", create=False) as memory:
            make.verify_shared(memory)
            assert memory.check().ok
    if "leaving" in memstore.buffers(copy):
        with memstore.open(copy, buffer="leaving", history=make.HISTORY, create=False) as memory:
            make.verify_leaving(memory)
            assert memory.check().ok
    if "window" in memstore.buffers(copy):
        with memstore.open(copy, buffer="window", create=False) as memory:
            make.verify_window(memory)
            assert memory.check().ok and memory.fold() > 0
            make.verify_window(memory)
            assert memory.check().ok
    assert asset.read_bytes() == before


def test_38_there_is_a_frozen_file_for_every_schema() -> None:
    """38. An empty folder would pass the test above."""
    assert sorted(asset.stem for asset in ASSETS.glob("v*.db")) == [f"v{name}" for name in known_revisions()]


def test_uniform_is_the_reference(open_memory: OpenMemory) -> None:
    """The tests' own chi-square: it accepts the right law and refuses a law that is 10 % off."""
    memory = open_memory(strategy=Uniform())
    ids = memory.extend(rows(10)).tolist()
    counts = drawn(memory, 40_000)
    assert agree(counts, dict.fromkeys(ids, 0.1))
    assert not agree(counts, {i: 0.11 if i % 2 else 0.09 for i in ids})
