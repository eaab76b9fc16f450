"""Opening what is there: settings, checkpoints, and a run that goes on as if it had never stopped."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import memstore
from memstore import (
    CheckpointNotFound,
    ConfigError,
    DomainBalanced,
    EpisodicMemory,
    MemstoreError,
    Mixed,
    PrioritizedLoss,
    PrioritizedRecency,
    Uniform,
)
from memstore.buffer.settings import read_settings
from tests.support.helpers import FRESH, OpenMemory, everything, live_ids, row, rows

# Settings


@pytest.mark.parametrize(
    ("stored", "given", "way"),
    [
        ({"capacity": 10}, {"capacity": 20}, r"configure\(capacity="),
        ({}, {"capacity": 5}, r"configure\(capacity="),
        ({"epsilon": 0.5}, {"epsilon": 0.25}, "fixed at creation"),
        ({"eviction": "fifo"}, {"eviction": "reservoir"}, r"configure\(eviction="),
        ({"strategy": "uniform"}, {"eviction": "lowest_loss"}, r"configure\(eviction="),
        ({"max_replays": 3}, {"max_replays": 4}, r"configure\(max_replays="),
        ({"signature": {"x": ("f4", (3,))}}, {"signature": {"x": ("f8", (3,))}}, "buffer="),
        ({"signature": {"x": ("f4", (3,))}}, {"signature": {"x": ("f4", (None,))}}, "buffer="),
        ({"signature": {"x": ("f4", (3,))}}, {"signature": {"y": ("f4", (3,))}}, "buffer="),
    ],
)
def test_another_setting_is_refused_with_both_values(
    open_memory: OpenMemory, stored: dict[str, Any], given: dict[str, Any], way: str
) -> None:
    """And with the way to change it; the buffer stays as it was."""
    memory = open_memory(**stored)
    revision = memory.stats().revision
    with pytest.raises(ConfigError, match=way) as refusal:
        open_memory(**given)
    ((name, value),) = given.items()
    message = str(refusal.value)
    if name == "signature":
        assert "float32[3]" in message and (
            "float64[3]" in message or "float32[*]" in message or "y float32" in message
        )
    else:
        defaults = {"capacity": 1_000_000, "eviction": "fifo"}
        assert name in message and repr(value) in message and repr(stored.get(name, defaults.get(name))) in message
    assert isinstance(refusal.value, ValueError)
    assert memory.stats().revision == revision


def test_the_same_settings_resume(open_memory: OpenMemory) -> None:
    """Given again, or left out."""
    settings: dict[str, Any] = {
        "capacity": 10,
        "epsilon": 0.5,
        "eviction": "fifo",
        "max_replays": 3,
        "strategy": "prioritized_loss",
        "alpha": 0.9,
        "signature": {"x": ("f4", (4,)), "number": int},
    }
    memory = open_memory(**settings)
    memory.extend(rows(3), loss=1.0)
    for again in (open_memory(), open_memory(**settings), open_memory(capacity=10)):
        assert again.resumed and len(again) == 3 and again.capacity == 10
        assert again.strategy == PrioritizedLoss(0.9)
        assert again.stats().epsilon == 0.5 and again.stats().eviction == "fifo"
    with pytest.raises(ConfigError):
        open_memory(capacity=11)
    memory.configure(capacity=11)
    assert open_memory(capacity=11).capacity == 11


def test_a_signature_fixed_by_the_first_add_is_compared(open_memory: OpenMemory) -> None:
    """The order of the fields does not matter."""
    open_memory().add(row(1))
    assert open_memory(signature={"number": int, "x": ("f4", (4,))}).resumed
    with pytest.raises(ConfigError, match=r"x float32\[4\]"):
        open_memory(signature={"x": ("f4", (5,)), "number": int})


def test_a_signature_given_to_an_empty_buffer(open_memory: OpenMemory) -> None:
    """Binds from then on, also where the buffer was made without one."""
    open_memory().close()
    memory = open_memory(signature={"x": ("f4", (None,))})
    memory.add({"x": np.zeros(3, np.float32)})
    memory.add({"x": np.zeros(5, np.float32)})
    assert len(memory) == 2


def test_a_strategy_given_on_resuming_is_this_handles(open_memory: OpenMemory) -> None:
    """Others, and later ones, keep the stored one; ``configure`` changes it for all."""
    stored = open_memory(strategy=PrioritizedLoss(0.7))
    stored.extend(rows(5), loss=1.0)
    mine = open_memory(strategy="uniform")
    assert mine.sample(1).strategy == "uniform" and mine.stats().strategy == "uniform"
    assert stored.sample(1).strategy == "prioritized_loss"
    assert open_memory(alpha=0.2).strategy == PrioritizedLoss(0.2)
    assert open_memory().strategy == PrioritizedLoss(0.7)
    stored.configure(strategy=PrioritizedRecency(0.5))
    assert stored.strategy == open_memory().strategy == PrioritizedRecency(0.5)
    assert mine.strategy == Uniform()


@pytest.mark.parametrize(
    "strategy",
    [
        Uniform(),
        PrioritizedLoss(0.0),
        PrioritizedLoss(1 / 3),
        PrioritizedRecency(2.0),
        DomainBalanced(),
        DomainBalanced({"a": 0.1, "'; --": 3.0}),
        Mixed({PrioritizedLoss(0.9): 1, DomainBalanced({"a": 1.0}): 2, "uniform": 3}),
    ],
    ids=lambda strategy: type(strategy).__name__,
)
def test_every_strategy_is_stored_whole(open_memory: OpenMemory, strategy: memstore.Strategy) -> None:
    """With its parameters, bit for bit."""
    open_memory(strategy=strategy).close()
    assert open_memory().strategy == strategy


def test_eviction_follows_the_strategy_unless_given(open_memory: OpenMemory) -> None:
    """As in the origin, but for DomainBalanced."""
    for name, expected in {
        "prioritized_loss": "lowest_loss",
        "mixed": "lowest_loss",
        "prioritized_recency": "fifo",
        "uniform": "fifo",
        "domain_balanced": "largest_domain",
    }.items():
        assert open_memory(buffer=name, strategy=name).stats().eviction == expected
        assert open_memory(buffer=f"{name} own", strategy=name, eviction="none").stats().eviction == "none"


def test_two_handles_see_a_change_of_settings(open_memory: OpenMemory) -> None:
    """At their next call, in the same process or another."""
    one, two = open_memory(capacity=10, strategy="prioritized_loss", eviction="fifo"), open_memory()
    one.extend(rows(10), loss=np.arange(10.0))
    assert two.configure(capacity=4, eviction="lowest_loss") == 6
    assert one.capacity == 4 and len(one) == 4
    one.add(row(11), loss=0.5)
    assert live_ids(two) == [8, 9, 10, 11]
    two.add(row(12), loss=0.6)
    assert live_ids(one) == [8, 9, 10, 12]


def test_unchanged_leaves_a_setting_as_it_is(open_memory: OpenMemory) -> None:
    """It is what stands for a setting that is left out, in ``open`` and in ``configure``."""
    settings: dict[str, Any] = {
        "capacity": 10,
        "strategy": PrioritizedLoss(0.9),
        "eviction": "fifo",
        "max_replays": 3,
        "limiter": memstore.SamplesPerInsert(4.0),
        "history": memstore.History(max_events=100),
    }
    left_out = dict.fromkeys(settings, memstore.UNCHANGED)
    memory = open_memory(**settings)
    before = memory._session.read(lambda s: s.settings)
    memory.configure(**left_out, alpha=memstore.UNCHANGED)
    resumed = open_memory(**left_out, epsilon=memstore.UNCHANGED, signature=memstore.UNCHANGED)
    assert resumed._session.read(lambda s: s.settings) == before
    assert memory.strategy == resumed.strategy == PrioritizedLoss(0.9)
    assert repr(memstore.UNCHANGED) == "UNCHANGED" and copy.deepcopy(memstore.UNCHANGED) is memstore.UNCHANGED


def test_none_means_off(open_memory: OpenMemory) -> None:
    """Where a setting can be off: at creation, in ``configure``, and compared on resuming."""
    off: dict[str, Any] = {"max_replays": None, "limiter": None, "history": None}
    on = {"max_replays": 1, "limiter": memstore.SamplesPerInsert(4.0), "history": memstore.History()}
    memory = open_memory(**on)
    for name in off:
        with pytest.raises(ConfigError, match=rf"{name}=.*configure\({name}="):
            open_memory(**{name: None})
    memory.configure(**off)
    open_memory(**off).close()
    memory.extend(rows(2), loss=1.0)
    memory.update([1, 1], loss=2.0)
    assert len(memory) == 2 and memory.history() == []
    assert (memory.stats().max_replays, memory.stats().limiter) == (None, None)
    assert open_memory(buffer="off", **off).stats().limiter is None


@pytest.mark.parametrize("name", ["capacity", "strategy", "alpha", "epsilon", "eviction", "signature"])
def test_none_is_refused_where_nothing_can_be_off(open_memory: OpenMemory, name: str) -> None:
    memory = open_memory()
    with pytest.raises(ConfigError, match=name):
        open_memory(**{name: None})
    if name not in ("epsilon", "signature"):
        nothing: dict[str, Any] = {name: None}
        with pytest.raises(ConfigError, match=name):
            memory.configure(**nothing)


def test_settings_are_parsed_when_they_change(open_memory: OpenMemory) -> None:
    read_settings.cache_clear()
    memory, other = open_memory(history=memstore.History(max_events=100)), open_memory()
    memory.extend(rows(5), loss=1.0)
    len(other)
    parsed = read_settings.cache_info().misses
    for handle in (memory, other):
        handle.update(handle.sample(3), loss=1.0)
        handle.add(row(9))
        handle.stats()
    assert read_settings.cache_info().misses == parsed
    memory.configure(capacity=100)
    assert other.capacity == 100 and read_settings.cache_info().misses > parsed


def test_an_eviction_policy_of_ones_own_is_refused(open_memory: OpenMemory) -> None:
    """It would be stored by a name that nobody can read."""

    class Mine(memstore.Fifo):
        pass

    with pytest.raises(ConfigError, match="unknown eviction policy a value of type Mine"):
        open_memory(eviction=Mine())


def test_a_reservoir_cannot_begin_halfway(open_memory: OpenMemory) -> None:
    """What is left of another policy is no uniform sample; a buffer that lost nothing may still change to it."""
    memory = open_memory(capacity=5, eviction="fifo")
    memory.extend(rows(5))
    memory.configure(eviction="reservoir")
    memory.configure(eviction="fifo")
    memory.add(row(6))
    with pytest.raises(ConfigError, match="uniform sample"):
        memory.configure(eviction="reservoir")
    assert memory.stats().eviction == "fifo" and memory.check().ok


# Checkpoints


def test_checkpoints_keep_every_kind_of_value(open_memory: OpenMemory) -> None:
    """Types, dtypes, shapes, order, infinities; arrays come back writable and one's own."""
    memory = open_memory()
    arrays: dict[str, Any] = {
        "f4": np.arange(6, dtype=np.float32).reshape(2, 3)[:, ::-1],
        "empty": np.zeros((0, 5), np.int8),
        "scalar": np.float16(1.5),
        "zero-d": np.array(7, np.uint64),
        "big-endian": np.array([1, 2], ">i4"),
        "bool": np.array([True, False]),
        "complex": np.array([1j]),
    }
    state: dict[str, Any] = {
        "none": None,
        "ints": [0, -1, 2**63, -(2**200)],
        "floats": (0.1, -0.0, math.inf, -math.inf, 5e-324),
        "bools": [True, False],
        "text": "\u00e9\0\U0001f600",
        "bytes": b"\0\xff" * 1000,
        "nested": {"": {"a/b": [{"c": ()}, [], {}]}},
        "arrays": arrays,
    }
    memory.save_checkpoint("latest", state)
    found = open_memory().load_checkpoint("latest")
    loaded = found.pop("arrays")
    assert found == {k: v for k, v in state.items() if k != "arrays"}
    assert [type(x) for x in found["ints"] + found["bools"]] == [int] * 4 + [bool] * 2
    assert list(found) == [k for k in state if k != "arrays"] and list(loaded) == list(arrays)
    assert math.copysign(1, found["floats"][1]) == -1
    for name, array in arrays.items():
        assert type(loaded[name]) is type(array) and loaded[name].dtype == array.dtype, name
        assert np.shape(loaded[name]) == np.shape(array) and np.array_equal(loaded[name], array)
    loaded["f4"][:] = 0
    assert open_memory().load_checkpoint("latest")["arrays"]["f4"].tolist() == arrays["f4"].tolist()


