"""The fields of a payload, as text and pictures for a terminal, and complete for JSON."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from memstore.cli.common import picture_width
from memstore.cli.pictures import half_blocks, image_in, real, shaded, sparkline
from memstore.cli.text import number, shown
from memstore.payload.fields import array_text

MOST_TEXT = 400
"""A text is cut after this many characters."""
MOST_BYTES = 50
"""A value of bytes is cut after this many bytes."""
MOST_VALUES = 8
"""The first values of an array are shown, at most this many."""
INDENT = 2
"""A value has this many spaces in front of it."""


@dataclass(frozen=True, slots=True)
class Leaf:
    """A field of a payload: its full name, and its value."""

    name: str
    value: Any


def leaves(payload: Mapping[str, Any], prefix: str = "") -> Iterator[Leaf]:
    """Yield every field. A field of a nested dict is named ``outer/inner``."""
    for name, value in payload.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}/")
        else:
            yield Leaf(prefix + name, value)


def print_leaf(out: Console, leaf: Leaf) -> None:
    """Print name, type and value. An array is printed as a summary, and as a curve or a picture if it may be one."""
    value = leaf.value
    kind = array_text(value.dtype, value.shape) if isinstance(value, np.ndarray) else type(value).__name__
    out.print(Text.assemble((shown(leaf.name), "bold"), f"  {kind}"))
    if isinstance(value, np.ndarray) and value.ndim:
        _print_array(out, value)
    else:
        out.print(_indent(_scalar_text(value)))


def _scalar_text(value: Any) -> str:
    """Return a single value as text. A text or bytes that are cut are followed by their length."""
    if isinstance(value, str):
        cut = f"  ({len(value):,} characters)" if len(value) > MOST_TEXT else ""
        return f"{shown(value, MOST_TEXT)}{cut}"
    if isinstance(value, bytes):
        cut = "…" if len(value) > MOST_BYTES else ""
        return f"{value[:MOST_BYTES].hex(' ')}{cut}  ({len(value):,} bytes)"
    return str(value)


def _print_array(out: Console, array: np.ndarray[Any, Any]) -> None:
    out.print(_indent(_summary(array)))
    width = picture_width(out) - INDENT
    if array.ndim == 1 and array.size > 1:
        out.print(_indent(sparkline(array, width)))
    image = image_in(array)
    if image is None:
        return
    out.print(_indent(f"as {image.size}, dark {number(image.dark)} .. bright {number(image.bright)}:"))
    if out.encoding.startswith("utf") and out.color_system is not None and not out.no_color:
        picture = half_blocks(image, width)
    else:
        picture = Text("\n".join(shaded(image, width)))
    out.print(Padding(picture, (0, 0, 0, INDENT), expand=False))


def _summary(array: np.ndarray[Any, Any]) -> str:
    """Return the least, mean and greatest value, the number of values that are not finite, and the first values."""
    if not array.size:
        return "empty"
    first = ", ".join(map(_value_text, array.ravel()[:MOST_VALUES].tolist()))
    first = f"[{first}{', …' if array.size > MOST_VALUES else ''}]"
    values = real(array)
    unknown = int(np.isnan(values).sum())
    if array.dtype.kind == "b":
        return f"{int(values.sum()):,} of {array.size:,} true  {first}"
    if unknown == array.size:
        return f"nothing finite  {first}"
    about = f"min {np.nanmin(values):.4g}  mean {_mean(values):.4g}  max {np.nanmax(values):.4g}"
    magnitudes = "magnitudes: " if array.dtype.kind == "c" else ""
    return f"{magnitudes}{about}{f'  ({unknown:,} not finite)' if unknown else ''}  {first}"


def _value_text(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, (float, complex)) else str(value).lower()


def _mean(values: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    # In units of the largest value, because a sum of large values could overflow.
    largest = float(np.nanmax(np.abs(values))) or 1.0
    return float(np.nanmean(values / largest) * largest)


def _indent(text: str) -> Text:
    return Text(" " * INDENT + text)


def field_json(value: Any) -> Any:
    """Return the value for JSON, with everything that is needed to restore it."""
    if isinstance(value, np.ndarray):
        return {"dtype": value.dtype.str, "shape": list(value.shape), "values": _json_value(value.tolist())}
    if isinstance(value, bytes):
        return {"base64": base64.b64encode(value).decode()}
    return _json_value(value)


def _json_value(value: Any) -> Any:
    """Return the value for JSON without loss: numbers that are not finite become texts, complex ones pairs."""
    if isinstance(value, list):
        return [_json_value(part) for part in value]
    if isinstance(value, complex):
        return [_json_value(value.real), _json_value(value.imag)]
    if isinstance(value, np.generic):
        return str(value)
    return str(value) if isinstance(value, float) and not np.isfinite(value) else value
