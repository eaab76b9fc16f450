"""Two threads take two buffers in opposite order: nobody waits for ever, and nothing is half-written."""

from __future__ import annotations

import threading

import pytest

from memstore import EpisodicMemory, StoreBusy
from tests.sharing.records import offer
from tests.support.helpers import OpenMemory

PATIENCE = 20.0


@pytest.mark.parametrize("handles", ["shared by the threads", "each its own"])
def test_opposite_order(open_memory: OpenMemory, handles: str) -> None:
    """At least one is told ``StoreBusy`` in time; what a block wrote is there exactly if the block ended well."""

    def pair(first: str, second: str) -> list[EpisodicMemory]:
        return [open_memory(buffer=name, busy_timeout=1.0) for name in (first, second)]

    mine = pair("one", "two")
    theirs = pair("two", "one") if handles == "each its own" else mine[::-1]
    for memory in mine:
        memory.extend(**offer(0, range(8)))
    entered = threading.Event(), threading.Event()
    outcome: dict[int, str] = {}

    def work(number: int, outer: EpisodicMemory, inner: EpisodicMemory) -> None:
        try:
            with outer.transaction():
                outer.extend(**offer(number, range(4)))
                entered[number - 1].set()
                entered[2 - number].wait(3.0)  # a file has one write lock: there the other cannot enter
                inner.extend(**offer(number, range(4, 8)))
            outcome[number] = "done"
        except StoreBusy:
            outcome[number] = "busy"
        except BaseException as exc:
            outcome[number] = repr(exc)

    threads = [threading.Thread(target=work, args=(1 + i, *pair), daemon=True) for i, pair in enumerate((mine, theirs))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "two threads wait for each other for ever"
    assert "busy" in outcome.values() and set(outcome.values()) <= {"busy", "done"}, outcome
    for number, (outer, _) in enumerate((mine, theirs), 1):
        kept = [episode.key for episode in outer.recall_temporal(0, 1e18)]
        assert sum(f"{number}:{i}" in kept for i in range(4)) == (4 if outcome[number] == "done" else 0)