def test_a_checkpoint_replaces_the_one_of_its_name(open_memory: OpenMemory) -> None:
    """Names in order of their last save; the state given is neither kept nor changed."""
    memory = open_memory()
    state: dict[str, Any] = {"w": np.zeros(3), "n": [1]}
    memory.save_checkpoint("a", state)
    memory.save_checkpoint("b", state)
    state["w"][:] = 9
    state["n"].append(2)
    assert memory.load_checkpoint("a")["w"].tolist() == [0, 0, 0] and memory.load_checkpoint("b")["n"] == [1]
    memory.save_checkpoint("a", {"w": 1})
    assert memory.checkpoints() == ["b", "a"]
    assert memory.load_checkpoint("a") == {"w": 1}
    with pytest.raises(CheckpointNotFound, match="'b', 'a'"):
        memory.load_checkpoint("c")
    with pytest.raises(LookupError):
        open_memory(buffer="other").load_checkpoint("a")


def test_loading_puts_the_generator_back(open_memory: OpenMemory) -> None:
    """To where it was at the save, in any handle, whatever its seed."""
    memory = open_memory(seed=1)
    memory.extend(rows(100), loss=np.arange(100.0))
    memory.sample(7)
    memory.save_checkpoint("c", {})
    first = [memory.sample(6).ids.tolist() for _ in range(3)]
    memory.load_checkpoint("c")
    assert [memory.sample(6).ids.tolist() for _ in range(3)] == first
    other = open_memory(seed=2)
    other.load_checkpoint("c")
    assert [other.sample(6).ids.tolist() for _ in range(3)] == first
    assert memory.rng is memory.rng


