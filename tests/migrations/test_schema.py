"""The migrations lead to exactly the tables that the code declares."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, inspect

from memstore.storage import schema, upgrade
from tests.migrations.helpers import Another, create, opened, structure, tables, version

CHECKOUT = Path(__file__).parents[2]
REQUIRED_INDEXES = {
    "ix_replay_metadata_buffer_id_loss",
    "ix_block_buffer_id_revision",
    "ix_episode_buffer_id_timestamp",
    "ix_episode_domain_id_timestamp",
}
# Other programs read those with v_: a later schema may add columns at the end, and change nothing else.
VIEWS = {
    "live_replay_metadata": [
        *("episode_id", "buffer_id", "loss", "lowest_loss", "replay_count", "last_replayed_at", "last_event_id"),
    ],
    "v_episode": [
        *("episode_id", "buffer", "domain", "timestamp", "level", "key", "extra", "loss", "lowest_loss", "rise"),
        *("replay_count", "last_replayed_at", "payload_bytes"),
    ],
    "v_domain": ["buffer", "domain", "episodes", "never_measured", "mean_loss", "highest_loss", "replays"],
    "v_history": [
        *("event", "buffer", "episode_id", "domain", "what", "reason", "at", "step", "consumer", "strategy"),
        *("loss_before", "loss_after", "probability", "weight"),
    ],
}


@pytest.fixture
def scripts() -> ScriptDirectory:
    return ScriptDirectory.from_config(Config(str(CHECKOUT / "alembic.ini")))


def test_the_model_and_the_migrations_agree(url: str) -> None:
    create(url)
    with opened(url) as database:
        differences = database.in_read(
            lambda conn: compare_metadata(
                MigrationContext.configure(conn, opts={"version_table": schema.VERSION_TABLE, "compare_type": True}),
                schema.metadata,
            )
        )
    assert differences == []


def test_they_agree_in_what_the_comparison_does_not_see(url: str, another: Another) -> None:
    """STRICT, WITHOUT ROWID, AUTOINCREMENT, the conditions of indexes; on PostgreSQL constraints and identities."""
    create(url)
    declared = another()
    engine = create_engine(declared)
    schema.metadata.create_all(engine)
    engine.dispose()
    migrated = structure(url)
    for name in [name for name in migrated if schema.VERSION_TABLE in name or name in VIEWS]:
        del migrated[name]
    assert _without_storage(migrated) == _without_storage(structure(declared))


def test_the_views_keep_their_names_and_columns(url: str) -> None:
    create(url)
    engine = create_engine(url)
    inspector = inspect(engine)
    assert {
        name: [column["name"] for column in inspector.get_columns(name)] for name in inspector.get_view_names()
    } == VIEWS
    engine.dispose()


def _without_storage(found: dict[str, Any]) -> dict[str, Any]:
    """Settings of storage are the migrations' alone."""
    return {
        name: re.sub(r"\{.*?\} ?|(bytea t) [a-z]\b", r"\1", text) if isinstance(text, str) else text
        for name, text in found.items()
    }


def test_one_linear_history_known_to_the_library(scripts: ScriptDirectory) -> None:
    history = [script.revision for script in scripts.walk_revisions()]
    assert scripts.get_heads() == [upgrade.HEAD]
    assert tuple(reversed(history)) == upgrade.known_revisions()


def test_required_indexes_exist_by_name(url: str) -> None:
    create(url)
    assert set(tables(url)) >= REQUIRED_INDEXES


def test_version_is_readable_in_a_table_of_its_own_name(url: str) -> None:
    create(url)
    assert version(url) == upgrade.HEAD
    assert "alembic_version" not in tables(url)


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
