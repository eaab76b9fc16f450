"""Insert, remove and read episodes; each a change to every table in one transaction."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import func, select

from memstore.buffer.facts import COLUMNS as FACTS
from memstore.buffer.facts import texts_of, verify
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.buffer.strata import Ints, bucket_of, write_positions
from memstore.episodes.eviction import Newcomers, order_keys, plan
from memstore.episodes.log import Group, depart
from memstore.errors import EpisodeNotFound, InvalidValue, StoreCorrupt
from memstore.payload.cache import PayloadCache
from memstore.payload.signature import Signature, checksum
from memstore.storage import checksums, stored
from memstore.storage.address import restoring
from memstore.storage.schema import episode, episode_key, episode_tag, first_id, id_range, payload, replay_metadata
from memstore.types import Episode, ReplayMetadata
from memstore.values.shown import shown

CHUNK = 4096
"""Rows per round of a pass over the buffer: a few MB of payloads."""


@dataclass(frozen=True, slots=True)
class Offer:
    """Episodes offered to the buffer, as columns of equal length."""

    blobs: list[bytes]
    domains: list[str]
    timestamps: list[float]
    loss: NDArray[np.float64]
    levels: list[int | None]
    keys: list[str | None]
    tags: list[tuple[str, ...]]
    extras: list[str | None]

    def take(self, which: list[int]) -> Offer:
        """The offers at these places."""
        return Offer(
            [self.blobs[i] for i in which],
            [self.domains[i] for i in which],
            [self.timestamps[i] for i in which],
            self.loss[which],
            [self.levels[i] for i in which],
            [self.keys[i] for i in which],
            [self.tags[i] for i in which],
            [self.extras[i] for i in which],
        )


@dataclass(frozen=True, slots=True)
class Inserted:
    """Ids in the order of the offer, the payloads now stored, and the ids that left to make room."""

    ids: Ints
    blobs: dict[int, bytes]
    evicted: Ints


def insert(snapshot: Snapshot, offer: Offer, group: Group) -> Inserted:
    """Insert what is new by its key, evicting as the policy says; ``group`` says when, and by whom.

    Every offer takes the next id, also one that the reservoir turns away: ids are gapless at insert. A key seen before
    returns its first id, whatever became of that episode.
    """
    known = known_keys(snapshot, offer.keys)
    new: list[int] = []
    next_id = first_id(snapshot.state.buffer_id) + snapshot.state.counters.inserted + 1
    ids = np.empty(len(offer.blobs), np.int64)
    for i, key in enumerate(offer.keys):
        if key is not None and key in known:
            ids[i] = known[key]
            continue
        ids[i] = next_id + len(new)
        new.append(i)
        if key is not None:
            known[key] = int(ids[i])
    if not new:
        return Inserted(ids, {}, np.empty(0, np.int64))
    if len(new) < len(offer.blobs):
        offer = offer.take(new)
    blobs, evicted = _insert_new(snapshot, offer, ids[new], group)
    return Inserted(ids, blobs, evicted)


def known_keys(snapshot: Snapshot, keys: Iterable[str | None]) -> dict[str, int]:
    """The first id of each key that was ever added."""
    wanted = list({key for key in keys if key is not None})
    if not wanted:
        return {}
    columns = ("key", "episode_id")
    rows = snapshot.backend.select_texts(snapshot.conn, episode_key, columns, snapshot.state.buffer_id, "key", wanted)
    what = f"table {episode_key.name}"
    low, high = id_range(snapshot.state.buffer_id)
    return {key: stored.whole(number, f"{what}: the id of {key!r:.40}", low, high) for key, number in rows}


def _insert_new(snapshot: Snapshot, offer: Offer, ids: Ints, group: Group) -> tuple[dict[int, bytes], Ints]:
    state = snapshot.state
    codes = state.store_domains(snapshot.conn, snapshot.backend, offer.domains)
    decision = plan(snapshot, Newcomers(ids, codes, offer.loss))
    leaving = snapshot.find(decision.leaving)
    turned_away = Newcomers(ids, codes, offer.loss).take(~decision.staying)
    depart(snapshot, replace(group, what="evicted", reason=snapshot.settings.eviction), leaving, turned_away)

    state.counters.measured(offer.loss, snapshot.settings.epsilon)
    state.counters.inserted += len(ids)
    state.counters.reservoir_floor = decision.reservoir_floor
    _store_keys(snapshot, offer.keys, ids)

    if not decision.staying.all():
        stay = np.flatnonzero(decision.staying)
        offer, ids, codes = offer.take(stay.tolist()), ids[stay], codes[stay]
    positions, strata = _exchange(snapshot, leaving, codes, offer.loss)
    _store(snapshot, offer, Newcomers(ids, codes, offer.loss), positions, strata)
    return dict(zip(ids.tolist(), offer.blobs, strict=True)), leaving.ids


def _store(snapshot: Snapshot, offer: Offer, newcomers: Newcomers, positions: Ints, strata: Ints) -> None:
    state, conn, backend = snapshot.state, snapshot.conn, snapshot.backend
    ids = newcomers.ids.tolist()
    buffer_ids = [state.buffer_id] * len(ids)
    groups, keys = order_keys(snapshot, newcomers)
    domains = newcomers.domains + first_id(state.buffer_id)
    texts = texts_of(offer.keys, offer.extras, offer.tags)
    described = {
        "id": ids,
        "buffer_id": buffer_ids,
        "domain_id": domains.tolist(),
        "timestamp": offer.timestamps,
        "level": offer.levels,
        "key": offer.keys,
        "extra": offer.extras,
        "checksum": checksums.of_facts(newcomers.ids, domains, offer.timestamps, offer.levels, texts).tolist(),
    }
    stored = {"episode_id": ids, "crc32": list(map(checksum, offer.blobs, ids)), "data": offer.blobs}
    losses = [None if loss != loss else loss for loss in offer.loss.tolist()]
    replayed = {
        "episode_id": ids,
        "buffer_id": buffer_ids,
        "loss": losses,
        "lowest_loss": losses,
        "replay_count": [0] * len(ids),
        "stratum_id": strata.tolist(),
        "position": positions.tolist(),
        "eviction_group": groups,
        "eviction_key": keys,
    }
    backend.insert(conn, episode, described)
    backend.insert(conn, payload, stored)
    backend.insert(conn, replay_metadata, replayed)
    _store_tags(snapshot, offer.tags, ids)


def _exchange(snapshot: Snapshot, leaving: Rows, domains: Ints, loss: NDArray[np.float64]) -> tuple[Ints, Ints]:
    """Take rows out of every table and make places for newcomers; returns their positions and stratum ids."""
    strata, settings = snapshot.state.strata, snapshot.settings
    entering = strata.ensure(domains, bucket_of(loss, settings.epsilon))
    positions, moved, moved_to = strata.rearrange(
        snapshot.conn, snapshot.backend, (leaving.stratum, leaving.position), entering
    )
    strata.account(leaving.stratum, leaving.loss, settings.epsilon, settings.alpha, -1)
    strata.account(entering, loss, settings.epsilon, settings.alpha, +1)
    if len(leaving):
        gone = leaving.ids.tolist()
        for table, key in (
            (replay_metadata, "episode_id"),
            (payload, "episode_id"),
            (episode_tag, "episode_id"),
            (episode, "id"),
        ):
            snapshot.backend.delete(snapshot.conn, table, key, gone)
        snapshot.state.counters.live_replays -= int(leaving.replay_count.sum())
    write_positions(snapshot.conn, snapshot.backend, moved, moved_to)
    return positions, strata.ids(entering)


def remove(snapshot: Snapshot, *parts: tuple[Rows, Group]) -> None:
    """Remove live rows, none of them twice, from every table; what they were called (their keys) stays known.

    The group of each part says in the history why it went.
    """
    for rows, group in parts:
        depart(snapshot, group, rows)
    _exchange(snapshot, Rows.join([rows for rows, _ in parts]), np.empty(0, np.int64), np.empty(0))


def _store_keys(snapshot: Snapshot, keys: list[str | None], ids: Ints) -> None:
    named = [(key, episode_id) for key, episode_id in zip(keys, ids.tolist(), strict=True) if key is not None]
    if named:
        columns: dict[str, list[Any]] = {
            "buffer_id": [snapshot.state.buffer_id] * len(named),
            "key": [key for key, _ in named],
            "episode_id": [episode_id for _, episode_id in named],
            "checksum": [checksums.of_row(*pair) for pair in named],
        }
        snapshot.backend.insert(snapshot.conn, episode_key, columns)


def _store_tags(snapshot: Snapshot, tags: list[tuple[str, ...]], ids: list[int]) -> None:
    rows = [(tag, i, ordinal) for group, i in zip(tags, ids, strict=True) for ordinal, tag in enumerate(group)]
    if rows:
        columns: dict[str, list[Any]] = {
            "buffer_id": [snapshot.state.buffer_id] * len(rows),
            "tag": [tag for tag, _, _ in rows],
            "episode_id": [episode_id for _, episode_id, _ in rows],
            "ordinal": [ordinal for _, _, ordinal in rows],
        }
        snapshot.backend.insert(snapshot.conn, episode_tag, columns)


def read_blobs(snapshot: Snapshot, ids: list[int], cache: PayloadCache, *, keep: bool) -> list[bytes]:
    """Encoded payloads in the order of ids, from the cache where it has them, else verified from the table.

    ``keep`` puts what was read into the cache: not within a write transaction, whose payloads may never be committed.

    Raises
    ------
    StoreCorrupt
        When one of these live episodes has no payload, or one that does not match its checksum.
    """
    found = cache.get(ids)
    missing = [i for i in dict.fromkeys(ids) if i not in found]
    if missing:
        columns = ("episode_id", "crc32", "data")
        rows = snapshot.backend.select(snapshot.conn, payload, columns, "episode_id", sorted(missing))
        for episode_id, crc, data in rows:
            if checksum(data, episode_id) != crc:
                raise _damaged(snapshot, episode_id)
        read = {episode_id: data for episode_id, _, data in rows}
        if keep:
            cache.put(read)
        found |= read
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


def read(snapshot: Snapshot, ids: list[int], signature: Signature, cache: PayloadCache, *, keep: bool) -> list[Episode]:
    """Whole episodes in the order of ids.

    Raises
    ------
    EpisodeNotFound
        When one of them is not live.
    """
    conn, backend = snapshot.conn, snapshot.backend
    distinct = list(dict.fromkeys(ids))
    facts = {row[0]: row for row in backend.select(conn, episode, FACTS, "id", distinct)}
    tags: dict[int, list[tuple[int, str]]] = {}
    for episode_id, ordinal, tag in backend.select(
        conn, episode_tag, ("episode_id", "ordinal", "tag"), "episode_id", distinct
    ):
        tags.setdefault(episode_id, []).append((ordinal, tag))
    replayed = read_metadata(snapshot, distinct)
    labels = {number: [tag for _, tag in sorted(named)] for number, named in tags.items()}
    verify(list(facts.values()), labels)
    blobs = dict(zip(distinct, read_blobs(snapshot, distinct, cache, keep=keep), strict=True))

    def whole(episode_id: int) -> Episode:
        _, timestamp, level, key, extra, *_ = facts[episode_id]
        return Episode(
            id=episode_id,
            payload=signature.decode_one(blobs[episode_id]),
            domain=replayed[episode_id].domain,
            timestamp=timestamp,
            level=level,
            tags=tuple(labels.get(episode_id, ())),
            key=key,
            extra=None if extra is None else stored.extra(extra, episode_id),
            metadata=replayed[episode_id],
        )

    return [whole(i) for i in ids]


def read_metadata(snapshot: Snapshot, ids: list[int]) -> dict[int, ReplayMetadata]:
    """Replay metadata by id.

    Raises
    ------
    EpisodeNotFound
        When one of the ids is not live.
    """
    conn, backend, state = snapshot.conn, snapshot.backend, snapshot.state
    low, high = id_range(state.buffer_id)
    own = [i for i in ids if low <= i <= high]
    facts = {row[0]: row[1:] for row in backend.select(conn, episode, ("id", "domain_id", "timestamp"), "id", own)}
    columns = ("episode_id", "loss", "replay_count", "last_replayed_at")
    found: dict[int, ReplayMetadata] = {}
    for episode_id, loss, count, last in backend.select(conn, replay_metadata, columns, "episode_id", own):
        if episode_id not in facts:
            raise stored.damaged(f"episode {episode_id}", "has no row in table episode", episode_id=episode_id)
        domain_id, timestamp = facts[episode_id]
        what = f"episode {episode_id}: its"
        stored.real(timestamp, f"{what} timestamp")
        stored.whole(count, f"{what} replay count")
        for value, name in ((loss, "loss"), (last, "last replay")):
            if value is not None:
                stored.real(value, f"{what} {name}", 0.0 if name == "loss" else -math.inf)
        found[episode_id] = ReplayMetadata(
            episode_id, loss, state.domain_name(domain_id, episode_id), timestamp, count, last
        )
    for episode_id in ids:
        if episode_id not in found:
            raise EpisodeNotFound(f"no live episode has the id {episode_id}: never added, evicted or deleted")
    return found


def ids_between(snapshot: Snapshot, start: float, end: float, domain_name: str | None, limit: int | None) -> list[int]:
    """Ids of live episodes whose timestamp lies in [start, end], by timestamp, then id."""
    state = snapshot.state
    query = select(episode.c.id).where(episode.c.timestamp.between(start, end))
    if domain_name is None:
        query = query.where(episode.c.buffer_id == state.buffer_id)
    else:
        code = state.domain_code(domain_name)
        if code is None:
            return []
        query = query.where(episode.c.domain_id == first_id(state.buffer_id) + code)
    return list(snapshot.conn.scalars(query.order_by(episode.c.timestamp, episode.c.id).limit(limit)))


def ids_tagged(snapshot: Snapshot, tags: Sequence[str], every: bool, limit: int | None) -> list[int]:
    """Ids of live episodes that carry any (or every) one of the tags, oldest first."""
    wanted = sorted(set(tags))
    c = episode_tag.c
    query = select(c.episode_id).where(c.buffer_id == snapshot.state.buffer_id, c.tag.in_(wanted))
    query = query.group_by(c.episode_id).order_by(c.episode_id).limit(limit)
    if every:
        query = query.having(func.count() == len(wanted))
    return list(snapshot.conn.scalars(query))


def all_payloads(snapshot: Snapshot, damaged: list[int] | None = None) -> Iterator[tuple[list[int], list[bytes]]]:
    """Ids and verified payloads of the whole buffer, in id order, by chunks.

    Ids whose checksum does not match go into ``damaged``; without it the first one raises ``StoreCorrupt``.
    """
    after = first_id(snapshot.state.buffer_id)
    end = first_id(snapshot.state.buffer_id + 1)
    c = payload.c
    while True:
        query = select(c.episode_id, c.crc32, c.data).where(c.episode_id > after, c.episode_id <= end)
        rows = snapshot.conn.execute(query.order_by(c.episode_id).limit(CHUNK)).all()
        if not rows:
            return
        after = stored.onward(rows[-1][0], after, f"the rows of {payload.name}")
        bad = [episode_id for episode_id, crc, data in rows if checksum(data, episode_id) != crc]
        if bad and damaged is None:
            raise _damaged(snapshot, bad[0])
        if bad and damaged is not None:
            damaged += bad
            rows = [row for row in rows if row[0] not in bad]
        if rows:
            yield [row[0] for row in rows], [row[2] for row in rows]


def nearest(snapshot: Snapshot, signature: Signature, on: str, query: Any, limit: int) -> list[tuple[int, float]]:
    """Ids of the episodes whose field is nearest to ``query`` in Euclidean distance, nearest first; a full scan."""
    best_ids, best = np.empty(0, np.int64), np.empty(0)
    field = signature.field(on)
    if not field.fixed or np.dtype(field.dtype).kind == "c":
        raise InvalidValue(f"recall() measures distances on real fields of fixed shape; {field} is none")
    path = field.path
    try:
        wanted = np.asarray(query, np.float64).ravel()
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidValue(f"the query must hold numbers as {field} does, got {shown(query)}") from exc
    if len(wanted) != (size := math.prod(length or 0 for length in field.shape)):
        raise InvalidValue(f"the query holds {len(wanted)} numbers where {field} holds {size}")
    if not np.isfinite(wanted).all():
        raise InvalidValue("the query holds NaN or infinity: nothing is near to that")
    for ids, blobs in all_payloads(snapshot):
        values: Any = signature.decode(blobs)
        for name in path:
            values = values[name]
        distance = np.linalg.norm(np.asarray(values, np.float64).reshape(len(ids), -1) - wanted, axis=1)
        best_ids, best = np.concatenate([best_ids, ids]), np.concatenate([best, distance])
        keep = np.lexsort((best_ids, best))[:limit]
        best_ids, best = best_ids[keep], best[keep]
    return list(zip(best_ids.tolist(), best.tolist(), strict=True))
