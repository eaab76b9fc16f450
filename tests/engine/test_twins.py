"""Twins of a program see the same to the last bit, whoever writes and folds, on whichever database."""

from __future__ import annotations

import functools
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import memstore
from memstore import EpisodicMemory
from memstore.testing import counting
from tests.engine.elsewhere import Elsewhere
from tests.engine.program import Seen, ending, here, turn
from tests.support.helpers import OpenMemory
from tests.support.windows import small_waiting, window

FULL = os.environ.get("MEMSTORE_TORTURE") == "full"
TURNS = 60 if FULL else 14
SEEDS = range(6) if FULL else range(1)

KINDS = {8: "lowest_loss", 90: "fifo", 1000: "reservoir"}
"""Eviction policies by the windows that are tried: folds in every write, in every turn or so, and once or twice."""

kinds = pytest.mark.parametrize("entries", KINDS)
seeds = pytest.mark.parametrize("seed", SEEDS)


def settings(entries: int) -> dict[str, Any]:
    """Settings of the buffer, and the seed of the program's draws."""
    return {"capacity": 150, "eviction": KINDS[entries], "seed": 5, "strategy": "prioritized_loss", "max_replays": 30}


@functools.cache
def alone(entries: int, seed: int) -> list[Any]:
    """What one handle on a file sees that nobody else has open."""
    with (
        tempfile.TemporaryDirectory() as folder,
        window(entries),
        memstore.open(Path(folder) / "alone.db", **settings(entries)) as memory,
    ):
        return run(memory, seed)


def run(
    memory: EpisodicMemory,
    seed: int,
    call: Callable[..., Any] | None = None,
    between: Callable[[EpisodicMemory, int], EpisodicMemory] = lambda memory, number: memory,
) -> list[Any]:
    """Run the program. ``between`` two turns the handle may be exchanged for another one."""
    seen: list[Seen] = []
    for number in range(TURNS):
        memory = between(memory, number)
        seen.append(turn(memory, number, seed, call or here(memory)))
    return [*seen, ending(memory)]


@pytest.fixture
def small(entries: int) -> Iterator[None]:
    """The window of this test."""
    with window(entries):
        yield


@kinds
@seeds
def test_on_both_databases(open_memory: OpenMemory, small: None, entries: int, seed: int) -> None:
    assert run(open_memory(**settings(entries)), seed) == alone(entries, seed)


@kinds
@seeds
@pytest.mark.parametrize("cache_bytes", [0, 30_000])
def test_without_caches(open_memory: OpenMemory, small: None, entries: int, seed: int, cache_bytes: int) -> None:
    assert run(open_memory(**settings(entries), cache_bytes=cache_bytes), seed) == alone(entries, seed)


@kinds
@seeds
def test_reopened(open_memory: OpenMemory, small: None, entries: int, seed: int) -> None:
    """At random points. The generator goes on where the checkpoint left it."""
    dice = random.Random(seed)

    def reopened(memory: EpisodicMemory, number: int) -> EpisodicMemory:
        if dice.random() < 0.5:
            memory.save_checkpoint("run", {})
            if dice.random() < 0.7:  # a handle that is not closed leaves its log to the next
                memory.close()
            memory = open_memory(cache_bytes=dice.choice((0, 2**20)), seed=dice.randrange(99))
            memory.load_checkpoint("run")
        return memory

    assert run(open_memory(**settings(entries)), seed, between=reopened) == alone(entries, seed)


@kinds
@seeds
def test_shared_with_another_process(
    open_memory: OpenMemory, url: str, small: None, elsewhere: Elsewhere, entries: int, seed: int
) -> None:
    """Which adds, updates, consolidates and folds in this one's place; and others look on."""
    dice = random.Random(seed)
    memory, other = open_memory(**settings(entries)), open_memory()
    elsewhere.call("window", entries)
    elsewhere.call("open", url, seed=1)

    def call(name: str, *arguments: Any, **options: Any) -> Any:
        there = dice.random() < 0.7
        if dice.random() < 0.3:
            other.sample(3, where="domain = 'd1'")
        if dice.random() < 0.3:
            elsewhere.call("fold")
        return elsewhere.call(name, *arguments, **options) if there else getattr(memory, name)(*arguments, **options)

    assert run(memory, seed, call) == alone(entries, seed)
    assert elsewhere.call("check").problems == other.check().problems == ()
    elsewhere.call("close")


@kinds
@seeds
def test_folded_at_any_time(open_memory: OpenMemory, small: None, entries: int, seed: int) -> None:
    """By this handle and by another one."""
    dice = random.Random(seed)
    memory, other = open_memory(**settings(entries)), open_memory(cache_bytes=0)

    def folded(memory: EpisodicMemory, number: int) -> EpisodicMemory:
        dice.choice((memory, other)).fold()
        assert other.check().problems == ()
        return memory

    assert run(memory, seed, between=folded) == alone(entries, seed)


@pytest.mark.parametrize("size", [1, 3000])
@kinds
@seeds
def test_folded_because_payloads_wait(
    open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch, small: None, entries: int, seed: int, size: int
) -> None:
    """Which depends on the sizes of payloads, and so must not change what is drawn."""
    small_waiting(monkeypatch, size)
    memory = open_memory(**settings(entries))
    with counting() as counts:
        assert run(memory, seed) == alone(entries, seed)
    assert counts.folds > (TURNS if size == 1 else 2)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@kinds
@seeds
def test_whole_turns_in_a_block_and_forked(open_memory: OpenMemory, small: None, entries: int, seed: int) -> None:
    """A block around a turn changes nothing. A child that takes the generator over goes on like its parent."""
    memory = open_memory(**settings(entries))
    expected = alone(entries, seed)
    half = TURNS // 2
    for number in range(half):
        with memory.transaction():
            assert turn(memory, number, seed, here(memory)) == expected[number]
            memory.save_checkpoint("run", {})
    pid = os.fork()
    if not pid:
        status = 1
        try:
            memory.load_checkpoint("run")
            seen = [turn(memory, n, seed, here(memory)) for n in range(half, TURNS)]
            status = 0 if [*seen, ending(memory)] == expected[half:] else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert ending(memory)[:3] == expected[-1][:3]


def test_the_twins_can_be_told_apart() -> None:
    """Other windows merge other blocks, and other seeds are other programs."""
    assert alone(8, 0)[:-1] != alone(90, 0)[:-1]
