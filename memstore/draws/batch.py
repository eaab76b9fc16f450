"""The options of a draw, and the batch that it gives: payloads, probabilities, importance weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memstore.buffer.session import Session
from memstore.config import check_float
from memstore.draws.pool import Pool
from memstore.draws.strategy import Drawn, Strategy
from memstore.episodes.inputs import check_count, check_option
from memstore.episodes.payloads import read_payloads
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


def make_batch(pool: Pool, strategy: Strategy, drawn: Drawn, session: Session, options: DrawOptions) -> Batch:
    """Return the drawn episodes as a batch; everything in it is read from the pool's snapshot.

    An importance weight is ``(p / p_min) ** -beta`` (Schaul et al. 2016, section 3.4).
    """
    snapshot, episodes, odds = pool.snapshot, drawn.episodes, drawn.odds
    keep = not session.database.transaction_open
    payload = read_payloads(snapshot, episodes.ids, session.cache, keep=keep)
    weight = np.ones(len(drawn))
    if options.beta:
        least = odds.log2_least if options.normalize == "buffer" else odds.log2_importance.min()
        weight = np.exp2(-options.beta * (odds.log2_importance - least))
    names = snapshot.state.domain_names
    log2_probability = odds.log2_probability
    return Batch(
        ids=episodes.ids,
        payload=payload,
        loss=episodes.loss,
        domain=np.array([names[code - 1] for code in episodes.domain.tolist()], np.str_),
        age=snapshot.age(episodes.ids),
        replay_count=episodes.replay_count,
        probability=None if log2_probability is None else np.exp2(log2_probability),
        weight=weight,
        strategy=strategy.name,
    )
