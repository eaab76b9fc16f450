"""Payloads come back exactly as given, and nothing but exactly fitting payloads gets in."""

from __future__ import annotations

import copy
import json
import struct
import zlib
from contextlib import suppress
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from memstore.errors import ConfigError, InvalidValue, PayloadError, SchemaTooNew, StoreCorrupt
from memstore.payload import fields
from memstore.payload.fields import Field, pad
from memstore.payload.signature import Signature, checksum
from memstore.values.foreign import Array

BASE_DTYPES = [*"?bhilqBHILQefdgFDG"]
DTYPES = sorted({np.dtype(c).newbyteorder(order).str for c in BASE_DTYPES for order in "<>"})
RAGGED = {
    "tokens": ("int32", (None,)),
    "grid": ("float16", (2, None, None)),
    "text": str,
    "raw": bytes,
    "r": float,
}


def sample(dtype: str, shape: tuple[int, ...], seed: int = 0) -> Array:
    rng = np.random.default_rng(seed)
    values = np.asarray(rng.integers(0, 2 if dtype == "|b1" else 100, shape))
    return np.array(values + 1j * values if np.dtype(dtype).kind == "c" else values, dtype)


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, np.ndarray):
        assert (one.dtype.str, one.shape) == (other.dtype.str, other.shape)
        np.testing.assert_array_equal(one, other)
        # the bytes between two longdoubles are no part of them
        assert one.dtype.itemsize in (16, 32) or one.tobytes() == other.tobytes()
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other or one != one != other


def round_trip(payload: dict[str, Any]) -> dict[str, Any]:
    signature = Signature.from_json(Signature.infer(payload, None).to_json())
    return signature.decode_one(signature.encode_one(payload))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (5,), (2, 3), (0,), (3, 0, 2)])
def test_every_dtype_comes_back_exactly(dtype: str, shape: tuple[int, ...]) -> None:
    given_array = sample(dtype, shape)
    payload = {"pre": np.uint8(1), "x": given_array, "post": b"!"}
    back = round_trip(payload)["x"]
    same(back, given_array)
    assert back.flags.writeable and back.flags.c_contiguous and back.flags.aligned

    stacked = {
        "pre": np.zeros(4, "u1"),
        "x": np.stack([sample(dtype, shape, i) for i in range(4)]).astype(dtype),
    }
    signature = Signature.infer(stacked, 4)
    same(signature.decode(signature.encode(stacked, 4)), stacked)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_ragged(dtype: str) -> None:
    arrays = [sample(dtype, (i % 3, 2)) for i in range(7)]
    signature = Signature.infer({"x": arrays}, 7)
    assert signature.fields == (Field(("x",), "array", dtype, (None, 2)),)
    back = signature.decode(signature.encode({"x": arrays}, 7))["x"]
    same(back, arrays)
    assert all(array.flags.writeable and array.flags.owndata for array in back)


def test_layout_is_the_documented_one() -> None:
    signature = Signature.from_spec({"text": str, "a": ("<u2", (2,)), "r": ("u1", (None, 1, None)), "b": "|b1"})
    blob = signature.encode_one(
        {"text": "hé", "a": np.array([1, 2], "<u2"), "r": np.array([[[7, 8]]], "u1"), "b": np.True_}
    )
    assert blob == b"\1\0\2\0\1" + struct.pack("<I", 3) + "hé".encode() + struct.pack("<2I", 1, 2) + b"\7\10"


def test_python_scalars_come_back_as_python_scalars() -> None:
    payload = {
        "i": -5,
        "f": 0.1,
        "b": True,
        "u": 2**63,
        "n": float("nan"),
        "deep": {"er": {"s": "a\0b", "y": b""}},
    }
    same(round_trip(payload), payload)
    signature = Signature.infer(payload, None)
    batch = signature.decode([signature.encode_one(payload)] * 3)
    assert batch["i"].dtype == np.int64 and batch["u"].dtype == np.uint64 and batch["b"].dtype == np.bool_
    assert batch["deep"] == {"er": {"s": ["a\0b"] * 3, "y": [b""] * 3}}


