"""Consolidation: importance by its formula, near-identical payloads by brute force, a dry run by the run."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from memstore import ConfigError, EpisodicMemory, RetentionPolicy
from tests.support.helpers import OpenMemory, live_ids, rows

TWINS = RetentionPolicy(consolidate_similar=1e-3)


def both(memory: EpisodicMemory, policy: RetentionPolicy) -> Any:
    """Consolidate, and hold the dry run before to what the run does."""
    planned = memory.consolidate(policy, dry_run=True)
    done = memory.consolidate(policy)
    assert replace(planned, dry_run=False) == done
    assert memory.check().ok
    assert done.kept == len(memory)
    return done


# importance


def importance(loss: float | None, age: int, replays: int, policy: RetentionPolicy, capacity: int) -> float:
    """The docstring's formula, in plain Python."""
    hardness = 1.0 if loss is None else loss / (1 + loss)
    recency = 2 ** -(age / (policy.half_life or capacity))
    use = replays / (1 + replays)
    total = policy.hardness * hardness + policy.recency * recency + policy.use * use
    return total / (policy.hardness + policy.recency + policy.use)


@pytest.mark.parametrize(
    "policy",
    [
        RetentionPolicy(),
        RetentionPolicy(hardness=1, recency=0, use=0),
        RetentionPolicy(hardness=0, recency=1, use=0, half_life=7.0),
        RetentionPolicy(hardness=0, recency=0, use=3),
        RetentionPolicy(hardness=2, recency=5, use=1, half_life=20.0),
    ],
)
def test_the_least_important_leave(open_memory: OpenMemory, policy: RetentionPolicy) -> None:
    memory = open_memory(capacity=60)
    open_memory(buffer="other").extend(rows(9))
    rng = np.random.default_rng(4)
    losses: list[float | None] = [None if i % 7 == 0 else float(x) for i, x in enumerate(rng.lognormal(0, 2, 50))]
    ids = memory.extend(rows(50), loss=losses).tolist()
    replays = dict.fromkeys(ids, 0)
    for _ in range(5):
        for episode_id in (chosen := rng.choice(ids, 12, replace=False).tolist()):
            replays[episode_id] += 1
        memory.update(chosen, loss=[losses[i - 1] or 0.5 for i in chosen])
    losses = [row.loss for row in memory.metadata(ids)]

    value = {i: importance(losses[i - 1], 50 - i, replays[i], policy, 60) for i in ids}
    ranked = sorted(ids, key=lambda i: (value[i], i))
    # Between two values that differ, so that no rounding decides.
    cut = next(n for n in range(10, 50) if value[ranked[n]] - value[ranked[n - 1]] > 1e-9)
    threshold = (value[ranked[cut - 1]] + value[ranked[cut]]) / 2
    done = both(memory, replace(policy, min_importance=threshold))
    assert (done.unimportant, done.over_count) == (cut, 0)
    assert live_ids(memory) == sorted(ranked[cut:])
    assert both(memory, replace(policy, max_episodes=8)).over_count == 42 - cut
    assert live_ids(memory) == sorted(ranked[42:])
    assert len(open_memory(buffer="other")) == 9


def test_the_default_blends(open_memory: OpenMemory) -> None:
    """An old, easy, much replayed episode outlives an old, easy one; so does a new one; so does a hard one."""
    memory = open_memory(capacity=4)
    ids = memory.extend(rows(4), loss=[0.1, 0.1, 5.0, 0.1]).tolist()
    memory.update([ids[1]] * 5, loss=0.1)
    order = []
    for keep in (3, 2, 1):
        before = set(live_ids(memory))
        memory.consolidate(RetentionPolicy(max_episodes=keep))
        order += sorted(before - set(live_ids(memory)))
    assert order[0] == ids[0]


@pytest.mark.parametrize(
    "policy",
    [
        RetentionPolicy(hardness=-1),
        RetentionPolicy(hardness=0, recency=0, use=0),
        RetentionPolicy(recency=math.nan),
        RetentionPolicy(use=math.inf),
        RetentionPolicy(half_life=0),
        RetentionPolicy(consolidate_similar=1.0),
        RetentionPolicy(consolidate_similar=-0.1),
        RetentionPolicy(consolidate_similar="yes"),  # type: ignore[arg-type]
    ],
)
def test_bad_policies_are_refused(open_memory: OpenMemory, policy: RetentionPolicy) -> None:
    memory = open_memory()
    memory.extend(rows(3))
    with pytest.raises(ConfigError):
        memory.consolidate(policy)
    assert len(memory) == 3


# near-identical payloads


def brute_force(points: np.ndarray[Any, Any], domain: list[str], labels: list[int], tolerance: float) -> list[int]:
    """Rows that stay, most important first: one by one, each compared with all that were kept."""
    kept: list[int] = []
    for row in range(len(points)):
        norms = np.linalg.norm(points, axis=1)
        if not any(
            domain[row] == domain[other]
            and labels[row] == labels[other]
            and np.linalg.norm(points[row] - points[other]) <= tolerance * max(norms[row], norms[other])
            for other in kept
        ):
            kept.append(row)
    return kept


