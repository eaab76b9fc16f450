"""The writing of losses after a replay."""

from __future__ import annotations

import time
from typing import Literal, SupportsIndex

import numpy as np

from memstore.buffer.blocks.slots import Ints
from memstore.buffer.session import Session
from memstore.buffer.snapshot import Snapshot
from memstore.config import check_int
from memstore.episodes.inputs import as_losses, check_ids, check_option, invalid_losses, refuse_invalid
from memstore.episodes.log import Group
from memstore.episodes.losses import Replay
from memstore.episodes.losses import update as write_losses
from memstore.sharing import leases
from memstore.types import Batch, Ids, Losses, UpdateResult


def update(
    session: Session,
    replayed: Batch | Ids,
    loss: Losses,
    step: SupportsIndex | None,
    on_invalid: Literal["raise", "skip"],
    consumer: str,
) -> UpdateResult:
    """Write losses and replay events in one commit, and end the lease of the batch if it has one."""
    drawn = replayed if isinstance(replayed, Batch) else None
    ids = replayed.ids if isinstance(replayed, Batch) else check_ids(replayed)
    losses = as_losses(loss, len(ids))
    check_option("on_invalid", on_invalid, "raise", "skip")
    if on_invalid == "raise":
        refuse_invalid(losses, ids.tolist())
    valid = ~invalid_losses(losses)
    group = Group(
        at=time.time(),
        consumer=consumer,
        step=None if step is None else check_int("step", step, minimum=-(2**62)),
        strategy=None if drawn is None else drawn.strategy,
    )
    if not valid.any():
        return UpdateResult(np.empty(0, np.int64), np.empty(0, np.int64), np.unique(ids))
    replay = (
        Replay(ids, losses) if drawn is None else Replay(ids, losses, drawn.probability, drawn.weight, drawn.domain)
    )
    token = None if drawn is None else drawn.lease

    def work(snapshot: Snapshot) -> tuple[Ints, Ints]:
        if token is not None:
            leases.end(snapshot, token)
        return write_losses(snapshot, group, replay if valid.all() else replay.take(valid))

    updated, missing = session.write(work)
    rejected = ids[~valid] if valid.all() else np.setdiff1d(ids[~valid], ids[valid])
    return UpdateResult(updated, missing, rejected)
