"""What can be asked of a memory without changing it."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from memstore.buffer.session import Session
from memstore.buffer.snapshot import Snapshot
from memstore.config import check_name
from memstore.draws.strategies import Strategy, strategy_from_json
from memstore.episodes import insert as episodes
from memstore.episodes.inputs import check_count, check_ids, check_option, check_texts
from memstore.errors import InvalidValue
from memstore.payload.signature import Signature
from memstore.types import CheckReport, Episode, Match, ReplayMetadata, ReplayStats
from memstore.upkeep import stats as health
from memstore.upkeep.check import check
from memstore.values.times import check_time


class MemoryReader:
    """Properties, look-ups and reports; every answer is from one consistent snapshot, and none waits for writers."""

    def __init__(
        self,
        session: Session,
        name: str,
        *,
        resumed: bool,
        strategy: Strategy | None = None,
        consumer: str | None = None,
    ) -> None:
        self._session = session
        self._name = name
        self._resumed = resumed
        self._strategy = strategy
        self._given_consumer = consumer

    @property
    def name(self) -> str:
        """Name of the buffer within its database."""
        return self._name

    @property
    def url(self) -> str:
        """Address of the database, its password hidden."""
        return self._session.database.backend.describe()

    @property
    def consumer(self) -> str:
        """Who replays, as the history and the leases name it: as given to ``open``, else this host and process."""
        return self._given_consumer or f"{socket.gethostname()}:{os.getpid()}"

    @property
    def resumed(self) -> bool:
        """Whether the buffer existed before this memory was opened."""
        return self._resumed

    @property
    def rng(self) -> np.random.Generator:
        """The generator behind every draw; its state is in every checkpoint."""
        return self._session.rng

    @property
    def capacity(self) -> int:
        """Largest number of live episodes."""
        return self._session.read(lambda s: s.settings.capacity)

    @property
    def strategy(self) -> Strategy:
        """What ``sample`` uses when not told otherwise."""
        return self._session.read(self._default_strategy)

    @property
    def signature(self) -> Signature | None:
        """Fields of the payloads, None until the first add."""
        return self._session.read(signature_of)

    def __len__(self) -> int:
        return self._session.read(lambda s: s.live)

    def __contains__(self, episode_id: Any) -> bool:
        return len(self._session.read(lambda s: s.find(check_ids(episode_id)))) == 1

    def __repr__(self) -> str:
        return f"<EpisodicMemory {self._name!r} at {self.url}>"

    def get(self, episode_id: int) -> Episode:
        """The live episode with this id.

        Raises
        ------
        EpisodeNotFound
            When it was never added, was evicted or was deleted.
        """
        return self.get_many(episode_id)[0]

    def get_many(self, ids: Any) -> list[Episode]:
        """Live episodes in the order of the ids, from one snapshot; raises ``EpisodeNotFound`` if one is missing."""
        wanted = check_ids(ids).tolist()
        return self._session.read(lambda s: self._episodes(s, wanted))

    def metadata(self, ids: Any) -> list[ReplayMetadata]:
        """Replay metadata in the order of the ids; raises ``EpisodeNotFound`` if one is missing."""
        wanted = check_ids(ids).tolist()
        found = self._session.read(lambda s: episodes.read_metadata(s, list(dict.fromkeys(wanted))))
        return [found[i] for i in wanted]

    def ids_of(self, keys: Sequence[str]) -> list[int | None]:
        """The ids under which these keys were first added, None where one never was.

        An id stays known when its episode has left.
        """
        wanted = check_texts("key", keys)
        known = self._session.read(lambda s: episodes.known_keys(s, wanted))
        return [known.get(key) for key in wanted]

    def recall_temporal(
        self, start: Any, end: Any, *, domain: str | None = None, limit: int | None = None
    ) -> list[Episode]:
        """Episodes whose timestamp lies in [start, end], both inclusive, by timestamp, then id."""
        if domain is not None:
            check_name("domain", domain)
        low, high = check_time("start", start), check_time("end", end)
        most = None if limit is None else check_count(limit)
        return self._session.read(lambda s: self._episodes(s, episodes.ids_between(s, low, high, domain, most)))

    def recall_by_tags(
        self, tags: Sequence[str], *, match: Literal["any", "all"] = "any", limit: int | None = None
    ) -> list[Episode]:
        """Episodes that carry any, or all, of the tags, oldest first."""
        wanted = check_texts("tag", tags)
        if not wanted:
            raise InvalidValue("tags must be a non-empty sequence of str, got none")
        check_option("match", match, "any", "all")
        most = None if limit is None else check_count(limit)
        return self._session.read(lambda s: self._episodes(s, episodes.ids_tagged(s, wanted, match == "all", most)))

    def recall(self, query: Any, *, on: str, limit: int = 10) -> list[Match]:
        """The episodes whose field ``on`` is nearest to ``query`` (Euclidean), nearest first.

        Reads every payload once: time is proportional to the buffer, memory is not.
        """
        most = check_count(limit)

        def work(snapshot: Snapshot) -> list[Match]:
            signature = signature_of(snapshot)
            if signature is None:
                return []
            found = episodes.nearest(snapshot, signature, on, query, most)
            whole = self._episodes(snapshot, [episode_id for episode_id, _ in found])
            return [Match(episode, distance) for episode, (_, distance) in zip(whole, found, strict=True)]

        return self._session.read(work)

    def stats(self, *, exact: bool = False) -> ReplayStats:
        """Health of the buffer, in time independent of its size.

        ``exact=True`` scans the losses: quantiles and histogram are then of the losses themselves instead of the
        strata's half-octave bounds.
        """
        return self._session.read(
            lambda s: health.stats(s, self._name, self._default_strategy(s), self._session.cache.stats(), exact=exact)
        )

    def check(self) -> CheckReport:
        """Verify every invariant, reading the whole buffer: positions, bounds, counts, sums, checksums, orphans."""
        return self._session.read(check)

    def _episodes(self, snapshot: Snapshot, ids: list[int]) -> list[Episode]:
        signature = signature_of(snapshot)
        if signature is None:
            episodes.read_metadata(snapshot, ids)
            return []
        keep = not self._session.database.transaction_open
        return episodes.read(snapshot, ids, signature, self._session.cache, keep=keep)

    def _default_strategy(self, snapshot: Snapshot) -> Strategy:
        return self._strategy or _stored_strategy(snapshot.settings.strategy)


@lru_cache(maxsize=64)
def _stored_strategy(text: str) -> Strategy:
    return strategy_from_json(text)


@lru_cache(maxsize=64)
def stored_signature(text: str | None) -> Signature | None:
    """The signature stored as this text, read once."""
    return None if text is None else Signature.from_json(text)


def signature_of(snapshot: Snapshot) -> Signature | None:
    """The buffer's signature, None before the first add."""
    return stored_signature(snapshot.state.signature)
