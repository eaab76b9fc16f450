"""A learner's model made of any ``torch.nn.Module`` and its optimizer."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from memstore.errors import ConfigError, InvalidValue
from memstore.learner.models.model import Array, Penalty
from memstore.learner.models.torch_state import (
    check_generators,
    check_optimizer,
    dtype_name,
    generator_states,
    match_tensors,
    optimizer_parameters,
    optimizer_state,
    set_generators,
    to_numpy,
)

if TYPE_CHECKING:
    import torch

    Loss = Literal["cross_entropy", "mse"] | Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


class TorchModel:
    """A module and its optimizer as a `Model`. Both stay yours: every change is made in place.

    Parameters
    ----------
    module : torch.nn.Module
        Module that is called with one tensor. The first axis of the tensor is the examples.
    optimizer : torch.optim.Optimizer
        Optimizer of the module's parameters. LBFGS is refused, because it evaluates the loss several times a step.
    loss : {"cross_entropy", "mse"} or callable
        ``"cross_entropy"`` is the cross-entropy in nats of logits (n, classes) against class numbers (n,). ``"mse"`` is
        the squared error against targets of the outputs' shape, averaged over all but the first axis. A function
        ``f(outputs, targets)`` returns the loss of each example as a tensor of shape (n,).

    Raises
    ------
    ConfigError
        PyTorch is missing, or module, optimizer and loss do not fit together.
    InvalidValue
        From every method that takes examples: they do not fit the model, or, in `step`, a loss came out
        negative, NaN or infinite. Nothing has changed.

    Notes
    -----
    Arrays are copied to the module's device. Floats take the dtype of its parameters; integers keep theirs.

    `step` runs the module in training mode. `loss`, `gradients` and `predict` run it in evaluation mode: dropout is off
    and batch normalization uses its running statistics, so the results depend on the state alone. All of them restore
    the modes. A module that changes its own parameters when it is called, such as ``Embedding(max_norm=...)``, changes
    them in every mode.

    Dropout draws from PyTorch's global generator. That generator therefore belongs to the state, and loading a state
    sets it. A learning-rate scheduler does not belong to the state: its rate comes back, because the optimizer holds
    it, but its counters do not. Equal states continue bit-identically on equal hardware with equal versions, an equal
    number of threads and, on CUDA, ``torch.use_deterministic_algorithms(True)``.
    """

    def __init__(
        self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, *, loss: Loss = "cross_entropy"
    ) -> None:
        try:
            import torch
        except ImportError as error:
            raise ConfigError("TorchModel needs PyTorch: pip install memstore[torch]") from error
        if not isinstance(module, torch.nn.Module):
            raise ConfigError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        if not isinstance(optimizer, torch.optim.Optimizer) or isinstance(optimizer, torch.optim.LBFGS):
            raise ConfigError(
                f"optimizer must be a torch.optim.Optimizer other than LBFGS, got {type(optimizer).__name__}"
            )
        if not callable(loss) and loss not in ("cross_entropy", "mse"):
            raise ConfigError(f"loss={loss!r}: choose cross_entropy or mse, or give a function")
        if any(torch.nn.parameter.is_lazy(tensor) for tensor in (*module.parameters(), *module.buffers())):
            raise ConfigError("the module has lazy parameters without a shape; call the module once before")
        self.module = module
        self.optimizer = optimizer
        self._loss = loss
        self._penalty: tuple[Penalty, dict[str, tuple[torch.Tensor, torch.Tensor]]] | None = None
        own = set(module.parameters())
        if not all(parameter in own for parameter in optimizer_parameters(optimizer)):
            raise ConfigError("the optimizer holds a parameter that is not the module's; build it from this module")

    def predict(self, inputs: ArrayLike) -> Array:
        """Return the module's outputs, in evaluation mode. Changes nothing."""
        import torch

        with self._run_in_mode(training=False, keep=False), torch.no_grad():
            outputs = self._forward(np.asarray(inputs))
            if not isinstance(outputs, torch.Tensor):
                raise InvalidValue(f"the module returned {type(outputs).__name__}; predict() takes a tensor")
            return to_numpy(outputs)

    def loss(self, inputs: ArrayLike, targets: ArrayLike) -> Array:
        """Return the loss of each example, float64 of shape (n,), in evaluation mode. Changes nothing."""
        import torch

        with self._run_in_mode(training=False, keep=False), torch.no_grad():
            return to_numpy(self._losses(inputs, targets).double())

    def gradients(
        self, inputs: ArrayLike, targets: ArrayLike, weight: ArrayLike | None = None
    ) -> tuple[Array, dict[str, Array]]:
        """Return the losses (n,) and the gradients of ``sum(weight * loss) / n``, in evaluation mode.

        Changes nothing, not even ``.grad``. Frozen parameters have no entry. Parameters that the loss does not depend
        on have zeros. A bfloat16 gradient is returned as float32.
        """
        import torch

        with self._run_in_mode(training=False, keep=False):
            losses = self._losses(inputs, targets)
            self._objective(losses, weight).backward()
            gradients = {
                name: to_numpy((torch.zeros_like(p) if p.grad is None else p.grad).to_dense())
                for name, p in self.module.named_parameters()
                if p.requires_grad
            }
            return to_numpy(losses.double()), gradients

    def step(
        self,
        inputs: ArrayLike,
        targets: ArrayLike,
        weight: ArrayLike | None = None,
        *,
        penalty: Penalty | None = None,
    ) -> Array:
        """Take one optimizer step in training mode, and return the losses (n,) before it.

        The arrays of a penalty are read only at its first use: to change them, give a new `Penalty`.
        """
        import torch

        with self._run_in_mode(training=True, keep=True):
            pulls = self._penalty_tensors(penalty)
            losses = self._losses(inputs, targets)
            measured = to_numpy(losses.double())
            if not np.all(np.isfinite(measured) & (measured >= 0)):
                raise InvalidValue(
                    "a loss is negative, NaN or infinite: the model diverged, the data are not finite, or the "
                    "loss function is wrong; lower the learning rate or scale the inputs"
                )
            self._objective(losses, weight).backward()
            rates = {
                id(p): float(group.get("lr", 0.0)) for group in self.optimizer.param_groups for p in group["params"]
            }
            with torch.no_grad():
                for name, parameter in self.module.named_parameters():
                    # With a gradient, the optimizer would move a frozen parameter too.
                    if name in pulls and parameter.requires_grad:
                        stiffness, centre = pulls[name]
                        pull = stiffness * (parameter - centre)
                        total = pull if parameter.grad is None else pull + parameter.grad
                        # As in `Penalty.pull`. A parameter that is in no group has no rate, and is not moved anyway.
                        parameter.grad = total / (1 + rates.get(id(parameter), 0.0) * stiffness)
            self.optimizer.step()
            return measured

    def state_dict(self) -> dict[str, Any]:
        """Return a copy of the parameters, the buffers, the optimizer and PyTorch's generators.

        Parameters and buffers are numpy arrays by name. A bfloat16 tensor becomes float32, which holds all its values.
        """
        return {
            **self._identity(),
            "parameters": {name: to_numpy(value) for name, value in self.module.named_parameters()},
            "buffers": {name: to_numpy(value) for name, value in self.module.named_buffers()},
            "optimizer": optimizer_state(self.optimizer),
            "generators": {name: to_numpy(value) for name, value in generator_states(self._device()).items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become the model that wrote ``state``.

        Module and optimizer must be built as those of that model: on the same kind of device, with the same classes,
        dtypes, frozen parameters and parameter groups.

        Raises
        ------
        InvalidValue
            The state is not that of such a model; module, optimizer and generators are unchanged.
        """
        import torch

        if not isinstance(state, Mapping):
            raise InvalidValue(f"the state must be a dict from state_dict(), got {type(state).__name__}")
        for key, mine in self._identity().items():
            if state.get(key) != mine:
                raise InvalidValue(f"the state is of a model with {key} {state.get(key)!r}, this one has {mine!r}")
        tensors = [
            *match_tensors("parameters", dict(self.module.named_parameters()), state.get("parameters")),
            *match_tensors("buffers", dict(self.module.named_buffers()), state.get("buffers")),
        ]
        groups, slots = check_optimizer(self.optimizer, state.get("optimizer"))
        generators = check_generators(state.get("generators"), self._device())
        with torch.no_grad():
            for tensor, value in tensors:
                tensor.copy_(value)
        for group, values in zip(self.optimizer.param_groups, groups, strict=True):
            group.update(values)
        self.optimizer.state.clear()
        self.optimizer.state.update(slots)
        set_generators(generators, self._device())

    def digest(self) -> str:
        """Return the SHA-256 of the parameters, as hex. It is equal exactly when they are bit-identical."""
        sha = hashlib.sha256()
        for name, parameter in self.module.named_parameters():
            value = to_numpy(parameter)
            sha.update(f"{name} {parameter.dtype} {value.shape}\n".encode())
            sha.update(value.tobytes())
        return sha.hexdigest()

    # running the module

    @contextmanager
    def _run_in_mode(self, *, training: bool, keep: bool) -> Iterator[None]:
        """Run a block with the module in a mode and with empty ``.grad``; then restore the modes.

        Unless ``keep`` is True and the block succeeds, buffers, gradients and generators are restored too.
        """
        import torch

        modes = [(part, part.training) for part in self.module.modules()]
        buffers = [
            (part, name, buffer, buffer.clone())
            for part in self.module.modules()
            for name, buffer in part.named_buffers(recurse=False)
        ]
        gradients = [(parameter, parameter.grad) for parameter in self.module.parameters()]
        generators = generator_states(self._device())
        done = False
        try:
            for parameter, _ in gradients:
                parameter.grad = None
            self.module.train(training)
            with torch.inference_mode(False), torch.enable_grad():
                yield
            done = keep
        finally:
            for part, mode in modes:
                part.training = mode
            if not done:
                for part, name, buffer, value in buffers:
                    with torch.no_grad():
                        buffer.copy_(value)
                    setattr(part, name, buffer)
                for parameter, gradient in gradients:
                    parameter.grad = gradient
                set_generators(generators, self._device())

    def _forward(self, inputs: Array) -> Any:
        x = self._to_tensor("inputs", inputs)
        try:
            return self.module(x)
        except (RuntimeError, ValueError, IndexError) as error:
            raise InvalidValue(f"the module refused inputs {inputs.dtype}{inputs.shape}: {error}") from error

    def _losses(self, inputs: ArrayLike, targets: ArrayLike) -> torch.Tensor:
        import torch

        x, t = np.asarray(inputs), np.asarray(targets)
        if not x.ndim or not t.ndim or len(x) != len(t):
            raise InvalidValue(f"inputs {x.shape} and targets {t.shape}: both need one entry for each example")
        outputs = self._forward(x)
        if self._loss == "cross_entropy":
            numbers = self._to_tensor("targets", _class_numbers(t, outputs))
            return torch.nn.functional.cross_entropy(outputs, numbers, reduction="none")
        target = self._to_tensor("targets", t)
        if self._loss == "mse":
            if outputs.shape != target.shape:
                raise InvalidValue(f"targets of shape {t.shape}: the module's outputs have {tuple(outputs.shape)}")
            return (outputs - target).square().unsqueeze(-1).flatten(1).mean(1)
        assert callable(self._loss)
        losses = self._loss(outputs, target)
        if not isinstance(losses, torch.Tensor) or losses.shape != (len(x),) or not losses.is_floating_point():
            shown = tuple(losses.shape) if isinstance(losses, torch.Tensor) else type(losses).__name__
            raise ConfigError(
                f"loss returned {shown} for {len(x)} examples: it must return one number for each, as a tensor of "
                f'shape ({len(x)},); PyTorch\'s own losses do with reduction="none"'
            )
        return losses

    def _objective(self, losses: torch.Tensor, weight: ArrayLike | None) -> torch.Tensor:
        n = len(losses)
        if not n:
            raise InvalidValue("there is no example; give at least one")
        if not losses.requires_grad:
            raise InvalidValue("the loss depends on no trainable parameter")
        if weight is None:
            return losses.sum() / n
        w = np.asarray(weight, np.float64)
        if w.shape != (n,) or not np.all(np.isfinite(w)) or np.any(w < 0):
            raise InvalidValue(f"weight must be {n} finite numbers >= 0, one for each example")
        return (losses * losses.new_tensor(w)).sum() / n

    def _penalty_tensors(self, penalty: Penalty | None) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """Return a penalty's stiffness and centre as tensors. The tensors of the last penalty are kept."""
        if penalty is None:
            return {}
        if self._penalty is None or self._penalty[0] is not penalty:
            parameters = dict(self.module.named_parameters())
            pulls = {}
            for name, stiffness in penalty.stiffness.items():
                if name not in parameters or name not in penalty.centre:
                    raise InvalidValue(
                        f"the penalty on {name!r}: no such parameter, or the penalty has no centre for it"
                    )
                like = parameters[name].detach()
                pair = stiffness, penalty.centre[name]
                if any(np.shape(array) != like.shape or not np.all(np.isfinite(array)) for array in pair):
                    raise InvalidValue(f"the penalty on {name!r} must be finite and of shape {tuple(like.shape)}")
                pulls[name] = like.new_tensor(pair[0]), like.new_tensor(pair[1])
            self._penalty = penalty, pulls
        return self._penalty[1]

    def _to_tensor(self, what: str, array: Array) -> torch.Tensor:
        """Return a copy as a tensor, because a module may change its input in place."""
        import torch

        try:
            # PyTorch accepts neither negative strides nor foreign byte order.
            tensor = torch.tensor(np.ascontiguousarray(array, array.dtype.newbyteorder("=")))
        except TypeError as error:
            raise InvalidValue(f"{what} of dtype {array.dtype}: give numbers that PyTorch knows") from error
        floats = (p.dtype for p in self.module.parameters() if p.is_floating_point())
        dtype = next(floats, torch.get_default_dtype()) if tensor.is_floating_point() else tensor.dtype
        return tensor.to(self._device(), dtype)

    # state

    def _identity(self) -> dict[str, Any]:
        named = (*self.module.named_parameters(), *self.module.named_buffers())
        return {
            "module_class": type(self.module).__qualname__,
            "optimizer_class": type(self.optimizer).__qualname__,
            "loss": self._loss if isinstance(self._loss, str) else "callable",
            "dtypes": {name: dtype_name(value) for name, value in named},
            "frozen": [name for name, parameter in self.module.named_parameters() if not parameter.requires_grad],
        }

    def _device(self) -> torch.device:
        import torch

        return next((parameter.device for parameter in self.module.parameters()), torch.device("cpu"))


def _class_numbers(targets: Array, outputs: Any) -> Array:
    """Return class numbers as int64; raise InvalidValue if one is not a class of the outputs."""
    n = len(targets)
    if getattr(outputs, "ndim", 0) != 2 or len(outputs) != n:
        raise InvalidValue(f"cross_entropy needs outputs of shape ({n}, classes) from the module")
    if targets.shape != (n,) or targets.dtype.kind not in "iu":
        raise InvalidValue(f"targets {targets.dtype}{targets.shape}: give {n} class numbers (integers)")
    classes = outputs.shape[1]
    if n and (targets.min() < 0 or targets.max() >= classes):
        raise InvalidValue(
            f"class numbers {targets.min()} .. {targets.max()}: the model has classes 0 .. {classes - 1}"
        )
    return targets.astype(np.int64)
