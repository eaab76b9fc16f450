"""psycopg's connection, as pipelines and interrupts need it."""

from __future__ import annotations

from typing import Any

import psycopg
from psycopg import waiting
from psycopg.pq import PipelineStatus

from memstore.storage.backends.arrays import Array, ArrayDumper


class PipelinedConnection(psycopg.Connection[Any]):
    """A connection that commits inside a pipeline, and that an interrupt leaves at once.

    psycopg's own ``commit`` looks at the transaction's status first, which a pipeline learns of only with its next
    Sync: it would send nothing, and the pool's reset would roll back what was reported as committed. Its own ``wait``
    goes on after an interrupt, for 5 s or for ever, until the answer is there; here the connection is given up.
    """

    def wait(self, gen: Any, interval: float = 0.1, **options: Any) -> Any:  # type: ignore[override]
        """Wait for what the generator waits for."""
        return waiting.wait(gen, self.pgconn.socket, interval=interval, **options)

    def commit(self) -> None:
        """Send COMMIT; inside a pipeline its result is awaited at the end of that."""
        if self.info.pipeline_status is PipelineStatus.OFF:
            super().commit()
        else:
            self.execute("COMMIT")


def connect_pipelined(_dialect: Any, _record: Any, arguments: Any, options: dict[str, Any]) -> PipelinedConnection:
    """What SQLAlchemy's event ``do_connect`` asks for."""
    connection = PipelinedConnection.connect(*arguments, **options)
    connection.adapters.register_dumper(Array, ArrayDumper)
    return connection
