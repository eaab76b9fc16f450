"""Conditions wherever they are taken: as texts, of any width, nested, and with names that are not there."""

from __future__ import annotations

import functools
import operator
import os
import pickle
from typing import Any

import numpy as np
import pytest

import memstore
from memstore import InvalidValue, col, count
from memstore.queries.columns import LOOK_UP, MAX_DEPTH, MAX_SIZE, AnyOf, Condition
from memstore.queries.parser import parse
from tests.support.helpers import OpenMemory


@pytest.fixture
def filled(open_memory: OpenMemory) -> memstore.EpisodicMemory:
    """Episodes of level and loss 0 .. 29, the first ten replayed in step 3."""
    memory = open_memory(capacity=100)
    numbers = list(range(30))
    extras = [{"n": i} for i in numbers]
    memory.extend({"x": np.zeros(30)}, level=numbers, loss=numbers, extra=extras, domain=["a", "b", "c"] * 10)
    memory.update(memory.query().limit(10).ids(), loss=np.arange(10.0), step=3)
    return memory


def passing(memory: memstore.EpisodicMemory, condition: Any) -> list[int]:
    """Levels of what passes, by a query and by a draw, which must agree; the history must take it as well."""
    levels: list[int] = memory.query().filter(condition).arrays()["level"].astype(int).tolist()
    if levels:
        drawn = memory.sample(100, where=condition).ids
        assert sorted(drawn.tolist()) == memory.query().filter(condition).ids().tolist()
    assert memory.query("history").filter(condition).count() == sum(level < 10 for level in levels)
    return levels


def either(tests: list[Condition]) -> Condition:
    """One of them."""
    return functools.reduce(operator.or_, tests)


def test_a_text_is_taken_wherever_a_condition_is(filled: memstore.EpisodicMemory) -> None:
    text = "level >= 5 and domain = 'a'"
    same = (col.level >= 5) & (col.domain == "a")
    ids = filled.query().filter(same).ids().tolist()
    assert filled.query().filter(text).ids().tolist() == ids
    assert filled.query().filter("level >= 5", col.domain == "a").ids().tolist() == ids
    assert sorted(filled.sample(100, where=text).ids.tolist()) == ids
    assert set(filled.sample(3, where=text, wait=1).ids.tolist()) <= set(ids)
    held = filled.lease(100, where=text)
    assert sorted(held.ids.tolist()) == ids
    filled.release(held)
    groups = filled.sample_groups(5, 2, where="level < 6", by=col.domain)
    assert len(groups.ids) == 6 and groups.ids.max() <= filled.query().filter("level = 5").ids()[0]
    assert filled.query("history").filter("step = 3 and level < 4").count() == 4
    assert filled.delete(where=text) == len(ids)


def test_a_text_that_is_wrong_is_shown_with_its_place(filled: memstore.EpisodicMemory) -> None:
    for call in (
        lambda: filled.query().filter("loss >> 2"),
        lambda: filled.sample(1, where="loss >> 2"),
        lambda: filled.lease(1, where="loss >> 2"),
        lambda: filled.sample_groups(1, 1, where="loss >> 2"),
        lambda: filled.delete(where="loss >> 2"),
    ):
        with pytest.raises(InvalidValue) as caught:
            call()
        assert str(caught.value).split("\n")[1:] == ["  loss >> 2", "        ^"]
    with pytest.raises(InvalidValue, match="history"):
        filled.sample(1, where="step = 3")
    with pytest.raises(InvalidValue):
        filled.query().filter("1); DELETE FROM episode; --")
    assert len(filled) == 30


WIDE: list[tuple[str, Any, Any]] = [
    ("in, ints", lambda: col.level.in_(range(3, 100_003)), lambda i: i >= 3),
    ("in, reals", lambda: col.loss.in_([i + 0.0 for i in range(3, 100_003)]), lambda i: i >= 3),
    ("in, texts", lambda: col.domain.in_([*map(str, range(100_000)), "b"]), lambda i: i % 3 == 1),
    ("in, extra", lambda: col.extra["n"].in_(range(3, 100_003)), lambda i: i >= 3),
    ("not in", lambda: ~col.level.in_(range(3, 100_003)), lambda i: i < 3),
    ("or of ==", lambda: either([col.level == i for i in range(3, 10_003)]), lambda i: i >= 3),
    ("and of !=", lambda: ~either([col.level == i for i in range(3, 10_003)]), lambda i: i < 3),
    (
        "and of != alone",
        lambda: functools.reduce(operator.and_, [col.level != i for i in range(3, 1004)]),
        lambda i: i < 3,
    ),
    ("or of >", lambda: either([col.level > 10_000 - i for i in range(1, 1002)]) | (col.level == 3), lambda i: i == 3),
    (
        "and of <",
        lambda: functools.reduce(operator.and_, [col.level < i for i in range(3, 1004)]),
        lambda i: i < 3,
    ),
    ("or of ==, extra", lambda: either([col.extra["n"] == i for i in range(3, 1004)]), lambda i: i >= 3),
    ("or of pairs", lambda: either([(col.level > i) & (col.loss < i + 2) for i in range(3, 300)]), lambda i: i > 3),
]


