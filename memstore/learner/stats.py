"""The report of a learner about a call, and its counts. Both are records that a committed call replaces."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from memstore.learner.example import MIN_LEVEL, OnlineExample
from memstore.learner.stored import exact_fields

DECAY = 0.99
"""The running average of the loss has this decay for each example."""
WINDOW = 100
"""From this number of examples on, the running average counts for ``best_loss``: 1 / (1 - DECAY)."""


@dataclass(frozen=True, slots=True)
class LearnResult:
    """The result of one learning call.

    Attributes
    ----------
    ids : tuple of int
        Ids of the new examples' episodes, in the order of the examples.
    losses : tuple of float
        Losses of the new examples, measured before they were trained on.
    replayed_ids : tuple of int
        Ids of the replayed episodes.
    replay_losses : tuple of float
        Losses of the replayed episodes, measured before they were trained on.
    """

    ids: tuple[int, ...] = ()
    losses: tuple[float, ...] = ()
    replayed_ids: tuple[int, ...] = ()
    replay_losses: tuple[float, ...] = ()

    @property
    def loss(self) -> float | None:
        """Mean loss over all trained examples, new and replayed. None if there were none."""
        trained = self.losses + self.replay_losses
        return math.fsum(trained) / len(trained) if trained else None


@dataclass(frozen=True, slots=True)
class OnlineLearnerStats:
    """Counts over a learner's life, restarts included.

    Attributes
    ----------
    examples_seen : int
        Number of new examples learned. Replayed examples do not count.
    batches_trained : int
        Number of learning calls that trained something. This number is the ``step`` of the replay history.
    gradient_steps : int
        Number of optimizer steps.
    consolidations : int
    avg_loss : float or None
        Exponential average (decay 0.99 per example, free of start-up bias) of the losses of new examples. Each loss is
        measured before the model trains on the example. None before the first.
    best_loss : float or None
        Lowest ``avg_loss`` after any example from the 100th on, so that every compared average has the same window.
    domain_counts : dict of str to int
        New examples of each domain.
    replay_counts : dict of str to int
        Replayed examples of each domain.
    current_level : int
        Level of the curriculum. Without a curriculum, level of the newest example, 1 before any.
    replay_debt : float
        Number of replayed examples due, minus the number drawn, in (-1, 0]. It is the part that rounding up has drawn
        too early.
    """

    examples_seen: int = 0
    batches_trained: int = 0
    gradient_steps: int = 0
    consolidations: int = 0
    avg_loss: float | None = None
    best_loss: float | None = None
    domain_counts: dict[str, int] = field(default_factory=dict)
    replay_counts: dict[str, int] = field(default_factory=dict)
    current_level: int = MIN_LEVEL
    replay_debt: float = 0.0

    def after(
        self,
        examples: Sequence[OnlineExample],
        losses: Sequence[float],
        *,
        replayed: Iterable[str],
        steps: int,
        debt: float,
    ) -> OnlineLearnerStats:
        """Return the statistics after one learning call, which replayed examples of the domains ``replayed``."""
        average, best, seen = self.avg_loss, self.best_loss, self.examples_seen
        for loss in losses:
            seen += 1
            share = (1 - DECAY) / (1 - DECAY**seen)
            average = loss if average is None else average + share * (loss - average)
            if seen >= WINDOW:
                best = average if best is None else min(best, average)
        return replace(
            self,
            examples_seen=seen,
            batches_trained=self.batches_trained + 1,
            gradient_steps=self.gradient_steps + steps,
            avg_loss=average,
            best_loss=best,
            domain_counts=_add_counts(self.domain_counts, (example.domain for example in examples)),
            replay_counts=_add_counts(self.replay_counts, replayed),
            current_level=examples[-1].level,
            replay_debt=debt,
        )

    def after_consolidation(self, steps: int) -> OnlineLearnerStats:
        """Return the statistics after a consolidation that took this many gradient steps."""
        return replace(self, consolidations=self.consolidations + 1, gradient_steps=self.gradient_steps + steps)

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain dicts and numbers."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> OnlineLearnerStats:
        """Return the statistics that `to_dict` wrote.

        Raises
        ------
        InvalidValue
            A field is missing or unknown.
        """
        return cls(**exact_fields(cls, values, "statistics"))


def _add_counts(counts: Mapping[str, int], domains: Iterable[str]) -> dict[str, int]:
    total = dict(counts)
    for domain in domains:
        total[domain] = total.get(domain, 0) + 1
    return total
