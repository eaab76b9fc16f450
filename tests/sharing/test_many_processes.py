"""Writers and learners in processes of their own: nothing is lost, doubled, torn or mixed up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memstore
from memstore import PrioritizedLoss
from memstore.buffer import snapshot
from memstore.episodes import losses as history
from tests.sharing.records import Extend, Record, Story, offer
from tests.sharing.workers import SHARED, learn, write
from tests.support.helpers import FRESH, Child, OpenMemory

SETTINGS: dict[str, dict[str, Any]] = {
    "roomy": {"capacity": 100_000, "eviction": "fifo"},
    "fifo": {"capacity": 400, "eviction": "fifo"},
    "lowest_loss": {"capacity": 400, "eviction": "lowest_loss"},
}
TURNS = 25


@contextmanager
def sabotaged(how: str | None) -> Iterator[None]:
    """Break the library in this process, to prove that the checks below would see it."""
    with pytest.MonkeyPatch.context() as patch:
        if how == "forgotten replays":
            fold = history.fold

            # One write in three: that none of 24 updates in 60 writes is hit has a chance of about 1 in 30,000.
            def forgetful(s: Any, rows: Any, place: Any, *rest: Any) -> None:
                if s.state.counters.revision % 3 == 0:
                    rows = replace(rows, replay_count=rows.replay_count - np.bincount(place, minlength=len(rows)))
                    s.state.counters.live_replays -= len(place)
                fold(s, rows, place, *rest)

            patch.setattr(history, "fold", forgetful)
        elif how == "lost updates":
            matched = snapshot.Snapshot.matched
            seen: dict[int, tuple[float, int]] = {}

            def stale(self: Any, *given: Any) -> Any:
                rows, place = matched(self, *given)
                for k, i in enumerate(rows.ids.tolist()):
                    current = rows.loss[k], rows.replay_count[k]
                    rows.loss[k], rows.replay_count[k] = seen.setdefault(i, current)
                return rows, place

            patch.setattr(snapshot.Snapshot, "matched", stale)
        else:
            assert how is None
        yield


def work(kind: str, how: str | None, *arguments: Any) -> None:
    """Write or learn, in a process where the library may be broken."""
    start = arguments[-2]
    try:
        with sabotaged(how):
            # Together, because writers that need a millisecond for a turn would be done before some learner begins.
            {"writer": write, "learner": learn}[kind](*arguments, together=True)
    except BaseException:
        start.abort()  # nobody waits for this process any more
        raise


def run(memory: memstore.EpisodicMemory, url: str, folder: Path, *, each: int, turns: int, how: str | None) -> Story:
    """``each`` writers and as many learners, at once; what came of it."""
    first = folder / "seed.log"
    with Record(str(first)) as record:
        record.invoke(Extend(0, 0, 64))
        record.ok(ids=memory.extend(**offer(0, range(64))).tolist())
    start = FRESH.Barrier(2 * each)
    paths = [first]
    children = []
    for kind in ("writer", "learner"):
        for number in range(1, each + 1):
            paths.append(folder / f"{kind}{number}.log")
            children.append(Child(work, kind, how, url, number, turns, start, str(paths[-1])))
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
        # A count that a write forgets leaves a slot that cannot be, too.
        with pytest.raises((AssertionError, memstore.StoreCorrupt)) as caught:
            run(memory, url, tmp_path, each=2, turns=12, how=how).check()
        print(f"{how}: {str(caught.value).splitlines()[-1]}")
