"""Values of numpy, PyTorch, pandas and gymnasium where memstore takes numbers, arrays, times and JSON."""

from __future__ import annotations

import datetime
import math
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from memstore import Condition, EpisodicMemory, InvalidValue, PayloadError, RetentionPolicy, col
from tests.support.helpers import OpenMemory, row, rows, sqlite_only

DAY = datetime.datetime(2026, 11, 28, tzinfo=datetime.UTC)
SAME_DAY: list[Any] = [
    DAY,
    DAY.timestamp(),
    int(DAY.timestamp()),
    np.int64(DAY.timestamp()),
    np.array(DAY.timestamp()),
    torch.tensor(DAY.timestamp(), dtype=torch.float64),
    pd.Timestamp(DAY),
    *(np.datetime64("2026-11-28", unit) for unit in ("D", "h", "m", "s", "ms", "us", "ns")),
]


def passing(memory: EpisodicMemory, condition: Condition) -> int:
    """How many episodes pass."""
    return memory.query().filter(condition).count()


def test_a_time_in_every_form_is_the_same_everywhere(open_memory: OpenMemory) -> None:
    """As a timestamp, in a list, in an array, as ``now``, as a range, and in conditions."""
    memory = open_memory(capacity=200)
    seconds = DAY.timestamp()
    for form in SAME_DAY:
        one = memory.add(row(1), timestamp=form)
        several = memory.extend(rows(2), timestamp=form).tolist()
        listed = memory.extend(rows(2), timestamp=[form, None]).tolist()
        assert [e.timestamp for e in memory.get_many([one, *several, listed[0]])] == [seconds] * 4, form
        assert passing(memory, col.timestamp == form) == passing(memory, col.timestamp.between(form, form)) > 0
        assert len(memory.recall_temporal(form, form)) == passing(memory, col.timestamp == seconds)
        memory.history(since=form, until=form)
        assert memory.consolidate(RetentionPolicy(max_age=1.0), now=form, dry_run=True).too_old == 0


def test_columns_of_times(open_memory: OpenMemory) -> None:
    memory = open_memory()
    stamps = [1.5, 86400.25]
    moments = np.array([1_500_000_000, 86_400_250_000_000], "M8[ns]")
    aware = pd.Series(pd.DatetimeIndex(moments, tz="UTC"))
    for column in (stamps, tuple(stamps), np.array(stamps), torch.tensor(stamps), pd.Series(stamps), moments, aware):
        ids = memory.extend(rows(2), timestamp=column)
        assert [e.timestamp for e in memory.get_many(ids)] == stamps, type(column)
    with pytest.raises(InvalidValue, match=r"without a time zone.*tz_localize"):
        memory.extend(rows(2), timestamp=pd.Series(moments))


def test_fresh_episodes_stay_whatever_kind_of_now(open_memory: OpenMemory) -> None:
    """Nanoseconds taken for seconds removed everything."""
    memory = open_memory()
    memory.extend(rows(5), timestamp=DAY)
    for unit in ("h", "s", "ms", "us", "ns"):
        later = np.datetime64("2026-11-28T01", unit)
        policy = RetentionPolicy(max_age=np.timedelta64(2, "h"))  # type: ignore[arg-type]
        assert memory.consolidate(policy, now=later).too_old == 0
    with pytest.raises(InvalidValue, match="divide by 1000"):
        memory.consolidate(RetentionPolicy(max_age=7200.0), now=DAY.timestamp() * 1000)
    assert len(memory) == 5
    policy = RetentionPolicy(max_age=datetime.timedelta(minutes=59))  # type: ignore[arg-type]
    assert memory.consolidate(policy, now=np.datetime64("2026-11-28T01", "ns")).too_old == 5


ONE: dict[str, list[tuple[Any, Any]]] = {
    "domain": [("a", "a"), (np.str_("a"), "a")],
    "loss": [(1, 1.0), (np.float32(0.5), 0.5), (np.array(2), 2.0), (torch.tensor(0.25, requires_grad=True), 0.25)],
    "timestamp": [(1, 1.0), (np.datetime64(1, "s"), 1.0), (torch.tensor(1), 1.0)],
    "level": [(3, 3), (np.uint8(3), 3), (np.array(3), 3), (torch.tensor(3), 3), (None, None)],
    "tags": [
        (["a", "b"], ("a", "b")),
        (("a",), ("a",)),
        (np.array(["a"]), ("a",)),
        (None, ()),
        ([], ()),
        ({"a"}, ("a",)),
    ],
    "key": [("k", "k"), (np.str_("l"), "l"), (None, None)],
    "extra": [(["a"], ["a"]), ([], []), ((1, 2), [1, 2]), ([[1], [2]], [[1], [2]]), (np.arange(2), [0, 1]), ("a", "a")],
}
"""What add takes for each keyword, and what is stored."""