def test_weak_scalars() -> None:
    signature = Signature.from_spec({"x": "float16", "i": "uint8", "c": "complex64", "r": float, "k": int})
    back = signature.decode_one(signature.encode_one({"x": 1, "i": 255, "c": 1.5, "r": 2, "k": np.int64(3)}))
    same(back, {"x": np.array(1, "f2"), "i": np.array(255, "u1"), "c": np.array(1.5, "c8"), "r": 2.0, "k": 3})
    inf = float("inf")
    assert signature.decode_one(signature.encode_one({"x": inf, "i": 0, "c": inf, "r": -inf, "k": 0}))["x"] == inf
    column = {"x": [1, 0.5], "i": (0, 1), "c": [1, 2], "r": [0.5, np.float64(2)], "k": [1, 2]}
    assert signature.decode(signature.encode(column, 2))["r"].tolist() == [0.5, 2.0]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("uint8", 256),
        ("uint8", -1),
        ("int64", 2**63),
        ("int32", 1.0),
        ("bool", 1),
        ("int8", True),
        ("float16", 1e6),
        ("float32", 1e39),
        ("float32", 10**39),
        ("float64", 10**400),
        pytest.param("longdouble", 1 << 20000, id="huge"),
        ("complex64", 1e39),
    ],
)
def test_scalars_that_do_not_fit_are_refused(dtype: str, value: Any) -> None:
    signature = Signature.from_spec({"x": dtype})
    with pytest.raises(PayloadError, match=r"field 'x': .*does not fit"):
        signature.encode_one({"x": value})
    with pytest.raises(PayloadError, match=r"field 'x', episode 1 of the batch: .*does not fit"):
        signature.encode({"x": [np.zeros((), dtype), value]}, 2)


def test_key_order_is_free_and_signature_order_stays() -> None:
    signature = Signature.infer({"b": 1.0, "a": {"y": 1, "x": 2}}, None)
    assert signature.describe() == "b float, a/y int, a/x int"
    assert signature.encode_one({"a": {"x": 2, "y": 1}, "b": 1.0}) == signature.encode_one(
        {"b": 1.0, "a": {"y": 1, "x": 2}}
    )


def test_memory_layouts() -> None:
    base = np.arange(48, dtype="f4").reshape(4, 3, 4)
    for x in (np.asfortranarray(base), base[::-1, :, ::2], base.transpose(0, 2, 1), base.astype(">f4")):
        before = x.copy()
        signature = Signature.infer({"x": x}, 4)
        same(signature.decode(signature.encode({"x": x}, 4))["x"], x)
        single = Signature.infer({"x": x[1]}, None)
        assert single.encode_one({"x": x[1]}) == signature.encode({"x": x}, 4)[1]
        same(x, before)
    read_only = base.copy()
    read_only.flags.writeable = False
    same(round_trip({"x": read_only})["x"], base)


def test_byte_order_is_converted_to_that_of_the_signature() -> None:
    signature = Signature.from_spec({"x": ("<f4", (2,)), "r": ("<i8", (None,))})
    given_payload = {"x": np.array([1, 2], ">f4"), "r": np.array([3], ">i8")}
    same(
        signature.decode_one(signature.encode_one(given_payload)),
        {"x": np.array([1, 2], "<f4"), "r": np.array([3])},
    )


