"""One process's handle on one buffer: scopes, private copies of the state, the generator, forks.

A write works on a private copy of the state; the copy is published at commit and dropped at rollback, and so are
payloads on their way into the cache and what was drawn from the generator.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

import numpy as np
from sqlalchemy import Connection

from memstore.backends import Watch
from memstore.cache import PayloadCache
from memstore.database import Database
from memstore.errors import MemoryClosed, MemstoreError, StoreBusy, StoreCorrupt
from memstore.facts import refuse_unreadable
from memstore.population import Populations
from memstore.snapshot import Snapshot, State

T = TypeVar("T")


class Session:
    """Read and write scopes over a buffer; threads may share it."""

    def __init__(self, database: Database, state: State, seeds: np.random.SeedSequence, cache: PayloadCache) -> None:
        self.database = database
        self.cache = cache
        self.populations = Populations()
        self.committed = state
        self._losses = database.losses
        self._start(seeds)
        _sessions.add(self)

    def _start(self, seeds: np.random.SeedSequence) -> None:
        self.seeds = seeds
        self.rng = np.random.default_rng(seeds)
        # Spans a draw and a whole transaction(): a draw by another thread inside would be undone by its rollback.
        self._lock = threading.RLock()
        self._uncommitted: State | None = None
        self._new_payloads: dict[int, bytes] = {}

    def read(self, work: Callable[[Snapshot], T]) -> T:
        """Run ``work`` on one consistent snapshot."""

        def scope(conn: Connection) -> tuple[T, State]:
            state = self._known(conn).at(conn, self.database.backend)
            return work(Snapshot(conn, self.database.backend, state)), state

        try:
            result, state = self.database.in_read(scope)
        except MemstoreError as exc:
            self._blame_extra(exc)
            raise
        if not self.database.transaction_open:
            self._publish(state)
        return result

    def _blame_extra(self, exc: MemstoreError) -> None:
        """Name the row where it is an extra JSON that stopped the database, or could not be read; else return."""
        unnamed = isinstance(exc, StoreCorrupt) and exc.episode_id is None
        if type(exc) is not MemstoreError and not unnamed:
            return
        if self.database.transaction_open and self.database.backend.shared:
            return  # PostgreSQL answers nothing more in this transaction
        number = self.committed.buffer_id
        with suppress(MemoryClosed):
            self.database.in_read(lambda conn: refuse_unreadable(conn, number))

    def draw(self, work: Callable[[Snapshot], T], *, write: bool = False) -> T:
        """``read``, or ``write``, with the generator: one draw at a time, and none of a failed one is used up."""
        with self._alone(), self._rewinding():
            before = self.rng.bit_generator.state

            def attempt(snapshot: Snapshot) -> T:
                self.rng.bit_generator.state = before  # the database may ask for another attempt: the same draw
                return work(snapshot)

            return self.write(attempt) if write else self.read(attempt)

    def write(self, work: Callable[[Snapshot], T], payloads: Callable[[T], Mapping[int, bytes]] | None = None) -> T:
        """Run ``work`` under the buffer's lock and commit; ``payloads`` says what of its result to cache then."""

        def scope(conn: Connection) -> tuple[T, State]:
            backend = self.database.backend
            self._lock_buffer(conn)
            state = self._known(conn).at(conn, backend).copy()
            result = work(Snapshot(conn, backend, state))
            state.flush(conn, backend)
            backend.announce(conn, state.buffer_id)
            return result, state

        with self._alone():
            result, state = self.database.in_write(scope)
            if payloads is not None:
                self._new_payloads.update(payloads(result))
            self._uncommitted = state
            if not self.database.transaction_open:
                self._commit()
        return result

    def aside(self, work: Callable[[Snapshot], T]) -> T:
        """Commit a change that leaves the buffer's state alone, so without its lock; the snapshot may be mixed."""

        def scope(conn: Connection) -> T:
            backend = self.database.backend
            result = work(Snapshot(conn, backend, self._known(conn).at(conn, backend)))
            backend.announce(conn, self.committed.buffer_id)
            return result

        return self.database.in_write(scope)

    def watch(self) -> Watch:
        """A started watch on commits to the buffer by anyone; close it."""
        return self.database.watch(self.committed.buffer_id)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Make everything inside one commit; on an exception nothing of the block remains."""
        with self._alone():
            before, payloads = self._uncommitted, dict(self._new_payloads)
            try:
                with self._rewinding(), self.database.transaction(self._lock_buffer):
                    yield
            except BaseException:
                self._uncommitted, self._new_payloads = before, payloads
                raise
            if not self.database.transaction_open:
                self._commit()

    def _lock_buffer(self, conn: Connection) -> None:
        self.database.backend.lock_buffer(conn, self.committed.buffer_id)

    def restore(self, generator: Mapping[str, Any]) -> None:
        """Put the generator into a stored state."""
        with self._alone():
            self.rng.bit_generator.state = generator

    def child_seeds(self) -> np.random.SeedSequence:
        """Seeds for another process, independent of this one's and of every other child's."""
        return self.seeds.spawn(1)[0]

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = self._lock  # a fork inside replaces it
        patience = self.database.backend.busy_timeout
        if not lock.acquire(timeout=patience):
            raise StoreBusy(
                f"{self.database.backend.describe()}: another thread of this process has used the memory for "
                f"{patience:g} s; keep transaction() blocks short, and nest those of two memories in the same order"
            )
        try:
            yield
        finally:
            lock.release()

    def _known(self, conn: Connection) -> State:
        """The state to start from: this thread's own in a transaction, else the last one published."""
        if self.database.transaction_open:
            return self._uncommitted or self.committed
        # Another thread's transaction is not visible here, nor is its state.
        if self._losses != self.database.losses:
            self._losses = self.database.losses
            self.cache.clear()
            self.populations.clear()
            self.committed = State.load(conn, self.database.backend, self.committed.buffer_id)
        return self.committed

    def _commit(self) -> None:
        if self._uncommitted is not None:
            self._publish(self._uncommitted)
        self.cache.put(self._new_payloads)
        self._uncommitted, self._new_payloads = None, {}

    def _publish(self, state: State) -> None:
        if state.counters.revision > self.committed.counters.revision:
            self.committed = state

    @contextmanager
    def _rewinding(self) -> Iterator[None]:
        before = self.rng.bit_generator.state
        try:
            yield
        except BaseException:
            self.rng.bit_generator.state = before
            raise

    def _before_fork(self) -> None:
        self._fork_seeds = self.child_seeds()

    def _after_fork(self) -> None:
        self.cache.after_fork()
        self.populations.after_fork()
        self._start(self._fork_seeds)


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _each_session(act: Callable[[Session], None]) -> Callable[[], None]:
    def hook() -> None:
        for session in list(_sessions):
            act(session)

    return hook


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_each_session(Session._before_fork), after_in_child=_each_session(Session._after_fork))
