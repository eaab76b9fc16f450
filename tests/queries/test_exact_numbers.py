"""Numbers in extra against Python's own, exact comparisons: near 2**53, 2**63 and 2**64, on both databases."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

import memstore
from memstore import InvalidValue, col, count, maximum, mean, minimum, total
from tests.support.helpers import OpenMemory

PLACE = col.extra["pid"]
ENDS = [2**53, 2**60, 2**62, 2**63 - 2048]
WHOLE = [0, 1, -1, 5, *(sign * (end + step) for end in ENDS for step in (-1, 0, 1) for sign in (1, -1))]
WHOLE += [2**63 - 1, 2**63 - 2, -(2**63), -(2**63) + 1, 1746803573373870081, 1746803573373870082]
REAL = [1.0, -0.0, 0.1, -2.5, 1e300, 1e-300, 5e-324, 2.0**53, -(2.0**53), 2.0**60, 2.0**63, 2.0**64, -(2.0**63), 1e23]
BEYOND = [2**63, 2**64, 2**64 + 1, -(2**63) - 1, 10**30, 10**400, -(10**400)]
OTHERS = ["1", True, None, [1], {"pid": 1}]


def counted(value: Any) -> Any:
    """What a stored number counts as: itself, and beyond 64 bits the nearest float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value) if abs(value) < 10**300 else float("inf") * (1 if value > 0 else -1)
    return value


@pytest.fixture
def numbers(open_memory: OpenMemory) -> tuple[memstore.EpisodicMemory, dict[int, Any]]:
    """A memory of these numbers, some of them twice, and what each episode's counts as."""
    stored = [*WHOLE, *REAL, *BEYOND, *OTHERS, *WHOLE[::3], *REAL[::2]]
    random.Random(3).shuffle(stored)
    memory = open_memory(capacity=1000)
    ids = memory.extend({"x": np.zeros(len(stored))}, extra=[{"pid": value} for value in stored]).tolist()
    return memory, dict(zip(ids, map(counted, stored), strict=True))


def test_conditions_agree_with_python(numbers: tuple[memstore.EpisodicMemory, dict[int, Any]]) -> None:
    memory, known = numbers
    dice = random.Random(4)
    constants: list[Any] = [*WHOLE, *REAL, np.int64(2**53 + 1), np.uint64(2**62 + 1), np.float32(2.0**53), 0.5]
    found: set[int]
    for value in constants:
        plain = value.item() if isinstance(value, np.generic) else value
        numeric = {i: number for i, number in known.items() if number is not None}
        for condition, passing in (
            (value == PLACE, {i for i, number in numeric.items() if number == plain}),
            (value != PLACE, {i for i, number in known.items() if number != plain}),
            (value > PLACE, {i for i, number in numeric.items() if number < plain}),
            (value <= PLACE, {i for i, number in numeric.items() if number >= plain}),
            (~(value >= PLACE), {i for i, number in known.items() if number is None or number > plain}),
        ):
            found = set(memory.query().filter(condition).ids().tolist())
            assert found == passing, condition
    for _ in range(10):
        some = dice.sample(constants, 7)
        passing = {i for i, number in known.items() if number is not None and any(number == one for one in some)}
        assert set(memory.query().filter(PLACE.in_(some)).ids().tolist()) == passing, some
        assert set(memory.sample(1000, where=PLACE.in_(some)).ids.tolist()) == passing, some
        low, high = sorted(some[:2])
        passing = {i for i, number in known.items() if number is not None and low <= number <= high}
        assert set(memory.query().filter(PLACE.between(low, high)).ids().tolist()) == passing