@pytest.mark.parametrize(("make", "wanted"), [case[1:] for case in WIDE], ids=[case[0] for case in WIDE])
def test_wide_conditions_work(filled: memstore.EpisodicMemory, make: Any, wanted: Any) -> None:
    assert passing(filled, make()) == [i for i in range(30) if wanted(i)]


def test_thousands_of_ranges_work(filled: memstore.EpisodicMemory) -> None:
    many = 10_000 if os.environ.get("MEMSTORE_TORTURE") == "full" else 2_000
    wide = either([col.level > 20_000 - i for i in range(many)]) | (col.level == 3)
    assert filled.query().filter(wide).arrays()["level"].tolist() == [3]


def test_what_is_too_wide_or_too_deep_is_refused_in_one_line() -> None:
    with pytest.raises(InvalidValue, match=rf"^[^\n]*at most {MAX_SIZE:,} comparisons[^\n]*$"):
        AnyOf(tuple(col.level > i for i in range(MAX_SIZE + 1)))
    with pytest.raises(InvalidValue, match=r"^[^\n]*places in extra[^\n]*$"):
        either([col.extra["n"] > i for i in range(MAX_SIZE // LOOK_UP + 1)])
    growths: list[Any] = [lambda c: ~(c & (col.loss > 1)), lambda c: (c | (col.loss > 1)) & (col.level < 3)]
    for grow in growths:
        deep: Any = col.loss > 1
        with pytest.raises(InvalidValue, match=r"^conditions are nested more than \d+ deep$"):
            for _ in range(10_000):
                deep = grow(deep)
    for text in ("(" * 4990 + "loss > 1", "not " * 2400 + "loss > 1", "not(" * 2000 + "loss > 1"):
        with pytest.raises(InvalidValue) as caught:
            parse(text)
        assert len(str(caught.value)) < 300
    with pytest.raises(InvalidValue, match=r"^[^\n]*at most[^\n]*$"):
        parse("(" * 10_000 + "loss > 1" + ")" * 10_000)


def test_the_deepest_conditions_work(filled: memstore.EpisodicMemory) -> None:
    """As deep as can be said, each level once as wide as one chain of SQL."""
    deep, plain = col.level > 5, [i > 5 for i in range(30)]
    eight = [col.level > 1000 + i for i in range(6)]
    while deep.depth < MAX_DEPTH - 3:
        deep = ~(either([deep, *eight, col.level == 7]) & (col.loss >= 0))
        plain = [not (p or i == 7) for i, p in enumerate(plain)]
    assert passing(filled, deep) == [i for i in range(30) if plain[i]]
    assert pickle.loads(pickle.dumps(deep)) == deep and str(deep)  # noqa: S301 - of the test's own making


def test_names_that_are_not_there_are_told_with_the_nearest(filled: memstore.EpisodicMemory) -> None:
    for ask in (
        lambda: col.los,
        lambda: col["los"],
        lambda: filled.query().filter("los > 1"),
        lambda: filled.query().order_by("los").all(),
        lambda: filled.query().select("los"),  # type: ignore[arg-type]
        lambda: filled.query().group_by("los"),  # type: ignore[arg-type]
        lambda: filled.query().aggregate(n=count("los")),  # type: ignore[arg-type]
        lambda: filled.query().group_by(col.domain).aggregate(loss=count()).order_by("los").all(),
    ):
        with pytest.raises((AttributeError, InvalidValue), match=r"loss") as caught:
            ask()
        assert len(str(caught.value)) < 500
    with pytest.raises(AttributeError, match="did you mean loss.*replay_count"):
        col.losss  # noqa: B018
    with pytest.raises(AttributeError) as caught:
        getattr(col, "x" * 100_000)
    assert len(str(caught.value)) < 500
    assert not hasattr(col, "nonsense") and pickle.loads(pickle.dumps(col)).loss.name == "loss"  # noqa: S301
