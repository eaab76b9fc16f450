"""Episodes handed to one consumer at a time.

A lease is taken under the buffer's write lock, so two never race for an episode. It ends by ``release``, by an update
of its batch, or by its time: then the consumer counts as dead and the episodes go to the next.
"""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
from sqlalchemy import ColumnElement, delete, func, select, update

from memstore.buffer.snapshot import Rows, Snapshot
from memstore.storage.backends import UNAWAITED
from memstore.storage.schema import lease
from memstore.types import Batch

_c = lease.c


def held(snapshot: Snapshot, now: float) -> Rows:
    """Live rows that are leased; leases whose time is over are deleted."""
    over = delete(lease).where(_own(snapshot), _c.expires_at <= now)
    snapshot.conn.execute(over, execution_options={UNAWAITED: True})
    ids = snapshot.conn.scalars(select(_c.episode_id).where(_own(snapshot))).all()
    return snapshot.find(np.array(ids, np.int64))


def grant(snapshot: Snapshot, batch: Batch, consumer: str, until: float) -> Batch:
    """Lease episodes that are not held; returns the batch with the token that ``release`` and ``renew`` ask for."""
    token = uuid.uuid4().hex
    columns = {
        "buffer_id": [snapshot.state.buffer_id] * len(batch),
        "episode_id": batch.ids.tolist(),
        "token": [token] * len(batch),
        "consumer": [consumer] * len(batch),
        "expires_at": [until] * len(batch),
    }
    # An evicted episode leaves its lease behind until its time is over; its id never comes back.
    snapshot.backend.insert(snapshot.conn, lease, columns)
    return replace(batch, lease=token)


def release(snapshot: Snapshot, token: str) -> int:
    """End a lease; returns how many episodes it still held."""
    gone = delete(lease).where(_own(snapshot), _c.token == token)
    return snapshot.conn.execute(gone).rowcount


def renew(snapshot: Snapshot, token: str, timeout: float) -> int:
    """Let a lease end ``timeout`` seconds from now; returns how many episodes it still holds."""
    until = snapshot.backend.clock(snapshot.conn) + timeout
    mine = update(lease).where(_own(snapshot), _c.token == token)
    return snapshot.conn.execute(mine.values(expires_at=until)).rowcount


def count(snapshot: Snapshot) -> int:
    """Number of leases that have time left."""
    now = snapshot.backend.clock(snapshot.conn)
    query = select(func.count()).where(_own(snapshot), _c.expires_at > now)
    return snapshot.conn.scalars(query).one()


def _own(snapshot: Snapshot) -> ColumnElement[bool]:
    return _c.buffer_id == snapshot.state.buffer_id
