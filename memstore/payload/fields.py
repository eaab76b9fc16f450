"""The fields of a payload, and the checks of every value before it is stored."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from memstore.errors import InvalidValue, PayloadError
from memstore.values.foreign import MAX_DEPTH, Array
from memstore.values.shown import shown

DType = np.dtype[Any]
Path = tuple[str, ...]

MAX_BLOB_BYTES = 10**9 - 4096
"""A blob has at most this many bytes. SQLite allows 10**9 in a row, unless it was compiled with another limit."""

MAX_DIMENSIONS = 32
"""An array that can be stored has at most this many dimensions."""

PYTHON_DTYPES: dict[type, str] = {bool: "|b1", int: "<i8", float: "<f8"}
"""A field can hold Python scalars of these types. Each is stored in the given dtype."""

_DTYPE = re.compile(r"[<>|][biufc][0-9]{1,2}")
_PYTHON_NAMES = {"|b1": "bool", "<i8": "int", "<u8": "int", "<f8": "float"}
_SCALARS: dict[str, Iterable[str | None]] = {"python": _PYTHON_NAMES, "str": (None,), "bytes": (None,)}

_WIDENING = ("<i8", "<u8", "<f8")
"""Python numbers have these dtypes. A list that mixes them gets the last of its dtypes."""

PARTS = '{"name": {str(i): part for i, part in enumerate(value)}}'
"""Messages show this code, which turns one value of a gymnasium Tuple space into named fields."""

PARTS_OF_MANY = '{"name": {str(i): list(part) for i, part in enumerate(zip(*value))}}'
"""Messages show this code, which turns a list of such values, one for each episode, into named fields."""

_STACK = "or np.stack(value) if all parts have one shape (if their number varies: signature=, with None for it)"
_STORABLE = (
    "memstore keeps bool, integer, float and complex arrays; give text as str (a list of str for several "
    "episodes), times as numbers, structures as nested dicts"
)


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a payload: the path, the type and the shape of its values.

    Attributes
    ----------
    path : tuple of str
        The nested keys that lead to the field.
    kind : {"array", "python", "str", "bytes"}
        "python" is a scalar that comes back as int, float or bool.
    dtype : str or None
        ``numpy.dtype.str`` of an array or of a Python scalar; None for "str" and "bytes".
    shape : tuple of int or None
        The lengths of an array; None for a ragged dimension, whose length may differ between episodes.

    Raises
    ------
    PayloadError
        If no such value can be stored.
    """

    path: Path
    kind: Literal["array", "python", "str", "bytes"]
    dtype: str | None
    shape: tuple[int | None, ...]

    def __post_init__(self) -> None:
        for key in self.path:
            check_key(key)
        where = f"field {self.name!r}"
        if self.kind == "array":
            dtype = parse_dtype(where, self.dtype)
            if any(n is not None and (type(n) is not int or n < 0) for n in self.shape):
                raise PayloadError(f"{where}: shape {shown(self.shape)} must hold ints >= 0, or None if ragged")
            if len(self.shape) > MAX_DIMENSIONS:
                raise PayloadError(f"{where} has {len(self.shape)} dimensions; reshape it to at most {MAX_DIMENSIONS}")
            check_size(where, extent((n or 1 for n in self.shape), dtype))
        elif self.shape != () or self.dtype not in _SCALARS.get(self.kind, ()):
            raise PayloadError(f"{where}: {self.kind} cannot have dtype {self.dtype} and shape {self.shape}")

    def __str__(self) -> str:
        return f"{self.name} {self.type_text}"

    @property
    def name(self) -> str:
        """The keys of the path, joined by ``/``. It is unique in a signature."""
        return "/".join(self.path)

    @property
    def type_text(self) -> str:
        """The type as a short text such as ``float32[64]``, ``int32[*]``, ``float``, ``str``."""
        if self.dtype is None:
            return self.kind
        if self.kind == "python":
            return _PYTHON_NAMES[self.dtype]
        return array_text(np.dtype(self.dtype), self.shape)

    @property
    def fixed(self) -> bool:
        """True if the field takes the same number of bytes in every episode."""
        return self.dtype is not None and None not in self.shape