SHAPES: list[Any] = [
    ["a"],
    ("a",),
    [1.0],
    [3],
    (None,),
    [None],
    [],
    np.array([1.0]),
    np.array([3]),
    np.array(["a"]),
    torch.tensor([1.0]),
    pd.Series([1.0]),
    np.array([np.datetime64(1, "s")]),
    True,
    np.True_,
    np.array(True),
    torch.tensor(True),
    np.timedelta64(1, "s"),
    pd.NA,
    math.nan,
    1j,
    {"a": 1},
    object(),
]
"""What is one value of no keyword but tags and extra."""
FITS = {"tags": (0, 1, 6, 9), "extra": (*range(12), 13, 14, 15, 16, 21)}


@pytest.mark.parametrize("keyword", ONE)
def test_add_takes_each_keyword_as_one_value(open_memory: OpenMemory, keyword: str) -> None:
    memory = open_memory()
    for given, stored in ONE[keyword]:
        episode = memory.get(memory.add(row(1), **{keyword: given}))
        assert getattr(episode, keyword) == stored and type(getattr(episode, keyword)) is type(stored), given
    before = len(memory)
    for index, shape in enumerate(SHAPES):
        if index in FITS.get(keyword, ()):
            continue
        with pytest.raises(InvalidValue, match=keyword.rstrip("s")) as caught:
            memory.add(row(1), **{keyword: shape})
            pytest.fail(f"{shape!r} was taken")
        assert len(str(caught.value)) <= 500
    assert len(memory) == before


@pytest.mark.parametrize("keyword", ONE)
def test_extend_takes_one_value_or_one_per_episode(open_memory: OpenMemory, keyword: str) -> None:
    memory = open_memory()
    for given, stored in ONE[keyword]:
        if keyword == "key" and given is not None:
            continue  # names one episode
        if keyword not in ("tags", "extra"):
            for value in (given, [given, given]):
                arguments: dict[str, Any] = {keyword: value}
                found = memory.get_many(memory.extend(rows(2), **arguments))
                assert [getattr(e, keyword) for e in found] == [stored] * 2, given
        elif keyword == "tags":
            assert [e.tags for e in memory.get_many(memory.extend(rows(2), tags=[given, given]))] == [stored] * 2
        else:
            assert [e.extra for e in memory.get_many(memory.extend(rows(2), extra=[given, None]))] == [stored, None]


def test_a_loss_that_cannot_be_says_what_to_do_there(open_memory: OpenMemory) -> None:
    """In extend None means never measured; in update there is on_invalid."""
    memory = open_memory()
    ids = memory.extend(rows(3))
    for wrong in (math.nan, pd.NA, -1.0, math.inf):
        for loss in ([1.0, wrong, 2.0], pd.Series([1.0, wrong, 2.0], dtype=object)):
            with pytest.raises(InvalidValue, match="give None for what was never measured") as caught:
                memory.extend(rows(3), loss=loss)
            assert "on_invalid" not in str(caught.value)
        with pytest.raises(InvalidValue, match="give None for what was never measured"):
            memory.add(row(1), loss=wrong)
        if wrong is not pd.NA:
            with pytest.raises(InvalidValue, match="on_invalid='skip'"):
                memory.update(ids, loss=[1.0, wrong, 2.0])
    with pytest.raises(InvalidValue, match=r"losses must be real numbers, got .*NAType at index 1"):
        memory.update(ids, loss=[1.0, pd.NA, 2.0])
    assert len(memory) == 3


def test_losses_with_a_graph(open_memory: OpenMemory) -> None:
    memory = open_memory()
    loss = torch.arange(3.0, requires_grad=True) ** 2
    for given in (loss, list(loss), loss.half(), loss.double().flip(0).flip(0), loss.detach().int()):
        ids = memory.extend(rows(3), loss=given)
        assert [m.loss for m in memory.metadata(ids)] == [0.0, 1.0, 4.0]
        memory.update(ids, loss=given)
        memory.update(memory.sample(3), loss=loss.sum())
    assert loss.requires_grad and loss.grad_fn is not None
    for wrong in (loss.bfloat16(), loss.to(torch.complex64), loss > 1, loss.to("meta"), loss[:2], loss[:, None]):
        for call in (lambda w=wrong: memory.extend(rows(3), loss=w), lambda w=wrong: memory.update(ids, loss=w)):
            with pytest.raises(InvalidValue):
                call()


