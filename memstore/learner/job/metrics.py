"""Continual-learning metrics of an accuracy matrix ``a``.

``a[t, l]`` is the test accuracy on task l after training on tasks 0 .. t; T is the last task.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memstore.errors import InvalidValue

FORGETTING_FORMULA = "mean over l < T of: max over t < T of a[t,l], minus a[T,l]"
BACKWARD_TRANSFER_FORMULA = "mean over l < T of: a[T,l] - a[l,l]"


def accuracy(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return the share of rows whose largest output, the first among equals, is the target class.

    Parameters
    ----------
    outputs : array_like, shape (n, classes)
    targets : array_like of int, shape (n,)
    """
    predicted = np.argmax(np.asarray(outputs), axis=1)
    expected = np.asarray(targets)
    if predicted.shape != expected.shape or not predicted.size:
        raise InvalidValue(f"{predicted.size} predictions against {expected.size} targets")
    return float(np.mean(predicted == expected))


def average_accuracy(matrix: ArrayLike) -> float:
    """Return the mean of the last row: accuracy over all tasks after the last one."""
    return float(np.mean(_square(matrix)[-1]))


def forgetting(matrix: ArrayLike) -> float:
    """Return `FORGETTING_FORMULA`; 0.0 for a single task. Negative when earlier tasks got better."""
    a = _square(matrix)
    if len(a) == 1:
        return 0.0
    return float(np.mean(a[:-1, :-1].max(axis=0) - a[-1, :-1]))


def backward_transfer(matrix: ArrayLike) -> float:
    """Return `BACKWARD_TRANSFER_FORMULA`; 0.0 for a single task."""
    a = _square(matrix)
    if len(a) == 1:
        return 0.0
    return float(np.mean(a[-1, :-1] - np.diag(a)[:-1]))


def _square(matrix: ArrayLike) -> NDArray[np.float64]:
    a = np.asarray(matrix, np.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not a.size:
        raise InvalidValue(f"the accuracy matrix must have one row and one column for each task, got shape {a.shape}")
    return a
