"""What the migration tests share; importable by spawned children."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, make_url
from sqlalchemy.pool import NullPool

from memstore.storage import upgrade
from memstore.storage.address import parse_url
from memstore.storage.database import Database

Another = Callable[[], str]
HEAD = upgrade.HEAD
NEXT = "next"
NEXT_SCRIPT = f'''"""A later revision that exists only in tests."""

import sqlalchemy as sa
from alembic import op

revision = "{NEXT}"
down_revision = "{HEAD}"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("buffer", sa.Column("colour", sa.Text()))
    op.create_table("shade", sa.Column("id", sa.Integer(), primary_key=True))
    END
'''

# Every relation of the schema, whoever made it, and all that a migration can say of it.
_CATALOG = """
SELECT c.relname, concat_ws(' ', c.relkind, c.relpersistence, c.reloptions::text,
    CASE WHEN c.relkind = 'i' THEN pg_get_indexdef(c.oid) WHEN c.relkind IN ('v', 'm') THEN pg_get_viewdef(c.oid) END,
    (SELECT string_agg(concat_ws(' ', a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull, a.attidentity,
        a.attstorage, pg_get_expr(d.adbin, d.adrelid)), ', ' ORDER BY CASE WHEN c.relkind = 'i' THEN a.attnum END,
        a.attname)
     FROM pg_attribute a LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (a.attrelid, a.attnum)
     WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped),
    (SELECT string_agg(o.conname || ' ' || pg_get_constraintdef(o.oid), ', ' ORDER BY o.conname)
     FROM pg_constraint o WHERE o.conrelid = c.oid))
FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relkind <> 't'
"""


@contextmanager
def opened(target: str | Path) -> Iterator[Database]:
    """A database without any schema check."""
    database = Database(parse_url(str(target)))
    try:
        yield database
    finally:
        database.close()


def create(target: str | Path) -> bool:
    """Open as every memory does; True when this call made the tables."""
    with opened(target) as database:
        return upgrade.ensure_schema(database)


def version(target: str | Path) -> str | None:
    """The revision found in the database."""
    with opened(target) as database:
        return database.in_read(lambda conn: upgrade.schema_version(conn, shared=database.backend.shared))


def tables(target: str | Path) -> dict[str, str]:
    """Definition of every table and index by name, as it was written on SQLite."""

    def read(conn: Connection) -> Any:
        written = "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"
        return conn.exec_driver_sql(written if conn.dialect.name == "sqlite" else _CATALOG).all()

    with opened(target) as database:
        return {str(name): " ".join(str(text).split()) for name, text in database.in_read(read)}


def structure(target: str | Path) -> dict[str, Any]:
    """What every table and index comes to, however it was made; the order of columns does not matter."""
    with opened(target) as database:
        return dict(tables(target)) if database.backend.shared else database.in_read(_sqlite_structure)


def _sqlite_structure(conn: Connection) -> dict[str, Any]:
    def rows(statement: str) -> list[tuple[Any, ...]]:
        return [tuple(row) for row in conn.exec_driver_sql(statement)]

    def written(name: str) -> list[str]:
        return [" ".join(str(text).split()) for (text,) in rows(f"SELECT sql FROM sqlite_master WHERE name = '{name}'")]

    found: dict[str, Any] = {}
    for _, table, _, _, *facts in rows("PRAGMA table_list"):
        if table.startswith("sqlite_"):
            continue
        columns = sorted(column[1:] for column in rows(f"PRAGMA table_xinfo({table})"))
        found[table] = facts, columns, "AUTOINCREMENT" in written(table)[0]
        for _, index, *facts in rows(f"PRAGMA index_list({table})"):
            covered = [column[0::2] for column in rows(f"PRAGMA index_info({index})")]
            found[index] = facts, covered, written(index)
    return found


def sql(target: str | Path, *statements: str) -> list[tuple[Any, ...]]:
    """Run statements past memstore, in one transaction; the rows of the last."""
    rows: list[tuple[Any, ...]] = []
    engine = create_engine(str(target) if "://" in str(target) else f"sqlite:///{target}", poolclass=NullPool)
    with engine.begin() as conn:
        for statement in statements:
            result = conn.exec_driver_sql(statement)
            rows = [tuple(row) for row in result] if result.returns_rows else []
    engine.dispose()
    return rows


def digest(folder: Path) -> dict[str, str]:
    """sha256 of every file in the folder: equal before and after means nothing was changed or left behind."""
    return {entry.name: hashlib.sha256(entry.read_bytes()).hexdigest() for entry in folder.iterdir() if entry.is_file()}


def content(target: str) -> Any:
    """All of a database: the files of a SQLite one, the definitions and rows of another."""
    url = make_url(target)
    if url.get_backend_name() == "sqlite":
        return digest(Path(str(url.database)).parent)
    found = tables(target)
    names = [name for name, text in found.items() if text[0] in "rvm"]
    return found, {name: sorted(map(repr, sql(target, f'SELECT * FROM "{name}"'))) for name in names}


def add_revision(scripts: Path, end: str = "pass") -> Path:
    """Copy of the migrations with one more revision, which ends in the given statement."""
    shutil.copytree(upgrade._migrations(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "9999_next.py").write_text(NEXT_SCRIPT.replace("END", end))
    return scripts


def use_revisions(scripts: Path, *more: str) -> None:
    """Make this process's memstore one that has one revision more, or several; tests do it in children or undo it."""
    upgrade.REVISIONS = (*upgrade.REVISIONS, NEXT, *more)
    upgrade.HEAD = upgrade.REVISIONS[-1]
    upgrade._migrations = lambda: scripts
