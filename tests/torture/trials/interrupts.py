"""Ctrl-C and SIGTERM at chosen moments of a public call."""

from __future__ import annotations

import logging
import random

from tests.torture.interrupts import ALONE, CALLS, torment
from tests.torture.outcome import Outcome, Place

STRIKES = 6
NAMES = sorted({*CALLS, *ALONE})


def interrupted(place: Place, seed: int, outcome: Outcome) -> None:
    """One call on a file, alone and inside ``transaction()``: the interrupt comes out, and everything goes on."""
    _interrupted(f"sqlite:///{place.file}", seed, outcome)


def interrupted_on_a_server(place: Place, seed: int, outcome: Outcome) -> None:
    """The same on a server."""
    _interrupted(place.database(), seed, outcome)


def _interrupted(url: str, seed: int, outcome: Outcome) -> None:
    # It tells of an interrupt that comes while a connection is given back.
    logging.disable()
    report = torment(url, STRIKES, seed, only=random.Random(seed).choice(NAMES))
    outcome.faults += sum(report.strikes.values())
    outcome.acknowledged += len(report.times)
    assert not report.faults, "; ".join(report.faults[:3])
