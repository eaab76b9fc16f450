"""Steps against the papers' formulas, written out in plain Python; the penalty against its closed form."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from memstore.errors import ConfigError, InvalidValue
from memstore.learner import MLP, Optimizer, Penalty


def adam_by_hand(gradients: list[float], rate: float) -> float:
    """Kingma & Ba 2015, algorithm 1, line by line, from 0."""
    parameter = first = second = 0.0
    for t, gradient in enumerate(gradients, start=1):
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        parameter -= rate * (first / (1 - 0.9**t)) / (math.sqrt(second / (1 - 0.999**t)) + 1e-8)
    return parameter


def test_adam_follows_the_paper() -> None:
    gradients = np.random.default_rng(0).standard_normal(50) * 3
    parameters = {"p": np.zeros(1)}
    optimizer = Optimizer("adam", parameters, learning_rate=0.01)
    for gradient in gradients:
        optimizer.apply({"p": np.array([gradient])})
    # 50 steps of about 10 roundings each, of numbers below 1.
    assert parameters["p"][0] == pytest.approx(adam_by_hand(gradients.tolist(), 0.01), abs=500 * 2**-52)
    assert optimizer.steps == 50


def test_adam_equals_torch() -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(1)
    start, gradients = rng.standard_normal(7), rng.standard_normal((30, 7))
    mine = {"p": start.copy()}
    optimizer = Optimizer("adam", mine, learning_rate=0.05)
    theirs = torch.nn.Parameter(torch.tensor(start))
    other = torch.optim.Adam([theirs], lr=0.05)
    for gradient in gradients:
        optimizer.apply({"p": gradient})
        theirs.grad = torch.tensor(gradient)
        other.step()
    np.testing.assert_allclose(mine["p"], theirs.detach().numpy(), rtol=0, atol=1e-13)


def test_momentum_by_hand() -> None:
    parameters = {"p": np.zeros(1)}
    optimizer = Optimizer("sgd", parameters, learning_rate=0.5, momentum=0.5)
    for gradient in (1.0, 2.0, -4.0):
        optimizer.apply({"p": np.array([gradient])})
    # Velocities 1, 2.5, -2.75.
    assert parameters["p"][0] == -0.5 * (1 + 2.5 - 2.75)


def test_adam_learns() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((200, 5))
    y = (x @ rng.standard_normal((5, 3))).argmax(axis=1)
    model = MLP((5, 16, 3), optimizer="adam", learning_rate=0.01)
    before = model.loss(x, y).mean()
    for _ in range(100):
        model.step(x, y)
    assert model.loss(x, y).mean() < 0.2 * before


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "rmsprop"},
        {"optimizer": "adam", "momentum": 0.5},
        {"learning_rate": math.nan},
        {"learning_rate": 0.0},
        {"momentum": 1.0},
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        MLP((2, 2), **settings)


def test_state_of_another_optimizer_is_refused() -> None:
    adam, sgd = MLP((2, 3), optimizer="adam"), MLP((2, 3))
    before = sgd.digest()
    for state in (adam.state_dict(), sgd.state_dict() | {"steps": -1}, sgd.state_dict() | {"steps": None}):
        with pytest.raises(InvalidValue):
            sgd.load_state_dict(state)
    assert sgd.digest() == before


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_loaded_state_continues_bit_identically(optimizer: Any) -> None:
    rng = np.random.default_rng(3)
    x, y = rng.standard_normal((12, 4)), rng.integers(0, 3, 12)

    def fresh(seed: int) -> MLP:
        momentum = 0.7 if optimizer == "sgd" else 0.0
        return MLP((4, 6, 3), optimizer=optimizer, learning_rate=0.1, momentum=momentum, seed=seed)

    one, other = fresh(0), fresh(1)
    for _ in range(5):
        one.step(x, y)
    other.load_state_dict(one.state_dict())
    for _ in range(5):
        one.step(x, y)
        other.step(x, y)
    assert one.digest() == other.digest()


# the penalty


def anchored(stiffness: float, centre: float, model: MLP) -> Penalty:
    parameters = model.state_dict()["parameters"]
    return Penalty(
        {name: np.full_like(value, stiffness) for name, value in parameters.items()},
        {name: np.full_like(value, centre) for name, value in parameters.items()},
    )


def parameters_of(model: MLP) -> np.ndarray[Any, Any]:
    return np.concatenate([np.ravel(value) for value in model.state_dict()["parameters"].values()])


def test_a_penalised_step_is_one_of_implicit_euler() -> None:
    rng = np.random.default_rng(4)
    x, y = rng.standard_normal((6, 4)), rng.integers(0, 3, 6)
    model = MLP((4, 3), learning_rate=0.3)
    theta = parameters_of(model)
    gradient = np.concatenate([np.ravel(model.gradients(x, y)[1][name]) for name in ("w0", "b0")])
    plain = model.loss(x, y)
    losses = model.step(x, y, penalty=anchored(7.0, 0.5, model))
    np.testing.assert_array_equal(losses, plain)
    expected = theta - 0.3 * (gradient + 7.0 * (theta - 0.5)) / (1 + 0.3 * 7.0)
    np.testing.assert_allclose(parameters_of(model), expected, rtol=1e-13)


def test_its_fixed_point_is_that_of_the_objective() -> None:
    """Regression with one weight: loss (w x - t)^2, penalty s (w - c)^2 / 2; minimum in closed form."""
    x, target, stiffness, centre = np.array([[1.5]]), np.array([[3.0]]), 40.0, -1.0
    model = MLP((1, 1), head="regression", learning_rate=0.05)
    penalty = Penalty({"w0": np.array([[stiffness]])}, {"w0": np.array([[centre]])})
    for _ in range(4000):
        model.step(x, target, penalty=penalty)
    # The bias is free: it takes all of the error that the held weight leaves.
    state = model.state_dict()["parameters"]
    assert state["w0"].item() == pytest.approx(centre, abs=1e-9)
    assert state["w0"].item() * 1.5 + state["b0"].item() == pytest.approx(3.0, abs=1e-9)


@pytest.mark.parametrize("stiffness", [1e2, 1e6, 1e300])
def test_no_stiffness_diverges(stiffness: float) -> None:
    rng = np.random.default_rng(5)
    x, y = rng.standard_normal((6, 4)), rng.integers(0, 3, 6)
    model = MLP((4, 3), learning_rate=0.5, momentum=0.9)
    start = np.abs(parameters_of(model)).max()
    for _ in range(200):
        model.step(x, y, penalty=anchored(stiffness, 0.0, model))
    assert np.abs(parameters_of(model)).max() <= start
