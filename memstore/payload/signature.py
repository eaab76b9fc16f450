"""Payloads as bytes: one blob per episode, laid out by the buffer's signature, so that blobs carry no header.

A blob holds the fixed-size fields, packed in signature order, then the variable ones: a ragged array as one
little-endian uint32 per ragged dimension and its raw bytes; str (UTF-8) and bytes as a uint32 length and
the bytes.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from memstore.errors import ConfigError, InvalidValue, PayloadError, SchemaTooNew, StoreCorrupt
from memstore.payload.fields import (
    PYTHON_DTYPES,
    Array,
    DType,
    Field,
    Path,
    array_text,
    check_array,
    check_size,
    column_length,
    extent,
    infer_column,
    infer_field,
    leaves,
    nested,
    same_type,
    specified_field,
    tuple_advice,
    utf8,
)
from memstore.values.shown import described, listed, shown

CODEC_VERSION = 1

MAX_FIELDS = 4096
"""More would take seconds with every add, under the lock, and so would those of somebody's file."""

MAX_NAMES = 2**18
LONGEST_TEXT = 2**23
"""Characters of all names, and of the JSON text: at the most 12 a character, and some 1,000 more a field."""

# The Python scalars that a field of each numpy kind takes, as in NEP 50.
_WEAK: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}, "c": {int, float}}


class _Slot(NamedTuple):
    """Where a fixed field stands in the record."""

    field: Field
    dtype: DType
    shape: tuple[int, ...]
    start: int
    stop: int

    def column(self, records: Array) -> Array:
        """The field of all records, as a strided and unaligned view."""
        return records[:, self.start : self.stop].view(self.dtype).reshape(len(records), *self.shape)


