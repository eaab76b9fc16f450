"""Columns on the wire, against psycopg's own encoding of the same lists."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from psycopg.adapt import PyFormat, Transformer
from psycopg.types.numeric import Int8

from memstore.storage.backends.arrays import BYTEA, FLOAT8, INT8, TEXT, Kind, encode, kind_of
from memstore.storage.schema import metadata

int64 = st.integers(-(2**63), 2**63 - 1)


def by_psycopg(values: list[Any]) -> bytes:
    data = Transformer().get_dumper(values, PyFormat.BINARY).dump(values)
    assert data is not None
    return bytes(data)


def none_or(values: st.SearchStrategy[Any]) -> st.SearchStrategy[list[Any]]:
    """Lists with at least one value: of a list of nothing but None psycopg cannot know the type."""
    return st.lists(st.none() | values, min_size=1, max_size=30).filter(lambda found: any(v is not None for v in found))


@given(none_or(int64))
def test_integers(values: list[int | None]) -> None:
    assert encode(INT8, values).data == by_psycopg([None if v is None else Int8(v) for v in values])


@given(none_or(st.floats(allow_nan=False)))
def test_floats(values: list[float | None]) -> None:
    assert encode(FLOAT8, values).data == by_psycopg(values)


@given(none_or(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))))
def test_texts(values: list[str | None]) -> None:
    # psycopg sends text without a type of its own (oid 0); the rest is the same.
    mine, theirs = encode(TEXT, values).data, by_psycopg(values)
    assert mine[:8] == theirs[:8] and mine[12:] == theirs[12:]


@given(none_or(st.binary()))
def test_blobs(values: list[bytes | None]) -> None:
    assert encode(BYTEA, values).data == by_psycopg(values)


@pytest.mark.parametrize("kind", [INT8, FLOAT8])
def test_numpy_arrays_are_taken_as_they_are(kind: Kind) -> None:
    values = np.array([3, -1, 2**40], np.int64 if kind is INT8 else np.float64)
    assert encode(kind, values).data == encode(kind, values.tolist()).data


def test_the_ends_of_the_range_survive() -> None:
    values = [5e-324, math.nextafter(math.inf, 0), -0.0]
    assert np.frombuffer(encode(FLOAT8, values).data[24:32], ">f8")[0] == 5e-324
    assert encode(FLOAT8, values).data == by_psycopg(values)


def test_every_column_has_a_kind_that_fits() -> None:
    for table in metadata.sorted_tables:
        for column in table.columns:
            python = column.type.python_type
            expected = {int: INT8, float: FLOAT8, str: TEXT, bytes: BYTEA}[python]
            assert kind_of(table, column.name) is expected, column
