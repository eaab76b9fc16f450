"""From a strategy's rows to a batch: payloads, probabilities, importance weights."""

from __future__ import annotations

import numpy as np

from memstore.buffer.session import Session
from memstore.buffer.snapshot import Rows
from memstore.draws.filtered import Drawable
from memstore.draws.strategies import Strategy
from memstore.episodes.payloads import read_blobs, signature_of
from memstore.types import Batch, Normalize


def make_batch(
    snapshot: Drawable,
    strategy: Strategy,
    rows: Rows,
    session: Session,
    beta: float,
    normalize: Normalize,
    *,
    exact: bool,
) -> Batch:
    """Make a batch of the rows that a strategy has drawn; everything is read from the same snapshot."""
    signature = signature_of(snapshot)
    assert signature is not None
    keep = not session.database.transaction_open
    blobs = read_blobs(snapshot, rows.ids.tolist(), session.cache, keep=keep)
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
