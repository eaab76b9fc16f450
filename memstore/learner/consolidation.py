"""The consolidation of the model: extra steps on past episodes, then a new estimate of the weights to protect."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from memstore.errors import MemoryEmpty
from memstore.learner.config import OnlineLearnerConfig
from memstore.learner.fit import arrays_of, check_losses
from memstore.learner.models.ewc import EWC
from memstore.learner.models.model import Model
from memstore.memory import EpisodicMemory
from memstore.types import Batch, ReplayStrategy


@dataclass(frozen=True, slots=True)
class Consolidation:
    """The effect of one consolidation on the model. A `memstore.Retention` holds its effect on the memory.

    Attributes
    ----------
    ewc : EWC or None
        The state of elastic weight consolidation afterwards.
    rehearsed : tuple of (Batch, losses)
        The episodes of each extra step, and their losses before that step.
    """

    ewc: EWC | None
    rehearsed: tuple[tuple[Batch, NDArray[np.float64]], ...]


def consolidate_model(
    memory: EpisodicMemory, model: Model, config: OnlineLearnerConfig, ewc: EWC | None
) -> Consolidation:
    """Take the extra steps on past episodes, then estimate the Fisher diagonal at the weights that they lead to."""
    penalty = None if ewc is None else ewc.penalty()
    rehearsed: list[tuple[Batch, NDArray[np.float64]]] = []
    for _ in range(config.integrate_steps):
        batch = _sample_past(memory, config.batch_size, ReplayStrategy.DOMAIN_BALANCED)
        if batch is None:
            break
        rehearsed.append((batch, check_losses(model.step(*arrays_of(batch), penalty=penalty))))
    if ewc is not None:
        past = _sample_past(memory, config.ewc_samples, ReplayStrategy.UNIFORM)
        ewc = ewc if past is None else ewc.after_consolidation(model, *arrays_of(past))
    return Consolidation(ewc, tuple(rehearsed))


def _sample_past(memory: EpisodicMemory, count: int, strategy: str) -> Batch | None:
    try:
        return memory.sample(count, strategy=strategy)
    except MemoryEmpty:
        return None
