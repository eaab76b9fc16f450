"""Tensors as bytes, exactly, and back: what PyTorch calls a dtype, and the numpy array that holds its bits."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from memstore.errors import PayloadError
from memstore.values.foreign import Array, plain_tensor

if TYPE_CHECKING:
    import torch

BITS: dict[str, str] = {
    "bool": "|b1",
    "uint8": "|u1",
    "int8": "|i1",
    "uint16": "<u2",
    "int16": "<i2",
    "uint32": "<u4",
    "int32": "<i4",
    "uint64": "<u8",
    "int64": "<i8",
    "float16": "<f2",
    "bfloat16": "<u2",
    "float32": "<f4",
    "float64": "<f8",
    "complex64": "<c8",
    "complex128": "<c16",
}
"""The dtypes of tensors that a state may hold."""


def tensor_bits(where: str, tensor: torch.Tensor) -> tuple[str, Array]:
    """The name of a tensor's dtype, and its values; of a bfloat16 its bits."""
    kept = plain_tensor(where, tensor)
    name = str(kept.dtype).removeprefix("torch.")
    if name not in BITS:
        raise PayloadError(f"{where}: a tensor of {name} cannot be stored; write .float(), which holds every value")
    array: Array = (kept.view(_torch().uint16) if name == "bfloat16" else kept).numpy()
    return name, array.astype(BITS[name], copy=False)


def tensor_of(name: str, bits: Array) -> Any:
    """The tensor; without PyTorch the array, and of a bfloat16 the float32 that holds the same values."""
    if "torch" not in sys.modules and find_spec("torch") is None:
        return (bits.astype("<u4") << 16).view("<f4") if name == "bfloat16" else bits
    torch = _torch()
    tensor = torch.from_numpy(bits.astype(bits.dtype.newbyteorder("="), copy=False))
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor


def _torch() -> Any:
    import torch

    return torch
