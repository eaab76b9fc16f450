"""Draws behind a condition: what a process knows of those that pass follows the log, whoever writes it."""

from __future__ import annotations

import pickle
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest

import memstore
from memstore import (
    Batch,
    Condition,
    DomainBalanced,
    EpisodicMemory,
    History,
    InvalidValue,
    MemoryEmpty,
    Mixed,
    PrioritizedLoss,
    PrioritizedRecency,
    RetentionPolicy,
    WaitTimeout,
    col,
)
from memstore.draws.knowledge import KEPT, RENEWED
from memstore.testing import Counts, counting
from tests.support.helpers import Child, OpenMemory, in_child, row, rows

EVERYTHING = 10**6
WHERE = col.level == 1
PROMPT = col.extra["prompt"].number


def add(memory: EpisodicMemory, rng: np.random.Generator, count: int) -> None:
    """Newcomers, one in four of level 1; some never measured."""
    extra = [{"prompt": int(p)} if p else None for p in rng.integers(6, size=count)]
    domain = [f"d{i}" for i in rng.integers(3, size=count)]
    loss = [None if x < 0.3 else float(x) for x in rng.lognormal(size=count)]
    level = [int(i == 0) for i in rng.integers(4, size=count)]
    memory.extend(rows(count), extra=extra, domain=domain, loss=loss, level=level)


def passing(memory: EpisodicMemory, where: Condition = WHERE, **options: Any) -> dict[int, tuple[str, str]]:
    """Domain and loss of all that a filtered draw gives, by id."""
    try:
        batch = memory.sample(EVERYTHING, where=where, **options)
    except MemoryEmpty:
        return {}
    assert len(set(batch.ids.tolist())) == len(batch)
    found = zip(batch.ids.tolist(), batch.domain.tolist(), batch.loss.tolist(), strict=True)
    return {i: (domain, repr(loss)) for i, domain, loss in found}


def asked(memory: EpisodicMemory, where: Condition = WHERE) -> dict[int, tuple[str, str]]:
    """The same by a query, which keeps nothing."""
    found = memory.query().filter(where).all()
    return {e.id: (e.domain, repr(float("nan") if e.loss is None else e.loss)) for e in found}


def some(memory: EpisodicMemory) -> list[Any]:
    """Small draws whose every bit depends on what is known, and the generator afterwards."""
    told: list[Any] = []
    ways: tuple[Callable[[], Batch], ...] = (
        lambda: memory.sample(3, where=WHERE),
        lambda: memory.sample(3, where=WHERE & (col.loss > 0.5), strategy="uniform"),
        lambda: memory.sample(4, where=WHERE, replacement=True, strategy=PrioritizedRecency(1.0)),
        lambda: memory.sample(3, where=WHERE, strategy="domain_balanced"),
        lambda: memory.sample(5, where=~WHERE, strategy=PrioritizedLoss(1.2)),
        lambda: memory.sample(
            3, where=~WHERE, strategy=Mixed({PrioritizedLoss(1.2): 1, PrioritizedRecency(1.0): 1}), beta=0.4
        ),
        lambda: memory.sample(2, where=col.replay_count >= 1, strategy=PrioritizedLoss(0.7)),
        lambda: memory.sample(3, where=(col.loss <= 1.5) & WHERE & (col.age <= 90), beta=0.4),
        lambda: memory.sample(4, strategy=Mixed({PrioritizedLoss(1.2): 1, "domain_balanced": 1}), beta=0.4),
        lambda: memory.sample_groups(2, 2, by=PROMPT, strategy="prioritized_loss"),
        lambda: memory.sample_groups(2, 2, by=col.domain, where=WHERE),
    )
    for draw in ways:
        try:
            batch = draw()
        except MemoryEmpty:
            told.append(None)
            continue
        known = None if batch.probability is None else batch.probability.tolist()
        told.append((batch.ids.tolist(), repr(batch.loss.tolist()), known, batch.weight.tolist()))
    return [*told, memory.rng.bit_generator.state]


def agrees(warm: EpisodicMemory, cold: EpisodicMemory) -> None:
    """Draw from what was followed and from what is read now: alike, and what a query finds."""
    cold._sampler._knowledge.clear()
    assert passing(warm) == passing(cold) == asked(cold)
    cold.rng.bit_generator.state = warm.rng.bit_generator.state
    cold._sampler._knowledge.clear()
    assert some(warm) == some(cold)


