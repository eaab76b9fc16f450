"""Results have the types that their columns say, whatever is in them, wherever they go."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pandas
import polars
import pyarrow
import pytest

from memstore.errors import ConfigError, InvalidValue
from memstore.results import Field, Kind, Result

TEXT = "é'\"\U0001f600\n"
VALUES: dict[str, list[Any]] = {
    "int": [1, -(2**31), 2**53 - 1],
    "float": [0.5, -1e300, float("inf")],
    "text": ["a", "", TEXT],
    "flag": [True, False, True],
    "json": [[1, 2], {"a": [None]}, TEXT],
}
DTYPES: dict[tuple[str, bool], Any] = {
    ("int", False): np.dtype(np.int64),
    ("int", True): np.dtype(np.float64),
    ("float", False): np.dtype(np.float64),
    ("float", True): np.dtype(np.float64),
    ("text", False): np.dtypes.StringDType(),
    ("text", True): np.dtypes.StringDType(na_object=None),
    ("flag", False): np.dtype(np.bool_),
    ("flag", True): np.dtype(object),
    ("json", True): np.dtype(object),
}
PANDAS = {"int": "Int64", "float": "float64", "text": "string", "flag": "boolean", "json": "object"}
POLARS = {"int": polars.Int64, "float": polars.Float64, "text": polars.String, "flag": polars.Boolean}
ARROW = {"int": pyarrow.int64(), "float": pyarrow.float64(), "text": pyarrow.string(), "flag": pyarrow.bool_()}


def result(kind: Kind, nullable: bool, values: list[Any]) -> Result:
    return Result((Field("number", "int", False), Field("value", kind, nullable)), list(enumerate(values)))


@pytest.mark.parametrize("values", ["none", "known", "missing"])
@pytest.mark.parametrize(("kind", "nullable"), DTYPES)
def test_types_depend_on_the_column_alone(kind: Kind, nullable: bool, values: str) -> None:
    given = [] if values == "none" else VALUES[kind] + ([None] if values == "missing" and nullable else [])
    found = result(kind, nullable, given)
    array = found["value"]
    assert array.dtype == DTYPES[kind, nullable] and array.shape == (len(given),)
    if array.dtype == np.float64:
        assert [None if np.isnan(value) else value for value in array.tolist()] == given
    else:
        assert array.tolist() == given
    assert list(found.arrays()) == ["number", "value"] and found.arrays()["number"].dtype == np.int64

    frame = found.to_pandas()
    assert str(frame.dtypes["value"]) == PANDAS[kind] and list(frame.columns) == ["number", "value"]
    assert [
        None if value is pandas.NA or value is None or value != value else value for value in frame["value"]
    ] == given
    texts = kind == "json"
    other = found.to_polars()
    assert other.schema["value"] == POLARS.get(kind, polars.String) and (texts or other["value"].to_list() == given)
    table = found.to_arrow()
    assert table.schema.field("value").type == ARROW.get(kind, pyarrow.string())
    assert texts or table["value"].to_pylist() == given


def test_integers_stay_exact_where_they_may_be_missing() -> None:
    found = result("int", True, [2**62, None])
    assert found.to_pandas()["value"][0] == 2**62
    assert found.to_polars()["value"].to_list() == [2**62, None]
    assert found.to_arrow()["value"].to_pylist() == [2**62, None]


def test_json_goes_as_its_text() -> None:
    found = result("json", True, [{"a": [1, "é"]}, None, "x"])
    wanted = ['{"a": [1, "\\u00e9"]}', None, '"x"']
    assert found.to_polars()["value"].to_list() == found.to_arrow()["value"].to_pylist() == wanted


def test_records_are_frozen_and_comparable() -> None:
    found = result("text", True, ["a", None])
    first, second = found
    assert (first.number, first.value, second.value) == (0, "a", None) and len(found) == 2
    assert found.records()[0].value == "a" and repr(found) == "<Result of 2 rows: number, value>"
    with pytest.raises(AttributeError):
        first.value = "b"
    made = Result(found.fields, found.rows, lambda number, value: (value, number))
    assert made.records() == [("a", 0), (None, 1)]


def test_names_are_checked() -> None:
    field = Field("a", "int", False)
    with pytest.raises(InvalidValue, match="same name"):
        Result((field, field), [])
    for name in ("a b", "", "class", "1", "'; --"):
        with pytest.raises(InvalidValue, match="cannot name"):
            Result((Field(name, "int", False),), [])
    with pytest.raises(InvalidValue, match="no column 'b'; there are a"):
        Result((field,), [])["b"]


@pytest.mark.parametrize("package", ["pandas", "polars", "pyarrow"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    found = result("int", False, [1])
    with pytest.raises(ConfigError, match=f"pip install {package}"):
        {"pandas": found.to_pandas, "polars": found.to_polars, "pyarrow": found.to_arrow}[package]()
