"""Reports on statements: a line for the ``trace`` of a handle, and counts for ``memstore.testing``.

The cursors of the drivers report, so no statement is left out. They are watched only while there is a trace or a count.
Otherwise a statement costs one test of ``watched``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from memstore import testing

Trace = Callable[[str], object]

SHOWN_HEAD, SHOWN_TAIL = 240, 60
"""A line shows at most this many characters from the beginning and from the end of a statement."""


class Statements:
    """The statements of one handle."""

    def __init__(self, trace: Trace | None = None) -> None:
        self._trace = trace

    @property
    def watched(self) -> bool:
        """True if statements must be reported now."""
        return self._trace is not None or testing.is_counting()

    def sent(self) -> None:
        """Count a statement that was sent."""
        testing.count("statements")

    def awaited(self) -> None:
        """Count a wait for an answer."""
        testing.count("exchanges")

    def run(self, sql: str, act: Callable[[], object]) -> None:
        """Run and report a statement that has no cursor in the driver."""
        begun = time.perf_counter()
        self.sent()
        self.awaited()
        act()
        self.done(sql, time.perf_counter() - begun)

    def done(self, sql: Any, seconds: float, rows: int = -1, failed: BaseException | None = None) -> None:
        """Report a finished statement. ``rows`` is negative if the statement has no rows."""
        if self._trace is not None:
            self._trace(line(sql, seconds, rows, failed))


def line(sql: Any, seconds: float, rows: int, failed: BaseException | None = None) -> str:
    """Return one line of text. Values never appear, because they are bound parameters."""
    text = " ".join((sql.decode() if isinstance(sql, bytes) else str(sql)).split())
    if len(text) > SHOWN_HEAD + SHOWN_TAIL:
        text = f"{text[:SHOWN_HEAD]} ... {text[-SHOWN_TAIL:]}"
    result = f", {rows} row{'s' if rows != 1 else ''}" if rows >= 0 else ""
    return f"{1000 * seconds:.2f} ms{result}: {text}{f' ({type(failed).__name__})' if failed else ''}"
