"""The handle of one process on one buffer: scopes, private copies of the state, the generator, forks.

A write works on a private copy of the state. A commit publishes the copy, and a rollback drops it. The same holds for
payloads that wait to enter the cache, and for the advance of the generator.
"""

from __future__ import annotations

import os
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from sqlalchemy import Connection

from memstore.buffer.facts import refuse_unreadable
from memstore.buffer.snapshot import Snapshot, State
from memstore.errors import MemoryClosed, MemstoreError, StoreBusy, StoreCorrupt
from memstore.payload.cache import PayloadCache
from memstore.storage.attempts import Attempts
from memstore.storage.backends import Watch
from memstore.storage.blocks import Block
from memstore.storage.database import Database
from memstore.storage.failures import foreign
from memstore.storage.owners import Scope, Turn, enter_context, this_owner

T = TypeVar("T")

BESIDE = 2**32 - 1
"""This is the key of the second stream of random numbers. ``spawn`` counts from 0 and never reaches it."""


@dataclass(eq=False)
class _Open:
    """An open block. Its commit publishes the state and the payloads, or gives them to the outer block."""

    scope: Scope
    outer: _Open | None
    state: State | None
    payloads: dict[int, bytes]


class Known(Protocol):
    """Knowledge about committed data that a process keeps from one call to the next."""

    def clear(self) -> None:
        """Forget everything, because a server may have lost commits."""

    def after_fork(self) -> None:
        """Start empty in a child, because another thread of the parent may have been in the middle of a change."""


