"""Keeps payloads in memory that are read often. Its size in bytes is bounded: new payloads take the room of older ones.

It holds committed payloads by id. They never change and ids are never reused, so no process has to tell others to drop
an entry. Entries are the stored bytes, already verified. The arrays that are decoded from them belong to the caller.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

ENTRY_OVERHEAD = 200
"""Bytes that Python needs for an entry besides the payload: object header, key, slot (190 to 210 measured)."""

ROW_OVERHEAD = 8
"""Bytes that a row of the array needs besides the payload: its id."""

JOINED_BYTES = 2**22
"""So many bytes of payloads are joined at a time on their way into the array."""

Ints = NDArray[np.int64]
Records = NDArray[np.uint8]
Flags = NDArray[np.bool_]


class _Kept(Protocol):
    """Payloads that are kept within a bound."""

    def get(self, ids: list[int]) -> dict[int, bytes]:
        """Return the payloads of these episodes that are kept."""

    def put(self, blobs: Mapping[int, bytes]) -> None:
        """Keep payloads, in place of others if room is needed."""

    def drop(self, ids: Iterable[int]) -> None:
        """Forget the payloads of these episodes."""

    def sizes(self) -> tuple[int, int]:
        """Return the number of payloads, and their bytes with the overhead."""


class _Rows:
    """Payloads of one length, as rows of an array. To find and to copy 256 of them takes 20 us.

    The row of an episode is its id modulo the number of rows. So there is no search. Ids have no gaps, so the newest
    episodes never meet in one row if there are as many rows as episodes. Else the payload that came last stays.
    """

    def __init__(self, size: int, max_bytes: int) -> None:
        self.size = size
        self._rows = max_bytes // (size + ROW_OVERHEAD)
        # The system gives memory to those pages only that are written to.
        self._ids = np.zeros(self._rows, np.int64)
        self._data = np.zeros((self._rows, size), np.uint8)

    def records(self, ids: Ints) -> tuple[Records, Flags]:
        """Return a row for each id, and flag those that are kept. The others hold anything."""
        if not self._rows:
            return np.empty((len(ids), self.size), np.uint8), np.zeros(len(ids), np.bool_)
        rows = ids % self._rows
        return self._data.take(rows, axis=0), self._ids[rows] == ids

    def get(self, ids: list[int]) -> dict[int, bytes]:
        wanted = np.array(ids, np.int64)
        records, known = self.records(wanted)
        found: list[bytes] = records[known].view(f"V{self.size}").ravel().tolist()
        return dict(zip(wanted[known].tolist(), found, strict=True))

    def put(self, blobs: Mapping[int, bytes]) -> None:
        if not self._rows:
            return
        given, each = iter(blobs.items()), max(JOINED_BYTES // self.size, 1)
        while part := dict(islice(given, each)):
            ids = np.fromiter(part, np.int64, len(part))
            rows = ids % self._rows
            self._ids[rows] = 0  # an interrupt leaves a row without an id, and not the payload of another episode
            self._data[rows] = np.frombuffer(b"".join(part.values()), np.uint8).reshape(-1, self.size)
            self._ids[rows] = ids

    def drop(self, ids: Iterable[int]) -> None:
        gone = np.fromiter(ids, np.int64)
        if self._rows and len(gone):
            rows = gone % self._rows
            self._ids[rows[self._ids[rows] == gone]] = 0

    def sizes(self) -> tuple[int, int]:
        entries = int(np.count_nonzero(self._ids))
        return entries, entries * (self.size + ROW_OVERHEAD)


class _Blobs:
    """Payloads of different lengths. The least recently used one leaves first."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._bytes = 0
        self._blobs: OrderedDict[int, bytes] = OrderedDict()

    def get(self, ids: list[int]) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        for episode_id in ids:
            blob = self._blobs.get(episode_id)
            if blob is not None:
                self._blobs.move_to_end(episode_id)
                found[episode_id] = blob
        return found

    def put(self, blobs: Mapping[int, bytes]) -> None:
        with self._consistent():
            for episode_id, blob in blobs.items():
                if episode_id not in self._blobs:
                    self._blobs[episode_id] = blob
                    self._bytes += len(blob) + ENTRY_OVERHEAD
            while self._bytes > self._max_bytes:
                _, blob = self._blobs.popitem(last=False)
                self._bytes -= len(blob) + ENTRY_OVERHEAD

    def drop(self, ids: Iterable[int]) -> None:
        with self._consistent():
            for episode_id in ids:
                blob = self._blobs.pop(episode_id, None)
                if blob is not None:
                    self._bytes -= len(blob) + ENTRY_OVERHEAD

    def sizes(self) -> tuple[int, int]:
        return len(self._blobs), self._bytes

    @contextmanager
    def _consistent(self) -> Iterator[None]:
        """Forget all if an interrupt comes: the count of bytes may then not fit the entries."""
        try:
            yield
        except BaseException:
            self._blobs, self._bytes = OrderedDict(), 0
            raise