@pytest.fixture
def reads() -> Iterator[Counts]:
    """Counts how often the episodes that pass were read by a query over all (``scans``)."""
    with counting() as counts:
        yield counts


# What is known follows the log.


class _RollbackError(Exception):
    pass


def step(memory: EpisodicMemory, rng: np.random.Generator, kind: str) -> None:
    """One random change of this kind."""
    ids = np.array(sorted(e.id for e in memory.query().all()), np.int64)
    few = rng.choice(ids, size=min(len(ids), 5), replace=False) if len(ids) else ids
    match kind:
        case "add":
            add(memory, rng, int(rng.integers(1, 12)))
        case "update":
            twice = np.concatenate([few, few[:2]])
            memory.update(twice, loss=rng.lognormal(size=len(twice)))
        case "delete":
            memory.delete(few[:3])
        case "consolidate":
            memory.consolidate(RetentionPolicy(max_episodes=max(len(ids) - 4, 1)))
        case "transaction":
            with memory.transaction():
                step(memory, rng, "add")
                some(memory)
                step(memory, rng, "update")
                assert passing(memory) == asked(memory)
        case "rollback":
            with suppress(_RollbackError), memory.transaction():
                step(memory, rng, str(rng.choice(["add", "update", "delete"])))
                assert passing(memory) == asked(memory)
                raise _RollbackError
        case "savepoint":
            with memory.transaction():
                step(memory, rng, "update")
                with suppress(_RollbackError), memory.transaction():
                    step(memory, rng, "delete")
                    step(memory, rng, "add")
                    assert passing(memory) == asked(memory)
                    raise _RollbackError
                assert passing(memory) == asked(memory)
                step(memory, rng, "add")


KINDS = ("add", "update", "delete", "consolidate", "transaction", "rollback", "savepoint")
HISTORIES: dict[str, tuple[History | None, ...]] = {
    "all": (History(),),
    "none": (None,),
    "switched": (None, History(), History(0.5), History(), History(max_events=4)),
}


@pytest.mark.parametrize("history", HISTORIES)
def test_random_histories(open_memory: OpenMemory, history: str) -> None:
    """Written by two handles, in and out of transactions; small capacity, so that episodes are evicted too."""
    rng = np.random.default_rng(list(HISTORIES).index(history))
    policies = HISTORIES[history]
    memory = open_memory(capacity=90, eviction="lowest_loss", max_replays=6, strategy="prioritized_loss")
    other = open_memory()
    memory.configure(history=policies[0])
    add(memory, rng, 80)
    for number in range(10):
        if len(policies) > 1:
            other.configure(history=policies[number % len(policies)])
        writer = (memory, other)[int(rng.integers(2))]
        step(writer, rng, str(rng.choice(KINDS)))
        agrees(memory, other)
    fresh = open_memory()
    assert passing(fresh) == passing(memory)


def elsewhere(url: str, seed: int) -> None:
    """Changes by another process."""
    with memstore.open(url, create=False) as memory:
        rng = np.random.default_rng(seed)
        for kind in KINDS:
            step(memory, rng, kind)


def test_another_process_writes(open_memory: OpenMemory, url: str, reads: Counts) -> None:
    rng = np.random.default_rng(5)
    memory = open_memory(capacity=1000)
    add(memory, rng, 800)
    passing(memory)
    in_child(elsewhere, url, 6)
    before = reads.scans
    assert passing(memory) == asked(memory) and reads.scans == before
    agrees(memory, open_memory())


