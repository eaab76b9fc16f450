"""Dropping a buffer takes everything of it and nothing of its neighbours."""

from __future__ import annotations

import sqlite3

import numpy as np
import pytest

import memstore


def _fill(path: str, name: str) -> None:
    with memstore.open(path, buffer=name, capacity=30, seed=1) as memory:
        memory.extend({"x": np.arange(40.0)}, domain="d", tags=("t",), key=[f"k{i}" for i in range(40)], loss=1.0)
        memory.update(memory.sample(5), loss=2.0)
        memory.save_checkpoint("latest", {"n": 1})


def _rows(path: str) -> dict[str, int]:
    with sqlite3.connect(path) as connection:
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        counts = {table: connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in tables}
    connection.close()
    return counts


def test_drop_leaves_no_row_of_the_buffer_and_all_of_the_others(path: str) -> None:
    _fill(path, "kept")
    before = _rows(path)
    _fill(path, "gone")
    assert memstore.drop(path, "gone") is True
    assert {table: n for table, n in _rows(path).items() if table != "sqlite_sequence"} == {
        table: n for table, n in before.items() if table != "sqlite_sequence"
    }
    assert memstore.buffers(path) == ["kept"]
    with memstore.open(path, buffer="kept", create=False) as memory:
        assert len(memory) == 30 and memory.check().ok
    assert memstore.drop(path, "gone") is False


def test_numbers_of_dropped_buffers_are_not_used_again(path: str) -> None:
    _fill(path, "a")
    memstore.drop(path, "a")
    with memstore.open(path, buffer="a") as memory:
        assert not memory.resumed and len(memory) == 0
        assert memory.add({"x": 1.0}) == (1 << 40) + 1


def test_a_handle_on_a_dropped_buffer_says_so(path: str) -> None:
    with memstore.open(path) as memory:
        memory.add({"x": 1.0})
        memstore.drop(path)
        for use in (lambda: memory.sample(1), lambda: memory.add({"x": 1.0}), lambda: len(memory)):
            with pytest.raises(memstore.StoreCorrupt, match="vanished"):
                use()


def test_drop_creates_nothing(path: str) -> None:
    with pytest.raises(memstore.StoreUnavailable):
        memstore.drop(path)
