"""The fold on request: by a user, at the end of a handle, and before a vacuum."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

from sqlalchemy import Connection, select

from memstore.buffer.folding import finish
from memstore.buffer.session import Session
from memstore.buffer.snapshot import Snapshot, State
from memstore.draws.strategies import strategy_from_json
from memstore.errors import MemstoreError
from memstore.storage.database import Database
from memstore.storage.schema import buffer


def fold(session: Session) -> int:
    """Bring all tables of the buffer to the end of the log, and return the number of log entries that were behind.

    Nothing is written if the tables are there already.
    """
    return session.write(_fold) if session.read(lambda s: s.state.counters.unfolded) else 0


def fold_at_close(session: Session) -> None:
    """Fold for the next reader, if this handle wrote and nobody holds the lock. Nothing depends on it.

    An error of the database leaves the rest of the log for a later fold, by any process.
    """
    wrote, session.wrote = session.wrote, False
    database = session.database
    if not wrote or database.transaction_open or session.committed.counters.is_folded:
        return
    with suppress(MemstoreError), database.backend.hurried():
        fold(session)


def fold_buffers(database: Database) -> None:
    """Fold every buffer of a database, each in one transaction."""
    backend = database.backend

    def work(number: int, conn: Connection) -> None:
        backend.lock_buffer(conn, number)
        state = State.load(conn, backend, number, strategy_from_json)
        if not state.counters.is_folded:
            state.must_fold = True
            finish(state, conn, backend, contents=0)
            backend.announce(conn, number)

    numbers = database.in_read(lambda conn: conn.scalars(select(buffer.c.id).order_by(buffer.c.id)).all())
    for number in numbers:
        database.in_write(partial(work, number))


def _fold(snapshot: Snapshot) -> int:
    snapshot.state.must_fold = True
    return snapshot.state.counters.unfolded
