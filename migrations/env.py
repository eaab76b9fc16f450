"""Runs the migrations on the connection that ``memstore.storage.upgrade`` gives. Developers use ``-x url=...``."""

from __future__ import annotations

from alembic import context
from sqlalchemy import Connection

from memstore.storage.address import parse_url
from memstore.storage.backends import Backend
from memstore.storage.database import Database
from memstore.storage.schema import VERSION_TABLE, metadata


def run(connection: Connection, backend: Backend) -> None:
    context.config.attributes["backend"] = backend
    # fileConfig is not called, because it would change the logging of the host program. No transaction is begun here,
    # because the caller's transaction includes all migrations.
    context.configure(
        connection=connection,
        target_metadata=metadata,
        version_table=VERSION_TABLE,
        transaction_per_migration=False,
        compare_type=True,
    )
    context.run_migrations()


def run_as_developer() -> None:
    url = context.get_x_argument(as_dictionary=True).get("url")
    if url is None or context.is_offline_mode():
        raise SystemExit("give a database: alembic -x url=sqlite:///dev.db COMMAND (there is no offline mode)")
    database = Database(parse_url(url))
    try:
        database.in_write(lambda connection: run(connection, database.backend))
    finally:
        database.close()


_handed_over = context.config.attributes.get("connection")
if _handed_over is None:
    run_as_developer()
else:
    run(_handed_over, context.config.attributes["backend"])
