"""Large values are in memory no longer than the call that takes them."""

from __future__ import annotations

import ctypes
import gc
import sqlite3
import tracemalloc
import weakref
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memstore import EpisodicMemory, MemoryClosed
from memstore.storage.backends.sqlite import insert_large
from tests.support.helpers import OpenMemory, postgres_only

SIZE = 24 * 2**20


def resident() -> int:
    """Bytes of memory that this process has, the driver's included; the C library gives back what is free first."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def warm(memory: EpisodicMemory) -> None:
    """Fill the page cache of the connection, which is bounded (64 MiB), also by what a transaction wrote twice."""
    for name in "abc":
        memory.save_checkpoint(name, {"data": np.ones(SIZE, np.uint8)})
    with memory.transaction():
        memory.save_checkpoint("c", {"data": np.ones(SIZE, np.uint8)})
    memory.load_checkpoint("a")


def test_a_large_checkpoint_is_let_go(open_memory: OpenMemory) -> None:
    """By Python, and by the driver; saved, loaded, alone and in a transaction."""
    memory = open_memory()
    warm(memory)
    gc.collect()
    before = resident()
    tracemalloc.start()
    try:
        memory.save_checkpoint("large", {"data": np.ones(SIZE, np.uint8)})
        with memory.transaction():
            memory.save_checkpoint("large", {"data": np.ones(SIZE, np.uint8)})
        memory.load_checkpoint("large")
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < SIZE // 8
    finally:
        tracemalloc.stop()
    assert resident() - before < SIZE // 2


@postgres_only
def test_a_large_payload_is_let_go_by_the_connection(open_memory: OpenMemory) -> None:
    memory = open_memory(cache_bytes=0, capacity=3)
    warm(memory)
    gc.collect()
    before = resident()
    memory.add({"x": np.ones(SIZE, np.uint8)})
    gc.collect()
    assert resident() - before < SIZE // 2


def test_a_large_row_is_let_go_by_the_statement(tmp_path: Path) -> None:
    """SQLite's page cache is small here: what remains is what the cached statement keeps."""
    driver = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    driver.execute("PRAGMA cache_size = -1024")
    driver.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, data BLOB)")
    before = resident()
    driver.execute("BEGIN IMMEDIATE")
    insert_large(driver, "t", {"id": [1, 2], "data": [b"x", bytes(SIZE)]})
    driver.execute("COMMIT")
    gc.collect()
    assert resident() - before < SIZE // 2
    assert driver.execute("SELECT id, length(data) FROM t ORDER BY id").fetchall() == [(1, 1), (2, SIZE)]
    driver.close()


class Watched(np.ndarray[Any, Any]):
    """An array that can be watched."""


def test_an_error_keeps_no_state(open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever keeps the exception keeps its lines, and neither the state nor its bytes."""
    memory = open_memory()
    state: dict[str, Any] = {"data": np.ones(SIZE, np.uint8).view(Watched)}
    watch = weakref.ref(state["data"])
    backend = type(memory._session.database.backend)
    insert = backend.insert

    def failing(self: Any, conn: Any, table: Any, columns: Any) -> None:
        insert(self, conn, table, columns)
        raise OSError("the disk is full")

    tracemalloc.start()
    try:
        monkeypatch.setattr(backend, "insert", failing)
        with pytest.raises(OSError, match="full") as caught:
            memory.save_checkpoint("c", state)
        kept = caught.value
        del caught
        del state
        gc.collect()
        assert watch() is None and kept.__traceback__ is not None
        assert tracemalloc.get_traced_memory()[0] < SIZE // 8
    finally:
        tracemalloc.stop()
    monkeypatch.undo()
    assert memory.checkpoints() == []
    memory.save_checkpoint("c", {"a": 1})


def test_an_error_that_is_being_handled_keeps_its_variables(open_memory: OpenMemory) -> None:
    """``except ...: memory.save_checkpoint(...)``: what the caller looks into afterwards is left alone."""
    memory = open_memory()

    def training() -> None:
        step = 41
        raise RuntimeError(step)

    try:
        training()
    except RuntimeError as failure:
        memory.close()
        with pytest.raises(MemoryClosed):
            memory.save_checkpoint("last", {"a": 1})
        assert failure.__traceback__ is not None and failure.__traceback__.tb_next is not None
        assert failure.__traceback__.tb_next.tb_frame.f_locals == {"step": 41}
