"""The migrations lead to exactly the tables that the code declares."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.operations import Operations
from alembic.script import ScriptDirectory
from sqlalchemy import URL, Dialect, create_engine
from sqlalchemy.schema import CreateIndex, CreateTable

from memstore import schema, upgrade
from tests.migrations.helpers import create, opened, tables, version

CHECKOUT = Path(__file__).parents[2]
REQUIRED_INDEXES = {
    "ix_replay_metadata_buffer_id_loss",
    "ix_replay_metadata_stratum_id_position",
    "ix_replay_metadata_eviction",
    "ix_episode_buffer_id_timestamp",
    "ix_episode_domain_id_timestamp",
}


@pytest.fixture
def scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(Config(str(CHECKOUT / "alembic.ini")))


def test_the_model_and_the_migrations_agree(path: str) -> None:
    create(path)
    with opened(path) as database:
        differences = database.in_read(
            lambda conn: compare_metadata(
                MigrationContext.configure(conn, opts={"version_table": schema.VERSION_TABLE, "compare_type": True}),
                schema.metadata,
            )
        )
    assert differences == []


def test_the_definitions_are_the_same_to_the_letter(path: str, tmp_path: Path) -> None:
    """STRICT, WITHOUT ROWID, AUTOINCREMENT and the conditions of indexes, which ``compare_metadata`` does not see."""
    create(path)
    declared = tmp_path / "declared.db"
    engine = create_engine(f"sqlite:///{declared}")
    schema.metadata.create_all(engine)
    engine.dispose()
    migrated = tables(path)
    del migrated[schema.VERSION_TABLE]
    assert migrated == tables(declared)


@pytest.mark.parametrize("name", ["sqlite", "postgresql"])
def test_the_statements_are_the_same_on_every_database(name: str, scripts: ScriptDirectory) -> None:
    dialect: Dialect = URL.create(name).get_dialect()()
    output = io.StringIO()
    context = MigrationContext.configure(dialect=dialect, opts={"as_sql": True, "output_buffer": output})
    with Operations.context(context):
        for script in reversed(list(scripts.walk_revisions())):
            script.module.upgrade()
    declared = []
    for table in schema.metadata.tables.values():
        declared.append(str(CreateTable(table).compile(dialect=dialect)))
        declared += [str(CreateIndex(index).compile(dialect=dialect)) for index in table.indexes]
    assert _statements(output.getvalue()) == _statements(";".join(declared))


def _statements(text: str) -> list[str]:
    return sorted(" ".join(part.split()) for part in text.split(";") if part.strip())


def test_one_linear_history_known_to_the_library(scripts: ScriptDirectory) -> None:
    history = [script.revision for script in scripts.walk_revisions()]
    assert scripts.get_heads() == [upgrade.HEAD]
    assert tuple(reversed(history)) == upgrade.known_revisions()


def test_required_indexes_exist_by_name(path: str) -> None:
    create(path)
    assert set(tables(path)) >= REQUIRED_INDEXES


def test_version_is_readable_in_a_table_of_its_own_name(path: str) -> None:
    create(path)
    assert version(path) == upgrade.HEAD
    assert "alembic_version" not in tables(path)


def test_there_are_no_downgrades(scripts: ScriptDirectory) -> None:
    for script in scripts.walk_revisions():
        with pytest.raises(NotImplementedError, match="restore the copy"):
            script.module.downgrade()


def test_no_foreign_keys_and_none_enforced_while_migrating(path: str) -> None:
    """A build with foreign keys on by default would empty child tables when a migration rebuilds their parent."""
    assert not any(table.foreign_keys for table in schema.metadata.tables.values())
    with opened(path) as database:
        assert database.in_write(lambda conn: conn.exec_driver_sql("PRAGMA foreign_keys").scalar_one()) == 0


def test_migrations_are_not_importable_by_name() -> None:
    """A top-level package of that name would clash in users' environments."""
    assert not (CHECKOUT / "migrations" / "__init__.py").exists()