def test_what_is_followed_and_what_is_read_anew(open_memory: OpenMemory, reads: Counts) -> None:
    """A list is read once, and newcomers are added to it, whatever the history records."""
    rng = np.random.default_rng(7)
    memory, other = open_memory(capacity=400), open_memory()
    add(memory, rng, 400)

    def mine(count: int) -> list[int]:
        return sorted(asked(memory))[:count]

    def recorded_and_forgotten() -> None:
        memory.update(mine(5), loss=0.7)
        memory.update(mine(1), loss=0.6)  # groups of events go as a whole, and the newest stays
        other.configure(history=History(max_events=1))

    changes: list[tuple[str, Callable[[], Any], int]] = [
        ("nothing known yet", lambda: None, 1),
        ("nothing new", lambda: None, 0),
        ("updates by another", lambda: other.update(mine(10), loss=3.0), 0),
        ("deleted", lambda: memory.delete(mine(4)), 0),
        ("evicted", lambda: add(other, rng, 20), 0),
        ("consolidated", lambda: memory.consolidate(RetentionPolicy(max_episodes=370)), 0),
        ("resized", lambda: memory.configure(capacity=350), 0),
        ("resized again", lambda: other.configure(capacity=400), 0),
        ("leased", lambda: other.lease(5, where=WHERE), 0),
        ("off", lambda: other.configure(history=None), 0),
        ("off, only newcomers", lambda: add(memory, rng, 3), 0),
        ("off, deleted", lambda: memory.delete(mine(2)), 0),
        ("off, updated", lambda: other.update(mine(2), loss=0.25), 0),
        ("on", lambda: other.configure(history=History()), 0),
        ("on, updated", lambda: memory.update(mine(2), loss=0.75), 0),
        ("more than one in four", lambda: add(memory, rng, 120), 0),
        ("nothing new again", lambda: None, 0),
        ("half", lambda: other.configure(history=History(0.5)), 0),
        ("half, updated", lambda: memory.update(mine(20), loss=0.5), 0),
        ("whole", lambda: other.configure(history=History()), 0),
        ("recorded, then forgotten", recorded_and_forgotten, 0),
        ("short, updated", lambda: memory.update(mine(5), loss=0.8), 0),
    ]
    for what, change, anew in changes:
        change()
        with counting() as counts:
            assert passing(memory) == asked(other), what
        assert counts.scans == anew, what
    before = reads.scans
    passing(open_memory())
    assert reads.scans == before + 1, "another handle knows nothing of this one's"


def test_what_a_transaction_wrote_is_not_kept(open_memory: OpenMemory, reads: Counts) -> None:
    memory = open_memory()
    add(memory, np.random.default_rng(8), 200)
    before = passing(memory)
    with suppress(_RollbackError), memory.transaction():
        memory.update(sorted(before)[:3], loss=8.0)
        memory.delete(sorted(before)[3:5])
        memory.add(row(0), level=1, loss=1.0)
        inside = passing(memory)
        assert inside == asked(memory) and len(inside) == len(before) - 1
        with suppress(_RollbackError), memory.transaction():
            memory.delete(sorted(before)[5:9])
            assert len(passing(memory)) == len(inside) - 4
            raise _RollbackError
        assert passing(memory) == inside
        raise _RollbackError
    assert passing(memory) == before and reads.scans == 1
    # The same number of events and newcomers as were undone, and others.
    memory.update(sorted(before)[5:8], loss=9.0)
    memory.delete(sorted(before)[:2])
    memory.add(row(0), level=0, loss=1.0)
    assert passing(memory) == asked(memory) and len(passing(memory)) == len(before) - 2
    assert reads.scans == 1


def test_what_was_used_last_is_kept(open_memory: OpenMemory, reads: Counts) -> None:
    memory = open_memory()
    add(memory, np.random.default_rng(9), 200)
    conditions = [(col.level == 1) & (col.timestamp > i) for i in range(KEPT + 1)]
    for condition in (*conditions[:KEPT], *conditions[:KEPT]):
        passing(memory, condition)
    assert reads.scans == KEPT
    passing(memory, conditions[KEPT])  # the first one goes
    for condition in conditions[1:]:
        passing(memory, condition)
    assert reads.scans == KEPT + 1
    passing(memory, conditions[0])
    assert reads.scans == KEPT + 2


def test_conditions_that_read_alike_are_told_apart(open_memory: OpenMemory) -> None:
    """By the type that a place in ``extra`` is asked for, and by the column of groups."""
    memory = open_memory()
    values: list[Any] = [1, "1", True, 2.5, "x", False, None]
    memory.extend(rows(70), extra=[{"v": value} for value in values * 10])
    place = col.extra["v"]
    for _ in range(2):
        for column, count in ((place.number, 20), (place.text, 20), (place.flag, 20), (place, 60)):
            assert len(passing(memory, column.is_known())) == count
            assert len(passing(memory, column.is_missing())) == 70 - count
            assert len(passing(memory, column.is_known() & (col.id > 35))) == count // 2
        for column in (place.number, place.text, place.flag):
            batch = memory.sample_groups(9, 10, by=column)
            assert sorted(batch.ids.tolist()) == sorted(passing(memory, column.is_known()))


