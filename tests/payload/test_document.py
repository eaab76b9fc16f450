"""A state comes back exactly, and damaged documents raise nothing but StoreCorrupt."""

from __future__ import annotations

import json
import random
from collections import OrderedDict, defaultdict, namedtuple
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from memstore.errors import PayloadError, SchemaTooNew, StoreCorrupt
from memstore.payload.document import pack, unpack

NATIVE = [np.dtype(code) for code in "?bhilqBHILQefdgFDG"]
DTYPES = sorted({dtype.str for native in NATIVE for dtype in (native, native.newbyteorder("S"))})


def same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, (np.ndarray, np.generic)):
        assert one.dtype.str == other.dtype.str and one.shape == other.shape
        np.testing.assert_array_equal(one, other)
        # the bytes between two longdoubles are no part of them
        assert one.dtype.itemsize in (16, 32) or one.tobytes() == other.tobytes()
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for key in one:
            same(one[key], other[key])
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same(a, b)
    else:
        assert one == other or one != one != other
        assert str(one) == str(other) if isinstance(one, float) else True


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype(dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    state = {
        "a": array,
        "f": np.asfortranarray(array),
        "v": array[::-1, ::2],
        "zero": np.zeros((0, 2**40), dtype),
    }
    state |= {"d0": np.array(1, dtype), "s": array[1, 1]}
    back = unpack(*pack(state))
    same(back, state)
    for key in ("a", "f", "v", "d0"):
        assert back[key].flags.writeable and back[key].flags.aligned and back[key].flags.owndata


def test_everything_else() -> None:
    state: dict[str, Any] = {
        "z": None,
        "a": [True, 0, -1, 2**63, -(2**200), 1 << 20_000, 0.1, -0.0, 1e308, 5e-324],
        "nonfinite": (float("nan"), float("inf"), -float("inf")),
        "text": ["", "a\0b", "é\u2028\U0001f600", '"\\'],
        "bytes": (b"", bytes(range(256))),
        "empty": ({}, [], ()),
        "dict": {"dict": {"tuple": []}, "array": [1], "": 0, "bytes": 3, "\0": 1, "int": "0x1"},
    }
    document, data = pack(state)
    assert document.isascii() and "\0" not in document
    assert data == bytes(range(256))
    same(unpack(document, data), state)


def test_generator_states_resume() -> None:
    for bits in (np.random.PCG64, np.random.MT19937, np.random.Philox, np.random.SFC64):
        rng = np.random.Generator(bits(7))
        state = unpack(*pack(rng.bit_generator.state))
        expected = rng.random(5)
        rng.bit_generator.state = state
        assert (rng.random(5) == expected).all()
    python = random.Random(3)
    state = unpack(*pack({"python": python.getstate()}))
    expected_float = python.random()
    python.setstate(state["python"])
    assert python.random() == expected_float


def test_states_are_independent() -> None:
    array = np.zeros(3)
    packed = pack({"a": array})
    array += 1
    one, two = unpack(*packed), unpack(*packed)
    one["a"] += 5
    assert not two["a"].any()


class Bomb:
    def __reduce__(self) -> Any:
        raise AssertionError("pickled")

    def __repr__(self) -> str:
        raise AssertionError("shown")


Pair = namedtuple("Pair", "a b")


@pytest.mark.parametrize(
    ("value", "part"),
    [
        (Bomb(), "type Bomb"),
        (np.array([Bomb()], object), "dtype object"),
        (np.array(["a"]), "dtype <U1"),
        (np.datetime64("2020"), "dtype datetime64"),
        (np.ma.masked_array([1], [True]), "masked"),
        ({1, 2}, "type set"),
        (1j, "type complex"),
        (torch.ones(2).to_sparse(), "a sparse tensor cannot be stored; write .to_dense()"),
        (torch.ones(2, device="meta"), "a meta tensor"),
        (torch.ones(2).to(torch.float8_e4m3fn), "float8_e4m3fn cannot be stored; write .float()"),
        (torch.float32, "type dtype"),
        (torch.Size([1]), "write tuple(...)"),
        (defaultdict(int), "type defaultdict"),
        (Pair(1, 2), "type Pair"),
        (print, "type builtin_function_or_method"),
        (bytearray(b"x"), "type bytearray"),
        ("\ud800", "lone surrogate"),
    ],
)
def test_what_cannot_be_stored_is_named(value: Any, part: str) -> None:
    with pytest.raises(PayloadError) as caught:
        pack({"model": {"layers": [0, (1, 2), value]}})
    assert str(caught.value).startswith("model.layers[2]: ") and part in str(caught.value)


def test_keys() -> None:
    with pytest.raises(PayloadError, match=r"model\.opt has the key b'a' \(bytes\); keys of a state are str"):
        pack({"model": {"opt": {b"a": 1}}})
    with pytest.raises(PayloadError, match="lone surrogate"):
        pack({"\udfff": 1})
    with pytest.raises(PayloadError, match="a state must be a dict"):
        pack([1])  # type: ignore[arg-type]
    assert type(unpack(*pack(OrderedDict(a=1)))) is dict


def test_self_containing_states() -> None:
    state: dict[str, Any] = {"a": 1}
    state["self"] = [state]
    state["wide"] = [state] * 100
    with pytest.raises(PayloadError, match="contain itself"):
        pack(state)


def test_version() -> None:
    document, data = pack({"a": 1})
    with pytest.raises(SchemaTooNew, match="upgrade memstore"):
        unpack(document.replace('"document":1', '"document":3'), data)
    for version in ("0", "-1", "1.0", "true", '"1"', "null"):
        with pytest.raises(StoreCorrupt):
            unpack(document.replace('"document":1', f'"document":{version}'), data)


def test_damaged_data() -> None:
    document, data = pack({"a": np.arange(5), "b": b"xyz", "s": np.float32(1)})
    for bad in (b"", data[:-1], data + b"\0"):
        with pytest.raises(StoreCorrupt):
            unpack(document, bad)


@pytest.mark.parametrize(
    "node",
    ["[1]", "1", "{}", '{"dict":[1]}', '{"dict":{"a":{}}}', '{"dict":{},"x":1}', '{"no":1}', "[" * 90_000]
    + [f'{{"dict":{{"a":{node}}}}}' for node in (
        '{"array":["<f8",[4294967295,4294967295,4294967295]]}',
        '{"array":["<f8",[0,9223372036854775807,9223372036854775807]]}',
        '{"array":["<f8",[-1]]}', '{"array":["<f8",[1.0]]}', '{"array":["<f8",[true]]}', '{"array":["<f8",[null]]}',
        '{"array":["<f8",null]}', '{"array":["|O",[0]]}', '{"array":["<M8",[0]]}', '{"array":["f8",[0]]}',
        '{"array":["<f3",[0]]}', '{"array":[0,[0]]}', '{"array":1}', '{"array":[]}', '{"array":["<f8"]}',
        '{"array":["<f8","ab"]}', f'{{"array":["<f8",{[0] * 70}]}}', '{"scalar":"<f8"}', '{"scalar":1}',
        '{"bytes":-1}', '{"bytes":1}', '{"bytes":"1"}', '{"bytes":true}', '{"int":"zz"}', '{"int":1}',
        '{"float":"00"}', '{"float":1}', '{"float":"zz"}', '{"tuple":1}', '{"tuple":null}', "1" * 5000,
    )],
)  # fmt: skip
def test_damaged_documents(node: str) -> None:
    with pytest.raises(StoreCorrupt):
        unpack(f'{{"document":1,"state":{node}}}', b"")


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_damage_raises_nothing_but_store_corrupt(data: st.DataObject) -> None:
    document, blob = pack(
        {
            "a": np.arange(6.0).reshape(2, 3),
            "b": (b"xyz", 2**70, float("nan")),
            "c": {"d": np.int8(3), "e": [None, "x"]},
        }
    )
    start, length = data.draw(st.integers(0, len(document))), data.draw(st.integers(0, 4))
    document = (
        document[:start]
        + data.draw(st.text('0123456789-.e[]{}",:nulltrfasx<>|', max_size=4))
        + document[start + length :]
    )
    for damaged in (blob, blob[: data.draw(st.integers(0, len(blob)))]):
        with suppress(StoreCorrupt, SchemaTooNew):
            unpack(document, damaged)


tags = st.sampled_from(["document", "state", "dict", "tuple", "int", "float", "bytes", "array", "scalar", "<f4"])
nodes = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | tags,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(tags, inner, max_size=2),
)


@settings(max_examples=300)
@given(nodes, st.binary(max_size=8), st.text())
def test_arbitrary_documents(node: Any, data: bytes, text: str) -> None:
    for document in (json.dumps({"document": 1, "state": {"dict": {"a": node}}}), json.dumps(node), text):
        with suppress(StoreCorrupt, SchemaTooNew):
            unpack(document, data)


text = st.text(st.characters(codec="utf-8"), max_size=6)
numbers = hnp.arrays(st.sampled_from(DTYPES), hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
leaves = st.none() | st.booleans() | st.integers() | st.floats() | text | st.binary(max_size=9) | numbers
scalars = numbers.filter(lambda array: array.size > 0).map(lambda array: array.reshape(-1)[0])
trees = st.recursive(
    leaves | scalars,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(text | tags, inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(text | tags, trees, max_size=4))
def test_any_state_round_trips(state: dict[str, Any]) -> None:
    same(unpack(*pack(state)), state)