class Session:
    """Read and write scopes over a buffer. Threads may share a session.

    Each element of ``known`` is cleared when commits may be lost, and starts empty in a forked child.
    """

    def __init__(
        self,
        database: Database,
        state: State,
        seeds: np.random.SeedSequence,
        cache: PayloadCache,
        known: Sequence[Known] = (),
    ) -> None:
        self.database = database
        self.cache = cache
        self._caches: tuple[Known, ...] = (cache, *known)
        self.committed = state
        self._broken = database.connections.broken
        self._start(seeds)
        _sessions.add(self)

    def _start(self, seeds: np.random.SeedSequence) -> None:
        self.seeds = seeds
        self.rng = np.random.default_rng(seeds)
        self._beside = np.random.SeedSequence(seeds.entropy, spawn_key=(*seeds.spawn_key, BESIDE))
        self._writing = Turn()
        # A draw holds this turn, and so does a whole transaction(). Without it, the rollback of the transaction would
        # undo the draw of another thread.
        self._drawing = Turn()
        self._block: _Open | None = None

    def read(self, work: Callable[[Snapshot], T]) -> T:
        """Run ``work`` on one consistent snapshot."""
        visit = _Visit(self, sys._getframe())
        try:
            for snapshot in visit:
                with visit:
                    result = work(snapshot)
            return result
        except MemstoreError as exc:
            self._blame_extra(exc)
            raise
        finally:
            visit.end()
            del visit  # which refers to this function's variables

    def _blame_extra(self, exc: MemstoreError) -> None:
        """Raise an error that names the row if an extra that is no JSON may have caused ``exc``."""
        unnamed = isinstance(exc, StoreCorrupt) and exc.episode_id is None
        if type(exc) is not MemstoreError and not unnamed:
            return
        if self.database.transaction_open and self.database.backend.shared:
            return  # PostgreSQL refuses further statements in this transaction
        number = self.committed.buffer_id
        with suppress(MemoryClosed):
            self.database.in_read(lambda conn: refuse_unreadable(conn, number))

    def write(
        self,
        work: Callable[[Snapshot], T],
        payloads: Callable[[T], Mapping[int, bytes]] | None = None,
        *,
        locked: bool = True,
    ) -> T:
        """Run ``work`` under the buffer's lock, and commit.

        After the commit, the payloads that ``payloads`` gives for the result enter the cache. ``locked=False`` leaves
        out the lock, for work that does not change the state of the buffer.
        """
        visit = _Visit(self, sys._getframe(), write=True, locked=locked)
        try:
            for snapshot in visit:
                with visit:
                    result = work(snapshot)
                    if payloads is not None:
                        visit.payloads = payloads(result)
            return result
        finally:
            visit.end()
            del visit  # which refers to this function's variables

    def draw(self, work: Callable[[Snapshot, np.random.Generator], T], *, write: bool = False) -> T:
        """Run ``work`` as ``read`` or ``write`` does, and give it the generator.

        One draw runs at a time. A failed draw uses up no random numbers. If a block or a writing draw of another thread
        or task holds the generator, a reading draw does not wait. It gets another generator, from a second stream of
        the same seed.
        """
        visit = _Visit(self, sys._getframe(), write=write, draws=True)
        try:
            for snapshot in visit:
                with visit:
                    result = work(snapshot, visit.generator)
            return result
        except MemstoreError as exc:
            self._blame_extra(exc)
            raise
        finally:
            visit.end()
            del visit  # which refers to this function's variables

    def aside(self, work: Callable[[Snapshot], T]) -> T:
        """Commit a change that does not touch the buffer's state, without the buffer's lock.

        The state in the snapshot may be mixed from two revisions.
        """
        return self.write(work, locked=False)

    def watch(self) -> Watch:
        """Start a watch on commits to the buffer by any process. The caller closes it."""
        return self.database.watch(self.committed.buffer_id)

    def transaction(self, given: T) -> Block[T]:
        """Return a block that makes everything inside it one commit. ``with ... as`` gives ``given``.

        If an exception leaves the block, nothing of it remains.
        """
        return Block(_Steps(self, given))

    def _lock_buffer(self, conn: Connection) -> None:
        self.database.backend.lock_buffer(conn, self.committed.buffer_id)

    def restore(self, generator: Mapping[str, Any]) -> None:
        """Put the generator into a stored state."""
        scope = Scope(this_owner(), sys._getframe(), long=True)
        try:
            self._take_turn(scope)
            self._generator(scope).bit_generator.state = generator
        finally:
            self._drawing.release(scope)
            self._writing.release(scope)
            del scope  # which refers to this function's variables

    def child_seeds(self) -> np.random.SeedSequence:
        """Return seeds for another process. They are independent of the seeds of all other processes."""
        return self.seeds.spawn(1)[0]

    def close(self) -> None:
        """Close the connections."""
        self.database.close()

    def _take_turn(self, scope: Scope) -> None:
        """Take the turn to write, alone among the threads and tasks, unless the own block has it already."""
        holder = self._writing.holder
        if holder is not None and holder.owner == scope.owner and not holder.is_over():
            return
        patience = self.database.backend.busy_timeout
        holder = self._writing.take(scope, patience, scope.waits_in_vain)
        if holder is not scope:
            self._refuse_foreign(scope)
            raise self._busy(holder)

    def _refuse_foreign(self, scope: Scope) -> None:
        holder = self._writing.holder
        if holder is not None and holder.owner != scope.owner and scope.waits_in_vain(holder):
            raise foreign(holder.owner)

    def _generator(self, scope: Scope) -> np.random.Generator:
        """Return the generator, held by the scope or the block around it.

        A draw that must not wait gets a generator of the second stream.
        """
        holder = self._drawing.holder
        if holder is not None and holder.owner == scope.owner and not holder.is_over():
            return self.rng
        patience = self.database.backend.busy_timeout
        holder = self._drawing.take(scope, patience, lambda other: other.long and not scope.long)
        if holder is scope:
            return self.rng
        if scope.long:
            raise self._busy(holder)
        return np.random.default_rng(self._beside.spawn(1)[0])

    def _busy(self, holder: Scope) -> StoreBusy:
        return StoreBusy(
            f"{self.database.backend.describe()}: {holder.owner} of this very process has used the memory for "
            f"{self.database.backend.busy_timeout:g} s; keep transaction() blocks short, and nest those of two "
            "memories in the same order"
        )

    def _own_block(self) -> _Open | None:
        """Return the innermost open block, if this thread and task opened it."""
        block = self._block
        return block if block is not None and block.scope.owner == this_owner() else None

    def _known(self, conn: Connection) -> State:
        """Return the state to start from: the state of the own block, else the last published state."""
        block = self._own_block()
        if block is not None:
            return block.state or self.committed
        # The transaction of another thread is not visible here, and neither is its state.
        broken = self.database.connections.broken
        if self._broken != broken:
            for cache in self._caches:
                cache.clear()
            self.committed = self.committed.reload(conn, self.database.backend)
            self._broken = broken
        return self.committed

    def _publish(self, state: State) -> None:
        if state.counters.revision > self.committed.counters.revision:
            self.committed = state

    def _before_fork(self) -> None:
        self._fork_seeds = self.child_seeds()

    def _after_fork(self) -> None:
        for cache in self._caches:
            cache.after_fork()
        self._start(self._fork_seeds)


