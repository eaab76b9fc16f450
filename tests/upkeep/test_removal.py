"""``delete(where=...)`` and ``clear()``: one commit, recorded, and a bounded number of episodes at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import memstore
from memstore import InvalidValue, col
from memstore.upkeep import removal
from tests.support.helpers import OpenMemory


@pytest.fixture(params=[8192, 7], ids=["at once", "in parts"])
def filled(open_memory: OpenMemory, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A memory of 100 episodes; removed so many at a time."""
    monkeypatch.setattr(removal, "AT_ONCE", request.param)
    memory = open_memory(capacity=1000)
    levels = list(range(100))
    losses = [None if i % 5 == 0 else float(i) for i in levels]
    keys, extras = [f"k{i}" for i in levels], [{"n": i} for i in levels]
    domains = [f"d{i % 3}" for i in levels]
    ids = memory.extend(
        {"x": np.arange(100.0)}, level=levels, loss=losses, key=keys, extra=extras, domain=domains, tags=("t",)
    )
    memory.update(ids[40:60], loss=0.5)
    return memory, ids


CONDITIONS: list[tuple[Any, Any]] = [
    (col.level >= 50, lambda i: i >= 50),
    ("level >= 50", lambda i: i >= 50),
    (col.loss < 30, lambda i: (i % 5 != 0 and i < 30) or 40 <= i < 60),
    ("loss is missing", lambda i: i % 5 == 0 and not 40 <= i < 60),
    (col.replay_count > 0, lambda i: 40 <= i < 60),
    (col.age <= 10, lambda i: i >= 90),
    ("domain = 'd1' and extra.n > 20", lambda i: i % 3 == 1 and i > 20),
    (col.tags.has("t"), lambda i: True),
    (col.key == "nobody", lambda i: False),
]


@pytest.mark.parametrize(("where", "leaves"), CONDITIONS, ids=[str(where) for where, _ in CONDITIONS])
def test_what_passes_leaves_in_one_commit(filled: Any, where: Any, leaves: Any) -> None:
    memory, ids = filled
    memory.sample(100)  # their payloads are cached
    gone = [i for n, i in enumerate(ids.tolist()) if leaves(n)]
    before = memory.stats().total_inserted
    assert memory.delete(where=where) == len(gone)
    assert memory.query().ids().tolist() == sorted(set(ids.tolist()) - set(gone))
    departures = memory.query("history").filter(col.what == "deleted").all()
    assert [event.id for event in departures] == gone and len({event.at for event in departures}) <= 1
    assert memory.stats().total_inserted == before and memory.check().ok
    for episode in gone[:1]:
        with pytest.raises(memstore.EpisodeNotFound):
            memory.get(episode)
    assert memory.delete(where=where) == 0


def test_a_transaction_takes_it_back(filled: Any) -> None:
    memory, ids = filled
    with pytest.raises(RuntimeError), memory.transaction():
        assert memory.delete(where=col.level < 50) == 50
        assert len(memory) == 50 and memory.clear() == 50 and len(memory) == 0
        raise RuntimeError
    assert len(memory) == 100 and len(memory.sample(100).ids) == 100
    with memory.transaction():
        memory.extend({"x": np.zeros(1)}, level=1000)
        assert memory.delete(where="level >= 90") == 11
    assert len(memory) == 90 and not memory.query("history").filter(col.what == "deleted", col.id < ids[90]).count()


def test_clear_keeps_what_its_docstring_says(filled: Any) -> None:
    memory, ids = filled
    memory.save_checkpoint("c", {"step": 3})
    replays = sum(share.replays for share in memory.replay_share())
    assert memory.clear() == 100 and len(memory) == 0 and memory.clear() == 0
    assert memory.query("history").filter(col.what == "deleted").ids().tolist() == ids.tolist()
    assert memory.load_checkpoint("c") == {"step": 3} and memory.capacity == 1000
    assert sum(share.replays for share in memory.replay_share()) == replays == 20
    assert memory.add({"x": 0.0}, key="k7") == ids[7], "keys stay known"
    assert memory.add({"x": 0.0}) == ids[-1] + 1, "ids are never used again"
    with pytest.raises(memstore.PayloadError):
        memory.add({"y": "text"})
    assert memory.sample(5).ids.tolist() == [ids[-1] + 1]


def test_ids_or_a_condition_and_never_both(filled: Any) -> None:
    memory, ids = filled
    wrong: list[Any] = [
        lambda: memory.delete(),
        lambda: memory.delete(ids, where=col.level > 1),
        lambda: memory.delete(where=True),
        lambda: memory.delete(where="lvel > 1"),
        lambda: memory.delete(where=""),
        lambda: memory.delete(where=col.step > 1),
        lambda: memory.delete(where="step > 1"),
    ]
    for call in wrong:
        with pytest.raises(InvalidValue):
            call()
    assert len(memory) == 100
    assert memory.delete([]) == 0 and memory.delete(ids[:20]) == 20 and memory.delete(ids[:21]) == 1
