"""Hot payloads in memory: least recently used out, bounded by bytes.

It holds only what can no longer change, committed payloads by an id that is never reused; so there is nothing to
invalidate between processes. Entries are the stored bytes, already verified: a fixed-shape batch is decoded from them
in one pass, and the arrays handed out are the caller's own.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

ENTRY_OVERHEAD = 200
"""Bytes that Python needs besides the payload's: object header, key, slot in the table (measured: 190 to 210)."""


class PayloadCache:
    """Encoded payloads by episode id; threads may share it."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self.hits = 0
        self.misses = 0
        self._blobs: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, ids: Iterable[int]) -> dict[int, bytes]:
        """Those of the payloads that are here."""
        found: dict[int, bytes] = {}
        if not self.max_bytes:
            return found
        asked = 0
        with self._lock:
            for episode_id in ids:
                asked += 1
                blob = self._blobs.get(episode_id)
                if blob is not None:
                    self._blobs.move_to_end(episode_id)
                    found[episode_id] = blob
            self.hits += len(found)
            self.misses += asked - len(found)
        return found

    def put(self, blobs: Mapping[int, bytes]) -> None:
        """Keep committed, verified payloads; what no longer fits leaves, least recently used first."""
        if not self.max_bytes:
            return
        with self._lock, self._whole():
            for episode_id, blob in blobs.items():
                if episode_id not in self._blobs:
                    self._blobs[episode_id] = blob
                    self.bytes += len(blob) + ENTRY_OVERHEAD
            while self.bytes > self.max_bytes:
                _, blob = self._blobs.popitem(last=False)
                self.bytes -= len(blob) + ENTRY_OVERHEAD

    def drop(self, ids: Iterable[int]) -> None:
        """Free the room of episodes that left; leaving them would be correct, only wasteful."""
        with self._lock, self._whole():
            for episode_id in ids:
                blob = self._blobs.pop(episode_id, None)
                if blob is not None:
                    self.bytes -= len(blob) + ENTRY_OVERHEAD

    def clear(self) -> None:
        """Forget everything."""
        with self._lock:
            self._forget()

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """Forget everything where an interrupt came between an entry and its place in the count."""
        try:
            yield
        except BaseException:
            self._forget()
            raise

    def _forget(self) -> None:
        self._blobs, self.bytes = OrderedDict(), 0

    def after_fork(self) -> None:
        """Give up a lock that a thread of the parent may hold; that thread does not exist here."""
        self._lock = threading.Lock()

    def stats(self) -> dict[str, float]:
        """Entries, bytes, budget, hits, misses and hit rate since the memory was opened."""
        asked = self.hits + self.misses
        return {
            "entries": len(self._blobs),
            "bytes": self.bytes,
            "max_bytes": self.max_bytes,
            "hits": self.hits,
            "misses": self.misses,
            "hit_rate": self.hits / asked if asked else 0.0,
        }
