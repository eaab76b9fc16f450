"""Continual-learning metrics by hand-computed examples."""

from __future__ import annotations

import numpy as np
import pytest

from memstore.errors import InvalidValue
from memstore.learner.job.metrics import accuracy, average_accuracy, backward_transfer, forgetting

MATRIX = [[0.9, 0.2, 0.0], [0.6, 0.8, 0.1], [0.5, 0.9, 1.0]]


def test_average_is_the_last_row() -> None:
    assert average_accuracy(MATRIX) == pytest.approx(0.8)


def test_forgetting_is_the_best_before_minus_the_last() -> None:
    # task 0: 0.9 - 0.5; task 1 got better: 0.8 - 0.9; the last task has nothing before it.
    assert forgetting(MATRIX) == pytest.approx((0.4 - 0.1) / 2)


def test_backward_transfer_is_the_last_minus_right_after_learning() -> None:
    assert backward_transfer(MATRIX) == pytest.approx((-0.4 + 0.1) / 2)


def test_forgetting_counts_the_best_not_the_first() -> None:
    assert forgetting([[0.5, 0.0, 0.0], [0.9, 0.5, 0.0], [0.6, 0.5, 0.5]]) == pytest.approx(0.15)


def test_one_task_forgets_nothing() -> None:
    assert (average_accuracy([[0.7]]), forgetting([[0.7]]), backward_transfer([[0.7]])) == (0.7, 0.0, 0.0)


@pytest.mark.parametrize("matrix", [[], [[1.0, 1.0]], [1.0, 2.0]])
def test_a_matrix_that_is_not_square_is_refused(matrix: list[object]) -> None:
    with pytest.raises(InvalidValue):
        average_accuracy(matrix)  # type: ignore[arg-type]


def test_accuracy() -> None:
    outputs = np.array([[0.0, 1.0], [2.0, 1.0], [0.5, 0.5]])
    assert accuracy(outputs, [1, 1, 0]) == pytest.approx(2 / 3)
    with pytest.raises(InvalidValue):
        accuracy(outputs, [1, 1])
    with pytest.raises(InvalidValue):
        accuracy(np.empty((0, 2)), [])
