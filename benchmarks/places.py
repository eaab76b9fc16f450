"""Places for the databases of a run: files in a folder, or databases of a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import make_url

from benchmarks.by_hand import ByHand
from benchmarks.by_hand_sqlite import ByHandSqlite

if TYPE_CHECKING:
    from tests.support.postgres import PostgresServer

SETTINGS = {"fsync": "on", "full_page_writes": "on", "shared_buffers": "512MB", "max_wal_size": "4GB"}
"""Settings of the benchmarks' own server; all others are PostgreSQL's defaults."""

_SHOWN = ("fsync", "full_page_writes", "synchronous_commit", "shared_buffers", "max_wal_size", "wal_compression")
_OTHERS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""


class Place(ABC):
    """A place in which the cases make as many databases as they need."""

    name: str

    @abstractmethod
    def address(self, label: str) -> str:
        """Return the address of the database of this label for ``memstore.open``; make it if need be."""

    @abstractmethod
    def by_hand(self, label: str, *, tuned: bool) -> ByHand:
        """Return the hand-written baseline in a database of this label."""

    @abstractmethod
    def copy(self, source: str, target: str) -> None:
        """Make a database from another that nobody has open."""

    @abstractmethod
    def drop(self, labels: Sequence[str] | None = None) -> None:
        """Remove databases, by default all that were made."""

    def servers(self, address: str) -> list[int]:
        """Return the ids of processes of this machine that serve the database at this address."""
        return []

    @abstractmethod
    def describe(self) -> str:
        """Return version and settings, for the report."""


class SqlitePlace(Place):
    """Files in a folder."""

    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def address(self, label: str) -> str:
        return str(self._file(label))

    def by_hand(self, label: str, *, tuned: bool) -> ByHand:
        return ByHandSqlite(self._file(label), tuned=tuned)

    def copy(self, source: str, target: str) -> None:
        shutil.copyfile(self._file(source), self._file(target))

    def drop(self, labels: Sequence[str] | None = None) -> None:
        for pattern in ["*.db*"] if labels is None else [f"{label}.db*" for label in labels]:
            for file in self._folder.glob(pattern):
                file.unlink()

    def describe(self) -> str:
        return f"SQLite {sqlite3.sqlite_version}, WAL, synchronous=NORMAL"

    def _file(self, label: str) -> Path:
        return self._folder / f"{label}.db"


class PostgresPlace(Place):
    """Databases of a running server."""

    name = "postgres"

    def __init__(self, server: PostgresServer) -> None:
        self.server = server
        self._made: list[str] = []

    def address(self, label: str) -> str:
        name = self._database(label)
        if name in self._made:
            return self.server.url(name)
        self._made.append(name)
        return self.server.create_database(name)

    def by_hand(self, label: str, *, tuned: bool) -> ByHand:
        from benchmarks.by_hand_postgres import ByHandPostgres

        return ByHandPostgres(self.address(label), tuned=tuned)

    def copy(self, source: str, target: str) -> None:
        self._made.append(self._database(target))
        self.server.create_database(self._database(target), template=self._database(source))

    def drop(self, labels: Sequence[str] | None = None) -> None:
        for name in list(self._made) if labels is None else map(self._database, labels):
            self.server.drop_database(name)
            self._made.remove(name)

    def describe(self) -> str:
        rows = self.query(self.server.url(), "SELECT name, current_setting(name) FROM pg_settings")
        settings = dict(rows)
        shown = ", ".join(f"{name}={settings[name]}" for name in _SHOWN if name in settings)
        where = "Unix socket" if self.socket else "TCP"
        return (
            f"PostgreSQL {settings['server_version']}, {where}, {shown}; synchronous_commit=off for "
            "memstore and for what is written by hand with its means (arrays, one statement a batch)"
        )

    def servers(self, address: str) -> list[int]:
        if self.socket is None or not Path("/proc/self/schedstat").exists():
            return []
        return [pid for (pid,) in self.query(address, _OTHERS)]

    @property
    def socket(self) -> Path | None:
        """The server's Unix socket, if that is how it is reached."""
        query = make_url(self.server.url()).query
        folder, port = query.get("host"), query.get("port", "5432")
        if not isinstance(folder, str) or not folder.startswith("/"):
            return None
        return Path(folder) / f".s.PGSQL.{port}"

    @staticmethod
    def query(address: str, statement: str) -> list[tuple[Any, ...]]:
        """Run a statement outside memstore; return its rows, if it has any."""
        import psycopg

        with psycopg.connect(address.replace("+psycopg", "", 1), autocommit=True) as conn:
            cursor = conn.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def _database(self, label: str) -> str:
        return f"memstore_benchmark_{os.getpid()}_{label}".replace("-", "_")


@contextmanager
def postgres(url: str | None) -> Iterator[PostgresPlace]:
    """Yield the server at this address, or one of our own; raise ``NoPostgres`` or ``ImportError`` without one."""
    import psycopg

    from tests.support.binaries import NoPostgres
    from tests.support.postgres import PostgresServer

    with PostgresServer(admin=url, settings=SETTINGS) as server:
        try:
            server.execute("SELECT 1")
        except psycopg.OperationalError as exc:
            raise NoPostgres(f"the server does not answer: {exc}") from exc
        place = PostgresPlace(server)
        try:
            yield place
        finally:
            place.drop()
