"""Wait for what other processes do, without asking all the time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any, TypeVar

from memstore.buffer.session import Session
from memstore.config import check_seconds
from memstore.errors import ConfigError, WaitTimeout
from memstore.printable import visible

T = TypeVar("T")

LONGEST_WAIT = 0.25
"""Seconds after which a waiter looks again unasked: notices can be missed, memories closed, leases expire."""

REMINDER = 60.0
"""Seconds after which the log says what is being waited for, again and again."""

log = logging.getLogger("memstore")


def wait_until(session: Session, attempt: Callable[[], T | None], timeout: float, what: Callable[[], str]) -> T:
    """Run ``attempt`` now and after commits by others, until it returns something.

    Parameters
    ----------
    timeout : float
        Seconds; infinity for as long as it takes.
    what : callable
        Describes what is waited for and how things stand, for the error and the log.

    Raises
    ------
    WaitTimeout
        When the time is over. At once inside ``transaction()``: it sees no commit of others, or keeps them from it.
    MemoryClosed
        When another thread closes the memory.
    """
    result = attempt()
    if result is not None:
        return result
    if session.database.transaction_open:
        raise WaitTimeout(f"{what()}; inside transaction() nothing can be waited for: wait before the block")
    begun = time.monotonic()
    reminder = begun + REMINDER
    with closing(session.watch()) as watch:
        while (result := attempt()) is None:
            now = time.monotonic()
            if now - begun >= timeout:
                raise WaitTimeout(f"{what()}; waited {timeout:g} s")
            if now >= reminder:
                log.warning("%s; waiting for %.0f s", visible(what()), now - begun)
                reminder += REMINDER
            watch.wait(min(LONGEST_WAIT, begun + timeout - now))
    return result


def check_timeout(value: Any) -> float:
    """Seconds to wait; None is for as long as it takes."""
    if value is None or (isinstance(value, float) and value == math.inf):
        return math.inf
    try:
        return check_seconds("timeout", value)
    except ConfigError as exc:
        raise ConfigError(f"{exc} (seconds; None waits for as long as it takes)") from None
