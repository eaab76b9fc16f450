"""The schema page describes the tables and views as they are."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Integer, create_engine, inspect

from memstore.storage.schema import metadata
from tests.migrations.helpers import create
from tests.support.helpers import postgres_only
from tests.support.schema_page import TABLES, VIEWS, kind, page, view_columns

PAGE = Path(__file__).parents[2] / "docs" / "schema.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page(), "run: python -m tests.support.schema_page > docs/schema.md"


def test_every_column_is_described_and_no_other() -> None:
    assert {name: list(columns) for name, (_, columns) in VIEWS.items()} == view_columns()
    assert {name: set(columns) for name, (_, columns) in TABLES.items()} == {
        name: set(table.columns.keys()) for name, table in metadata.tables.items()
    }
    about = [text for _, columns in TABLES.values() for text in columns.values()]
    about += [text for _, columns in VIEWS.values() for _, text in columns.values()]
    assert all(about) and not any("|" in text or "\n" in text for text in about)


@postgres_only
def test_the_types_of_the_views_are_those_described(url: str) -> None:
    """On PostgreSQL; there a column of every view has a type, on SQLite from 3.41 on."""
    create(url)
    engine = create_engine(url)
    inspector = inspect(engine)
    found = {name: [column["type"] for column in inspector.get_columns(name)] for name in VIEWS}
    engine.dispose()
    described = {name: [known for known, _ in columns.values()] for name, (_, columns) in VIEWS.items()}
    assert {name: list(map(kind, types)) for name, types in found.items()} == described
    assert not any(type(column) is Integer for types in found.values() for column in types), "of 32 bits"


@pytest.mark.parametrize("view", sorted(VIEWS))
def test_the_page_promises_names_in_order(view: str) -> None:
    text = PAGE.read_text()
    section = text[text.index(f"### {view}\n") :]
    places = [section.index(f"| `{column}` |") for column in VIEWS[view][1]]
    assert places == sorted(places)