def test_stacked_lists_and_one_by_one_agree() -> None:
    signature = Signature.from_spec({"x": ("float32", (3,)), **RAGGED})
    rows: list[dict[str, Any]] = [
        {
            "x": np.full(3, i, "f4"),
            "tokens": np.arange(i, dtype="i4"),
            "grid": np.ones((2, i, 1), "f2"),
            "text": "é" * i,
            "raw": b"\0" * i,
            "r": float(i),
        }
        for i in range(5)
    ]
    batch = {key: [row[key] for row in rows] for key in rows[0]}
    blobs = [signature.encode_one(row) for row in rows]
    assert signature.encode(batch, 5) == blobs
    assert signature.encode(batch | {"x": np.stack(batch["x"]), "r": np.arange(5.0)}, 5) == blobs
    decoded = signature.decode(blobs)
    for i, row in enumerate(rows):
        same(signature.decode_one(blobs[i]), row)
        same(decoded["tokens"][i], row["tokens"])
    assert signature.encode(decoded, 5) == blobs
    assert signature.encode(batch | {"tokens": np.ones((5, 2), "i4")}, 5)[0][:24] == blobs[0][:20] + b"\2\0\0\0"


def test_decoded_arrays_are_independent() -> None:
    x = np.zeros((2, 3), "f4")
    signature = Signature.infer({"x": x, "r": [np.zeros(1), np.zeros(2)]}, 2)
    blobs = signature.encode({"x": x, "r": [np.zeros(1), np.zeros(2)]}, 2)
    x += 1
    first, second = signature.decode(blobs), signature.decode(blobs)
    for array in (first["x"], first["r"][0], first["r"][1], signature.decode_one(blobs[0])["x"]):
        array += 5
    same(signature.decode(blobs), second)
    assert not second["x"].any()


def test_empty_decode_keeps_types() -> None:
    back = Signature.from_spec({"x": ("float32", (3,)), **RAGGED}).decode([])
    assert back["x"].shape == (0, 3) and back["tokens"] == [] and back["text"] == []


# --- signatures ---


def test_from_spec_and_json() -> None:
    spec = {
        "x": "float32",
        "img": ["uint8", [8, 8]],
        "n": np.int16,
        "obs": {"pos": (np.dtype(">f8"), (3,))},
        **RAGGED,
    }
    signature = Signature.from_spec(spec)
    assert signature.describe() == (
        "x float32, img uint8[8,8], n int16, obs/pos >f8[3], tokens int32[*], grid float16[2,*,*], text str, "
        "raw bytes, r float"
    )
    assert Signature.from_json(signature.to_json()) == signature
    assert hash(signature) == hash(Signature.from_json(signature.to_json()))
    assert copy.deepcopy(signature) == signature


def test_field_by_name() -> None:
    signature = Signature.from_spec({"obs": {"pos": "float32"}, "a/b": "int8"})
    assert signature.field("obs/pos") is signature.field(("obs", "pos")) is signature.fields[0]
    assert signature.field("a/b").path == ("a/b",)
    with pytest.raises(InvalidValue, match=r"no field 'obs'; the buffer has obs/pos float32, a/b int8"):
        signature.field("obs")


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"x": None},
        {"x": "O"},
        {"x": "M8[s]"},
        {"x": "U4"},
        {"x": "i4,i4"},
        {"x": "nonsense"},
        {"x": object},
        {"x": ("f4", (-1,))},
        {"x": ("f4", (True,))},
        {"x": ("f4", (1.0,))},
        {"x": ("f4", 3)},
        {"x": ("f4", "ab")},
        {"x": ("f4", (2**31,))},
        {"x": ("f4", (0, 2**62, 2**62))},
        {"x": ("f4", (1,) * 33)},
        {"x": {}},
        {"": "f4"},
        {1: "f4"},
        {"\ud800": "f4"},
        {"a/b": "f4", "a": {"b": "f4"}},
        {"x": (str, (3,))},
        {"x": ("f4", (1,), 2)},
        {"x": ("u1", (2**29,)), "y": ("u1", (2**29,))},
        "f4",
        {"x": np.zeros(3)},
        {"x": [1, 2, 3]},
        {"x": "(2)f4"},
    ],
)
def test_impossible_specs_are_config_errors(spec: Any) -> None:
    with pytest.raises(ConfigError, match="signature: "):
        Signature.from_spec(spec)