class _Visit(Attempts[Snapshot]):
    """The way of one call to a snapshot: it takes turns, makes attempts, and publishes the new state.

    Parameters
    ----------
    session : Session
    frame : frame
        The frame of the function that runs the loop.
    write : bool
        True if the work may write.
    locked : bool
        True if work that writes holds the buffer's lock.
    draws : bool
        True if the work gets the generator.
    """

    def __init__(
        self, session: Session, frame: FrameType, *, write: bool = False, locked: bool = True, draws: bool = False
    ) -> None:
        scope = Scope(this_owner(), frame, long=write and draws)
        database = session.database
        super().__init__(database.connections, database.open_transaction(scope.owner), scope, write=write)
        self.payloads: Mapping[int, bytes] = {}
        self.generator = session.rng
        self._session = session
        self._changes = write and locked
        self._draws = draws
        self._before: Mapping[str, Any] | None = None
        self._snapshot: Snapshot | None = None

    def __iter__(self) -> _Visit:
        """Take the turns that the call needs."""
        if self._changes:
            self._session._take_turn(self.scope)
        elif self.write:
            self._session._refuse_foreign(self.scope)
        if self._draws:
            self.generator = self._session._generator(self.scope)
            self._before = self.generator.bit_generator.state
        return self

    def begun(self, conn: Connection) -> Snapshot:
        """Return the snapshot. Its state is a copy if the work may change it."""
        session = self._session
        if self._changes:
            session._lock_buffer(conn)
        state = session._known(conn).at(conn, session.database.backend)
        self._snapshot = Snapshot(conn, session.database.backend, state.copy() if self._changes else state)
        return self._snapshot

    def finish(self) -> None:
        """Store the state, and wake the waiting processes."""
        if self.write and (snapshot := self._snapshot) is not None:
            if self._changes:
                snapshot.state.flush(snapshot.conn, snapshot.backend)
            snapshot.backend.announce(snapshot.conn, snapshot.state.buffer_id)

    def committed(self) -> None:
        """Publish the state and cache the payloads, or give both to the block around the call."""
        self._before = None
        if self._snapshot is None or (self.write and not self._changes):
            return  # without the lock, the state may be mixed from two revisions
        session, state = self._session, self._snapshot.state
        block = session._own_block()
        if block is None:
            session._publish(state)
            session.cache.put(self.payloads)
        elif self.write:
            block.state = state
            block.payloads.update(self.payloads)

    def end(self) -> None:
        """Close everything, give back the random numbers of a failed draw, and release the turns."""
        self._rewind()
        super().end()
        self._session._drawing.release(self.scope)
        self._session._writing.release(self.scope)

    def _undo(self) -> None:
        self._rewind()  # another attempt is the same draw
        super()._undo()

    def _rewind(self) -> None:
        if self._before is not None:
            self.generator.bit_generator.state = self._before


class _Steps(Generic[T]):
    """One block of ``Session.transaction``. The outermost of nested blocks holds the turns."""

    def __init__(self, session: Session, given: T) -> None:
        self._session = session
        self._given = given
        self._scope = Scope(this_owner(), long=True)
        self._database = session.database.transaction(session._lock_buffer).steps
        self._open: _Open | None = None
        self._rng = session.rng
        self._before: Mapping[str, Any] | None = None

    def enter(self) -> T:
        """Take the turns and begin the transaction."""
        session = self._session
        outer = session._own_block()
        session._take_turn(self._scope)
        session._generator(self._scope)
        before = self._rng.bit_generator.state
        self._database.enter()
        self._before = before
        state, payloads = (None, {}) if outer is None else (outer.state, dict(outer.payloads))
        session._block = self._open = _Open(self._scope, outer, state, payloads)
        enter_context(self._scope)
        return self._given

    def leave(self, *, commit: bool) -> None:
        """Commit and publish, or undo. Then release the turns."""
        opened, session = self._open, self._session
        assert opened is not None
        self._database.leave(commit=commit)
        if commit:
            self._before = None
        if commit and opened.outer is not None:
            opened.outer.state, opened.outer.payloads = opened.state, opened.payloads
        elif commit:
            if opened.state is not None:
                session._publish(opened.state)
            session.cache.put(opened.payloads)
        self.abandon()

    def abandon(self) -> None:
        """Undo the open transaction, and release the turns."""
        session, opened = self._session, self._open
        self._database.abandon()
        if self._before is not None:
            self._rng.bit_generator.state, self._before = self._before, None
        if opened is not None:
            session._block, self._open = opened.outer, None
            enter_context(None if opened.outer is None else opened.outer.scope)
        session._drawing.release(self._scope)
        session._writing.release(self._scope)


_sessions: weakref.WeakSet[Session] = weakref.WeakSet()


def _each_session(act: Callable[[Session], None]) -> Callable[[], None]:
    def hook() -> None:
        for session in list(_sessions):
            act(session)

    return hook


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_each_session(Session._before_fork), after_in_child=_each_session(Session._after_fork))
