"""The numpy MLP: right gradients, refused shapes, exact state."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memstore.errors import ConfigError, InvalidValue
from memstore.learner import MLP, Model


def problem(head: str, n: int = 6) -> tuple[MLP, Any, Any, Any]:
    rng = np.random.default_rng(3)
    model = MLP((5, 7, 6, 4), head=head, learning_rate=0.1, momentum=0.5, seed=1)  # type: ignore[arg-type]
    x = rng.standard_normal((n, 5))
    y = rng.integers(0, 4, n) if head == "classification" else rng.standard_normal((n, 4))
    return model, x, y, rng.random(n)


@pytest.mark.parametrize("head", ["classification", "regression"])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_match_finite_differences(head: str, weighted: bool) -> None:
    model, x, y, weight = problem(head)
    used = weight if weighted else None
    _, gradients = model.gradients(x, y, used)

    def objective() -> float:
        losses = model.loss(x, y)
        return float(np.sum(losses * weight if weighted else losses) / len(x))

    h = 1e-6
    for name, gradient in gradients.items():
        parameter = model._parameters[name]
        for index in np.ndindex(parameter.shape):
            kept = parameter[index]
            parameter[index] = kept + h
            above = objective()
            parameter[index] = kept - h
            below = objective()
            parameter[index] = kept
            assert gradient[index] == pytest.approx((above - below) / (2 * h), abs=1e-7)


@pytest.mark.parametrize("head", ["classification", "regression"])
def test_step_returns_the_losses_from_before_it_and_lowers_them(head: str) -> None:
    model, x, y, _ = problem(head)
    before = model.loss(x, y)
    np.testing.assert_array_equal(model.step(x, y), before)
    for _ in range(50):
        model.step(x, y)
    assert before.shape == (6,)
    assert model.loss(x, y).mean() < 0.5 * before.mean()


def test_losses_are_the_textbook_ones() -> None:
    model, x, y, _ = problem("classification")
    z = model.predict(x)
    probability = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(model.loss(x, y), -np.log(probability[np.arange(6), y]))
    model, x, y, _ = problem("regression")
    np.testing.assert_allclose(model.loss(x, y), ((model.predict(x) - y) ** 2).mean(axis=1))


def test_momentum_follows_its_formula() -> None:
    model, x, y, _ = problem("regression")
    velocity = {name: np.zeros_like(value) for name, value in model._parameters.items()}
    expected = {name: value.copy() for name, value in model._parameters.items()}
    for _ in range(3):
        for name, gradient in model.gradients(x, y)[1].items():
            velocity[name] = 0.5 * velocity[name] + gradient
            expected[name] -= 0.1 * velocity[name]
        model.step(x, y)
        for name, value in model._parameters.items():
            np.testing.assert_allclose(value, expected[name], rtol=1e-13)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_equal_steps_are_bit_identical_also_across_a_saved_state(dtype: str) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 64)), rng.integers(0, 10, 20)

    def fresh() -> MLP:
        return MLP(seed=5, learning_rate=0.1, momentum=0.9, dtype=dtype)

    straight, first = fresh(), fresh()
    for _ in range(10):
        straight.step(x, y)
    for _ in range(4):
        first.step(x, y)
    second = MLP(seed=6, learning_rate=0.1, momentum=0.9, dtype=dtype)
    assert second.digest() != first.digest()
    second.load_state_dict(first.state_dict())
    for _ in range(6):
        second.step(x, y)
    assert second.digest() == straight.digest()
    np.testing.assert_array_equal(second.loss(x, y), straight.loss(x, y))


def test_state_is_a_copy() -> None:
    model, x, y, _ = problem("regression")
    state = model.state_dict()
    digest = model.digest()
    model.step(x, y)
    model.load_state_dict(state)
    assert model.digest() == digest


def test_a_state_that_does_not_fit_changes_nothing() -> None:
    model, x, y, _ = problem("regression")
    model.step(x, y)
    digest, losses = model.digest(), model.loss(x, y)
    broken: dict[str, Any] = model.state_dict()
    broken["parameters"]["w0"] = broken["parameters"]["w0"] + 1
    broken["velocity"]["w2"] = broken["velocity"]["w2"][:, :1]
    for state in (
        {},
        broken,
        MLP((5, 4)).state_dict(),
        MLP((5, 7, 6, 4), head="classification").state_dict(),
    ):
        with pytest.raises(InvalidValue):
            model.load_state_dict(state)
    assert model.digest() == digest
    np.testing.assert_array_equal(model.loss(x, y), losses)


def test_38_a_length_mismatch_is_refused_never_truncated() -> None:
    model, x, y, weight = problem("regression")
    classes = np.zeros(6, np.int64)
    classifier = MLP((5, 4))
    refused: list[tuple[MLP, Any, Any]] = [
        (model, x[:, :4], y),
        (model, x, y[:, :3]),
        (model, x, y[:5]),
        (model, x[0], y[0]),
        (classifier, x, classes[:5]),
        (classifier, x, classes.astype(float)),
        (classifier, x, classes + 4),
        (classifier, x, classes - 1),
    ]
    for who, inputs, targets in refused:
        digest = who.digest()
        with pytest.raises(InvalidValue):
            who.step(inputs, targets)
        with pytest.raises(InvalidValue):
            who.loss(inputs, targets)
        assert who.digest() == digest
    for bad in (weight[:5], weight * np.nan, -weight):
        with pytest.raises(InvalidValue, match="weight"):
            model.step(x, y, bad)


def test_extreme_outputs_give_finite_losses_and_none_below_zero() -> None:
    model = MLP((2, 3), seed=0)
    x = np.array([[1e5, -1e5], [0.0, 0.0], [-1e5, 1e5]])
    for label in range(3):
        losses, gradients = model.gradients(x, np.full(3, label))
        assert np.all(np.isfinite(losses))
        assert np.all(losses >= 0)
        assert all(np.all(np.isfinite(g)) for g in gradients.values())


@pytest.mark.parametrize(
    "settings",
    [
        {"layers": (4,)},
        {"layers": (4, 0)},
        {"head": "both"},
        {"learning_rate": 0.0},
        {"learning_rate": float("nan")},
        {"momentum": 1.0},
        {"dtype": "int32"},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        MLP(**settings)


def test_it_is_a_model() -> None:
    assert isinstance(MLP(), Model)