VALID = Signature.from_spec({"obs": {"x": ("float32", (None, 2))}, "s": str, "r": float}).to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        "[" * 100_000,
        '{"codec":1,"fields":[]}',
        VALID[:-1],
        VALID.replace("<f4", "|O"),
        VALID.replace("<f4", "f4"),
        VALID.replace("<f4", "<f3"),
        VALID.replace("null", "-1"),
        VALID.replace("2]", "2.0]"),
        VALID.replace("2]", "true]"),
        VALID.replace('"s"', '"r"'),
        VALID.replace('["s"]', '"s"'),
        VALID.replace("str", "x"),
        VALID.replace('["s"]', '["obs"]'),
        VALID.replace('"codec":1', '"codec":0'),
        VALID.replace('"codec":1', '"codec":1.0e0,"z":1'),
        VALID.replace("2]", "1e999]"),
        VALID.replace("2]", "[]]"),
        VALID.replace('["s"]', "[]"),
        VALID.replace("<f8", "<f4"),
        VALID.replace('"str"', "[]"),
        VALID.replace('["s"]', "[1]"),
    ],
)
def test_damaged_signatures(text: str) -> None:
    with pytest.raises(StoreCorrupt):
        Signature.from_json(text)


def test_signature_of_a_later_version() -> None:
    with pytest.raises(SchemaTooNew, match="version 2; upgrade memstore"):
        Signature.from_json(VALID.replace('"codec":1', '"codec":2'))


def test_infer_columns() -> None:
    payload = {
        "stack": np.zeros((3, 4), "i2"),
        "zero": np.zeros(3, "f4"),
        "equal": [np.zeros((2, 5))] * 3,
        "ragged": [np.zeros((2, n)) for n in (1, 1, 3)],
        "np": [np.float32(1)] * 3,
        "mixed": [1, 0.5, 2],
        "big": (1, 2**63, 3),
        "flag": [True, False, True],
        "s": ["a", "", "b"],
        "y": [b"", b"1", b"2"],
    }
    assert Signature.infer(payload, 3).describe() == (
        "stack int16[4], zero float32, equal float64[2,5], ragged float64[2,*], np float32, mixed float, big int, "
        "flag bool, s str, y bytes"
    )
    signature = Signature.infer(payload, Signature.batch_size(payload))
    assert signature.decode(signature.encode(payload, 3))["big"].tolist() == [1, 2**63, 3]


@pytest.mark.parametrize(
    "values",
    [
        [1, True],
        [1, "a"],
        ["a", b"a"],
        [np.zeros(1), np.zeros(1, "f4")],
        [np.zeros(1), np.zeros((1, 1))],
        [1.0, np.float64(1)],
    ],
)
def test_lists_of_mixed_types_are_refused(values: list[Any]) -> None:
    with pytest.raises(PayloadError, match=r"field 'x': the list mixes .* with "):
        Signature.infer({"x": values}, 2)


# --- refusals ---

SIMPLE = Signature.from_spec({"x": ("float32", (3,)), "obs": {"s": str}})


def refuse(payload: Any, *parts: str, signature: Signature = SIMPLE) -> None:
    with pytest.raises(PayloadError) as caught:
        signature.encode_one(payload)
    for part in parts:
        assert part in str(caught.value)


def test_missing_and_unknown_fields_are_named() -> None:
    refuse({"x": np.zeros(3, "f4")}, "missing: 'obs/s'", "x float32[3], obs/s str")
    refuse({"x": np.zeros(3, "f4"), "obs": {"s": "", "t": 1}}, "unknown: 'obs/t'", "exactly")
    refuse({"x": np.zeros(3, "f4"), "obs": "s"}, "missing: 'obs/s', unknown: 'obs'")


