"""Several learning calls as one commit: what another process sees, and what is left when it fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine

import memstore
from memstore.errors import InvalidValue, MemstoreError
from memstore.learner import MemoryOnlineLearner
from tests.learner import streams
from tests.support.helpers import postgres_only

EVERY = 4


def notes_of(path: Path) -> Any:
    with memstore.open(path, create=False) as memory:
        found = memory.load_checkpoint("latest")["notes"]["step"] if memory.checkpoints() else None
        return found, memory.stats().total_inserted


def test_others_see_whole_spans_only(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with streams.opened(path, "numpy", EVERY) as learner:
        streams.take_up(learner)
        seen = []
        for _ in range(9):
            streams.step(learner)
            seen.append(notes_of(path))
        assert seen == [(None, 0)] * 3 + [(4, 16)] * 4 + [(8, 32)] * 2
    learner.memory.close()
    assert notes_of(path) == (9, 36), "closing commits what is open"


def test_an_exception_out_of_the_block_undoes_what_is_open(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with pytest.raises(KeyboardInterrupt), streams.opened(path, "numpy", EVERY) as learner:
        streams.take_up(learner)
        for _ in range(6):
            streams.step(learner)
        raise KeyboardInterrupt
    learner.memory.close()
    assert notes_of(path) == (4, 16)


@pytest.mark.parametrize("every", [1, EVERY, 7])
def test_the_run_does_not_depend_on_how_often_it_commits(tmp_path: Path, every: int) -> None:
    assert streams.straight(tmp_path / "a.db", "numpy", every) == streams.straight(tmp_path / "b.db", "numpy", None)


@pytest.mark.parametrize("every", [1, 7])
def test_the_run_is_the_same_on_either_database(url: str, tmp_path: Path, every: int) -> None:
    assert streams.straight(url, "numpy", every) == streams.straight(tmp_path / "other.db", "numpy", None)


def test_a_refused_call_leaves_the_span_as_it_was(tmp_path: Path) -> None:
    """An example that does not fit the memory's payloads fails in the write, after the training."""
    path = tmp_path / "m.db"
    with streams.opened(path, "numpy", EVERY) as learner:
        streams.take_up(learner)
        streams.step(learner)
        before = streams.facts(learner)
        wrong = [
            memstore.learner.OnlineExample(e.id, e.input.astype("float64"), e.target) for e in streams.batch(99, 1)
        ]
        with pytest.raises(MemstoreError):
            learner.learn_batch(wrong)
        assert streams.facts(learner) == before
        found = finish(learner)
    learner.memory.close()
    assert found == streams.straight(tmp_path / "b.db", "numpy", EVERY)


def finish(learner: MemoryOnlineLearner) -> dict[str, Any]:
    while learner.notes["step"] < streams.STEPS:
        streams.step(learner)
    learner.save_state()
    return streams.facts(learner)


