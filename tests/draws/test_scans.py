"""What draws behind conditions ask of the database: the facts, once; slots and blocks tell the rest."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memstore import (
    Condition,
    DomainBalanced,
    EpisodicMemory,
    MemoryEmpty,
    Mixed,
    PrioritizedLoss,
    PrioritizedRecency,
    Strategy,
    Uniform,
    col,
)
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.draws.conditions import is_told, passes, reach, resolved
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
            memory._sampler._knowledge.clear()
            assert scans(memory, strategy, beta=beta) == [0, 0, 0], (name, beta)
            assert scans(memory, strategy, beta=beta, where=col.loss > 0.5) == [0, 0, 0], (name, beta)
            memory._sampler._knowledge.clear()
            assert scans(memory, strategy, beta=beta, where=col.level >= 1) == [1, 0, 0], (name, beta)
            memory._sampler._knowledge.clear()
            assert scans(memory, strategy, beta=beta, where=col.level == 3) == [1, 0, 0], (name, beta)
        for where in (None, col.level >= 1, col.level == 3, col.loss > 0.5, col.replay_count >= 1, col.age <= 60):
            memory._sampler._knowledge.clear()
            options: dict[str, Any] = {"exact_probability": True, "beta": 0.4, "where": where}
            found = scans(memory, strategy, **options)
            assert max(found) <= 1 and found[1:] == [0, 0], (name, str(where), found)


def test_without_history_nothing_else_is_scanned(open_memory: OpenMemory) -> None:
    """Lists of ids follow the newcomers, and blocks tell what has left."""
    memory = open_memory(strategy=PrioritizedLoss(STORED))
    fill(memory)
    memory.configure(history=None)
    for name in sorted(MIXED - {"mixed"}):
        memory._sampler._knowledge.clear()
        assert scans(memory, STRATEGIES[name], beta=0.4) == [0, 0, 0]
        assert scans(memory, STRATEGIES[name], beta=0.4, where=col.level >= 1) == [1, 0, 0]
        memory._sampler._knowledge.clear()
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


EXACT = 2.0**53
"""From here on, not every whole number is a float."""

TOLD: tuple[Condition, ...] = (
    col.loss > 0.8,
    col.loss <= 1,
    col.loss.is_missing(),
    col.loss.is_known(),
    col.loss == 2.0,
    col.loss == 2**53 + 1,
    col.loss < 2**53 + 1,
    col.loss >= 2**53 + 1,
    col.loss.in_([2.0, 3, 2**53 + 1]),
    col.loss.in_([]),
    col.lowest_loss <= 0.7,
    col.lowest_loss.is_missing(),
    col.lowest_loss == 2.0,
    col.rise > 0,
    col.rise == 0,
    col.rise <= 0.1,
    col.rise.is_missing(),
    col.last_replayed_at.is_known(),
    col.last_replayed_at > 0,
    col.last_replayed_at.in_([0]),
    col.replay_count >= 1,
    col.replay_count < 0.5,
    col.replay_count.in_([1, 2.0, 7.5]),
    col.replay_count > -1e300,
    col.replay_count.is_missing(),
    col.age <= 100,
    col.age > 99.5,
    col.age == 7,
    col.age == 7.5,
    col.age.in_([5, 6.0, 6.5, -(2**62)]),
    col.age > -(2**63),
    col.age.is_missing(),
    col.id <= 40,
    col.id.in_([3, 5, 2**61]),
    col.id.is_known(),
    col.domain == "d1",
    col.domain.in_(["d0", "nowhere"]),
    col.domain > "d0",
    col.domain.is_missing(),
)
"""Slots and blocks decide these."""

FACTS: tuple[Condition, ...] = (
    col.level == 3,
    col.level.is_missing(),
    col.tags.has("odd"),
    col.timestamp > 50,
    col.extra["v"].number > 20,
    col.extra["v"].number.is_missing(),
)
"""Lists of ids decide these."""


def varied(memory: EpisodicMemory, count: int) -> None:
    """Every kind of missing value, losses that no other float is near, and episodes that left."""
    rng = np.random.default_rng(1)
    loss = [None if i % 7 == 0 else float(x) for i, x in enumerate(rng.lognormal(size=count))]
    memory.extend(
        rows(count),
        loss=loss,
        level=[i % 10 or None for i in range(count)],
        domain=[f"d{i % 3}" for i in range(count)],
        tags=[["odd"] if i % 2 else [] for i in range(count)],
        timestamp=np.arange(count).astype(float),
        extra=[{"v": (i % 40, "text", None)[i % 3]} for i in range(count)],
    )
    memory.update([1, 2, 3, 1, 4, 5, 6, 8], loss=[2.0, 2.0, 2.0, 2.0, EXACT, EXACT + 2, EXACT - 1, 0.0])
    memory.update(rng.choice(count, 30) + 1, loss=rng.lognormal(size=30))
    memory.delete(np.arange(9, count, 11))


def any_of(leaves: tuple[Condition, ...], rng: np.random.Generator, depth: int) -> Condition:
    """A random condition of this depth."""
    if depth == 0:
        return leaves[int(rng.integers(len(leaves)))]
    kind = (AllOf, AnyOf, Not)[int(rng.integers(3))]
    if kind is Not:
        return Not(any_of(leaves, rng, depth - 1))
    return kind(tuple(any_of(leaves, rng, depth - 1) for _ in range(int(rng.integers(2, 4)))))  # type: ignore[arg-type]


def drawn(memory: EpisodicMemory, where: Condition) -> list[int]:
    """Ids of all that a draw finds behind a condition."""
    try:
        return sorted(memory.sample(10**6, strategy="uniform", where=where).ids.tolist())
    except MemoryEmpty:
        return []


def test_draws_find_what_queries_find(open_memory: OpenMemory) -> None:
    """Alone, as the complement, and in any combination: a missing value passes no comparison, and ~ is exact."""
    memory = open_memory()
    varied(memory, 300)
    rng = np.random.default_rng(3)
    replayed = memory.query().filter(col.last_replayed_at.is_known()).order_by(col.last_replayed_at)
    times = [row.at for row in replayed.select(at=col.last_replayed_at)]
    middle = times[len(times) // 2]
    leaves = (*TOLD, *FACTS, col.last_replayed_at >= middle, col.last_replayed_at == middle)
    conditions = [*leaves, *(Not(leaf) for leaf in leaves)]
    conditions += [any_of(leaves, rng, int(rng.integers(1, 4))) for _ in range(80)]
    found = 0
    for where in conditions:
        expected = sorted(memory.query().filter(where).ids().tolist())
        assert drawn(memory, where) == expected, str(where)
        found += 0 < len(expected) < len(memory)
    assert found > 100, "most conditions tell episodes apart"


def test_slots_are_asked_and_not_the_database(open_memory: OpenMemory) -> None:
    """A condition costs a draw no statement, after the lists of its facts were read."""
    memory = open_memory(strategy="uniform")
    varied(memory, 300)
    memory.sample(5)

    def statements(where: Condition | None) -> int:
        with counting() as counts:
            memory.sample(5, where=where)
        assert counts.scans == 0
        return counts.statements

    plain = statements(None)
    for where in (
        col.loss > 0.5,
        col.rise <= 0,
        col.last_replayed_at > 0,
        col.replay_count < 1,
        col.age <= 200,
        col.id > 5,
        col.domain != "d0",
    ):
        assert statements(where) == plain, str(where)
    for where in ((col.level == 3) | (col.loss > 1), Not((col.tags.has("odd")) & (col.loss < 1))):
        memory.sample(5, where=where)
        assert statements(where) == plain, str(where)


def test_heads_bound_what_slots_tell(open_memory: OpenMemory) -> None:
    """A block that may hold nobody has nobody who passes, and a whole one nobody who fails."""
    memory = open_memory()
    varied(memory, 1500)
    rng = np.random.default_rng(4)
    decided = 0

    def check(snapshot: Snapshot, where: Condition) -> int:
        copy, names = snapshot.state.blocks, snapshot.state.domain_names
        condition = resolved(where, snapshot.newest_possible())
        assert is_told(condition)
        some, every = reach(condition, copy.heads, names)
        for block in range(len(copy)):
            slots = copy.open(np.array([block])).slots
            flags = passes(condition, Rows.of(slots, np.full(len(slots), copy.domains[block])), names)
            assert some[block] or not flags.any(), str(where)
            assert not every[block] or flags.all(), str(where)
        return int((~some | every).sum())

    for where in (*TOLD, *(any_of(TOLD, rng, int(rng.integers(1, 4))) for _ in range(60))):
        decided += memory._session.read(lambda snapshot, where=where: check(snapshot, where))  # type: ignore[misc]
    assert decided > 300, "else heads tell nothing"


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
