"""Draws of whole groups. A group is several episodes that share a value, for learners that compare them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memstore.draws.arithmetic import log2_sum, smallest_keys
from memstore.draws.pool import Pool, Request
from memstore.draws.population import Demand
from memstore.draws.strategy import Drawn, Odds, Strategy
from memstore.errors import InvalidValue
from memstore.queries.columns import EVERY, Column, Condition, ExtraColumn
from memstore.values.shown import shown


@dataclass(frozen=True, slots=True)
class Grouping:
    """The groups of the episodes that pass ``where``. Episodes of one group have the same value in column ``by``."""

    by: Column
    where: Condition | None

    def __post_init__(self) -> None:
        if not isinstance(self.by, Column):
            raise InvalidValue(f"by takes a column such as col.domain, got {shown(self.by)}")
        if self.by.source != "episode" or self.by.name == "age":
            raise InvalidValue(
                f"by takes a column with values that never change, such as col.domain; the values of {self.by} change"
            )
        if isinstance(self.by, ExtraColumn) and not self.by.typed:
            raise InvalidValue(f"say which type of {self.by} is meant: .number, .text or .flag")

    def draw(self, pool: Pool, strategy: Strategy, request: Request, size: int) -> Drawn:
        """Draw ``request.count`` groups, and ``size`` episodes of each group by the strategy.

        Only groups with at least ``size`` episodes are drawn, all with the same probability. Episodes come group after
        group. The probability of an episode is that of a first draw: the probability of its group times that of the
        episode within the group.
        """
        found = pool.find_all(Demand(EVERY if self.where is None else self.where, self.by))
        found = found.take(found.label != found.labels.get(None, -1))
        odds = np.empty(0)
        if len(found):
            odds = strategy.odds(pool, found, exact=False, weighted=True).log2_importance
            possible = np.isfinite(odds)
            found, odds = found.take(possible), odds[possible]
        # Groups are in the order of their oldest episodes. So it does not matter how this process learned of them.
        labels, first, count = np.unique(found.label, return_index=True, return_counts=True)
        complete = labels[np.argsort(first, kind="stable")]
        complete = complete[np.isin(complete, labels[count >= size])]
        if not len(complete):
            return Drawn(found.take(complete), Odds(np.empty(0), None, np.nan))
        drawn, probability = [], []
        for label in request.rng.choice(complete, min(request.count, len(complete)), replace=False).tolist():
            members = np.flatnonzero(found.label == label)
            chosen = members[smallest_keys(request.rng, odds[members], size)]
            drawn.append(chosen)
            probability.append(odds[chosen] - log2_sum(odds[members]) - np.log2(len(complete)))
        return Drawn(found.take(np.concatenate(drawn)), Odds(np.concatenate(probability), 0.0, np.nan))
