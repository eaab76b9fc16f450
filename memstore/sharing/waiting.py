"""Waiting for the commits of other processes, without constant queries."""

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
"""A waiter looks again after this many seconds without a notice.

A notice may be missed, the memory may be closed, and a lease may run out.
"""

REMINDER = 60.0
"""A waiter writes a line to the log every this many seconds."""

log = logging.getLogger("memstore")


class Patience:
    """Patience for a loop that waits: ``with Patience(...) as patience: while not ready(): patience.pause()``.

    Parameters
    ----------
    session : Session
        Session that watches the commits to its buffer.
    wait : float
        Seconds to wait. Infinity waits for as long as it takes.
    standing : callable
        Function that returns the present state as a text, for the error and the log.
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
        """Return after the next commit by another process, or after ``LONGEST_WAIT``.

        The first pause only starts a watch and returns at once.

        Raises
        ------
        WaitTimeout
            The time to wait is over. Inside ``transaction()`` this is raised at once, because the transaction sees no
            commits of others, or prevents them.
        MemoryClosed
            Another thread closed the memory.
        """
        if self._watch is None:
            if self._session.database.transaction_open:
                raise WaitTimeout(
                    f"{self._standing()}; inside transaction() a wait would never end: wait before the block"
                )
            self._begun = time.monotonic()
            self._reminder = self._begun + REMINDER
            self._watch = self._session.watch()  # the caller looks once more and sees commits from before the watch
            return
        now = time.monotonic()
        if now - self._begun >= self._wait:
            raise WaitTimeout(f"{self._standing()}; waited {self._wait:g} s")
        if now >= self._reminder:
            log.warning("%s; waiting for %.0f s", visible(self._standing()), now - self._begun)
            self._reminder += REMINDER
        self._watch.wait(min(LONGEST_WAIT, self._begun + self._wait - now))


def check_wait(value: object) -> float:
    """Return the seconds to wait, at least 0, from a number, a ``timedelta`` or a ``timedelta64``. May be infinite."""
    if number(value) == math.inf:
        return math.inf
    try:
        return check_seconds("wait", value)
    except ConfigError as exc:
        raise ConfigError(f"{exc} (seconds: 0 does not wait, math.inf waits for as long as it takes)") from None
