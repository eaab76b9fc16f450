"""Insertion and removal of episodes. Each changes every table in one transaction."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sqlalchemy import Table

from memstore.buffer.blocks.copy import Found
from memstore.buffer.blocks.slots import Ints
from memstore.buffer.facts import texts_of
from memstore.buffer.session import Session
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.buffer.tail import Newcomers
from memstore.episodes.eviction import plan
from memstore.episodes.inputs import Offer, make_offer
from memstore.episodes.log import Group, depart
from memstore.payload.signature import Signature, checksums_of
from memstore.sharing import limiter
from memstore.sharing.waiting import Patience, check_wait
from memstore.storage import checksums, stored
from memstore.storage.schema import episode, episode_key, episode_tag, id_range
from memstore.storage.schema import payload as payload_table
from memstore.types import Payload, Seconds
from memstore.values.foreign import numpy_payload
from memstore.values.letting_go import held_until_done


@dataclass(frozen=True, slots=True)
class Inserted:
    """The ids in the order of the offer, the payloads that were stored, and the ids that left to make room."""

    ids: Ints
    blobs: dict[int, bytes]
    evicted: Ints


def add(
    session: Session,
    payload: Payload,
    columns: dict[str, Any],
    wait: Seconds,
    consumer: str,
    standing: Callable[[], str],
    *,
    one: bool,
) -> Ints:
    """Wait for the buffer's limiter, add one episode or several in one commit, and return their ids.

    ``columns`` holds the other keywords of the call by name. ``standing`` returns the text for the error of a wait that
    took too long.
    """
    fields, patience, now = numpy_payload(payload), check_wait(wait), time.time()
    count = None if one else Signature.batch_size(fields)
    # The payloads are encoded before the lock is taken, so that other writers do not wait for that.
    assumed = session.committed.settings.signature or Signature.infer(fields, count)
    offer = make_offer(_encoded(assumed, fields, count), now, columns, one=one)
    group = Group(now, consumer)

    def work(snapshot: Snapshot) -> Inserted:
        limiter.admit_add(snapshot)
        signature = snapshot.settings.signature
        if signature is None:
            snapshot.state.store_settings(snapshot.conn, replace(snapshot.settings, signature=assumed))
        elif signature != assumed:  # another process made the first add since
            return insert(snapshot, replace(offer, blobs=_encoded(signature, fields, count)), group)
        return insert(snapshot, offer, group)

    with held_until_done(offer.blobs), Patience(session, patience, standing) as patient:
        while True:
            with suppress(limiter.OutOfStep):
                inserted = session.write(work, lambda done: done.blobs)
                break
            patient.pause()
    if len(inserted.evicted):
        session.cache.drop(inserted.evicted.tolist())
    return inserted.ids


def _encoded(signature: Signature, fields: Payload, count: int | None) -> list[bytes]:
    return [signature.encode_one(fields)] if count is None else signature.encode(fields, count)


def insert(snapshot: Snapshot, offer: Offer, group: Group) -> Inserted:
    """Insert the offers with new keys or no key, and evict by the policy. ``group`` holds the time and the consumer.

    Every offer takes the next id, even an offer that the reservoir turns away. So ids have no gaps at insertion. A key
    that was seen before returns its first id, even if that episode has left.
    """
    next_id = snapshot.newest_possible() + 1
    if offer.keys.count(None) == len(offer.keys):
        ids = np.arange(next_id, next_id + len(offer.keys))
        return Inserted(ids, *_insert_new(snapshot, offer, ids, group))
    known = known_keys(snapshot, offer.keys)
    ids = np.empty(len(offer.keys), np.int64)
    new: list[int] = []
    for i, key in enumerate(offer.keys):
        number = None if key is None else known.get(key)
        if number is None:
            number = next_id + len(new)
            new.append(i)
            if key is not None:
                known[key] = number
        ids[i] = number
    if not new:
        return Inserted(ids, {}, np.empty(0, np.int64))
    if len(new) < len(ids):
        offer = offer.take(new)
    blobs, evicted = _insert_new(snapshot, offer, ids[new], group)
    return Inserted(ids, blobs, evicted)


def known_keys(snapshot: Snapshot, keys: Iterable[str | None]) -> dict[str, int]:
    """Return the first id of each key that was ever added."""
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
    domains = state.store_domains(snapshot.conn, snapshot.backend, offer.domains)
    facts = (ids, domains + snapshot.first_id, offer.timestamps, offer.levels)
    sums = checksums.of_facts(*facts, texts_of(offer.keys, offer.extras, offer.tags))
    newcomers = Newcomers(ids, domains, offer.loss, sums)
    decision = plan(snapshot, newcomers)
    leaving = snapshot.at_places(decision.leaving)
    all_stay = bool(decision.staying.all())
    if len(leaving) or not all_stay:
        departed = group._replace(what="evicted", reason=snapshot.settings.eviction.value)
        depart(snapshot, departed, leaving, newcomers.take(~decision.staying))

    state.counters.measured(offer.loss, snapshot.settings.epsilon)
    state.counters.reservoir_floor = decision.reservoir_floor
    _store_keys(snapshot, offer.keys, ids)
    if not all_stay:
        offer, newcomers = offer.take(np.flatnonzero(decision.staying).tolist()), newcomers.take(decision.staying)
    state.counters.entered(newcomers, len(ids))
    _take_out(snapshot, leaving)
    state.blocks = state.blocks.appended(newcomers.ids, newcomers.domains, newcomers.loss)
    _store(snapshot, offer, newcomers)
    return dict(zip(newcomers.ids.tolist(), offer.blobs, strict=True)), leaving.ids


def _store(snapshot: Snapshot, offer: Offer, newcomers: Newcomers) -> None:
    ids = newcomers.ids.tolist()
    own = [snapshot.state.buffer_id] * len(ids)
    described = {
        "id": ids,
        "buffer_id": own,
        "domain_id": (newcomers.domains + snapshot.first_id).tolist(),
        "timestamp": offer.timestamps,
        "level": offer.levels,
        "key": offer.keys,
        "extra": offer.extras,
        "checksum": newcomers.facts.tolist(),
        "loss_at_add": stored.nullable(newcomers.loss),
    }
    packed = {"episode_id": ids, "crc32": checksums_of(offer.blobs, newcomers.ids), "data": offer.blobs}
    snapshot.backend.insert(snapshot.conn, episode, described)
    snapshot.backend.insert(snapshot.conn, payload_table, packed)
    snapshot.state.counters.waiting_bytes += sum(map(len, offer.blobs))
    _store_tags(snapshot, offer.tags, ids)


def _take_out(snapshot: Snapshot, leaving: Rows) -> None:
    """Take rows out of the blocks. The fold deletes what the tables hold of them."""
    if not len(leaving):
        return
    state = snapshot.state
    state.blocks = state.blocks.departed(Found(state.blocks, leaving.places))
    state.counters.live_replays -= int(leaving.replay_count.sum())


def remove(snapshot: Snapshot, *parts: tuple[Rows, Group]) -> None:
    """Remove live episodes. No row may be given twice. The keys of the episodes stay known.

    The group of each part holds the reason of its departure, for the history.
    """
    for rows, group in parts:
        depart(snapshot, group, rows)
    _take_out(snapshot, Rows.join([rows for rows, _ in parts]))


def _store_keys(snapshot: Snapshot, keys: list[str | None], ids: Ints) -> None:
    if keys.count(None) == len(keys):
        return
    named = [(key, number) for key, number in zip(keys, ids.tolist(), strict=True) if key is not None]
    rows = [(*pair, checksums.of_row(*pair)) for pair in named]
    _insert_rows(snapshot, episode_key, ("key", "episode_id", "checksum"), rows)


def _store_tags(snapshot: Snapshot, tags: list[tuple[str, ...]], ids: list[int]) -> None:
    if not any(tags):
        return
    rows = [(tag, number, place) for group, number in zip(tags, ids, strict=True) for place, tag in enumerate(group)]
    _insert_rows(snapshot, episode_tag, ("tag", "episode_id", "ordinal"), rows)


def _insert_rows(snapshot: Snapshot, table: Table, names: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    columns = dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
    columns["buffer_id"] = [snapshot.state.buffer_id] * len(rows)
    snapshot.backend.insert(snapshot.conn, table, columns)
