"""A block belongs to one thread and one asyncio task: others read beside it, and write after it or not at all."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from memstore import EpisodicMemory, ForeignTransaction, StoreBusy, col
from tests.support.helpers import OpenMemory, row, rows


class Boom(Exception):
    """Ends a block from inside."""


@pytest.fixture
def filled(open_memory: OpenMemory) -> EpisodicMemory:
    """Ten episodes."""
    memory = open_memory(capacity=100, busy_timeout=5)
    memory.extend(rows(10), loss=1.0)
    return memory


def in_thread(function: Callable[[], Any]) -> Any:
    """What the function returns in another thread."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(30)


WRITES: dict[str, Callable[[EpisodicMemory], Any]] = {
    "add": lambda memory: memory.add(row(77)),
    "update": lambda memory: memory.update([1], loss=7.0),
    "delete": lambda memory: memory.delete([1]),
    "lease": lambda memory: memory.lease(1),
    "save_checkpoint": lambda memory: memory.save_checkpoint("theirs", {}),
    "load_checkpoint": lambda memory: memory.load_checkpoint("first"),
    "transaction": lambda memory: memory.transaction().__enter__(),
}


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("write", WRITES)
def test_another_task_is_refused_at_once(filled: EpisodicMemory, write: str, fails: bool) -> None:
    """Its write is neither included in the block nor undone with it; the message names the owner."""
    filled.save_checkpoint("first", {})

    async def main() -> None:
        inside, tried = asyncio.Event(), asyncio.Event()

        async def owner() -> None:
            with filled.transaction():
                filled.add(row(1), key="mine")
                inside.set()
                await tried.wait()
                filled.add(row(2))
                if fails:
                    raise Boom

        task = asyncio.create_task(owner(), name="the owner")
        await inside.wait()
        begun = time.monotonic()
        with pytest.raises(ForeignTransaction, match="the owner"):
            WRITES[write](filled)
        assert len(filled) == 10 and filled.ids_of(["mine"]) == [None] and filled.transaction_depth == 0
        assert len(filled.sample(5)) == 5 and filled.query().filter(col.loss > 2).count() == 0
        assert time.monotonic() - begun < 2
        tried.set()
        if fails:
            with pytest.raises(Boom):
                await task
        else:
            await task
        WRITES["add"](filled)

    asyncio.run(main())
    assert len(filled) == (11 if fails else 13)
    assert filled.checkpoints() == ["first"]


def test_a_child_task_is_another_one(filled: EpisodicMemory) -> None:
    """Though it runs in a copy of the context of the block."""

    async def main() -> None:
        with filled.transaction():
            with pytest.raises(ForeignTransaction):
                await asyncio.create_task(_add(filled))
            await _add(filled)  # no task of its own
        await asyncio.create_task(_add(filled))

    asyncio.run(main())
    assert len(filled) == 12


async def _add(memory: EpisodicMemory) -> int:
    return memory.add(row(5))


def test_a_thread_started_inside_the_block_does_not_wait_for_it(filled: EpisodicMemory) -> None:
    """The block waits for the thread: the thread must not wait for the block. Afterwards it may write."""

    async def main() -> None:
        with filled.transaction():
            filled.add(row(1))
            begun = time.monotonic()
            with pytest.raises(ForeignTransaction):
                await asyncio.to_thread(filled.add, row(2))
            assert len(await asyncio.to_thread(filled.sample, 5)) == 5
            assert time.monotonic() - begun < 2
        await asyncio.to_thread(filled.add, row(3))

    asyncio.run(main())
    assert len(filled) == 12


def test_whole_blocks_in_threads_of_tasks_take_turns(filled: EpisodicMemory) -> None:
    """As the README shows it: no task waits in a block, and nothing is lost."""

    def block(number: int) -> None:
        with filled.transaction():
            filled.add(row(number))
            filled.update(filled.sample(2), loss=1.0)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        blocks = [asyncio.to_thread(block, number) for number in range(10)]
        await asyncio.gather(*blocks, *(loop.run_in_executor(None, block, number) for number in range(10)))

    asyncio.run(main())
    assert len(filled) == 30 and filled.stats().total_events == 40


def block_in_a_generator(memory: EpisodicMemory) -> Iterator[int]:
    """A block that is open until the generator ends."""
    with memory.transaction():
        yield memory.add(row(50))


def test_a_block_that_another_thread_closes(filled: EpisodicMemory) -> None:
    """It is undone, and the memory works on, in every thread."""
    block = block_in_a_generator(filled)
    assert next(block) == 11
    in_thread(block.close)  # type: ignore[attr-defined]
    assert len(filled) == 10 and filled.transaction_depth == 0
    assert in_thread(lambda: filled.add(row(60))) == 11
    assert filled.add(row(61)) == 12


def test_a_block_that_another_thread_ends(filled: EpisodicMemory) -> None:
    """It is refused: what the owner did in it meanwhile would be committed in the middle."""
    block = block_in_a_generator(filled)
    next(block)
    with pytest.raises(ForeignTransaction, match="MainThread"):
        in_thread(lambda: next(block, None))
    assert len(filled) == 10
    assert filled.add(row(60)) == 11


def test_a_block_that_is_dropped(filled: EpisodicMemory) -> None:
    """Nobody ends it: it is undone when the garbage is collected."""
    block = block_in_a_generator(filled)
    next(block)
    del block
    gc.collect()
    filled.transaction().__enter__()
    assert filled.transaction_depth == 0
    assert len(filled) == 10 and filled.add(row(60)) == 11


def test_another_threads_write_waits_and_is_told_for_whom(filled: EpisodicMemory, open_memory: OpenMemory) -> None:
    """This very process, not another one; also where the other one is another handle."""
    inside, done = threading.Event(), threading.Event()

    def hold() -> None:
        with filled.transaction():
            inside.set()
            assert done.wait(20)

    thread = threading.Thread(target=hold, name="holder")
    thread.start()
    assert inside.wait(20)
    other = open_memory(busy_timeout=0.1)
    filled._session.database.backend.busy_timeout = 0.1
    for memory in (filled, other):
        with pytest.raises(StoreBusy, match="'holder'") as refusal:
            memory.add(row(1))
        assert "this very process" in str(refusal.value)
        assert len(memory.sample(3)) == 3
    done.set()
    thread.join(20)
    assert filled.add(row(1)) == 11 and other.add(row(2)) == 12


def test_draws_do_not_wait_for_a_block(filled: EpisodicMemory) -> None:
    """Nor for a write of another thread that waits for the lock."""
    with filled.transaction():
        filled.add(row(1))
        waiting = threading.Thread(target=lambda: filled.add(row(2)))
        waiting.start()
        begun = time.monotonic()
        for _ in range(50):
            assert len(in_thread(lambda: filled.sample(5))) == 5
            assert len(in_thread(lambda: filled.sample_groups(1, 5))) == 5
        assert time.monotonic() - begun < 5
    waiting.join(20)
    assert len(filled) == 12


def test_calls_leave_nothing_to_the_garbage_collector(filled: EpisodicMemory) -> None:
    """Payloads and batches go when their last user goes."""
    filled.update(filled.sample(3), loss=1.0)
    gc.collect()
    gc.disable()
    try:
        before = len(gc.get_objects())
        for _ in range(50):
            filled.update(filled.sample(3), loss=1.0)
            with filled.transaction():
                filled.update([1], loss=2.0)
        grown = len(gc.get_objects()) - before
    finally:
        gc.enable()
    assert grown < 50 * 20, f"{grown / 50} objects a turn are in cycles"
