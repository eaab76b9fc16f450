"""Encodes payloads as bytes: one blob for each episode. The signature gives the layout, so blobs need no header.

A blob begins with the fields of fixed size, packed in the order of the signature. The variable fields follow: a ragged
array is one little-endian uint32 for each ragged dimension, then its raw bytes; str (in UTF-8) and bytes are a uint32
length, then the bytes.
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
from numpy.typing import NDArray

from memstore.errors import ConfigError, InvalidValue, PayloadError, SchemaTooNew, StoreCorrupt
from memstore.payload.fields import (
    PYTHON_DTYPES,
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
    nest,
    same_type,
    specified_field,
    tuple_advice,
    utf8,
)
from memstore.values.foreign import Array
from memstore.values.shown import first_of, listed, shown

CODEC_VERSION = 1
"""The layout of blobs has this version, which is stored in the signature."""

MAX_FIELDS = 4096
"""A payload has at most this many fields. With more, each add would take seconds under the lock.

A hostile file could ask for that.
"""

MAX_NAMES = 2**18
"""Characters of the names of all fields together."""

LONGEST_TEXT = 2**23
"""A signature as JSON has at most this many characters.

These are up to 12 for each character of a name, and about 1,000 more for each field.
"""

_WEAK: dict[str, set[type]] = {"b": {bool}, "i": {int}, "u": {int}, "f": {int, float}, "c": {int, float}}
"""The types of Python scalars that an array field of each numpy kind takes, as in NEP 50."""


class _Slot(NamedTuple):
    """The place of a fixed field in the record, from the byte ``start`` to the byte before ``stop``."""

    field: Field
    dtype: DType
    shape: tuple[int, ...]
    start: int
    stop: int

    def column(self, records: Array) -> Array:
        """Return the field of all records, as a strided view that may be unaligned."""
        return records[:, self.start : self.stop].view(self.dtype).reshape(len(records), *self.shape)


@dataclass(frozen=True)
class Signature:
    """The fields of a buffer's payloads: names, dtypes and shapes. It encodes payloads as blobs and decodes them.

    Attributes
    ----------
    fields : tuple of Field
        In the order of the first payload, which is also the order in a blob. Later payloads may have another order of
        keys.

    Raises
    ------
    PayloadError
        If two fields have one name, or if there are no fields or too many.
    """

    fields: tuple[Field, ...]

    def __post_init__(self) -> None:
        names = {field.name for field in self.fields}
        branches = {field.path[:depth] for field in self.fields for depth in range(len(field.path))}
        if len(names) < len(self.fields) or branches & {field.path for field in self.fields}:
            raise PayloadError(f"two fields have the same name: {self.summary()}")
        if not self.fields:
            raise PayloadError("a payload needs at least one field")
        if len(self.fields) > MAX_FIELDS:
            raise PayloadError(f"a payload has at most {MAX_FIELDS} fields, got {len(self.fields)}; stack some of them")
        if sum(map(len, names)) > MAX_NAMES:
            raise PayloadError(f"the names of all fields may have {MAX_NAMES} characters together; shorten them")
        check_size("an episode", self._record_bytes)

    @classmethod
    def infer(cls, payload: Mapping[str, Any], count: int | None) -> Signature:
        """Return the signature that fits a first payload.

        Parameters
        ----------
        payload : nested mapping
            The values of one episode. With ``count``, the values of that many episodes: every leaf is a stacked array
            or a list. In a list of arrays, a dimension becomes ragged if its lengths differ.
        count : int or None
            The number of episodes; None if the payload is that of one episode.

        Raises
        ------
        PayloadError
            If the payload cannot be stored.
        """
        infer = infer_field if count is None else infer_column
        return cls(tuple(infer(path, value) for path, value in leaves(payload)))

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Signature:
        """Return the signature that a user describes.

        Parameters
        ----------
        spec : nested mapping
            For each field ``(dtype, shape)`` with None for a ragged dimension, or a dtype for an array without
            dimensions, or one of the types ``str``, ``bytes``, ``float``, ``int``, ``bool``.

        Raises
        ------
        ConfigError
            If the description makes no sense.
        """
        try:
            return cls(tuple(specified_field(path, leaf) for path, leaf in leaves(spec)))
        except PayloadError as exc:
            raise ConfigError(f"signature: {exc}") from exc

    def to_json(self) -> str:
        """Write the signature and the version of the codec as JSON, for the buffer's row."""
        fields = [{"path": f.path, "kind": f.kind, "dtype": f.dtype, "shape": f.shape} for f in self.fields]
        return json.dumps({"codec": CODEC_VERSION, "fields": fields}, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Signature:
        """Read a signature from its JSON text. This is the inverse of ``to_json``.

        Raises
        ------
        SchemaTooNew
            If the text has a later version of the codec.
        StoreCorrupt
            If the text is damaged.
        """
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
            why = f"cannot be read ({type(exc).__name__}: {str(exc)[:100]})"
            raise StoreCorrupt(f"the buffer's signature {why}; restore a backup: memstore restore BACKUP DB") from exc
        if not exact:
            why = "is not as this version of memstore writes it"
            raise StoreCorrupt(f"the buffer's signature {why}; restore a backup: memstore restore BACKUP DB")
        return signature

    def describe(self) -> str:
        """Write all fields as a text such as ``input float32[64], tokens int32[*], text str``."""
        return ", ".join(map(str, self.fields))

    def summary(self, most: int = 10) -> str:
        """Write the first fields and the number of the others, for a message."""
        return first_of(self.fields, len(self.fields), most)

    def field(self, name: str | Sequence[str]) -> Field:
        """Return the field called "input", "obs/pos" or ("obs", "pos"). ``InvalidValue`` if there is none."""
        path = tuple(name) if isinstance(name, (list, tuple)) else None
        for field in self.fields:
            if field.path == path or (isinstance(name, str) and name == field.name):
                return field
        raise InvalidValue(f"there is no field {listed([name])}; the buffer has {self.summary()}")

    def encode(self, payload: Mapping[str, Any], count: int) -> list[bytes]:
        """Encode a payload of several episodes.

        Parameters
        ----------
        payload : nested mapping
            Each leaf is a stacked array of shape ``(count, ...)`` or a list of ``count`` values. Python scalars are
            converted to the dtype of the field if they fit, and byte order is converted; nothing else is cast.
        count : int
            The number of episodes.

        Returns
        -------
        list of bytes
            One blob for each episode.

        Raises
        ------
        PayloadError
            If the payload does not fit the signature, or if the number of episodes differs from ``count``.
        """
        columns = self._columns(payload)
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
        """Encode the payload of one episode. Values and errors are those of ``encode``."""
        return self._encode({path: (value,) for path, value in self._columns(payload).items()}, 1)[0]

    def decode(self, blobs: Sequence[bytes]) -> dict[str, Any]:
        """Decode the payloads of several episodes.

        Returns
        -------
        nested dict
            A fixed field is one array of shape ``(n, *shape)``, a ragged field a list of n arrays, a field of str or
            bytes a list of n values. Arrays are new and writable.

        Raises
        ------
        StoreCorrupt
            If a blob does not have the layout of the signature.
        """
        return self._nested(self._decode(blobs))

    def decode_records(self, records: Array) -> dict[str, Any]:
        """Decode payloads without variable fields. See ``decode``.

        Parameters
        ----------
        records : uint8 array, shape (n, record_size)
            The bytes of a payload in each row.
        """
        return self._nested(self._fixed(records))

    def records(self, blobs: Sequence[bytes]) -> Array:
        """Return payloads without variable fields, or those parts of payloads, as ``decode_records`` takes them.

        Raises
        ------
        StoreCorrupt
            A blob has another length.
        """
        size = self._record_bytes
        if wrong := set(map(len, blobs)) - {size}:
            raise StoreCorrupt(f"a payload has {min(wrong)} bytes where {size} are needed")
        return np.ndarray((len(blobs), size), np.uint8, b"".join(blobs))

    @property
    def record_size(self) -> int | None:
        """Number of bytes of each payload. None if payloads have different lengths."""
        return None if self._variable else self._record_bytes

    def decode_one(self, blob: bytes) -> dict[str, Any]:
        """Decode the payload of one episode. A field of the kind "python" gives a Python scalar. See ``decode``."""
        columns = self._decode([blob])
        return nest((field.path, _single(field, columns[field.path])) for field in self.fields)

    @staticmethod
    def batch_size(payload: Mapping[str, Any]) -> int:
        """Return the number of episodes in a payload of stacked arrays and lists.

        Raises
        ------
        PayloadError
            If fields have different numbers of episodes, or if a field is neither an array nor a list.
        """
        sizes: dict[int, str] = {}
        for path, column in leaves(payload):
            where = f"field {'/'.join(path)!r}"
            sizes.setdefault(column_length(where, column), where)
        if len(sizes) > 1:
            two = list(sizes.items())[:2]
            text = " but ".join(f"{where:.80} holds {length} episodes" for length, where in two)
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

    def _columns(self, payload: Mapping[str, Any]) -> dict[Path, Any]:
        """Return the leaves by path, if they are exactly the fields of the signature."""
        columns = dict(leaves(payload))
        known = {field.path for field in self.fields}
        if columns.keys() == known:
            return columns
        missing = ["/".join(field.path) for field in self.fields if field.path not in columns]
        unknown = ["/".join(path) for path in columns if path not in known]
        raise PayloadError(
            f"payload fields missing: {listed(missing, 3)}, unknown: {listed(unknown, 3)}; "
            f"every episode of this buffer has exactly: {self.summary(3)}"
        )

    def _encode(self, columns: Mapping[Path, Any], count: int) -> list[bytes]:
        size = self._record_bytes
        records = np.empty((count, size), np.uint8)
        for slot in self._slots:
            _fill(slot, slot.column(records), columns[slot.field.path])
        # numpy turns rows of void scalars into bytes, four times faster than slices in Python.
        heads: list[bytes] = records.view(f"V{size}").ravel().tolist() if size else [b""] * count
        if not self._variable:
            return heads
        tails = [_encode_variable(field, columns[field.path]) for field in self._variable]
        return [_join(index, parts) for index, parts in enumerate(zip(heads, *tails, strict=True))]

    def _decode(self, blobs: Sequence[bytes]) -> dict[Path, Any]:
        size = self._record_bytes
        columns = self._fixed(self.records([blob[:size] for blob in blobs] if self._variable else blobs))
        ends = [size] * len(blobs)
        for field in self._variable:
            pairs = [_decode_variable(field, blob, at) for blob, at in zip(blobs, ends, strict=True)]
            columns[field.path] = [value for value, _ in pairs]
            ends = [end for _, end in pairs]
        if self._variable and ends != list(map(len, blobs)):
            raise StoreCorrupt("a payload is longer than its fields")
        return columns

    def _fixed(self, records: Array) -> dict[Path, Any]:
        return {slot.field.path: slot.column(records).copy() for slot in self._slots}

    def _nested(self, columns: Mapping[Path, Any]) -> dict[str, Any]:
        return nest((field.path, columns[field.path]) for field in self.fields)


def checksum(blob: bytes, episode_id: int) -> int:
    """Return the CRC-32 of a payload. It starts from the episode id, so that a payload under a wrong id fails too."""
    return zlib.crc32(blob, (episode_id ^ episode_id >> 32) & 0xFFFFFFFF)


def checksums_of(blobs: Sequence[bytes], ids: NDArray[np.int64]) -> list[int]:
    """Return the ``checksum`` of each payload. For 256 of them this takes 30 us, and a call for each 90 us."""
    return list(map(zlib.crc32, blobs, ((ids ^ ids >> 32) & 0xFFFFFFFF).tolist()))


def _where(field: Field, values: Sequence[Any], index: int) -> str:
    return f"field {field.name!r}" + (f", episode {index} of the batch" if len(values) > 1 else "")


def _fill(slot: _Slot, column: Array, values: Any) -> None:
    """Write the values of a fixed field into a column of the records, one for each episode."""
    field, dtype = slot.field, slot.dtype
    if isinstance(values, np.ndarray):
        array = check_array(f"field {field.name!r}", values)
        _check_fit(f"field {field.name!r}", field, dtype, array.dtype, array.shape[1:])
        column[...] = array
    elif not slot.shape and (scalars := _weak(dtype, values)) is not None:
        column[...] = scalars
    else:
        for index, value in enumerate(values):
            plain = type(value) is np.ndarray and value.dtype == dtype and value.shape == slot.shape
            column[index] = value if plain else _element(_where(field, values, index), field, dtype, value)


def _weak(dtype: DType, values: Sequence[Any]) -> Array | None:
    """Return Python scalars as an array; None if a value is not such a scalar, or does not fit the dtype."""
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
    """Return one episode's value as an array that fits the field."""
    if type(value) not in PYTHON_DTYPES:
        array = check_array(where, value)
    elif (scalar := _weak(dtype, [value])) is not None:
        array = scalar.reshape(())
    else:
        raise PayloadError(
            f"{where}: {shown(value)} does not fit {field.type_text}; a bool fits bool, an int integers, an int or a "
            "float fits float and complex, each within its range"
        )
    _check_fit(where, field, dtype, array.dtype, array.shape)
    return array


def _check_fit(where: str, field: Field, dtype: DType, given: DType, shape: tuple[int, ...]) -> None:
    if not same_type(dtype, given):
        advice = f"memstore casts nothing silently, convert it with .astype({dtype.name!r})"
    elif len(shape) != len(field.shape):
        advice = "the number of dimensions is fixed for the buffer, reshape the array"
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


def _encode_variable(field: Field, values: Sequence[Any]) -> list[bytes]:
    return [_encode_value(_where(field, values, index), field, value) for index, value in enumerate(values)]


def _encode_value(where: str, field: Field, value: Any) -> bytes:
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


def _join(index: int, parts: tuple[bytes, ...]) -> bytes:
    check_size(f"episode {index} of the batch", sum(map(len, parts)))
    return b"".join(parts)


def _decode_variable(field: Field, blob: bytes, at: int) -> tuple[Any, int]:
    """Return the value of a variable field that begins at this byte, and the byte at which it ends."""
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


def _single(field: Field, column: Any) -> Any:
    if field.kind == "python":
        return column[0].item()
    return column[0, ...] if field.fixed else column[0]
