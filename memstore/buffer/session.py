"""The handle of one process on one buffer: scopes, private copies of the state, the generator, forks.

A write works on a private copy of the state. A commit publishes the copy, and a rollback drops it. The same holds for
payloads that wait to enter the cache, and for the advance of the generator.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Generic, Protocol, TypeVar, TypeVarTuple

import numpy as np
from sqlalchemy import Connection

from memstore.buffer.facts import refuse_unreadable
from memstore.buffer.folding import finish
from memstore.buffer.snapshot import Snapshot, State
from memstore.errors import MemoryClosed, MemstoreError, StoreBusy, StoreCorrupt
from memstore.payload.cache import PayloadCache
from memstore.storage.attempts import Attempts
from memstore.storage.backends import Watch
from memstore.storage.blocks import Block
from memstore.storage.database import Database
from memstore.storage.failures import foreign
from memstore.storage.forks import Forking
from memstore.storage.owners import Scope, Turn, enter_context, this_owner

T = TypeVar("T")
Given = TypeVarTuple("Given")

BESIDE = 2**32 - 1
"""This is the key of the second stream of random numbers. ``spawn`` counts from 0 and never reaches it."""


CONTENT_BYTES = 4480
"""A content of a block, with the cumulative weights of its slots, takes so many bytes in memory."""


class Known(Protocol):
    """Knowledge about committed data that a process keeps from one call to the next."""

    def clear(self) -> None:
        """Forget everything, because a server may have lost commits."""

    def after_fork(self) -> None:
        """Start empty in a child, because another thread of the parent may have been in the middle of a change."""


class Session(Forking):
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
        self.contents = cache.max_bytes // CONTENT_BYTES
        self._broken = database.connections.broken
        self._start(seeds)
        super().__init__()

    def _start(self, seeds: np.random.SeedSequence) -> None:
        self.seeds = seeds
        self.rng = np.random.default_rng(seeds)
        self._beside = np.random.SeedSequence(seeds.entropy, spawn_key=(*seeds.spawn_key, BESIDE))
        self._writing = Turn()
        # A draw holds this turn, and so does a whole transaction(). Without it, the rollback of the transaction would
        # undo the draw of another thread.
        self._drawing = Turn()
        self._block: _Steps[Any] | None = None
        self.wrote = False
        """True if this process has committed a change of the buffer through this session."""

    def read(self, work: Callable[[Snapshot], T]) -> T:
        """Run ``work`` on one consistent snapshot."""
        return _Visit(self).run(work)

    def write(self, work: Callable[[Snapshot], T], payloads: Callable[[T], Mapping[int, bytes]] | None = None) -> T:
        """Run ``work`` under the buffer's lock, and commit.

        After the commit, the payloads that ``payloads`` gives for the result enter the cache.
        """
        return _Visit(self, write=True, payloads=payloads).run(work)

    def drawing(self, *, write: bool = False) -> Attempts[Snapshot, np.random.Generator]:
        """Return a ``read``, or a ``write``, with the generator. Its method ``run`` runs the work.

        One draw runs at a time. A failed draw uses up no random numbers. If a block or a writing draw of another thread
        or task holds the generator, a reading draw does not wait. It gets another generator, from a second stream of
        the same seed.
        """
        return _Draw(self, write=write)

    def aside(self, work: Callable[[Snapshot], T]) -> T:
        """Commit a change that does not touch the buffer's state, without the buffer's lock.

        The snapshot has the counters of this moment, and no block may be read in it.
        """
        return _Visit(self, write=True, locked=False).run(work)

    def examining(self, work: Callable[[Connection, Callable[[], Snapshot]], T]) -> T:
        """Run ``work`` on a consistent snapshot of rows that may be damaged.

        It gets the connection, and a function that gives what ``read`` gives, or raises what ``read`` raises.
        """
        return _Examination(self).run(work)

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
        if self._writing.is_of(scope.owner):
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
        if self._drawing.is_of(scope.owner):
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

    def _own_block(self) -> _Steps[Any] | None:
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
            self.forget()
            self.committed = self.committed.reload(conn, self.database.backend)
            self._broken = broken
        return self.committed

    def forget(self) -> None:
        """Forget what is known of committed data, because it may be of commits that a server forgot."""
        for cache in self._caches:
            cache.clear()

    def _publish(self, state: State) -> None:
        then, now = self.committed.counters, state.counters
        if now.revision >= then.revision and (now.revision, now.token) != (then.revision, then.token):
            self.committed = state.detached(self.contents)
        elif self.committed.blocks.forgotten(self.contents) is not self.committed.blocks:
            self.committed = self.committed.detached(self.contents)  # readers have read more of them

    def before_fork(self) -> None:
        """Choose the seeds of the child."""
        self._fork_seeds = self.child_seeds()

    def after_fork(self) -> None:
        """Start again in the child, with other seeds."""
        for cache in self._caches:
            cache.after_fork()
        self._start(self._fork_seeds)
        # Another thread of the parent may have been in the middle of a change of the pages. So the child reads all
        # heads at its first call.
        self._broken = -1


class _Work(Attempts[*Given]):
    """The way of one call to a snapshot: it takes turns, makes attempts, and publishes the new state.

    Parameters
    ----------
    session : Session
    write, locked : bool
        True if the work may write, and if work that writes holds the buffer's lock.
    payloads : callable, optional
        Function that returns the payloads to cache, from the result of the work.
    """

    def __init__(
        self,
        session: Session,
        *,
        write: bool = False,
        locked: bool = True,
        payloads: Callable[[Any], Mapping[int, bytes]] | None = None,
    ) -> None:
        super().__init__(session.database.connections, session.database.open_transaction(), write=write)
        self._session = session
        self._changes = write and locked
        self._payloads = payloads
        self._snapshot: Snapshot | None = None

    def take_turns(self) -> None:
        """Take the turn to write."""
        if self._changes:
            self._session._take_turn(self.scope)
        elif self.write:
            self._session._refuse_foreign(self.scope)

    def snapshot(self, conn: Connection) -> Snapshot:
        """Return the snapshot. The work may change its state."""
        session = self._session
        if self._changes:
            session._lock_buffer(conn)
        backend = session.database.backend
        unlocked = self.write and not self._changes
        known = session.committed if unlocked else session._known(conn)
        state = known.counted(conn, backend) if unlocked else known.at(conn, backend)
        if state.blocks.pages is not known.blocks.pages:
            session.forget()  # the log did not continue what this process knew
        self._snapshot = Snapshot(conn, session.database.backend, state)
        return self._snapshot

    def finish(self) -> None:
        """Store the state, and wake the waiting processes."""
        if self.write and (snapshot := self._snapshot) is not None:
            if self._changes:
                finish(snapshot.state, snapshot.conn, snapshot.backend, self._session.contents)
            snapshot.backend.announce(snapshot.conn, snapshot.state.buffer_id)

    def committed(self) -> None:
        """Publish the state and cache the payloads, or give both to the block around the call."""
        if self._snapshot is None or (self.write and not self._changes):
            return  # without the lock, the state may be mixed from two revisions
        session, state = self._session, self._snapshot.state
        payloads = {} if self._payloads is None else self._payloads(self.result)
        block = session._own_block()
        if block is None:
            session._publish(state)
            session.cache.put(payloads)
            session.wrote |= self._changes
        elif self.write:
            block.state = state
            block.payloads.update(payloads)

    def explain(self, exc: MemstoreError) -> None:
        """Raise an error that names the row if an extra that is no JSON may have caused ``exc``."""
        database = self._session.database
        unnamed = isinstance(exc, StoreCorrupt) and exc.episode_id is None
        if type(exc) is not MemstoreError and not unnamed:
            return
        if database.transaction_open and database.backend.shared:
            return  # PostgreSQL refuses further statements in this transaction
        number = self._session.committed.buffer_id
        with suppress(MemoryClosed):
            database.in_read(lambda conn: refuse_unreadable(conn, number))

    def end(self) -> None:
        """Close everything, and release the turns."""
        super().end()
        self._session._drawing.release(self.scope)
        self._session._writing.release(self.scope)


class _Visit(_Work[Snapshot]):
    """Work that gets the snapshot."""

    def begun(self, conn: Connection) -> tuple[Snapshot]:
        """Make the snapshot."""
        return (self.snapshot(conn),)


class _Examination(_Work[Connection, Callable[[], Snapshot]]):
    """Work that gets the connection, and makes the snapshot itself."""

    def begun(self, conn: Connection) -> tuple[Connection, Callable[[], Snapshot]]:
        """Return the connection, and the way to the snapshot."""
        return conn, lambda: self.snapshot(conn)


class _Draw(_Work[Snapshot, np.random.Generator]):
    """Work that gets the snapshot and the generator. If it fails, it gives its random numbers back."""

    _before: Mapping[str, Any] | None = None

    def __init__(self, session: Session, *, write: bool) -> None:
        super().__init__(session, write=write)
        self.long = write

    def take_turns(self) -> None:
        """Take the turns that the call needs."""
        super().take_turns()
        self._generator = self._session._generator(self.scope)
        self._before = self._generator.bit_generator.state

    def begun(self, conn: Connection) -> tuple[Snapshot, np.random.Generator]:
        """Make the snapshot."""
        return self.snapshot(conn), self._generator

    def committed(self) -> None:
        """Keep the random numbers."""
        self._before = None
        super().committed()

    def end(self) -> None:
        """Close everything, give back the random numbers of a failed draw, and release the turns."""
        self._rewind()
        super().end()

    def _undo(self) -> None:
        self._rewind()  # another attempt is the same draw
        super()._undo()

    def _rewind(self) -> None:
        if self._before is not None:
            self._generator.bit_generator.state = self._before


class _Steps(Generic[T]):
    """One block of ``Session.transaction``. The outermost of nested blocks holds the turns.

    Its commit publishes the state and the payloads, or gives them to the outer block.
    """

    def __init__(self, session: Session, given: T) -> None:
        self.scope = Scope(this_owner(), long=True)
        self.state: State | None = None
        self.payloads: dict[int, bytes] = {}
        self._session = session
        self._given = given
        self._database = session.database.transaction(session._lock_buffer).steps
        self._outer: _Steps[Any] | None = None
        self._open = False
        self._rng = session.rng
        self._before: Mapping[str, Any] | None = None

    def enter(self) -> T:
        """Take the turns and begin the transaction."""
        session = self._session
        outer = self._outer = session._own_block()
        session._take_turn(self.scope)
        session._generator(self.scope)
        before = self._rng.bit_generator.state
        self._database.enter()
        self._before = before
        if outer is not None:
            self.state, self.payloads = outer.state, dict(outer.payloads)
        self._open = True
        session._block = self
        enter_context(self.scope)
        return self._given

    def leave(self, *, commit: bool) -> None:
        """Commit and publish, or undo. Then release the turns."""
        outer, session = self._outer, self._session
        self._database.leave(commit=commit)
        if commit:
            self._before = None
        if commit and outer is not None:
            outer.state, outer.payloads = self.state, self.payloads
        elif commit:
            if self.state is not None:
                session._publish(self.state)
                session.wrote = True
            session.cache.put(self.payloads)
        self.abandon()

    def abandon(self) -> None:
        """Undo the open transaction, and release the turns."""
        session, outer = self._session, self._outer
        self._database.abandon()
        if self._before is not None:
            self._rng.bit_generator.state, self._before = self._before, None
        if self._open:
            session._block, self._open = outer, False
            enter_context(None if outer is None else outer.scope)
        session._drawing.release(self.scope)
        session._writing.release(self.scope)
