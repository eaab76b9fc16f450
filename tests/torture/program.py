"""Run trials of every kind for a time, in processes of their own, and add up what came of them."""

from __future__ import annotations

import json
import multiprocessing
import multiprocessing.connection
import os
import random
import resource
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from memstore import MemstoreError
from tests.support.postgres import PostgresServer
from tests.torture.outcome import Lost, Outcome, Place, Trial

FORKED: Any = multiprocessing.get_context("fork")

MEMORY = 4 * 2**30
"""Bytes of address space of a trial: a damaged file must not make memstore ask for more."""


@dataclass(frozen=True)
class Kind:
    """A kind of trial: its share of the time, and the seconds after which one trial counts as hung."""

    trial: Trial
    share: float = 1.0
    patience: float = 120.0
    needs_server: bool = False


@dataclass
class _Running:
    kind: str
    seed: int
    process: Any
    answer: Any
    folder: Path
    started: float = field(default_factory=time.monotonic)


class Program:
    """Trials side by side, each kind with its share of the time, each trial with a seed that repeats it."""

    def __init__(self, kinds: Mapping[str, Kind], server: PostgresServer | None, jobs: int) -> None:
        self.kinds = dict(kinds)
        self.server = server
        self.jobs = jobs
        self.outcomes = {name: Outcome() for name in self.kinds}
        self._spent = dict.fromkeys(self.kinds, 0.0)
        self._running: list[_Running] = []

    def run(self, seconds: float, seed: int, told: Callable[[float], None]) -> None:
        """Start trials until the time is over, then wait for those that run."""
        dice = random.Random(seed)
        began = time.monotonic()
        while (elapsed := time.monotonic() - began) < seconds or self._running:
            told(min(elapsed, seconds))
            while elapsed < seconds and len(self._running) < self.jobs:
                self.start(self._next(), dice.randrange(2**31))
            self.collect(0.2)
        told(seconds)

    def start(self, kind: str, seed: int) -> None:
        """Start one trial."""
        folder = Path(tempfile.mkdtemp(prefix="memstore-torture-"))
        receiving, sending = FORKED.Pipe(duplex=False)
        place = Place(folder, self.server)
        process = FORKED.Process(target=_answer, args=(self.kinds[kind].trial, place, seed, sending))
        process.start()
        sending.close()
        self._running.append(_Running(kind, seed, process, receiving, folder))

    def collect(self, wait: float) -> None:
        """Take the outcomes of trials that ended, and end those that hang."""
        multiprocessing.connection.wait([trial.answer for trial in self._running], wait)
        for trial in list(self._running):
            patience = self.kinds[trial.kind].patience
            if trial.answer.poll():
                self._add(trial, _received(trial))
            elif time.monotonic() - trial.started > patience:
                self._add(trial, Outcome(1, hung=1, findings=[f"no end after {patience:g} s"]))

    def _next(self) -> str:
        """The kind that had least of its share."""
        running = [trial.kind for trial in self._running]
        return min(self.kinds, key=lambda name: (self._spent[name] / self.kinds[name].share, name in running))

    def _add(self, trial: _Running, outcome: Outcome) -> None:
        with _ignored(ProcessLookupError, PermissionError):
            os.killpg(trial.process.pid, signal.SIGKILL)
        trial.process.join()
        trial.answer.close()
        self._running.remove(trial)
        self._spent[trial.kind] += time.monotonic() - trial.started
        where = f"python -m tests.torture --one {trial.kind} --seed {trial.seed}"
        outcome.findings = [f"{where}: {finding}" for finding in outcome.findings]
        self.outcomes[trial.kind].add(outcome)
        shutil.rmtree(trial.folder, ignore_errors=True)


@contextmanager
def _ignored(*errors: type[BaseException]) -> Iterator[None]:
    try:
        yield
    except errors:
        return


def _received(trial: _Running) -> Outcome:
    try:
        return Outcome(**json.loads(trial.answer.recv_bytes()))
    except EOFError:
        trial.process.join()
        return Outcome(1, foreign=1, findings=[f"the process ended with {trial.process.exitcode} and no outcome"])


def _answer(trial: Trial, place: Place, seed: int, sending: Any) -> None:
    os.setsid()  # whatever the trial starts ends with it
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, resource.getrlimit(resource.RLIMIT_AS)[1]))
    try:
        outcome = attempt(trial, place, seed)
    finally:
        place.clear()
    sending.send_bytes(json.dumps(outcome.to_dict()).encode())


def attempt(trial: Trial, place: Place, seed: int) -> Outcome:
    """One trial in this process; what it raises becomes a count and a finding."""
    outcome = Outcome(trials=1)
    try:
        trial(place, seed, outcome)
    except Lost as exc:
        outcome.lost += 1
        outcome.findings.append(f"lost: {exc}")
    except (AssertionError, MemstoreError) as exc:
        outcome.wrong += 1
        outcome.findings.append(f"wrong: {_told(exc)}")
    except BaseException as exc:
        outcome.foreign += 1
        outcome.findings.append(f"foreign: {_told(exc)}")
    return outcome


def _told(exc: BaseException) -> str:
    frame = traceback.extract_tb(exc.__traceback__)[-1]
    return f"{type(exc).__name__}: {exc} ({Path(frame.filename).name}:{frame.lineno})"[:600]