def test_labels_of_groups_that_are_gone_are_forgotten(open_memory: OpenMemory) -> None:
    memory = open_memory(capacity=40)
    for start in range(0, 320, 8):
        memory.extend(rows(8), extra=[{"prompt": (start + i) // 2} for i in range(8)])
        batch = memory.sample_groups(40, 2, by=PROMPT)
        assert len(batch) == len(memory)
        (kept,) = memory._sampler._knowledge._lists.values()
        assert len(kept.numbers) <= len(kept.ids) / 2 + 1 <= (RENEWED + 1) * 40 / 2 + 5


# Handles, threads, processes.


def life(memory: EpisodicMemory, between: Callable[[EpisodicMemory, int], EpisodicMemory]) -> list[Any]:
    """Everything drawn in between writes that are the same for every seed."""
    rng = np.random.default_rng(11)
    add(memory, rng, 120)
    told = []
    for number, kind in enumerate(("add", "update", "transaction", "rollback", "delete", "consolidate")):
        step(memory, rng, kind)
        memory = between(memory, number)
        told += some(memory)
    return told


def as_it_is(memory: EpisodicMemory, _: int) -> EpisodicMemory:
    return memory


def test_same_seed_same_draws(open_memory: OpenMemory, path: str) -> None:
    """Whatever a handle knew before: one that forgets, is pickled, or is resumed draws as one that followed."""

    copies: list[EpisodicMemory] = []

    def forget(memory: EpisodicMemory, _: int) -> EpisodicMemory:
        memory._sampler._knowledge.clear()
        return memory

    def pickled(memory: EpisodicMemory, number: int) -> EpisodicMemory:
        if number % 3:
            return memory
        copy: EpisodicMemory = pickle.loads(pickle.dumps(memory))  # noqa: S301
        copy.rng.bit_generator.state = memory.rng.bit_generator.state
        memory.close()
        copies.append(copy)
        return copy

    def resumed(memory: EpisodicMemory, number: int) -> EpisodicMemory:
        if number % 3:
            return memory
        memory.save_checkpoint("latest", {})
        memory.close()
        memory = open_memory(buffer="resumed", seed=999)
        memory.load_checkpoint("latest")
        return memory

    def known(told: list[Any]) -> list[Any]:
        """Ids count from the first of the buffer."""
        return [
            item if item is None or isinstance(item, dict) else ([i % 2**40 for i in item[0]], *item[1:])
            for item in told
        ]

    with memstore.open(path + ".reference", seed=7) as memory:
        reference = known(life(memory, as_it_is))
    assert sum(item is None for item in reference) < len(reference) / 4
    for name, between in {"plain": as_it_is, "forget": forget, "pickled": pickled, "resumed": resumed}.items():
        assert known(life(open_memory(buffer=name), between)) == reference, name
    for copy in copies:
        copy.close()


def test_threads_share_what_is_known(open_memory: OpenMemory) -> None:
    memory, writer = open_memory(capacity=300), open_memory()
    memory.extend(rows(300), level=[int(i % 4 == 1) for i in range(300)], loss=1.0)
    wrong: list[Any] = []
    ended = threading.Event()

    def draw() -> None:
        while not ended.is_set():
            batch = memory.sample(5, where=WHERE, strategy="prioritized_loss")
            if (batch.payload["number"] % 4 != 1).any() or len(batch) < 5:
                wrong.append(batch)

    threads = [threading.Thread(target=draw) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for start in range(300, 380, 8):
            writer.extend(rows(8, start), level=[int(i % 4 == 1) for i in range(start, start + 8)], loss=2.0)
            writer.update(sorted(asked(writer))[:5], loss=3.0)
    finally:
        ended.set()
        for thread in threads:
            thread.join(30)
    assert not wrong
    agrees(memory, writer)


def _in_fork(memory: EpisodicMemory) -> tuple[bool, int]:
    same = passing(memory) == asked(memory)
    memory.update(sorted(asked(memory))[:4], loss=7.0)
    memory.delete(sorted(asked(memory))[4:6])
    return same and passing(memory) == asked(memory), len(memory._sampler._knowledge._lists)


def test_a_forked_child_begins_anew(open_memory: OpenMemory, reads: Counts) -> None:
    memory = open_memory()
    add(memory, np.random.default_rng(12), 200)
    passing(memory)
    some(memory)
    assert Child(_in_fork, memory, method="fork").result() == (True, 1)
    before = reads.scans
    assert passing(memory) == asked(memory)
    assert reads.scans == before
    assert {loss for _, loss in passing(memory).values()} >= {"7.0"}


# Waiting, leases, refusals.


def test_waiting_counts_those_that_pass(open_memory: OpenMemory) -> None:
    memory, actor = open_memory(), open_memory()
    memory.extend(rows(20), level=0)
    memory.add(row(20), level=1)
    begun = time.monotonic()
    with pytest.raises(WaitTimeout):
        memory.sample(3, where=WHERE, wait=0.1)
    assert time.monotonic() - begun > 0.1
    assert len(memory.sample(1, where=WHERE, wait=0.1)) == 1

    def act() -> None:
        time.sleep(0.1)
        actor.extend(rows(5), level=0)
        actor.extend(rows(2), level=1)

    thread = threading.Thread(target=act)
    thread.start()
    batch = memory.sample(3, where=WHERE, wait=30)
    thread.join()
    assert sorted(batch.ids.tolist()) == sorted(asked(memory)) and len(batch) == 3
    with pytest.raises(InvalidValue, match="capacity"):
        memory.sample(10**7, where=WHERE, wait=1)


def test_leases_of_those_that_pass(open_memory: OpenMemory) -> None:
    memory, other = open_memory(consumer="one"), open_memory(consumer="two")
    memory.extend(rows(40), level=[int(i % 10 == 0) for i in range(40)])
    held = memory.lease(3, where=WHERE)
    assert len(held) == 3 and set(held.ids.tolist()) < set(asked(memory))
    rest = other.lease(3, where=WHERE)
    assert sorted([*held.ids.tolist(), *rest.ids.tolist()]) == sorted(asked(memory))
    with pytest.raises(MemoryEmpty, match="level = 1"):
        other.lease(1, where=WHERE)
    with pytest.raises(WaitTimeout):
        other.lease(1, where=WHERE, wait=0.1)
    assert len(other.lease(50, where=~WHERE)) == 36
    memory.update(held, loss=1.0)
    assert sorted(other.lease(9, where=WHERE, wait=5).ids.tolist()) == sorted(held.ids.tolist())
    assert len(memory.sample(9, where=WHERE)) == 4, "sample does not look at leases"


@pytest.mark.parametrize(
    "where",
    [True, False, "loss >> 2", 3, col.loss, [col.loss > 2], lambda episode: True, col.step > 2, ~(col.loss_after < 1)],
    ids=lambda value: type(value).__name__,
)
def test_what_is_no_condition_on_episodes_is_refused(path: str, where: Any) -> None:
    """Before anything is drawn, or even looked at."""
    with memstore.open(path, seed=1) as memory:
        for filled in (False, True):
            if filled:
                memory.extend(rows(5))
            before = memory.rng.bit_generator.state
            with pytest.raises(InvalidValue):
                memory.sample(2, where=where)
            with pytest.raises(InvalidValue):
                memory.sample(2, where=where, wait=0.1)
            with pytest.raises(InvalidValue):
                memory.sample_groups(2, 2, where=where)
            with pytest.raises(InvalidValue):
                memory.lease(2, where=where)
            assert memory.rng.bit_generator.state == before


@pytest.mark.parametrize("by", [col.loss, col.age, col.step, col.tags, "domain", col.extra["v"], None], ids=str)
def test_groups_are_by_what_never_changes(path: str, by: Any) -> None:
    with memstore.open(path, seed=1) as memory:
        memory.extend(rows(5), extra={"v": 1})
        before = memory.rng.bit_generator.state
        with pytest.raises(InvalidValue):
            memory.sample_groups(1, 1, by=by)
        assert memory.rng.bit_generator.state == before


STRATEGIES = (
    "uniform",
    PrioritizedLoss(0.3),
    PrioritizedRecency(1.0),
    DomainBalanced(),
    Mixed(),
)


@pytest.mark.parametrize(
    ("where", "text"),
    [
        (col.domain == "it's", "domain = 'it''s'"),
        (col.domain.in_([]), r"domain in \(\)"),
        ((col.loss < 0) | (col.age > 100), "loss < 0 or age > 100"),
        (col.tags.has("hard"), "tags has 'hard'"),
    ],
    ids=str,
)
def test_nothing_passes(open_memory: OpenMemory, where: Condition, text: str) -> None:
    """An error that says what was asked for, by every strategy; the generator stays where it was."""
    memory = open_memory()
    with pytest.raises(MemoryEmpty):
        memory.sample(3, where=where)
    memory.extend(rows(30), domain=["a", "b", "c"] * 10, loss=1.0)
    before = memory.rng.bit_generator.state
    for strategy in STRATEGIES:
        for options in ({}, {"replacement": True}, {"exact_probability": True, "beta": 0.5}):
            with pytest.raises(MemoryEmpty, match=text):
                memory.sample(3, where=where, strategy=strategy, **options)
        with pytest.raises(MemoryEmpty, match=text):
            memory.lease(3, where=where, strategy=strategy)
    with pytest.raises(MemoryEmpty):
        memory.sample_groups(3, 2, where=where)
    assert memory.rng.bit_generator.state == before


def test_a_condition_may_exclude_the_weighted_domains(open_memory: OpenMemory) -> None:
    """Then they give nothing, like a component of a mix that has nothing left; without the condition it is an error."""
    memory = open_memory(seed=2)
    memory.extend(rows(30), domain=["a", "b", "c"] * 10, loss=1.0, level=[0, 1, 1] * 10)
    only = DomainBalanced({"a": 1.0})
    mixed = Mixed({only: 0.5, "uniform": 0.5})
    for where in (col.domain == "b", col.level == 1, col.domain.in_(["b", "c"]) & (col.loss > 0)):
        before = memory.rng.bit_generator.state
        for options in ({}, {"beta": 0.5, "exact_probability": True}, {"replacement": True}):
            with pytest.raises(MemoryEmpty, match="domain_balanced can draw where"):
                memory.sample(3, where=where, strategy=only, **options)
        with pytest.raises(MemoryEmpty):
            memory.sample_groups(3, 2, where=where, strategy=only)
        assert memory.rng.bit_generator.state == before
        batch = memory.sample(8, where=where, strategy=mixed, beta=0.5, exact_probability=True)
        passes = memory.query().filter(where).count()
        assert len(batch) == 8 and set(batch.domain.tolist()) <= {"b", "c"}
        np.testing.assert_allclose(np.asarray(batch.probability), 0.5 / passes, rtol=1e-12)
        np.testing.assert_allclose(np.asarray(batch.weight), 1.0, rtol=1e-12)
    memory.lease(10, duration=1e6, strategy=only)
    with pytest.raises(MemoryEmpty, match="10 are leased"):
        memory.lease(1, duration=1e6, strategy=only)
    with pytest.raises(memstore.ConfigError, match="none of the weighted"):
        memory.sample(3, strategy=DomainBalanced({"z": 1.0}))


def test_ten_thousand_domains(open_memory: OpenMemory) -> None:
    memory = open_memory(seed=3)
    count = 10_000
    memory.extend({"number": np.arange(count)}, domain=[f"d{i:05}" for i in range(count)], loss=np.arange(count) / 100)
    chosen = [f"d{i:05}" for i in range(0, count, 100)]
    for where, wanted in (
        (col.domain.in_([*chosen, "never"]), set(range(0, count, 100))),
        (col.domain >= "d09990", set(range(9990, count))),
        (col.domain.in_(chosen) & (col.loss > 50), set(range(5100, count, 100))),
        (~(col.domain < "d09998") & (col.id > 0), {9998, 9999}),
    ):
        every = memory.sample(EVERYTHING, where=where, strategy="uniform", exact_probability=True)
        assert set(every.payload["number"].tolist()) == wanted and len(every) == len(wanted)
        np.testing.assert_allclose(np.asarray(every.probability), 1 / len(wanted), rtol=1e-12)
        for strategy in STRATEGIES:
            batch = memory.sample(16, where=where, strategy=strategy)
            assert set(batch.payload["number"].tolist()) <= wanted and len(batch) == min(16, len(wanted))
    groups = memory.sample_groups(10, 1, where=col.domain.in_(chosen))
    assert len(set(groups.domain.tolist())) == 10 and set(groups.domain.tolist()) <= set(chosen)


def test_a_draw_that_found_nothing_is_not_counted(open_memory: OpenMemory) -> None:
    memory = open_memory(limiter=memstore.SamplesPerInsert(1.0, min_size=1), seed=1)
    memory.extend({"x": np.arange(8)}, level=1)
    for _ in range(2):
        with pytest.raises(memstore.MemoryEmpty, match="level = 9"):
            memory.sample(4, where=col.level == 9)
    assert memory.stats().limiter is not None and memory.stats().limiter["drawn"] == 0  # type: ignore[index]
    assert len(memory.sample(4, wait=5)) == 4
