"""The sampling index after random histories: every invariant, and every stored sum against a scan with plain SQL."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from copy import deepcopy
from pathlib import Path

import numpy as np
import pytest

import memstore
from memstore import PrioritizedLoss
from tests.episodes.test_eviction import assert_same
from tests.support.models import Model, act, payload

UNMEASURED = -32768


def problems(path: str, model: Model, alpha: float) -> list[str]:
    """What is wrong with the index, from the tables alone."""
    found = []
    with closing(sqlite3.connect(Path(path))) as conn:
        strata = conn.execute(
            "SELECT s.id, d.name, s.bucket, s.count, s.weight_sum, s.loss_sum "
            "FROM stratum s JOIN domain d ON d.id = s.domain_id"
        ).fetchall()
        rows = conn.execute("SELECT stratum_id, position, episode_id, loss FROM replay_metadata").fetchall()
    inside: dict[int, list[tuple[int, int, float | None]]] = {stratum[0]: [] for stratum in strata}
    for stratum_id, position, episode_id, loss in rows:
        inside[stratum_id].append((position, episode_id, loss))
    for stratum_id, name, bucket, count, weight_sum, loss_sum in strata:
        held = inside[stratum_id]
        if sorted(p for p, _, _ in held) != list(range(count)):
            found.append(f"positions of {stratum_id}")
        losses = [loss for _, _, loss in held if loss is not None]
        if len(losses) != (0 if bucket == UNMEASURED else count):
            found.append(f"measured and not in {stratum_id}")
        if {model.live[i].domain for _, i, _ in held} - {name}:
            found.append(f"domain of {stratum_id}")
        bound = 2.0 ** (bucket / 2)
        ratio = np.array([(loss + model.epsilon) / bound for loss in losses])
        if (ratio > 1 + 1e-12).any():
            found.append(f"bound of {stratum_id}")
        # A row moves when it stands two buckets too high.
        if (ratio <= 0.5 * (1 - 1e-12)).any():
            found.append(f"slack of {stratum_id}")
        expected = float((ratio**alpha).sum()) if bucket != UNMEASURED else float(count)
        if not np.isclose(weight_sum, expected, rtol=1e-9, atol=1e-12):
            found.append(f"weights of {stratum_id}: {weight_sum} for {expected}")
        if bucket != UNMEASURED and not np.isclose(loss_sum, sum(losses) / bound, rtol=1e-9, atol=1e-12):
            found.append(f"losses of {stratum_id}")
    return found


@pytest.mark.parametrize("policy", ["fifo", "lowest_loss"])
@pytest.mark.parametrize(("alpha", "tame"), [(0.6, False), (2.0, True)])
def test_random_histories(path: str, policy: str, alpha: float, tame: bool) -> None:
    rng = np.random.default_rng(12)
    model = Model(capacity=60, eviction=policy, epsilon=1e-3, seed=4)
    with memstore.open(
        path, strategy=PrioritizedLoss(alpha), epsilon=1e-3, capacity=60, eviction=policy, seed=4
    ) as memory:
        for step in range(150):
            act(memory, model, rng, tame=tame)
            if step % 50 == 49:
                assert problems(path, model, alpha) == []
                assert memory.check().problems == ()
                assert_same(memory, model)
        assert problems(path, model, alpha + 0.1) != []
        memory.configure(alpha=1.5)
        assert problems(path, model, 1.5) == [] and memory.check().problems == ()
    # A handle that starts from the tables goes on alike.
    with memstore.open(path) as memory:
        for _ in range(20):
            act(memory, model, rng, tame=tame)
        assert problems(path, model, 1.5) == [] and memory.check().problems == ()
        assert_same(memory, model)


def test_two_handles_take_turns(path: str) -> None:
    """Each refreshes its copy of the strata by what the other changed."""
    rng = np.random.default_rng(13)
    model = Model(capacity=60, eviction="lowest_loss", seed=5)
    with (
        memstore.open(path, strategy=PrioritizedLoss(1.0), capacity=60, seed=5) as one,
        memstore.open(path, seed=6) as other,
    ):
        for _ in range(150):
            act((one, other)[rng.integers(2)], model, rng)
        assert problems(path, model, 1.0) == []
        assert one.check().problems == other.check().problems == ()
        assert_same(one, model)
        assert_same(other, model)


def test_what_a_rolled_back_transaction_did_is_gone(path: str) -> None:
    rng = np.random.default_rng(14)
    model = Model(capacity=60, eviction="lowest_loss", seed=5)
    with memstore.open(path, strategy=PrioritizedLoss(1.0), capacity=60, seed=5) as memory:
        for _ in range(40):
            act(memory, model, rng)
            with pytest.raises(ZeroDivisionError), memory.transaction():
                ghost = deepcopy(model)
                act(memory, ghost, np.random.default_rng(1))
                assert len(memory) == len(ghost.live)
                raise ZeroDivisionError
        assert problems(path, model, 1.0) == [] and memory.check().problems == ()
        assert_same(memory, model)


def test_the_highest_priority_counts_every_loss_of_an_update(path: str) -> None:
    """An id given twice is two measurements, of which the last stays; the log holds both, and so must the maximum."""
    with memstore.open(path, strategy=PrioritizedLoss(1.0), epsilon=0.5, seed=7) as memory:
        memory.extend(payload(3), loss=[1.0, 1.0, None])
        memory.update([1, 1], loss=[8.5, 2.5])
        assert memory.stats().max_priority == 9.0
        batch = memory.sample(3)
        assert batch.probability is not None
        by_id = dict(zip(batch.ids.tolist(), batch.probability.tolist(), strict=True))
        assert by_id == pytest.approx({1: 3 / 13.5, 2: 1.5 / 13.5, 3: 9 / 13.5})
