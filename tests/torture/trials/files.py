"""Damage that reaches a file from outside: a log cut short, and a disk without room."""

from __future__ import annotations

import copy
import random
import resource
import shutil
from pathlib import Path
from typing import Any

import numpy as np

import memstore
from tests.torture.model import SETTINGS, Model, facts, strike
from tests.torture.outcome import Outcome, Place

CUTS = 12
ROOMS = 8


def torn_log(place: Place, seed: int, outcome: Outcome) -> None:
    """Power loss: the log ends at any byte, ends in garbage, or has flipped bits; some prefix of commits is left."""
    dice = random.Random(seed)
    settings = SETTINGS[dice.choice(sorted(SETTINGS))]
    memstore.open(place.file, **settings).close()
    model = Model(capacity=settings["capacity"])
    operations = strike(place.file, model, 0.5, limit=60)
    outcome.acknowledged += operations
    log = Path(f"{place.file}-wal").read_bytes()
    states = [copy.deepcopy(model.facts())]
    for _ in range(operations + 1):  # the last one may be committed and not acknowledged
        model.step(None)
        states.append(copy.deepcopy(model.facts()))
    for cut in range(CUTS):
        target = str(place.folder / f"copy{cut}.db")
        shutil.copyfile(place.file, target)
        Path(f"{target}-wal").write_bytes(_torn(log, dice))
        outcome.faults += 1
        with memstore.open(target, create=False) as memory:
            assert facts(memory) in states, "not the state after any of the commits"
            report = memory.check()
            assert report.ok, report.problems
            memory.extend({"number": np.arange(3), "noise": np.zeros((3, 40), np.int64)}, loss=1.0)
            assert memory.check().ok


def _torn(log: bytes, dice: random.Random) -> bytes:
    how = dice.randrange(3)
    if how == 2:  # a sector that was not written as it should
        damaged = bytearray(log)
        for _ in range(dice.randint(1, 8)):
            damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        return bytes(damaged)
    tail = dice.randbytes(dice.randrange(1, 9000)) if how else b""
    return log[: dice.randrange(len(log) + 1)] + tail


def full_disk(place: Place, seed: int, outcome: Outcome) -> None:
    """Files of this process may not grow any more: a refused operation leaves nothing, and work goes on with room."""
    dice = random.Random(seed)
    settings = SETTINGS[dice.choice(sorted(SETTINGS))]
    with memstore.open(place.file, **settings) as memory:
        model = Model(capacity=settings["capacity"])
        for _ in range(ROOMS):
            with _Room(place.file, dice.randrange(1, 400_000)):
                _fill(memory, model, outcome)
            found = facts(memory)
            assert found == model.facts(), "a refused operation left something, or an acknowledged one is gone"
            model.step(memory)
            outcome.acknowledged += 1
            report = memory.check()
            assert report.ok, report.problems
    with memstore.open(place.file, create=False) as memory:
        assert facts(memory) == model.facts(), "what was acknowledged is not there after the disk was full"


def _fill(memory: memstore.EpisodicMemory, model: Model, outcome: Outcome) -> None:
    while True:
        attempt = copy.deepcopy(model)
        try:
            attempt.step(memory)
        except (memstore.StoreFull, memstore.TransactionDead):
            outcome.faults += 1
            return
        vars(model).update(vars(attempt))
        outcome.acknowledged += 1


class _Room:
    """No file of this process may grow beyond the size of the database and its log plus so many bytes."""

    def __init__(self, path: str, more: int) -> None:
        sizes = [name.stat().st_size for name in (Path(path), Path(f"{path}-wal")) if name.exists()]
        self._limit = max(sizes) + more

    def __enter__(self) -> None:
        self._before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self._limit, self._before[1]))

    def __exit__(self, *_: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self._before)
