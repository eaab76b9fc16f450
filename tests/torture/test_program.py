"""The program that injects faults: each kind of failure is counted as what it is, and a finding repeats its trial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from memstore import StoreBusy
from tests.torture.outcome import Lost, Outcome, Place
from tests.torture.program import Kind, Program

pytestmark = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="a trial is a forked child"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


def _sound(place: Place, seed: int, outcome: Outcome) -> None:
    outcome.faults += 1
    outcome.acknowledged += 2


def _raising(error: Exception) -> Callable[[Place, int, Outcome], None]:
    def trial(place: Place, seed: int, outcome: Outcome) -> None:
        raise error

    return trial


def _hanging(place: Place, seed: int, outcome: Outcome) -> None:
    time.sleep(60)


def _crashing(place: Place, seed: int, outcome: Outcome) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("trial", "count"),
    [
        (_sound, None),
        (_raising(Lost("an episode")), "lost"),
        (_raising(AssertionError("other rows")), "wrong"),
        (_raising(StoreBusy("for ever")), "wrong"),
        (_raising(KeyError("x")), "foreign"),
        (_crashing, "foreign"),
        (_hanging, "hung"),
    ],
)
def test_what_a_trial_comes_to(trial: Callable[[Place, int, Outcome], None], count: str | None) -> None:
    program = Program({"kind": Kind(trial, patience=1.0)}, None, 1)
    program.start("kind", 5)
    outcome = program.outcomes["kind"]
    while not outcome.trials:
        program.collect(0.1)
    assert outcome.sound is (count is None)
    counts = {name: getattr(outcome, name) for name in ("lost", "wrong", "hung", "foreign")}
    assert counts == {name: int(name == count) for name in counts}
    assert [finding.startswith("python -m tests.torture --one kind --seed 5: ") for finding in outcome.findings] == (
        [True] if count else []
    )


def test_every_kind_gets_its_share_of_the_time() -> None:
    def slow(place: Place, seed: int, outcome: Outcome) -> None:
        time.sleep(0.02)

    program = Program({"much": Kind(slow, share=3.0), "little": Kind(slow)}, None, 2)
    program.run(5, 1, lambda elapsed: None)
    assert 1.5 < program.outcomes["much"].trials / program.outcomes["little"].trials < 6


def test_the_command_runs_one_trial_and_prints_the_table() -> None:
    command = [sys.executable, "-m", "tests.torture", "--one", "torn-log", "--seed", "3"]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "torn-log        1       12" in run.stdout, run.stdout
    assert "torture: 1 passed, 0 failed" in run.stdout
