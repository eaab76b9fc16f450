"""A pool without locks and counters: there is nothing that an interrupt could leave wrong."""

from __future__ import annotations

from typing import Any

from sqlalchemy.pool import ConnectionPoolEntry, Pool

KEPT = 5
"""Connections kept at rest, as in SQLAlchemy's own pool. It bounds no more: each thread has one."""


class RestingPool(Pool):
    """Keeps connections that are not used. The one used last is used next: one hot connection, hence one page cache."""

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
        """Close what is at rest."""
        while self._resting:
            self._resting.pop().close()

    def recreate(self) -> RestingPool:
        """An empty one like it."""
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
        """How many are at rest."""
        return f"{len(self._resting)} connections at rest"
