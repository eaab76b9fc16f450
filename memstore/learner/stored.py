"""Checks of the parts of a checkpoint. A part is read only if it has exactly the fields that were written."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from memstore.errors import ConfigError, InvalidValue


def exact_fields(kind: type[Any], values: Any, what: str) -> dict[str, Any]:
    """Return stored values as the arguments of a dataclass.

    Raises
    ------
    InvalidValue
        The values are not a mapping of exactly the fields. The message says ``what`` they belong to.
    """
    names = sorted(item.name for item in fields(kind))
    if not isinstance(values, Mapping) or sorted(values) != names:
        raise InvalidValue(f"the stored {what} must have exactly the fields {', '.join(names)}, got {values!r}")
    return dict(values)


@contextmanager
def refuse_damaged(what: str) -> Iterator[None]:
    """Turn the ConfigError of a check into an InvalidValue, which says that the stored ``what`` is damaged."""
    try:
        yield
    except ConfigError as error:
        raise InvalidValue(f"the stored {what} is damaged: {error}") from error
