"""psycopg's connection, as pipelines, interrupts and watched statements need it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, cast

import psycopg
from psycopg import waiting
from psycopg.pq import PipelineStatus, TransactionStatus

from memstore.storage.backends.arrays import Array, ArrayDumper
from memstore.storage.statements import Statements


class PipelinedConnection(psycopg.Connection[Any]):
    """A connection that can commit inside a pipeline, and that stops waiting at once when an interrupt comes.

    psycopg's own ``commit`` first looks at the status of the transaction. In a pipeline that status is known only after
    the next Sync, so ``commit`` would send nothing, and the pool's reset would roll back what was reported as
    committed. After an interrupt, psycopg's own ``wait`` goes on until the answer is there, for 5 s or for ever. This
    class gives the connection up instead.
    """

    statements: Statements

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unanswered: list[WatchedCursor] = []

    def wait(self, gen: Any, interval: float = 0.1, **options: Any) -> Any:  # type: ignore[override]
        """Run a generator of psycopg until it ends, and wait for the socket whenever it asks for that."""
        return waiting.wait(gen, self.pgconn.socket, interval=interval, **options)

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """Return a new cursor."""
        self.cursor_factory = self.kind_of_cursor()
        return super().cursor(*arguments, **options)

    def kind_of_cursor(self) -> type[psycopg.Cursor[Any]]:
        """The class of a cursor that begins now."""
        return WatchedCursor if self.statements.watched else psycopg.Cursor

    def commit(self) -> None:
        """Send COMMIT. Inside a pipeline its result is known only when the pipeline ends."""
        if self.info.pipeline_status is PipelineStatus.OFF:
            super().commit()
        else:
            self.execute("COMMIT")

    def rollback(self) -> None:
        """Roll back, if there is anything."""
        self.answered(0.0)
        if self.statements.watched and self.info.transaction_status is not TransactionStatus.IDLE:
            self.statements.run("ROLLBACK", super().rollback)
        else:
            super().rollback()

    def await_all(self, sync: Callable[[], object]) -> None:
        """Wait for the answers to everything sent in the pipeline; the last statement is told with that time."""
        begun = time.perf_counter()
        sync()
        self.statements.awaited()
        self.answered(time.perf_counter() - begun)

    def answered(self, seconds: float, last: WatchedCursor | None = None) -> None:
        """Tell of the statements up to ``last`` (None: all), for whose answers one waited so long."""
        while self._unanswered:
            first = self._unanswered.pop(0)
            if first is last or not self._unanswered:
                first.seconds += seconds
            self.statements.done(first.text, first.seconds, first.rowcount)
            if first is last:
                return


class WatchedCursor(psycopg.Cursor[Any]):
    """A cursor whose statements are told of.

    The time of a pipelined one is that of sending it, and of the wait for its answer if one waited for just that.
    """

    text: Any = None
    seconds = 0.0

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        """Run a statement, or send it in a pipeline."""
        begun = time.perf_counter()
        connection, failed = self._owner, None
        connection.statements.sent()
        try:
            return super().execute(query, *arguments, **options)
        except BaseException as exc:
            failed = exc
            raise
        finally:
            self.text, self.seconds = query, time.perf_counter() - begun
            if connection.info.pipeline_status is not PipelineStatus.OFF and failed is None:
                connection._unanswered.append(self)
            else:
                connection.statements.awaited()
                connection.statements.done(query, self.seconds, -1 if failed else self.rowcount, failed)
            del failed

    def fetchone(self) -> Any:
        """Fetch a row."""
        return self._fetched(super().fetchone)

    def fetchmany(self, size: int = 0) -> list[Any]:
        """Fetch some rows."""
        return cast("list[Any]", self._fetched(lambda: super(WatchedCursor, self).fetchmany(size)))

    def fetchall(self) -> list[Any]:
        """Fetch the rest of the rows."""
        return cast("list[Any]", self._fetched(super().fetchall))

    @property
    def _owner(self) -> PipelinedConnection:
        return cast(PipelinedConnection, self.connection)

    def _fetched(self, fetch: Callable[[], Any]) -> Any:
        connection = self._owner
        if self not in connection._unanswered:
            return fetch()
        begun = time.perf_counter()
        if self.pgresult is None:  # else its answer came with an earlier one
            connection.statements.awaited()
        found = fetch()
        connection.answered(time.perf_counter() - begun, self)
        return found


def connect_pipelined(statements: Statements, arguments: Any, options: dict[str, Any]) -> PipelinedConnection:
    """A connection whose statements are told of there."""
    connection = PipelinedConnection.connect(*arguments, **options)
    connection.statements = statements
    connection.adapters.register_dumper(Array, ArrayDumper)
    return connection
