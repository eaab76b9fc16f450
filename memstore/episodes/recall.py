"""Live episodes found by id, key, time, tag or likeness: whole, or only their replay metadata."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial, reduce
from operator import getitem
from typing import Any, Literal

import numpy as np
from sqlalchemy import func, select

from memstore.buffer.blocks.slots import Floats
from memstore.buffer.facts import COLUMNS as FACTS
from memstore.buffer.facts import verify
from memstore.buffer.overlay import is_live
from memstore.buffer.session import Session
from memstore.buffer.snapshot import Snapshot
from memstore.config import check_name
from memstore.episodes.inputs import check_count, check_ids, check_option, check_texts
from memstore.episodes.insert import known_keys
from memstore.episodes.payloads import all_payloads, read_blobs
from memstore.errors import EpisodeNotFound, InvalidValue
from memstore.payload.fields import Field
from memstore.payload.signature import Signature
from memstore.storage import stored
from memstore.storage.schema import episode, episode_tag, first_id
from memstore.types import Episode, Ids, Match, ReplayMetadata, Tags, Time, Vector
from memstore.values.shown import shown
from memstore.values.times import check_limit

_Replays = tuple[float | None, float | None, int, float | None]


def episodes(session: Session, ids: Ids) -> list[Episode]:
    """Return whole episodes in the order of the ids. Raise ``EpisodeNotFound`` if one is missing."""
    wanted = check_ids(ids).tolist()
    return session.read(partial(_read, session, wanted))


def metadata(session: Session, ids: Ids) -> list[ReplayMetadata]:
    """Return replay metadata in the order of the ids. Raise ``EpisodeNotFound`` if an episode is missing."""
    wanted = check_ids(ids).tolist()
    found = session.read(lambda s: _read_metadata(s, list(dict.fromkeys(wanted))))
    return [found[i] for i in wanted]


def ids_of(session: Session, keys: Iterable[str]) -> list[int | None]:
    """Return the first id of each key, None for a key that was never added."""
    wanted = check_texts("key", keys)
    known = session.read(lambda s: known_keys(s, wanted))
    return [known.get(key) for key in wanted]


def between(session: Session, start: Time, end: Time, domain: str | None, limit: int | None) -> list[Episode]:
    """Return whole episodes with a timestamp in [start, end], by timestamp, then id."""
    if domain is not None:
        check_name("domain", domain)
    low, high = check_limit("start", start), check_limit("end", end)
    most = None if limit is None else check_count(limit, "limit")
    return session.read(lambda s: _read(session, _ids_between(s, low, high, domain, most), s))


def tagged(session: Session, tags: Tags, match: Literal["any", "all"], limit: int | None) -> list[Episode]:
    """Return whole episodes that carry any, or all, of the tags, oldest first."""
    wanted = check_texts("tag", tags)
    if not wanted:
        raise InvalidValue("tags must be a non-empty sequence of str, got none")
    check_option("match", match, "any", "all")
    most = None if limit is None else check_count(limit, "limit")
    return session.read(lambda s: _read(session, _ids_tagged(s, wanted, match == "all", most), s))


def nearest(session: Session, query: Vector, on: str, limit: int) -> list[Match]:
    """Return the episodes nearest to ``query`` by the Euclidean distance of a field, nearest first, by a full scan."""
    most = check_count(limit, "limit")

    def work(snapshot: Snapshot) -> list[Match]:
        signature = snapshot.settings.signature
        if signature is None:
            return []
        field = signature.field(on)
        ids, distances = _nearest(snapshot, signature, field, _vector(field, query), most)
        return [Match(*found) for found in zip(_read(session, ids, snapshot), distances, strict=True)]

    return session.read(work)


def tags_of(snapshot: Snapshot, ids: Sequence[int]) -> dict[int, tuple[str, ...]]:
    """Return the tags of these live episodes that have any, in the order in which they were given."""
    columns = ("episode_id", "ordinal", "tag")
    found: dict[int, list[str]] = {}
    for number, _, tag in sorted(snapshot.backend.select(snapshot.conn, episode_tag, columns, "episode_id", ids)):
        found.setdefault(number, []).append(tag)
    return {number: tuple(tags) for number, tags in found.items()}


def _read(session: Session, ids: list[int], snapshot: Snapshot) -> list[Episode]:
    """Return whole episodes in the order of the ids."""
    distinct = list(dict.fromkeys(ids))
    replayed, facts = _replayed(snapshot, distinct), _facts(snapshot, FACTS, distinct)
    tags = tags_of(snapshot, distinct)
    verify(list(facts.values()), tags)
    signature = snapshot.settings.signature
    if signature is None or not ids:
        return []
    keep = not session.database.transaction_open
    blobs = dict(zip(distinct, read_blobs(snapshot, distinct, session.cache, keep=keep), strict=True))
    ages = dict(zip(distinct, snapshot.age(np.array(distinct, np.int64)).tolist(), strict=True))

    def whole(number: int) -> Episode:
        _, timestamp, level, key, extra, domain_id, _ = facts[number]
        domain = snapshot.state.domain_name(domain_id, f"episode {number}: its domain")
        value = None if extra is None else stored.extra(extra, number)
        payload = signature.decode_one(blobs[number])
        added = (number, domain, timestamp, level, key, value, ages[number])
        return Episode(*added, *replayed[number], tags.get(number, ()), payload)

    return [whole(i) for i in ids]


def _read_metadata(snapshot: Snapshot, ids: list[int]) -> dict[int, ReplayMetadata]:
    replayed, facts = _replayed(snapshot, ids), _facts(snapshot, ("id", "timestamp", "domain_id"), ids)
    found = {}
    for number, timestamp, domain_id in facts.values():
        loss, _, count, last = replayed[number]
        domain = snapshot.state.domain_name(domain_id, f"episode {number}: its domain")
        found[number] = ReplayMetadata(number, loss, domain, timestamp, count, last)
    return found


def _replayed(snapshot: Snapshot, ids: Sequence[int]) -> dict[int, _Replays]:
    """Return the last and the lowest loss, the replay count and the time of the last replay, by id.

    Raises
    ------
    EpisodeNotFound
        One of the ids is not live.
    """
    rows = snapshot.find(np.array(ids, np.int64))
    reals = (stored.nullable(values) for values in (rows.loss, rows.lowest, rows.last_replayed_at))
    loss, lowest, last = reals
    columns = zip(loss, lowest, rows.replay_count.tolist(), last, strict=True)
    found: dict[int, _Replays] = dict(zip(rows.ids.tolist(), columns, strict=True))
    for number in ids:
        if number not in found:
            raise EpisodeNotFound(f"no live episode has the id {number}: never added, evicted or deleted")
    return found


def _facts(snapshot: Snapshot, columns: tuple[str, ...], ids: Sequence[int]) -> Mapping[int, tuple[Any, ...]]:
    """Return rows of table ``episode`` by id, for live episodes. ``columns`` begins with the id and the timestamp."""
    facts = {row[0]: tuple(row) for row in snapshot.backend.select(snapshot.conn, episode, columns, "id", ids)}
    for number in ids:
        if number not in facts:
            raise stored.damaged(f"episode {number}", "has no row in table episode", episode_id=number)
        stored.real(facts[number][1], f"episode {number}: its timestamp")
    return facts


def _ids_between(snapshot: Snapshot, start: float, end: float, domain_name: str | None, limit: int | None) -> list[int]:
    state = snapshot.state
    query = select(episode.c.id).where(episode.c.timestamp.between(start, end), is_live(snapshot, episode.c.id))
    if domain_name is None:
        query = query.where(episode.c.buffer_id == state.buffer_id)
    else:
        code = state.domain_code(domain_name)
        if code is None:
            return []
        query = query.where(episode.c.domain_id == first_id(state.buffer_id) + code)
    return list(snapshot.conn.scalars(query.order_by(episode.c.timestamp, episode.c.id).limit(limit)))


def _ids_tagged(snapshot: Snapshot, tags: Sequence[str], every: bool, limit: int | None) -> list[int]:
    wanted = sorted(set(tags))
    c = episode_tag.c
    query = select(c.episode_id).where(c.buffer_id == snapshot.state.buffer_id, c.tag.in_(wanted))
    query = query.where(is_live(snapshot, c.episode_id))
    query = query.group_by(c.episode_id).order_by(c.episode_id).limit(limit)
    if every:
        query = query.having(func.count() == len(wanted))
    return list(snapshot.conn.scalars(query))


def _vector(field: Field, query: Vector) -> Floats:
    """Return the query as numbers in one dimension. It must have as many numbers as the field."""
    if not field.fixed or np.dtype(field.dtype).kind == "c":
        raise InvalidValue(f"recall() measures distances on real fields of fixed shape; {field} is none")
    try:
        wanted = np.asarray(query, np.float64).ravel()
    except (TypeError, ValueError, OverflowError) as exc:
        raise InvalidValue(f"the query must hold numbers as {field} does, got {shown(query)}") from exc
    if len(wanted) != (size := math.prod(length or 0 for length in field.shape)):
        raise InvalidValue(f"the query holds {len(wanted)} numbers where {field} holds {size}")
    if not np.isfinite(wanted).all():
        raise InvalidValue("the query holds NaN or infinity: no episode is near to that")
    return wanted


def _nearest(
    snapshot: Snapshot, signature: Signature, field: Field, wanted: Floats, limit: int
) -> tuple[list[int], list[float]]:
    best_ids, best = np.empty(0, np.int64), np.empty(0)
    for ids, blobs in all_payloads(snapshot):
        values: Any = reduce(getitem, field.path, signature.decode(blobs))
        distance = np.linalg.norm(np.asarray(values, np.float64).reshape(len(ids), -1) - wanted, axis=1)
        best_ids, best = np.concatenate([best_ids, ids]), np.concatenate([best, distance])
        keep = np.lexsort((best_ids, best))[:limit]
        best_ids, best = best_ids[keep], best[keep]
    return best_ids.tolist(), best.tolist()
