"""The default model: a multi-layer perceptron in numpy."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from memstore.errors import ConfigError, InvalidValue
from memstore.learner.models.model import Array, Penalty
from memstore.learner.models.optimizer import Optimizer, OptimizerName

Head = Literal["classification", "regression"]


class MLP:
    """Multi-layer perceptron with ReLU hidden layers.

    Parameters
    ----------
    layers : sequence of int
        Width of every layer, inputs first, outputs last.
    head : {"classification", "regression"}
        ``"classification"`` is softmax with cross-entropy in nats; its targets are class numbers of shape (n,).
        ``"regression"`` is the mean squared error over the outputs; its targets have the shape (n, outputs).
    optimizer, learning_rate, momentum
        See `Optimizer`.
    seed : int
        Seed of the initial weights, which are He-normal. Biases start at zero.
    dtype : {"float64", "float32"}
        Type of the parameters and of the arithmetic.

    Raises
    ------
    ConfigError
        A setting is out of range.
    InvalidValue
        From every method that takes examples: their shape does not fit the model. Nothing is truncated.
    """

    def __init__(
        self,
        layers: Sequence[int] = (64, 100, 10),
        *,
        head: Head = "classification",
        optimizer: OptimizerName = "sgd",
        learning_rate: float = 0.001,
        momentum: float = 0.0,
        seed: int = 0,
        dtype: str = "float64",
    ) -> None:
        if len(layers) < 2 or any(width < 1 for width in layers):
            raise ConfigError(f"layers={tuple(layers)}: give at least inputs and outputs, each 1 or more")
        if head not in get_args(Head):
            raise ConfigError(f"head={head!r}: choose one of {', '.join(get_args(Head))}")
        if dtype not in ("float32", "float64"):
            raise ConfigError(f"dtype={dtype!r}: choose float64 or float32")
        self.layers = tuple(int(width) for width in layers)
        self.head: Head = head
        self.dtype = np.dtype(dtype)
        rng = np.random.default_rng(seed)
        self._parameters: dict[str, Array] = {}
        for i, (fan_in, fan_out) in enumerate(zip(self.layers, self.layers[1:], strict=False)):
            weights = rng.standard_normal((fan_in, fan_out)) * math.sqrt(2.0 / fan_in)
            self._parameters[f"w{i}"] = weights.astype(self.dtype)
            self._parameters[f"b{i}"] = np.zeros(fan_out, self.dtype)
        self._optimizer = Optimizer(optimizer, self._parameters, learning_rate=learning_rate, momentum=momentum)

    def predict(self, inputs: ArrayLike) -> Array:
        """Return the outputs, shape (n, outputs): the logits of the classes, or the regression values."""
        return self._forward(self._inputs(inputs))[-1]

    def loss(self, inputs: ArrayLike, targets: ArrayLike) -> Array:
        """Return the loss of each example, float64 of shape (n,). Changes nothing."""
        x = self._inputs(inputs)
        return self._head(self._forward(x)[-1], self._targets(targets, len(x)))[0]

    def gradients(
        self, inputs: ArrayLike, targets: ArrayLike, weight: ArrayLike | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Return the losses (n,) and the gradients of ``sum(weight * loss) / n``. Changes nothing."""
        x = self._inputs(inputs)
        activations = self._forward(x)
        losses, delta = self._head(activations[-1], self._targets(targets, len(x)))
        if weight is not None:
            w = np.asarray(weight, self.dtype)
            if w.shape != (len(x),) or not np.all(np.isfinite(w)) or np.any(w < 0):
                raise InvalidValue(f"weight must be {len(x)} finite numbers >= 0, one for each example")
            delta = delta * w[:, None]
        delta = delta / self.dtype.type(max(len(x), 1))
        gradients: dict[str, Array] = {}
        for i in reversed(range(len(self.layers) - 1)):
            gradients[f"w{i}"] = activations[i].T @ delta
            gradients[f"b{i}"] = delta.sum(axis=0)
            if i:
                delta = (delta @ self._parameters[f"w{i}"].T) * (activations[i] > 0)
        return losses, gradients

    def step(
        self,
        inputs: ArrayLike,
        targets: ArrayLike,
        weight: ArrayLike | None = None,
        *,
        penalty: Penalty | None = None,
    ) -> Array:
        """Take one optimizer step, and return the losses (n,) before it."""
        losses, gradients = self.gradients(inputs, targets, weight)
        if penalty is not None:
            rate = self._optimizer.learning_rate
            gradients = {
                name: penalty.pull(name, gradient, self._parameters[name], rate) for name, gradient in gradients.items()
            }
        self._optimizer.apply(gradients)
        return losses

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the parameters and the optimizer, with the layers, the head and the optimizer's name."""
        return {
            **self._identity(),
            "steps": self._optimizer.steps,
            **{group: {name: value.copy() for name, value in arrays.items()} for group, arrays in self._arrays()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the model that wrote ``state``.

        Raises
        ------
        InvalidValue
            The state is not that of an MLP with these layers, head, optimizer and dtype. The model is unchanged.
        """
        mine = self._identity()
        theirs = {key: state.get(key) for key in mine}
        if theirs != mine:
            raise InvalidValue(f"the state is of a model with {theirs}, this one has {mine}")
        steps = state.get("steps")
        if type(steps) is not int or steps < 0:
            raise InvalidValue(f"the state's steps must be an integer, 0 or more, got {steps!r}")
        pairs: list[tuple[Array, Array]] = []
        for group, arrays in self._arrays():
            stored = state.get(group)
            if not isinstance(stored, Mapping) or stored.keys() != arrays.keys():
                raise InvalidValue(f"the state's {group} are not those of {self.layers}")
            for name, value in arrays.items():
                array = np.asarray(stored[name])
                if array.shape != value.shape or array.dtype != value.dtype:
                    raise InvalidValue(
                        f"{group} {name} is stored as {array.dtype}{array.shape}, "
                        f"the model has {value.dtype}{value.shape}"
                    )
                pairs.append((value, array))
        # The arrays are copied in place, because the last bit of a product may depend on their layout in memory.
        for value, array in pairs:
            value[...] = array
        self._optimizer.steps = steps

    def _identity(self) -> dict[str, Any]:
        return {"layers": list(self.layers), "head": self.head, "optimizer": self._optimizer.name}

    def _arrays(self) -> list[tuple[str, dict[str, Array]]]:
        return [("parameters", self._parameters), *self._optimizer.slots.items()]

    def digest(self) -> str:
        """Return the SHA-256 of the weights, as hex. It is equal exactly when the weights are bit-identical."""
        sha = hashlib.sha256()
        for name, value in self._parameters.items():
            sha.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
            sha.update(value.tobytes())
        return sha.hexdigest()

    def _forward(self, x: Array) -> list[Array]:
        """Return the activations of every layer: the inputs first, the linear outputs last."""
        activations = [x]
        last = len(self.layers) - 2
        for i in range(last + 1):
            z = activations[-1] @ self._parameters[f"w{i}"] + self._parameters[f"b{i}"]
            activations.append(z if i == last else np.maximum(z, 0))
        return activations

    def _head(self, outputs: Array, targets: Array) -> tuple[Array, Array]:
        """Return the loss of each example, in float64, and its derivative by the outputs."""
        if self.head == "regression":
            error = outputs - targets
            return np.mean(np.square(error), axis=1).astype(np.float64), error * (2 / self.layers[-1])
        rows = np.arange(len(outputs))
        # The shift by the maximum keeps exp from overflowing, and the loss from being below zero.
        shifted = outputs - outputs.max(axis=1, keepdims=True)
        exp = np.exp(shifted)
        total = exp.sum(axis=1)
        losses = np.log(total) - shifted[rows, targets]
        delta = exp / total[:, None]
        delta[rows, targets] -= 1
        return losses.astype(np.float64), delta

    def _inputs(self, inputs: ArrayLike) -> Array:
        x = np.ascontiguousarray(inputs, self.dtype)
        if x.ndim != 2 or x.shape[1] != self.layers[0]:
            raise InvalidValue(f"inputs of shape {x.shape}: the model takes (n, {self.layers[0]})")
        return x

    def _targets(self, targets: ArrayLike, n: int) -> Array:
        t = np.asarray(targets)
        outputs = self.layers[-1]
        if self.head == "regression":
            if t.shape != (n, outputs):
                raise InvalidValue(f"targets of shape {t.shape}: {n} inputs need ({n}, {outputs})")
            return t.astype(self.dtype)
        if t.shape != (n,) or t.dtype.kind not in "iu":
            raise InvalidValue(f"targets {t.dtype}{t.shape}: {n} inputs need {n} class numbers (integers)")
        if n and (t.min() < 0 or t.max() >= outputs):
            raise InvalidValue(f"class numbers {t.min()} .. {t.max()}: the model has classes 0 .. {outputs - 1}")
        return t
