"""Leases, which give each episode to one consumer at a time.

A lease is taken under the buffer's write lock, so two consumers never get the same episode. It ends by ``release``, by
an update of its batch, or when its time is over. In the last case the consumer counts as dead, and another consumer may
get the episodes.
"""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
from sqlalchemy import ColumnElement, delete, select, update

from memstore.buffer.session import Session
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.config import check_seconds
from memstore.errors import InvalidValue
from memstore.storage.backends import UNAWAITED
from memstore.storage.schema import lease
from memstore.types import Batch, Seconds
from memstore.values.shown import shown

_c = lease.c


def check_duration(value: Seconds) -> float:
    """Return the length of a lease in seconds: finite, and above 0."""
    return check_seconds("duration", value, exclusive=True)


def held(snapshot: Snapshot, now: float) -> Rows:
    """Delete the leases that have run out, and return the live rows that are leased."""
    over = delete(lease).where(_own(snapshot), _c.expires_at <= now)
    snapshot.conn.execute(over, execution_options={UNAWAITED: True})
    ids = snapshot.conn.scalars(select(_c.episode_id).where(_own(snapshot))).all()
    return snapshot.find(np.array(ids, np.int64))


def grant(snapshot: Snapshot, batch: Batch, consumer: str, until: float) -> Batch:
    """Lease episodes that no consumer holds, and return the batch with the token of the lease."""
    token = uuid.uuid4().hex
    columns = {
        "buffer_id": [snapshot.state.buffer_id] * len(batch),
        "episode_id": batch.ids.tolist(),
        "token": [token] * len(batch),
        "consumer": [consumer] * len(batch),
        "expires_at": [until] * len(batch),
    }
    # The lease of an evicted episode stays until its time is over. That is harmless: ids are never reused.
    snapshot.backend.insert(snapshot.conn, lease, columns)
    return replace(batch, lease=token)


def release(session: Session, batch: Batch) -> int:
    """End the lease of a batch, and return the number of episodes that it still held."""
    token = _token(batch)
    return session.write(lambda snapshot: end(snapshot, token))


def renew(session: Session, batch: Batch, duration: Seconds) -> int:
    """Let the lease of a batch end ``duration`` seconds from now. Return the number of episodes that it holds."""
    token, seconds = _token(batch), check_duration(duration)

    def work(snapshot: Snapshot) -> int:
        until = snapshot.backend.clock(snapshot.conn) + seconds
        mine = update(lease).where(_own(snapshot), _c.token == token)
        return snapshot.conn.execute(mine.values(expires_at=until)).rowcount

    return session.write(work)


def end(snapshot: Snapshot, token: str) -> int:
    """End the lease with this token, and return the number of episodes that it still held."""
    gone = delete(lease).where(_own(snapshot), _c.token == token)
    return snapshot.conn.execute(gone).rowcount


def count(snapshot: Snapshot) -> int:
    """Return the number of live episodes that are leased. A lease that has run out does not count."""
    now = snapshot.backend.clock(snapshot.conn)
    ids = snapshot.conn.scalars(select(_c.episode_id).where(_own(snapshot), _c.expires_at > now)).all()
    return len(snapshot.find(np.array(ids, np.int64)))


def _token(batch: Batch) -> str:
    if not isinstance(batch, Batch) or batch.lease is None:
        raise InvalidValue(f"expected a batch that lease() returned, got {shown(batch)}")
    return batch.lease


def _own(snapshot: Snapshot) -> ColumnElement[bool]:
    return _c.buffer_id == snapshot.state.buffer_id
