"""A connection of psycopg that works with pipelines and with interrupts."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import waiting
from psycopg.pq import PipelineStatus

from memstore.storage.backends.arrays import Array, ArrayDumper


class PipelinedConnection(psycopg.Connection[Any]):
    """A connection that can commit inside a pipeline, and that stops waiting at once when an interrupt comes.

    psycopg's own ``commit`` first looks at the status of the transaction. In a pipeline that status is known only after
    the next Sync, so ``commit`` would send nothing, and the pool's reset would roll back what was reported as
    committed. After an interrupt, psycopg's own ``wait`` goes on until the answer is there, for 5 s or for ever. This
    class gives the connection up instead.
    """

    def wait(self, gen: Any, interval: float = 0.1, **options: Any) -> Any:  # type: ignore[override]
        """Run a generator of psycopg until it ends, and wait for the socket whenever it asks for that."""
        return waiting.wait(gen, self.pgconn.socket, interval=interval, **options)

    def commit(self) -> None:
        """Send COMMIT. Inside a pipeline its result is known only when the pipeline ends."""
        if self.info.pipeline_status is PipelineStatus.OFF:
            super().commit()
        else:
            self.execute("COMMIT")


def connect_pipelined(_dialect: Any, _record: Any, arguments: Any, options: dict[str, Any]) -> PipelinedConnection:
    """Open a connection. SQLAlchemy calls this in its event ``do_connect``."""
    connection = PipelinedConnection.connect(*arguments, **options)
    connection.adapters.register_dumper(Array, ArrayDumper)
    return connection
