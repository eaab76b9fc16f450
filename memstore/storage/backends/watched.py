"""A connection to a SQLite file that closes completely, and reports its statements."""

from __future__ import annotations

import sqlite3
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from typing import Any, cast

from memstore.storage.backends.log import LEAST_PAGES
from memstore.storage.backends.samefile import OpenFiles
from memstore.storage.files import Look
from memstore.storage.statements import Statements

LAST_CURSORS = 16
"""A connection remembers this many of its cursors: the last ones."""


class WatchedConnection(sqlite3.Connection):
    """A connection that reports its statements, and gives up its transaction when it is closed.

    SQLite keeps a closed connection, with its locks and its snapshot, while a cursor is in the middle of a result. Such
    a cursor may be in a traceback. So the last cursors are remembered (0.4 us a statement), and closed first.
    """

    closed = False

    files: OpenFiles
    """Files that the connection has open."""

    seen: Look | None = None
    """Look of the file at its opening, if the file is read without a log."""

    log_pages = LEAST_PAGES
    """Number of pages at which the connection folds the log."""

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
            with self.statements.running(sql):
                end()
        else:
            end()


class WatchedCursor(sqlite3.Cursor):
    """A cursor that reports its statements. It reads all rows at once, to know their number and time."""

    _found: Iterator[Any] = iter(())

    def execute(self, sql: str, *values: Any) -> Any:
        """Run a statement."""
        return self._run(super().execute, sql, *values)

    def executemany(self, sql: str, *values: Any) -> Any:
        """Run a statement for many rows."""
        return self._run(super().executemany, sql, *values)

    def fetchone(self) -> Any:
        """Fetch a row."""
        return next(self._found, None)

    def __next__(self) -> Any:
        return next(self._found)

    def fetchmany(self, size: int | None = None) -> list[Any]:
        """Fetch some rows."""
        return list(islice(self._found, self.arraysize if size is None else size))

    def fetchall(self) -> list[Any]:
        """Fetch the rest of the rows."""
        return list(self._found)

    def _run(self, run: Callable[..., Any], sql: str, *values: Any) -> Any:
        self._found = iter(())
        with cast(WatchedConnection, self.connection).statements.running(sql) as statement:
            run(sql, *values)
            rows = super().fetchall()
            statement.rows = self.rowcount if self.description is None else len(rows)
        self._found = iter(rows)
        return self
