"""Writers and learners in processes of their own: nothing is lost, doubled, torn or mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import memstore
from memstore import PrioritizedLoss, history, snapshot
from tests.contract.helpers import FRESH, Child, OpenMemory
from tests.sharing.records import Extend, Record, Story, Update, new_loss, offer, origin

SETTINGS: dict[str, dict[str, Any]] = {
    "roomy": {"capacity": 100_000, "eviction": "fifo"},
    "fifo": {"capacity": 400, "eviction": "fifo"},
    "lowest_loss": {"capacity": 400, "eviction": "lowest_loss"},
}
STRATEGIES = (None, "uniform", "prioritized_recency", "domain_balanced", "mixed")
TURNS = 25
SHARED = 40
"""Episodes of writer 0 that every writer adds: the key lets in one of them."""


@contextmanager
def sabotaged(how: str | None) -> Iterator[None]:
    """Break the library in this process, to prove that the checks below would see it."""
    with pytest.MonkeyPatch.context() as patch:
        if how == "forgotten replays":
            fold = history.fold

            # One write in three: that none of 24 updates in 60 writes is hit has a chance of about 1 in 30,000.
            def forgetful(s: Any, rows: Any, folded: history.Folded, at: float) -> None:
                fold(s, rows, replace(folded, replays=folded.replays * (s.state.counters.revision % 3 != 0)), at)

            patch.setattr(history, "fold", forgetful)
        elif how == "lost updates":
            find = snapshot.Snapshot.find
            seen: dict[int, tuple[float, int]] = {}

            def stale(self: Any, ids: Any) -> Any:
                rows = find(self, ids)
                for k, i in enumerate(rows.ids.tolist()):
                    current = rows.loss[k], rows.replay_count[k]
                    rows.loss[k], rows.replay_count[k] = seen.setdefault(i, current)
                return rows

            patch.setattr(snapshot.Snapshot, "find", stale)
        else:
            assert how is None
        yield


def write(url: str, writer: int, turns: int, start: Any, path: str, how: str | None = None) -> None:
    """Extend by 16 again and again; now and then what was added already."""
    with ExitStack() as stack:
        stack.enter_context(sabotaged(how))
        memory = stack.enter_context(memstore.open(url, create=False, seed=writer))
        record = stack.enter_context(Record(path))

        def extend(number: int, sequences: range) -> None:
            record.invoke(Extend(number, sequences.start, len(sequences)))
            record.ok(ids=memory.extend(**offer(number, sequences)).tolist())

        start.wait(60)
        for turn in range(turns):
            extend(writer, range(16 * turn, 16 * turn + 16))
            if turn % 10 == 4:
                extend(writer, range(16 * (turn - 2), 16 * (turn - 1)))
            if turn < SHARED // 4:
                extend(0, range(1000 + 4 * turn, 1004 + 4 * turn))


def learn(url: str, learner: int, turns: int, start: Any, path: str, how: str | None = None) -> None:
    """Sample 32 by every strategy in turn, and write losses back that tell who, when and where."""
    name = Path(path).stem
    with ExitStack() as stack:
        stack.enter_context(sabotaged(how))
        memory = stack.enter_context(memstore.open(url, create=False, seed=100 + learner, consumer=name))
        record = stack.enter_context(Record(path))
        start.wait(60)
        for turn in range(turns):
            batch = memory.sample(32, strategy=STRATEGIES[turn % len(STRATEGIES)])
            inserted = {i + age - 1 for i, age in zip(batch.ids.tolist(), batch.age.tolist(), strict=True)}
            assert len(inserted) == 1, "ages of two moments in one batch"
            losses = new_loss(learner, turn, len(batch))
            seen = batch.ids.tolist(), origin(batch), batch.loss.tolist(), batch.replay_count.tolist()
            record.invoke(Update(learner, turn, inserted.pop(), *seen, losses))
            result = memory.update(batch, loss=losses, step=turn)
            record.ok(updated=result.updated.tolist(), missing=result.missing.tolist())


def run(memory: memstore.EpisodicMemory, url: str, folder: Path, *, each: int, turns: int, how: str | None) -> Story:
    """``each`` writers and as many learners, at once; what came of it."""
    first = folder / "seed.log"
    with Record(str(first)) as record:
        record.invoke(Extend(0, 0, 64))
        record.ok(ids=memory.extend(**offer(0, range(64))).tolist())
    start = FRESH.Barrier(2 * each)
    paths = [first]
    children = []
    for kind, work in (("writer", write), ("learner", learn)):
        for number in range(1, each + 1):
            paths.append(folder / f"{kind}{number}.log")
            children.append(Child(work, url, number, turns, start, str(paths[-1]), how))
    outcomes = []
    for child in children:
        try:
            child.result(200)
        except AssertionError as exc:
            outcomes.append(exc)
    if outcomes:
        raise outcomes[0]
    return Story(memory, url, paths)


@pytest.mark.torture
@pytest.mark.parametrize("settings", SETTINGS)
def test_writers_and_learners(open_memory: OpenMemory, url: str, tmp_path: Path, settings: str) -> None:
    """4 + 4 processes; every id, payload, loss, count and event is as the one order of commits explains it."""
    memory = open_memory(strategy=PrioritizedLoss(0.6), **SETTINGS[settings])
    story = run(memory, url, tmp_path, each=4, turns=TURNS, how=None)
    story.check()
    story.was_hard(evicting=settings != "roomy")
    assert len(story.id_of) == 64 + 4 * TURNS * 16 + SHARED
    assert settings != "roomy" or len(story.events) == 4 * TURNS * 32


@pytest.mark.parametrize("how", ["forgotten replays", "lost updates"])
def test_the_checks_can_fail(tmp_path: Path, url: str, how: str) -> None:
    """The same run with a broken library does not pass."""
    with memstore.open(url, seed=7, strategy=PrioritizedLoss(0.6), capacity=10_000, eviction="fifo") as memory:
        with pytest.raises(AssertionError) as caught:
            run(memory, url, tmp_path, each=2, turns=12, how=how).check()
        print(f"{how}: {str(caught.value).splitlines()[-1]}")
