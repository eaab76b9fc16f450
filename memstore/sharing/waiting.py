"""Wait for what other processes do, without asking all the time."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable

from memstore.buffer.session import Session
from memstore.config import check_seconds
from memstore.errors import ConfigError, WaitTimeout
from memstore.printable import visible
from memstore.storage.backends import Watch
from memstore.values.foreign import number

LONGEST_WAIT = 0.25
"""Seconds after which a waiter looks again unasked: notices can be missed, memories closed, leases expire."""

REMINDER = 60.0
"""Seconds between two lines of the log that say what is being waited for."""

log = logging.getLogger("memstore")


class Patience:
    """Look again and again until something is there: ``with Patience(...) as patience: while not there: pause()``.

    Parameters
    ----------
    session : Session
        It watches the commits to its buffer.
    wait : float
        Seconds; infinity for as long as it takes.
    standing : callable
        Says what is waited for and how things stand, for the error and the log.
    """

    def __init__(self, session: Session, wait: float, standing: Callable[[], str]) -> None:
        self._session = session
        self._wait = wait
        self._standing = standing
        self._watch: Watch | None = None

    def __enter__(self) -> Patience:
        return self

    def __exit__(self, *_: object) -> None:
        if self._watch is not None:
            self._watch.close()

    def pause(self) -> None:
        """Return after the next commit by others, or a little later; the first pause only starts to watch.

        Raises
        ------
        WaitTimeout
            When the time is over. At once inside ``transaction()``: it sees no commit of others, or keeps them from it.
        MemoryClosed
            When another thread closes the memory.
        """
        if self._watch is None:
            if self._session.database.transaction_open:
                raise WaitTimeout(
                    f"{self._standing()}; inside transaction() nothing can be waited for: wait before the block"
                )
            self._begun = time.monotonic()
            self._reminder = self._begun + REMINDER
            self._watch = self._session.watch()  # what was committed before it began is seen by another look
            return
        now = time.monotonic()
        if now - self._begun >= self._wait:
            raise WaitTimeout(f"{self._standing()}; waited {self._wait:g} s")
        if now >= self._reminder:
            log.warning("%s; waiting for %.0f s", visible(self._standing()), now - self._begun)
            self._reminder += REMINDER
        self._watch.wait(min(LONGEST_WAIT, self._begun + self._wait - now))


def check_wait(value: object) -> float:
    """Seconds to wait, at least 0: a number, a ``timedelta`` or a ``timedelta64``; infinity is allowed."""
    if number(value) == math.inf:
        return math.inf
    try:
        return check_seconds("wait", value)
    except ConfigError as exc:
        raise ConfigError(f"{exc} (seconds: 0 does not wait, math.inf waits for as long as it takes)") from None
