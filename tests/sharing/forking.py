"""A program of its own, ``python -m tests.sharing.forking URL SCENE``: it forks, and children end in every way.

Only a program can show what the end of a child's interpreter does to connections that it shares with its parent: under
pytest, and under multiprocessing, children end by ``os._exit``. Ends with status 0 if all is well.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from sqlalchemy import text

import memstore
from memstore import EpisodicMemory, MemstoreError, StoreBusy, StoreUnavailable, TransactionDead

PATIENCE = 15
WAYS = ("returns", "_exit", "raises", "closes", "collects", "is killed")


def connection_of(memory: EpisodicMemory) -> int:
    """Which process of the server the memory works with; 0 for a file."""

    def work(conn: Any) -> int:
        if conn.dialect.name != "postgresql":
            return 0
        return int(conn.execute(text("SELECT pg_backend_pid()")).scalar_one())

    return memory._session.database.in_read(work)


def row(number: int) -> dict[str, Any]:
    """A payload."""
    return {"number": number, "text": str(number) * 50}


def fork(child: Callable[[], None]) -> tuple[int, int]:
    """Run ``child`` in a fork, whose interpreter ends as it leaves ``child``; its number and exit status."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(PATIENCE)  # kills a child that hangs
        child()
        return 0, 0
    return pid, os.waitpid(pid, 0)[1]


def work(memory: EpisodicMemory, number: int) -> None:
    """What a child does before it ends."""
    memory.add(row(number), loss=1.0)
    memory.update(memory.sample(5), loss=0.5)


def end(memory: EpisodicMemory, way: str) -> None:
    """End the child; some ways come back, so that its interpreter ends by itself."""
    # From here on a traceback is what should be.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    match way:
        case "_exit":
            os._exit(0)
        case "raises":
            raise KeyError("the end")
        case "closes":
            memory.close()
        case "collects":
            memory.__dict__.clear()
            gc.collect()
        case "is killed":
            os.kill(os.getpid(), signal.SIGKILL)


def child_outlives_the_handle(url: str) -> None:
    """The parent closes first. What the child acknowledged afterwards is there.

    A SQLite connection that is inherited makes the child's own ones believe that its process holds the locks of its
    parent. The parent, thinking itself the last, would remove the log into which the child then writes.
    """
    memory = memstore.open(url)
    memory.add(row(0))
    closed, close = os.pipe()
    pid = os.fork()
    if pid == 0:
        signal.alarm(PATIENCE)
        memory.add(row(1))
        os.read(closed, 1)
        for number in range(2, 12):
            memory.add(row(number))
        os._exit(len(memory))
    memory.close()
    os.write(close, b"x")
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 12
    with memstore.open(url) as memory:
        assert len(memory) == 12, f"{12 - len(memory)} episodes that the child acknowledged are lost"


def child_outlives_the_block(impatient: EpisodicMemory) -> None:
    """Forked inside a block, the child writes after the parent's commit, or is told why not: not for ever busy."""
    before = len(impatient)
    ended, end_now = os.pipe()
    with impatient.transaction():
        impatient.add(row(0))
        pid = os.fork()
        if pid == 0:
            signal.alarm(PATIENCE)
            os.read(ended, 1)
            try:
                impatient.add(row(1))
            except StoreBusy:
                os._exit(3)
            except MemstoreError:
                os._exit(2)
            os._exit(1)
    os.write(end_now, b"x")
    written = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert written in (1, 2), "the child is busy, though nobody holds the lock"
    assert len(impatient) == before + 1 + (written == 1)


def forks_while_idle(memory: EpisodicMemory) -> None:
    """The pool holds two connections, and the child works before it ends."""
    for way in WAYS:
        before = connection_of(memory), len(memory)

        def child(way: str = way) -> None:
            work(memory, 1)
            end(memory, way)

        pid, status = fork(child)
        if pid == 0:
            sys.exit(0)
        expected = {"raises": 256, "is killed": int(signal.SIGKILL)}.get(way, 0)
        assert status == expected, f"a child that {way} ended with status {status}"
        assert (connection_of(memory), len(memory)) == (before[0], before[1] + 1), way
        work(memory, 2)


