"""kill -9 between the start of a process and its first commit, again and again on one database.

The same work then runs to its end, and what it made is sound: whatever a killed creation leaves is to be filled.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import alembic.command
import alembic.config  # noqa: F401
import numpy as np
import pytest
from sqlalchemy import make_url

import memstore
from memstore.cli import main
from memstore.learner import run_training, training_config
from memstore.learner.job.train import TrainProgress
from tests.support.postgres import PostgresServer

pytestmark = [
    pytest.mark.torture,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="the victims are forked children"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]

FULL = os.environ.get("MEMSTORE_TORTURE") == "full"
KILLS = 200 if FULL else 36
COLD_KILLS = 20 if FULL else 2
STRIKES = 4
"""On one database, before the work may end."""

Work = Callable[[str, Callable[[], None]], None]


@pytest.fixture
def another(url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[[], str]]:
    """Address of one more database without tables, on SQLite without a file; the one before is removed."""
    made: list[str] = []
    server: PostgresServer | None = None
    if make_url(url).get_backend_name() != "sqlite":
        server = request.getfixturevalue("postgres_server")

    def remove() -> None:
        for name in made[-1:]:
            if server is not None:
                server.drop_database(name)
            else:
                for file in tmp_path.glob(f"{name}*"):
                    file.unlink()

    def make() -> str:
        remove()
        made.append(f"{Path(str(make_url(url).database)).stem}_{len(made)}")
        return str(tmp_path / made[-1]) if server is None else server.create_database(made[-1])

    yield make
    remove()


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """Two tasks of ten steps in all."""
    rng = np.random.default_rng(0)
    y = np.repeat(np.arange(4), 30)
    np.savez(tmp_path / "small.npz", x=rng.normal(y[:, None], 1.0, (120, 8)), y=y)
    return str(tmp_path / "small.npz")


def extend(address: str, committed: Callable[[], None]) -> None:
    """Open, add a few, and add no more to what was added."""
    with memstore.open(address, capacity=100, seed=1) as memory:
        ids = memory.extend({"x": np.arange(20.0)}, loss=1.0, key=[f"k{number}" for number in range(20)])
        committed()
        assert memory.get(int(ids[7])).payload["x"] == 7.0 and len(memory) == 20


def train(dataset: str) -> Work:
    """What ``memstore train`` does."""

    def work(address: str, committed: Callable[[], None]) -> None:
        def progress(_done: TrainProgress) -> None:
            committed()

        assert run_training(address, training_config(), dataset=dataset, on_progress=progress).steps == 10

    return work


@dataclass
class Tally:
    """What came of the kills."""

    killed: int = 0
    late: int = 0
    databases: int = 0


def strike(work: Work, address: str, delay: float) -> bool:
    """Do the work in a child up to its first commit, and kill it after so many seconds; False if it was faster."""
    pid = os.fork()
    if pid == 0:
        try:
            work(address, lambda: os._exit(0))
        except BaseException as exc:
            os.write(2, f"the victim failed by itself: {exc!r}\n".encode())
        os._exit(1)
    time.sleep(delay)
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the same work failed after a kill"
    return os.WIFSIGNALED(status)


def duration(work: Work, another: Callable[[], str]) -> float:
    """Seconds from the start of a child to its first commit, in a database without anything."""
    times = []
    for _attempt in range(3):
        address = another()
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            work(address, lambda: os._exit(0))
        assert os.waitpid(pid, 0)[1] == 0
        times.append(time.monotonic() - started)
    return sorted(times)[1]


def finish(work: Work, address: str) -> None:
    """The same work to its end; every buffer is sound."""
    work(address, lambda: None)
    for name in memstore.buffers(address):
        with memstore.open(address, buffer=name, create=False) as memory:
            report = memory.check()
            assert report.ok, report.problems


def torture(work: Work, another: Callable[[], str], kills: int, seed: str) -> Tally:
    """Kill at moments spread evenly between start and first commit, several times on each database."""
    dice, tally = random.Random(seed), Tally()
    whole = duration(work, another)
    moments = [whole * (number + dice.random()) / kills for number in range(kills)]
    dice.shuffle(moments)
    for start in range(0, kills, STRIKES):
        address = another()
        tally.databases += 1
        for moment in sorted(moments[start : start + STRIKES]):  # the early ones while there is most to make
            while not strike(work, address, moment):  # less was left to be made than at first
                moment /= 2
                tally.late += 1
            tally.killed += 1
        finish(work, address)
    return tally


@pytest.mark.parametrize("job", ["extend", "train"])
def test_killed_before_the_first_commit(job: str, another: Callable[[], str], dataset: str) -> None:
    work = extend if job == "extend" else train(dataset)
    tally = torture(work, another, KILLS // 2, job)
    assert tally.killed == KILLS // 2
    print(f"{job}: {tally.killed} killed and {tally.late} too late, on {tally.databases} databases")


def test_the_command_killed_before_the_first_commit(another: Callable[[], str], dataset: str) -> None:
    """From the start of the interpreter on; the command then runs to its end, and says that all is sound."""
    command = [sys.executable, "-m", "memstore", "train", "--dataset", dataset, "--json", "--db"]
    dice = random.Random(3)
    root = Path(__file__).parents[2]

    def run(address: str, limit: float | None) -> int | None:
        try:
            done = subprocess.run(
                [*command, address], capture_output=True, timeout=limit, cwd=root, check=False, text=True
            )
        except subprocess.TimeoutExpired:  # it was killed
            return None
        assert done.returncode == 0, done.stderr
        return done.returncode

    started = time.monotonic()
    assert run(another(), None) == 0
    whole = time.monotonic() - started
    killed = 0
    for start in range(0, COLD_KILLS, STRIKES):
        address = another()
        for _strike in range(min(STRIKES, COLD_KILLS - start)):
            killed += run(address, whole * dice.uniform(0.3, 1.0)) is None
        assert run(address, None) == 0
        with pytest.raises(SystemExit) as ended:
            main(["check", address], prog_name="memstore")
        assert ended.value.code == 0
    print(f"the command: {killed} killed of {COLD_KILLS}, in the last 0.7 of {whole:.2f} s")