def test_wrong_dtype_and_shape_say_what_to_do() -> None:
    refuse({"x": np.zeros(3), "obs": {"s": ""}}, "'x': expected float32[3], got float64[3]", ".astype('float32')")
    refuse({"x": np.zeros(3, "i4"), "obs": {"s": ""}}, "expected float32[3], got int32[3]")
    refuse({"x": np.zeros(4, "f4"), "obs": {"s": ""}}, "got float32[4]", "signature={'x': ('float32', (None,))}")
    refuse({"x": np.zeros((1, 3), "f4"), "obs": {"s": ""}}, "got float32[1,3]", "number of dimensions is fixed")
    refuse({"x": 1.0, "obs": {"s": ""}}, "expected float32[3], got float32;")
    refuse({"x": np.zeros(3, "f4"), "obs": {"s": b"x"}}, "'obs/s': expected str, got b'x' (bytes)")
    refuse(
        {"x": np.zeros(3, "f4"), "obs": {"s": "\udc80"}},
        "'obs/s': the str holds a lone surrogate",
        "give bytes",
    )
    nested = Signature.from_spec({"a": {"b": ("int8", (2, 3))}})
    refuse({"a": {"b": np.zeros((2, 9), "i1")}}, "signature={'a': {'b': ('int8', (2, None))}}", signature=nested)
    with pytest.raises(PayloadError, match="episode 1 of the batch: expected int8"):
        nested.encode({"a": {"b": [np.zeros((2, 3), "i1"), np.zeros((2, 3), "i2")]}}, 2)


class Bomb:
    def __reduce__(self) -> Any:
        raise AssertionError("pickled")

    def __repr__(self) -> str:
        raise AssertionError("shown")


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (np.array([Bomb()], object), "dtype object"),
        (np.array(["a", "b"]), "list of str"),
        (np.array([b"a"]), "list of str"),
        (np.array(["2020"], "M8[D]"), "times as numbers"),
        (np.zeros(2, "f4,f4"), "nested dicts"),
        (np.ma.masked_array([1.0], [True]), "masked"),
        (np.ma.masked, "masked"),
        (None, "None"),
        (Bomb(), "type Bomb"),
        (Decimal(1), "type Decimal"),
        (1j, "type complex"),
        ([1.0, 2.0], "np.asarray"),
        ({1}, "type set"),
        (2**64, "beyond 64 bits"),
        pytest.param(-(1 << 20000), "an int of", id="huge"),
        ("\ud800", "lone surrogate"),
        (np.str_("\ud800"), "lone surrogate"),
        ({}, "at least one field"),
    ],
)
def test_what_cannot_be_stored(value: Any, part: str) -> None:
    with pytest.raises(PayloadError, match=r"field 'x'") as caught:
        signature = Signature.infer({"x": value}, None)
        signature.encode_one({"x": value})
    assert part in str(caught.value)
    if not isinstance(value, (str, int)):
        for spec in (
            {"x": ("float32", (1,))},
            {"x": ("float32", (None,))},
            {"x": str},
            {"x": bytes},
            {"x": float},
        ):
            with pytest.raises(PayloadError):
                Signature.from_spec(spec).encode_one({"x": value})
            with pytest.raises(PayloadError):
                Signature.from_spec(spec).encode({"x": [value]}, 1)


@pytest.mark.parametrize("payload", [{}, None, [], 5, {1: 1.0}, {"": 1.0}, {"a": {2: 1.0}}, {"\ud800": 1}, {b"a": 1}])
def test_bad_payload_dicts(payload: Any) -> None:
    for action in (lambda: Signature.infer(payload, None), lambda: Signature.batch_size(payload)):
        with pytest.raises(PayloadError):
            action()
    refuse(payload)


def test_a_payload_that_contains_itself() -> None:
    payload: dict[str, Any] = {"x": np.zeros(3, "f4")}
    payload["obs"] = payload
    refuse(payload, "contain itself")
    deep: dict[str, Any] = {}
    for _ in range(5000):
        deep = {"a": deep}
    refuse(deep, "contain itself")


