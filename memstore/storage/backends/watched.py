"""A connection to a SQLite file that closes completely, and reports its statements."""

from __future__ import annotations

import sqlite3
import time
import weakref
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from memstore.storage.statements import Statements

LAST_CURSORS = 16
"""A connection remembers this many of its cursors: the last ones."""


class WatchedConnection(sqlite3.Connection):
    """A connection that reports its statements, and gives up its transaction when it is closed.

    SQLite keeps a closed connection, with its locks and its snapshot, while a cursor is in the middle of a result. Such
    a cursor may be in a traceback. So the last cursors are remembered (0.4 us a statement), and closed first.
    """

    closed = False

    def __init__(self, statements: Statements, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.statements = statements
        self._cursors: deque[weakref.ref[sqlite3.Cursor]] = deque(maxlen=LAST_CURSORS)

    def cursor(self, *arguments: Any) -> Any:
        """Return a new cursor."""
        kind = (WatchedCursor,) if self.statements.watched and not arguments else arguments
        made = super().cursor(*kind)
        self._cursors.append(weakref.ref(made))
        return made

    def execute(self, *arguments: Any) -> sqlite3.Cursor:
        """Run a statement by a remembered cursor. Python's own method makes a cursor without ``cursor``."""
        made: sqlite3.Cursor = self.cursor().execute(*arguments)
        return made

    def executemany(self, *arguments: Any) -> sqlite3.Cursor:
        """Run a statement for many rows, by a remembered cursor."""
        made: sqlite3.Cursor = self.cursor().executemany(*arguments)
        return made

    def commit(self) -> None:
        """Commit, if a transaction is open."""
        self._end("COMMIT", super().commit)

    def rollback(self) -> None:
        """Roll back, if a transaction is open."""
        self._end("ROLLBACK", super().rollback)

    def close(self) -> None:
        """Roll back and close. It may be called any number of times."""
        with suppress(sqlite3.ProgrammingError):  # it was closed already
            for known in self._cursors:
                if (cursor := known()) is not None:
                    cursor.close()
            self.rollback()
        self.closed = True
        super().close()

    def _end(self, sql: str, end: Callable[[], None]) -> None:
        if self.statements.watched and self.in_transaction:
            self.statements.run(sql, end)
        else:
            end()


class WatchedCursor(sqlite3.Cursor):
    """A cursor that reports each statement when its last row was read, or when the cursor is closed or used again."""

    _text: str | None = None
    _seconds = 0.0
    _rows = 0

    def execute(self, sql: str, *values: Any) -> Any:
        """Run a statement."""
        return self._run(super().execute, sql, *values)

    def executemany(self, sql: str, *values: Any) -> Any:
        """Run a statement for many rows."""
        return self._run(super().executemany, sql, *values)

    def fetchone(self) -> Any:
        """Fetch a row."""
        return next(iter(self.fetchmany(1)), None)

    def __next__(self) -> Any:
        for found in self.fetchmany(1):
            return found
        raise StopIteration

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """Fetch some rows."""
        return self._fetch(lambda: super(WatchedCursor, self).fetchmany(self.arraysize if size is None else size))

    def fetchall(self) -> list[Any]:
        """Fetch the rest of the rows."""
        found = self._fetch(super().fetchall)
        self._tell()
        return found

    def close(self) -> None:
        """Report the statement, and close."""
        self._tell()
        super().close()

    def __del__(self) -> None:
        self._tell()

    def _run(self, run: Callable[..., Any], sql: str, *values: Any) -> Any:
        self._tell()
        statements = cast(WatchedConnection, self.connection).statements
        statements.sent()
        statements.awaited()
        begun = time.perf_counter()
        try:
            run(sql, *values)
        except BaseException as exc:
            statements.done(sql, time.perf_counter() - begun, failed=exc)
            raise
        self._text, self._seconds, self._rows = sql, time.perf_counter() - begun, 0
        if self.description is None:
            self._rows = self.rowcount
            self._tell()
        return self

    def _fetch(self, fetch: Callable[[], list[Any]]) -> list[Any]:
        begun = time.perf_counter()
        found = fetch()
        self._seconds += time.perf_counter() - begun
        self._rows += len(found)
        if not found:
            self._tell()
        return found

    def _tell(self) -> None:
        text, self._text = self._text, None
        if text is not None:
            cast(WatchedConnection, self.connection).statements.done(text, self._seconds, self._rows)
