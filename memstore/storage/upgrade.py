"""The revision of the schema. Tables are created or upgraded under a lock, and other revisions are refused.

Opening costs one small read. alembic is imported only if tables must be made.
"""

from __future__ import annotations

import os
import shlex
import threading
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from sqlalchemy import URL, Connection, column, inspect, select, table

from memstore import errors
from memstore.config import DEFAULT_BUSY_TIMEOUT
from memstore.storage.address import parse_url, restoring, shown_url
from memstore.storage.backends import Backend
from memstore.storage.backends.base import Progress
from memstore.storage.database import Database
from memstore.storage.schema import VERSION_TABLE, metadata
from memstore.version import __version__

REVISIONS: tuple[str, ...] = ("0001", "0002", "0003", "0004", "0005")
HEAD = REVISIONS[-1]
"""This version works with this revision."""

SHOWN = 3
"""A message names at most this many differences."""

_version_query = select(table(VERSION_TABLE, column("version_num")).c.version_num)
# Alembic keeps its context in module globals. Without this lock, all of 6 threads that upgraded 6 files failed.
_alembic_lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class Upgraded:
    """An upgrade that was done.

    Attributes
    ----------
    before, after : str or None
        Schema revisions before and after the upgrade. None stands for a database without tables.
    backup : Path or None
        Copy of the old database. None if no copy was made.
    """

    before: str | None
    after: str
    backup: Path | None = None


def ensure_schema(database: Database, *, create: bool = True, upgrade: bool = False) -> bool:
    """Make sure that the database holds the tables of this version.

    The call is atomic. Any number of processes may make it at the same time.

    Parameters
    ----------
    database : Database
        The database. If it holds anything else, it is not changed.
    create : bool
        True creates the tables in an empty database.
    upgrade : bool
        True upgrades the tables of an older version.

    Returns
    -------
    bool
        True if this call created the tables. Exactly one of several concurrent calls returns True.

    Raises
    ------
    StoreUnavailable
        The database does not exist, and ``create`` is false.
    NotAMemstore, SchemaTooNew, SchemaTooOld
        The database holds something else, or tables of a newer version, or tables of an older version while ``upgrade``
        is false.
    """
    return _bring_up(database, create=create, upgrade=upgrade, backup=False).before is None


def upgrade(
    target: str | os.PathLike[str] | URL,
    *,
    backup: bool = True,
    busy_timeout: float = DEFAULT_BUSY_TIMEOUT,
    on_progress: Progress | None = None,
) -> Upgraded:
    """Upgrade existing tables to this version, in one transaction.

    Parameters
    ----------
    target : str, path or URL
        The database.
    backup : bool
        True copies a SQLite database first, under the write lock, so that the copy is complete.
    busy_timeout : float
        Seconds to wait for other writers.
    on_progress : callable, optional
        Function that is called with the number of converted episodes and the number of all episodes. An upgrade that
        converts no episode never calls it.

    Raises
    ------
    NotAMemstore, SchemaTooNew, StoreUnavailable
        The database cannot be upgraded. Nothing was changed.
    """
    database = Database(parse_url(target), busy_timeout=busy_timeout)
    database.backend.spills = True  # to drop a column of 1M rows, SQLite keeps 67 MB for the undoing of the statement
    try:
        return _bring_up(database, create=False, upgrade=True, backup=backup, on_progress=on_progress)
    finally:
        database.close()


def schema_version(conn: Connection, *, shared: bool = False) -> str | None:
    """Return the schema revision of the connection's database. None if it holds no memstore.

    Raises
    ------
    NotAMemstore
        The database holds other tables. In a ``shared`` database this is an error only if they have memstore's names.
    """
    where = shown_url(conn.engine.url)
    inspector = inspect(conn)
    if inspector.has_table(VERSION_TABLE):
        versions = list(conn.scalars(_version_query))
        if len(versions) != 1:
            raise errors.StoreCorrupt(f"{where}: {VERSION_TABLE} has {len(versions)} rows, not 1; {restoring(where)}")
        return str(versions[0])
    names = inspector.get_table_names() + inspector.get_view_names()
    if shared:
        names = [name for name in names if name in metadata.tables]
    if names:
        shown = ", ".join(map(repr, names[:3])) + (" ..." if len(names) > 3 else "")
        own = "a schema of its own (?options=-csearch_path%3DNAME)" if shared else "a file of its own"
        raise errors.NotAMemstore(
            f"{where} holds other tables ({shown}) and no memstore; nothing was changed. Give memstore {own}"
        )
    return None


