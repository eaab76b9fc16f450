"""Writes a trainer's state as JSON text and one blob, and reads it again.

The text, called the document, describes the whole state. The blob holds the data of its arrays and bytes.

Every JSON object is a node with one tag. A ``dict`` node has text keys. An ``items`` node has keys of any kind, as
pairs. ``ordered`` and ``counter`` nodes contain a ``dict`` or an ``items`` node. Version 2 added ``items``,
``ordered``, ``counter`` and ``tensor``. A document without these still has version 1, so that an older memstore can
read it.
"""

from __future__ import annotations

import json
import math
import struct
from collections import Counter, OrderedDict
from collections.abc import Mapping
from typing import Any

import numpy as np

from memstore.errors import PayloadError, SchemaTooNew, StoreCorrupt
from memstore.payload.fields import check_array, check_size, parse_dtype, utf8
from memstore.payload.tensors import BITS, tensor_bits, tensor_of
from memstore.values.foreign import MAX_DEPTH, Array, is_tensor
from memstore.values.shown import shown

DOCUMENT_VERSION = 2
"""This is the newest version of documents that this memstore reads and writes."""

_SINCE_2 = frozenset({"items", "ordered", "counter", "tensor"})
"""Tags that a document of version 1 cannot have."""

_MAPPINGS: dict[type, str | None] = {dict: None, OrderedDict: "ordered", Counter: "counter"}
"""A state may have these mappings. Each has the tag of the node around its ``dict`` or ``items`` node."""

_INSTEAD: dict[str, str] = {
    "defaultdict": "write dict(...)",
    "Size": "write tuple(...)",
    "set": "write sorted(...)",
    "frozenset": "write sorted(...)",
}
"""This advice is given for types that cannot be stored, by the name of the type."""

_DEEPEST = 4 * MAX_DEPTH
"""A document has at most this many levels. One level of a state takes at most four of them."""


def pack(state: Mapping[str, Any]) -> tuple[str, bytes]:
    """Write a state as a document and a blob.

    Parameters
    ----------
    state : mapping
        Nested dict, OrderedDict, Counter, list or tuple. Keys are None, bool, int, float, str, or tuples of these.
        Values are None, bool, int, float, str, bytes, numpy arrays and scalars, and tensors of PyTorch.

    Returns
    -------
    document : str
        ASCII JSON text.
    data : bytes
        The data of all arrays and bytes, in the order of the document.

    Raises
    ------
    PayloadError
        If the state holds anything else, or is too large. The message names the place, such as ``model.layers[2]``.
    """
    if not isinstance(state, Mapping):
        raise PayloadError(f"a state must be a dict, got {shown(state)}")
    writer = _Writer()
    node = writer.node(dict(state), "state", 0)
    check_size("the state", sum(map(len, writer.chunks)))
    return json.dumps({"document": writer.version, "state": node}, separators=(",", ":")), b"".join(writer.chunks)


