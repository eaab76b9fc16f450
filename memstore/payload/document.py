"""A trainer's state as JSON text and one blob: the text describes it whole, the blob holds its arrays' data.

A JSON object is a node with one tag. ``dict`` has text keys; ``items`` has keys of any kind, as pairs; ``ordered`` and
``counter`` wrap one of these. Version 2 added the last three and ``tensor``; a document that needs none of them has
version 1 still, so that an older memstore reads it.
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
from memstore.payload.fields import Array, check_array, check_size, parse_dtype, utf8
from memstore.payload.tensors import BITS, tensor_bits, tensor_of
from memstore.values.foreign import MAX_DEPTH, is_tensor
from memstore.values.shown import shown

DOCUMENT_VERSION = 2
_SINCE_2 = frozenset({"items", "ordered", "counter", "tensor"})
_MAPPINGS: dict[type, str | None] = {dict: None, OrderedDict: "ordered", Counter: "counter"}
_INSTEAD: dict[str, str] = {
    "defaultdict": "write dict(...)",
    "Size": "write tuple(...)",
    "set": "write sorted(...)",
    "frozenset": "write sorted(...)",
}
_DEEPEST = 4 * MAX_DEPTH
"""Levels of a document: a value of a state takes at most four."""


def pack(state: Mapping[str, Any]) -> tuple[str, bytes]:
    """Describe a state as ASCII JSON text, with the data of its arrays and bytes apart.

    ``PayloadError`` when it holds anything else; the message gives the place, such as ``model.layers[2]``.

    Parameters
    ----------
    state : mapping
        Nested dict, OrderedDict or Counter (keys: None, bool, int, float, str or tuples of them), list or tuple of
        None, bool, int, float, str, bytes, numpy arrays and scalars, and tensors of PyTorch.
    """
    if not isinstance(state, Mapping):
        raise PayloadError(f"a state must be a dict, got {shown(state)}")
    writer = _Writer()
    node = writer.node(dict(state), "state", 0)
    check_size("the state", sum(map(len, writer.chunks)))
    return json.dumps({"document": writer.version, "state": node}, separators=(",", ":")), b"".join(writer.chunks)


class _Writer:
    """Makes the nodes, and keeps what belongs into the data in their order."""

    def __init__(self) -> None:
        self.chunks: list[bytes | memoryview] = []
        self.version = 1

    def node(self, value: Any, where: str, depth: int) -> Any:
        """A JSON node; every JSON object is a tagged node, so that no user key can be mistaken for a tag."""
        if depth > MAX_DEPTH:
            raise PayloadError(f"{where:.200} is nested deeper than {MAX_DEPTH} levels; does it contain itself?")
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            utf8(where, value)
            return value
        if kind is int:
            # Python refuses to write or read decimal ints of more than 4300 digits.
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
            node = self._tagged("items", pairs)
        tag = _MAPPINGS[type(value)]
        return node if tag is None else self._tagged(tag, node)

    def _key(self, key: Any, where: str, depth: int) -> Any:
        plain = key if isinstance(key, tuple) else (key,)
        if not all(part is None or type(part) in (bool, int, float, str) for part in plain):
            raise PayloadError(
                f"{where:.200} has the key {shown(key)}; keys of a state are str, int, float, bool, None or tuples of "
                "them (of a numpy scalar write key.item())"
            )
        return self.node(key, f"a key of {where}", depth)

    def _array(self, value: Any, where: str) -> dict[str, Any]:
        if is_tensor(value):
            name, array = tensor_bits(where, value)
            node = self._tagged("tensor", [name, array.shape])
        else:
            if advice := _INSTEAD.get(type(value).__name__):
                raise PayloadError(f"{where}: cannot store {shown(value)}; {advice}")
            array = check_array(where, value)
            scalar = isinstance(value, np.generic)
            node = {"scalar": array.dtype.str} if scalar else {"array": [array.dtype.str, array.shape]}
        self.chunks.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return node

    def _tagged(self, tag: str, body: Any) -> dict[str, Any]:
        self.version = DOCUMENT_VERSION
        return {tag: body}


def _key_text(key: Any) -> str:
    return key[:80] if type(key) is str else shown(key).partition(" (")[0]


def unpack(document: str, data: bytes) -> dict[str, Any]:
    """The state that `pack` was given; arrays are fresh and writable.

    A tensor comes back on the CPU, without a graph and with storage of its own; where PyTorch is not installed, as an
    array (a bfloat16 as the float32 of the same value).

    ``StoreCorrupt`` when document or data is damaged, ``SchemaTooNew`` when a later memstore wrote it.
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
    """Takes the data apart in the order in which the document names it."""

    def __init__(self, data: bytes, version: int) -> None:
        self.data = data
        self.version = version
        self.at = 0

    def read(self, node: Any, depth: int = 0) -> Any:
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
        """A dict from pairs; a key that stands there twice is damage."""
        found = {self.read(key, depth + 1): self.read(item, depth + 1) for key, item in pairs}
        if len(found) < len(pairs):
            raise ValueError("a key stands there twice")
        return found

    def inner(self, node: Any, depth: int) -> dict[Any, Any]:
        """The dict that a wrapper is made of."""
        found = self.read(node, depth + 1)
        if type(found) is not dict:
            raise ValueError("a wrapper of something else than a dict")
        return found

    def skip(self, size: Any) -> int:
        """Where the next ``size`` bytes begin."""
        start = self.at
        if type(size) is not int or not 0 <= size <= len(self.data) - start:
            raise ValueError(f"{len(self.data) - start} bytes left where more are needed")
        self.at += size
        return start

    def array(self, text: Any, shape: list[int]) -> Array:
        dtype = parse_dtype("state", text)
        if any(type(length) is not int or length < 0 for length in shape):
            raise ValueError("negative length of an array")
        start = self.skip(math.prod(shape) * dtype.itemsize)
        return np.ndarray(shape, dtype, self.data, start).copy()
