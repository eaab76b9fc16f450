"""From a strategy's rows to a batch: payloads, probabilities, importance weights."""

from __future__ import annotations

from typing import Literal

import numpy as np

from memstore.draws.pool import Pool
from memstore.draws.strategy import Drawn, Strategy
from memstore.episodes.insert import read_blobs
from memstore.payload.cache import PayloadCache
from memstore.payload.signature import Signature
from memstore.types import Batch

Normalize = Literal["buffer", "batch"]


def make_batch(
    pool: Pool,
    strategy: Strategy,
    drawn: Drawn,
    signature: Signature,
    cache: PayloadCache,
    *,
    keep: bool,
    beta: float,
    normalize: Normalize,
) -> Batch:
    """Return the drawn episodes with everything a trainer wants to know of them, all from the pool's snapshot."""
    snapshot, episodes, odds = pool.snapshot, drawn.episodes, drawn.odds
    blobs = read_blobs(snapshot, episodes.ids.tolist(), cache, keep=keep)
    weight = np.ones(len(drawn))
    if beta:
        least = odds.log2_least if normalize == "buffer" else odds.log2_importance.min()
        weight = np.exp2(-beta * (odds.log2_importance - least))
    names = snapshot.state.domain_names
    log2_probability = odds.log2_probability
    return Batch(
        ids=episodes.ids,
        payload=signature.decode(blobs),
        loss=episodes.loss,
        domain=np.array([names[code - 1] for code in episodes.domain.tolist()], np.str_),
        age=snapshot.age(episodes.ids),
        replay_count=episodes.replay_count,
        probability=None if log2_probability is None else np.exp2(log2_probability),
        weight=weight,
        strategy=strategy.name,
    )
