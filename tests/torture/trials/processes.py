"""Writers and learners in processes of their own, of which some are killed, on one buffer."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import memstore
from tests.sharing.records import Extend, Record, Story, Update, offer, read_events, read_record
from tests.sharing.workers import learn, write
from tests.torture.outcome import Outcome, Place

TURNS = 10
FORKED: Any = multiprocessing.get_context("fork")


def mixed_on_a_file(place: Place, seed: int, outcome: Outcome) -> None:
    """Two writers and two learners on one file; one or two of the four are killed on the way."""
    _mixed(f"sqlite:///{place.file}", place.folder, seed, outcome)


def mixed_on_a_server(place: Place, seed: int, outcome: Outcome) -> None:
    """The same on a server."""
    _mixed(place.database(), place.folder, seed, outcome)


def _mixed(url: str, folder: Path, seed: int, outcome: Outcome) -> None:
    dice = random.Random(seed)
    capacity = dice.choice([400, 100_000])
    with memstore.open(url, seed=seed, capacity=capacity, eviction="fifo", strategy="prioritized_loss") as memory:
        first = folder / "seed.log"
        _add(memory, first, 0, range(64))
        paths = [first, *_run(url, folder, dice, outcome)]
        for path in paths:
            _settle(memory, url, path)
        story = Story(memory, url, paths)
        story.check()
        outcome.acknowledged += len(story.extends) + sum(map(len, story.updates.values()))


def _add(memory: memstore.EpisodicMemory, path: Path, writer: int, sequences: range) -> None:
    with Record(str(path)) as record:
        record.invoke(Extend(writer, sequences.start, len(sequences)))
        record.ok(ids=memory.extend(**offer(writer, sequences)).tolist())


def _run(url: str, folder: Path, dice: random.Random, outcome: Outcome) -> list[Path]:
    start = FORKED.Barrier(4)
    work = [("writer", write, 1), ("writer", write, 2), ("learner", learn, 1), ("learner", learn, 2)]
    paths = [folder / f"{kind}{number}.log" for kind, _, number in work]
    processes = [
        FORKED.Process(target=function, args=(url, number, TURNS, start, str(path)))
        for path, (_, function, number) in zip(paths, work, strict=True)
    ]
    for process in processes:
        process.start()
    while not all(path.exists() and path.stat().st_size for path in paths):
        time.sleep(0.001)
        assert all(process.exitcode is None for process in processes), "a worker ended before it began"
    victims = dice.sample(processes, dice.randint(1, 2))
    for victim in victims:
        time.sleep(dice.uniform(0, 0.15))
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        outcome.faults += 1
    for process in processes:
        process.join()
        assert process.exitcode in ((0, -signal.SIGKILL) if process in victims else (0,)), "a worker failed"
    return paths


def _settle(memory: memstore.EpisodicMemory, url: str, path: Path) -> None:
    """Find out what became of the last operation of a killed process, and write it into its record.

    An add is repeated: its keys make it a no-op if it was committed. An update was committed if its events are there.
    """
    operations = list(read_record(path))
    last = operations[-1]
    if isinstance(last, Extend) and last.ids is None:
        _complete(path, ids=memory.extend(**offer(last.writer, range(last.first, last.first + last.count))).tolist())
    elif isinstance(last, Update) and last.updated is None:
        mine = {e.episode_id for e in read_events(url) if e.consumer == path.stem and e.step == last.turn}
        if mine:
            _complete(path, updated=sorted(mine), missing=sorted(set(last.ids) - mine))
        else:
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))


def _complete(path: Path, **result: Any) -> None:
    with Record(str(path)) as record:
        record.ok(**result)
