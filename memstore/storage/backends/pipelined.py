"""A connection of psycopg that supports pipelines, interrupts, and reports on statements."""

from __future__ import annotations

import selectors
import time
from collections.abc import Callable, Sequence
from contextlib import closing, suppress
from typing import Any, cast

import psycopg
from psycopg import waiting
from psycopg.pq import PipelineStatus, TransactionStatus

from memstore.storage.backends.arrays import Array, ArrayDumper
from memstore.storage.statements import Statement, Statements


class PipelinedConnection(psycopg.Connection[Any]):
    """A connection that can commit inside a pipeline, and that stops waiting at once when an interrupt comes.

    psycopg's own ``commit`` first looks at the status of the transaction. In a pipeline that status is known only after
    the next Sync, so ``commit`` would send nothing, and the pool's reset would roll back what was reported as
    committed. After an interrupt, psycopg's own ``wait`` goes on until the answer is there, for 5 s or for ever. This
    class gives the connection up instead.
    """

    statements: Statements

    swollen = False
    """True if the connection must be closed after its transaction, because libpq's buffers grew and never shrink."""

    reads_only = False
    """True if the transaction only reads."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._unanswered: list[WatchedCursor] = []
        self._open: psycopg.Pipeline | None = None
        self._queueing = False
        self.ended = False
        """True if the answers to the end of the last transaction were not read yet."""

    def enter_pipeline(self) -> None:
        """Begin a pipeline: from here on, wait only for answers that are fetched."""
        # Not by ``pipeline()``: where a process ends with such a block open, Python collects it, and psycopg logs a
        # warning about that.
        self._check_connection_ok()
        self._open = self._pipeline = psycopg.Pipeline(self)
        self._open.__enter__()

    def _leave(self, opened: psycopg.Pipeline) -> None:
        try:
            opened.__exit__(None, None, None)
        finally:
            self._pipeline = None

    def send(self, query: str, values: Sequence[Any], *, now: bool = False) -> psycopg.Cursor[Any]:
        """Run a statement with binary results. In a pipeline, it may be sent later, together with others.

        psycopg sends each statement by itself, which wakes the server each time. An add of one episode has nine
        statements, and takes a third less time if they are sent in two parts.

        Parameters
        ----------
        now : bool
            True sends it at once, so that the server works on it while this process goes on.
        """
        cursor = self.kind_of_cursor()(self)
        self._queueing = self._open is not None
        try:
            cursor.execute(query, values or None, binary=True)
        finally:
            self._queueing = False
        if now:
            self.flush()
        return cursor

    def may_end_reading(self) -> bool:
        """True if the transaction only reads, and all its answers were read. An error might be among the others."""
        return self.reads_only and self._open is not None and not self._open.result_queue and not self.swollen

    def end_reading(self) -> None:
        """Send COMMIT, and do not wait for the answer. Nothing that was read depends on it."""
        assert self._open is not None
        self.send("COMMIT", ())
        pipeline = self._open
        pipeline._enqueue_sync()
        self._hand_over(pipeline)
        self.flush()
        self.answered(0.0)
        self.ended = True

    def finish(self) -> None:
        """Read the answers to the end of the last transaction. They have usually arrived."""
        self.ended = False
        opened, self._open = self._open, None
        if opened is not None:
            self._leave(opened)

    def leave_pipeline(self) -> None:
        """Wait for all answers, and leave the pipeline, if there is one."""
        opened, self._open = self._open, None
        if opened is not None:
            self.await_all(lambda: self._leave(opened))

    def settle(self) -> None:
        """Wait for all answers."""
        self.flush()
        if self._open is not None:
            self.await_all(self._open.sync)

    def wait(self, gen: Any, interval: float = 0.1, **options: Any) -> Any:  # type: ignore[override]
        """Run a generator of psycopg until it ends, and wait for the socket whenever it asks for that."""
        if self._queueing and self._open is not None:
            with closing(gen), suppress(StopIteration):
                next(gen)  # up to its first wait for the socket; the statement is then in psycopg's queue
            return self._hand_over(self._open)
        return waiting.wait(gen, self.pgconn.socket, interval=interval, **options)

    def _hand_over(self, pipeline: psycopg.Pipeline) -> None:
        """Let libpq have the statements that psycopg has queued. It sends them with the next flush."""
        while pipeline.command_queue:
            pipeline.command_queue.popleft()()

    def cursor(self, *arguments: Any, **options: Any) -> Any:
        """Return a new cursor."""
        self.cursor_factory = self.kind_of_cursor()
        return super().cursor(*arguments, **options)

    def kind_of_cursor(self) -> type[psycopg.Cursor[Any]]:
        """Return the class for a new cursor."""
        return WatchedCursor if self.statements.watched else psycopg.Cursor

    def commit(self) -> None:
        """Send COMMIT. Inside a pipeline its result is known only when the pipeline ends."""
        if self.info.pipeline_status is PipelineStatus.OFF:
            super().commit()
        else:
            self.send("COMMIT", (), now=True)

    def rollback(self) -> None:
        """Roll back, if a transaction is open."""
        self.answered(0.0)
        if self.statements.watched and self.info.transaction_status is not TransactionStatus.IDLE:
            with self.statements.running("ROLLBACK"):
                super().rollback()
        else:
            super().rollback()

    def flush(self) -> None:
        """Send all of a pipelined statement.

        psycopg 3.3 tries once to send it, and then only reads. A statement that does not fit the socket's buffer, such
        as a checkpoint of 10 MB, would then wait for ever, and so would the server.
        """
        if not self.pgconn.flush():
            return
        with selectors.DefaultSelector() as selector:
            selector.register(self.pgconn.socket, selectors.EVENT_READ | selectors.EVENT_WRITE)
            while self.pgconn.flush():
                if any(events & selectors.EVENT_READ for _, events in selector.select()):
                    self.pgconn.consume_input()

    def await_all(self, sync: Callable[[], object]) -> None:
        """Wait for the answers to all statements in the pipeline. The last statement is reported with that time."""
        begun = time.perf_counter()
        sync()
        self.statements.awaited()
        self.answered(time.perf_counter() - begun)

    def answered(self, seconds: float, last: WatchedCursor | None = None) -> None:
        """Report the statements up to ``last``, after a wait of ``seconds`` for their answers. None reports all."""
        while self._unanswered:
            cursor = self._unanswered.pop(0)
            statement = cursor.statement
            if cursor is last or not self._unanswered:
                statement.seconds += seconds
            statement.rows = cursor.rowcount
            self.statements.done(statement)
            if cursor is last:
                return


class WatchedCursor(psycopg.Cursor[Any]):
    """A cursor that reports its statements.

    The time of a pipelined statement is the time to send it. It includes the wait for the answer if the process waited
    for this answer alone.
    """

    statement: Statement

    def execute(self, query: Any, *arguments: Any, **options: Any) -> Any:
        """Run a statement, or send it in a pipeline."""
        connection = self._owner
        with connection.statements.running(query) as statement:
            self.statement = statement
            super().execute(query, *arguments, **options)
            statement.pending = connection.info.pipeline_status is not PipelineStatus.OFF
            if statement.pending:
                connection._unanswered.append(self)
            else:
                statement.rows = self.rowcount
        return self

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
        if self.pgresult is None:  # otherwise its answer came together with an earlier one
            connection.statements.awaited()
        found = fetch()
        connection.answered(time.perf_counter() - begun, self)
        return found


def connect_pipelined(statements: Statements, arguments: Any, options: dict[str, Any]) -> PipelinedConnection:
    """Return a new connection that reports its statements to ``statements``."""
    connection = PipelinedConnection.connect(*arguments, **options)
    connection.statements = statements
    connection.adapters.register_dumper(Array, ArrayDumper)
    return connection
