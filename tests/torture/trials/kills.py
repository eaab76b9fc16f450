"""kill -9 of a process that works, of one that creates its database, and of a server."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import numpy as np
from sqlalchemy import text

import memstore
from tests.sharing.load import Load, outside
from tests.support.postgres import PostgresServer
from tests.torture.model import SETTINGS, Model, facts, strike
from tests.torture.outcome import Lost, Outcome, Place

KILLS = 6
CUTS = 12
CRASHES = 2


def killed_while_working(place: Place, seed: int, outcome: Outcome) -> None:
    """One file, killed several times: it holds what was acknowledged, and at most one operation more."""
    _killed(place.file, random.Random(seed), outcome)


def killed_while_working_on_a_server(place: Place, seed: int, outcome: Outcome) -> None:
    """The same with a database on a server that outlives the process."""
    _killed(place.database(), random.Random(seed), outcome)


def _killed(url: str, dice: random.Random, outcome: Outcome) -> None:
    settings = SETTINGS[dice.choice(sorted(SETTINGS))]
    memstore.open(url, **settings).close()
    model = Model(capacity=settings["capacity"])
    for _ in range(KILLS):
        acknowledged = strike(url, model, dice.uniform(0.0, 0.06), least=dice.randint(1, 8))
        outcome.faults += 1
        outcome.acknowledged += acknowledged - model.operation
        while model.operation < acknowledged:
            model.step(None)
        with memstore.open(url, create=False) as memory:
            _check(memory, model)


def _check(memory: memstore.EpisodicMemory, model: Model) -> None:
    found = facts(memory)
    if found != model.facts():
        before = model.facts()
        model.step(None)  # committed, and killed before the acknowledgement
        if found[0] < before[0] or found[1] < before[1]:
            raise Lost(f"{before[:3]} was acknowledged, {found[:3]} is there")
    assert found == model.facts(), f"neither the state after operation {model.operation} nor the one before"
    report = memory.check()
    assert report.ok, report.problems


def killed_while_creating(place: Place, seed: int, outcome: Outcome) -> None:
    """The same new file, killed again and again before its first commit: the next process fills it."""
    _killed_creating(place.file, f"{place.file}.rehearsal", seed, outcome)


def killed_while_creating_on_a_server(place: Place, seed: int, outcome: Outcome) -> None:
    """The same with an empty database on a server."""
    _killed_creating(place.database(), place.database(), seed, outcome)


def _killed_creating(url: str, rehearsal: str, seed: int, outcome: Outcome) -> None:
    dice = random.Random(seed)
    began = time.monotonic()
    os.waitpid(_creator(rehearsal, 0), 0)
    duration = time.monotonic() - began  # of this machine at this hour
    for turn in range(KILLS):
        pid = _creator(url, turn)
        time.sleep(dice.uniform(0.0, duration))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        outcome.faults += 1
    _create(url, KILLS)
    with memstore.open(url, create=False) as memory:
        if len(memory.query().filter(memstore.col.key == f"{KILLS}-0").all()) != 1:
            raise Lost("the episode of the process that ran to its end is not there")
        outcome.acknowledged += 1
        report = memory.check()
        assert report.ok, report.problems


def _creator(url: str, turn: int) -> int:
    pid = os.fork()
    if pid == 0:
        _create(url, turn)
        os._exit(0)
    return pid


def _create(url: str, turn: int) -> None:
    with memstore.open(url) as memory:
        memory.extend({"x": np.arange(4.0)}, key=[f"{turn}-{i}" for i in range(4)], timestamp=1.0)


def connections_cut(place: Place, seed: int, outcome: Outcome) -> None:
    """Connections of four threads end at random moments: each add and update happens once."""
    dice, url = random.Random(seed), place.database()
    victims = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"

    def cut(load: Load) -> None:
        with outside(url) as conn:
            for _ in range(CUTS):
                pids = list(conn.scalars(text(victims)))
                if pids:
                    killed = conn.execute(text("SELECT pg_terminate_backend(:pid)"), {"pid": dice.choice(pids)})
                    outcome.faults += killed.scalar_one()
                load.progress(dice.randrange(3))

    _under_load(url, cut, outcome)


def server_killed(place: Place, seed: int, outcome: Outcome) -> None:
    """A server of its own is killed and recovers, while threads go on; nothing is opened anew."""
    dice = random.Random(seed)

    def crash(load: Load) -> None:
        for _ in range(CRASHES):
            load.progress(dice.randrange(3, 12))
            server.crash(dice.choice([signal.SIGQUIT, signal.SIGKILL]))
            time.sleep(dice.uniform(0, 0.3))
            server.start()
            outcome.faults += 1

    with PostgresServer() as server:
        _under_load(server.create_database("torture"), crash, outcome)


def _under_load(url: str, harm: Callable[[Load], None], outcome: Outcome) -> None:
    with memstore.open(url, capacity=100_000, busy_timeout=20, durability="power", seed=1) as memory:
        load = Load(memory)
        with load.running():
            load.progress(8)
            harm(load)
            load.progress(8)
        load.check(url)
        outcome.acknowledged += len(load.updates) + len(load.added) // 4
