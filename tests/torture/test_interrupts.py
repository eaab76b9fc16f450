"""Ctrl-C and SIGTERM at any moment: they come out as themselves, what was open is undone, everything goes on."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

import memstore
from tests.support.helpers import OpenMemory, row, rows
from tests.torture.interrupts import World, torment

pytestmark = [
    pytest.mark.torture,
    # An interrupt before the driver has returned a new connection leaves that to its finalizer, which complains.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

FULL = os.environ.get("MEMSTORE_TORTURE") == "full"
STRIKES = 1000 if FULL else 2
SIGNALS = 1000 if FULL else 40
TURNS = 100
"""Of a loop that is struck within its first 20 ms: it takes many times as long."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """SQLAlchemy logs, besides, an interrupt that comes while a connection is given back."""
    logger = logging.getLogger("sqlalchemy.pool")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    yield
    logger.setLevel(level)


@pytest.mark.timeout(20_000 if FULL else 600)
def test_interrupts_at_chosen_moments(open_memory: OpenMemory, url: str) -> None:
    """Of every public call, alone and inside ``transaction()``."""
    open_memory(buffer="unused").close()  # makes the tables
    report = torment(url, STRIKES, seed=random.randrange(10**6) if FULL else 11)
    print(report)
    assert not report.faults, "\n".join(report.faults[:20])
    assert sum(report.strikes.values()) > 50 * STRIKES


def test_an_interrupt_at_the_very_end_of_a_block(open_memory: OpenMemory, url: str) -> None:
    """Before the first line of ``__exit__`` nobody but the end of the ``with`` itself can end the block."""
    open_memory(buffer="unused").close()  # makes the tables
    world = World(url, 3)

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name == "_leave":
            sys.setprofile(None)
            raise KeyboardInterrupt

    for _ in range(3):
        kept: BaseException | None = None
        try:
            sys.setprofile(profile)
            with world.memory.transaction():
                world.memory.add(world.row())
        except KeyboardInterrupt as exc:
            kept = exc
        assert kept is not None
        assert world.memory.transaction_depth == 0
        world.other.add(world.row())
        world.memory.save_checkpoint("final", {})
    assert world.memory.stats().total_inserted == 60
    world.close()


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_real_signals(open_memory: OpenMemory, kind: type[BaseException]) -> None:
    """By a timer, anywhere in a loop of calls and blocks.

    Python itself swallows an exception in a finalizer or the callback of a weak reference; about 1 signal in 300 comes
    there, and then the loop ends by itself.
    """
    memory, other = open_memory(capacity=50), open_memory(busy_timeout=5, buffer="other")
    memory.extend(rows(50), loss=1.0)
    other.extend(rows(5), loss=1.0)

    def handler(*_: Any) -> None:
        raise kind

    before = signal.signal(signal.SIGALRM, handler)
    chance = random.Random(5)
    struck = 0
    try:
        for turn in range(SIGNALS):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.0005 + 0.02 * chance.random())
                try:
                    for _ in range(TURNS):
                        memory.add(row(turn), loss=2.0)
                        with memory.transaction():
                            memory.update(memory.sample(8), loss=3.0)
                            memory.save_checkpoint("run", {"turn": turn})
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    memory.save_checkpoint("final", {"turn": turn})
            except kind:
                struck += 1
            other.update([other.query().ids()[0]], loss=float(turn))
            assert memory.load_checkpoint("final") == {"turn": turn}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert struck > 0.9 * SIGNALS
    assert memory.check().ok


PROGRAM = """
import signal, sys
import numpy as np
import memstore

def ended(*_):
    sys.exit(7)

signal.signal(signal.SIGTERM, ended)
with memstore.open(sys.argv[1], capacity=200, busy_timeout=5, create=False) as memory:
    turn = 0
    try:
        while True:
            memory.extend({"number": np.arange(5), "x": np.zeros((5, 4), np.float32)}, loss=1.0)
            with memory.transaction():
                turn += 1
                memory.update(memory.sample(16), loss=2.0)
                memory.save_checkpoint("run", {"turn": turn})
            if turn == 1:
                print("ready", flush=True)
    finally:
        memory.save_checkpoint("final", {"turn": turn})
"""


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_told_to_end(open_memory: OpenMemory, url: str, sent: signal.Signals) -> None:
    """From outside: it ends as its handler says, its last checkpoint is stored, and nobody waits for its locks."""
    memory = open_memory(capacity=200, busy_timeout=5)
    for turn in range(30 if FULL else 2):
        command = [sys.executable, "-c", PROGRAM, url]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None and process.stderr is not None
            assert process.stdout.readline() == "ready\n", process.stderr.read()
            time.sleep(0.05 + random.Random(turn).random() / 10)
            process.send_signal(sent)
            try:
                _, complaint = process.communicate(timeout=20)
            except subprocess.TimeoutExpired:  # it came in a finalizer, where Python swallows it
                process.send_signal(sent)
                _, complaint = process.communicate(timeout=60)
        ended = process.returncode == 7 if sent == signal.SIGTERM else "KeyboardInterrupt" in complaint
        assert ended and "memstore.errors" not in complaint, complaint
        begun = time.monotonic()
        memory.add(row(0))
        assert time.monotonic() - begun < 2
        assert memory.load_checkpoint("final")["turn"] - memory.load_checkpoint("run")["turn"] in (0, 1)
    assert memory.check().ok


def test_what_is_interrupted_inside_a_block_is_undone_with_it(open_memory: OpenMemory) -> None:
    """Also where the block catches it: nobody knows how far the call came."""
    memory = open_memory()
    memory.add(row(0))

    def profile(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and frame.f_code.co_name == "write_counters":
            sys.setprofile(None)
            raise KeyboardInterrupt

    with pytest.raises(memstore.TransactionDead, match="interrupt"), memory.transaction():
        memory.add(row(1))
        try:
            sys.setprofile(profile)
            memory.add(row(2))
        except KeyboardInterrupt:
            pass
    assert len(memory) == 1 and memory.add(row(3)) == 2