def leaves(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the leaves of a nested mapping, each with its path.

    Raises
    ------
    PayloadError
        If a mapping is empty or nested too deeply, or if a key cannot name a field.
    """
    where = f"field {'/'.join(path)!r}" if path else "the payload"
    if not isinstance(node, Mapping) or not node:
        raise PayloadError(f"{where} must be a dict with at least one field, got {shown(node)}")
    if len(path) >= MAX_DEPTH:
        raise PayloadError(f"{where} is nested deeper than {MAX_DEPTH} levels; does it contain itself?")
    for key, child in node.items():
        check_key(key)
        if isinstance(child, Mapping):
            yield from leaves(child, (*path, key))
        else:
            yield (*path, key), child


def nest(items: Iterable[tuple[Path, Any]]) -> dict[str, Any]:
    """Build the nested dict of these leaves. This is the inverse of ``leaves``."""
    root: dict[str, Any] = {}
    for path, value in items:
        node = root
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = value
    return root


def infer_field(path: Path, value: Any) -> Field:
    """Return the field that can hold this value of one episode. ``PayloadError`` if no field can."""
    if isinstance(value, str):
        return Field(path, "str", None, ())
    if isinstance(value, bytes):
        return Field(path, "bytes", None, ())
    where = f"field {'/'.join(path)!r}"
    if type(value) is int and not -(2**63) <= value < 2**64:
        raise PayloadError(f"{where}: {shown(value)} is beyond 64 bits; give a float, str or bytes")
    if type(value) in PYTHON_DTYPES:
        dtype = "<u8" if type(value) is int and value >= 2**63 else PYTHON_DTYPES[type(value)]
        return Field(path, "python", dtype, ())
    array = check_array(where, value)
    return Field(path, "array", array.dtype.str, array.shape)


def infer_column(path: Path, column: Any) -> Field:
    """Return the field that can hold the values of several episodes, given as a stacked array or as a list.

    Raises
    ------
    PayloadError
        If the column is empty, or if the values do not have one dtype and one number of dimensions.
    """
    where = f"field {'/'.join(path)!r}"
    if not column_length(where, column):
        raise PayloadError(f"{where} is empty; give at least one episode")
    if isinstance(column, (list, tuple)):
        try:
            return reduce(_merge, (infer_field(path, value) for value in column))
        except PayloadError as exc:
            raise PayloadError(f"{exc}{tuple_advice(column)}") from None
    array = check_array(where, column)
    return Field(path, "array", array.dtype.str, array.shape[1:])


def _merge(one: Field, other: Field) -> Field:
    """Return the field that can hold the values of both fields."""
    if one == other:
        return one
    if one.kind == other.kind == "python" and {one.dtype, other.dtype} <= set(_WIDENING):
        return max(one, other, key=lambda field: _WIDENING.index(str(field.dtype)))
    if (
        one.kind == other.kind == "array"
        and same_type(np.dtype(one.dtype), np.dtype(other.dtype))
        and len(one.shape) == len(other.shape)
    ):
        shape = (a if a == b else None for a, b in zip(one.shape, other.shape, strict=True))
        return Field(one.path, "array", one.dtype, tuple(shape))
    raise PayloadError(
        f"field {one.name!r}: the list mixes {one.type_text} with {other.type_text}; a field has one "
        "dtype and one number of dimensions"
    )


def specified_field(path: Path, spec: Any) -> Field:
    """Return the field that a user describes by ``(dtype, shape)``, by a dtype, or by a Python type.

    Raises
    ------
    PayloadError
        If the description is none of these.
    """
    if spec is str or spec is bytes:
        return Field(path, "str" if spec is str else "bytes", None, ())
    if isinstance(spec, type) and spec in PYTHON_DTYPES:
        return Field(path, "python", PYTHON_DTYPES[spec], ())
    dtype, shape = spec if isinstance(spec, (tuple, list)) and len(spec) == 2 else (spec, ())
    if isinstance(dtype, (str, type, np.dtype)) and isinstance(shape, (tuple, list)):
        try:
            return Field(path, "array", np.dtype(dtype).str, tuple(shape))
        except (TypeError, SyntaxError):
            pass  # numpy raises this for a text that names no dtype
    raise PayloadError(
        f"field {'/'.join(path)!r}: {shown(spec)} is not the type of a field; give (dtype, shape), a dtype, or one of "
        "the types str, bytes, float, int, bool"
    )


def tuple_advice(column: Any) -> str:
    """Write advice for a tuple in a batch. gymnasium's vector environments give a tuple of parts, not of episodes."""
    return f"; if it is a Tuple observation, name its parts: {PARTS}" if isinstance(column, tuple) else ""


def column_length(where: str, column: Any) -> int:
    """Return the number of episodes in a stacked array or in a list. ``PayloadError`` if it is neither."""
    if isinstance(column, (list, tuple)):
        for value in column:
            if _has_parts(value):
                raise PayloadError(f"{where}: {shown(value)} is not one value; name its parts: {PARTS_OF_MANY}")
    if isinstance(column, (list, tuple)) or (isinstance(column, np.ndarray) and column.ndim):
        return len(column)
    raise PayloadError(
        f"{where}: a batch needs a stacked array (first dimension = episodes) or a list with one value per "
        f"episode, got {shown(column)}"
    )


def parse_dtype(where: str, text: Any) -> DType:
    """Return the dtype that a ``dtype.str`` names. ``PayloadError`` if memstore does not store this dtype."""
    try:
        # The pattern lets no other text through: a stored text must not reach numpy's parser of structured dtypes.
        dtype = np.dtype(text) if isinstance(text, str) and _DTYPE.fullmatch(text) else None
    except TypeError:
        dtype = None
    if dtype is None or dtype.str != text:
        raise PayloadError(f"{where}: dtype {shown(text)} cannot be stored; {_STORABLE}")
    return dtype


def check_array(where: str, value: Any) -> Array:
    """Return an array or a numpy scalar as a plain ndarray.

    Raises
    ------
    PayloadError
        If the value is neither, or if memstore does not store its dtype.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise PayloadError(f"{where}: masked arrays cannot be stored; give .filled() and .mask as two fields")
    if _has_parts(value):
        raise PayloadError(f"{where}: {shown(value)} is not one value; name its parts: {PARTS}, {_STACK}")
    if not isinstance(value, (np.ndarray, np.generic)):
        raise PayloadError(
            f"{where}: cannot store {shown(value)}; convert it, for example with np.asarray(..., dtype=...); "
            "for a missing value, store another one such as nan"
        )
    if value.dtype.kind not in "biufc":
        raise PayloadError(f"{where}: cannot store an array of dtype {value.dtype}; {_STORABLE}")
    return np.asarray(value)


def _has_parts(value: Any) -> bool:
    """True if the value is a list of arrays, texts or the like. A list of numbers was probably meant as an array."""
    return isinstance(value, (list, tuple)) and any(not isinstance(part, (int, float)) for part in value)


def extent(shape: Iterable[int], dtype: DType) -> int:
    """Return the bytes of an array. A length of 0 counts as 1, because numpy limits shapes like ``(0, 2**60)`` too."""
    return math.prod(length or 1 for length in shape) * dtype.itemsize


def check_size(what: str, size: int) -> None:
    """Raise ``PayloadError`` if this many bytes do not fit in a blob."""
    if size > MAX_BLOB_BYTES:
        raise PayloadError(f"{what} needs {size} bytes; a payload has at most {MAX_BLOB_BYTES}, split it up")


def check_key(key: Any) -> None:
    """Raise ``PayloadError`` if the key cannot name a field."""
    if not isinstance(key, str) or not key:
        raise PayloadError(f"a field needs a name that is a non-empty str, got the key {shown(key)}")
    utf8("a key", key)


def utf8(where: str, text: str) -> bytes:
    """Return the text in UTF-8. ``PayloadError`` if it holds lone surrogates, which databases cannot store."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise PayloadError(
            f"{where}: the str holds a lone surrogate, which cannot be stored as text; give bytes, for example "
            "text.encode(errors='surrogateescape')"
        ) from None


