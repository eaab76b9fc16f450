"""kill -9 of a seeded program at chosen statements, many of them inside a fold: the resumed run is the one left alone.

A turn of the program and its checkpoint are one commit. So whatever was acknowledged is there, the run goes on from
there, and all that it draws later is the same to the last bit.
"""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pytest

import memstore
from tests.engine.program import Seen, ending, here, turn
from tests.support.helpers import Child
from tests.support.windows import set_window

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the victims are forked children"),
]

KILLS = 200 if os.environ.get("MEMSTORE_TORTURE") == "full" else 40
LATER = 60
"""Turns after the last kill. Then the memory is examined once more."""

LONGEST = 16
"""Turns after which the kills of one run end, and the next run begins."""

PATIENCE = 580.0
"""Seconds for all kills of one database and window."""

FOLDING = re.compile(r': (INSERT INTO|UPDATE|DELETE FROM|COPY) "?(block|replay_metadata)\b')
"""Statements that bring blocks and tables up to date with the log."""

SETTINGS: dict[str, Any] = {
    "capacity": 150,
    "eviction": "lowest_loss",
    "strategy": "prioritized_loss",
    "max_replays": 30,
}


def digest(seen: Seen) -> bytes:
    """What a turn saw, in 16 bytes."""
    return hashlib.sha256(repr(seen).encode()).digest()[:16]


def work(memory: memstore.EpisodicMemory, turns: int, acknowledge: int | None) -> list[bytes]:
    """Take the program up where the checkpoint is, and go on to so many turns. Each is told of when it is committed."""
    done = int(memory.load_checkpoint("run")["done"]) if memory.checkpoints() else 0
    digests = []
    for number in range(done, turns):
        with memory.transaction():
            seen = turn(memory, number, 3, here(memory))
            memory.save_checkpoint("run", {"done": number + 1})
        digests.append(digest(seen))
        if acknowledge is not None:
            os.write(acknowledge, struct.pack("<q16s", number, digests[-1]))
    return digests


def alone(path: str, entries: int, turns: int) -> tuple[list[bytes], bytes]:
    """What the program sees, and comes to, if nobody kills it. It runs in a process of its own."""
    set_window(entries)
    with memstore.open(path, seed=5, **SETTINGS) as memory:
        return work(memory, turns, None), digest(ending(memory))


def victim(url: str, moment: int, *, folding: bool, acknowledge: int) -> None:
    """Work until this many statements, or statements of folds, have been sent. Then die."""
    sent = 0

    def count(line: str) -> None:
        nonlocal sent
        sent += not folding or FOLDING.search(line) is not None
        if sent >= moment:
            os.kill(os.getpid(), signal.SIGKILL)

    with memstore.open(url, seed=5, create=False, trace=count) as memory:
        work(memory, LONGEST, acknowledge)


def strike(url: str, moment: int, delay: float | None, *, folding: bool) -> tuple[bool, dict[int, bytes]]:
    """Start a victim that dies at a statement, or is killed after a time. Whether it was killed, and what it told."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            victim(url, 10**9 if delay is not None else moment, folding=folding, acknowledge=writing)
        except BaseException as exc:
            os.write(2, f"the victim failed by itself: {exc!r}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    if delay is not None:
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
    told = b""
    while chunk := os.read(reading, 1 << 16):
        told += chunk
    os.close(reading)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status), dict(struct.iter_unpack("<q16s", told[: len(told) // 24 * 24]))


def torment(urls: list[str], entries: int, expected: tuple[list[bytes], bytes], kills: int, seed: str) -> int:
    """Kill runs, one on each address, until there are so many kills. Returns how many were inside a fold."""
    set_window(entries)
    dice, killed, inside = random.Random(seed), 0, 0
    digests, end = expected
    while killed < kills:
        url = urls.pop()
        memstore.open(url, seed=5, **SETTINGS).close()
        done = 0
        while killed < kills and done < LONGEST:
            folding = dice.random() < 0.5
            delay = None if folding or dice.random() < 0.6 else dice.uniform(0.0, 0.4)
            moment = dice.randrange(1, 40) if folding else dice.randrange(1, 400)
            was_killed, told = strike(url, moment, delay, folding=folding)
            killed, inside = killed + was_killed, inside + (was_killed and folding)
            with memstore.open(url, create=False) as memory:
                report = memory.check()
                assert report.ok, report.problems
                before, done = done, int(memory.load_checkpoint("run")["done"]) if memory.checkpoints() else 0
            assert done >= max(told, default=before - 1) + 1, "a turn that was acknowledged is gone"
            assert done <= max(told, default=before - 1) + 2, "a turn was counted that was not made"
            assert told == {number: digests[number] for number in told}
    # The seed matters if every turn was killed: then there is no checkpoint with a generator.
    with memstore.open(url, seed=5 if done == 0 else 6, create=False) as memory:
        assert work(memory, LONGEST + LATER, None) == digests[done:]
        assert digest(ending(memory)) == end
    with memstore.open(url, create=False) as memory:
        assert memory.check().ok
    return inside


@pytest.mark.parametrize("entries", [8, 90])
def test_killed_at_any_statement(url: str, tmp_path: Path, request: pytest.FixtureRequest, entries: int) -> None:
    kills = KILLS // 4
    names = [f"killed_{os.getpid()}_{entries}_{number}" for number in range(max(3, kills // 4))]
    server = None if url.startswith("sqlite") else request.getfixturevalue("postgres_server")
    urls = [str(tmp_path / f"{name}.db") if server is None else server.create_database(name) for name in names]
    expected = Child(alone, str(tmp_path / "alone.db"), entries, LONGEST + LATER).result(PATIENCE)
    # In a process without threads, whose children inherit nothing half done.
    inside = Child(torment, urls, entries, expected, kills, f"{entries}").result(PATIENCE)
    if server is not None:
        for name in names:
            server.drop_database(name)
    print(f"{kills} kills, {inside} of them inside a fold")
    assert inside >= kills // 4
