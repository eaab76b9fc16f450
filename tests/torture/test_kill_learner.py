"""kill -9 at random points of a training run, each followed by a resume: the end is that of a run left alone."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.learner import streams
from tests.support.helpers import FRESH

KILLS = 200 if os.environ.get("MEMSTORE_TORTURE") == "full" else 16

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the victims are forked children"),
]


def fork(work: Callable[[int], None]) -> tuple[int, int]:
    """Start a child that does ``work`` and ends; its pid, and a pipe that it is given to write to."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reading)
        try:
            work(writing)
        except BaseException as exc:
            os.write(2, f"the victim failed by itself: {exc!r}\n".encode())
            os._exit(1)
        os._exit(0)
    os.close(writing)
    return pid, reading


def victim(path: str, kind: str, every: int, acknowledge: int) -> None:
    """Take the run up and finish it, telling of every step; killed on the way, mostly."""
    learner = streams.opened(path, kind, every)
    done = streams.take_up(learner)
    while done < streams.STEPS:
        os.write(acknowledge, b".")
        done = streams.step(learner)
    learner.save_state()
    learner.memory.close()


def strike(path: str, kind: str, every: int, dice: random.Random) -> bool:
    """Start a victim and kill it a moment after some step; whether it was killed before it ended by itself."""
    pid, reading = fork(lambda writing: victim(path, kind, every, writing))
    for _ in range(dice.randint(1, 9)):
        os.read(reading, 1)
    time.sleep(dice.uniform(0.0, 0.02))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os.close(reading)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def outcome(path: str, kind: str, every: int) -> str:
    """A digest of everything a run came to; the run is begun, or taken up, and finished, in a child of its own."""

    def work(writing: int) -> None:
        learner = streams.opened(path, kind, every)
        streams.run(learner)
        assert learner.memory.check().ok
        os.write(writing, hashlib.sha256(repr(streams.facts(learner)).encode()).hexdigest().encode())
        learner.memory.close()

    pid, reading = fork(work)
    told = os.read(reading, 100).decode()
    os.close(reading)
    assert os.waitpid(pid, 0)[1] == 0
    return told


def compare(folder: str, kind: str, every: int, kills: int) -> None:
    """Kill runs until ``kills`` are reached, and compare every one that comes to its end."""
    if kind == "torch":
        import torch._dynamo  # noqa: F401 - takes seconds, at the first step; the forked children have it then
    expected = outcome(f"{folder}/straight.db", kind, every)
    dice = random.Random(f"{kind} {every}")
    done = runs = 0
    while done < kills:
        path = f"{folder}/run{runs}.db"
        while strike(path, kind, every, dice):
            done += 1
        found = outcome(path, kind, every)
        assert found == expected, f"run {runs}, after {done} kills in all"
        runs += 1
    print(f"{kind}, a commit every {every} steps: {done} kills in {runs} runs")


@pytest.mark.parametrize("every", [1, 5])
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_killed_anywhere_and_resumed(tmp_path: Path, kind: str, every: int) -> None:
    if kind == "torch":
        streams.require_torch()
    # In a process without threads, whose children inherit nothing half done.
    process = FRESH.Process(target=compare, args=(str(tmp_path), kind, every, KILLS // 2))
    process.start()
    process.join()
    assert process.exitcode == 0
