"""Results have the types that their columns say, whatever is in them, wherever they go."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import polars
import pyarrow
import pytest

from memstore.errors import ConfigError, InvalidValue, StoreCorrupt
from memstore.queries.results import Field, Kind, Result

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
    ("json", False): np.dtype(object),
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
    missing = {"float": "nan", "json": "None"}.get(kind, "<NA>")
    assert [repr(value) for value in frame["value"].tolist()] == [
        missing if value is None else repr(value) for value in given
    ]
    texts = kind == "json"
    other = found.to_polars()
    assert other.schema["value"] == POLARS.get(kind, polars.String) and (texts or other["value"].to_list() == given)
    table = found.to_arrow()
    assert table.schema.field("value").type == ARROW.get(kind, pyarrow.string())
    assert texts or table["value"].to_pylist() == given


@pytest.mark.parametrize("missing", [False, True])
def test_integers_stay_exact_where_they_may_be_missing(missing: bool) -> None:
    given = [2**62 + 1, -(2**62) - 1, *[None] * missing]  # as float64 each would lose its last digit
    found = result("int", True, given)
    assert found.to_pandas()["value"].dropna().tolist() == given[:2]
    assert found.to_pandas()["value"].isna().tolist() == [value is None for value in given]
    assert found.to_polars()["value"].to_list() == found.to_arrow()["value"].to_pylist() == given
    assert result("int", False, given[:2])["value"].tolist() == given[:2]


@pytest.mark.parametrize("text", [TEXT, "a\0b\0", "  ", "NULL", "None", "<NA>", "e\u0301", "\u202eabc", "x" * 5000])
def test_text_is_nothing_but_data(text: str) -> None:
    for nullable in (False, True):
        found = result("text", nullable, [text])
        assert found["value"].tolist() == found.to_pandas()["value"].tolist() == [text]
        assert found.to_polars()["value"].to_list() == found.to_arrow()["value"].to_pylist() == [text]


def test_missing_texts_are_found_and_left_out() -> None:
    column = result("text", True, ["b", None, "a"])["value"]
    known = column[column != None]  # noqa: E711
    assert (column == None).tolist() == [False, True, False]  # noqa: E711
    assert (column == "a").tolist() == [False, False, True]
    assert np.sort(known).tolist() == np.unique(known).tolist() == ["a", "b"]


@pytest.mark.parametrize("kind", ["int", "text", "flag"])
def test_nothing_is_made_up_for_what_should_not_be_missing(kind: Kind) -> None:
    found = result(kind, False, [VALUES[kind][0], None])
    with pytest.raises(InvalidValue, match="missing in the column 'value'"):
        found.arrays()
    assert found["number"].tolist() == [0, 1]


def test_json_goes_as_its_text() -> None:
    found = result("json", True, [{"a": [1, "é"]}, None, "x"])
    wanted = ['{"a": [1, "\\u00e9"]}', None, '"x"']
    assert found.to_polars()["value"].to_list() == found.to_arrow()["value"].to_pylist() == wanted


def test_json_values_are_cells_whatever_they_are() -> None:
    cases: list[list[Any]] = [[[1, 2], [3, 4]], [{}, None]]  # lists of one length are no second dimension
    for given in cases:
        for nullable in (False, True):
            array = result("json", nullable, given)["value"]
            assert array.shape == (2,) and list(array) == given


def test_records_are_frozen_and_comparable() -> None:
    found = result("text", True, ["a", None])
    first, second = found
    assert found.records() == list(result("text", True, ["a", None])) and first != second
    assert len({*found, *found.records()}) == 2
    assert (first.number, first.value, second.value) == (0, "a", None) and len(found) == 2
    assert found.records()[0].value == "a" and repr(found) == "<Result of 2 rows: number, value>"
    with pytest.raises(AttributeError):
        first.value = "b"
    with pytest.raises(AttributeError):
        found.rows = []  # type: ignore[misc]
    with pytest.raises(AttributeError):
        found.fields[0].name = "b"  # type: ignore[misc]
    made = Result(found.fields, found.rows, lambda number, value: (value, number))
    assert made.records() == [("a", 0), (None, 1)]


def test_names_are_checked() -> None:
    field = Field("a", "int", False)
    with pytest.raises(InvalidValue, match="same name"):
        Result((field, field), [])
    for name in ("a b", "", "class", "1", "'; --", "__init__", "__x", "\ufb01"):
        with pytest.raises(InvalidValue, match="cannot name"):
            Result((Field(name, "int", False),), [])
    with pytest.raises(InvalidValue, match="no column 'b'; there are a"):
        Result((field,), [])["b"]
    for name in ("self", "é", "_x", "count", "fields", "mean_loss"):
        assert getattr(Result((Field(name, "int", False),), [(1,)]).records()[0], name) == 1


@pytest.mark.parametrize("package", ["pandas", "polars", "pyarrow"])
def test_a_missing_package_is_named(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    found = result("int", False, [1])
    with pytest.raises(ConfigError, match=f"pip install {package}$"):
        {"pandas": found.to_pandas, "polars": found.to_polars, "pyarrow": found.to_arrow}[package]()


@pytest.mark.parametrize(("kind", "nullable"), [("float", False), ("float", True), ("int", False), ("int", True)])
def test_text_among_numbers_is_damage(kind: Kind, nullable: bool) -> None:
    """As a flipped bit leaves it in a file."""
    found = Result((Field("value", kind, nullable),), [(1,), ("?",)])
    for ask in (found.arrays, lambda: found["value"]):
        with pytest.raises(StoreCorrupt, match="'value' holds a value that is no"):
            ask()
