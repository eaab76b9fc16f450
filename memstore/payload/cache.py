"""Keeps payloads in memory that are read often. Its size in bytes is bounded: the least recently used entry goes first.

It holds committed payloads by id. They never change and ids are never reused, so no process has to tell others to drop
an entry. Entries are the stored bytes, already verified. A batch of fixed shapes is decoded from them in one pass, and
the arrays given out belong to the caller.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

ENTRY_OVERHEAD = 200
"""Bytes that Python needs for an entry besides the payload: object header, key, slot (190 to 210 measured)."""


class PayloadCache:
    """Encoded payloads by episode id. Threads may share it.

    Parameters
    ----------
    max_bytes : int
        The size of all entries together. 0 turns the cache off.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._blobs: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, ids: Iterable[int]) -> dict[int, bytes]:
        """Return the payloads of these episodes that are in the cache."""
        found: dict[int, bytes] = {}
        if not self.max_bytes:
            return found
        lookups = 0
        with self._lock:
            for episode_id in ids:
                lookups += 1
                blob = self._blobs.get(episode_id)
                if blob is not None:
                    self._blobs.move_to_end(episode_id)
                    found[episode_id] = blob
            self.hits += len(found)
            self.misses += lookups - len(found)
        return found

    def put(self, blobs: Mapping[int, bytes]) -> None:
        """Add committed, verified payloads. If room is needed, the least recently used entries leave."""
        if not self.max_bytes:
            return
        with self._lock, self._consistent():
            for episode_id, blob in blobs.items():
                if episode_id not in self._blobs:
                    self._blobs[episode_id] = blob
                    self.bytes += len(blob) + ENTRY_OVERHEAD
            while self.bytes > self.max_bytes:
                _, blob = self._blobs.popitem(last=False)
                self.bytes -= len(blob) + ENTRY_OVERHEAD

    def drop(self, ids: Iterable[int]) -> None:
        """Remove the payloads of episodes that left. Answers stay right without this; it only frees room."""
        with self._lock, self._consistent():
            for episode_id in ids:
                blob = self._blobs.pop(episode_id, None)
                if blob is not None:
                    self.bytes -= len(blob) + ENTRY_OVERHEAD

    def clear(self) -> None:
        """Remove all entries."""
        with self._lock:
            self._empty()

    @contextmanager
    def _consistent(self) -> Iterator[None]:
        """Empty the cache if an interrupt comes: the count of bytes may then not fit the entries."""
        try:
            yield
        except BaseException:
            self._empty()
            raise

    def _empty(self) -> None:
        self._blobs, self.bytes = OrderedDict(), 0

    def after_fork(self) -> None:
        """Replace the lock in a forked child: a thread of the parent may hold it, which does not exist in the child."""
        self._lock = threading.Lock()

    def stats(self) -> dict[str, float]:
        """Return entries, bytes and the limit, with hits, misses and the hit rate since the memory was opened."""
        lookups = self.hits + self.misses
        return {
            "entries": len(self._blobs),
            "bytes": self.bytes,
            "max_bytes": self.max_bytes,
            "hits": self.hits,
            "misses": self.misses,
            "hit_rate": self.hits / lookups if lookups else 0.0,
        }
