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

HEAD = (
    *("id", "first_id", "last_id", "least_loss", "largest_loss", "mean_loss", "weight_sum", "unit", "put", "live"),
    *("unmeasured", "data"),
)

METADATA = ("loss", "lowest_loss", "replay_count", "last_event_id", "last_replayed_at")


def problems(path: str, model: Model, alpha: float) -> list[str]:
    """What is wrong with the index after a fold, from the tables alone."""
    found = []
    with closing(sqlite3.connect(Path(path))) as conn:
        blocks = conn.execute(
            f"SELECT d.name, {', '.join('b.' + name for name in HEAD)} FROM block b JOIN domain d ON d.id = b.domain_id"
        ).fetchall()
        rows = conn.execute(f"SELECT episode_id, {', '.join(METADATA)} FROM replay_metadata").fetchall()
    known = {number: values for number, *values in rows}
    seen: list[int] = []
    for name, *values in blocks:
        head = dict(zip(HEAD, values, strict=True))
        which, content = head["id"], head["data"][4:]
        ids, *columns = np.frombuffer(content, "<i8").reshape(6, -1)
        reals = [column.view(np.float64) if at in (0, 1, 4) else column for at, column in enumerate(columns)]
        losses = reals[0]
        seen += ids.tolist()
        slots = zip(*([None if x != x else x for x in column.tolist()] for column in reals), strict=True)
        if [[*slot[:3], slot[3] or None, slot[4]] for slot in slots] != [known.get(i) for i in ids.tolist()]:
            found.append(f"slots of {which}")
        if {model.live[i].domain for i in ids.tolist()} - {name} or (np.diff(ids, prepend=which - 1) <= 0).any():
            found.append(f"domain or order of {which}")
        measured = losses[~np.isnan(losses)]
        if (head["live"], head["unmeasured"]) != (len(ids), len(ids) - len(measured)) or head["put"] < len(ids):
            found.append(f"counts of {which}")
        bounds = [head["first_id"], head["last_id"], head["least_loss"], head["largest_loss"]]
        expected = [ids.min(initial=2**62), ids.max(initial=0), measured.min(initial=np.inf), measured.max(initial=0)]
        if [b for b in bounds if b is not None] != expected[: 4 if len(measured) else 2 if len(ids) else 0]:
            found.append(f"bounds of {which}")
        total = float(((measured + model.epsilon) ** alpha).sum())
        if not np.isclose(np.ldexp(head["weight_sum"], head["unit"]), total, rtol=1e-9, atol=1e-12):
            found.append(f"weights of {which}")
        if not np.isclose(head["mean_loss"], measured.mean() if len(measured) else 0.0, rtol=1e-12):
            found.append(f"losses of {which}")
    if sorted(seen) != sorted(model.live):
        found.append("live episodes")
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
                memory.fold()
                assert problems(path, model, alpha) == []
                assert memory.check().problems == ()
                assert_same(memory, model)
        memory.fold()
        assert problems(path, model, alpha + 0.1) != []
        memory.configure(alpha=1.5)
        assert problems(path, model, 1.5) == [] and memory.check().problems == ()
    # A handle that starts from the tables goes on alike.
    with memstore.open(path) as memory:
        for _ in range(20):
            act(memory, model, rng, tame=tame)
        memory.fold()
        assert problems(path, model, 1.5) == [] and memory.check().problems == ()
        assert_same(memory, model)


def test_two_handles_take_turns(path: str) -> None:
    """Each refreshes its copy of the blocks by what the other changed."""
    rng = np.random.default_rng(13)
    model = Model(capacity=60, eviction="lowest_loss", seed=5)
    with (
        memstore.open(path, strategy=PrioritizedLoss(1.0), capacity=60, seed=5) as one,
        memstore.open(path, seed=6) as other,
    ):
        for _ in range(150):
            act((one, other)[rng.integers(2)], model, rng)
        one.fold()
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
        memory.fold()
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
