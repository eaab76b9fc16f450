"""The choice of the episodes to replay: draws from the memory, among which the model may choose."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.errors import MemoryEmpty
from memstore.learner.config import OnlineLearnerConfig
from memstore.learner.fit import arrays_of, check_losses
from memstore.learner.models.model import Model, Penalty
from memstore.memory import EpisodicMemory
from memstore.types import Batch


def draw(memory: EpisodicMemory, config: OnlineLearnerConfig, count: int) -> Batch | None:
    """Draw by the configured strategy, without replacement. Return None if the memory is empty."""
    try:
        return memory.sample(count, strategy=config.build_strategy(), beta=config.beta, normalize="batch")
    except MemoryEmpty:
        return None


def retrieve(
    memory: EpisodicMemory,
    config: OnlineLearnerConfig,
    count: int,
    model: Model,
    inputs: NDArray[Any],
    targets: NDArray[Any],
    penalty: Penalty | None,
) -> Batch | None:
    """Return the episodes to replay with these new examples, by ``config.retrieval``. The model does not change."""
    if config.retrieval == "draw":
        return draw(memory, config, count)
    candidates = draw(memory, config, max(count, config.retrieval_candidates))
    if candidates is None or len(candidates) <= count:
        return candidates
    harm = interference(model, inputs, targets, candidates, penalty)
    return candidates.take(np.argsort(-harm, kind="stable")[:count])


def interference(
    model: Model, inputs: NDArray[Any], targets: NDArray[Any], candidates: Batch, penalty: Penalty | None = None
) -> NDArray[np.float64]:
    """Return how much a step on these examples alone would raise the loss of each candidate, shape (candidates,).

    The formula is eq. 2 of Aljundi et al. 2019. The step is taken and undone, in the optimizer too.
    """
    stored = arrays_of(candidates)
    before = model.state_dict()
    losses = model.loss(*stored)
    try:
        model.step(inputs, targets, penalty=penalty)
        after = model.loss(*stored)
    finally:
        model.load_state_dict(before)
    return check_losses(np.asarray(after - losses, np.float64))
