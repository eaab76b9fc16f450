"""Reading of stored payloads. They are compared with their checksums and kept in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import select

from memstore.buffer.blocks.slots import Ints
from memstore.buffer.overlay import is_live
from memstore.buffer.snapshot import Snapshot
from memstore.errors import StoreCorrupt
from memstore.payload.cache import PayloadCache
from memstore.payload.signature import checksum
from memstore.storage import stored
from memstore.storage.address import restoring
from memstore.storage.schema import id_range, payload

CHUNK = 4096
"""A pass over the buffer reads this many rows at a time: a few MB of payloads."""


def read_payloads(snapshot: Snapshot, ids: Ints, cache: PayloadCache, *, keep: bool) -> dict[str, Any]:
    """Return decoded payloads in the order of the ids. Parameters and errors are those of ``read_blobs``."""
    signature = snapshot.settings.signature
    assert signature is not None
    size = signature.record_size
    if not size:
        return signature.decode(read_blobs(snapshot, ids.tolist(), cache, keep=keep))
    records, known = cache.records(ids, size)
    if not known.all():
        missing = ids[~known].tolist()
        read = _read(snapshot, sorted(set(missing)))
        records[~known] = signature.records(_in_order(read, missing))
        if keep:
            cache.put(read)
    return signature.decode_records(records)


def read_blobs(snapshot: Snapshot, ids: list[int], cache: PayloadCache, *, keep: bool) -> list[bytes]:
    """Return encoded payloads in the order of the ids. They come from the cache, or verified from the table.

    ``keep`` puts the payloads that were read into the cache. It must be false inside ``transaction()``, because
    payloads of the transaction may never be committed.

    Raises
    ------
    StoreCorrupt
        One of these live episodes has no payload, or a payload that does not match its checksum.
    """
    found = cache.get(ids)
    missing = [i for i in dict.fromkeys(ids) if i not in found]
    if missing:
        read = _read(snapshot, sorted(missing))
        if keep:
            cache.put(read)
        found |= read
    return _in_order(found, ids)


def _read(snapshot: Snapshot, ids: list[int]) -> dict[int, bytes]:
    """Read verified payloads from the table."""
    rows = snapshot.backend.select(snapshot.conn, payload, ("episode_id", "crc32", "data"), "episode_id", ids)
    for episode_id, crc, data in rows:
        if checksum(data, episode_id) != crc:
            raise _damaged(snapshot, episode_id)
    return {episode_id: data for episode_id, _, data in rows}


def _in_order(found: dict[int, bytes], ids: list[int]) -> list[bytes]:
    try:
        return [found[i] for i in ids]
    except KeyError as exc:
        number = exc.args[0]
        raise stored.damaged(f"episode {number}", "has no payload, though it is live", episode_id=number) from None


def _damaged(snapshot: Snapshot, episode_id: int) -> StoreCorrupt:
    return StoreCorrupt(
        f"the payload of episode {episode_id} does not match its checksum; run 'memstore check', delete({episode_id}), "
        f"{restoring(snapshot.backend.describe())}",
        episode_id=episode_id,
    )


def all_payloads(snapshot: Snapshot, damaged: list[int] | None = None) -> Iterator[tuple[list[int], list[bytes]]]:
    """Yield ids and verified payloads of all live episodes, in id order, in chunks.

    The ids of payloads that do not match their checksums are appended to ``damaged``. Without ``damaged``, the first
    such payload raises ``StoreCorrupt``.
    """
    c = payload.c
    low, high = id_range(snapshot.state.buffer_id)
    query = select(c.episode_id, c.crc32, c.data).where(c.episode_id <= high, is_live(snapshot, c.episode_id))
    for rows in stored.paged(snapshot.conn, query, c.episode_id, CHUNK, f"the rows of {payload.name}", low - 1):
        bad = [episode_id for episode_id, crc, data in rows if checksum(data, episode_id) != crc]
        if bad and damaged is None:
            raise _damaged(snapshot, bad[0])
        if bad and damaged is not None:
            damaged += bad
            rows = [row for row in rows if row[0] not in bad]
        if rows:
            yield [row[0] for row in rows], [row[2] for row in rows]
