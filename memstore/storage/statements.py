"""Reports on statements: a line for the ``trace`` of a handle, and counts for ``memstore.testing``.

The cursors of the drivers report, so no statement is left out. They are watched only while there is a trace or a count.
Otherwise a statement costs one test of ``watched``.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from memstore import testing

Trace = Callable[[str], object]

log = logging.getLogger("memstore")

SHOWN_HEAD, SHOWN_TAIL = 240, 60
"""A line shows at most this many characters from the beginning and from the end of a statement."""


@dataclass(slots=True, eq=False)
class Statement:
    """A statement that was sent: its time so far, its rows (negative for none), and True if its answer is awaited."""

    sql: Any
    seconds: float = 0.0
    rows: int = -1
    pending: bool = False


class Statements:
    """The statements of one handle."""

    def __init__(self, trace: Trace | None = None) -> None:
        self._trace = trace

    @property
    def watched(self) -> bool:
        """True if statements must be reported now."""
        return self._trace is not None or testing.is_counting()

    def awaited(self) -> None:
        """Count a wait for an answer."""
        testing.count("exchanges")

    @contextmanager
    def running(self, sql: Any) -> Iterator[Statement]:
        """Count a statement that runs inside the block. Report it at the end, unless its answer comes later."""
        testing.count("statements")
        statement, begun = Statement(sql), time.perf_counter()
        failed: BaseException | None = None
        try:
            yield statement
        except BaseException as exc:
            failed, statement.rows = exc, -1
            raise
        finally:
            statement.seconds = time.perf_counter() - begun
            if not statement.pending or failed is not None:
                self.awaited()
                self.done(statement, failed)
            del failed

    def done(self, statement: Statement, failed: BaseException | None = None) -> None:
        """Report a finished statement. A trace that raises is not called again."""
        if self._trace is None:
            return
        try:
            self._trace(line(statement.sql, statement.seconds, statement.rows, failed))
        except Exception:
            # The statement is done, and may be a COMMIT. An error here would wrongly say that the call failed.
            self._trace = None
            log.warning("the trace of a memory raised an error and is not called any more", exc_info=True)


def line(sql: Any, seconds: float, rows: int, failed: BaseException | None = None) -> str:
    """Return one line of text. Values never appear, because they are bound parameters."""
    text = " ".join((sql.decode() if isinstance(sql, bytes) else str(sql)).split())
    if len(text) > SHOWN_HEAD + SHOWN_TAIL:
        text = f"{text[:SHOWN_HEAD]} ... {text[-SHOWN_TAIL:]}"
    result = f", {rows} row{'s' if rows != 1 else ''}" if rows >= 0 else ""
    return f"{1000 * seconds:.2f} ms{result}: {text}{f' ({type(failed).__name__})' if failed else ''}"
