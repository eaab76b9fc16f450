"""What the migration tests share; importable by spawned children."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memstore import upgrade
from memstore.config import parse_url
from memstore.database import Database

SECOND = '''"""A later revision that exists only in tests."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade():
    op.add_column("buffer", sa.Column("colour", sa.Text()))
    op.create_table("shade", sa.Column("id", sa.Integer(), primary_key=True))
    {end}
'''


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
        return database.in_read(upgrade.schema_version)


def tables(target: str | Path) -> dict[str, str]:
    """Definition of every table and index by name."""
    with opened(target) as database:
        rows = database.in_read(
            lambda conn: conn.exec_driver_sql("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL").all()
        )
    return {str(name): " ".join(str(sql).split()) for name, sql in rows}


def digest(folder: Path) -> dict[str, str]:
    """sha256 of every file in the folder: equal before and after means nothing was changed or left behind."""
    return {entry.name: hashlib.sha256(entry.read_bytes()).hexdigest() for entry in folder.iterdir() if entry.is_file()}


def add_revision(scripts: Path, end: str = "pass") -> Path:
    """Copy of the migrations with a second revision that ends in the given statement."""
    shutil.copytree(upgrade._migrations(), scripts, ignore=shutil.ignore_patterns("__pycache__"))
    (scripts / "versions" / "0002_test.py").write_text(SECOND.format(end=end))
    return scripts


def use_revisions(scripts: Path, revisions: tuple[str, ...] = ("0001", "0002")) -> None:
    """Make this process's memstore one that has these revisions; tests do it in children or undo it."""
    upgrade.REVISIONS = revisions
    upgrade.HEAD = revisions[-1]
    upgrade._migrations = lambda: scripts