def test_a_restart_without_a_seed_draws_something_else(open_memory: OpenMemory) -> None:
    """Without loading a checkpoint nothing is repeated by accident; with a seed it is, on request."""
    memory = open_memory(seed=None)
    memory.extend(rows(500))
    draws = [memory.sample(6).ids.tolist()]
    draws += [open_memory(seed=None).sample(6).ids.tolist() for _ in range(3)]
    assert len({tuple(ids) for ids in draws}) == 4
    assert open_memory(seed=5).sample(6).ids.tolist() == open_memory(seed=5).sample(6).ids.tolist()


# A run that is interrupted

STEPS = 24
WANTED = 12


class Killed(Exception):
    """Stops a run where the test says."""


def run(memory: EpisodicMemory, stop: Callable[[int, str], None], trace: Path, *, span: int = 1) -> NDArray[np.float64]:
    """A learner: adds, draws, "trains", writes losses back, and commits with a checkpoint every ``span`` steps.

    Each step appends the ids it drew to ``trace`` once they are committed.
    """
    weights, step = np.zeros(4), 0
    if "run" in memory.checkpoints():
        state = memory.load_checkpoint("run")
        weights, step = state["weights"], state["step"]
    while step < STEPS:
        lines = []
        with memory.transaction():
            for _ in range(span):
                stop(step, "before add")
                memory.extend(rows(3, 3 * step), domain=["a", "b", f"d{step % 5}"], loss=[None, 1.0, step / 10])
                stop(step, "before draw")
                batch = memory.sample(WANTED, beta=0.5)
                weights = weights * 0.9 + (batch["x"] * batch.weight[:, None]).mean(axis=0)
                stop(step, "before update")
                memory.update(batch, loss=np.abs(np.sin(batch["number"] + weights[0])), step=step)
                step += 1
                lines.append(" ".join(map(str, batch.ids.tolist())))
            stop(step, "before checkpoint")
            memory.save_checkpoint("run", {"weights": weights, "step": step})
            stop(step, "before commit")
        stop(step, "after commit")
        with trace.open("a") as file:
            file.writelines(f"{line}\n" for line in lines)
    return weights


