"""The ``extra`` of an episode as JSON text.

Values of numpy and PyTorch become plain numbers and lists. A value that is no JSON is refused, and the message names
its place. Whole numbers are kept exactly, also beyond 64 bits, up to the 4300 digits that Python writes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from memstore.errors import InvalidValue, PayloadError
from memstore.values.foreign import MAX_DEPTH, as_numpy, is_arraylike
from memstore.values.shown import shown

# This finds an escaped NUL in JSON text. The backslash before it must not be escaped itself.
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def extra_json(value: Any) -> str | None:
    """Return the text to store, None for None. ``InvalidValue`` names the place of a value that is no JSON."""
    if value is None:
        return None
    try:
        text = _text(value)
    except (TypeError, ValueError, RecursionError):
        # A second, slower pass turns the value into plain values, or finds the value that is no JSON.
        text = _text_of_plain(_plain(value, "extra", 0))
    if _NUL.search(text):
        raise InvalidValue("extra must not contain NUL characters: PostgreSQL cannot store them")
    return text


def _text_of_plain(value: Any) -> str:
    try:
        return _text(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise InvalidValue(f"extra must be JSON without NaN or infinity, got {shown(value)}: {exc}") from exc


def _text(value: Any) -> str:
    text = json.dumps(value, allow_nan=False, ensure_ascii=True)
    json.dumps(value, ensure_ascii=False).encode()  # this refuses a lone surrogate, which PostgreSQL cannot store
    json.loads(text, object_pairs_hook=_check_keys)
    return text


def _check_keys(pairs: list[tuple[str, Any]]) -> None:
    seen: set[str] = set()
    for name, _ in pairs:
        if name in seen:
            raise ValueError(f"two keys of one object are both {shown(name)} as JSON")
        seen.add(name)


def _plain(value: Any, where: str, depth: int) -> Any:
    """Return the value in the types of JSON. A numpy scalar becomes a Python number, and an array becomes lists."""
    if depth > MAX_DEPTH:
        raise InvalidValue(f"{where:.200} is nested deeper than {MAX_DEPTH} levels; does it contain itself?")
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, str):
        return _utf8(value, where)
    if isinstance(value, Mapping):
        return {_key(key, where): _plain(item, f"{where}[{_name(key)}]", depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
    if isinstance(value, float):
        return _finite(float(value), where)
    if isinstance(value, (np.ndarray, np.generic)) or is_arraylike(value):
        return _listed(value, where, depth)
    raise InvalidValue(f"{where:.200} is {shown(value)}, which is no JSON; give text, numbers, lists and dicts")


def _listed(value: Any, where: str, depth: int) -> Any:
    try:
        array = as_numpy(where, value)
    except PayloadError as exc:
        raise InvalidValue(str(exc)) from None
    if isinstance(array, np.ma.MaskedArray) or array.dtype.kind not in "biufUO":
        raise InvalidValue(f"{where:.200} is {shown(value)}, which is no JSON; give numbers, text, lists and dicts")
    if array.dtype.kind == "O" and array.ndim == 0 and not isinstance(array.item(), (dict, list, str, type(None))):
        raise InvalidValue(f"{where:.200} is an array of {shown(array.item())}, which is no JSON")
    # A float32 becomes the float64 of the same value, because conditions compare it as a float64 later.
    listed = array.astype(np.float64).tolist() if array.dtype.kind == "f" else array.tolist()
    return listed if array.dtype.kind in "biu" else _plain(listed, where, depth + 1)


def _key(key: Any, where: str) -> Any:
    if isinstance(key, np.generic) and not isinstance(key, (str, float)):
        key = key.item()
    if key is None or isinstance(key, (bool, int)):
        return key
    if isinstance(key, float):
        return _finite(key, f"a key of {where}")
    if isinstance(key, str):
        return _utf8(key, f"a key of {where}")
    raise InvalidValue(f"{where:.200} has the key {shown(key)}; the keys of JSON are text or numbers")


def _name(key: Any) -> str:
    return repr(key[:40]) if isinstance(key, str) else shown(key).partition(" (")[0]


def _finite(number: float, where: str) -> float:
    if not math.isfinite(number):
        raise InvalidValue(f"{where:.200} is {number!r}: extra must be JSON without NaN or infinity; None says missing")
    return number


def _utf8(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InvalidValue(f"{where:.200} holds a lone surrogate, which is no text") from None
    return str(text)
