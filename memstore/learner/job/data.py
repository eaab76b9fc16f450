"""Datasets, and the class-incremental streams made of them: tasks in order, one pass, small batches."""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.errors import ConfigError

CLASSES_PER_TASK = 2
"""Each task of a dataset without domains has this many classes."""
TEST_FRACTION = 0.25
"""This share of each class's examples is kept for tests."""


@dataclass(frozen=True, slots=True, eq=False)
class Dataset:
    """Labelled examples.

    Attributes
    ----------
    name : str
        ``"digits"`` or the path of the file.
    x : float32 array, shape (n, features)
    y : int64 array, shape (n,)
        Class numbers, 0 .. len(classes) - 1.
    classes : tuple of str
        Label of each class number.
    domain : str array, shape (n,)
        Task of each example.
    """

    name: str
    x: NDArray[np.float32]
    y: NDArray[np.int64]
    classes: tuple[str, ...]
    domain: NDArray[np.str_]

    def digest(self) -> str:
        """Return the SHA-256 of the examples, as hex."""
        sha = hashlib.sha256(f"{self.x.shape} {self.classes}\n".encode())
        sha.update(self.x.tobytes())
        sha.update(self.y.tobytes())
        sha.update("\n".join(self.domain.tolist()).encode())
        return sha.hexdigest()


@dataclass(frozen=True, slots=True, eq=False)
class Task:
    """One task of the stream, as row numbers of a `Dataset`. The training rows are in the order of the stream."""

    domain: str
    train: NDArray[np.int64]
    test: NDArray[np.int64]


def load_dataset(name: str | os.PathLike[str]) -> Dataset:
    """Return ``"digits"`` or the data of an ``.npz`` file.

    The file holds ``x`` of shape (n, ...) and ``y`` of n integer labels. It may hold ``domain`` of n texts or integers:
    then each domain is a task, in the order of first appearance. Otherwise each task has two classes. ``x`` is
    flattened and not scaled: its values should be of about unit size.

    Raises
    ------
    ConfigError
        There is no such dataset, the file does not hold one, or scikit-learn is missing.
    """
    text = os.fspath(name)
    if text == "digits":
        return _digits()
    if not text.endswith(".npz"):
        raise ConfigError(f"dataset {text!r}: give 'digits' or the path of an .npz file with arrays x and y")
    return _from_file(text)


def split_tasks(data: Dataset, seed: int) -> tuple[Task, ...]:
    """Split a dataset into tasks, and each task, class by class, into training and test rows.

    Equal seeds split equally.

    Raises
    ------
    ConfigError
        A task has no class of two or more examples, so nothing is left to test on.
    """
    rng = np.random.default_rng(seed)
    tasks = []
    for domain in dict.fromkeys(data.domain.tolist()):
        rows = np.flatnonzero(data.domain == domain)
        train, test = [], []
        for label in np.unique(data.y[rows]):
            shuffled = rng.permutation(rows[data.y[rows] == label])
            held_out = min(max(1, round(len(shuffled) * TEST_FRACTION)), len(shuffled) - 1)
            test.append(shuffled[:held_out])
            train.append(shuffled[held_out:])
        task = Task(domain, rng.permutation(np.concatenate(train)), np.sort(np.concatenate(test)))
        if not len(task.test):
            raise ConfigError(
                f"domain {domain!r} of {data.name} needs two examples of one class, because one is kept to test on"
            )
        tasks.append(task)
    return tuple(tasks)


def stream(tasks: tuple[Task, ...], batch: int) -> list[tuple[int, NDArray[np.int64]]]:
    """Return one pass over all tasks in order, as pairs of a task's number and at most ``batch`` row numbers."""
    return [
        (number, task.train[start : start + batch])
        for number, task in enumerate(tasks)
        for start in range(0, len(task.train), batch)
    ]


def _digits() -> Dataset:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigError("the digits come with scikit-learn: pip install memstore[train]") from error
    bunch: Any = load_digits()
    # The range 0 .. 16 becomes 0 .. 1, exactly in float32.
    return _dataset("digits", bunch.data / 16.0, bunch.target, None)


def _from_file(path: str) -> Dataset:
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"dataset {path!r} cannot be read as an .npz file of plain arrays: {error}") from error
    missing = {"x", "y"} - arrays.keys()
    if missing:
        found = ", ".join(arrays) or "nothing"
        raise ConfigError(f"dataset {path!r} lacks the array {' and '.join(sorted(missing))}; it holds {found}")
    return _dataset(path, arrays["x"], arrays["y"], arrays.get("domain"))


def _dataset(name: str, x: NDArray[Any], y: NDArray[Any], domain: NDArray[Any] | None) -> Dataset:
    n = len(x) if x.ndim > 1 else 0
    if not n or x.dtype.kind not in "biuf":
        raise ConfigError(f"dataset {name!r}: x must be numbers of shape (n, ...) with n > 0, got {x.dtype}{x.shape}")
    if y.shape != (n,) or y.dtype.kind not in "iu":
        raise ConfigError(f"dataset {name!r}: y must be {n} integer labels, one for each x, got {y.dtype}{y.shape}")
    flat = np.ascontiguousarray(x.reshape(n, -1), np.float32)
    if not np.all(np.isfinite(flat)):
        raise ConfigError(f"dataset {name!r}: x holds NaN, infinity, or numbers too large for float32")
    labels, numbers = np.unique(y, return_inverse=True)
    classes = tuple(str(label) for label in labels)
    if domain is None:
        groups = [classes[i : i + CLASSES_PER_TASK] for i in range(0, len(classes), CLASSES_PER_TASK)]
        names = np.array(["-".join(group) for group in groups])
        task = names[numbers // CLASSES_PER_TASK]
        order = np.argsort(numbers // CLASSES_PER_TASK, kind="stable")
        return Dataset(name, flat[order], numbers[order].astype(np.int64), classes, task[order])
    if domain.shape != (n,) or domain.dtype.kind not in "iuU":
        raise ConfigError(f"dataset {name!r}: domain must be {n} texts or integers, got {domain.dtype}{domain.shape}")
    return Dataset(name, flat, numbers.astype(np.int64), classes, domain.astype(np.str_))
