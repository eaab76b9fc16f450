"""The torch adapter: right gradients, nothing changed by asking, exact state."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from memstore.errors import ConfigError, InvalidValue
from memstore.learner import MLP, Model
from memstore.learner.models.model import Penalty
from memstore.learner.models.torch_model import TorchModel
from tests.support.helpers import OpenMemory

if TYPE_CHECKING or os.environ.get("MEMSTORE_REQUIRE_TORCH"):
    import torch
else:
    torch = pytest.importorskip("torch")

from torch import nn

torch.set_num_threads(1)  # on matrices this small a second thread is only waited for
EPS = np.finfo(np.float64).eps

OPTIMIZERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
    # Keeps float32 numbers beside float64 parameters, which Optimizer.load_state_dict would widen.
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


class Restless(nn.Module):  # type: ignore[misc]
    """Draws numbers, counts its calls in a buffer and works in place on its inputs, in every mode."""

    calls: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls = self.calls + 1
        return x.mul_(1 + 0.01 * torch.rand_like(x))


def network(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 3)).to(dtype)


def made(optimizer: str = "adam", seed: int = 0, dtype: torch.dtype = torch.float32) -> TorchModel:
    module = network(seed, dtype)
    return TorchModel(module, OPTIMIZERS[optimizer](module.parameters()))


def linear(**settings: Any) -> tuple[TorchModel, nn.Linear]:
    torch.manual_seed(3)
    module = nn.Linear(4, 3, dtype=torch.float64)
    return TorchModel(module, torch.optim.SGD(module.parameters(), lr=0.1), **settings), module


def batch(seed: int = 0, n: int = 6) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 4)).astype(np.float32), rng.integers(0, 3, n), rng.random(n)


X, Y, W = batch()


def train(model: TorchModel, steps: range) -> list[bytes]:
    return [model.step(*batch(i)).tobytes() for i in steps]


def flat(value: Any) -> Any:
    """A state, comparable with ``==`` to the bit."""
    if isinstance(value, dict):
        return {key: flat(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value).__name__, *map(flat, value)]
    if isinstance(value, (np.ndarray, torch.Tensor)):
        array = np.asarray(value)
        return array.dtype.str, array.shape, array.tobytes()
    return value


def everything(model: TorchModel) -> Any:
    modes = [part.training for part in model.module.modules()]
    grads = [None if p.grad is None else p.grad.numpy().copy() for p in model.module.parameters()]
    return flat([model.state_dict(), modes, grads])


# gradients and steps


@pytest.mark.parametrize(("head", "loss"), [("classification", "cross_entropy"), ("regression", "mse")])
@pytest.mark.parametrize("weighted", [False, True])
def test_equals_the_numpy_model(head: Any, loss: Any, weighted: bool) -> None:
    numpy = MLP((4, 7, 3), head=head, learning_rate=0.1, momentum=0.5, seed=1)
    module = nn.Sequential(nn.Linear(4, 7), nn.ReLU(), nn.Linear(7, 3)).double()
    names = {"0.weight": "w0", "0.bias": "b0", "2.weight": "w1", "2.bias": "b1"}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(torch.tensor(numpy.state_dict()["parameters"][names[name]].T))
    model = TorchModel(module, torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.5), loss=loss)
    assert isinstance(model, Model)
    x, classes, weights = batch()
    y = classes if head == "classification" else np.random.default_rng(5).standard_normal((6, 3))
    weight = weights if weighted else None

    # Sums of at most 8 products in each of 4 matrix products of numbers of order 1: some 32 roundings, times 10.
    near: dict[str, Any] = {"rtol": 0, "atol": 320 * EPS}
    np.testing.assert_allclose(model.predict(x), numpy.predict(x), **near)
    np.testing.assert_allclose(model.loss(x, y), numpy.loss(x, y), **near)
    mine, theirs = model.gradients(x, y, weight), numpy.gradients(x, y, weight)
    np.testing.assert_allclose(mine[0], theirs[0], **near)
    assert mine[1].keys() == names.keys()
    for name, value in mine[1].items():
        np.testing.assert_allclose(value, theirs[1][names[name]].T, **near)
    for _ in range(3):
        np.testing.assert_allclose(model.step(x, y, weight), numpy.step(x, y, weight), **near)


def test_gradients_of_a_loss_function_match_finite_differences() -> None:
    def absolute(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (outputs.tanh() - targets).abs().sum(1)

    model, module = linear(loss=absolute)
    x, _, weight = batch()
    y = np.random.default_rng(5).uniform(2, 3, (6, 3))  # out of tanh's reach: no kink near
    losses, gradients = model.gradients(x, y, weight)
    assert losses.dtype == np.float64
    h = 1e-6
    for name, parameter in module.named_parameters():
        values = parameter.detach().numpy()
        for index in np.ndindex(values.shape):
            kept = values[index]
            values[index] = kept + h
            above = np.sum(model.loss(x, y) * weight) / 6
            values[index] = kept - h
            below = np.sum(model.loss(x, y) * weight) / 6
            values[index] = kept
            # Truncation is of order h**2, rounding of order EPS * loss / h, about 2e-9.
            assert gradients[name][index] == pytest.approx((above - below) / (2 * h), abs=1e-7)


def test_a_penalty_pulls_by_its_formula_and_a_new_one_takes_its_place() -> None:
    model, _ = linear()
    x, y, weight = batch()
    rng = np.random.default_rng(2)
    for _ in range(2):
        before = model.state_dict()["parameters"]
        stiffness = {name: rng.random(value.shape) for name, value in before.items()}
        centre = {name: rng.standard_normal(value.shape) for name, value in before.items()}
        penalty = Penalty({"weight": stiffness["weight"]}, centre)
        _, gradients = model.gradients(x, y, weight)
        losses = model.loss(x, y)
        np.testing.assert_array_equal(model.step(x, y, weight, penalty=penalty), losses)
        gradients["weight"] = penalty.pull("weight", gradients["weight"], before["weight"], 0.1)
        for name, after in model.state_dict()["parameters"].items():
            np.testing.assert_allclose(after, before[name] - 0.1 * gradients[name], rtol=0, atol=8 * EPS)


def test_the_arrays_of_a_penalty_are_read_once() -> None:
    model, _ = linear()
    x, y, _ = batch()
    stiffness = np.ones((3, 4))
    penalty = Penalty({"weight": stiffness}, {"weight": np.zeros((3, 4))})
    model.step(x, y, penalty=penalty)
    state = model.state_dict()
    model.step(x, y, penalty=penalty)
    expected = model.digest()
    stiffness[...] = 50
    model.load_state_dict(state)
    model.step(x, y, penalty=penalty)
    assert model.digest() == expected


def test_frozen_parameters_stay_and_unused_ones_have_no_gradient() -> None:
    class Partly(nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.used = nn.Linear(4, 3)
            self.unused = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.used(x)

    module = Partly()
    module.used.weight.requires_grad_(False)
    model = TorchModel(module, torch.optim.SGD(module.parameters(), lr=0.1, weight_decay=0.1))
    x, y, _ = batch()
    _, gradients = model.gradients(x, y)
    assert list(gradients) == ["used.bias", "unused.weight", "unused.bias"]
    assert not gradients["unused.weight"].any()
    before = model.state_dict()["parameters"]
    pull = {"used.weight": np.ones((3, 4)), "unused.bias": np.ones(3)}
    model.step(x, y, penalty=Penalty(pull, {name: np.zeros_like(value) for name, value in pull.items()}))
    after = model.state_dict()["parameters"]
    changed = {name for name in before if flat(before[name]) != flat(after[name])}
    assert changed == {"used.bias", "unused.bias"}


# what changes, and what does not


@pytest.mark.parametrize("ask", ["loss", "gradients", "predict"])
def test_asking_changes_nothing(ask: str) -> None:
    module = nn.Sequential(Restless(), network())
    module[1][1].eval()
    model = TorchModel(module, torch.optim.Adam(module.parameters()))
    x, y, _ = batch()
    model.step(x, y)
    for parameter in module.parameters():
        parameter.grad = torch.rand_like(parameter)
    before, given = everything(model), x.copy()
    with torch.no_grad():  # the caller's own mode is no hindrance
        arguments = (x,) if ask == "predict" else (x, y)
        first = flat(getattr(model, ask)(*arguments))
    assert everything(model) == before
    assert flat(getattr(model, ask)(*arguments)) == first
    np.testing.assert_array_equal(x, given)


def test_losses_are_those_of_evaluation_mode() -> None:
    model = made()
    train(model, range(2))
    twin = copy.deepcopy(model.module).eval()
    with torch.no_grad():
        outputs = twin(torch.tensor(X))
        expected = nn.functional.cross_entropy(outputs, torch.tensor(Y), reduction="none")
    assert flat(model.loss(X, Y)) == flat(expected.double())
    assert flat(model.gradients(X, Y)[0]) == flat(expected.double())
    assert flat(model.predict(X)) == flat(outputs)


def test_a_step_runs_in_training_mode_and_gives_the_modes_back() -> None:
    model = made()
    model.module.eval()
    mean = model.state_dict()["buffers"]["1.running_mean"]
    model.step(X, Y)
    assert flat(model.state_dict()["buffers"]["1.running_mean"]) != flat(mean)
    assert not any(part.training for part in model.module.modules())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((X, Y[:5]), "one entry for each"),
        ((X, Y.astype(float)), "class numbers"),
        ((X, Y + 1), "classes 0 .. 2"),
        ((X, Y - 1), "class numbers -1"),
        ((X[:, :3], Y), "refused inputs"),
        ((X.astype(str), Y), "dtype"),
        ((X[:0], Y[:0]), "no example|refused"),
        ((X * np.nan, Y), "NaN"),
        ((X, Y, W[:5]), "weight"),
        ((X, Y, -W), "weight"),
        ((X, Y, W * np.nan), "weight"),
    ],
)
def test_a_refused_step_changes_nothing(arguments: Any, words: str) -> None:
    model = made()
    train(model, range(2))
    before = everything(model)
    with pytest.raises(InvalidValue, match=words):
        model.step(*arguments)
    assert everything(model) == before


@pytest.mark.parametrize(
    "penalty",
    [
        Penalty({"nobody": np.ones(3)}, {"nobody": np.ones(3)}),
        Penalty({"4.bias": np.ones(3)}, {}),
        Penalty({"4.bias": np.ones(4)}, {"4.bias": np.ones(3)}),
        Penalty({"4.bias": np.ones(3)}, {"4.bias": np.full(3, np.inf)}),
    ],
)
def test_a_penalty_of_another_model_is_refused(penalty: Penalty) -> None:
    model = made()
    before = everything(model)
    with pytest.raises(InvalidValue, match="penalty"):
        model.step(*batch(), penalty=penalty)
    assert everything(model) == before


def test_mse_refuses_what_it_would_broadcast() -> None:
    model, _ = linear(loss="mse")
    with pytest.raises(InvalidValue, match="outputs have"):
        model.step(X, np.ones((6, 1)))


@pytest.mark.parametrize("loss", [nn.CrossEntropyLoss(), lambda outputs, targets: outputs, lambda *_: 1.0])
def test_a_loss_that_is_not_one_number_for_each_example_is_refused(loss: Any) -> None:
    model, _ = linear(loss=loss)
    before = everything(model)
    with pytest.raises(ConfigError, match='reduction="none"'):
        model.step(X, Y)
    assert everything(model) == before


def test_a_negative_loss_is_refused() -> None:
    model, _ = linear(loss=lambda outputs, targets: outputs.sum(1) - 100)
    with pytest.raises(InvalidValue, match="negative"):
        model.step(X, Y)


def test_arrays_of_every_layout_and_byte_order_are_equal() -> None:
    model, _ = linear()
    expected = model.loss(X, Y)
    locked = X.copy()
    locked.flags.writeable = False
    for x in (locked, X.astype(">f4"), X.astype(np.float64), np.asfortranarray(X), X[::-1].copy()[::-1], X.tolist()):
        np.testing.assert_array_equal(model.loss(x, Y), expected)
    for y in (Y.astype(np.uint8), Y.astype(">i8"), Y.tolist()):
        np.testing.assert_array_equal(model.loss(X, y), expected)
    frozen = Penalty({"weight": np.broadcast_to(1.0, (3, 4))}, {"weight": np.broadcast_to(0.0, (3, 4))})
    model.step(locked, Y, np.broadcast_to(1.0, 6), penalty=frozen)


def test_integers_stay_integers() -> None:
    module = nn.Sequential(nn.Embedding(10, 4), nn.Flatten(), nn.Linear(8, 3)).double()
    model = TorchModel(module, torch.optim.SGD(module.parameters(), lr=0.1))
    assert model.step(np.arange(6).reshape(3, 2), np.arange(3)).shape == (3,)
    with pytest.raises(InvalidValue, match="refused inputs"):
        model.step(np.array([[0, 10]]), np.arange(1))


# state


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_continues_bit_identically_from_a_checkpoint(open_memory: OpenMemory, optimizer: str) -> None:
    """Saved before the first step, when the optimizer holds nothing yet, and after three; loaded over other steps."""
    kind = torch.float64 if optimizer == "nadam" else torch.float32
    model = made(optimizer, dtype=kind)
    memory = open_memory()
    memory.save_checkpoint("0", model.state_dict())
    train(model, range(3))
    memory.save_checkpoint("3", model.state_dict())
    expected = train(model, range(3, 6))
    final = everything(model), model.digest()
    for start in (0, 3):
        other = made(optimizer, seed=9, dtype=kind)
        train(other, range(2))
        other.load_state_dict(memory.load_checkpoint(str(start)))
        assert flat(other.state_dict()) == flat(memory.load_checkpoint(str(start)))
        assert train(other, range(start, 6))[-3:] == expected
        assert (everything(other), other.digest()) == final


def test_loading_keeps_the_callers_objects() -> None:
    model = made("sgd")
    group = model.optimizer.param_groups[0]
    parameters = list(model.module.parameters())
    train(model, range(2))
    state, digest = model.state_dict(), model.digest()
    group["lr"] = 0.5
    train(model, range(2))
    assert model.digest() != digest
    model.load_state_dict(state)
    assert model.digest() == digest
    assert model.optimizer.param_groups[0] is group
    assert group["lr"] == 0.05
    assert all(a is b for a, b in zip(parameters, model.module.parameters(), strict=True))
    assert all(a is b for a, b in zip(parameters, group["params"], strict=True))


def test_loading_keeps_memory_layouts() -> None:
    """On which the last bit of a sum may depend."""
    module = nn.Sequential(nn.Conv2d(2, 3, 2), nn.Flatten()).to(memory_format=torch.channels_last)
    model = TorchModel(module, torch.optim.Adam(module.parameters()))
    model.step(np.ones((2, 2, 2, 2)), np.arange(2))
    model.load_state_dict(model.state_dict())
    kept = model.optimizer.state[module[0].weight]
    assert not module[0].weight.is_contiguous()
    assert kept["exp_avg"].stride() == kept["exp_avg_sq"].stride() == module[0].weight.stride()


def test_a_state_is_a_copy() -> None:
    model = made("sgd")
    train(model, range(2))
    state = model.state_dict()
    before = flat(state)
    train(model, range(2))
    assert flat(state) == before
    model.load_state_dict(state)
    train(model, range(2))
    assert flat(state) == before


@pytest.mark.parametrize("optimizer", ["adam", "nadam"])
def test_bfloat16_is_kept_without_loss(open_memory: OpenMemory, optimizer: str) -> None:
    model = made(optimizer, dtype=torch.bfloat16)
    train(model, range(3))
    weight = model.state_dict()["parameters"]["0.weight"]
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight, model.module.get_parameter("0.weight").detach().float().numpy())
    assert model.gradients(X, Y)[1]["0.weight"].dtype == np.float32
    memory = open_memory()
    memory.save_checkpoint("c", model.state_dict())
    expected = train(model, range(3, 6))
    other = made(optimizer, seed=9, dtype=torch.bfloat16)
    other.load_state_dict(memory.load_checkpoint("c"))
    assert train(other, range(3, 6)) == expected
    assert other.digest() == model.digest()
    with pytest.raises(InvalidValue, match="dtypes"):
        made(optimizer).load_state_dict(model.state_dict())


def test_tied_parameters_are_stored_once_and_stay_tied() -> None:
    def tied(seed: int) -> TorchModel:
        torch.manual_seed(seed)
        module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        module[1].weight = module[0].weight
        return TorchModel(module, torch.optim.Adam(module.parameters()))

    model, other = tied(0), tied(1)
    train(model, range(2))
    state = model.state_dict()
    assert list(state["parameters"]) == ["0.weight", "0.bias", "1.bias"]
    other.load_state_dict(state)
    assert train(other, range(2, 4)) == train(model, range(2, 4))
    assert other.digest() == model.digest()


def edited(*path: Any, value: Any = None, remove: bool = False) -> Callable[[dict[str, Any]], None]:
    def edit(state: dict[str, Any]) -> None:
        node: Any = state
        for key in path[:-1]:
            node = node[key]
        if remove:
            del node[path[-1]]
        else:
            node[path[-1]] = value

    return edit


SLOT = ("optimizer", "slots", 0, 1, "items")
DAMAGES: dict[str, Callable[[dict[str, Any]], None]] = {
    "class of module": edited("module_class", value="Linear"),
    "class of optimizer": edited("optimizer_class", value="SGD"),
    "loss": edited("loss", value="mse"),
    "frozen": edited("frozen", value=["0.weight"]),
    "no parameters": edited("parameters", remove=True),
    "missing parameter": edited("parameters", "4.bias", remove=True),
    "foreign parameter": edited("parameters", "5.bias", value=np.zeros(3, np.float32)),
    "shape of parameter": edited("parameters", "4.bias", value=np.zeros(4, np.float32)),
    "dtype of parameter": edited("parameters", "4.bias", value=np.zeros(3)),
    "list for parameter": edited("parameters", "4.bias", value=[0.0, 0.0, 0.0]),
    "shape of buffer": edited("buffers", "1.running_mean", value=np.zeros(9, np.float32)),
    "missing buffer": edited("buffers", "1.running_mean", remove=True),
    "no optimizer": edited("optimizer", remove=True),
    "no groups": edited("optimizer", "groups", value=[]),
    "parameters of group": edited("optimizer", "groups", 0, "params", value=[0, 1]),
    "missing setting": edited("optimizer", "groups", 0, "lr", remove=True),
    "type of setting": edited("optimizer", "groups", 0, "lr", value="high"),
    "type of flag": edited("optimizer", "groups", 0, "amsgrad", value=0.5),
    "short betas": edited("optimizer", "groups", 0, "betas", value=(0.9,)),
    "slots no list": edited("optimizer", "slots", value={}),
    "slot no pair": edited("optimizer", "slots", 0, value=[0]),
    "slot of no parameter": edited("optimizer", "slots", 0, 0, value=99),
    "slot no dict": edited("optimizer", "slots", 0, 1, value=None),
    "entries no pairs": edited(*SLOT, 1, value=1),
    "unhashable name": edited(*SLOT, 1, value=[[], 1]),
    "shape of slot": edited(*SLOT, 1, 1, "data", value=np.zeros((3, 3), np.float32)),
    "dtype of slot": edited(*SLOT, 1, 1, "data", value=np.zeros((8, 4))),
    "unknown dtype": edited(*SLOT, 1, 1, "dtype", value="nn"),
    "object in slot": edited(*SLOT, 1, 1, value=object()),
    "no generators": edited("generators", remove=True),
    "short generator": edited("generators", "cpu", value=np.zeros(7, np.uint8)),
    "damaged generator": edited("generators", "cpu", value=np.full(5056, 255, np.uint8)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_state_is_refused_and_changes_nothing(damage: str) -> None:
    source, model = made(), made(seed=9)
    train(source, range(2))
    train(model, range(3))
    state = copy.deepcopy(source.state_dict())
    DAMAGES[damage](state)
    before = everything(model)
    with pytest.raises(InvalidValue):
        model.load_state_dict(state)
    assert everything(model) == before


def test_a_foreign_state_is_refused() -> None:
    model = made()
    before = everything(model)
    foreign: list[Any] = [{}, {"w": np.zeros(3)}, MLP((4, 3)).state_dict(), made("sgd").state_dict(), []]
    for state in foreign:
        with pytest.raises(InvalidValue, match="state"):
            model.load_state_dict(state)
    assert everything(model) == before


class Noting(torch.optim.SGD):  # type: ignore[misc]
    """Keeps what PyTorch's own optimizers do not: a note for all, and nested values of other shapes."""

    def step(self, closure: Any = None) -> None:
        super().step(closure)
        note = self.state.setdefault("note", {"steps": 0})
        note["steps"] += 1
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["seen"] = [
                note["steps"],
                (torch.arange(5), {1: None, "norm": parameter.detach().norm()}),
            ]


