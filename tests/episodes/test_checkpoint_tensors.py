"""What PyTorch calls a state goes into a checkpoint as it is, and comes back as tensors."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memstore import PayloadError
from memstore.errors import StoreCorrupt
from memstore.payload.document import pack, unpack
from tests.support.helpers import OpenMemory

DTYPES = [
    torch.bool,
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
]


def bits(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor."""
    return bytes(tensor.detach().contiguous().view(-1).view(torch.uint8).numpy())


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal in value, type and order, tensors and arrays bit by bit."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        alike = one.dtype == other.dtype and one.shape == other.shape and other.device.type == "cpu"
        return bool(alike and not other.requires_grad and bits(one) == bits(other))
    if isinstance(one, dict):
        return (
            list(one) == list(other)
            and all(type(a) is type(b) for a, b in zip(one, other, strict=True))
            and all(same(one[key], other[key]) for key in one)
        )
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, (np.ndarray, np.generic)):
        return bool(one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes())
    return repr(one) == repr(other)


def network() -> torch.nn.Module:
    """Linear layers, a batch norm, an embedding tied to the last layer."""
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.BatchNorm1d(5), torch.nn.Linear(5, 3, bias=False))
    net.register_parameter("tied", net[2].weight)
    return net


def trained(net: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, steps: int = 3) -> None:
    """A few steps on fixed data."""
    for step in range(steps):
        generator = torch.Generator().manual_seed(step)
        loss = (net(torch.randn(8, 4, generator=generator)) ** 2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()


MAKERS: list[Callable[[Any], tuple[torch.optim.Optimizer, Any]]] = [
    lambda p: (o := torch.optim.Adam(p, lr=0.01), torch.optim.lr_scheduler.StepLR(o, 2)),
    lambda p: (o := torch.optim.AdamW(p, amsgrad=True), torch.optim.lr_scheduler.MultiStepLR(o, [2, 2, 5])),
    lambda p: (o := torch.optim.SGD(p, lr=0.1, momentum=0.9), torch.optim.lr_scheduler.CosineAnnealingLR(o, 9)),
    lambda p: (o := torch.optim.RMSprop(p), torch.optim.lr_scheduler.OneCycleLR(o, 0.1, total_steps=20)),
]


@pytest.mark.parametrize("number", range(len(MAKERS)))
def test_a_run_goes_on_from_a_checkpoint(open_memory: OpenMemory, number: int) -> None:
    """Model, optimizer, scheduler and generators, loaded into fresh ones, train on bit by bit."""
    memory = open_memory()
    net = network()
    optimizer, scheduler = MAKERS[number](net.parameters())
    trained(net, optimizer, scheduler)
    state = {
        "net": net.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "rng": torch.get_rng_state(),
        "numpy": np.random.default_rng(3).bit_generator.state,
        "old": np.random.RandomState(3).get_state(),
        "step": 3,
    }
    memory.save_checkpoint("run", state)
    loaded = memory.load_checkpoint("run")
    assert same({**state, "net": OrderedDict(state["net"])}, loaded)
    other = network()
    optimizer_2, scheduler_2 = MAKERS[number](other.parameters())
    other.load_state_dict(loaded["net"])
    optimizer_2.load_state_dict(loaded["optimizer"])
    scheduler_2.load_state_dict(loaded["scheduler"])
    torch.set_rng_state(loaded["rng"])
    trained(net, optimizer, scheduler)
    trained(other, optimizer_2, scheduler_2)
    assert same(net.state_dict(), other.state_dict()) and same(optimizer.state_dict(), optimizer_2.state_dict())
    assert scheduler.get_last_lr() == scheduler_2.get_last_lr()


STATES: dict[str, Any] = {
    "keys": {0: 1, -1: 2, None: 3, True: 4, 2.5: 5, "a": 6, (0, "x", None): 7, 2**70: 8, "": 9},
    "empty": [{}, OrderedDict(), Counter(), [], (), "", b""],
    "ordered": OrderedDict([("b", 1), ("a", OrderedDict([(1, 2)]))]),
    "counter": Counter({2: 3, "x": 1}),
    "betas": (0.9, 0.999),
    "floats": [float("inf"), -float("inf"), float("nan"), -0.0, 5e-324],
    "scalars": [np.float32(1.5), np.bool_(True), np.int8(-3), np.array(2.5), np.array([], np.int16).reshape(0, 3)],
    "tags": {"dict": {"tensor": 1}, "items": [["a", 1]], "ordered": {"ordered": 1}},
    "tensors": [torch.arange(6).reshape(2, 3).T, torch.tensor(1.5), torch.empty(0, 3), torch.ones(2).requires_grad_()],
}


@pytest.mark.parametrize("name", STATES)
def test_every_type_comes_back(name: str) -> None:
    assert same({"s": STATES[name]}, unpack(*pack({"s": STATES[name]})))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_comes_back_bit_by_bit(dtype: torch.dtype) -> None:
    size = torch.empty(0, dtype=dtype).element_size()
    raw = torch.arange(24 * size, dtype=torch.int64).remainder(2 if dtype is torch.bool else 251).to(torch.uint8)
    tensor = raw.view(dtype).reshape(2, 3, 4)
    state = {"a": tensor, "b": tensor.transpose(0, 2), "c": tensor[0, 0, 0], "d": tensor[:, ::2]}
    loaded = unpack(*pack(state))
    assert same(state, loaded)
    loaded["a"].zero_()  # its own, and writable


def test_what_cannot_be_stored_is_refused_by_its_path(open_memory: OpenMemory) -> None:
    memory = open_memory()
    memory.save_checkpoint("a", {"n": 1})
    cases: list[tuple[Any, str]] = [
        ({"net": {"w": torch.ones(2).to_sparse()}}, r"net\.w: a sparse tensor"),
        ({"net": [torch.ones(2, device="meta")]}, r"net\[0\]: a meta tensor"),
        ({"opt": {0: {"x": object()}}}, r"opt\.0\.x: cannot store a value of type object"),
        ({"opt": {torch.ones(1): 1}}, r"opt has the key .*; keys of a state are"),
        ({"f": lambda: 1}, "f: cannot store a value of type function"),
        ({"s": {1}}, r"s: cannot store a value of type set; write sorted"),
        ({"d": torch.float32}, "d: cannot store a value of type dtype"),
        ({"x" * 5000: {"y": object()}}, "cannot store"),
    ]
    for state, match in cases:
        with pytest.raises(PayloadError, match=match) as caught:
            memory.save_checkpoint("a", state)
        assert len(str(caught.value)) <= 500
    assert memory.load_checkpoint("a") == {"n": 1}


def test_documents_say_which_version_reads_them() -> None:
    """One without tensors and odd keys is as before; one with them is refused by an older memstore, not misread."""
    assert pack({"a": {"b": (1, np.zeros(2))}})[0].startswith('{"document":1,')
    values: list[Any] = [torch.ones(1), {0: 1}, OrderedDict(b=1), Counter()]
    for value in values:
        document, data = pack({"a": value})
        assert document.startswith('{"document":2,')
        with pytest.raises(StoreCorrupt):
            unpack(document.replace('"document":2', '"document":1'), data)


@pytest.mark.parametrize(
    "node",
    [
        '{"items":[[1,1],[1,2]]}',
        '{"items":[[[1],1]]}',
        '{"items":[[1]]}',
        '{"items":3}',
        '{"ordered":[1]}',
        '{"ordered":{"tuple":[]}}',
        '{"counter":1}',
        '{"tensor":["float32",[1]]}',
        '{"tensor":["float32",[0,-1]]}',
        '{"tensor":["float32",[9223372036854775807,9223372036854775807]]}',
        '{"tensor":["float32",[0,9223372036854775807,9223372036854775807]]}',
        '{"tensor":["load",[0]]}',
        '{"tensor":["__class__",[0]]}',
        '{"tensor":[["float32"],[0]]}',
        '{"tensor":["float32"]}',
        '{"ordered":' * 300 + '{"dict":{}}' + "}" * 300,
        "[" * 900 + "]" * 900,
    ],
)
def test_hostile_documents(node: str) -> None:
    with pytest.raises(StoreCorrupt):
        unpack('{"document":2,"state":{"dict":{"a":' + node + "}}}", b"")


def test_tensors_where_there_is_no_torch(path: str, tmp_path: Path) -> None:
    """Arrays take their place; a bfloat16 is the float32 of the same value."""
    import memstore

    values = torch.tensor([1.0, -2.5, 3e38, float("inf")])
    with memstore.open(path) as memory:
        memory.save_checkpoint("c", {"w": values.bfloat16(), "v": values, "i": torch.tensor(3)})
    (tmp_path / "expected.npy").write_bytes(values.bfloat16().float().numpy().tobytes())
    program = (
        "import sys, importlib.abc, numpy as np\n"
        "class Absent(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'torch': raise ModuleNotFoundError(name)\n"
        "import importlib.util\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *more: None if name == 'torch' else found(name, *more)\n"
        "import memstore\n"
        "state = memstore.open(sys.argv[1]).load_checkpoint('c')\n"
        "assert state['w'].dtype == np.float32 and state['w'].tobytes() == open(sys.argv[2], 'rb').read()\n"
        "assert type(state['v']) is np.ndarray and state['i'].shape == () and state['i'] == 3\n"
        "assert 'torch' not in sys.modules\n"
    )
    arguments = [sys.executable, "-c", program, path, str(tmp_path / "expected.npy")]
    subprocess.run(arguments, check=True, cwd=Path(__file__).parents[2], timeout=60)