def test_batch_sizes() -> None:
    assert Signature.batch_size({"x": np.zeros((4, 2)), "y": {"z": ("a",) * 4}}) == 4
    with pytest.raises(PayloadError, match=r"field 'x' holds 4 episodes but field 'y/z' holds 3 episodes"):
        Signature.batch_size({"x": np.zeros(4), "y": {"z": ["a"] * 3}})
    for leaf in (1.0, "abc", b"abc", np.float32(1), np.zeros(()), None, {"a"}, (i for i in range(3))):
        with pytest.raises(PayloadError, match=r"field 'x': a batch needs a stacked array"):
            Signature.batch_size({"x": leaf})
    with pytest.raises(PayloadError, match=r"field 'x' holds 3 episodes where 2 are expected"):
        SIMPLE.encode({"x": np.zeros((3, 3), "f4"), "obs": {"s": ["a", "b"]}}, 2)
    with pytest.raises(PayloadError, match="a batch needs a stacked array"):
        SIMPLE.encode({"x": np.zeros((2, 3), "f4"), "obs": {"s": "ab"}}, 2)


def test_empty_batches_are_refused() -> None:
    with pytest.raises(PayloadError, match="batch is empty"):
        SIMPLE.encode({"x": np.zeros((0, 3), "f4"), "obs": {"s": []}}, 0)
    with pytest.raises(PayloadError, match="is empty; give at least one"):
        Signature.infer({"x": np.zeros((0, 3))}, 0)
    with pytest.raises(PayloadError, match="is empty; give at least one"):
        Signature.infer({"x": []}, 0)


def test_too_large_payloads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fields, "MAX_BLOB_BYTES", 100)
    signature = Signature.from_spec({"s": str, "y": bytes, "r": ("u1", (None,))})
    ok = {"s": "", "y": b"", "r": np.zeros(88, "u1")}
    assert len(signature.encode_one(ok)) == 100
    for part in ({"s": "é" * 51}, {"y": b"1" * 101}, {"r": np.zeros(101, "u1")}, {"s": "a"}):
        refuse(ok | part, "a payload has at most 100", signature=signature)
    with pytest.raises(PayloadError, match="at most 100"):
        Signature.infer({"x": np.zeros(101, "u1")}, None)
    with pytest.raises(PayloadError, match="at most 100"):
        Signature.infer({"x": np.zeros(60, "u1"), "y": np.zeros(60, "u1")}, None)


# --- damage ---


def test_damaged_lengths() -> None:
    fixed = Signature.from_spec({"x": ("float32", (3,))})
    blob = fixed.encode_one({"x": np.zeros(3, "f4")})
    for bad in (b"", blob[:-1], blob + b"\0"):
        for blobs in ([bad], [blob, bad]):
            with pytest.raises(StoreCorrupt):
                fixed.decode(blobs)
    with pytest.raises(StoreCorrupt):
        fixed.decode([blob[:-1], blob + b"\0"])
    grid = Signature.from_spec({"g": ("float64", (None, None, None))})
    for dims in ((2**32 - 1,) * 3, (0, 2**32 - 1, 2**32 - 1), (2**32 - 1, 1, 1), (1, 1, 1)):
        with pytest.raises(StoreCorrupt):
            grid.decode_one(struct.pack("<3I", *dims))
    with pytest.raises(StoreCorrupt, match=r"UTF-8|utf-8"):
        Signature.from_spec({"s": str}).decode_one(b"\1\0\0\0\xff")