class PayloadCache:
    """Encoded payloads by episode id. Threads may share it.

    Payloads are rows of an array until the first one of another length comes.

    Parameters
    ----------
    max_bytes : int
        The size of all entries together. 0 turns the cache off.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.hits = 0
        self.misses = 0
        self._kept: _Kept | None = None
        self._lock = threading.Lock()

    def get(self, ids: list[int]) -> dict[int, bytes]:
        """Return the payloads of these episodes that are in the cache."""
        if not self.max_bytes:
            return {}
        with self._lock:
            found = {} if self._kept is None else self._kept.get(ids)
            known = sum(episode_id in found for episode_id in ids)
            self._count(known, len(ids) - known)
        return found

    def records(self, ids: Ints, size: int) -> tuple[Records, Flags]:
        """Return payloads that all have this length.

        Returns
        -------
        records : uint8 array, shape (n, size)
            New. A row that is not in the cache holds anything.
        known : bool array, shape (n,)
            True for a row that is in the cache.
        """
        kept = self._kept
        if not isinstance(kept, _Rows) or kept.size != size:
            if self.max_bytes:
                self._count(0, len(ids))
            return np.empty((len(ids), size), np.uint8), np.zeros(len(ids), np.bool_)
        with self._lock:
            records, known = kept.records(ids)
            found = int(np.count_nonzero(known))
            self._count(found, len(ids) - found)
        return records, known

    def put(self, blobs: Mapping[int, bytes]) -> None:
        """Add committed, verified payloads. If room is needed, others leave."""
        if not self.max_bytes or not blobs:
            return
        with self._lock:
            self._suitable(set(map(len, blobs.values()))).put(blobs)

    def drop(self, ids: Iterable[int]) -> None:
        """Remove the payloads of episodes that left. Answers stay right without this; it only frees room."""
        with self._lock:
            if self._kept is not None:
                self._kept.drop(ids)

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._kept = None

    def after_fork(self) -> None:
        """Replace the lock in a forked child: a thread of the parent may hold it, which does not exist in the child."""
        self._lock = threading.Lock()

    def stats(self) -> dict[str, float]:
        """Return entries, bytes and the limit, with hits, misses and the hit rate since the memory was opened."""
        lookups = self.hits + self.misses
        entries, size = (0, 0) if self._kept is None else self._kept.sizes()
        return {
            "entries": entries,
            "bytes": size,
            "max_bytes": self.max_bytes,
            "hits": self.hits,
            "misses": self.misses,
            "hit_rate": self.hits / lookups if lookups else 0.0,
        }

    def _count(self, hits: int, misses: int) -> None:
        self.hits += hits
        self.misses += misses

    def _suitable(self, lengths: set[int]) -> _Kept:
        """Return an object that can keep payloads of these lengths. The present one goes if it cannot."""
        kept = self._kept
        if isinstance(kept, _Blobs) or (isinstance(kept, _Rows) and lengths == {kept.size}):
            return kept
        only = min(lengths) if kept is None and len(lengths) == 1 else 0
        made: _Kept = _Rows(only, self.max_bytes) if only else _Blobs(self.max_bytes)
        self._kept = made
        return made
