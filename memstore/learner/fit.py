"""Gradient steps over new and replayed examples together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.errors import InvalidValue
from memstore.learner.models.model import Model, Penalty
from memstore.types import Batch


def fit(
    model: Model,
    inputs: NDArray[Any],
    targets: NDArray[Any],
    batch: Batch | None,
    *,
    batch_size: int,
    penalty: Penalty | None,
) -> tuple[NDArray[np.float64], int]:
    """Train on new examples and a replayed batch, interleaved; return their losses, new first, and the steps taken."""
    new = len(inputs)
    weight = np.ones(new)
    order = np.arange(new)
    if batch is not None:
        inputs = _joined("input", inputs, batch)
        targets = _joined("target", targets, batch)
        # Mean 1: together they count as many as they are. Scaled by the buffer's rarest episode, as usual
        # where a step holds nothing else, they would vanish beside the new ones.
        weight = np.concatenate([weight, batch.weight * (len(batch) / batch.weight.sum())])
        # Spread both evenly, so that every step sees them in the same proportion.
        place = np.concatenate([(np.arange(n) + 0.5) / n for n in (new, len(batch))])
        order = np.argsort(place, kind="stable")
    losses = np.empty(len(inputs))
    steps = range(0, len(order), batch_size)
    for start in steps:
        rows = order[start : start + batch_size]
        losses[rows] = model.step(inputs[rows], targets[rows], weight[rows], penalty=penalty)
    return check_losses(losses), len(steps)


def arrays_of(batch: Batch) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return inputs and targets of a batch from the memory."""
    return _stored("input", batch), _stored("target", batch)


def check_losses(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the losses, or raise InvalidValue when one is NaN or infinite."""
    if not np.all(np.isfinite(losses)):
        raise InvalidValue(
            "the model's loss is NaN or infinite: it diverged, or the data are not finite; lower the "
            "learning rate or scale the inputs"
        )
    return losses


def _joined(name: str, new: NDArray[Any], batch: Batch) -> NDArray[Any]:
    stored = _stored(name, batch)
    if stored.shape[1:] != new.shape[1:]:
        raise InvalidValue(f"{name} of shape {new.shape[1:]}: the episodes in the memory have {stored.shape[1:]}")
    return np.concatenate([new, stored])


def _stored(name: str, batch: Batch) -> NDArray[Any]:
    stored = batch.payload.get(name)
    if not isinstance(stored, np.ndarray):
        raise InvalidValue(f"the memory's episodes have no array {name!r} of fixed shape; use a memory of its own")
    return stored
