"""The options of a draw, and the batch it gives: payloads, probabilities, importance weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memstore.buffer.session import Session
from memstore.buffer.snapshot import Rows
from memstore.config import check_float
from memstore.draws.filtered import Drawable
from memstore.draws.strategies import Strategy
from memstore.episodes.inputs import check_count, check_option
from memstore.episodes.payloads import read_blobs, signature_of
from memstore.queries.columns import Condition
from memstore.types import Batch, Normalize


@dataclass(frozen=True, slots=True)
class DrawOptions:
    """The options of one call of ``sample`` or ``lease``; a ``strategy`` of None stands for the default."""

    count: int
    strategy: Strategy | str | None = None
    alpha: float | None = None
    beta: float = 0.0
    normalize: Normalize = "buffer"
    exact: bool = False
    where: Condition | None = None
    replacement: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "count", check_count(self.count))
        object.__setattr__(self, "beta", check_float("beta", self.beta))
        check_option("normalize", self.normalize, "buffer", "batch")


def make_batch(snapshot: Drawable, strategy: Strategy, rows: Rows, session: Session, options: DrawOptions) -> Batch:
    """Make a batch of the rows that a strategy has drawn; everything is read from the same snapshot."""
    signature = signature_of(snapshot)
    assert signature is not None
    keep = not session.database.transaction_open
    blobs = read_blobs(snapshot, rows.ids.tolist(), session.cache, keep=keep)
    log2_probability = strategy.log2_probability(snapshot, rows, exact=options.exact)
    weight = np.ones(len(rows))
    if options.beta:
        importance, smallest = strategy.log2_importance(snapshot, rows)
        least = smallest if options.normalize == "buffer" else importance.min()
        weight = np.exp2(-options.beta * (importance - least))
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
