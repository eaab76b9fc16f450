"""What ``open(..., trace=)`` tells, and what ``memstore.testing`` counts: one mechanism."""

from __future__ import annotations

import re

import numpy as np
import pytest

import memstore
from memstore import ConfigError, col
from memstore.testing import counting
from tests.support.helpers import OpenMemory, row, rows

LINE = re.compile(r"\d+\.\d\d ms(?:, \d+ rows?)?: \S.{0,320}")
SECRET = "s3cret-of-mine"


def test_every_statement_is_one_line(open_memory: OpenMemory) -> None:
    lines: list[str] = []
    memory = open_memory(trace=lines.append)
    memory.extend(rows(32), loss=2.0)
    batch = memory.sample(8)
    memory.update(batch, loss=3.0)
    memory.fold()
    assert memory.query().filter(col.loss > 1).count() == 32
    with memory.transaction():
        memory.add(row(1))
    assert all(LINE.fullmatch(line) for line in lines), [line for line in lines if not LINE.fullmatch(line)]
    text = "\n".join(lines)
    for begun, kind in (("BEGIN", ""), ("COMMIT", ""), ("SAVEPOINT", ""), ("INSERT INTO payload", "32 rows: ")):
        assert f"{kind or ': '}{begun}" in text, begun
    assert "1 row: SELECT count(*)" in text


def test_it_tells_as_many_statements_as_are_counted(open_memory: OpenMemory) -> None:
    lines: list[str] = []
    memory = open_memory(trace=lines.append)
    memory.extend(rows(32), loss=2.0)
    for call in (
        lambda: memory.sample(8),
        lambda: memory.update([1, 2], loss=1.0),
        lambda: memory.add(row(1)),
        lambda: memory.query().filter(col.loss > 1).all(),
    ):
        lines.clear()
        with counting() as counts:
            call()
        assert counts.statements == len(lines) >= 3
        assert 0 < counts.exchanges <= counts.statements


def test_exchanges_are_round_trips(open_memory: OpenMemory, url: str) -> None:
    memory = open_memory()
    memory.extend(rows(32), loss=2.0)
    memory.sample(1)
    with counting() as drawn:
        memory.sample(8, strategy="prioritized_loss", exact_probability=False)
    with counting() as updated:
        memory.update([1, 2, 3], loss=1.0)
    with counting() as added:
        memory.extend(rows(4), loss=2.0)
    if url.startswith("sqlite"):
        assert drawn.exchanges == drawn.statements and updated.exchanges == updated.statements
    else:
        assert drawn.exchanges == 1, "for the state: nobody waits for the end of a read"
        assert added.exchanges == 2, "for the state, and for the end: as a proxy between the two counts them"
        assert updated.exchanges == 3, "and for the domains of ids that come from no draw"
    with counting() as other:
        pass
    assert other.statements == other.exchanges == 0


def test_values_and_passwords_never_appear(open_memory: OpenMemory) -> None:
    lines: list[str] = []
    memory = open_memory(trace=lines.append, buffer=SECRET)
    memory.add({"x": np.arange(3), "text": SECRET}, domain=SECRET, tags=[SECRET], key=SECRET, extra={"a": SECRET})
    memory.query().filter(col.domain == SECRET, col.extra["a"].text == SECRET, col.tags.has(SECRET)).all()
    memory.recall_by_tags([SECRET])
    memory.save_checkpoint(SECRET, {"a": SECRET})
    memory.load_checkpoint(SECRET)
    assert len(lines) > 20 and SECRET not in "\n".join(lines)


def test_a_statement_that_fails_says_so(open_memory: OpenMemory) -> None:
    lines: list[str] = []
    memory = open_memory(trace=lines.append)
    database = memory._session.database
    with pytest.raises(memstore.MemstoreError):
        database.in_read(lambda conn: conn.exec_driver_sql("SELECT * FROM no_such_table"))
    assert any("no_such_table" in line for line in lines)
    assert any("ROLLBACK" in line for line in lines)
    lines.clear()
    assert len(memory) == 0 and lines


def test_only_this_handle_is_traced(open_memory: OpenMemory) -> None:
    lines: list[str] = []
    memory, other = open_memory(trace=lines.append), open_memory()
    memory.add(row(1))
    lines.clear()
    other.add(row(2))
    assert not lines


def test_what_cannot_be_called_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="trace must be callable"):
        memstore.open(url, trace="print")  # type: ignore[arg-type]


def test_a_trace_that_raises_is_reported_once_and_breaks_nothing(
    open_memory: OpenMemory, caplog: pytest.LogCaptureFixture
) -> None:
    """It may raise at COMMIT, when what the call did is done: then the call must not fail."""
    calls: list[str] = []

    def broken(line: str) -> None:
        calls.append(line)
        if "COMMIT" in line:
            raise ValueError("a trace of one's own")

    memory = open_memory(trace=broken)
    memory.extend(rows(8), loss=1.0)
    known = len(calls)
    with memory.transaction():
        memory.update(memory.sample(4), loss=2.0)
    assert len(memory) == 8 and len(memory.history()) == 4
    assert len(calls) == known, "it is not called again"
    (record,) = [record for record in caplog.records if "trace" in record.message]
    assert record.levelname == "WARNING" and record.exc_info is not None


def test_a_trace_that_raises_at_once_does_not_keep_the_memory_from_opening(open_memory: OpenMemory) -> None:
    assert len(open_memory(trace=int)) == 0
