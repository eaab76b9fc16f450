"""Numbers and arrays of other libraries as numpy's and Python's: tensors, scalars, and what has ``__array__``.

Nothing is imported for it: a tensor can only come from a PyTorch that is imported already.
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

_INSTEAD = {
    "bfloat16": "numpy has no bfloat16; write .float(), which holds every value, or .half()",
    "sparse": "write .to_dense()",
    "quantized": "write .dequantize(), or .int_repr() and its scale",
    "meta": "it has no data; make it on a device that does",
    "nested": "write a list of tensors, .unbind()",
}


def is_tensor(value: object) -> TypeGuard[torch.Tensor]:
    """Whether it is a tensor of PyTorch's."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    return tensor is not None and isinstance(value, tensor)


def tensor_array(where: str, tensor: torch.Tensor) -> Array:
    """The values of a tensor: detached, on the CPU; ``PayloadError`` where numpy has no such array."""
    kept = plain_tensor(where, tensor)
    dtype = str(kept.dtype).removeprefix("torch.")
    if dtype == "bfloat16":
        raise _refused(where, dtype)
    try:
        return np.asarray(kept.numpy())
    except (TypeError, RuntimeError) as exc:
        raise PayloadError(f"{where}: numpy has no {dtype}; convert the tensor, for example with .float()") from exc


def plain_tensor(where: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without graph, on the CPU, strided; ``PayloadError`` naming what it is where it cannot be that."""
    # A quantized tensor says so itself; its layout is strided.
    flags = {
        "meta": tensor.is_meta,
        "nested": tensor.is_nested,
        "quantized": tensor.is_quantized,
        "sparse": str(tensor.layout) != "torch.strided",
    }
    for kind, holds in flags.items():
        if holds:
            raise _refused(where, kind)
    return tensor.detach().cpu().resolve_conj().resolve_neg()


def _refused(where: str, kind: str) -> PayloadError:
    return PayloadError(f"{where}: a {kind} tensor cannot be stored; {_INSTEAD[kind]}")


def is_arraylike(value: object) -> bool:
    """Whether it is an array of another library, or a tensor: jax, TensorFlow, pandas, pyarrow ..."""
    return _is_arraylike(type(value))


def _is_arraylike(kind: type) -> bool:
    plain = issubclass(kind, (np.ndarray, np.generic, str, bytes, int, float, list, tuple, dict, type))
    return not plain and hasattr(kind, "__array__")  # tensors have it too


def as_numpy(where: str, value: Any) -> Any:
    """A tensor or a foreign array as numpy's; the elements of a list alike; everything else as it is."""
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
        except Exception as exc:  # whatever another library raises
            raise PayloadError(f"{where}: {shown(value)} gives no array: {exc!s:.200}") from exc
    return value


def numpy_payload(payload: Any, where: str = "", depth: int = 0) -> Any:
    """A payload with its tensors and foreign arrays as numpy's, once for all that looks at it later."""
    if not isinstance(payload, Mapping) or depth > MAX_DEPTH:
        return payload
    changed: dict[Any, Any] = {}
    for key, value in payload.items():
        name = f"{where}/{key}" if where else str(key)
        if isinstance(value, Mapping):
            changed[key] = numpy_payload(value, name, depth + 1)
        else:
            changed[key] = as_numpy(f"field {name!r:.80}", value)
    return changed


def is_flag(value: object) -> bool:
    """Whether it is true or false, in whatever library."""
    return isinstance(value, (bool, np.bool_)) or str(getattr(value, "dtype", "")) in ("bool", "torch.bool", "boolean")


def number(value: Any) -> int | float | None:
    """One real number as Python's; None for what is none: a flag, a text, a time, an array with dimensions."""
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
    """The one number of an array; a longdouble as the nearest float."""
    return int(array) if array.dtype.kind in "iu" else float(array)