FUZZED = Signature.from_spec({"x": ("float32", (3,)), "flag": bool, **RAGGED})
FUZZ_BLOB = FUZZED.encode_one(
    {
        "x": np.ones(3, "f4"),
        "flag": True,
        "tokens": np.arange(5, dtype="i4"),
        "grid": np.ones((2, 3, 1), "f2"),
        "text": "häß",
        "raw": b"abc",
        "r": 1.0,
    }
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_damaged_blobs_raise_nothing_but_store_corrupt(data: st.DataObject) -> None:
    blob = bytearray(FUZZ_BLOB)
    for _ in range(data.draw(st.integers(0, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    damaged = bytes(blob[data.draw(st.integers(0, 3)) : len(blob) - data.draw(st.integers(0, len(blob)))])
    damaged = data.draw(st.one_of(st.just(damaged), st.just(bytes(blob)), st.binary(max_size=200)))
    for blobs in ([damaged], [FUZZ_BLOB, damaged]):
        with suppress(StoreCorrupt):
            FUZZED.decode(blobs)
    with suppress(StoreCorrupt):
        FUZZED.decode_one(damaged)


signature_keys = st.sampled_from(["codec", "fields", "path", "kind", "dtype", "shape"])
json_values = st.recursive(
    st.none() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(signature_keys, inner),
)


@given(st.text(max_size=300) | json_values.map(json.dumps))
def test_any_text_as_signature(text: str) -> None:
    with suppress(StoreCorrupt, SchemaTooNew):
        Signature.from_json(text)


@settings(max_examples=200)
@given(st.data())
def test_mutated_signature_text(data: st.DataObject) -> None:
    start, length = data.draw(st.integers(0, len(VALID))), data.draw(st.integers(0, 3))
    text = VALID[:start] + data.draw(st.text('0123456789-[]{}",:nullt<f>iO', max_size=3)) + VALID[start + length :]
    with suppress(StoreCorrupt, SchemaTooNew):
        Signature.from_json(text).decode_one(FUZZ_BLOB)


# --- properties ---

keys = st.text(st.characters(codec="utf-8", exclude_characters="/"), min_size=1, max_size=5)
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3).map(
        lambda shape: sample(dtype, shape)
    )
)
leaf = (
    arrays
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.binary(max_size=9)
    | st.text(st.characters(codec="utf-8"), max_size=9)
)
payloads = st.dictionaries(
    keys,
    st.recursive(leaf, lambda inner: st.dictionaries(keys, inner, min_size=1, max_size=3), max_leaves=5),
    min_size=1,
    max_size=4,
)


@settings(max_examples=200, deadline=None)
@given(payloads)
def test_any_payload_round_trips(payload: dict[str, Any]) -> None:
    same(round_trip(payload), payload)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(DTYPES), st.integers(1, 5), st.data())
def test_any_ragged_batch_round_trips(dtype: str, count: int, data: st.DataObject) -> None:
    ndim = data.draw(st.integers(0, 3))
    shapes = st.tuples(*[st.integers(0, 3)] * ndim)
    batch: dict[str, Any] = {"x": [sample(dtype, data.draw(shapes), i) for i in range(count)], "y": np.arange(count)}
    signature = Signature.infer(batch, count)
    back = signature.decode(signature.encode(batch, count))
    same(back["y"], batch["y"])
    if ndim:
        same(list(back["x"]), batch["x"])
    for i, blob in enumerate(signature.encode(batch, count)):
        same(signature.decode_one(blob)["x"], batch["x"][i])


# --- pad and checksum ---


def test_pad() -> None:
    padded, mask = pad([np.array([[1, 2]], "i2"), np.zeros((0, 3), "i2"), np.array([[3], [4]], "i2")])
    assert padded.dtype == np.int16 and padded.shape == mask.shape == (3, 2, 3)
    assert padded.tolist() == [[[1, 2, 0], [0, 0, 0]], [[0] * 3] * 2, [[3, 0, 0], [4, 0, 0]]]
    assert mask.sum() == 4 and padded[mask].tolist() == [1, 2, 3, 4]
    padded, mask = pad([np.array(1.0), np.array(2.0)])
    assert padded.tolist() == [1.0, 2.0] and mask.all()
    for bad in ([], [np.zeros(1), np.zeros(1, "f4")], [np.zeros(1), np.zeros((1, 1))]):
        with pytest.raises(InvalidValue):
            pad(bad)


def test_checksum_depends_on_the_episode() -> None:
    assert checksum(b"abc", 7) != checksum(b"abc", 8)
    # The same sequence in two buffers: their ids differ above bit 40 only.
    assert checksum(b"abc", 7) != checksum(b"abc", (1 << 40) + 7)
    assert checksum(b"abc", 7) == zlib.crc32(b"abc", 7)
