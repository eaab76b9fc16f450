"""Continual-learning metrics of an accuracy matrix ``a``.

``a[t, l]`` is the test accuracy on task l after training on tasks 0 .. t. T is the last task.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from memstore.errors import InvalidValue

FORGETTING_FORMULA = "mean over l < T of: max over t < T of a[t,l], minus a[T,l]"
"""`forgetting` computes this. It is the fall of the accuracy on each earlier task below its best."""
BACKWARD_TRANSFER_FORMULA = "mean over l < T of: a[T,l] - a[l,l]"
"""`backward_transfer` computes this. It is the change of the accuracy on each earlier task after its training."""


def accuracy(outputs: ArrayLike, targets: ArrayLike) -> float:
    """Return the share of rows, 0 to 1, in which the target class has the largest output.

    Among equally large outputs the first counts as the largest.

    Parameters
    ----------
    outputs : array_like, shape (n, classes)
    targets : array_like of int, shape (n,)

    Raises
    ------
    InvalidValue
        The two differ in length, or are empty.
    """
    predicted = np.argmax(np.asarray(outputs), axis=1)
    expected = np.asarray(targets)
    if predicted.shape != expected.shape or not predicted.size:
        raise InvalidValue(
            f"outputs and targets must have the same length, above 0, got {predicted.size} and {expected.size}"
        )
    return float(np.mean(predicted == expected))


def average_accuracy(matrix: ArrayLike) -> float:
    """Return the mean of the last row, which is the accuracy over all tasks after the last one."""
    return float(np.mean(_square(matrix)[-1]))


def forgetting(matrix: ArrayLike) -> float:
    """Return `FORGETTING_FORMULA`, 0.0 for a single task. It is negative if earlier tasks got better."""
    a = _square(matrix)
    if len(a) == 1:
        return 0.0
    return float(np.mean(a[:-1, :-1].max(axis=0) - a[-1, :-1]))


def backward_transfer(matrix: ArrayLike) -> float:
    """Return `BACKWARD_TRANSFER_FORMULA`, 0.0 for a single task."""
    a = _square(matrix)
    if len(a) == 1:
        return 0.0
    return float(np.mean(a[-1, :-1] - np.diag(a)[:-1]))


def _square(matrix: ArrayLike) -> NDArray[np.float64]:
    a = np.asarray(matrix, np.float64)
    if a.ndim != 2 or a.shape[0] != a.shape[1] or not a.size:
        raise InvalidValue(f"the accuracy matrix must have one row and one column for each task, got shape {a.shape}")
    return a
