"""A handle passed to other processes: each has its own connections and random stream; nobody breaks the parent's."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.pool import NullPool

from memstore import EpisodicMemory
from tests.sharing.forking import ALONE, SCENES, connection_of
from tests.sharing.records import offer
from tests.support.helpers import Child, OpenMemory

# Python 3.12 and later warn whenever a process with threads forks.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")

ROOT = Path(__file__).parents[2]
METHODS = [method for method in ("fork", "spawn", "forkserver") if method in multiprocessing.get_all_start_methods()]
TURNS = 15

Drawn = tuple[list[int], int, int]
"""The first draw of a process, its connection, the number of its replays."""


def connections(url: str) -> int:
    """Open connections to the database, by anyone, or files that this process holds open."""
    address = make_url(url)
    if address.get_backend_name() == "sqlite":
        found = [str(entry.readlink()) for entry in Path("/proc/self/fd").iterdir() if entry.is_symlink()]
        return sum(target.startswith(str(address.database)) for target in found)
    engine = create_engine(url, poolclass=NullPool)
    query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    with engine.connect() as conn:
        count = int(conn.execute(text(query)).scalar_one())
    engine.dispose()
    return count


def must_become(expected: int, count: Callable[[], int]) -> None:
    """The server notices the end of a process a moment later."""
    deadline = time.monotonic() + 20
    while (found := count()) != expected:
        assert time.monotonic() < deadline, f"{found} connections instead of {expected}"
        time.sleep(0.01)


def use(memory: EpisodicMemory, number: int) -> Drawn:
    """Draw, add and update; the numbers of two processes differ."""
    first = memory.sample(20, strategy="uniform").ids.tolist()
    replays = 0
    for turn in range(TURNS):
        memory.extend(**offer(number, range(4 * turn, 4 * turn + 4)))
        replays += len(memory.update(memory.sample(6), loss=0.5 + turn).updated)
    return first, connection_of(memory), replays


def use_by_index(number: int) -> Drawn:
    """``use`` of the handle that the pool's initializer left."""
    return use(_handle, number)


def keep(memory: EpisodicMemory) -> None:
    """Initializer of a pool."""
    global _handle
    _handle = memory


_handle: EpisodicMemory


def filled(open_memory: OpenMemory) -> EpisodicMemory:
    """300 episodes, by writer 0."""
    memory = open_memory(capacity=10_000)
    memory.extend(**offer(0, range(300)))
    return memory


def check_all(memory: EpisodicMemory, before: int, results: list[Drawn]) -> None:
    """``results`` are of the parent, then its children: different draws and connections, nothing lost."""
    draws = [tuple(first) for first, _, _ in results]
    assert len(set(draws)) == len(draws), "two processes drew the same"
    parent, *children = [connection for _, connection, _ in results]
    if memory.url.startswith("postgresql"):
        assert parent == before == connection_of(memory), "the parent's connection was replaced"
        assert len({parent, *children}) == len(results), "two processes shared a connection"
    assert len(memory) == 300 + 4 * TURNS * len(results)
    assert memory.stats().total_events == sum(replays for _, _, replays in results)


@pytest.mark.parametrize("method", METHODS)
def test_as_an_argument(open_memory: OpenMemory, url: str, method: str) -> None:
    """Three children and the parent use it at once."""
    memory = filled(open_memory)
    before, open_before = connection_of(memory), connections(url)
    children = [Child(use, memory, 1 + i, method=method) for i in range(3)]
    mine = use(memory, 9)
    check_all(memory, before, [mine, *(child.result() for child in children)])
    must_become(open_before, lambda: connections(url))
    memory.close()
    must_become(0, lambda: connections(url))


@pytest.mark.parametrize("method", sorted({"fork", "spawn"} & set(METHODS)))
def test_through_the_initializer_of_a_pool(open_memory: OpenMemory, url: str, method: str) -> None:
    """Each worker of a multiprocessing.Pool keeps it for its tasks; some workers are replaced meanwhile."""
    memory = filled(open_memory)
    before, open_before = connection_of(memory), connections(url)
    context: Any = multiprocessing.get_context(method)
    with context.Pool(2, initializer=keep, initargs=(memory,), maxtasksperchild=1) as pool:
        pending = [pool.apply_async(use_by_index, (number,)) for number in range(1, 4)]
        mine = use(memory, 9)
        results = [mine, *(one.get(120) for one in pending)]
        pool.close()
        pool.join()
    check_all(memory, before, results)
    must_become(open_before, lambda: connections(url))


@pytest.mark.skipif("fork" not in METHODS, reason="needs fork")
def test_forks_of_forks(open_memory: OpenMemory) -> None:
    """A child forks in turn; three generations, three streams."""
    memory = filled(open_memory)
    mine = memory.sample(20, strategy="uniform").ids.tolist()
    child, grandchild = Child(_child_of_child, memory, method="fork").result()
    assert len({tuple(mine), tuple(child), tuple(grandchild)}) == 3
    assert len(memory) == 302


def _child_of_child(memory: EpisodicMemory) -> tuple[list[int], list[int]]:
    grandchild = Child(_draw_and_add, memory, method="fork")
    return _draw_and_add(memory), grandchild.result()


def _draw_and_add(memory: EpisodicMemory) -> list[int]:
    memory.add({"writer": 1, "sequence": 0, "content": np.zeros(12, np.uint64)})
    drawn: list[int] = memory.sample(20, strategy="uniform").ids.tolist()
    return drawn


@pytest.mark.skipif("fork" not in METHODS, reason="needs fork")
@pytest.mark.parametrize("scene", [*SCENES, ALONE])
def test_forks_in_every_state(url: str, scene: str) -> None:
    """See ``forking``: children return, raise, close, collect, are killed; their parent never notices."""
    program = [sys.executable, "-W", "ignore::DeprecationWarning", "-m", "tests.sharing.forking", url, scene]
    done = subprocess.run(program, cwd=ROOT, capture_output=True, text=True, timeout=180, check=False)
    assert (done.returncode, done.stderr[-4000:]) == (0, "")
