"""The search for near-identical payloads. It does not compare every pair, and misses none.

The distance of two points is at least the distance of their projections on any direction. So payloads are projected on
a few random directions and sorted by the first. A payload is compared in full only with those that are near on all
directions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import getitem
from typing import Any

import numpy as np

from memstore.buffer.blocks.slots import Floats, Ints
from memstore.buffer.snapshot import Snapshot
from memstore.episodes.payloads import all_payloads, read_blobs
from memstore.payload.cache import PayloadCache
from memstore.payload.signature import Signature

DIRECTIONS = 8
"""Payloads are projected on this many directions."""

HELD_BYTES = 64 << 20
"""At most this many bytes of payloads are kept for full comparisons. Others are read again when they are needed."""


@dataclass(frozen=True, slots=True)
class _Sketch:
    """A few numbers of each payload, as columns. The rows are in the order of importance.

    ``group`` is equal for payloads that may be near-identical. ``whole`` is equal for payloads that are equal bit by
    bit. ``norm`` is the norm of a payload's floating-point numbers as one vector, and ``shadow`` the projections of
    that vector.
    """

    group: Ints
    whole: Ints
    norm: Floats
    shadow: Floats


def near_identical(
    snapshot: Snapshot, signature: Signature, ids: Ints, domains: Ints, tolerance: float
) -> list[tuple[int, int]]:
    """Return pairs of near-identical episodes: the episode that leaves, and the kept episode that it is near to.

    Parameters
    ----------
    snapshot : Snapshot
    signature : Signature
    ids, domains : int64 arrays, shape (n,)
        Episodes to compare, the most important first. An episode is kept unless it is near-identical to an episode
        that was kept before it.
    tolerance : float
        See ``RetentionPolicy.consolidate_similar``.
    """
    sketch = _sketch(snapshot, signature, ids, domains)
    # Payloads that are equal bit by bit count as one, because ten thousand of them would be fifty million pairs.
    _, first, place = np.unique(sketch.whole, return_index=True, return_inverse=True)
    leader = first[place]
    held = PayloadCache(HELD_BYTES)

    def vector(row: int) -> Floats:
        blobs = read_blobs(snapshot, [int(ids[row])], held, keep=True)
        return next(_parts(signature, blobs))[1]

    for rows in _crowds(sketch, np.sort(first)):
        _follow(sketch, rows, tolerance, vector, leader)
    # A payload that equals a leaving payload leaves too. It has the same leader.
    leader = leader[leader]
    return [(int(ids[row]), int(ids[leader[row]])) for row in np.flatnonzero(leader != np.arange(len(ids)))]


def _sketch(snapshot: Snapshot, signature: Signature, ids: Ints, domains: Ints) -> _Sketch:
    place = {episode_id: row for row, episode_id in enumerate(ids.tolist())}
    group, whole = np.zeros(len(ids), np.int64), np.zeros(len(ids), np.int64)
    norm, shadow = np.full(len(ids), np.nan), np.zeros((len(ids), DIRECTIONS))
    names: dict[bytes, int] = {}
    for chunk, blobs in all_payloads(snapshot):
        for episode_id, blob, (exact, vector) in zip(chunk, blobs, _parts(signature, blobs), strict=True):
            row = place.get(episode_id)
            if row is None:
                continue
            domain = domains[row].tobytes()
            group[row] = names.setdefault(_digest(b"group", domain, exact), len(names))
            whole[row] = names.setdefault(_digest(b"whole", domain, blob), len(names))
            length = float(np.linalg.norm(vector))
            if np.isfinite(length):
                norm[row], shadow[row] = length, vector @ _directions(len(vector))
    return _Sketch(group, whole, norm, shadow)


def _parts(signature: Signature, blobs: Sequence[bytes]) -> Iterator[tuple[bytes, Floats]]:
    """Yield for each payload a digest of the parts that must be equal, and its floating-point numbers as a vector."""
    columns: Any = signature.decode(blobs)
    for row in range(len(blobs)):
        exact, near = hashlib.blake2b(digest_size=16), [np.empty(0)]
        for field in signature.fields:
            value: Any = reduce(getitem, field.path, columns)[row]
            if field.kind in ("str", "bytes"):
                data = value.encode() if isinstance(value, str) else value
                exact.update(len(data).to_bytes(8, "little") + data)
                continue
            array = np.ascontiguousarray(value)
            exact.update(repr(array.shape).encode())
            if array.dtype.kind == "c":
                array = array.reshape(-1).view(array.real.dtype)
            if array.dtype.kind == "f":
                near.append(array.astype(np.float64).reshape(-1))
            else:
                exact.update(array.tobytes())
        yield exact.digest(), np.concatenate(near)


def _digest(*parts: bytes) -> bytes:
    return hashlib.blake2b(b"\0".join(parts), digest_size=16).digest()


@lru_cache(maxsize=64)
def _directions(size: int) -> Floats:
    """Return unit vectors as columns. They are the same for every vector of this length."""
    drawn = np.random.default_rng(size).standard_normal((size, DIRECTIONS))
    unit: Floats = drawn / np.maximum(np.linalg.norm(drawn, axis=0), 1e-300)
    return unit


def _crowds(sketch: _Sketch, rows: Ints) -> Iterator[Ints]:
    """Yield the rows of each group of two or more, sorted along the first direction."""
    rows = rows[np.isfinite(sketch.norm[rows])]
    rows = rows[np.lexsort((sketch.shadow[rows, 0], sketch.group[rows]))]
    for crowd in np.split(rows, np.flatnonzero(np.diff(sketch.group[rows])) + 1):
        if len(crowd) > 1:
            yield crowd


def _follow(sketch: _Sketch, rows: Ints, tolerance: float, vector: Callable[[int], Floats], leader: Ints) -> None:
    """Set the leader of each row of a crowd that is near to a row kept before it."""
    shadow, norm = sketch.shadow[rows], sketch.norm[rows]
    # The norms of near-identical payloads differ by at most the tolerance, so this bounds the distance from both sides.
    # Projections are rounded, and the term 1e-9 makes up for that.
    reach = norm * (tolerance / (1 - tolerance) + 1e-9)
    low = np.searchsorted(shadow[:, 0], shadow[:, 0] - reach, "left")
    high = np.searchsorted(shadow[:, 0], shadow[:, 0] + reach, "right")
    kept = np.zeros(len(rows), bool)
    for here in np.argsort(rows):
        window = np.arange(low[here], high[here])[kept[low[here] : high[here]]]
        near = window[(np.abs(shadow[window] - shadow[here]) <= reach[here]).all(axis=1)]
        for other in near[np.argsort(rows[near])]:
            distance = np.linalg.norm(vector(rows[here]) - vector(rows[other]))
            if distance <= tolerance * max(norm[here], norm[other]):
                leader[rows[here]] = rows[other]
                break
        else:
            kept[here] = True
