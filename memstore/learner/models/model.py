"""The methods that a learner calls on a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Penalty:
    """A quadratic pull on the parameters: ``sum(stiffness * (parameter - centre) ** 2) / 2``.

    A model adds it to its step by one linearly implicit Euler step. For each parameter the optimizer gets
    ``(gradient + stiffness * (parameter - centre)) / (1 + learning_rate * stiffness)``. This has the same fixed point
    as the objective, and overshoots at no stiffness. If the penalty's gradient were added as it is, plain gradient
    descent would diverge for ``learning_rate * stiffness`` above 2.

    Attributes
    ----------
    stiffness, centre : dict of str to array
        Arrays by the names of the model's parameters, and of their shapes. A parameter without an entry is free.
    """

    stiffness: Mapping[str, Array]
    centre: Mapping[str, Array]

    def pull(self, name: str, gradient: Array, parameter: Array, learning_rate: float) -> Array:
        """Return the array that the optimizer gets for this parameter instead of its gradient."""
        if name not in self.stiffness:
            return gradient
        stiffness = self.stiffness[name]
        pulled: Array = (gradient + stiffness * (parameter - self.centre[name])) / (1 + learning_rate * stiffness)
        return pulled


@runtime_checkable
class Model(Protocol):
    """A model that `MemoryOnlineLearner` can train.

    ``inputs`` holds n examples along its first axis, ``targets`` their n targets, and ``weight`` n importance weights
    (None: all 1). The objective of a step is ``sum(weight * loss) / n``, plus the penalty if one is given. A loss is
    a finite number >= 0 for each example, measured *before* the step and without the penalty. Equal state and equal
    arguments give bit-identical results.
    """

    def loss(self, inputs: Array, targets: Array) -> Array:
        """Return the loss of each example, shape (n,). Changes nothing."""
        ...

    def gradients(self, inputs: Array, targets: Array, weight: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Return the losses (n,) and the gradient of ``sum(weight * loss) / n`` by each parameter. Changes nothing."""
        ...

    def step(
        self, inputs: Array, targets: Array, weight: Array | None = None, *, penalty: Penalty | None = None
    ) -> Array:
        """Take one optimizer step, and return the losses (n,) before it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything that the next step depends on, as nested dicts and lists of scalars and arrays.

        The entry ``"parameters"`` holds the parameters as numpy arrays, by the names that `gradients` uses.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the model that wrote ``state``. A state that does not fit raises InvalidValue and changes nothing."""
        ...