def test_an_optimizer_of_the_callers_own_is_kept_whole(open_memory: OpenMemory) -> None:
    def noting(seed: int) -> TorchModel:
        module = network(seed)
        return TorchModel(module, Noting(module.parameters(), lr=0.1, momentum=0.5))

    model, other = noting(0), noting(1)
    train(model, range(2))
    open_memory().save_checkpoint("c", model.state_dict())
    other.load_state_dict(open_memory().load_checkpoint("c"))
    assert flat(other.optimizer.state_dict()) == flat(model.optimizer.state_dict())
    assert flat(other.state_dict()) == flat(model.state_dict())
    next(iter(model.optimizer.state.values()))["seen"] = object()
    with pytest.raises(InvalidValue, match="cannot be stored"):
        model.state_dict()


def test_a_scheduler_is_to_be_built_again_and_its_rate_comes_back() -> None:
    model = made("sgd")
    scheduler = torch.optim.lr_scheduler.ExponentialLR(model.optimizer, 0.5)
    train(model, range(1))
    scheduler.step()
    other = made("sgd")
    with pytest.raises(InvalidValue, match="scheduler"):
        other.load_state_dict(model.state_dict())
    torch.optim.lr_scheduler.ExponentialLR(other.optimizer, 0.5)
    other.load_state_dict(model.state_dict())
    assert other.optimizer.param_groups[0]["lr"] == 0.025


# settings


def test_settings_that_do_not_fit_are_refused() -> None:
    module = nn.Linear(4, 3)
    optimizer = torch.optim.SGD(module.parameters())
    lazy = nn.Sequential(nn.Linear(4, 3), nn.LazyLinear(3))
    refused: list[tuple[Any, Any, Any]] = [
        ("module", optimizer, "mse"),
        (module, "sgd", "mse"),
        (module, torch.optim.LBFGS(module.parameters()), "mse"),
        (module, optimizer, "hinge"),
        (nn.Linear(4, 3), optimizer, "mse"),
        (lazy, torch.optim.SGD(lazy[0].parameters()), "mse"),
    ]
    for given, by, loss in refused:
        with pytest.raises(ConfigError):
            TorchModel(given, by, loss=loss)


def test_without_torch_the_class_is_there_and_says_what_is_missing() -> None:
    program = (
        "import sys; from memstore.learner.models.torch_model import TorchModel; assert 'torch' not in sys.modules\n"
        "sys.modules['torch'] = None\n"
        "try: TorchModel(None, None)\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "ConfigError TorchModel needs PyTorch: pip install memstore[torch]\n"
