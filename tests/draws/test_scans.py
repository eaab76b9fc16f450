"""How often draws scan: never twice, and not again as long as the history tells what changed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memstore import (
    Condition,
    DomainBalanced,
    EpisodicMemory,
    Mixed,
    PrioritizedLoss,
    PrioritizedRecency,
    Strategy,
    Uniform,
    col,
)
from memstore.draws.conditions import Episodes, is_told
from memstore.queries.columns import AllOf, AnyOf, Not
from memstore.testing import counting
from tests.support.helpers import OpenMemory, rows

STORED = 0.6
"""Exponent of the sums that the buffer keeps."""

STRATEGIES: dict[str, Strategy] = {
    "uniform": Uniform(),
    "loss": PrioritizedLoss(STORED),
    "another alpha": PrioritizedLoss(1.0),
    "recency": PrioritizedRecency(),
    "balanced": DomainBalanced(),
    "mixed": Mixed(),
    "mixed, another alpha": Mixed({PrioritizedLoss(1.0): 0.5, Uniform(): 0.5}),
    "mixed, three that are not stored": Mixed(
        {PrioritizedLoss(1.0): 1, PrioritizedLoss(2.0): 1, "prioritized_recency": 1}
    ),
}
MIXED = {"mixed", "mixed, another alpha", "mixed, three that are not stored"}


def fill(memory: EpisodicMemory, count: int = 600) -> None:
    """Holes among the ids, so that ages have no closed sum; level 0 to 9; every domain as often."""
    rng = np.random.default_rng(1)
    loss = [None if i % 7 == 0 else float(x) for i, x in enumerate(rng.lognormal(size=count))]
    level = [i % 10 for i in range(count)]
    memory.extend(rows(count), loss=loss, level=level, domain=[f"d{i % 3}" for i in range(count)])
    memory.delete([episode.id for episode in memory.query().filter(col.level == 9).all()][::2])


def scans(memory: EpisodicMemory, strategy: Strategy, changed: bool = True, **options: Any) -> list[int]:
    """Of three draws with an update before each but the first."""
    counted = []
    for number in range(3):
        if number and changed:
            memory.update(memory.sample(8, strategy="uniform"), loss=1.0)
        with counting() as counts:
            memory.sample(16, strategy=strategy, **options)
        counted.append(counts.scans)
    return counted


def test_which_strategies_scan(open_memory: OpenMemory) -> None:
    """By themselves none does. A condition on facts is read once, in its first draw."""
    memory = open_memory(strategy=PrioritizedLoss(STORED))
    fill(memory)
    for name, strategy in STRATEGIES.items():
        for beta in (0.0, 0.4):
            memory._sampler._populations.clear()
            assert scans(memory, strategy, beta=beta) == [0, 0, 0], (name, beta)
            assert scans(memory, strategy, beta=beta, where=col.loss > 0.5) == [0, 0, 0], (name, beta)
            memory._sampler._populations.clear()
            assert scans(memory, strategy, beta=beta, where=col.level >= 1) == [1, 0, 0], (name, beta)
            memory._sampler._populations.clear()
            assert scans(memory, strategy, beta=beta, where=col.level == 3) == [1, 0, 0], (name, beta)
        for where in (None, col.level >= 1, col.level == 3, col.loss > 0.5, col.replay_count >= 1, col.age <= 60):
            memory._sampler._populations.clear()
            options: dict[str, Any] = {"exact_probability": True, "beta": 0.4, "where": where}
            found = scans(memory, strategy, **options)
            assert max(found) <= 1 and found[1:] == [0, 0], (name, str(where), found)


def test_without_history_nothing_else_is_scanned(open_memory: OpenMemory) -> None:
    """Lists of ids follow the newcomers, and blocks tell what has left."""
    memory = open_memory(strategy=PrioritizedLoss(STORED))
    fill(memory)
    memory.configure(history=None)
    for name in sorted(MIXED - {"mixed"}):
        memory._sampler._populations.clear()
        assert scans(memory, STRATEGIES[name], beta=0.4) == [0, 0, 0]
        assert scans(memory, STRATEGIES[name], beta=0.4, where=col.level >= 1) == [1, 0, 0]
        memory._sampler._populations.clear()
        with memory.transaction():  # keeps nothing for the next draw
            assert scans(memory, STRATEGIES[name], beta=0.4, where=col.level >= 1) == [1, 1, 1]


def test_what_rows_tell_is_asked_of_no_table(open_memory: OpenMemory) -> None:
    """Conditions on loss, age, id and replays; few pass some of them, and the list follows the history then."""
    memory = open_memory(strategy=PrioritizedLoss(STORED))
    fill(memory)
    memory.update(memory.sample(40), loss=2.0)
    memory.sample(16, where=col.replay_count >= 1)  # everything is known from here on
    for where in (col.replay_count >= 1, col.age <= 30, col.id <= 25, (col.loss > 1) | (col.domain == "d1")):
        memory.update(memory.sample(8), loss=3.0)
        with counting() as counts:
            some, every = memory.sample(16, where=where), memory.sample(10**6, where=where)
        assert counts.scans == 0
        passing = {episode.id for episode in memory.query().filter(where).all()}
        assert set(some.ids.tolist()) <= passing == set(every.ids.tolist())


LEAVES: tuple[Condition, ...] = (
    col.loss > 0.8,
    col.loss <= 1,
    col.loss.is_missing(),
    col.loss.is_known(),
    col.loss == 2.0,
    col.loss.in_([2.0, 3]),
    col.replay_count >= 1,
    col.replay_count < 0.5,
    col.replay_count.in_([1, 2.0, 7.5]),
    col.age <= 100,
    col.age > 99.5,
    col.id <= 40,
    col.id.in_([3, 5, 2**61]),
    col.domain == "d1",
    col.domain.in_(["d0", "nowhere"]),
    col.domain > "d0",
)


def test_rows_tell_what_the_databases_would(open_memory: OpenMemory) -> None:
    memory = open_memory()
    fill(memory, 200)
    memory.update([1, 2, 3, 1], loss=2.0)
    rng = np.random.default_rng(3)

    def some(depth: int) -> Condition:
        if depth == 0:
            return LEAVES[int(rng.integers(len(LEAVES)))]
        kind = (AllOf, AnyOf, Not)[int(rng.integers(3))]
        return Not(some(depth - 1)) if kind is Not else kind((some(depth - 1), some(depth - 1)))  # type: ignore[arg-type]

    conditions = [*LEAVES, *(~leaf for leaf in LEAVES), *(some(int(rng.integers(1, 4))) for _ in range(60))]
    everything = memory.query().all()
    names = sorted({episode.domain for episode in everything})
    for condition in conditions:
        assert is_told(condition)
        episodes = Episodes(
            np.array([episode.id for episode in everything]),
            np.array([np.nan if episode.loss is None else episode.loss for episode in everything]),
            np.array([episode.replay_count for episode in everything]),
            np.array([names.index(episode.domain) + 1 for episode in everything]),
        )
        told = episodes.ids[episodes.passing(condition, 200, names)].tolist()
        assert told == sorted(episode.id for episode in memory.query().filter(condition).all()), str(condition)


@pytest.mark.parametrize("where", [col.level == 3, col.level >= 1], ids=str)
def test_an_older_list_serves_newcomers_and_not_older_snapshots(open_memory: OpenMemory, where: Condition) -> None:
    """Episodes that came since are asked for alone; what a rolled-back transaction added is forgotten."""
    memory, other = open_memory(strategy="uniform"), open_memory()
    fill(memory)
    for _ in range(3):
        memory.sample(30, where=where)
    for start in range(0, 60, 20):
        other.extend(rows(20), level=[3] * 20)
        try:
            with memory.transaction():
                memory.extend(rows(5), level=0)
                assert all(memory.get(int(i)).level != 0 for i in memory.sample(30, where=where).ids)
                raise ZeroDivisionError
        except ZeroDivisionError:
            pass
        other.extend(rows(5), level=3)
        with counting() as counts:
            drawn = {int(i) for _ in range(8) for i in memory.sample(30, where=where).ids}
        assert counts.scans == 0 and drawn <= {e.id for e in memory.query().filter(where).all()}
        assert max(drawn) > 600 + start
