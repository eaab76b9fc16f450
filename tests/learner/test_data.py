"""Datasets and the stream: deterministic, complete, disjoint; clear refusals."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memstore.errors import ConfigError
from memstore.learner.job.data import load_dataset, split_tasks, stream


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


def test_digits() -> None:
    data = load_dataset("digits")
    assert data.x.shape == (1797, 64)
    assert data.x.dtype == np.float32
    assert (data.x.min(), data.x.max()) == (0.0, 1.0)
    assert data.classes == tuple("0123456789")
    assert data.digest() == load_dataset("digits").digest()
    tasks = split_tasks(data, 0)
    assert [task.domain for task in tasks] == ["0-1", "2-3", "4-5", "6-7", "8-9"]
    for number, task in enumerate(tasks):
        assert set(data.y[task.train]) == set(data.y[task.test]) == {2 * number, 2 * number + 1}
        assert len(task.test) == pytest.approx(0.25 * (len(task.test) + len(task.train)), abs=2)
    rows = np.concatenate([np.concatenate([task.train, task.test]) for task in tasks])
    assert sorted(rows.tolist()) == list(range(1797))


def test_the_split_follows_the_seed_alone() -> None:
    data = load_dataset("digits")
    for a, b in zip(split_tasks(data, 3), split_tasks(data, 3), strict=True):
        np.testing.assert_array_equal(a.train, b.train)
        np.testing.assert_array_equal(a.test, b.test)
    assert split_tasks(data, 3)[0].train.tolist() != split_tasks(data, 4)[0].train.tolist()


def test_the_stream_is_one_pass_in_task_order() -> None:
    tasks = split_tasks(load_dataset("digits"), 0)
    batches = stream(tasks, 10)
    numbers = [number for number, _ in batches]
    assert numbers == sorted(numbers)
    assert max(len(rows) for _, rows in batches) == 10
    for number, task in enumerate(tasks):
        seen = np.concatenate([rows for n, rows in batches if n == number])
        np.testing.assert_array_equal(seen, task.train)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((30, 2, 3))
    y = np.repeat([7, 3, 5], 10)
    data = load_dataset(save(tmp_path / "mine.npz", x=x, y=y))
    assert data.x.shape == (30, 6)
    assert data.classes == ("3", "5", "7")
    assert [task.domain for task in split_tasks(data, 0)] == ["3-5", "7"]
    domain = np.repeat(["b", "a"], 15)
    data = load_dataset(save(tmp_path / "named.npz", x=x, y=y, domain=domain))
    assert [task.domain for task in split_tasks(data, 0)] == ["b", "a"]


def test_the_digest_tells_data_apart(tmp_path: Path) -> None:
    x, y = np.zeros((8, 2)), np.repeat([0, 1], 4)
    one = load_dataset(save(tmp_path / "d.npz", x=x, y=y)).digest()
    x[0, 0] = 1
    assert load_dataset(save(tmp_path / "d.npz", x=x, y=y)).digest() != one


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.zeros((4, 2))}, "lacks the array y"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(3, int)}, "4 integer labels"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4)}, "integer labels"),
        ({"x": np.zeros(4), "y": np.zeros(4, int)}, "x must be numbers"),
        ({"x": np.zeros((0, 2)), "y": np.zeros(0, int)}, "x must be numbers"),
        ({"x": np.array([["a"], ["b"]]), "y": np.zeros(2, int)}, "x must be numbers"),
        ({"x": np.full((4, 2), np.nan), "y": np.zeros(4, int)}, "NaN"),
        ({"x": np.zeros((4, 2)), "y": np.zeros(4, int), "domain": np.zeros(3, int)}, "domain"),
        ({"x": np.array([[{}], [{}]], object), "y": np.zeros(2, int)}, "cannot be read"),
    ],
)
def test_a_file_that_holds_no_dataset_is_refused(tmp_path: Path, arrays: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        load_dataset(save(tmp_path / "bad.npz", **arrays))


def test_other_refusals(tmp_path: Path) -> None:
    junk = tmp_path / "junk.npz"
    junk.write_bytes(b"no archive")
    for name in (junk, tmp_path / "none.npz", "mnist"):
        with pytest.raises(ConfigError):
            load_dataset(name)
    single = load_dataset(save(tmp_path / "single.npz", x=np.zeros((2, 2)), y=np.array([0, 1])))
    with pytest.raises(ConfigError, match="two examples"):
        split_tasks(single, 0)


def test_missing_scikit_learn_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("sklearn"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"pip install memstore\[train\]"):
        load_dataset("digits")