class _Writer:
    """Makes the nodes of a document, and collects the data in the order of the nodes."""

    def __init__(self) -> None:
        self.chunks: list[bytes | memoryview] = []
        self.version = 1

    def node(self, value: Any, where: str, depth: int) -> Any:
        """Make the JSON node of a value. A user's key is never taken for a tag, because every JSON object is a node."""
        if depth > MAX_DEPTH:
            raise PayloadError(f"{where:.200} is nested deeper than {MAX_DEPTH} levels; does it contain itself?")
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            utf8(where, value)
            return value
        if kind is int:
            # A large int is written in hex: Python refuses to write or read decimal ints of more than 4300 digits.
            return value if -(2**63) <= value < 2**63 else {"int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"float": struct.pack("<d", value).hex()}
        if kind is bytes:
            self.chunks.append(value)
            return {"bytes": len(value)}
        if kind in _MAPPINGS:
            return self._mapping(value, where, depth)
        if kind is list or kind is tuple:
            items = [self.node(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
            return items if kind is list else {"tuple": items}
        return self._array(value, where)

    def _mapping(self, value: Mapping[Any, Any], where: str, depth: int) -> dict[str, Any]:
        prefix = "" if depth == 0 else f"{where}."
        if all(type(key) is str for key in value):
            for key in value:
                utf8(f"{where:.200}: the key {shown(key)}", key)
            node = {"dict": {key: self.node(item, f"{prefix}{key}", depth + 1) for key, item in value.items()}}
        else:
            pairs = [
                [self._key(key, where, depth + 1), self.node(item, f"{prefix}{_key_text(key)}", depth + 1)]
                for key, item in value.items()
            ]
            node = self._tag("items", pairs)
        tag = _MAPPINGS[type(value)]
        return node if tag is None else self._tag(tag, node)

    def _key(self, key: Any, where: str, depth: int) -> Any:
        plain = key if isinstance(key, tuple) else (key,)
        if not all(part is None or type(part) in (bool, int, float, str) for part in plain):
            raise PayloadError(
                f"{where:.200} has the key {shown(key)}; keys of a state are str, int, float, bool, None or tuples of "
                "them (for a numpy scalar, write key.item())"
            )
        return self.node(key, f"a key of {where}", depth)

    def _array(self, value: Any, where: str) -> dict[str, Any]:
        if is_tensor(value):
            name, array = tensor_bits(where, value)
            node = self._tag("tensor", [name, array.shape])
        else:
            if advice := _INSTEAD.get(type(value).__name__):
                raise PayloadError(f"{where}: cannot store {shown(value)}; {advice}")
            array = check_array(where, value)
            scalar = isinstance(value, np.generic)
            node = {"scalar": array.dtype.str} if scalar else {"array": [array.dtype.str, array.shape]}
        self.chunks.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return node

    def _tag(self, tag: str, body: Any) -> dict[str, Any]:
        self.version = DOCUMENT_VERSION
        return {tag: body}


def _key_text(key: Any) -> str:
    return key[:80] if type(key) is str else shown(key).partition(" (")[0]


def unpack(document: str, data: bytes) -> dict[str, Any]:
    """Read a state from its document and its data. This is the inverse of ``pack``.

    Arrays are new and writable. A tensor is on the CPU, without a graph, and has its own storage. If PyTorch is not
    installed, a tensor becomes an array; a bfloat16 tensor becomes a float32 array of the same values.

    Raises
    ------
    StoreCorrupt
        If the document or the data is damaged.
    SchemaTooNew
        If a later memstore wrote the document.
    """
    try:
        root = json.loads(document)
        version, node = root["document"], root["state"]
        if type(version) is int and version > DOCUMENT_VERSION:
            raise SchemaTooNew(f"the state is stored with document version {version}; upgrade memstore to read it")
        reader = _Reader(data, version)
        state = reader.read(node)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError, struct.error) as exc:
        raise StoreCorrupt(f"a stored state cannot be read: {exc}") from exc
    if (
        type(version) is not int
        or not 1 <= version <= DOCUMENT_VERSION
        or type(state) is not dict
        or reader.at != len(data)
    ):
        raise StoreCorrupt("a stored state is damaged: its document and its data do not belong together")
    return state


class _Reader:
    """Reads nodes. It takes their data from the blob in the order of the document."""

    def __init__(self, data: bytes, version: int) -> None:
        self.data = data
        self.version = version
        self.at = 0

    def read(self, node: Any, depth: int = 0) -> Any:
        """Return the value of a node."""
        if depth > _DEEPEST:
            raise ValueError("nested too deep")
        if isinstance(node, list):
            return [self.read(item, depth + 1) for item in node]
        if not isinstance(node, dict):
            return node
        ((tag, body),) = node.items()
        if tag in _SINCE_2 and self.version < 2:
            raise ValueError(f"node {tag!r} in a document of version {self.version}")
        match tag:
            case "dict":
                return {key: self.read(item, depth + 1) for key, item in body.items()}
            case "items":
                return self.mapping(body, depth)
            case "ordered" | "counter":
                return (OrderedDict if tag == "ordered" else Counter)(self.inner(body, depth))
            case "tuple":
                return tuple([self.read(item, depth + 1) for item in body])
            case "int":
                return int(body, 16)
            case "float":
                return struct.unpack("<d", bytes.fromhex(body))[0]
            case "bytes":
                return self.data[self.skip(body) : self.at]
            case "scalar":
                return self.array(body, [])[()]
            case "array":
                return self.array(*body)
            case "tensor":
                name, shape = body
                return tensor_of(name, self.array(BITS[name], shape))
        raise ValueError(f"unknown node {tag!r:.60}")

    def mapping(self, pairs: list[list[Any]], depth: int) -> dict[Any, Any]:
        """Return the dict of these pairs. A key that comes twice is damage."""
        found = {self.read(key, depth + 1): self.read(item, depth + 1) for key, item in pairs}
        if len(found) < len(pairs):
            raise ValueError("a key comes twice")
        return found

    def inner(self, node: Any, depth: int) -> dict[Any, Any]:
        """Return the dict inside an ``ordered`` or ``counter`` node."""
        found = self.read(node, depth + 1)
        if type(found) is not dict:
            raise ValueError("an ordered or counter node holds no dict")
        return found

    def skip(self, size: Any) -> int:
        """Step over the next ``size`` bytes of the data, and return where they begin."""
        start = self.at
        if type(size) is not int or not 0 <= size <= len(self.data) - start:
            raise ValueError(f"{len(self.data) - start} bytes are left where more are needed")
        self.at += size
        return start

    def array(self, text: Any, shape: list[int]) -> Array:
        """Return the next array of the data."""
        dtype = parse_dtype("state", text)
        if any(type(length) is not int or length < 0 for length in shape):
            raise ValueError("negative length of an array")
        start = self.skip(math.prod(shape) * dtype.itemsize)
        return np.ndarray(shape, dtype, self.data, start).copy()