def test_a_full_disk_costs_the_call_that_met_it(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with streams.opened(path, "numpy", streams.STEPS) as learner:
        streams.take_up(learner)
        for _ in range(6):
            streams.step(learner)
        session = learner.memory._session
        pages = session.read(lambda s: s.conn.exec_driver_sql("PRAGMA page_count").scalar_one())
        session.read(lambda s: s.conn.exec_driver_sql(f"PRAGMA max_page_count = {pages}"))
        with pytest.raises(memstore.StoreFull) as caught:
            for _ in range(streams.STEPS):
                streams.step(learner)
        if hasattr(caught.value, "__notes__"):
            assert learner.stats.batches_trained == 0, "SQLite ended the transaction: back at the beginning"
        else:
            assert learner.stats.batches_trained == learner.notes["step"] - 1 >= 6
            learner.notes["step"] -= 1
            session.read(lambda s: s.conn.exec_driver_sql("PRAGMA max_page_count = 1000000"))
    learner.memory.close()
    with streams.opened(path, "numpy", streams.STEPS) as learner:
        streams.take_up(learner)
        found = finish(learner)
    learner.memory.close()
    assert found == streams.straight(tmp_path / "b.db", "numpy", streams.STEPS)


def test_a_transaction_that_died_takes_the_learner_back_to_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database runs full in the middle of a span and ends the transaction: notes, model and generator go back."""
    path = tmp_path / "m.db"
    with streams.opened(path, "numpy", EVERY) as learner:
        streams.take_up(learner)
        for _ in range(6):
            streams.step(learner)
        monkeypatch.setattr(learner.memory, "extend", _full(learner.memory))
        with pytest.raises(MemstoreError) as caught:
            streams.step(learner)
        assert any("since the last checkpoint" in note for note in caught.value.__notes__)
        assert learner.notes["step"] == 4
        monkeypatch.undo()
        found = finish(learner)
    learner.memory.close()
    assert found == streams.straight(tmp_path / "b.db", "numpy", EVERY)


def _full(memory: memstore.EpisodicMemory) -> Any:
    """Fill the file up within the transaction, as a full disk would, so that SQLite itself ends it."""
    session = memory._session

    def extend(*_: Any, **__: Any) -> Any:
        def work(snapshot: Any) -> None:
            snapshot.conn.exec_driver_sql("ROLLBACK")
            raise memstore.StoreFull("the disk is full")

        session.write(work)

    return extend


@postgres_only
def test_a_cut_connection_takes_the_learner_back_to_its_checkpoint(url: str, tmp_path: Path) -> None:
    with streams.opened(url, "numpy", EVERY) as learner:
        streams.take_up(learner)
        for _ in range(6):
            streams.step(learner)
        session = learner.memory._session
        pid = session.read(lambda s: s.conn.exec_driver_sql("SELECT pg_backend_pid()").scalar_one())
        engine = create_engine(url)
        with engine.connect() as other:
            assert other.exec_driver_sql(f"SELECT pg_terminate_backend({pid}, 5000)").scalar_one()
        engine.dispose()
        with pytest.raises(memstore.MemstoreError) as caught:
            streams.step(learner)
        assert any("since the last checkpoint" in note for note in caught.value.__notes__)
        assert learner.notes["step"] == 4
        found = finish(learner)
    learner.memory.close()
    assert found == streams.straight(tmp_path / "b.db", "numpy", EVERY)


def test_within_a_block_of_the_callers_nothing_commits_before_it(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with streams.opened(path, "numpy", EVERY) as learner:
        streams.take_up(learner)
        with learner.memory.transaction():
            for _ in range(6):
                streams.step(learner)
            assert notes_of(path) == (None, 0)
        assert notes_of(path) == (4, 24), "the checkpoint is of its step; episodes after it came with the block"
    learner.memory.close()


def test_a_callers_block_inside_a_span_ends_before_it(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with streams.opened(path, "numpy", EVERY) as learner:
        streams.take_up(learner)
        for _ in range(3):
            streams.step(learner)
        with learner.memory.transaction():
            streams.step(learner)
            assert notes_of(path) == (None, 0)
        streams.step(learner)
        assert notes_of(path) == (None, 0), "the commit that was due inside the block"
        for _ in range(3):
            streams.step(learner)
        assert notes_of(path) == (8, 32), "comes with the next checkpoint"
    learner.memory.close()


def test_loading_undoes_what_is_open(tmp_path: Path) -> None:
    path = tmp_path / "m.db"
    with streams.opened(path, "numpy", EVERY) as learner:
        streams.take_up(learner)
        for _ in range(4):
            streams.step(learner)
        at_checkpoint = streams.facts(learner)
        streams.step(learner)
        with pytest.raises(memstore.CheckpointNotFound):
            learner.load_state("none")
        assert learner.notes["step"] == 5
        learner.load_state()
        assert streams.facts(learner) == at_checkpoint
        assert learner.memory.transaction_depth == 0
    learner.memory.close()


def test_a_failing_call_outside_a_span_leaves_the_callers_notes(tmp_path: Path) -> None:
    with streams.opened(tmp_path / "m.db", "numpy", 1) as learner:
        streams.take_up(learner)
        learner.notes["own"] = 1
        with pytest.raises(InvalidValue):
            learner.learn_batch([memstore.learner.OnlineExample("", [1.0], 0)])
        assert learner.notes["own"] == 1
    learner.memory.close()
