"""Compares the tables of a PostgreSQL database with those that the code declares."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Table, UniqueConstraint
from sqlalchemy.dialects import postgresql

from memstore.storage.backends.layout import TABLES, VIEWS
from memstore.storage.schema import metadata

Rows = Sequence[tuple[Any, ...]]

KINDS = {"v": "view", "m": "materialized view", "f": "foreign table", "p": "partitioned table", "r": "table"}
"""PostgreSQL has these letters for the kinds of relations."""

_OURS = "c.relnamespace = current_schema()::regnamespace AND c.relname = ANY(%s::text[])"
"""The condition that a relation has a name of memstore's, which the parameter lists, in the current schema."""

RELATIONS = f"""
SELECT c.relname, c.relkind::text FROM pg_class c WHERE {_OURS} AND c.relkind IN ('r', 'v', 'm', 'f', 'p')
"""
RULES = f"""
SELECT r.rulename, c.relname FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class
WHERE {_OURS} AND r.rulename <> '_RETURN'
"""
COLUMNS = f"""
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull
FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
WHERE {_OURS} AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped
"""
INDEXES = f"""
SELECT i.relname FROM pg_index x JOIN pg_class i ON i.oid = x.indexrelid JOIN pg_class c ON c.oid = x.indrelid
WHERE {_OURS} AND x.indisvalid
"""
ACTING = f"""
SELECT 'trigger', t.tgname, c.relname FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
WHERE {_OURS} AND NOT t.tgisinternal
UNION ALL
SELECT CASE o.contype WHEN 'c' THEN 'check' ELSE 'foreign key' END, o.conname, c.relname
FROM pg_constraint o JOIN pg_class c ON c.oid = o.conrelid WHERE {_OURS} AND o.contype IN ('c', 'f')
UNION ALL
SELECT 'row security', 'on', c.relname FROM pg_class c WHERE {_OURS} AND c.relrowsecurity
"""
NAMES = sorted(TABLES | VIEWS)
"""The names of memstore's tables and views, as the parameter of the statements above."""


def foreign(relations: Rows, rules: Rows) -> Iterator[str]:
    """Find views and other relations that stand in place of tables, and rules on memstore's relations."""
    for name, kind in relations:
        if kind != ("v" if name in VIEWS else "r"):
            yield f"a {KINDS[kind]} {name!r}"
    for rule, table in rules:
        yield f"a rule {rule!r} on {table!r}"


def altered(columns: Rows) -> Iterator[str]:
    """Find tables that are missing, or that differ in columns, types or NULLs from the declaration in the code."""
    found: dict[str, set[tuple[Any, ...]]] = {}
    for table, *column in columns:
        found.setdefault(table, set()).add(tuple(column))
    for name, table in metadata.tables.items():
        if name not in found:
            yield f"the table {name!r} is missing"
        elif found[name] != _declared_columns(table):
            wrong = sorted({column[0] for column in found[name] ^ _declared_columns(table)})
            yield f"the table {name!r} is not as memstore defines it, in {', '.join(map(repr, wrong[:5]))}"


def missing(relations: Rows, indexes: Rows, acting: Rows) -> Iterator[str]:
    """Find views and indexes that are missing, and triggers and constraints that memstore did not make."""
    for name in sorted(VIEWS - {name for name, _ in relations}):
        yield f"the view {name!r} is missing"
    for name in sorted(_declared_indexes() - {name for (name,) in indexes}):
        yield f"the index {name!r} is missing or invalid"
    for kind, name, table in acting:
        yield f"the {kind} {name!r} on {table!r} is not memstore's"


def _declared_columns(table: Table) -> set[tuple[Any, ...]]:
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    return {(column.name, column.type.compile(dialect).lower(), not column.nullable) for column in table.columns}


def _declared_indexes() -> set[str]:
    names = set()
    for table in metadata.tables.values():
        unique = [constraint for constraint in table.constraints if isinstance(constraint, UniqueConstraint)]
        for item in (*table.indexes, *unique, table.primary_key):
            names.add(str(getattr(item, "name", "")))
    return names
