"""Database dialects. ``backend_for`` picks the one that a URL names."""

from __future__ import annotations

from sqlalchemy import URL

from memstore.config import Durability
from memstore.errors import ConfigError
from memstore.storage.backends.base import UNAWAITED, Backend, Failure, TransactionState, Watch
from memstore.storage.statements import Trace

__all__ = ["UNAWAITED", "Backend", "Failure", "TransactionState", "Watch", "backend_for"]


def backend_for(url: URL, durability: Durability, busy_timeout: float, trace: Trace | None = None) -> Backend:
    """Return the backend for the URL's database.

    Raises
    ------
    ConfigError
        If memstore has no backend for this database, or if the driver is not installed.
    """
    name = url.get_backend_name()
    if name == "sqlite":
        from memstore.storage.backends.sqlite import SQLiteBackend

        return SQLiteBackend(url, durability, busy_timeout, trace)
    if name == "postgresql":
        try:
            from memstore.storage.backends.postgres import PostgresBackend
        except ImportError as exc:
            raise ConfigError(f"PostgreSQL needs psycopg 3 ({exc}); run: pip install 'memstore[postgres]'") from exc
        return PostgresBackend(url, durability, busy_timeout, trace)
    raise ConfigError(f"memstore has no backend for {name!r}; use a file path or postgresql://user@host/database")
