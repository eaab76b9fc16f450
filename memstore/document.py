"""A trainer's state as JSON text and one blob: the text describes it whole, the blob holds its arrays' data."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from typing import Any

import numpy as np

from memstore.errors import PayloadError, SchemaTooNew, StoreCorrupt
from memstore.fields import MAX_DEPTH, Array, check_array, check_size, parse_dtype, shown, utf8

DOCUMENT_VERSION = 1


def pack(state: Mapping[str, Any]) -> tuple[str, bytes]:
    """Describe a state as ASCII JSON text, with the data of its arrays and bytes apart.

    ``PayloadError`` when it holds anything else; the message gives the place, such as ``model.layers[2]``.

    Parameters
    ----------
    state : mapping
        Nested dict (str keys), list or tuple of None, bool, int, float, str, bytes, numpy arrays and scalars.
    """
    if not isinstance(state, Mapping):
        raise PayloadError(f"a state must be a dict, got {shown(state)}")
    chunks: list[bytes | memoryview] = []
    node = _packed(dict(state), "state", chunks, 0)
    check_size("the state", sum(map(len, chunks)))
    return json.dumps({"document": DOCUMENT_VERSION, "state": node}, separators=(",", ":")), b"".join(chunks)


def _packed(value: Any, where: str, chunks: list[bytes | memoryview], depth: int) -> Any:
    """A JSON node; every JSON object is a tagged node, so that no user key can be mistaken for a tag."""
    if depth > MAX_DEPTH:
        raise PayloadError(f"{where} is nested deeper than {MAX_DEPTH} levels; does it contain itself?")
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
        chunks.append(value)
        return {"bytes": len(value)}
    if kind is dict:
        for key in value:
            if type(key) is not str:
                raise PayloadError(f"{where} has the key {shown(key)}; keys of a state are str")
            utf8(f"{where}: the key {key!r}", key)
        prefix = "" if depth == 0 else f"{where}."
        return {"dict": {k: _packed(v, f"{prefix}{k}", chunks, depth + 1) for k, v in value.items()}}
    if kind is list or kind is tuple:
        items = [_packed(item, f"{where}[{index}]", chunks, depth + 1) for index, item in enumerate(value)]
        return items if kind is list else {"tuple": items}
    array = check_array(where, value)
    chunks.append(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return {"scalar": array.dtype.str} if isinstance(value, np.generic) else {"array": [array.dtype.str, array.shape]}


def unpack(document: str, data: bytes) -> dict[str, Any]:
    """The state that `pack` was given; arrays are fresh and writable.

    ``StoreCorrupt`` when document or data is damaged, ``SchemaTooNew`` when a later memstore wrote it.
    """
    try:
        root = json.loads(document)
        version, node = root["document"], root["state"]
        if type(version) is int and version > DOCUMENT_VERSION:
            raise SchemaTooNew(f"the state is stored with document version {version}; upgrade memstore to read it")
        reader = _Reader(data)
        state = reader.read(node)
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError, struct.error) as exc:
        raise StoreCorrupt(f"a stored state cannot be read: {exc}") from exc
    if type(version) is not int or version != DOCUMENT_VERSION or type(state) is not dict or reader.at != len(data):
        raise StoreCorrupt("a stored state is damaged: its document and its data do not belong together")
    return state


class _Reader:
    """Takes the data apart in the order in which the document names it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def read(self, node: Any) -> Any:
        if isinstance(node, list):
            return [self.read(item) for item in node]
        if not isinstance(node, dict):
            return node
        ((tag, body),) = node.items()
        match tag:
            case "dict":
                return {key: self.read(item) for key, item in body.items()}
            case "tuple":
                return tuple([self.read(item) for item in body])
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
        raise ValueError(f"unknown node {tag!r:.60}")

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
