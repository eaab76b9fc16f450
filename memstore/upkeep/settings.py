"""Changes to a whole buffer: settings, and retention."""

from __future__ import annotations

import secrets
from dataclasses import asdict, replace
from typing import Any, Literal

import numpy as np
from sqlalchemy import Connection, delete

from memstore.buffer.counters import change_settings
from memstore.buffer.snapshot import Snapshot
from memstore.buffer.strata import Ints
from memstore.config import DEFAULT_CAPACITY, DEFAULT_EPSILON, MAX_EPSILON, Settings, check_float, check_int
from memstore.draws.strategies import Strategy, as_strategy, strategy_from_json
from memstore.episodes.eviction import Eviction, Newcomers, Reservoir, as_eviction, default_eviction, order_keys, plan
from memstore.episodes.insert import remove
from memstore.episodes.log import Group, History, as_history, history_of, prune
from memstore.errors import ConfigError
from memstore.sharing.limiter import SamplesPerInsert, check_limiter, limiter_to_json, set_limiter
from memstore.storage.schema import (
    buffer,
    checkpoint,
    domain,
    episode,
    episode_key,
    episode_tag,
    event_group,
    id_range,
    lease,
    limiter,
    payload,
    replay_event,
    replay_metadata,
    replay_tally,
    stratum,
)
from memstore.types import EvictionPolicy

_m = replay_metadata.c


def new_settings(
    *,
    capacity: int | None,
    strategy: Strategy | str | None,
    alpha: float | None,
    epsilon: float | None,
    eviction: Eviction | EvictionPolicy | str | None,
    max_replays: int | None,
    limiter: SamplesPerInsert | None,
    history: History | Literal["on", "off"] | None,
    seed: int | None,
) -> Settings:
    """Settings of a new buffer; None stands for the default."""
    chosen = as_strategy("mixed" if strategy is None else strategy)
    blank = Settings(
        capacity=DEFAULT_CAPACITY,
        epsilon=check_float(
            "epsilon", DEFAULT_EPSILON if epsilon is None else epsilon, maximum=MAX_EPSILON, exclusive=True
        ),
        alpha=chosen.index_alpha,
        strategy=chosen.to_json(),
        eviction=default_eviction(chosen.name).name,
        max_replays=None,
        limiter=None,
        history=None,
        seed=secrets.randbits(62) if seed is None else seed,
    )
    return changed_settings(
        blank,
        capacity=capacity,
        strategy=None,
        alpha=alpha,
        eviction=eviction,
        max_replays=max_replays,
        limiter=limiter,
        history=history,
    )


def changed_settings(
    settings: Settings,
    *,
    capacity: int | None,
    strategy: Strategy | str | None,
    alpha: float | None,
    eviction: Eviction | EvictionPolicy | str | None,
    max_replays: int | None,
    limiter: SamplesPerInsert | Literal["none"] | None,
    history: History | Literal["on", "off"] | None,
) -> Settings:
    """The settings with those given changed.

    The alpha of the stored weight sums follows the strategy's, so that ``probability`` needs no scan.
    """
    changes: dict[str, Any] = {}
    if capacity is not None:
        changes["capacity"] = check_int("capacity", capacity, minimum=1)
    if strategy is not None or alpha is not None:
        chosen = strategy_from_json(settings.strategy) if strategy is None else as_strategy(strategy)
        if alpha is not None:
            chosen = chosen.with_alpha(alpha)
        changes |= {"strategy": chosen.to_json(), "alpha": chosen.index_alpha}
    if eviction is not None:
        changes["eviction"] = as_eviction(eviction).name
    if max_replays is not None:
        limit = check_int("max_replays", max_replays, minimum=0)
        changes["max_replays"] = limit or None
    if limiter is not None:
        changes["limiter"] = None if isinstance(limiter, str) and limiter == "none" else limiter_to_json(limiter)
    if history is not None:
        policy = as_history(history)
        changes["history"] = None if policy == History() else policy.to_json()
    changed = replace(settings, **changes)
    check_limiter(changed)
    return changed


def reconfigure(snapshot: Snapshot, settings: Settings, group: Group) -> Ints:
    """Give the buffer other settings; returns the ids that left because it shrank, with ``group`` in the history.

    A new alpha recomputes the weight sums, a new eviction policy writes its order: one scan each.
    """
    old, state = snapshot.settings, snapshot.state
    if settings.eviction != old.eviction:
        _check_reservoir(snapshot, settings)
    state.settings = settings
    change_settings(snapshot.conn, state.buffer_id, **asdict(settings))
    if settings.limiter != old.limiter:
        set_limiter(snapshot.conn, state.buffer_id, settings, state.counters.inserted)
    if settings.alpha != old.alpha:
        rows = snapshot.scan()
        state.strata.reweigh(rows.stratum, rows.loss, settings.epsilon, settings.alpha)
    if settings.eviction != old.eviction:
        _write_order(snapshot)
    if settings.history != old.history:
        prune(snapshot, history_of(settings), group.at)
    if settings.capacity >= snapshot.live:
        return np.empty(0, np.int64)
    decision = plan(snapshot, Newcomers.none())
    state.counters.reservoir_floor = decision.reservoir_floor
    remove(snapshot, (snapshot.find(decision.leaving), replace(group, what="resized", reason=settings.eviction)))
    return decision.leaving


def _check_reservoir(snapshot: Snapshot, settings: Settings) -> None:
    gone = snapshot.state.counters.inserted - snapshot.live
    if settings.eviction == Reservoir.name and gone:
        raise ConfigError(
            f"{gone} episodes have left under {snapshot.settings.eviction!r}, so what is here is no uniform sample of "
            "everything offered and cannot become one: choose 'reservoir' for a new buffer"
        )


def _write_order(snapshot: Snapshot) -> None:
    rows = snapshot.scan()
    newcomers = Newcomers(rows.ids, snapshot.state.strata.domain[rows.stratum], rows.loss)
    groups, keys = order_keys(snapshot, newcomers)
    columns = {"episode_id": rows.ids.tolist(), "eviction_group": groups, "eviction_key": keys}
    snapshot.backend.update(snapshot.conn, replay_metadata, "episode_id", columns)


def drop_buffer(conn: Connection, number: int) -> None:
    """Delete a buffer and everything in it; its number is never used again."""
    low, high = id_range(number)
    for table, key in (
        (replay_metadata, "episode_id"),
        (payload, "episode_id"),
        (episode, "id"),
        (replay_event, "id"),
        (event_group, "id"),
        (stratum, "id"),
        (domain, "id"),
    ):
        conn.execute(delete(table).where(table.c[key].between(low, high)))
    for table in (episode_key, episode_tag, checkpoint, limiter, lease, replay_tally):
        conn.execute(delete(table).where(table.c.buffer_id == number))
    conn.execute(delete(buffer).where(buffer.c.id == number))