@dataclass(frozen=True)
class Signature:
    """Field names, dtypes and shapes of a buffer's payloads, and the codec for them.

    Attributes
    ----------
    fields : tuple of Field
        In first-seen order, as in the blob; the key order of later payloads does not matter.
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = {field.name for field in self.fields}
        branches = {field.path[:depth] for field in self.fields for depth in range(len(field.path))}
        if len(names) < len(self.fields) or branches & {field.path for field in self.fields}:
            raise PayloadError(f"two fields have the same name: {self.described()}")
        if not self.fields:
            raise PayloadError("a payload needs at least one field")
        if len(self.fields) > MAX_FIELDS:
            raise PayloadError(f"a payload has at most {MAX_FIELDS} fields, got {len(self.fields)}; stack some of them")
        if sum(map(len, names)) > MAX_NAMES:
            raise PayloadError(f"the names of all fields have at most {MAX_NAMES} characters together; shorten them")
        check_size("an episode", self._record_bytes)

    @classmethod
    def infer(cls, payload: Mapping[str, Any], count: int | None) -> Signature:
        """Signature of a first payload.

        Parameters
        ----------
        payload : nested mapping
            The values of one episode; with ``count``, of that many: every leaf a stacked array or a list.
        count : int or None
            None for one episode. In lists of arrays, the dimensions whose lengths differ become ragged.
        """
        infer = infer_field if count is None else infer_column
        return cls(tuple(infer(path, value) for path, value in leaves(payload)))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Signature:
        """Signature described by a user; ``ConfigError`` when the description makes no sense.

        Parameters
        ----------
        spec : nested mapping
            Per field ``(dtype, shape)`` with None for a ragged dimension, a dtype alone for a scalar array,
            or one of the types ``str``, ``bytes``, ``float``, ``int``, ``bool``.
        """
        try:
            return cls(tuple(specified_field(path, leaf) for path, leaf in leaves(spec)))
        except PayloadError as exc:
            raise ConfigError(f"signature: {exc}") from exc

    def to_json(self) -> str:
        """Text for the buffer row, codec version included."""
        fields = [{"path": f.path, "kind": f.kind, "dtype": f.dtype, "shape": f.shape} for f in self.fields]
        return json.dumps({"codec": CODEC_VERSION, "fields": fields}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Signature:
        """Inverse of `to_json`; ``SchemaTooNew`` for a later codec version, else ``StoreCorrupt``."""
        try:
            if len(text) > LONGEST_TEXT:
                raise ValueError(f"{len(text)} characters")
            stored = json.loads(text)
            version = stored["codec"]
            if type(version) is int and version > CODEC_VERSION:
                raise SchemaTooNew(f"payloads have codec version {version}; upgrade memstore to read them")
            if len(stored["fields"]) > MAX_FIELDS:
                raise ValueError(f"{len(stored['fields'])} fields, more than {MAX_FIELDS}")
            entries = [(tuple(f["path"]), f["kind"], f["dtype"], tuple(f["shape"])) for f in stored["fields"]]
            signature = cls(tuple(Field(*entry) for entry in entries))
            exact = json.loads(signature.to_json()) == stored
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as exc:
            raise StoreCorrupt(f"the buffer's signature cannot be read: {str(exc)[:200]}") from exc
        if not exact:
            raise StoreCorrupt("the buffer's signature is not as this version of memstore writes it")
        return signature

    def describe(self) -> str:
        """Short text such as ``input float32[64], tokens int32[*], text str``."""
        return ", ".join(map(str, self.fields))

    def described(self, most: int = 10) -> str:
        """The first fields as `describe` has them, and how many more there are: for a message."""
        return described(self.fields, len(self.fields), most)

    def field(self, name: str | Sequence[str]) -> Field:
        """The field called ``"input"``, ``"obs/pos"`` or ``("obs", "pos")``."""
        path = tuple(name) if isinstance(name, (list, tuple)) else None
        for field in self.fields:
            if field.path == path or (isinstance(name, str) and name == field.name):
                return field
        raise InvalidValue(f"there is no field {listed([name])}; the buffer has {self.described()}")

    def encode(self, payload: Mapping[str, Any], count: int) -> list[bytes]:
        """One blob per episode from stacked arrays or lists.

        ``PayloadError`` when anything differs from the signature; only Python scalars and byte order convert.
        """
        columns = self._matched(payload)
        if count < 1:
            raise PayloadError("the batch is empty; give at least one episode")
        for field in self.fields:
            where = f"field {field.name!r}"
            length = column_length(where, columns[field.path])
            if length != count:
                hint = tuple_advice(columns[field.path])
                raise PayloadError(f"{where} holds {length} episodes where {count} are expected{hint}")
        return self._encode(columns, count)

    def encode_one(self, payload: Mapping[str, Any]) -> bytes:
        """The blob of one episode; see `encode`."""
        return self._encode({path: (value,) for path, value in self._matched(payload).items()}, 1)[0]

    def decode(self, blobs: Sequence[bytes]) -> dict[str, Any]:
        """The payloads of several episodes, fresh and writable.

        A fixed field is one array ``(n, *shape)``, a ragged one a list of n arrays, str and bytes a list.
        ``StoreCorrupt`` when a blob does not have the layout of the signature.
        """
        columns = self._decode(blobs)
        return nested((field.path, columns[field.path]) for field in self.fields)

    def decode_one(self, blob: bytes) -> dict[str, Any]:
        """The payload of one episode, Python scalars where the signature says so; see `decode`."""
        columns = self._decode([blob])
        return nested((field.path, _only(field, columns[field.path])) for field in self.fields)

    @staticmethod
    def batch_size(payload: Mapping[str, Any]) -> int:
        """Number of episodes in a payload of stacked arrays and lists; fields that disagree are refused."""
        sizes: dict[int, str] = {}
        for path, column in leaves(payload):
            where = f"field {'/'.join(path)!r}"
            sizes.setdefault(column_length(where, column), where)
        if len(sizes) > 1:
            some = list(sizes.items())[:2]
            text = " but ".join(f"{where:.80} holds {length} episodes" for length, where in some)
            hints = "".join(tuple_advice(column) for _, column in leaves(payload))
            raise PayloadError(f"{text}; give every field one value per episode{hints:.200}")
        return next(iter(sizes))

    @cached_property
    def _slots(self) -> tuple[_Slot, ...]:
        slots: list[_Slot] = []
        start = 0
        for field in self.fields:
            if field.fixed:
                dtype = np.dtype(field.dtype)
                shape = tuple(length for length in field.shape if length is not None)
                slots.append(_Slot(field, dtype, shape, start, start + math.prod(shape) * dtype.itemsize))
                start = slots[-1].stop
        return tuple(slots)

    @cached_property
    def _variable(self) -> tuple[Field, ...]:
        return tuple(field for field in self.fields if not field.fixed)

    @cached_property
    def _record_bytes(self) -> int:
        return self._slots[-1].stop if self._slots else 0

    def _matched(self, payload: Mapping[str, Any]) -> dict[Path, Any]:
        columns = dict(leaves(payload))
        known = {field.path for field in self.fields}
        if columns.keys() == known:
            return columns
        missing = ["/".join(field.path) for field in self.fields if field.path not in columns]
        unknown = ["/".join(path) for path in columns if path not in known]
        raise PayloadError(
            f"payload fields missing: {listed(missing, 3)}, unknown: {listed(unknown, 3)}; "
            f"every episode of this buffer has exactly: {self.described(3)}"
        )

    def _encode(self, columns: Mapping[Path, Any], count: int) -> list[bytes]:
        size = self._record_bytes
        records = np.empty((count, size), np.uint8)
        for slot in self._slots:
            _fill(slot, slot.column(records), columns[slot.field.path])
        # As void scalars the rows come out as bytes four times faster than by slicing in Python.
        heads: list[bytes] = records.view(f"V{size}").ravel().tolist() if size else [b""] * count
        if not self._variable:
            return heads
        tails = [_tails(field, columns[field.path]) for field in self._variable]
        return [_joined(index, parts) for index, parts in enumerate(zip(heads, *tails, strict=True))]

    def _decode(self, blobs: Sequence[bytes]) -> dict[Path, Any]:
        size = self._record_bytes
        heads = [blob[:size] for blob in blobs] if self._variable else blobs
        if wrong := set(map(len, heads)) - {size}:
            raise StoreCorrupt(f"a payload has {min(wrong)} bytes where {size} are needed")
        records = np.ndarray((len(heads), size), np.uint8, b"".join(heads))
        columns: dict[Path, Any] = {slot.field.path: slot.column(records).copy() for slot in self._slots}
        ends = [size] * len(blobs)
        for field in self._variable:
            pairs = [_read(field, blob, at) for blob, at in zip(blobs, ends, strict=True)]
            columns[field.path] = [value for value, _ in pairs]
            ends = [end for _, end in pairs]
        if self._variable and ends != list(map(len, blobs)):
            raise StoreCorrupt("a payload is longer than its fields")
        return columns


def checksum(blob: bytes, episode_id: int) -> int:
    """CRC-32 of a payload, started from its episode id so that a payload under the wrong id fails too."""
    return zlib.crc32(blob, (episode_id ^ episode_id >> 32) & 0xFFFFFFFF)


def _where(field: Field, values: Sequence[Any], index: int) -> str:
    return f"field {field.name!r}" + (f", episode {index} of the batch" if len(values) > 1 else "")


def _fill(slot: _Slot, column: Array, values: Any) -> None:
    """Write one value per episode into the records."""
    field, dtype = slot.field, slot.dtype
    if isinstance(values, np.ndarray):
        array = check_array(f"field {field.name!r}", values)
        _check_fit(f"field {field.name!r}", field, dtype, array.dtype, array.shape[1:])
        column[...] = array
    elif not slot.shape and (scalars := _weak(dtype, values)) is not None:
        column[...] = scalars
    else:
        for index, value in enumerate(values):
            column[index] = _element(_where(field, values, index), field, dtype, value)


def _weak(dtype: DType, values: Sequence[Any]) -> Array | None:
    """Python scalars as an array; None when one is something else, or does not fit."""
    if not set(map(type, values)) <= _WEAK[dtype.kind]:
        return None
    try:
        finite = list(map(math.isfinite, values))
        with np.errstate(over="ignore"):
            array = np.array(values, dtype)
    except OverflowError:
        return None
    return array if np.isfinite(array).tolist() == finite else None


def _element(where: str, field: Field, dtype: DType, value: Any) -> Array:
    """One episode's value as an array, checked."""
    if type(value) not in PYTHON_DTYPES:
        array = check_array(where, value)
    elif (scalar := _weak(dtype, [value])) is not None:
        array = scalar.reshape(())
    else:
        raise PayloadError(
            f"{where}: {shown(value)} does not fit {field.type_text}; bool goes into bool, int into "
            "integers, int and float into float and complex, each within range"
        )
    _check_fit(where, field, dtype, array.dtype, array.shape)
    return array


