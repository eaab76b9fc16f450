"""What a learner asks of a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Penalty:
    """A quadratic pull on the parameters: ``sum(stiffness * (parameter - centre) ** 2) / 2``.

    A model takes it into its step by one linearly implicit Euler step, which has the objective's own fixed point and
    overshoots at no stiffness: for each parameter the optimizer is given
    ``(gradient + stiffness * (parameter - centre)) / (1 + learning_rate * stiffness)``. Added to the gradient as it
    is, plain gradient descent diverges where ``learning_rate * stiffness`` exceeds 2.

    Attributes
    ----------
    stiffness, centre : dict of str to array
        By the names and of the shapes of the model's parameters. A parameter not named is free.
    """

    stiffness: Mapping[str, Array]
    centre: Mapping[str, Array]

    def pulled(self, name: str, gradient: Array, parameter: Array, learning_rate: float) -> Array:
        """Return what the optimizer is given for this parameter instead of its gradient."""
        if name not in self.stiffness:
            return gradient
        stiffness = self.stiffness[name]
        pulled: Array = (gradient + stiffness * (parameter - self.centre[name])) / (1 + learning_rate * stiffness)
        return pulled


@runtime_checkable
class Model(Protocol):
    """What `MemoryOnlineLearner` trains.

    ``inputs`` holds n examples along its first axis, ``targets`` their n targets, ``weight`` n importance
    weights (None: all 1). The objective of a step is ``sum(weight * loss) / n``, plus the penalty if one is
    given. Losses are one finite number >= 0 for each example, measured *before* the step and without the
    penalty. Equal state and equal arguments give bit-identical results.
    """

    def loss(self, inputs: Array, targets: Array) -> Array:
        """Return the loss of each example, shape (n,); changes nothing."""
        ...

    def gradients(self, inputs: Array, targets: Array, weight: Array | None = None) -> tuple[Array, dict[str, Array]]:
        """Return the losses (n,) and the gradient of ``sum(weight * loss) / n`` by each parameter; changes nothing."""
        ...

    def step(
        self, inputs: Array, targets: Array, weight: Array | None = None, *, penalty: Penalty | None = None
    ) -> Array:
        """Take one optimizer step; return the losses (n,) from before it."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of everything the next step depends on: nested dicts and lists of scalars and arrays.

        Its entry ``"parameters"`` holds the parameters, as numpy arrays, by the names that `gradients` uses.
        """
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the model that wrote ``state``; one that does not fit raises InvalidValue and changes nothing."""
        ...