def go_on(*_: Any) -> None:
    """Never stop."""


def trajectory(memory: EpisodicMemory) -> Any:
    """What must agree between two runs: every episode and its losses; wall clock times are left out."""
    ids = live_ids(memory)
    return [
        (fact[:3] + fact[4:8], fact[8][0], fact[8][2]) for fact in everything(memory, ids)
    ], memory.stats().total_events


@pytest.mark.parametrize("strategy", ["mixed", "prioritized_loss", "uniform", "domain_balanced", "prioritized_recency"])
@pytest.mark.parametrize("span", [1, 4])
def test_an_interrupted_run_ends_like_an_uninterrupted_one(tmp_path: Path, url: str, strategy: str, span: int) -> None:
    """Stopped at every kind of place, started again with another seed: same ids, same weights, same rows."""
    settings: dict[str, Any] = {"capacity": 40, "strategy": strategy, "eviction": "lowest_loss"}
    with memstore.open(tmp_path / "whole.db", seed=7, **settings) as memory:
        expected = run(memory, go_on, tmp_path / "whole", span=span)
        rows_expected = trajectory(memory)
    dice = np.random.default_rng(3)
    for attempt in range(100):
        left = int(dice.integers(1, 25)) if attempt < 12 else STEPS * 10

        def stop(*_: Any) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise Killed

        # The same command again; but once there is a checkpoint, the seed no longer matters.
        with memstore.open(url, seed=7, **settings) as memory:
            begun = memory.checkpoints() == ["run"]
        with memstore.open(url, seed=1000 + attempt if begun else 7, **settings) as memory:
            try:
                found = run(memory, stop, tmp_path / "parts", span=span)
            except Killed:
                continue
            rows_found = trajectory(memory)
            break
    assert attempt > 5
    assert found.tobytes() == expected.tobytes()
    assert rows_found == rows_expected
    drawn = (tmp_path / "parts").read_text().splitlines()
    # A run that stopped between commit and note leaves its note out; all others are the same, in order.
    whole = (tmp_path / "whole").read_text().splitlines()
    assert drawn and [line for line in whole if line in set(drawn)] == drawn


