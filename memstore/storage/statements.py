"""What becomes known of statements: a line each for a handle's ``trace``, and numbers for who counts.

The drivers' cursors tell it, so that no way to the database goes past it. They are watched only while somebody wants to
know: otherwise a statement costs one look at ``watched``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

from memstore import testing

Trace = Callable[[str], object]

log = logging.getLogger("memstore")

SHOWN_HEAD, SHOWN_TAIL = 240, 60
"""Characters of a longer statement that a line shows, from its beginning and from its end."""


class Statements:
    """The statements of one handle."""

    def __init__(self, trace: Trace | None = None) -> None:
        self._trace = trace

    @property
    def watched(self) -> bool:
        """True if somebody wants to know of them now."""
        return self._trace is not None or testing.is_counting()

    def sent(self) -> None:
        """Count one that is on its way."""
        testing.count("statements")

    def awaited(self) -> None:
        """Count one wait for an answer."""
        testing.count("exchanges")

    def run(self, sql: str, act: Callable[[], object]) -> None:
        """Run one that the driver has no cursor for."""
        begun = time.perf_counter()
        self.sent()
        self.awaited()
        act()
        self.done(sql, time.perf_counter() - begun)

    def done(self, sql: Any, seconds: float, rows: int = -1, failed: BaseException | None = None) -> None:
        """Tell of one that is over; ``rows`` is negative where it has none. A trace that raises is not called again."""
        if self._trace is None:
            return
        try:
            self._trace(line(sql, seconds, rows, failed))
        except Exception:
            # The statement is done, perhaps a COMMIT: an error here would say that the call failed.
            self._trace = None
            log.warning("the trace of a memory raised an error and is not called any more", exc_info=True)


def line(sql: Any, seconds: float, rows: int, failed: BaseException | None = None) -> str:
    """One line of text; values never appear, for they are bound parameters."""
    text = " ".join((sql.decode() if isinstance(sql, bytes) else str(sql)).split())
    if len(text) > SHOWN_HEAD + SHOWN_TAIL:
        text = f"{text[:SHOWN_HEAD]} ... {text[-SHOWN_TAIL:]}"
    result = f", {rows} row{'s' if rows != 1 else ''}" if rows >= 0 else ""
    return f"{1000 * seconds:.2f} ms{result}: {text}{f' ({type(failed).__name__})' if failed else ''}"
