"""A pool of connections without locks and counters, so that no interrupt can leave it in a wrong state."""

from __future__ import annotations

from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry, Pool

KEPT = 5
"""Unused connections that are kept, as in SQLAlchemy's own pool. In use may be any number: each thread has one."""


class RestingPool(Pool):
    """Keeps unused connections. The one used last is given out first, so that its page cache stays warm."""

    def __init__(self, creator: Any, **settings: Any) -> None:
        super().__init__(creator, **settings)
        self._resting: list[ConnectionPoolEntry] = []

    def _do_get(self) -> ConnectionPoolEntry:
        try:
            return self._resting.pop()
        except IndexError:
            return self._create_connection()

    def _do_return_conn(self, record: ConnectionPoolEntry) -> None:
        if len(self._resting) < KEPT:
            self._resting.append(record)
        else:
            record.close()

    def dispose(self) -> None:
        """Close the unused connections."""
        while self._resting:
            self._resting.pop().close()

    def recreate(self) -> RestingPool:
        """Return an empty pool with the same settings."""
        return RestingPool(
            self._creator,
            recycle=self._recycle,
            echo=self.echo,
            logging_name=self._orig_logging_name,
            reset_on_return=self._reset_on_return,
            _dispatch=self.dispatch,
            dialect=self._dialect,
        )

    def status(self) -> str:
        """Say how many connections are unused."""
        return f"{len(self._resting)} connections at rest"