def test_a_run_that_goes_on_in_the_same_handle(tmp_path: Path, url: str) -> None:
    """A learner that catches its exception and starts again needs no reopening."""
    with memstore.open(tmp_path / "whole.db", seed=7, capacity=40) as memory:
        expected = run(memory, go_on, tmp_path / "whole")
    with memstore.open(url, seed=7, capacity=40) as memory:
        for step in (3, 3, 9, 17):

            def stop(now: int, place: str, step: int = step) -> None:
                if now == step and place == "before checkpoint":
                    raise Killed

            with pytest.raises(Killed):
                run(memory, stop, tmp_path / "parts")
            memory.sample(5)  # draws that no checkpoint knows of do not matter
        assert run(memory, go_on, tmp_path / "parts").tobytes() == expected.tobytes()
    assert (tmp_path / "parts").read_text() == (tmp_path / "whole").read_text()


def _die(url: str, trace: str, step: int, place: str) -> None:
    def stop(now: int, where: str) -> None:
        if (now, where) == (step, place):
            os._exit(9)

    with memstore.open(url, seed=7 if step < 6 else step, capacity=40) as memory:
        run(memory, stop, Path(trace))


def test_a_run_whose_process_dies(tmp_path: Path, url: str) -> None:
    """Without a chance to clean up: inside a draw, before and after the commit."""
    with memstore.open(tmp_path / "whole.db", seed=7, capacity=40) as memory:
        expected = run(memory, go_on, tmp_path / "whole")
    for step, place in ((0, "before update"), (5, "before commit"), (6, "after commit"), (15, "before draw")):
        process = FRESH.Process(target=_die, args=(url, str(tmp_path / "parts"), step, place))
        process.start()
        process.join(60)
        assert process.exitcode == 9
    with memstore.open(url, seed=99, capacity=40) as memory:
        assert memory.check().ok
        assert run(memory, go_on, tmp_path / "parts").tobytes() == expected.tobytes()
    with pytest.raises(MemstoreError):
        memory.sample(1)
