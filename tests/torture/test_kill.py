"""kill -9 at random points, and a write-ahead log cut at random bytes: always a whole prefix of what was acknowledged.

What each operation does, and what the database must hold after it, is in ``tests.torture.model``.
"""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Connection

import memstore
from memstore.storage.backends.sqlite import SQLiteBackend
from tests.support.windows import small_windows
from tests.torture.model import SETTINGS, Model, facts, strike

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the victim is a forked child"),
    # Python 3.12 and later warn when a process with threads forks; the victim uses none of them.
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

FACTOR = 10 if os.environ.get("MEMSTORE_TORTURE") == "full" else 1
KILLS = 20 * FACTOR
CUTS = 100 * FACTOR


@pytest.fixture(autouse=True)
def many_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fold the log within every few commits, so that kills fall into folds too."""
    small_windows(monkeypatch, 60)


@pytest.fixture
def small_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoint the log within every few commits, so that kills fall into checkpoints too."""

    begin = SQLiteBackend.begin

    def small(backend: SQLiteBackend, conn: Connection, *, write: bool) -> None:
        begin(backend, conn, write=write)
        backend.driver(conn).execute("PRAGMA wal_autocheckpoint = 12")

    monkeypatch.setattr(SQLiteBackend, "begin", small)


@pytest.mark.parametrize("log", ["large log", "small log"])
@pytest.mark.parametrize("eviction", SETTINGS)
def test_kill(tmp_path: Path, request: pytest.FixtureRequest, eviction: str, log: str) -> None:
    """One file, killed again and again: everything acknowledged is there, and at most one operation more."""
    if log == "small log":
        request.getfixturevalue("small_log")
    path = str(tmp_path / "run.db")
    memstore.open(path, **SETTINGS[eviction]).close()
    model = Model(capacity=SETTINGS[eviction]["capacity"])
    dice = random.Random(f"{eviction} {log}")
    extra = 0
    for kill in range(KILLS // 2 if eviction == "none" else KILLS - KILLS // 2):
        # The number of operations decides as well: on a busy machine none may follow within the time.
        acknowledged = strike(path, model, dice.uniform(0.0, 0.04), least=dice.randint(1, 8))
        assert acknowledged > model.operation, "nothing was done before the kill"
        while model.operation < acknowledged:
            model.step(None)
        with memstore.open(path, create=False) as memory:
            found = facts(memory)
            if found != model.facts():
                model.step(None)
                extra += 1
            assert found == model.facts(), f"kill {kill}, after operation {acknowledged}"
            report = memory.check()
            assert report.ok, report.problems
    assert model.operation > 3 * KILLS // 2
    print(f"{eviction}, {log}: {model.operation} operations, {extra} committed but not acknowledged")


def test_kill_before_the_acknowledgement_then_retry(tmp_path: Path) -> None:
    """A key makes the retry of whatever was not acknowledged a no-op."""
    path = str(tmp_path / "run.db")
    memstore.open(path).close()
    dice = random.Random(2)
    keys: list[str] = []
    for turn in range(10 * FACTOR):
        pid = os.fork()
        if pid == 0:
            with memstore.open(path) as memory:
                for number in range(10_000):
                    memory.add({"number": number}, key=f"{turn}-{number}")
            os._exit(0)
        time.sleep(dice.uniform(0.02, 0.09))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        with memstore.open(path) as memory:
            before = len(memory)
            done = before - len(keys)
            ids = memory.extend({"number": np.arange(done + 3)}, key=[f"{turn}-{n}" for n in range(done + 3)])
            keys += [f"{turn}-{n}" for n in range(done + 3)]
            assert len(memory) == before + 3 == len(keys)
            assert [episode.payload["number"] for episode in memory.get_many(ids)] == list(range(done + 3))
            assert memory.check().ok


@pytest.mark.parametrize("eviction", SETTINGS)
def test_cut_log(tmp_path: Path, eviction: str) -> None:
    """Power loss: the log ends at any byte, or in garbage. What is left is what some prefix of the commits made."""
    original = tmp_path / "original.db"
    memstore.open(original, **SETTINGS[eviction]).close()
    model = Model(capacity=SETTINGS[eviction]["capacity"])
    strike(str(original), model, 20.0 if FACTOR > 1 else 0.6, limit=120)
    log = Path(f"{original}-wal").read_bytes()
    states = [copy.deepcopy(model.facts())]
    for _ in range(121):
        model.step(None)
        states.append(copy.deepcopy(model.facts()))

    dice = random.Random(eviction)
    seen = set()
    for cut in range(CUTS // 2):
        target = tmp_path / f"copy{cut}.db"
        shutil.copyfile(original, target)
        length = dice.randrange(len(log) + 1)
        tail = dice.randbytes(dice.randrange(1, 9000)) if cut % 2 else b""
        Path(f"{target}-wal").write_bytes(log[:length] + tail)
        with memstore.open(target, create=False) as memory:
            found = facts(memory)
            assert found in states, f"cut at byte {length} of {len(log)}, {len(tail)} bytes of garbage"
            seen.add(states.index(found))
            report = memory.check()
            assert report.ok, report.problems
            before = len(memory)
            memory.extend({"number": np.arange(3), "noise": np.zeros((3, 40), np.int64)}, loss=1.0)
            assert eviction == "fifo" or len(memory) == before + 3
            assert memory.check().ok
        for file in tmp_path.glob(f"{target.name}*"):
            file.unlink()
    assert len(seen) > CUTS // 8
