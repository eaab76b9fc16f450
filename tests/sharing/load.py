"""Threads that add and update through one memory while its connections are cut, and what must be true of it after."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import Connection, create_engine
from sqlalchemy.pool import NullPool

from memstore import ConnectionLost, EpisodicMemory
from tests.sharing.records import content, domain_of, new_loss, offer, read_events

THREADS = 4


@contextmanager
def outside(url: str) -> Iterator[Connection]:
    """A connection past memstore."""
    engine = create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with engine.connect() as conn:
        yield conn
    engine.dispose()


@dataclass
class Load:
    """Threads that add with keys and update; what was acknowledged, what is unknown, and what they met."""

    memory: EpisodicMemory
    stop: threading.Event = field(default_factory=threading.Event)
    added: dict[tuple[int, int], int] = field(default_factory=dict)
    updates: list[tuple[str, int, list[tuple[int, float]]]] = field(default_factory=list)
    unknown_updates: list[list[tuple[int, float]]] = field(default_factory=list)
    futures: list[Future[None]] = field(default_factory=list)
    lost: int = 0
    unknown: int = 0

    def toil(self, number: int) -> None:
        """Until told to stop; an add that failed is repeated with its key until it is acknowledged."""
        turn = 0
        while not self.stop.is_set():
            sequences = range(4 * turn, 4 * turn + 4)
            ids = self._persist(partial(self.memory.extend, **offer(number, sequences)))
            assert len(ids) == 4
            for sequence, i in zip(sequences, ids.tolist(), strict=True):
                self.added[number, sequence] = i
            self._update(number, turn)
            turn += 1

    def _persist(self, call: Callable[[], Any]) -> Any:
        while True:
            try:
                return call()
            except ConnectionLost as exc:
                self._count(exc)

    def _count(self, exc: ConnectionLost) -> None:
        self.lost += 1
        self.unknown += exc.outcome_unknown

    def _update(self, number: int, turn: int) -> None:
        batch = self._persist(lambda: self.memory.sample(6))
        right = batch["content"] == content(batch["writer"], batch["sequence"])
        assert right.all(), "a payload is not what its writer wrote"
        losses = new_loss(number, turn % 1024, len(batch))
        wanted = list(zip(batch.ids.tolist(), losses, strict=True))
        try:
            self.memory.update(batch, loss=losses, step=turn)
        except ConnectionLost as exc:
            self._count(exc)
            if exc.outcome_unknown:
                self.unknown_updates.append(wanted)
        else:
            self.updates.append((f"{number}", turn, wanted))

    @contextmanager
    def running(self) -> Iterator[None]:
        """The threads work inside the block; errors of theirs are raised at its end."""
        with ThreadPoolExecutor(THREADS) as pool:
            self.futures = [pool.submit(self.toil, 1 + i) for i in range(THREADS)]
            try:
                yield
            finally:
                self.stop.set()
            for future in self.futures:
                future.result(60)

    def progress(self, more: int) -> None:
        """Return after this many more acknowledgements, from whatever number there are."""
        start = len(self.updates)
        deadline = time.monotonic() + 30
        while len(self.updates) < start + more:
            for future in self.futures:
                if future.done():
                    future.result()
            assert time.monotonic() < deadline, "no progress"
            time.sleep(0.001)

    def check(self, url: str) -> None:
        """All that was acknowledged is there once; of what is unknown, all or nothing; nothing else is."""
        stored = {episode.key: episode for episode in self.memory.recall_temporal(0, 1e18)}
        assert len(stored) == len(self.memory) == len(self.added) == self.memory.stats().total_inserted
        for (writer, sequence), i in self.added.items():
            episode = stored[f"{writer}:{sequence}"]
            assert episode.id == i and episode.domain == domain_of(writer, sequence)
            assert (episode.payload["content"] == content(np.array([writer]), np.array([sequence]))[0]).all()
        assert sorted(self.added.values()) == list(range(1, len(stored) + 1)), "ids with a gap"

        events = read_events(url)
        assert [event.id for event in events] == list(range(1, len(events) + 1)), "event numbers with a gap"
        # A loss belongs to one (thread, turn, slot), so a pair is there once or not at all.
        found = [(event.episode_id, event.after) for event in events]
        assert len(set(found)) == len(found), "an update was applied twice"
        acknowledged = {pair for _, _, wanted in self.updates for pair in wanted}
        maybe = set()
        for wanted in self.unknown_updates:
            present = set(wanted) & set(found)
            assert len(present) in (0, len(wanted)), "half an update was committed"
            maybe |= present
        assert set(found) == acknowledged | maybe, "an update was lost, or one that failed was committed"
        last: dict[int, float] = {}
        for event in events:
            assert event.episode_id not in last or event.before == last[event.episode_id], "a chain is broken"
            last[event.episode_id] = event.after
        assert all(episode.loss == last.get(episode.id, episode.loss) for episode in stored.values())
        assert self.memory._session.database.connections.in_use == 0, "a connection was not given back"
