"""The removal of episodes by a retention policy: old, unimportant, near-identical, or too many."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import select

from memstore.buffer.blocks.slots import Floats, Ints
from memstore.buffer.overlay import live_episode
from memstore.buffer.session import Session
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.config import check_float, check_int, check_seconds
from memstore.episodes.insert import remove
from memstore.episodes.log import Group
from memstore.errors import ConfigError
from memstore.payload.signature import Signature
from memstore.types import Retention, RetentionPolicy, Time
from memstore.upkeep.similar import near_identical
from memstore.values.shown import shown
from memstore.values.times import check_time

Bools = NDArray[np.bool_]

TOLERANCE = 1e-3
"""This is the tolerance of ``consolidate_similar=True``."""


def consolidate(
    session: Session, given: RetentionPolicy, now: Time | None, consumer: str, *, dry_run: bool
) -> Retention:
    """Remove the episodes that the policy does not keep, in one commit, or only count them.

    The search for near-identical payloads runs before the lock is taken, so that other writers do not wait for it.
    """
    policy = checked_policy(given)
    at = time.time() if now is None else check_time("now", now)
    twins = session.read(lambda s: find_twins(s, s.settings.signature, policy, at))
    if dry_run:
        return session.read(lambda s: retain(s, policy, at, twins, None))[0]
    group = Group(time.time(), consumer, "consolidated")
    result, gone = session.write(lambda s: retain(s, policy, at, twins, group))
    session.cache.drop(gone.ids.tolist())
    return result


def checked_policy(policy: RetentionPolicy) -> RetentionPolicy:
    """Return the policy with its tolerance as a number or None.

    Raises
    ------
    ConfigError
        A limit or a weight is out of its range.
    """
    if not isinstance(policy, RetentionPolicy):
        raise ConfigError(f"consolidate takes a RetentionPolicy, got {shown(policy)}")
    if policy.max_age is not None:
        policy = replace(policy, max_age=check_seconds("max_age", policy.max_age))
    if policy.max_episodes is not None:
        check_int("max_episodes", policy.max_episodes, minimum=0)
    if policy.min_importance is not None and check_float("min_importance", policy.min_importance) > 1:
        raise ConfigError(f"min_importance must be in [0, 1], got {shown(policy.min_importance)}")
    if policy.half_life is not None:
        check_float("half_life", policy.half_life, exclusive=True)
    weights = [check_float(name, getattr(policy, name)) for name in ("hardness", "recency", "use")]
    if not 0 < sum(weights) < math.inf:
        raise ConfigError("one of the weights hardness, recency and use must be above 0")
    tolerance = policy.consolidate_similar
    if tolerance is None or tolerance is False:
        return replace(policy, consolidate_similar=None)
    tolerance = TOLERANCE if tolerance is True else check_float("consolidate_similar", tolerance)
    if tolerance >= 1:
        raise ConfigError(f"consolidate_similar must be in [0, 1), got {tolerance}: at 1 everything is alike")
    return replace(policy, consolidate_similar=tolerance)


def importance(rows: Rows, newest: int, capacity: int, policy: RetentionPolicy) -> Floats:
    """Return the importance of each row, as ``RetentionPolicy`` defines it. ``newest`` is the last inserted id."""
    loss = np.where(np.isnan(rows.loss), np.inf, rows.loss)
    hardness = 1 - 1 / (1 + loss)
    recency = np.exp2(-(newest - rows.ids) / (policy.half_life or capacity))
    use = 1 - 1 / (1 + rows.replay_count)
    total = policy.hardness * hardness + policy.recency * recency + policy.use * use
    blended: Floats = total / (policy.hardness + policy.recency + policy.use)
    return blended


def find_twins(
    snapshot: Snapshot, signature: Signature | None, policy: RetentionPolicy, now: float
) -> list[tuple[int, int]]:
    """Return pairs (leaving, staying) of near-identical episodes, among the episodes that no other limit removes."""
    if policy.consolidate_similar is None or signature is None:
        return []
    rows, value, old, unimportant = _judged(snapshot, policy, now)
    staying = ~(old | unimportant)
    order = np.lexsort((rows.ids[staying], -value[staying]))
    domains = rows.domain[staying]
    return near_identical(
        snapshot, signature, rows.ids[staying][order], domains[order], float(policy.consolidate_similar)
    )


def retain(
    snapshot: Snapshot,
    policy: RetentionPolicy,
    now: float,
    twins: list[tuple[int, int]],
    group: Group | None,
) -> tuple[Retention, Rows]:
    """Remove the episodes that the policy does not keep. Without a ``group`` for the history, only count them.

    ``twins`` holds the pairs that ``find_twins`` found in an earlier snapshot. The first episode of a pair leaves if
    the second still stays.

    Returns
    -------
    Retention
    Rows
        The rows that were removed, or would be removed.
    """
    limits = (policy.max_age, policy.max_episodes, policy.min_importance, policy.consolidate_similar)
    if limits == (None,) * 4:
        return Retention(0, 0, 0, 0, snapshot.live, group is None), Rows.none()
    rows, value, old, unimportant = _judged(snapshot, policy, now)
    unimportant &= ~old
    staying = ~(old | unimportant)
    similar = np.zeros(len(rows), bool)
    if twins:
        leaving, leader = np.array(twins, np.int64).T
        similar = staying & np.isin(rows.ids, leaving[np.isin(leader, rows.ids[staying])])
        staying &= ~similar
    over = np.zeros(len(rows), bool)
    if policy.max_episodes is not None:
        candidates = np.flatnonzero(staying)
        surplus = max(0, len(candidates) - policy.max_episodes)
        least = np.lexsort((rows.ids[candidates], value[candidates]))[:surplus]
        over[candidates[least]] = True
    reasons = {"too_old": old, "unimportant": unimportant, "similar": similar, "over_count": over}
    parts = {reason: rows.take(which) for reason, which in reasons.items()}
    if group is not None:
        remove(snapshot, *((part, group._replace(reason=reason)) for reason, part in parts.items()))
    counts = {reason: len(part) for reason, part in parts.items()}
    gone = Rows.join(list(parts.values()))
    return Retention(**counts, kept=len(rows) - len(gone), dry_run=group is None), gone


def _judged(snapshot: Snapshot, policy: RetentionPolicy, now: float) -> tuple[Rows, Floats, Bools, Bools]:
    """Return every live row, its importance, a flag if it is too old, and a flag if it is too unimportant."""
    rows = snapshot.scan()
    value = importance(rows, snapshot.newest_possible(), snapshot.settings.capacity, policy)
    old = np.zeros(len(rows), bool)
    if policy.max_age is not None:
        old = np.isin(rows.ids, _older(snapshot, now - policy.max_age))
    return rows, value, old, value < (policy.min_importance or 0.0)


def _older(snapshot: Snapshot, than: float) -> Ints:
    c = live_episode(snapshot).c
    query = select(c.id).where(c.buffer_id == snapshot.state.buffer_id, c.timestamp < than)
    return np.array(snapshot.conn.scalars(query).all(), np.int64)
