"""Named states of a trainer, in the database of the buffer. One commit can hold both."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from sqlalchemy import delete, select

from memstore.buffer.snapshot import Snapshot
from memstore.errors import CheckpointNotFound, SchemaTooNew, StoreCorrupt
from memstore.payload.document import pack, unpack
from memstore.storage import checksums
from memstore.storage.address import restoring
from memstore.storage.backends import UNAWAITED
from memstore.storage.schema import checkpoint
from memstore.values.shown import listed, shown

_c = checkpoint.c


def save(snapshot: Snapshot, name: str, packed: list[Any], rng: np.random.Generator, now: float) -> None:
    """Store the state of the generator, and a trainer's state in the two parts that ``pack`` makes.

    A checkpoint of the same name is replaced.
    """
    document, data = packed
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
    row = facts | {
        "document": document,
        "data": data,
        "crc32": _crc(document, data, generator),
        "rng": generator,
        "checksum": checksums.of_row(*facts.values()),
    }
    # Not through SQLAlchemy: its cache of compiled statements would keep the values of the first checkpoint.
    snapshot.backend.insert(snapshot.conn, checkpoint, {column: [value] for column, value in row.items()})


def load(snapshot: Snapshot, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the state, and the state of the generator.

    Raises
    ------
    CheckpointNotFound
        No checkpoint has this name. The message lists the existing names.
    StoreCorrupt
        The bytes do not match their checksum.
    """
    columns = ("document", "data", "rng", "crc32")
    rows = snapshot.backend.select_texts(snapshot.conn, checkpoint, columns, snapshot.state.buffer_id, "name", [name])
    if not rows:
        raise CheckpointNotFound(
            f"no checkpoint {shown(name)} is stored for this buffer (there are: {listed(names(snapshot), 5)})"
        )
    document, data, generator, crc32 = rows[0]
    if _crc(document, data, generator) != crc32:
        advice = restoring(snapshot.backend.describe())
        raise StoreCorrupt(f"checkpoint {name!r} does not match its checksum; save it again, {advice}")
    return unpack(document, data), unpack(generator, b"")


def examine(snapshot: Snapshot) -> Iterator[tuple[str | None, bool]]:
    """Yield for each checkpoint a finding (None if it is sound), and True if its facts have a checksum."""
    query = select(_c.buffer_id, _c.name, _c.created_at, _c.revision, _c.inserted, _c.checksum)
    for row in snapshot.conn.execute(query.where(_c.buffer_id == snapshot.state.buffer_id)).all():
        finding = None
        if row.checksum not in (None, checksums.of_row(*row[:-1])):
            finding = f"the time or the counters of checkpoint {row.name!r} do not match their checksum"
        try:
            load(snapshot, row.name)
        except (StoreCorrupt, SchemaTooNew) as exc:
            finding = str(exc)
        yield finding, row.checksum is not None


def names(snapshot: Snapshot) -> list[str]:
    """Return the names of the buffer's checkpoints, oldest first."""
    query = select(_c.name).where(_c.buffer_id == snapshot.state.buffer_id).order_by(_c.created_at, _c.name)
    return list(snapshot.conn.scalars(query))


def _crc(document: str, data: bytes, generator: str) -> int:
    return zlib.crc32(generator.encode(), zlib.crc32(data, zlib.crc32(document.encode())))