def same_type(one: DType, other: DType) -> bool:
    """True if two dtypes are equal, or differ only in byte order."""
    return one == other or one.newbyteorder("=") == other.newbyteorder("=")


def array_text(dtype: DType, shape: Iterable[int | None] = ()) -> str:
    """Write a dtype and a shape as a short text such as ``float32[3,*]``."""
    lengths = ",".join("*" if length is None else str(length) for length in shape)
    return (dtype.name if dtype.isnative else dtype.str) + (f"[{lengths}]" if lengths else "")


def pad(arrays: Sequence[Array]) -> tuple[Array, npt.NDArray[np.bool_]]:
    """Stack arrays of different lengths. Each is filled up with zeros at the end of its dimensions.

    Parameters
    ----------
    arrays : sequence of ndarray
        At least one array. All have one dtype and one number of dimensions.

    Returns
    -------
    padded : ndarray of shape (len(arrays), longest, ...)
        The arrays, with their dtype.
    mask : bool ndarray of the same shape
        True for the values of the arrays, False for the zeros that were added.

    Raises
    ------
    InvalidValue
        If there is no array, or if the arrays differ in dtype or number of dimensions.
    """
    if len({(array.dtype, array.ndim) for array in arrays}) != 1:
        raise InvalidValue("pad() needs at least one array, and all of one dtype and one number of dimensions")
    lengths = zip(*(array.shape for array in arrays), strict=True)
    shape = (len(arrays), *(max(column) for column in lengths))
    padded, mask = np.zeros(shape, arrays[0].dtype), np.zeros(shape, np.bool_)
    for index, array in enumerate(arrays):
        corner: tuple[int | slice, ...] = (index, *(slice(length) for length in array.shape))
        padded[corner] = array
        mask[corner] = True
    return padded, mask
