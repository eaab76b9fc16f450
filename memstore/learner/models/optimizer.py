"""The optimizers of the numpy model: SGD with momentum, and Adam."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from memstore.errors import ConfigError

Parameters = Mapping[str, NDArray[Any]]
OptimizerName = Literal["sgd", "adam"]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
"""These are Adam's decays and its guard against division by zero, as its authors recommend (section 2)."""


class Optimizer:
    """An optimizer that changes its parameters in place.

    Parameters
    ----------
    name : {"sgd", "adam"}
        ``"sgd"`` is ``v = momentum * v + gradient; parameter -= learning_rate * v``. ``"adam"`` is algorithm 1 of
        Kingma & Ba 2015.
    parameters : dict of str to array
        The arrays that `apply` changes. They are held, not copied.
    learning_rate, momentum : float
        Adam has its own kind of momentum, so ``momentum`` must be 0 there.

    Attributes
    ----------
    slots : dict of str to dict of str to array
        Running averages, each with one array for each parameter.
    steps : int
        Steps taken so far.
    """

    def __init__(
        self, name: OptimizerName, parameters: Parameters, *, learning_rate: float, momentum: float = 0.0
    ) -> None:
        if name not in get_args(OptimizerName):
            raise ConfigError(f"optimizer={name!r}: choose one of {', '.join(get_args(OptimizerName))}")
        if not (math.isfinite(learning_rate) and learning_rate > 0):
            raise ConfigError(f"learning_rate={learning_rate}: must be finite and > 0")
        if not 0 <= momentum < 1:
            raise ConfigError(f"momentum={momentum}: must be in [0, 1)")
        if name == "adam" and momentum:
            raise ConfigError(f"momentum={momentum}: Adam has its own; leave momentum at 0, or choose sgd")
        self.name = name
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.steps = 0
        self.slots = {
            slot: {key: np.zeros_like(value) for key, value in parameters.items()}
            for slot in (("velocity",) if name == "sgd" else ("mean", "square"))
        }
        self._parameters = parameters

    def apply(self, gradients: Parameters) -> None:
        """Take one step."""
        self.steps += 1
        for name, parameter in self._parameters.items():
            if self.name == "sgd":
                self._descend(name, parameter, gradients[name])
            else:
                self._adapt(name, parameter, gradients[name])

    def _descend(self, name: str, parameter: NDArray[Any], gradient: NDArray[Any]) -> None:
        velocity = self.slots["velocity"][name]
        velocity *= parameter.dtype.type(self.momentum)
        velocity += gradient
        parameter -= parameter.dtype.type(self.learning_rate) * velocity

    def _adapt(self, name: str, parameter: NDArray[Any], gradient: NDArray[Any]) -> None:
        kind = parameter.dtype.type
        mean, square = self.slots["mean"][name], self.slots["square"][name]
        mean += kind(1 - BETA1) * (gradient - mean)
        square += kind(1 - BETA2) * (np.square(gradient) - square)
        rate = kind(self.learning_rate / (1 - BETA1**self.steps))
        parameter -= rate * mean / (np.sqrt(square / kind(1 - BETA2**self.steps)) + kind(EPSILON))
