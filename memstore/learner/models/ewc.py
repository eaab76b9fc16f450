"""Elastic weight consolidation. It holds parameters that mattered for past examples near their old values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.errors import InvalidValue
from memstore.learner.models.model import Array, Model, Penalty


@dataclass(frozen=True, slots=True)
class EWCStats:
    """Statistics of elastic weight consolidation.

    Attributes
    ----------
    param_count : int
        Count of the numbers in the protected parameters.
    consolidations : int
        Number of Fisher estimates so far.
    samples_used : int
        Number of episodes that the estimates were made from.
    fisher_mean, fisher_max, fisher_min : float
        Mean, largest and least entry of the accumulated Fisher diagonal. 0 before the first estimate.
    is_active : bool
        True if steps are penalised.
    """

    param_count: int
    consolidations: int
    samples_used: int
    fisher_mean: float
    fisher_max: float
    fisher_min: float
    is_active: bool


@dataclass(frozen=True, slots=True, eq=False)
class EWC:
    """The accumulated Fisher diagonal and the parameters at its centre. Every consolidation replaces this object.

    The penalty is ``strength / 2 * sum(F * (parameter - centre) ** 2)`` (Kirkpatrick et al. 2017, eq. 3). It has the
    online form: one centre, which is the parameters at the last consolidation, and ``F = decay * F + new estimate``
    (Schwarz et al. 2018, section 2.2). The estimate is the empirical one: the mean over episodes of the squared
    gradient of each episode's own loss at its stored target.

    Attributes
    ----------
    strength : float
        The lambda of the papers. 0 switches the penalty off. No value makes a step overshoot; see `Penalty`.
    decay : float
        The gamma of the papers, in [0, 1].
    fisher, centre : dict of str to array
        Arrays by the names of the model's parameters. Empty before the first consolidation.
    consolidations, samples_used : int
        See `EWCStats`.
    """

    strength: float
    decay: float
    fisher: Mapping[str, Array]
    centre: Mapping[str, Array]
    consolidations: int = 0
    samples_used: int = 0

    @classmethod
    def start(cls, strength: float, decay: float) -> EWC:
        """Return the state before any consolidation. It has no penalty."""
        return cls(strength, decay, {}, {})

    def after_consolidation(self, model: Model, inputs: NDArray[Any], targets: NDArray[Any]) -> EWC:
        """Return the state after a consolidation at the model's present parameters, on these n > 0 examples.

        Raises
        ------
        InvalidValue
            A gradient is NaN or infinite.
        """
        fresh = fisher_diagonal(model, inputs, targets)
        if not all(np.all(np.isfinite(value)) for value in fresh.values()):
            raise InvalidValue("the Fisher diagonal is not finite: the model diverged; lower the learning rate")
        return EWC(
            self.strength,
            self.decay,
            {name: value + self.decay * self.fisher.get(name, 0.0) for name, value in fresh.items()},
            {name: np.array(value) for name, value in model.state_dict()["parameters"].items() if name in fresh},
            self.consolidations + 1,
            self.samples_used + len(inputs),
        )

    def penalty(self) -> Penalty | None:
        """Return the penalty of a step. None before the first consolidation."""
        if not self.fisher or not self.strength:
            return None
        return Penalty({name: self.strength * value for name, value in self.fisher.items()}, self.centre)

    def stats(self) -> EWCStats:
        """Return counts, and the mean and the range of the Fisher diagonal."""
        values = np.concatenate([np.ravel(value) for value in self.fisher.values()]) if self.fisher else np.zeros(1)
        return EWCStats(
            param_count=sum(np.size(value) for value in self.centre.values()),
            consolidations=self.consolidations,
            samples_used=self.samples_used,
            fisher_mean=float(values.mean(dtype=np.float64)),
            fisher_max=float(values.max()),
            fisher_min=float(values.min()),
            is_active=bool(self.fisher) and self.strength > 0,
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the state in the form that a checkpoint stores."""
        return {
            "strength": self.strength,
            "decay": self.decay,
            "fisher": dict(self.fisher),
            "centre": dict(self.centre),
            "consolidations": self.consolidations,
            "samples_used": self.samples_used,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], model_state: Mapping[str, Any]) -> EWC:
        """Return the state that `to_dict` wrote, for the model whose ``state_dict`` was stored with it.

        Raises
        ------
        InvalidValue
            A field is missing, or an array has not the shape of its parameter.
        """
        try:
            made = cls(**values)
            parameters = model_state["parameters"]
            for group in (made.fisher, made.centre):
                fits = {name: value.shape == parameters[name].shape for name, value in group.items()}
                if not all(fits.values()) or group.keys() != made.fisher.keys():
                    raise InvalidValue("the stored Fisher diagonal is not that of the stored model")
        except (TypeError, KeyError, AttributeError) as error:
            raise InvalidValue(f"the stored elastic weight consolidation is incomplete: {error}") from error
        return made


def fisher_diagonal(model: Model, inputs: NDArray[Any], targets: NDArray[Any]) -> dict[str, Array]:
    """Return the mean of the squared gradients of n > 0 examples, by parameter.

    This takes one call of ``model.gradients`` for each example, because the square of a mean gradient is another
    number.
    """
    total: dict[str, Array] = {}
    for row in range(len(inputs)):
        _, gradients = model.gradients(inputs[row : row + 1], targets[row : row + 1])
        for name, value in gradients.items():
            total[name] = total.get(name, 0.0) + np.square(value)
    return {name: value / len(inputs) for name, value in total.items()}
