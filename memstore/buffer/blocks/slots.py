"""What a block holds: a slot for each live episode, in id order; and its bytes as they are stored.

The content of a block is its slots, one after the other, with no hole and nothing behind them. So the same episodes are
the same bytes, on whatever way they came there. What is stored is a checksum and the content.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.errors import StoreCorrupt
from memstore.storage.stored import damaged

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Slots = NDArray[np.void]
"""Array of ``SLOT``."""

SLOTS = 120
"""Most episodes of a block: 3,844 bytes are stored then, which fit a page of 4,096 with the rest of the row."""

SLOT = np.dtype([("id", "<i8"), ("loss", "<f8"), ("count", "<i8"), ("event", "<i8")])
"""Episode, its loss (NaN where never measured), how often it was replayed, number of its last event (0 for none)."""

LARGEST_ID = 2**53

_CANONICAL_NAN = 0x7FF8000000000000
_CRC = struct.Struct("<I")
_IDENTITY = struct.Struct("<qqQ")


def sealed(content: bytes, name: int, domain: int, token: int) -> bytes:
    """Return what is stored of a block: a checksum of all that is given, and the content."""
    return _CRC.pack(_checksum(content, name, domain, token)) + content


def unsealed(stored: Sequence[Any], names: Ints, domains: Ints, tokens: Sequence[int]) -> list[bytes]:
    """Return the contents of blocks from what is stored of them.

    Raises
    ------
    StoreCorrupt
        One is not what ``sealed`` made for this block, or holds what no block can hold.
    """
    contents = [_content(*block) for block in zip(stored, names.tolist(), domains.tolist(), list(tokens), strict=True)]
    _check(contents, names)
    return contents


def _content(stored: Any, name: int, domain: int, token: int) -> bytes:
    if type(stored) is not bytes:
        raise _damaged(name, f"is no bytes, but {type(stored).__name__}")
    content = stored[_CRC.size :]
    if len(stored) < _CRC.size or len(content) % SLOT.itemsize or len(content) > SLOTS * SLOT.itemsize:
        raise _damaged(name, f"has {len(stored)} bytes, which is no number of slots")
    if _CRC.unpack_from(stored)[0] != _checksum(content, name, domain, token):
        raise _damaged(name, "does not match its checksum")
    return content


def _checksum(content: bytes, name: int, domain: int, token: int) -> int:
    # With the name and the token: a whole block in the place of another one, or of its own past, is damage too.
    return zlib.crc32(content, zlib.crc32(_IDENTITY.pack(name, domain, token)))


def _check(contents: list[bytes], names: Ints) -> None:
    """Raise ``StoreCorrupt`` unless every slot can be: checksums protect from nobody who can compute them."""
    slots = np.frombuffer(b"".join(contents), SLOT)
    if not len(slots):
        return
    count = np.array([len(content) // SLOT.itemsize for content in contents], np.int64)
    block = np.repeat(np.arange(len(count)), count)
    ids, loss = slots["id"], slots["loss"]
    possible = (ids >= names[block]) & (ids < LARGEST_ID) & (slots["count"] >= 0) & (slots["event"] >= 0)
    possible[1:] &= (ids[1:] > ids[:-1]) | (block[1:] != block[:-1])
    measured = np.isfinite(loss) & ~np.signbit(loss)
    possible &= measured | (loss.view(np.uint64) == _CANONICAL_NAN)
    if not possible.all():
        bad = int(np.flatnonzero(~possible)[0])
        raise _damaged(int(names[block[bad]]), f"holds an episode {ids[bad]} that cannot be as it is stored")


def _damaged(name: int, why: str) -> StoreCorrupt:
    return damaged(f"block {name}", why)


def new_slots(ids: Ints, loss: Floats) -> Slots:
    """Return slots of episodes that were never replayed."""
    slots = np.zeros(len(ids), SLOT)
    slots["id"] = ids
    slots["loss"] = canonical(loss)
    return slots


def canonical(loss: Floats) -> Floats:
    """Return the losses with one kind of NaN, and zeros without a sign: equal losses must be equal bits."""
    return np.where(np.isnan(loss), np.nan, loss + 0.0)
