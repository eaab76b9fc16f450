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
    """Train on new examples and a replayed batch, interleaved, in steps of at most ``batch_size`` examples.

    Returns
    -------
    losses : float64 array
        The loss of each example before its step, the new examples first.
    steps : int
        Gradient steps taken.
    """
    new = len(inputs)
    weight = np.ones(new)
    order = np.arange(new)
    if batch is not None:
        inputs = _join("input", inputs, batch)
        targets = _join("target", targets, batch)
        # With the mean 1, replayed examples count as much as new ones. Weights that are scaled by the buffer's rarest
        # episode are usual if a step has only replayed examples. Beside new examples they would vanish.
        weight = np.concatenate([weight, batch.weight * (len(batch) / batch.weight.sum())])
        # Spread both evenly, so that every step has them in the same proportion.
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
    return _field("input", batch), _field("target", batch)


def check_losses(losses: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the losses. Raise InvalidValue if one is NaN or infinite."""
    if not np.all(np.isfinite(losses)):
        raise InvalidValue(
            "the model's loss is NaN or infinite: it diverged, or the data are not finite; lower the "
            "learning rate or scale the inputs"
        )
    return losses


def _join(name: str, new: NDArray[Any], batch: Batch) -> NDArray[Any]:
    stored = _field(name, batch)
    if stored.shape[1:] != new.shape[1:]:
        raise InvalidValue(
            f"the new examples have {name} of shape {new.shape[1:]}, the episodes in the memory {stored.shape[1:]}"
        )
    return np.concatenate([new, stored])


def _field(name: str, batch: Batch) -> NDArray[Any]:
    stored = batch.payload.get(name)
    if not isinstance(stored, np.ndarray):
        raise InvalidValue(
            f"the memory's episodes have no array {name!r} of fixed shape; give the learner a buffer of its own"
        )
    return stored