def _check_fit(where: str, field: Field, dtype: DType, given: DType, shape: tuple[int, ...]) -> None:
    if not same_type(dtype, given):
        advice = f"nothing is cast silently, convert it with .astype({dtype.name!r})"
    elif len(shape) != len(field.shape):
        advice = "the number of dimensions is fixed per buffer, reshape the array"
    elif shape != field.shape and any(want not in (None, got) for want, got in zip(field.shape, shape, strict=True)):
        spec: Any = (
            dtype.name,
            tuple(w if w == got else None for w, got in zip(field.shape, shape, strict=True)),
        )
        for key in reversed(field.path):
            spec = {key: spec}
        advice = f"for lengths that vary create the buffer with open(..., signature={spec})"
    else:
        return
    got = array_text(given, shape)
    raise PayloadError(f"{where}: expected {field.type_text}, got {got}; {advice}")


def _tails(field: Field, values: Sequence[Any]) -> list[bytes]:
    """The variable part of one field, per episode."""
    return [_tail(_where(field, values, index), field, value) for index, value in enumerate(values)]


def _tail(where: str, field: Field, value: Any) -> bytes:
    if field.dtype is None:
        if not isinstance(value, str if field.kind == "str" else bytes):
            got = shown(value)
            raise PayloadError(f"{where}: expected {field.kind}, got {got}; convert it to {field.kind} first")
        data = utf8(where, value) if isinstance(value, str) else value
        check_size(where, len(data))
        return struct.pack("<I", len(data)) + data
    dtype = np.dtype(field.dtype)
    array = _element(where, field, dtype, value)
    check_size(where, extent(array.shape, dtype))
    lengths = [got for got, want in zip(array.shape, field.shape, strict=True) if want is None]
    return struct.pack(f"<{len(lengths)}I", *lengths) + array.astype(dtype, copy=False).tobytes()


