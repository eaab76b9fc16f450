"""From a strategy's rows to a batch: payloads, probabilities, importance weights."""

from __future__ import annotations

from typing import Literal

import numpy as np

from memstore.buffer.snapshot import Rows
from memstore.draws.filtered import Drawable
from memstore.draws.strategies import Strategy
from memstore.episodes.insert import read_blobs
from memstore.payload.cache import PayloadCache
from memstore.payload.signature import Signature
from memstore.types import Batch

Normalize = Literal["buffer", "batch"]


def make_batch(
    snapshot: Drawable,
    strategy: Strategy,
    rows: Rows,
    signature: Signature,
    cache: PayloadCache,
    *,
    keep: bool,
    beta: float,
    normalize: Normalize,
    exact: bool,
) -> Batch:
    """The rows with everything a trainer wants to know of them, all read from the same snapshot."""
    blobs = read_blobs(snapshot, rows.ids.tolist(), cache, keep=keep)
    log2_probability = strategy.log2_probability(snapshot, rows, exact=exact)
    weight = np.ones(len(rows))
    if beta:
        importance, smallest = strategy.log2_importance(snapshot, rows)
        weight = np.exp2(-beta * (importance - (smallest if normalize == "buffer" else importance.min())))
    names = snapshot.state.domain_names
    domains = snapshot.state.strata.domain[rows.stratum].tolist()
    return Batch(
        ids=rows.ids,
        payload=signature.decode(blobs),
        loss=rows.loss,
        domain=np.array([names[code - 1] for code in domains], np.str_),
        age=snapshot.age(rows.ids),
        replay_count=rows.replay_count,
        probability=None if log2_probability is None else np.exp2(log2_probability),
        weight=weight,
        strategy=strategy.name,
    )
