"""Draws of whole groups: several episodes that share a value, for learners that compare them with each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memstore.buffer.snapshot import Rows
from memstore.buffer.strata import Floats, Ints
from memstore.draws.arithmetic import log2_sum
from memstore.draws.filtered import Drawable, population_rows
from memstore.draws.population import Demand
from memstore.draws.rejection import smallest_keys
from memstore.draws.strategies import Strategy
from memstore.draws.told import is_settled
from memstore.errors import InvalidValue
from memstore.queries.columns import EVERY, Column, Condition, ExtraColumn
from memstore.values.shown import shown


@dataclass(frozen=True, slots=True)
class Grouped:
    """Rows group after group, the number of each one's group, and log2 of the probability of each one's first draw."""

    rows: Rows
    group: Ints
    log2_probability: Floats

    @staticmethod
    def none() -> Grouped:
        """No group."""
        return Grouped(Rows.none(), np.empty(0, np.int64), np.empty(0))


@dataclass(frozen=True, slots=True)
class Grouping:
    """Which groups: episodes that pass ``where``, by what they have in the column ``by``."""

    by: Column
    where: Condition | None

    def __post_init__(self) -> None:
        if not isinstance(self.by, Column):
            raise InvalidValue(f"by takes a column such as col.domain, got {shown(self.by)}")
        if self.by.source != "episode" or self.by.name == "age":
            raise InvalidValue(f"groups are by what never changes of an episode, and {self.by} does")
        if isinstance(self.by, ExtraColumn) and not self.by.typed:
            raise InvalidValue(f"say which type of {self.by} is meant: .number, .text or .flag")

    def draw(
        self,
        snapshot: Drawable,
        rng: np.random.Generator,
        strategy: Strategy,
        groups: int,
        size: int,
    ) -> Grouped:
        """Draw ``groups`` of the groups that have ``size`` episodes, all alike, and in each so many by the strategy."""
        where = EVERY if self.where is None else self.where
        demand = Demand(where, self.by)
        found = snapshot.known(demand) if is_settled(where) else demand.read(snapshot)
        missing = found.labels.get(None, -1)
        found = found.take(found.label != missing)
        if not len(found.ids):
            return Grouped.none()
        importance, _ = strategy.log2_importance(snapshot, population_rows(snapshot, found))
        possible = np.isfinite(importance)
        found, importance = found.take(possible), importance[possible]
        # In the order of their oldest episodes: how this process came to know them must not matter.
        labels, first, count = np.unique(found.label, return_index=True, return_counts=True)
        complete = labels[np.argsort(first, kind="stable")]
        complete = complete[np.isin(complete, labels[count >= size])]
        if not len(complete):
            return Grouped.none()
        parts, probability = [], []
        for label in rng.choice(complete, min(groups, len(complete)), replace=False).tolist():
            members = np.flatnonzero(found.label == label)
            chosen = members[smallest_keys(rng, importance[members], size)]
            parts.append(found.ids[chosen])
            probability.append(importance[chosen] - log2_sum(importance[members]) - np.log2(len(complete)))
        return Grouped(
            snapshot.looked_up(np.concatenate(parts)),
            np.repeat(np.arange(len(parts)), size),
            np.concatenate(probability),
        )