def test_groups_orders_and_ends_are_exact(numbers: tuple[memstore.EpisodicMemory, dict[int, Any]]) -> None:
    memory, known = numbers
    sizes: dict[Any, int] = {}
    for number in known.values():
        sizes[number] = sizes.get(number, 0) + 1
    query = memory.query().group_by(value=PLACE.number).aggregate(n=count())
    found = [(row.value, row.n) for row in query]
    assert found == [*sorted((v, n) for v, n in sizes.items() if v is not None), (None, sizes[None])]
    assert all(type(value) in (float, int, type(None)) for value, _ in found)
    assert [row.value for row in query.order_by(PLACE.number.descending)][:-1] == [v for v, _ in found[:-1]][::-1]
    wanted = sorted((number, i) for i, number in known.items() if number is not None)
    ordered = memory.query().filter(PLACE.number.is_known()).order_by(PLACE.number)
    assert ordered.ids().tolist() == [i for _, i in wanted]
    assert [row.value for row in ordered.select(value=PLACE.number)] == [number for number, _ in wanted]

    near = PLACE.between(2**62, 2**63 - 1)
    (ends,) = memory.query().filter(near).aggregate(low=minimum(PLACE.number), high=maximum(PLACE.number)).all()
    assert (ends.low, ends.high) == (2**62, 2**63 - 1)
    (sums,) = memory.query().filter(PLACE == 2**53 + 1).aggregate(m=mean(PLACE.number), s=total(PLACE.number)).all()
    assert sums.m == 2.0**53 and sums.s == 2.0**53 * sizes[2**53 + 1]


def test_two_prompts_are_two_groups(open_memory: OpenMemory) -> None:
    memory = open_memory()
    pids = [1746803573373870081] * 3 + [1746803573373870082] * 3
    ids = memory.extend({"x": np.zeros(6)}, extra=[{"pid": pid} for pid in pids]).tolist()
    assert memory.query().filter(PLACE == 1746803573373870081).ids().tolist() == ids[:3]
    for _ in range(10):
        drawn = memory.sample_groups(2, 3, by=PLACE.number)
        assert {frozenset(part.tolist()) for part in drawn.ids.reshape(2, 3)} == {
            frozenset(ids[:3]),
            frozenset(ids[3:]),
        }


def test_constants_beyond_64_bits_are_refused_in_one_line(memory: memstore.EpisodicMemory) -> None:
    for value in (2**63, 2**64, -(2**63) - 1, 10**400, np.uint64(2**63)):
        for ask in (PLACE.__eq__, PLACE.__lt__, lambda v: PLACE.in_([v]), lambda v: col.loss == v):
            with pytest.raises(InvalidValue, match=r"^[^\n]*between -2\*\*63 and 2\*\*63 - 1[^\n]*$"):
                ask(value)


def test_whole_constants_are_not_rounded_beside_real_columns(open_memory: OpenMemory) -> None:
    memory = open_memory()
    losses = [2.0**53, 2.0**53 + 2, 2.0**62]
    memory.extend({"x": np.zeros(3)}, loss=losses)
    for value in (2**53, 2**53 + 1, 2**53 + 2, 2**53 + 3, 2**62 - 1, 2**62, 2**62 + 1):
        for condition, passing in (
            (col.loss == value, [x for x in losses if x == value]),
            (col.loss.in_([value, -1]), [x for x in losses if x == value]),
            (col.loss < value, [x for x in losses if x < value]),
            (col.loss <= value, [x for x in losses if x <= value]),
            (col.loss > value, [x for x in losses if x > value]),
            (col.loss >= value, [x for x in losses if x >= value]),
        ):
            assert memory.query().filter(condition).arrays()["loss"].tolist() == passing, condition


def test_answers_with_exact_numbers_become_frames(memory: memstore.EpisodicMemory) -> None:
    pytest.importorskip("pandas")
    memory.extend({"x": np.zeros(2)}, extra=[{"pid": 2**53 + 1}, {"pid": 0.5}])
    answer = memory.query().select(pid=PLACE.number)
    assert [row.pid for row in answer] == [2**53 + 1, 0.5]
    assert answer.arrays()["pid"].tolist() == [2.0**53, 0.5] == answer.to_pandas()["pid"].tolist()
    pytest.importorskip("polars")
    assert answer.to_polars()["pid"].to_list() == [2.0**53, 0.5]
    pytest.importorskip("pyarrow")
    assert answer.to_arrow()["pid"].to_pylist() == [2.0**53, 0.5]