def known_revisions() -> tuple[str, ...]:
    """Return every schema revision that this version can upgrade or read, oldest first."""
    return REVISIONS


def _bring_up(
    database: Database, *, create: bool, upgrade: bool, backup: bool, on_progress: Progress | None = None
) -> Upgraded:
    backend = database.backend
    where = backend.describe()
    if not (create and backend.may_create) and not backend.exists():
        raise errors.StoreUnavailable(f"{where} does not exist; nothing was created")

    def look(conn: Connection) -> str | None:
        _refuse_foreign(conn, backend)
        version = schema_version(conn, shared=backend.shared)
        _refuse_revision(where, version, create=create, upgrade=upgrade)
        if version == HEAD:
            _refuse_altered(conn, backend, HEAD)
        return version

    def migrate(conn: Connection) -> Upgraded:
        backend.lock_schema(conn)
        version = look(conn)
        if version == HEAD:  # another process was first
            return Upgraded(HEAD, HEAD)
        copy = backend.backup(database.engine, f"schema-{version}") if backup and version is not None else None
        _run_migrations(conn, backend, on_progress)
        if schema_version(conn, shared=backend.shared) != HEAD:
            raise errors.SchemaError(f"the migrations in {_migrations()} do not lead to {HEAD!r}; reinstall memstore")
        _refuse_altered(conn, backend, HEAD)
        return Upgraded(version, HEAD, copy)

    version = database.in_read(look)
    if version == HEAD:
        with suppress(errors.StoreReadOnly):  # a restored copy may need this; without the right to write it can be read
            database.prepare()
        return Upgraded(HEAD, HEAD)
    database.prepare()
    return database.in_write(migrate)


def _refuse_revision(where: str, version: str | None, *, create: bool, upgrade: bool) -> None:
    """Raise an error unless this revision can be used, upgraded or created. None stands for no tables."""
    if version is None and not create:
        # This is not NotAMemstore: every memory begins as a file without tables, and a killed creation leaves one.
        raise errors.StoreUnavailable(f"{where} is empty and holds no memstore; nothing was created")
    if version is not None and version not in REVISIONS:
        raise errors.SchemaTooNew(
            f"{where} has schema revision {version!r}, which memstore {__version__} (schema {HEAD!r}) does "
            "not know: a newer memstore wrote it; run: pip install -U memstore"
        )
    if version is not None and version != HEAD and not upgrade:
        raise errors.SchemaTooOld(
            f"{where} has schema revision {version!r} of an older memstore, this one needs {HEAD!r}; stop its "
            f"users, then run: memstore upgrade {shlex.quote(where)}"
        )


def _refuse_foreign(conn: Connection, backend: Backend) -> None:
    found = list(islice(backend.foreign(conn), SHOWN))
    if found:
        raise errors.NotAMemstore(
            f"{backend.describe()} has {', '.join(found)}, which memstore never makes and which would run inside it; "
            "nothing was changed. Remove it if it is yours; do not use the database if you do not know where it is from"
        )


def _refuse_altered(conn: Connection, backend: Backend, revision: str) -> None:
    found = list(islice(backend.altered(conn, revision), SHOWN))
    if found:
        raise errors.StoreCorrupt(f"{backend.describe()}: {', '.join(found)}; {restoring(backend.describe())}")


def _run_migrations(conn: Connection, backend: Backend, on_progress: Progress | None) -> None:
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(_migrations()).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = conn  # a URL is not used, because it may hold a password
    config.attributes["backend"] = backend
    config.attributes["progress"] = on_progress
    try:
        with _alembic_lock:
            command.upgrade(config, HEAD)
    except CommandError as exc:
        raise errors.SchemaError(f"the migrations in {_migrations()} cannot run ({exc}); reinstall memstore") from exc


def _migrations() -> Path:
    # In a wheel the migrations are inside the package. In a checkout they are at the top level.
    package = Path(__file__).resolve().parents[1]
    packaged = package / "migrations"
    return packaged if (packaged / "env.py").is_file() else package.parent / "migrations"


def _after_fork() -> None:
    global _alembic_lock
    _alembic_lock = threading.Lock()  # another thread of the parent may have held it


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
