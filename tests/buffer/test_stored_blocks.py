"""What is stored of a block: it comes back as it was, and whatever else is there is ``StoreCorrupt``."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import numpy as np
import pytest

from memstore.buffer.blocks.slots import (
    AT,
    COLUMNS,
    COUNT,
    EVENT,
    ID,
    LOSS,
    LOWEST,
    REALS,
    SLOT_BYTES,
    SLOTS,
    canonical,
    sealed,
    unsealed,
)
from memstore.errors import StoreCorrupt
from tests.buffer.model import TOKEN, random_losses

NAME, DOMAIN = 2**41 + 17, 3


def content(count: int = 5) -> bytes:
    columns = np.zeros((COLUMNS, count), np.int64)
    columns[ID] = NAME + np.arange(count) * 3
    loss = random_losses(np.random.default_rng(count), count)
    columns[LOSS], columns[LOWEST] = canonical(loss), canonical(loss / 2)
    columns[AT] = canonical(np.where(np.arange(count) % 2, 1.7e9 + np.arange(count), np.nan))
    columns[COUNT], columns[EVENT] = np.arange(count), np.arange(count) * 1000
    return columns.tobytes()


def read(stored: Any, name: int = NAME, domain: int = DOMAIN, token: int = TOKEN) -> bytes:
    return unsealed([stored], np.array([name]), np.array([domain]), [token])[0]


def with_checksum(slots: bytes) -> bytes:
    return struct.pack("<I", zlib.crc32(slots, zlib.crc32(struct.pack("<qqQ", NAME, DOMAIN, TOKEN)))) + slots


@pytest.mark.parametrize("count", [0, 1, 2, 5, SLOTS])
def test_a_block_comes_back_as_it_was(count: int) -> None:
    stored = sealed(content(count), NAME, DOMAIN, TOKEN)
    assert read(stored) == content(count)
    assert len(stored) == 4 + count * SLOT_BYTES, "as long as its used slots"
    assert stored == with_checksum(content(count))


def test_many_blocks_are_read_at_once() -> None:
    names, domains = np.array([NAME, NAME, NAME]), np.array([1, 2, 3])
    tokens = [0, 5, TOKEN]
    contents = [content(0), content(7), content(SLOTS)]
    stored = [sealed(c, NAME, d, t) for c, d, t in zip(contents, [1, 2, 3], tokens, strict=True)]
    assert unsealed(stored, names, domains, tokens) == contents


def test_every_bit_of_every_byte_is_guarded() -> None:
    stored = sealed(content(), NAME, DOMAIN, TOKEN)
    for at in range(len(stored)):
        for bit in range(8):
            damaged = bytearray(stored)
            damaged[at] ^= 1 << bit
            with pytest.raises(StoreCorrupt, match=f"block {NAME}"):
                read(bytes(damaged))


def test_every_length_is_guarded() -> None:
    stored = sealed(content(), NAME, DOMAIN, TOKEN)
    for end in range(len(stored)):
        with pytest.raises(StoreCorrupt):
            read(stored[:end])
    for more in (b"\0", stored[4 : 4 + SLOT_BYTES], stored):
        with pytest.raises(StoreCorrupt):
            read(stored + more)
    with pytest.raises(StoreCorrupt):
        read(with_checksum(content(SLOTS + 1)))


@pytest.mark.parametrize("other", [{"name": NAME + 1}, {"domain": DOMAIN + 1}, {"token": TOKEN - 1}])
def test_a_block_in_the_place_of_another_one_is_damage(other: dict[str, int]) -> None:
    with pytest.raises(StoreCorrupt, match="checksum"):
        read(sealed(content(), NAME, DOMAIN, TOKEN), **other)


@pytest.mark.parametrize("stored", [None, 3, 2.5, "text", bytearray(b"abcd"), memoryview(b"abcd"), [b"abcd"]])
def test_what_is_no_bytes_is_damage(stored: Any) -> None:
    with pytest.raises(StoreCorrupt, match="is no bytes"):
        read(stored)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        (ID, 0),
        (ID, -5),
        (ID, NAME - 1),
        (ID, NAME),
        (ID, NAME + 100),
        (ID, 2**53),
        (ID, 2**63 - 1),
        (LOSS, -1.0),
        (LOSS, -0.0),
        (LOSS, np.inf),
        (LOSS, -np.inf),
        (LOSS, -np.nan),
        (LOSS, np.uint64(0x7FF0000000000001).view(np.float64)),
        (LOSS, np.uint64(0x7FF8000000000001).view(np.float64)),
        (LOSS, np.nan),
        (LOWEST, -0.0),
        (LOWEST, np.nan),
        (LOWEST, 1e300),
        (AT, np.inf),
        (AT, -np.nan),
        (COUNT, -1),
        (EVENT, -(2**63)),
    ],
)
def test_a_right_checksum_of_what_cannot_be_is_damage(column: int, value: Any) -> None:
    columns = np.frombuffer(bytearray(content()), np.int64).reshape(COLUMNS, -1)
    columns[column, 2] = np.array(value, np.float64 if column in REALS else np.int64).view(np.int64)
    with pytest.raises(StoreCorrupt, match=f"block {NAME} holds an episode"):
        read(with_checksum(columns.tobytes()))


def test_random_bytes_are_damage() -> None:
    rng = np.random.default_rng(5)
    for _ in range(2000):
        raw = rng.bytes(int(rng.integers(0, 200)))
        for stored in (raw, with_checksum(raw)):
            try:
                found = read(stored)
            except StoreCorrupt:
                continue
            assert found == b"", "48 random bytes are a slot once in 2**70 times"
