"""Converts numbers and arrays of other libraries to those of Python and numpy: tensors, scalars, ``__array__``.

Nothing is imported for this. A tensor can only come from a PyTorch that is imported already.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from memstore.errors import PayloadError
from memstore.values.shown import shown

if TYPE_CHECKING:
    import torch

Array = npt.NDArray[Any]

MAX_DEPTH = 64
"""A payload or a state has at most this many levels. A deeper one probably contains itself."""

_INSTEAD = {
    "bfloat16": "numpy has no bfloat16; write .float(), which holds every value, or .half()",
    "sparse": "write .to_dense()",
    "quantized": "write .dequantize(), or .int_repr() and its scale",
    "meta": "it has no data; make it on a device with memory",
    "nested": "write a list of tensors, .unbind()",
}
"""This advice is given for kinds of tensors that cannot be stored."""


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """True if the value is a tensor of PyTorch."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def tensor_array(where: str, tensor: torch.Tensor) -> Array:
    """Return the values of a tensor as an array, detached and on the CPU.

    Raises
    ------
    PayloadError
        If numpy has no array for the tensor's dtype or layout. The message says how to convert the tensor.
    """
    kept = plain_tensor(where, tensor)
    dtype = str(kept.dtype).removeprefix("torch.")
    if dtype == "bfloat16":
        raise _refusal(where, dtype)
    try:
        return np.asarray(kept.numpy())
    except (TypeError, RuntimeError) as exc:
        raise PayloadError(f"{where}: numpy has no {dtype}; convert the tensor, for example with .float()") from exc


def plain_tensor(where: str, tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor without its graph, on the CPU and strided.

    Raises
    ------
    PayloadError
        If that is not possible. The message names the kind of the tensor, such as "sparse".
    """
    # The layout of a quantized tensor is strided, so it has a flag of its own.
    flags = {
        "meta": tensor.is_meta,
        "nested": tensor.is_nested,
        "quantized": tensor.is_quantized,
        "sparse": str(tensor.layout) != "torch.strided",
    }
    for kind, holds in flags.items():
        if holds:
            raise _refusal(where, kind)
    return tensor.detach().cpu().resolve_conj().resolve_neg()


def _refusal(where: str, kind: str) -> PayloadError:
    return PayloadError(f"{where}: a {kind} tensor cannot be stored; {_INSTEAD[kind]}")


def is_arraylike(value: object) -> bool:
    """True if the value is a tensor or an array of another library (jax, TensorFlow, pandas, pyarrow ...)."""
    return _is_arraylike(type(value))


def _is_arraylike(kind: type) -> bool:
    plain = issubclass(kind, (np.ndarray, np.generic, str, bytes, int, float, list, tuple, dict, type))
    return not plain and hasattr(kind, "__array__")  # tensors have it too


def as_numpy(where: str, value: Any) -> Any:
    """Convert a tensor or a foreign array to numpy, or each of them in a list. Other values stay as they are.

    Raises
    ------
    PayloadError
        If numpy has no array for it.
    """
    if isinstance(value, (list, tuple)):
        if not any(map(_is_arraylike, set(map(type, value)))):
            return value
        items = [as_numpy(f"{where}[{i}]", item) if is_arraylike(item) else item for i, item in enumerate(value)]
        return tuple(items) if isinstance(value, tuple) else items
    if is_tensor(value):
        return tensor_array(where, value)
    if is_arraylike(value):
        try:
            return np.asarray(value)
        except Exception as exc:  # another library may raise anything
            raise PayloadError(f"{where}: {shown(value)} cannot be made an array: {exc!s:.200}") from exc
    return value


def numpy_payload(payload: Any, where: str = "", depth: int = 0) -> Any:
    """Convert all tensors and foreign arrays in a payload to numpy. Code after this sees only numpy and Python."""
    if not isinstance(payload, Mapping) or depth > MAX_DEPTH:
        return payload
    changed: dict[Any, Any] = {}
    for key, value in payload.items():
        name = f"{where}/{key}" if where else str(key)
        if isinstance(value, Mapping):
            changed[key] = numpy_payload(value, name, depth + 1)
        else:
            changed[key] = value if type(value) is np.ndarray else as_numpy(f"field {name!r:.80}", value)
    return changed


def is_flag(value: object) -> bool:
    """True if the value is a bool, or an array of bools, of any library."""
    return isinstance(value, (bool, np.bool_)) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool", "boolean")


def number(value: Any) -> int | float | None:
    """Return a real number as an int or a float; None if the value is a bool, text, time, array or anything else."""
    if type(value) is int or type(value) is float:
        return value
    if is_flag(value) or isinstance(value, (str, bytes, complex, np.datetime64, np.timedelta64)):
        return None
    if is_tensor(value):
        return None if value.dim() or value.is_complex() or value.is_meta else number(value.item())
    if isinstance(value, (np.ndarray, np.generic)) or is_arraylike(value):
        array = np.asarray(value)
        return None if array.ndim or array.dtype.kind not in "iuf" else number_of(array)
    try:
        return int(value.__index__()) if hasattr(value, "__index__") else float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def number_of(array: Array) -> int | float:
    """Return the number in an array without dimensions. A longdouble becomes the nearest float."""
    return int(array) if array.dtype.kind in "iu" else float(array)