TENSORS: list[torch.Tensor] = [
    torch.arange(6.0).reshape(3, 2),
    torch.arange(6.0, requires_grad=True).reshape(3, 2) * 2,
    torch.arange(6.0).reshape(2, 3).T,
    torch.arange(12)[::2].reshape(3, 2),
    torch.tensor([True, False, True]),
    *(torch.arange(3).to(kind) for kind in (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)),
    *(torch.arange(3).to(kind) for kind in (torch.uint16, torch.uint32, torch.uint64)),
    *(torch.arange(3).to(kind) for kind in (torch.float16, torch.float32, torch.float64)),
    (torch.arange(3) * (1 + 2j)).conj(),
    torch.nn.Parameter(torch.ones(3, 4)),
]


@sqlite_only
def test_tensors_as_payload(open_memory: OpenMemory) -> None:
    """Of several episodes, of one, nested, in lists, and with lengths that differ."""
    for number, tensor in enumerate(TENSORS):
        expected = tensor.detach().resolve_conj().numpy()
        memory = open_memory(buffer=f"b{number}")
        memory.extend({"deep": {"x": tensor, "y": list(tensor)}, "n": [1, 2, 3]})
        memory.add({"deep": {"x": tensor[1], "y": tensor[2]}, "n": 4})
        ids = [e.id for e in memory.recall_temporal(0, 1e11)]
        stored = [memory.get(i).payload["deep"] for i in ids]
        for i in range(3):
            for name in ("x", "y"):
                assert stored[i][name].dtype == expected.dtype and np.array_equal(stored[i][name], expected[i])
        assert np.array_equal(stored[3]["x"], expected[1]) and np.array_equal(stored[3]["y"], expected[2])
    ragged = open_memory(buffer="ragged", signature={"t": ("int64", (None,))})
    ragged.extend({"t": [torch.arange(2), torch.arange(5)]})
    assert [len(t) for t in ragged.sample(2)["t"]] in ([2, 5], [5, 2])


@sqlite_only
def test_tensors_that_cannot_be_stored_are_named(open_memory: OpenMemory) -> None:
    memory = open_memory()
    plain = torch.ones(3)
    cases = {
        "bfloat16": (plain.bfloat16(), r"write \.float\(\)"),
        "sparse": (plain.to_sparse(), r"write \.to_dense\(\)"),
        "meta": (plain.to("meta"), "no data"),
        "float8_e4m3fn": (plain.to(torch.float8_e4m3fn), r"\.float\(\)"),
    }
    for name, (tensor, advice) in cases.items():
        for call in (memory.add, memory.extend):
            with pytest.raises(PayloadError, match=f"field 'a/x'.*{name}.*{advice}"):
                call({"a": {"x": tensor}})
    memory.extend({"a": {"x": plain.bfloat16().float()}})


def test_recall_and_ids_as_tensors(open_memory: OpenMemory) -> None:
    memory = open_memory()
    ids = memory.extend(rows(3))
    assert memory.recall(torch.full((4,), 2.0), on="x", limit=1)[0].episode.id == ids[2]
    memory.update(torch.tensor(ids), loss=1.0)
    assert memory.delete(torch.tensor(ids[:2])) == 2
    assert memory.delete(torch.tensor(ids[2])) == 1


INFO: dict[str, Any] = {
    "reward": np.float32(0.5),
    "_reward": np.array([True, False]),
    "steps": np.int64(2**40),
    "done": np.bool_(True),
    "name": np.str_("Cart"),
    "episode": {"r": np.array([1.5, 2.5], np.float32), "l": np.array(7), "t": torch.tensor(1.25)},
    "final_observation": np.array([np.arange(3, dtype=np.int8), None], object),
    "masks": (np.zeros((2, 2), bool), torch.tensor([1, 2])),
    "big": 2**200,
    "half": np.float16(0.1),
}


