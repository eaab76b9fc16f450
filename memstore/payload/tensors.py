"""Turns tensors into numpy arrays of their exact bits, and such arrays into tensors."""

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
"""The dtypes of tensors that a state may hold, by PyTorch's names, with the numpy dtype that holds the bits."""


def tensor_bits(where: str, tensor: torch.Tensor) -> tuple[str, Array]:
    """Return the name of a tensor's dtype, and an array of its values. For bfloat16, the array holds the bits.

    Raises
    ------
    PayloadError
        If the dtype or the layout of the tensor cannot be stored.
    """
    kept = plain_tensor(where, tensor)
    name = str(kept.dtype).removeprefix("torch.")
    if name not in BITS:
        raise PayloadError(f"{where}: a tensor of {name} cannot be stored; write .float(), which holds every value")
    array: Array = (kept.view(_torch().uint16) if name == "bfloat16" else kept).numpy()
    return name, array.astype(BITS[name], copy=False)


def tensor_of(name: str, bits: Array) -> Any:
    """Return the tensor with this dtype and these bits, the inverse of ``tensor_bits``.

    If PyTorch is not installed, return the array; for bfloat16, an array of float32 with the same values.
    """
    if "torch" not in sys.modules and find_spec("torch") is None:
        return (bits.astype("<u4") << 16).view("<f4") if name == "bfloat16" else bits
    torch = _torch()
    tensor = torch.from_numpy(bits.astype(bits.dtype.newbyteorder("="), copy=False))
    return tensor.view(torch.bfloat16) if name == "bfloat16" else tensor


def _torch() -> Any:
    import torch

    return torch
