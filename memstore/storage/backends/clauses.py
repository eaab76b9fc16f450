"""Statements, and parts of them, that both databases write alike. Each is made once for its tables and columns."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache

from sqlalchemy import Table

from memstore.storage.schema import buffer


def quoted(names: Iterable[str], prefix: str = "") -> str:
    """Write the names as a list of columns."""
    return ", ".join(f'{prefix}"{name}"' for name in names)


@cache
def select_listed(join: str, table: str, columns: tuple[str, ...], key: str) -> str:
    """Write a query for the rows with a ``key`` in a list. ``join`` is the text of ``Backend.join``."""
    return f'SELECT {quoted(columns, "t.")} FROM {join} {table} t ON t."{key}" = c.value'


@cache
def select_buffer(mark: str, columns: tuple[str, ...]) -> str:
    """Write the query for the row of a buffer. ``mark`` is the mark of a parameter."""
    return f"SELECT {quoted(columns)} FROM {buffer.name} WHERE id = {mark}"


@cache
def update_one(mark: str, table: str, columns: tuple[str, ...], key: str) -> str:
    """Write the statement that sets these columns of one row. The value of its key is the last parameter."""
    changes = ", ".join(f'"{name}" = {mark}' for name in columns)
    return f'UPDATE {table} SET {changes} WHERE "{key}" = {mark}'


@cache
def accumulation(table: Table, added: tuple[str, ...], columns: tuple[str, ...]) -> str:
    """Write the clause ON CONFLICT of an INSERT: add to some columns of a row that exists, and set its others.

    Parameters
    ----------
    added : tuple of str
        Columns to which the new values are added.
    columns : tuple of str
        All columns of the INSERT. Those not in ``added`` are set, unless the new value is NULL.
    """
    key = [column.name for column in table.primary_key]
    changes = [
        f'"{name}" = {table.name}."{name}" + excluded."{name}"'
        if name in added
        else f'"{name}" = coalesce(excluded."{name}", {table.name}."{name}")'
        for name in columns
        if name not in key
    ]
    return f" ON CONFLICT ({quoted(key)}) DO UPDATE SET {', '.join(changes)}"
