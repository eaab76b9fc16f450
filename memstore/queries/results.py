"""The answer to a query, column by column."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from keyword import iskeyword
from typing import Any, Literal
from unicodedata import is_normalized

import numpy as np
from numpy.typing import NDArray

from memstore.errors import ConfigError, InvalidValue
from memstore.storage import stored

Kind = Literal["int", "float", "text", "flag", "json"]


@dataclass(frozen=True, slots=True)
class Field:
    """The name and the kind of a column. ``nullable`` is True if values may be missing."""

    name: str
    kind: Kind
    nullable: bool


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """Rows of plain Python values. The dtypes of the columns never depend on the values in them.

    Attributes
    ----------
    fields : tuple of Field
        The columns, in order.
    rows : list of tuple
        Values are int, float, str, bool, or None if missing. In a column of kind "json" they are any JSON values. In a
        column of kind "float" a value may be an int if no float is equal to it.
    make : callable, optional
        Makes the record of a row from its values. By default, records are frozen dataclasses with the columns as
        attributes.

    Raises
    ------
    InvalidValue
        If two columns have the same name, or if a name cannot be the name of an attribute.
    """

    fields: tuple[Field, ...]
    rows: list[tuple[Any, ...]]
    make: Callable[..., Any] | None = None

    def __post_init__(self) -> None:
        check_names(self.names)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in order."""
        return tuple(field.name for field in self.fields)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.records())

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Return one column, as in ``arrays``. ``InvalidValue`` if no column has this name."""
        if name not in self.names:
            raise InvalidValue(f"there is no column {name!r:.80}; there are {', '.join(self.names)}")
        index = self.names.index(name)
        return _array(self.fields[index], [row[index] for row in self.rows])

    def __repr__(self) -> str:
        return f"<Result of {len(self)} rows: {', '.join(self.names)}>"

    def records(self) -> list[Any]:
        """Return the rows as frozen dataclasses. Records are equal if their columns and values are equal."""
        make = self.make or _row_class(self.names)
        return [make(*row) for row in self.rows]

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return the columns as numpy arrays of shape (rows,).

        The dtype follows from the kind of the column, and from whether it is nullable:

        - "int": int64, or float64 with NaN if nullable (exact up to 2**53).
        - "float": float64, with NaN for a missing value.
        - "text": ``StringDType``, with None if nullable.
        - "flag": bool, or object with None if nullable.
        - "json": object.

        numpy finds a None among texts (``== None``), but cannot sort it. Select the known texts before you sort:
        ``column[column != None]``.

        Raises
        ------
        InvalidValue
            If a value is missing in a column of ints, texts or flags that is not nullable.
        """
        return {field.name: _array(field, values) for field, values in self._columns()}

    def to_pandas(self) -> Any:
        """Return a pandas ``DataFrame`` with nullable types, so that ints stay exact.

        Raises
        ------
        ConfigError
            If pandas is not installed.
        """
        pandas = _package("pandas")
        kinds = {"int": "Int64", "float": "float64", "text": "string", "flag": "boolean", "json": "object"}
        return pandas.DataFrame(
            {field.name: pandas.Series(values, dtype=kinds[field.kind]) for field, values in self._columns()}
        )

    def to_polars(self) -> Any:
        """Return a polars ``DataFrame``. JSON values become their texts. ``ConfigError`` if polars is not installed."""
        polars = _package("polars")
        kinds = {"int": polars.Int64, "float": polars.Float64, "flag": polars.Boolean}
        columns = [
            polars.Series(field.name, _plain(field, values), dtype=kinds.get(field.kind, polars.String), strict=True)
            for field, values in self._columns()
        ]
        return polars.DataFrame(columns)

    def to_arrow(self) -> Any:
        """Return a pyarrow ``Table``. JSON values become their texts. ``ConfigError`` if pyarrow is not installed."""
        arrow = _package("pyarrow")
        kinds = {"int": arrow.int64(), "float": arrow.float64(), "flag": arrow.bool_()}
        columns = {
            field.name: arrow.array(_plain(field, values), kinds.get(field.kind, arrow.string()))
            for field, values in self._columns()
        }
        return arrow.table(columns)

    def _columns(self) -> Iterator[tuple[Field, list[Any]]]:
        for index, field in enumerate(self.fields):
            yield field, [row[index] for row in self.rows]


def _array(field: Field, values: list[Any]) -> NDArray[Any]:
    try:
        return _convert(field, values)
    except InvalidValue:
        raise
    except (ValueError, TypeError, OverflowError) as exc:
        raise stored.damaged(f"the column {field.name!r:.80}", f"holds a value that is no {field.kind}") from exc


def _convert(field: Field, values: list[Any]) -> NDArray[Any]:
    if field.kind == "float" or (field.kind == "int" and field.nullable):
        return np.array(values, np.float64)  # None becomes NaN
    if not field.nullable and field.kind != "json" and None in values:  # numpy would turn None into 'None' or False
        raise InvalidValue(f"a value is missing in the column {field.name!r}, which is not nullable")
    if field.kind == "int":
        return np.array(values, np.int64)
    if field.kind == "text":
        dtype: Any = np.dtypes.StringDType(na_object=None) if field.nullable else np.dtypes.StringDType()
        return np.array(values, dtype)
    if field.kind == "flag" and not field.nullable:
        return np.array(values, np.bool_)
    objects = np.empty(len(values), object)
    for index, value in enumerate(values):  # one by one: numpy would take a list among the values for a dimension
        objects[index] = value
    return objects


def _plain(field: Field, values: list[Any]) -> list[Any]:
    if field.kind == "float":  # some values may be ints, if no float is equal to them
        return [None if value is None else float(value) for value in values]
    if field.kind != "json":
        return values
    return [None if value is None else json.dumps(value) for value in values]


def _package(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"this needs {name}: pip install {name}") from error


def check_names(names: Sequence[str]) -> None:
    """Check the names of an answer's columns.

    Raises
    ------
    InvalidValue
        If two names are equal, or if a name cannot be the name of an attribute.
    """
    if len(set(names)) < len(names):
        raise InvalidValue(f"two columns have the same name: {', '.join(names)}; give one of them another name")
    for name in names:
        if not _can_name_attribute(name):
            raise InvalidValue(f"{name!r:.80} cannot name a column; use a Python name such as mean_loss, without __")


def _can_name_attribute(name: str) -> bool:
    # Python normalizes the names in a source file, so only normalized ones can be written. Names with __ are Python's.
    plain = name.isidentifier() and not iskeyword(name)
    return plain and not name.startswith("__") and is_normalized("NFKC", name)


@lru_cache
def _row_class(names: tuple[str, ...]) -> type:
    return dataclasses.make_dataclass("Row", names, frozen=True, slots=True)
