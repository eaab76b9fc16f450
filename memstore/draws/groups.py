"""Draws of whole groups. A group is several episodes that share a value, for learners that compare them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from memstore.buffer.blocks.slots import NO_ID, Ints
from memstore.buffer.snapshot import Rows
from memstore.draws.arithmetic import log2_sum, smallest_keys
from memstore.draws.pool import Pool, Request
from memstore.draws.strategy import Drawn, Odds, Strategy
from memstore.errors import InvalidValue
from memstore.queries.columns import Column, Condition, ExtraColumn
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

        Parameters
        ----------
        pool : Pool
            The whole buffer.
        """
        found, label = self._labelled(pool)
        odds = np.empty(0)
        if len(found):
            odds = strategy.odds(pool, found, exact=False, weighted=True).log2_importance
            possible = np.isfinite(odds)
            found, label, odds = found.take(possible), label[possible], odds[possible]
        complete = _complete(label, found.ids, size)
        if not len(complete):
            return Drawn(found.take(complete), Odds(np.empty(0), None, np.nan))
        drawn, probability = [], []
        chosen = request.rng.choice(complete, min(request.count, len(complete)), replace=False)
        for members in _members(label, found.ids, chosen):
            places = members[smallest_keys(request.rng, odds[members], size)]
            drawn.append(places)
            probability.append(odds[places] - log2_sum(odds[members]) - np.log2(len(complete)))
        return Drawn(found.take(np.concatenate(drawn)), Odds(np.concatenate(probability), 0.0, np.nan))

    def _labelled(self, pool: Pool) -> tuple[Rows, Ints]:
        """Return the passing episodes that have a value in the column, and a label of the value of each."""
        found = pool.among(self.where).everyone()
        if self.by.name == "id":
            return found, np.arange(len(found))
        if self.by.name == "domain":
            return found, found.domain
        label = pool.labels(self.by, found.ids)
        return found.take(label >= 0), label[label >= 0]


def _complete(label: Ints, ids: Ints, size: int) -> Ints:
    """Return the labels of the groups with at least ``size`` members, in the order of their oldest members.

    The order does not tell how this process learned of the labels.
    """
    complete = np.flatnonzero(np.bincount(label) >= size)
    oldest = np.full(int(label.max(initial=0)) + 1, NO_ID)
    np.minimum.at(oldest, label, ids)
    return complete[np.argsort(oldest[complete])]


def _members(label: Ints, ids: Ints, groups: Ints) -> list[Ints]:
    """Return the places of the members of each of these groups, the oldest member first."""
    turn = np.full(int(label.max()) + 1, -1)
    turn[groups] = np.arange(len(groups))
    members = np.flatnonzero(turn[label] >= 0)
    turns = turn[label[members]]
    return np.split(members[np.lexsort((ids[members], turns))], np.cumsum(np.bincount(turns))[:-1])
