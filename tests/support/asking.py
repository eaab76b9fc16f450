"""A memory with a hostile past, what is known of it in plain Python, and conditions decided there."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
from hypothesis import strategies as st

import memstore
from memstore.queries.columns import AllOf, AnyOf, Column, Comparison, Condition, HasTag, In, Not, col

HOSTILE = [
    "'; DROP TABLE episode; --",
    '" OR 1=1 --',
    "x') OR ('1'='1",
    "%s %(id_1)s",
    ":id_1 ? $1",
    "{} {0}",
    "\\",
    "$.a",
    'a"]',
    "[0]",
    "café",
    "\U0001f600",
    "Z",
    "a",
    "ä",
    "\u00df",
    "a\nb",
    " ",
    "NULL",
    "0",
    "x" * 300,
]
KEYS = ["p", 'q"x', "a.b", "", "$", "[0]", "é", "'; --"]
EXTRAS: list[Any] = [
    None,
    5,
    "text",
    True,
    [1, "two", None, [3]],
    {},
    *(
        {"p": value}
        for value in (0, -1.5, 2**60, 10**400, 1e308, "5", "", "Z", "ä", True, False, None, [7, "x"], {"p": 3})
    ),
    *({key: {key: [index, key]}} for index, key in enumerate(KEYS)),
]
Known = dict[str, Any]


def fill(memory: memstore.EpisodicMemory, seed: int = 5, count: int = 150) -> list[Known]:
    """Add, update, delete and evict at random; returns what is known of every live episode."""
    dice = random.Random(seed)
    rng = np.random.default_rng(seed)
    given: list[Known] = [
        {
            "domain": dice.choice(HOSTILE),
            "timestamp": float(dice.randrange(50)),
            "level": dice.choice([None, -3, 0, 1, 2, 2**31 - 1]),
            "key": dice.choice([None, f"{dice.choice(HOSTILE)}-{i}"]),
            "extra": dice.choice(EXTRAS),
            "tags": tuple(dice.sample(HOSTILE, dice.randrange(3))),
            "loss": dice.choice([None, 0.0, 1e-300, 1e300, round(dice.random() * 10, 1)]),
        }
        for i in range(count)
    ]
    columns: Any = {name: [row[name] for row in given] for name in given[0]}
    ids = memory.extend({"x": rng.normal(size=(count, 2))}, **columns).tolist()
    known = {
        i: {"id": i, **row, "lowest_loss": row["loss"], "replay_count": 0} for i, row in zip(ids, given, strict=True)
    }
    for step in range(12):
        chosen = dice.choices(ids, k=10)
        losses = [dice.choice([0.0, 1e300, round(dice.random() * 10, 1)]) for _ in chosen]
        memory.update(chosen, loss=losses, step=step if step % 3 else None)
        for i, loss in zip(chosen, losses, strict=True):
            row = known[i]
            row["loss"] = loss
            row["lowest_loss"] = loss if row["lowest_loss"] is None else min(loss, row["lowest_loss"])
            row["replay_count"] += 1
    for i in dice.sample(ids, 15):
        memory.delete(i)
        del known[i]
    for row in known.values():
        row["age"] = ids[-1] + 1 - row["id"]
        row["rise"] = None if row["loss"] is None else row["loss"] - row["lowest_loss"]
        row["last_replayed_at"] = memory.metadata(row["id"])[0].last_replayed_at
    return list(known.values())


def value_of(column: Column, row: Known) -> Any:
    """What the row has in the column; of extra only what is of the column's type."""
    if column.name != "extra":
        return row.get(column.name)
    value = row["extra"]
    for step in column.path:
        if isinstance(step, str):
            value = value.get(step) if isinstance(value, dict) else None
        else:
            value = value[step] if isinstance(value, list) and step < len(value) else None
    if not getattr(column, "typed", False):
        return value
    match column.kind:
        case "float":
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                return None
            return float(value) if abs(value) <= sys.float_info.max else math.inf
        case "text":
            return value if isinstance(value, str) else None
        case _:
            return value if isinstance(value, bool) else None


def holds(condition: Condition, row: Known) -> bool:
    """Whether the row passes, decided here."""
    match condition:
        case AllOf():
            return all(holds(part, row) for part in condition.conditions)
        case AnyOf():
            return any(holds(part, row) for part in condition.conditions)
        case Not():
            return not holds(condition.condition, row)
        case HasTag():
            return condition.tag in (row["tags"] or ())
        case In():
            value = value_of(condition.column, row)
            return value is not None and any(value == one for one in condition.values)
        case Comparison():
            value, other = value_of(condition.column, row), condition.value
            if other is None:
                return value is None
            if value is None:
                return False
            match condition.operator:
                case "==":
                    return bool(value == other)
                case "<":
                    return bool(value < other)
                case "<=":
                    return bool(value <= other)
                case ">":
                    return bool(value > other)
                case ">=":
                    return bool(value >= other)
    raise AssertionError(condition)


TEXTS = st.one_of(st.sampled_from(HOSTILE), st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")))
NUMBERS = st.one_of(
    st.integers(-4, 160),
    st.sampled_from([2**31 - 1, 2**60, 2**62, -(2**62), 0.5, 1e300, 1e308, 1e-300, 2.0, -0.0]),
    st.floats(-10, 200, allow_nan=False),
)
SECONDS = ("timestamp", "last_replayed_at")


def paths() -> st.SearchStrategy[Any]:
    """Places in extra."""
    steps = st.lists(st.one_of(st.sampled_from(KEYS), st.integers(0, 3), TEXTS), max_size=3)

    def place(path: list[Any]) -> Any:
        column = col.extra
        for step in path:
            column = column[step]
        return column

    return steps.map(place)


def tests(columns: Iterable[Column]) -> st.SearchStrategy[Condition]:
    """Single tests of these columns, of tags and of extra."""

    def of(column: Column, values: st.SearchStrategy[Any]) -> st.SearchStrategy[Condition]:
        operators = st.sampled_from(["__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"])
        return st.one_of(
            st.builds(lambda name, value: getattr(column, name)(value), operators, values),
            st.builds(column.in_, st.lists(values, max_size=4)),
            st.just(column.is_missing()),
            st.just(column.is_known()),
        )

    single = [of(column, TEXTS if column.kind == "text" else NUMBERS) for column in columns if column.name != "extra"]
    single.append(paths().flatmap(lambda place: of(place.number, NUMBERS)))
    single.append(paths().flatmap(lambda place: of(place.text, TEXTS)))
    single.append(paths().flatmap(lambda place: st.builds(place.flag.__eq__, st.booleans())))
    single.append(paths().map(lambda place: place.is_missing()))
    single.append(TEXTS.map(col.tags.has))
    return st.one_of(single)


def conditions(columns: Iterable[Column]) -> st.SearchStrategy[Condition]:
    """Tests combined."""
    return st.recursive(
        tests(columns),
        lambda inner: st.one_of(
            st.builds(lambda a, b: a & b, inner, inner),
            st.builds(lambda a, b: a | b, inner, inner),
            inner.map(lambda c: ~c),
        ),
        max_leaves=5,
    )
