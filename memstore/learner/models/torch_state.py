"""PyTorch's tensors, optimizers and generators as plain values that a checkpoint stores, and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from memstore.errors import InvalidValue
from memstore.learner.models.model import Array

if TYPE_CHECKING:
    import torch

_PLAIN = (type(None), bool, int, float, str, bytes, np.generic)
"""Types of values that a checkpoint stores as they are."""


def to_numpy(tensor: torch.Tensor) -> Array:
    """Return a copy of a tensor. Floats that numpy lacks, such as bfloat16, become float32, which holds them all."""
    import torch

    kept = tensor.detach().cpu()
    if kept.is_floating_point() and kept.dtype not in (torch.float16, torch.float32, torch.float64):
        kept = kept.float()
    return np.array(kept.numpy(), order="C")


def dtype_name(tensor: torch.Tensor) -> str:
    """Return the name under which ``torch`` has a tensor's dtype."""
    return str(tensor.dtype).removeprefix("torch.")


def match_tensors(
    what: str, tensors: Mapping[str, torch.Tensor], stored: Any
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield each tensor with the value stored under its name; raise InvalidValue if the two sets do not fit."""
    import torch

    if not isinstance(stored, Mapping) or stored.keys() != tensors.keys():
        names = list(stored) if isinstance(stored, Mapping) else type(stored).__name__
        raise InvalidValue(f"the state's {what} are {names}, the model has {list(tensors)}")
    for name, tensor in tensors.items():
        array, mine = stored[name], to_numpy(tensor)
        if not isinstance(array, np.ndarray) or array.shape != mine.shape or array.dtype != mine.dtype:
            shown = f"{array.dtype}{array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InvalidValue(f"{what} {name} is stored as {shown}, the model has {mine.dtype}{mine.shape}")
        yield tensor, torch.tensor(np.array(array, order="C"))


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """Return the states of the global generators that a module on this device can draw from."""
    import torch

    states = {"cpu": torch.get_rng_state()}
    return states | {"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else states


def set_generators(states: Mapping[str, torch.Tensor], device: torch.device) -> None:
    """Set the global generators to these states."""
    import torch

    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)


def check_generators(stored: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """Return stored states for `set_generators`; raise InvalidValue if a generator would refuse its state."""
    import torch

    mine = generator_states(device)
    states = dict(zip(mine, (value for _, value in match_tensors("generators", mine, stored)), strict=True))
    for name, value in states.items():
        try:
            torch.Generator(name).set_state(value)
        except RuntimeError as error:
            raise InvalidValue(f"the state's {name} generator is damaged: {error}") from error
    return states


def optimizer_parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    """Return the parameters of all groups in order. In a stored state, a parameter's position is its name."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def optimizer_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Return a copy of an optimizer's settings by group, and of the values that it keeps for each parameter."""
    import torch

    place = {parameter: index for index, parameter in enumerate(optimizer_parameters(optimizer))}
    return {
        "groups": [
            {
                key: [place[parameter] for parameter in value] if key == "params" else _encode(key, value)
                for key, value in group.items()
            }
            for group in optimizer.param_groups
        ],
        "slots": [
            [place[key] if isinstance(key, torch.Tensor) else key, _encode("state", value)]
            for key, value in optimizer.state.items()
        ],
    }


def check_optimizer(optimizer: torch.optim.Optimizer, stored: Any) -> tuple[list[dict[str, Any]], dict[Any, Any]]:
    """Return the settings of each group and the new ``optimizer.state``; raise InvalidValue if they do not fit.

    ``Optimizer.load_state_dict`` does not do: it casts the kept values to the parameter's dtype, which rounds where
    the two differ (NAdam in bfloat16), and it checks little.
    """
    mine = optimizer_state(optimizer)["groups"]
    groups, slots = (stored.get(key) for key in ("groups", "slots")) if isinstance(stored, Mapping) else (None, None)
    if not isinstance(groups, list) or not isinstance(slots, list) or len(groups) != len(mine):
        raise InvalidValue(f"the state's optimizer has other parameter groups; this one has {len(mine)}")
    settings = []
    for number, (own, group) in enumerate(zip(optimizer.param_groups, groups, strict=True)):
        if not isinstance(group, Mapping) or group.keys() != own.keys() or group["params"] != mine[number]["params"]:
            raise InvalidValue(
                f"parameter group {number} is stored with other parameters or settings than {sorted(own)}; build "
                "the optimizer, and a scheduler that adds settings to it, as they were then"
            )
        values = {key: _decode(value) for key, value in group.items() if key != "params"}
        for key, value in values.items():
            if not _is_same_kind(own[key], value):
                raise InvalidValue(f"parameter group {number}: {key} is stored as {value!r}, not like {own[key]!r}")
        settings.append(values)
    return settings, dict(_check_slot(optimizer, slot) for slot in slots)


def _check_slot(optimizer: torch.optim.Optimizer, slot: Any) -> tuple[Any, Any]:
    parameters = optimizer_parameters(optimizer)
    if not isinstance(slot, list) or len(slot) != 2:
        raise InvalidValue("the state's optimizer is damaged: each slot must be a key and a value")
    key, value = slot
    if type(key) is str:
        return key, _decode(value)
    if type(key) is not int or not 0 <= key < len(parameters):
        raise InvalidValue(
            f"the state's optimizer keeps values for parameter {key!r}, but there are {len(parameters)} parameters"
        )
    parameter = parameters[key]
    kept = _decode(value, parameter)
    # The shapes of the kept values are known only for PyTorch's own optimizers.
    if type(optimizer).__module__.startswith("torch.optim") and not (
        isinstance(kept, dict) and all(_fits_parameter(entry, parameter) for entry in kept.values())
    ):
        raise InvalidValue(
            f"the values that the state's optimizer keeps for parameter {key} have another shape than it"
        )
    return parameter, kept


def _fits_parameter(value: Any, parameter: torch.Tensor) -> bool:
    """Return True if the value is one number, or has an entry for each entry, row or column of the parameter."""
    shape = getattr(value, "shape", ())
    return not shape or (
        len(shape) == parameter.dim() and all(a in (1, b) for a, b in zip(shape, parameter.shape, strict=True))
    )


def _is_same_kind(mine: Any, stored: Any) -> bool:
    """Return True if a stored setting has the type, and for tensors the shape and dtype, of the optimizer's own."""
    import torch

    if isinstance(mine, torch.Tensor):
        return isinstance(stored, torch.Tensor) and stored.shape == mine.shape and stored.dtype == mine.dtype
    if isinstance(mine, (list, tuple)):
        return type(stored) is type(mine) and len(stored) == len(mine) and all(map(_is_same_kind, mine, stored))
    if mine is None or isinstance(mine, bool):
        return stored is None or isinstance(stored, bool)
    if isinstance(mine, (int, float)):
        return isinstance(stored, (int, float)) and not isinstance(stored, bool)
    return type(stored) is type(mine)


def _encode(where: str, value: Any) -> Any:
    """Return a copy of a value in a form that a checkpoint stores. Dicts and tensors become tagged dicts."""
    import torch

    if isinstance(value, torch.Tensor):
        return {"dtype": dtype_name(value), "device": value.device.type, "data": to_numpy(value)}
    if isinstance(value, Mapping):
        return {"items": [[key, _encode(where, item)] for key, item in value.items()]}
    if type(value) in (list, tuple):
        return type(value)(_encode(where, item) for item in value)
    if isinstance(value, _PLAIN):
        return value
    raise InvalidValue(f"the optimizer's {where} holds a {type(value).__name__}, which cannot be stored")


def _decode(value: Any, parameter: torch.Tensor | None = None) -> Any:
    """Return the value that `_encode` was given. Tensors get the memory layout and the device of their parameter."""
    if isinstance(value, Mapping) and value.keys() == {"dtype", "device", "data"}:
        return _decode_tensor(value, parameter)
    if isinstance(value, Mapping) and value.keys() == {"items"}:
        try:
            return {key: _decode(item, parameter) for key, item in value["items"]}
        except (TypeError, ValueError) as error:
            raise InvalidValue(f"the state's optimizer is damaged: {error}") from error
    if type(value) in (list, tuple):
        return type(value)(_decode(item, parameter) for item in value)
    if isinstance(value, _PLAIN):
        return value
    raise InvalidValue(f"the state's optimizer is damaged: it holds a {type(value).__name__}")


def _decode_tensor(value: Mapping[str, Any], parameter: torch.Tensor | None) -> torch.Tensor:
    import torch

    dtype = getattr(torch, value["dtype"], None) if isinstance(value["dtype"], str) else None
    data = value["data"]
    if (
        not isinstance(dtype, torch.dtype)
        or not isinstance(data, np.ndarray)
        or data.dtype != to_numpy(torch.empty(0, dtype=dtype)).dtype
    ):
        raise InvalidValue(f"the state's optimizer is damaged: no tensor of dtype {value['dtype']!r}")
    # A counter, which is one number, stays on the CPU if the optimizer had it there.
    device = "cpu" if parameter is None or (value["device"] == "cpu" and not data.ndim) else parameter.device
    if parameter is not None and data.shape == parameter.shape:
        # The strides are those of the parameter, because the last bit of a sum may depend on them.
        made = torch.empty_like(parameter, dtype=dtype, device=device, requires_grad=False)
    else:
        made = torch.empty(data.shape, dtype=dtype, device=device)
    return made.copy_(torch.tensor(np.array(data, order="C")))
