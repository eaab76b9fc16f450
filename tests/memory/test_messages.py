"""No message grows with what was given, and what is wrong is told at once."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

import memstore
from memstore import MemstoreError, PayloadError, RetentionPolicy, StoreCorrupt, col
from memstore.errors import MAX_MESSAGE, bounded
from memstore.values.shown import listed, shown
from tests.support.helpers import OpenMemory, row, rows


class Loud:
    """Whose ``__repr__`` nobody may call."""

    def __repr__(self) -> str:
        raise AssertionError("shown")


def deep() -> list[Any]:
    """A list in a list in a list ..."""
    value: list[Any] = []
    for _ in range(100_000):
        value = [value]
    return value


HUGE: list[Any] = [
    "x" * 100_000,
    "\ud800" * 5_000,
    b"x" * 100_000,
    10**5_000,
    ["name" * 100] * 4_000,
    {f"field {i}" * 20: i for i in range(4_000)},
    {"k" * 100_000: 1},
    deep(),
    np.zeros((100, 10, 10)),
    np.array(["x" * 10_000] * 10),
    np.array([[None]], object),
    {"x": deep()},
    Loud(),
    [Loud()],
    type("T" * 5_000, (), {})(),
]


def calls(memory: Any, value: Any) -> Iterator[Callable[[], Any]]:
    """Every public call with the value in every place."""
    known = memory.sample(1).ids
    for keyword in ("domain", "loss", "timestamp", "level", "tags", "key", "extra", "wait"):
        yield partial(memory.add, row(1), **{keyword: value})
        yield partial(memory.extend, rows(2), **{keyword: value})
    for call in (memory.add, memory.extend):
        yield partial(call, value)
        yield partial(call, {"x": value, "number": 1})
        yield partial(call, {"y": value})
    yield lambda: memory.update(value, loss=1.0)
    yield lambda: memory.update(known, loss=value)
    yield lambda: memory.update(known, loss=1.0, step=value)
    yield lambda: memory.update(known, loss=1.0, on_invalid=value)
    yield lambda: memory.delete(value)
    yield lambda: memory.get(value)
    yield lambda: memory.get_many(value)
    yield lambda: memory.consolidate(value)
    yield lambda: memory.consolidate(RetentionPolicy(max_age=value))
    yield lambda: memory.consolidate(RetentionPolicy(), now=value)
    yield lambda: memory.sample(value)
    for keyword in ("beta", "wait", "where", "strategy", "alpha", "normalize"):
        yield partial(memory.sample, 1, **{keyword: value})
    yield lambda: memory.lease(1, duration=value)
    yield lambda: memory.recall_temporal(value, 1)
    yield lambda: memory.recall_by_tags(value)
    yield lambda: memory.recall_by_tags(["a"], match=value)
    yield lambda: memory.recall(value, on="x")
    yield lambda: memory.recall(np.zeros(4), on=value)
    yield lambda: memory.ids_of(value)
    yield lambda: memory.load_checkpoint(value)
    yield lambda: memory.save_checkpoint(value, {"a": 1})
    yield lambda: memory.save_checkpoint("c", value)
    yield lambda: memory.save_checkpoint("c", {"a": {"b": value}, "c": Loud()})
    yield lambda: memory.history(since=value)
    yield lambda: memory.history(steps=value)
    for name in ("capacity", "strategy", "alpha", "eviction", "max_replays", "limiter", "history"):
        yield partial(memory.configure, **{name: value})
    for column in (col.timestamp, col.domain, col.level, col.loss, col.extra["a"]):
        yield partial(operator.eq, column, value)
        yield partial(column.in_, [value])
    yield lambda: col.tags.has(value)


PATIENCE = 2.0


@pytest.mark.parametrize("number", range(len(HUGE)))
def test_messages_are_bounded(open_memory: OpenMemory, number: int) -> None:
    """Whatever is given, wherever: it is taken, or refused in at most 500 characters, soon."""
    memory = open_memory(capacity=100)
    memory.extend(rows(5), loss=1.0)
    value = HUGE[number]
    for call in calls(memory, value):
        begun = time.perf_counter()
        try:
            call()
        except MemstoreError as exc:
            assert len(str(exc)) <= MAX_MESSAGE == 500
            assert len(str(exc).encode(errors="replace")) <= 4 * MAX_MESSAGE
        assert time.perf_counter() - begun < PATIENCE


def test_open_names_what_is_wrong_shortly(open_memory: OpenMemory) -> None:
    wide = {f"field {i}" * 5: ("float32", (3,)) for i in range(4_000)}
    memory = open_memory(buffer="wide", signature=wide)
    arguments: dict[str, Any] = {"signature": {**wide, "x": float}, "buffer": "wide"}
    for _ in range(2):
        begun = time.perf_counter()
        with pytest.raises(MemstoreError) as caught:
            open_memory(**arguments)
        assert len(str(caught.value)) <= 500 and time.perf_counter() - begun < 5
        arguments = {"buffer": "b" * 2_000}
    begun = time.perf_counter()
    for call in (memory.add, memory.extend):
        for payload in (
            {f"other {i}": [1.0] for i in range(4_000)},
            {name: [[1.0]] for name in wide},
            {name: np.zeros((1, 4), np.float32) for name in wide},
        ):
            with pytest.raises(PayloadError) as refused:
                call(payload)
            assert len(str(refused.value)) <= 500
    assert (time.perf_counter() - begun) / 6 < 0.5
    with pytest.raises(PayloadError, match=r"missing: 'field 0.* and 3,997 more, unknown: 'other 0'.*and 3,997 more"):
        memory.add({f"other {i}": [1.0] for i in range(4_000)})


def test_many_checkpoints_are_not_all_named(open_memory: OpenMemory) -> None:
    memory = open_memory()
    with memory.transaction():
        for number in range(30):
            memory.save_checkpoint(f"{number:03}" * 100, {"a": 1})
    with pytest.raises(memstore.CheckpointNotFound, match=r"no checkpoint 'none' .*and 25 more") as caught:
        memory.load_checkpoint("none")
    assert len(str(caught.value)) <= 500


def test_a_message_keeps_its_beginning_and_its_end() -> None:
    text = bounded("what is wrong " + "x" * 10_000 + " what to do")
    assert len(text) == 500 and text.startswith("what is wrong") and text.endswith("what to do") and " ... " in text
    assert len(str(MemstoreError("y" * 501))) == 500 and str(MemstoreError("y" * 500)) == "y" * 500
    assert len(str(StoreCorrupt("z" * 600, episode_id=1))) == 500 and str(MemstoreError()) == ""


@pytest.mark.parametrize("value", HUGE, ids=lambda value: type(value).__name__[:10])
def test_shown_is_short(value: Any) -> None:
    assert len(shown(value)) <= 140 and len(listed([value] * 4_000)) <= 1_000


@pytest.mark.parametrize(("name", "value"), [("strategy", memstore.Uniform), ("eviction", memstore.Fifo)])
def test_a_class_in_place_of_an_object_is_named(open_memory: OpenMemory, name: str, value: Any) -> None:
    memory = open_memory()
    setting: dict[str, Any] = {name: value}
    with pytest.raises(
        memstore.ConfigError, match=rf"the class {value.__name__}; expected .* such as {value.__name__}\(\)"
    ):
        memory.configure(**setting)
    with pytest.raises(memstore.ConfigError, match="or None for off, got the class History"):
        memory.configure(history=memstore.History)  # type: ignore[arg-type]
    assert shown(memstore.Uniform) == "the class Uniform"


def test_a_count_is_refused_under_the_name_of_its_argument(open_memory: OpenMemory) -> None:
    memory = open_memory()
    for name, call in (
        ("count", lambda: memory.sample(0)),
        ("count", lambda: memory.lease(0)),
        ("n", lambda: memory.hardest(0)),
        ("n", lambda: memory.most_replayed(0)),
        ("n", lambda: memory.never_replayed(0)),
        ("n", lambda: memory.forgotten(0)),
        ("min_size", lambda: memory.wait(min_size=0)),
        ("groups", lambda: memory.sample_groups(0, 1)),
        ("size", lambda: memory.sample_groups(1, 0)),
        ("points", lambda: memory.loss_trend(points=0)),
        ("limit", lambda: memory.recall_temporal(0, 1, limit=0)),
        ("limit", lambda: memory.history(limit=0)),
    ):
        with pytest.raises(memstore.InvalidValue, match=f"^{name} must be between 1 and 2147483648, got 0"):
            call()


def test_listed() -> None:
    assert listed([]) == "none" and listed(["a", "b"]) == "'a', 'b'"
    assert listed(range(4_000), 3) == "0 (int), 1 (int), 2 (int) and 3,997 more"