def test_info_of_gymnasium_as_extra(open_memory: OpenMemory) -> None:
    """Nested dicts with numpy values, masks, and observations in arrays of objects."""
    memory = open_memory()
    found = memory.get(memory.add(row(1), extra=INFO)).extra
    assert found == {
        "reward": 0.5,
        "_reward": [True, False],
        "steps": 2**40,
        "done": True,
        "name": "Cart",
        "episode": {"r": [1.5, 2.5], "l": 7, "t": 1.25},
        "final_observation": [[0, 1, 2], None],
        "masks": [[[False, False], [False, False]], [1, 2]],
        "big": 2**200,
        "half": float(np.float16(0.1)),
    }
    assert type(found["done"]) is bool and type(found["episode"]["l"]) is int
    several = memory.get_many(memory.extend(rows(2), extra=[INFO, {np.int64(1): np.uint8(2)}]))
    assert several[0].extra == found and several[1].extra == {"1": 2}
    assert passing(memory, col.extra["episode"]["l"] == 7) == 2


def test_what_is_no_json_is_named_by_its_place(open_memory: OpenMemory) -> None:
    memory = open_memory()
    deep: list[Any] = []
    deep.append(deep)
    cases: dict[str, Any] = {
        "extra['info']['x'] is a value of type object": {"info": {"x": object()}},
        "extra['info'][1] is nan": {"info": [1, np.float32("nan")]},
        "extra['a'][0][1] is inf": {"a": np.array([[1, np.inf]])},
        "extra['s'] is a value of type set": {"s": {1}},
        "extra['t'] is 'datetime64": {"t": np.array(["2026"], "M8[s]")},
        "extra['b'] is b'x' (bytes)": {"b": b"x"},
        "extra['z'] is np.complex128": {"z": np.complex128(1)},
        "extra has the key (1, 2)": {(1, 2): 1},
        "extra['n']: a bfloat16 tensor": {"n": torch.ones(1).bfloat16()},
        "extra['u'] holds a lone surrogate": {"u": "\ud800"},
        "two keys of one object are both '1'": {1: 1, "1": 2},
        "does it contain itself": {"deep": deep},
        "extra['m'] is ": {"m": np.ma.masked_array([1], [True])},
    }
    for part, extra in cases.items():
        with pytest.raises(InvalidValue) as caught:
            memory.add(row(1), extra=extra)
        message = str(caught.value)
        assert part.replace("'datetime64", "datetime64") in message or part == "extra has the key (1, 2)", message
        assert "extra" in message and len(message) <= 500
    assert len(memory) == 0


def advised(message: str) -> list[str]:
    """The pieces of code in a message that are dicts of parts."""
    return re.findall(r"\{\"name\".*?\}\}", message)


@sqlite_only
def test_the_advice_for_tuple_observations_works_as_written(open_memory: OpenMemory, tmp_path: Path) -> None:
    """A Tuple space gives a tuple of arrays, a Sequence space a tuple of as many as there are."""
    single = (np.zeros(3, np.float32), np.array(4))
    cases: list[tuple[str, Any, dict[str, Any]]] = [
        ("add", single, {}),
        ("add", (torch.zeros(3), torch.tensor(4)), {}),
        ("extend", [single, single], {}),
        ("extend", (np.zeros((2, 3), np.float32), np.zeros(2, int)), {}),
        ("extend", (np.zeros((3, 3), np.float32), np.zeros(3, int)), {"reward": np.zeros(3)}),
    ]
    for number, (call, value, other) in enumerate(cases):
        memory = open_memory(buffer=f"b{number}")
        with pytest.raises(PayloadError) as caught:
            getattr(memory, call)({"name": value, **other})
        (code,) = advised(str(caught.value))
        script = tmp_path / f"advice{number}.py"
        script.write_text(f"payload = {code}\n")
        payload = runpy.run_path(str(script), {"value": value})["payload"]
        getattr(memory, call)({**payload, **other})
        assert set(memory.sample(1)["name"]) == {"0", "1"}
    with pytest.raises(PayloadError, match=r"np\.stack\(value\)"):
        open_memory(buffer="sequence").add({"name": (np.zeros(3), np.zeros(3))})
    stack = open_memory(buffer="stack", signature={"name": ("float32", (None, 3))})
    for count in (1, 2, 5):
        stack.add({"name": np.stack(tuple(np.zeros(3, np.float32) for _ in range(count)))})


def test_no_torch_is_imported_for_it(path: str) -> None:
    program = (
        "import sys, memstore, numpy as np\n"
        "m = memstore.open(sys.argv[1])\n"
        "m.update(m.extend({'x': np.zeros((2, 3))}, loss=np.ones(2), extra={'a': np.int64(1)}), loss=[1.0, 2.0])\n"
        "m.save_checkpoint('c', {'x': np.zeros(3)}); m.load_checkpoint('c')\n"
        "assert 'torch' not in sys.modules and 'pandas' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program, path], check=True, cwd=Path(__file__).parents[2], timeout=60)
