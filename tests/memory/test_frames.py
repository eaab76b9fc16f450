"""How deep the work of a public call lies: locks, attempts and snapshots are one level."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import nullcontext
from types import FrameType
from typing import Any

import pytest

from memstore import EpisodicMemory, PrioritizedLoss, col
from tests.support.helpers import OpenMemory, row, rows

DEEPEST = 5
"""Frames from a public call to its work, that of the work included."""

WORK: dict[str, tuple[Callable[[EpisodicMemory], Any], str]] = {
    "add": (lambda m: m.add(row(9), loss=1.0), "insert"),
    "extend": (lambda m: m.extend(rows(3)), "insert"),
    "sample": (lambda m: m.sample(4, strategy=PrioritizedLoss()), "Strategy.draw"),
    "sample where": (lambda m: m.sample(4, strategy="prioritized_loss", where=col.loss > 1), "Strategy.draw"),
    "lease": (lambda m: m.lease(2, strategy=PrioritizedLoss()), "Strategy.draw"),
    "update": (lambda m: m.update([1, 2], loss=3.0), "update"),
    "query": (lambda m: m.query().filter(col.loss > 1).result(), "Query._answer"),
    "all": (lambda m: m.query().filter(col.loss > 1).all(), "Query._answer"),
    "get": (lambda m: m.get(1), "read"),
    "metadata": (lambda m: m.metadata([1, 2]), "read_metadata"),
    "recall_by_tags": (lambda m: m.recall_by_tags(["t"]), "ids_tagged"),
    "save_checkpoint": (lambda m: m.save_checkpoint("run", {"n": 1}), "save"),
    "load_checkpoint": (lambda m: m.load_checkpoint("first"), "load"),
}
"""A public call, and the function that does its work."""


def depths(call: Callable[[], Any], work: str) -> list[int]:
    """Of each call of ``work``, how many frames lie below that of the public call, its own included."""
    found: list[int] = []
    outermost: Any = call

    def profile(frame: FrameType | None, event: str, _: Any) -> None:
        if event == "call" and frame is not None and frame.f_code.co_qualname.removeprefix("_") == work:
            depth = 0
            while frame is not None and frame.f_code is not outermost.__code__:
                frame, depth = frame.f_back, depth + 1
            found.append(depth - 2)  # without ``outermost`` and the lambda of WORK

    sys.setprofile(profile)
    try:
        call()
    finally:
        sys.setprofile(None)
    return found


@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("name", WORK)
def test_work_lies_few_frames_below_the_call(open_memory: OpenMemory, name: str, inside: bool) -> None:
    memory = open_memory()
    memory.extend(rows(8), loss=2.0, tags=["t"])
    memory.save_checkpoint("first", {})
    public, work = WORK[name]
    with memory.transaction() if inside else nullcontext():
        found = depths(lambda: public(memory), work)
    assert found and found[0] <= DEEPEST
