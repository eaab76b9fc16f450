"""More databases than one, of the kind that ``url`` is."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import make_url

from memstore.storage import upgrade
from tests.migrations.helpers import Another
from tests.support.postgres import PostgresServer


@pytest.fixture(autouse=True)
def restored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undoes ``use_revisions``."""
    for name in ("REVISIONS", "HEAD", "_migrations"):
        monkeypatch.setattr(upgrade, name, getattr(upgrade, name))


@pytest.fixture
def another(url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Another]:
    """Address of one more database without tables, on SQLite without a file."""
    first = make_url(url).database
    names = (f"{first}_{number}" for number in itertools.count(1))
    if make_url(url).get_backend_name() == "sqlite":
        yield lambda: f"sqlite:///{tmp_path / next(names)}"
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    made: list[str] = []

    def make() -> str:
        made.append(next(names))
        return server.create_database(made[-1])

    yield make
    for name in made:
        server.drop_database(name)