@pytest.mark.parametrize("tolerance", [0.0, 1e-3, 0.05, 0.4])
@pytest.mark.parametrize("size", [1, 6])
def test_twins_are_those_of_brute_force(open_memory: OpenMemory, tolerance: float, size: int) -> None:
    rng = np.random.default_rng(size)
    memory = open_memory()
    seeds = rng.standard_normal((25, size)) * rng.lognormal(0, 2, (25, 1))
    # Around each seed at distances on both sides of the tolerance, and exact copies.
    near = [seeds * (1 + f * max(tolerance, 1e-4) * rng.uniform(-1, 1, seeds.shape)) for f in (0.5, 1, 1.5, 3)]
    points = rng.permutation(np.concatenate([seeds, seeds[:10], *near]))
    domain = [f"d{i}" for i in rng.integers(0, 2, len(points))]
    labels = rng.integers(0, 2, len(points)).tolist()
    # Importance falls with the id, so that the order is that of the rows.
    ids = memory.extend({"x": points, "y": np.array(labels)}, domain=domain, loss=np.linspace(9, 1, len(points)))
    policy = RetentionPolicy(consolidate_similar=tolerance, hardness=1, recency=0, use=0)
    expected = brute_force(points, domain, labels, tolerance)
    done = both(memory, policy)
    assert live_ids(memory) == [int(ids[row]) for row in expected]
    assert done.similar == len(points) - len(expected) > 0
    assert both(memory, policy).similar == 0
    wrong = brute_force(points, domain, labels, max(2 * tolerance, 1e-3))
    assert wrong != expected, "a tolerance off by a factor of two would show"


def test_the_most_important_stays_and_ties_go_to_the_oldest(open_memory: OpenMemory) -> None:
    memory = open_memory()
    same = np.tile([1.0, 2.0], (6, 1))
    memory.extend({"x": same}, loss=[1.0, 3.0, None, 2.0, 2.0, None], domain=list("aaabba"))
    memory.consolidate(RetentionPolicy(consolidate_similar=True, hardness=1, recency=0, use=0))
    assert live_ids(memory) == [3, 4]


@pytest.mark.parametrize(
    ("one", "other", "twins"),
    [
        ({"x": 1.0, "label": 3}, {"x": 1.0, "label": 4}, False),
        ({"x": 1.0, "text": "a"}, {"x": 1.0, "text": "b"}, False),
        ({"x": 1.0, "raw": b"a"}, {"x": 1.0, "raw": b"a\0"}, False),
        ({"x": 1.0, "flag": True}, {"x": 1.0, "flag": False}, False),
        ({"x": 1.0, "text": "a"}, {"x": 1.0 + 1e-6, "text": "a"}, True),
        ({"x": math.nan}, {"x": math.nan}, True),
        ({"x": math.nan}, {"x": 1.0}, False),
        ({"x": math.inf}, {"x": -math.inf}, False),
        ({"x": 0.0}, {"x": 0.0}, True),
        ({"x": np.complex128(1 + 1j)}, {"x": np.complex128(1 + 1.0001j)}, True),
        ({"x": np.complex128(1 + 1j)}, {"x": np.complex128(1 - 1j)}, False),
        ({"x": np.float16(1)}, {"x": np.float16(1.001)}, True),
        ({"only": 3}, {"only": 3}, True),
        ({"only": 3}, {"only": 4}, False),
        ({"n": {"a": [1.0, 5.0]}}, {"n": {"a": [1.0, 5.0001]}}, True),
    ],
)
def test_what_counts_as_near(open_memory: OpenMemory, one: Any, other: Any, twins: bool) -> None:
    def payload(values: dict[str, Any]) -> dict[str, Any]:
        return {
            k: payload(v) if isinstance(v, dict) else np.array(v) if isinstance(v, list) else v
            for k, v in values.items()
        }

    memory = open_memory()
    memory.add(payload(one))
    memory.add(payload(other))
    assert both(memory, TWINS).similar == twins


def test_ragged_payloads_are_near_only_at_one_length(open_memory: OpenMemory) -> None:
    memory = open_memory(signature={"x": ("float64", (None,))})
    memory.extend({"x": [np.array([1.0, 2.0]), np.array([1.0, 2.0, 0.0]), np.array([1.0, 2.0001])]})
    assert both(memory, TWINS).similar == 1


def test_many_equal_payloads_are_quick(open_memory: OpenMemory) -> None:
    """10,000 equal ones and 2,000 nearly so: the pairs are not counted out."""
    memory = open_memory()
    x = np.ones((12_000, 4))
    x[10_000:] += np.random.default_rng(1).uniform(0, 1e-5, (2_000, 4))
    memory.extend({"x": x})
    assert both(memory, TWINS).similar == 11_999


def test_reasons_are_disjoint_and_in_order(open_memory: OpenMemory) -> None:
    """A twin whose leader leaves for another reason stays."""
    memory = open_memory()
    x = np.array([[1.0], [1.0], [2.0], [2.0], [3.0], [4.0], [5.0]])
    memory.extend({"x": x}, timestamp=[0, 90, 90, 90, 90, 90, 90], loss=[9, 5, 5, 5, 4, 0.01, 3])
    policy = RetentionPolicy(
        max_age=50, min_importance=0.1, consolidate_similar=True, max_episodes=3, hardness=1, recency=0, use=0
    )
    done = memory.consolidate(policy, now=100)
    assert (done.too_old, done.unimportant, done.similar, done.over_count, done.kept) == (1, 1, 1, 1, 3)
    assert live_ids(memory) == [2, 3, 5]


def test_inside_a_transaction_its_own_episodes_count(open_memory: OpenMemory) -> None:
    memory = open_memory()
    memory.extend({"x": np.ones((2, 3))})
    with pytest.raises(KeyboardInterrupt), memory.transaction():
        memory.extend({"x": np.ones((2, 3))})
        assert memory.consolidate(TWINS).similar == 3
        raise KeyboardInterrupt
    assert len(memory) == 2
    assert memory.check().ok


def test_an_empty_memory(open_memory: OpenMemory) -> None:
    assert both(open_memory(), RetentionPolicy(1.0, 3, 0.5, True)).removed == 0
