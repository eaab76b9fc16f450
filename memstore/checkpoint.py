"""Named trainer states in the buffer's own database, so that one commit holds both."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from sqlalchemy import delete, insert, select

from memstore import checksums
from memstore.backends import UNAWAITED
from memstore.document import pack, unpack
from memstore.errors import CheckpointNotFound, SchemaTooNew, StoreCorrupt
from memstore.schema import checkpoint
from memstore.snapshot import Snapshot

_c = checkpoint.c


def save(snapshot: Snapshot, name: str, state: Mapping[str, Any], rng: np.random.Generator, now: float) -> None:
    """Store the state and the generator under this name, replacing what it held."""
    document, data = pack(state)
    generator, _ = pack(rng.bit_generator.state)
    own = (_c.buffer_id == snapshot.state.buffer_id, _c.name == name)
    facts = {
        "buffer_id": snapshot.state.buffer_id,
        "name": name,
        "created_at": now,
        "revision": snapshot.state.counters.revision,
        "inserted": snapshot.state.counters.inserted,
    }
    snapshot.conn.execute(delete(checkpoint).where(*own), execution_options={UNAWAITED: True})
    snapshot.conn.execute(
        insert(checkpoint).values(
            **facts,
            document=document,
            data=data,
            crc32=_crc(document, data, generator),
            rng=generator,
            checksum=checksums.of_row(*facts.values()),
        ),
        execution_options={UNAWAITED: True},
    )


def load(snapshot: Snapshot, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state, and that of the generator.

    Raises
    ------
    CheckpointNotFound
        With the names that exist.
    StoreCorrupt
        When the bytes do not match their checksum.
    """
    own = (_c.buffer_id == snapshot.state.buffer_id, _c.name == name)
    row = snapshot.conn.execute(select(_c.document, _c.data, _c.rng, _c.crc32).where(*own)).one_or_none()
    if row is None:
        known = ", ".join(map(repr, names(snapshot))) or "none"
        raise CheckpointNotFound(f"no checkpoint {name!r} is stored for this buffer (there are: {known})")
    if _crc(row.document, row.data, row.rng) != row.crc32:
        raise StoreCorrupt(f"checkpoint {name!r} does not match its checksum; restore a backup or save it anew")
    return unpack(row.document, row.data), unpack(row.rng, b"")


def examine(snapshot: Snapshot) -> Iterator[tuple[str | None, bool]]:
    """What is wrong with each checkpoint, None for nothing, and whether all of its row has a checksum."""
    for name in names(snapshot):
        facts = (_c.buffer_id, _c.name, _c.created_at, _c.revision, _c.inserted)
        own = (_c.buffer_id == snapshot.state.buffer_id, _c.name == name)
        row = snapshot.conn.execute(select(*facts, _c.checksum).where(*own)).one()
        finding = None
        if row.checksum not in (None, checksums.of_row(*row[:-1])):
            finding = f"the time or the counters of checkpoint {name!r} do not match their checksum"
        try:
            load(snapshot, name)
        except (StoreCorrupt, SchemaTooNew) as exc:
            finding = str(exc)
        yield finding, row.checksum is not None


def names(snapshot: Snapshot) -> list[str]:
    """Names of the buffer's checkpoints, oldest first."""
    query = select(_c.name).where(_c.buffer_id == snapshot.state.buffer_id).order_by(_c.created_at, _c.name)
    return list(snapshot.conn.scalars(query))


def _crc(document: str, data: bytes, generator: str) -> int:
    return zlib.crc32(generator.encode(), zlib.crc32(data, zlib.crc32(document.encode())))