def _joined(index: int, parts: tuple[bytes, ...]) -> bytes:
    check_size(f"episode {index} of the batch", sum(map(len, parts)))
    return b"".join(parts)


def _read(field: Field, blob: bytes, at: int) -> tuple[Any, int]:
    """One variable field's value, and where it ends."""
    count = field.shape.count(None) if field.dtype else 1
    start = _end(blob, at, 4 * count)
    lengths = iter(struct.unpack_from(f"<{count}I", blob, at))
    try:
        if field.dtype is None:
            end = _end(blob, start, next(lengths))
            return blob[start:end].decode() if field.kind == "str" else blob[start:end], end
        dtype = np.dtype(field.dtype)
        shape = [next(lengths) if length is None else length for length in field.shape]
        check_size("its array", extent(shape, dtype))
        end = _end(blob, start, math.prod(shape) * dtype.itemsize)
        return np.ndarray(shape, dtype, blob, start).copy(), end
    except (PayloadError, UnicodeDecodeError) as exc:
        raise StoreCorrupt(f"a payload is damaged in field {field.name!r}: {exc}") from exc


def _end(blob: bytes, at: int, size: int) -> int:
    if at + size > len(blob):
        raise StoreCorrupt(f"a payload ends after {len(blob)} bytes where {at + size} are needed")
    return at + size


def _only(field: Field, column: Any) -> Any:
    if field.kind == "python":
        return column[0].item()
    return column[0, ...] if field.fixed else column[0]