def forks_inside_a_block(memory: EpisodicMemory, impatient: EpisodicMemory) -> None:
    """The block is the parent's: the child cannot see it, disturb it, or commit it."""
    for way in WAYS:
        before = len(memory)
        with memory.transaction():
            memory.add(row(3))
            connection = connection_of(memory)

            def child(way: str = way, before: int = before, connection: int = connection) -> None:
                signal.alarm(PATIENCE)
                if connection == 0:  # a file's locks do not survive such a fork, and the child is told so
                    acts: tuple[Callable[[], object], ...] = (lambda: len(memory), lambda: impatient.add(row(4)))
                    for act in acts:
                        try:
                            act()
                            os._exit(9)
                        except StoreUnavailable:
                            pass
                    end(memory, way)
                    return
                assert len(memory) == before, "the child sees what its parent has not committed"
                memory.sample(3)
                try:
                    impatient.add(row(4))
                    os._exit(9)
                except StoreBusy:
                    pass
                end(memory, way)

            pid, status = fork(child)
            if pid == 0:
                sys.exit(0)
            # The child's interpreter leaves the block by SystemExit or KeyError: TransactionDead, exit code 1.
            expected = {"_exit": 0, "is killed": int(signal.SIGKILL)}.get(way, 256)
            assert status == expected, f"a child that {way} ended with status {status}"
            memory.add(row(5))
            assert connection_of(memory) == connection, way
            assert len(memory) == before + 2
        assert len(memory) == before + 2 and connection_of(memory) == connection


def leaves_a_block(memory: EpisodicMemory) -> None:
    """The child walks out of its parent's block at its end: TransactionDead there, a commit in the parent."""
    before = len(memory)
    pid = None
    try:
        with memory.transaction():
            memory.add(row(6))
            pid = os.fork()
            if pid:
                assert os.waitpid(pid, 0)[1] == 0
    except TransactionDead:
        if pid == 0:
            sys.exit(0)  # the interpreter ends; what it inherited must not be closed
        raise
    if pid == 0:
        os._exit(8)
    assert len(memory) == before + 1


def forks_beside_threads(memory: EpisodicMemory, children: int) -> None:
    """Two threads of the parent are anywhere in a write or a draw whenever a child is made."""
    stop = threading.Event()
    added = [0, 0]
    errors: list[BaseException] = []

    def toil(which: int) -> None:
        try:
            while not stop.is_set():
                work(memory, 7)
                added[which] += 1
        except BaseException as exc:
            errors.append(exc)

    before = len(memory)
    threads = [threading.Thread(target=toil, args=(which,)) for which in range(2)]
    for thread in threads:
        thread.start()

    def child() -> None:
        work(memory, 8)
        os._exit(0)

    try:
        for _ in range(children):
            assert fork(child)[1] == 0, "a child made beside threads hung or failed"
    finally:
        stop.set()
        for thread in threads:
            thread.join(PATIENCE)
    assert not errors, errors
    assert min(added) > 0
    assert len(memory) == before + sum(added) + children


SCENES: dict[str, Callable[[EpisodicMemory, EpisodicMemory], None]] = {
    "idle": lambda memory, _: forks_while_idle(memory),
    "inside a block": forks_inside_a_block,
    "leaving a block": lambda memory, _: leaves_a_block(memory),
    "after a block": lambda _, impatient: child_outlives_the_block(impatient),
    "beside threads": lambda memory, _: forks_beside_threads(memory, 10),
}
ALONE = "handle closed first"


def main(url: str, scene: str) -> None:
    """One scene."""
    if scene == ALONE:
        child_outlives_the_handle(url)
        return
    # Not as contexts: a child that ends must find them open.
    memory, impatient = memstore.open(url, seed=1, busy_timeout=5), memstore.open(url, busy_timeout=0.2)
    memory.extend({"number": np.arange(50), "text": ["x"] * 50}, loss=1.0)
    # Two connections in the pool: one thread reads while another does.
    memory._session.read(lambda _: ThreadPoolExecutor(1).submit(len, memory).result())
    len(impatient)
    SCENES[scene](memory, impatient)
    report = memory.check()
    assert report.ok, report.problems
    memory.close()
    impatient.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
