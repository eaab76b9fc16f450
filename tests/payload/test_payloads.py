"""Whatever goes in comes out: through the database, with and without the cache, and never as something else."""

from __future__ import annotations

import pickle
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memstore
from memstore import EpisodeNotFound, InvalidValue, PayloadError, StoreCorrupt
from tests.support.helpers import Damage, OpenMemory, Sql, live_ids, postgres_only, row, rows, same

DTYPES = ["?", "b", "B", "h", "H", "i", "I", "l", "L", "q", "Q", "e", "f", "d", "g", "F", "D", "G"]
ORDERS = ["<", ">"]
SHAPES: list[tuple[int, ...]] = [(), (1,), (3,), (2, 3), (0,), (2, 0, 3), (1, 1, 1, 2)]


def noise(dtype: Any, shape: tuple[int, ...]) -> Any:
    """Random values of a dtype, the extremes among them."""
    dtype = np.dtype(dtype)
    rng = np.random.default_rng(5)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(dtype)
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        values = rng.integers(limits.min, limits.max, shape, dtype=dtype.newbyteorder("="), endpoint=True)
        array = np.asarray(values).astype(dtype)
        if array.size > 1:
            array.flat[0], array.flat[-1] = limits.min, limits.max
        return array
    array = np.asarray(rng.normal(size=shape)).astype(dtype)
    for place, value in enumerate((np.nan, np.inf, -0.0)):
        if array.size > place + 1:
            array.flat[place] = value
    return array


@pytest.fixture(params=["cached", "uncached"])
def reading(request: pytest.FixtureRequest, open_memory: OpenMemory) -> Any:
    """``reading(memory)`` is the memory to read from: itself, or another handle that has nothing in its cache."""
    if request.param == "cached":
        return lambda memory: memory
    return lambda memory: open_memory(buffer=memory.name, cache_bytes=0)


@pytest.mark.parametrize("order", ORDERS)
def test_every_dtype_and_shape_comes_back_bit_for_bit(open_memory: OpenMemory, reading: Any, order: Any) -> None:
    """One by one and stacked."""
    for code in DTYPES:
        dtype = np.dtype(code).newbyteorder(order)
        payload = {f"s{i}": noise(dtype, shape) for i, shape in enumerate(SHAPES)}
        memory = open_memory(buffer=f"{code} {order}")
        one = memory.add(payload)
        found = reading(memory).get(one).payload
        assert same(found, payload), code
        stacked = {name: np.stack([value] * 3).astype(dtype) for name, value in payload.items()}
        memory.extend(stacked)
        batch = reading(memory).sample(4, strategy="uniform")
        assert same({k: v[1:] for k, v in batch.payload.items()}, stacked), code


@pytest.mark.parametrize("code", DTYPES)
def test_ragged_fields_of_every_dtype(open_memory: OpenMemory, reading: Any, code: str) -> None:
    """Any number of ragged dimensions, beside fixed ones."""
    spec = {"a": (code, (None,)), "b": (code, (None, 2, None)), "c": (code, (2,))}
    memory = open_memory(signature=spec)
    payloads = [
        {"a": noise(code, (n,)), "b": noise(code, (n, 2, m)), "c": noise(code, (2,))}
        for n, m in ((0, 0), (1, 5), (7, 1), (3, 0))
    ]
    ids = [memory.add(payload) for payload in payloads]
    assert all(same(e.payload, p) for e, p in zip(reading(memory).get_many(ids), payloads, strict=True))
    batch = reading(memory).sample(4)
    for i, one in enumerate(batch.ids.tolist()):
        payload = payloads[ids.index(one)]
        assert same({k: batch[k][i] for k in ("a", "b", "c")}, payload)
    assert isinstance(batch["a"], list) and isinstance(batch["c"], np.ndarray)


def test_python_scalars_text_and_bytes(open_memory: OpenMemory, reading: Any) -> None:
    """Types come back as given; NUL, astral and empty text too."""
    texts = ["", "a\0b", "\u00e9e\u0301", "\U0001f600" * 300, "\u202eabc", "'; DROP TABLE payload; --"]
    memory = open_memory()
    payloads = [
        {"t": text, "b": text.encode() + b"\xff\x00", "f": -0.0 if i else float("inf"), "i": -(2**63), "o": bool(i % 2)}
        for i, text in enumerate(texts)
    ]
    ids = [memory.add(payload) for payload in payloads]
    assert all(same(e.payload, p) for e, p in zip(reading(memory).get_many(ids), payloads, strict=True))
    batch = reading(memory).sample(len(texts))
    assert {type(t) for t in batch["t"]} == {str} and {type(b) for b in batch["b"]} == {bytes}
    assert sorted(batch["t"]) == sorted(texts)
    assert batch["i"].dtype == np.int64 and batch["o"].dtype == np.bool_ and batch["f"].dtype == np.float64


def test_nested_payloads(open_memory: OpenMemory, reading: Any) -> None:
    """Any depth; keys of any text; the key order of later payloads does not matter."""
    memory = open_memory()
    payload = {"a b": {"'; --": {"\u00e9": np.arange(3), "z": {"q": 1.5}}, "": "x"} | {"n": 1}, "t": "text"}
    with pytest.raises(PayloadError):
        memory.add(payload)  # an empty key names nothing
    payload = {"a b": {"'; --": {"\u00e9": np.arange(3), "z": {"q": 1.5}}, "n": 1}, "t": "text"}
    one = memory.add(payload)
    assert same(reading(memory).get(one).payload, payload)
    inner = payload["a b"]
    assert isinstance(inner, dict)
    other = memory.add({"t": "text", "a b": {"n": 1, "'; --": inner["'; --"]}})
    assert same(reading(memory).get(other).payload, payload)


def test_views_of_any_layout(open_memory: OpenMemory, reading: Any) -> None:
    """Strided, reversed, transposed, Fortran, broadcast and read-only arrays are stored as what they show."""
    base = np.arange(24, dtype=np.int16).reshape(4, 6)
    frozen = base.copy()
    frozen.flags.writeable = False
    views = [base[:, ::2][:, :3], base[::-1, :3], base.T[:4, :3], np.asfortranarray(base)[:, 3:], frozen[:, :3]]
    views.append(np.broadcast_to(np.int16(7), (4, 3)))
    memory = open_memory()
    ids = [memory.add({"v": view}) for view in views]
    for episode, view in zip(reading(memory).get_many(ids), views, strict=True):
        assert same(episode.payload["v"], np.ascontiguousarray(view))
    stacked = memory.extend({"v": np.stack(views).transpose(0, 1, 2)[::-1]})
    assert same(reading(memory).get(stacked[0]).payload["v"], np.ascontiguousarray(views[-1]))


def test_the_callers_arrays_are_neither_changed_nor_kept(open_memory: OpenMemory) -> None:
    """What the caller does with an array afterwards does not reach the memory, and the other way round."""
    memory = open_memory()
    given = rows(5)
    before = {name: value.copy() for name, value in given.items()}
    losses, stamps = np.arange(5.0), np.arange(5.0)
    ids = memory.extend(given, loss=losses, timestamp=stamps)
    assert same(given, before) and losses.tolist() == stamps.tolist() == [0, 1, 2, 3, 4]
    given["x"][:] = -1
    losses[:] = 77
    ids_given = ids.copy()
    memory.update(ids, loss=losses)
    losses[:] = 1
    assert (ids == ids_given).all()
    assert [e.loss for e in memory.get_many(ids)] == [77.0] * 5
    batch = memory.sample(5)
    assert (batch["x"][:, 0] == batch["number"]).all()


def test_returned_arrays_are_the_callers_own(open_memory: OpenMemory) -> None:
    """Writable, and writing to them changes nothing that is stored or cached."""
    memory = open_memory(signature={"x": ("f4", (4,)), "number": int, "r": ("i4", (None,))})
    for i in range(5):
        memory.add({**row(i), "r": np.arange(i, dtype=np.int32)}, loss=1.0)
    for _ in range(2):
        batch = memory.sample(5)
        for array in (batch["x"], batch["number"], *batch["r"], batch.ids, batch.loss, batch.age, batch.weight):
            array[...] = 99
        episode = memory.get(3)
        episode.payload["x"][:] = 99
        episode.payload["r"][:] = 99
        match = memory.recall(np.zeros(4), on="x", limit=1)[0]
        match.episode.payload["x"][:] = 99
    again = memory.sample(5)
    assert (again["x"][:, 0] == again["number"]).all() and (again["number"] == again.ids - 1).all()
    assert memory.get(3).payload["r"].tolist() == [0, 1]


def test_large_payloads(open_memory: OpenMemory, reading: Any) -> None:
    """Megabytes per episode, beyond SQLite's pages and the cache's budget."""
    memory = open_memory(cache_bytes=1_000_000)
    big = np.random.default_rng(1).random((3, 400_000))
    ids = memory.extend({"x": big})
    for i, episode in enumerate(reading(memory).get_many(ids)):
        assert same(episode.payload["x"], big[i])


@postgres_only
@pytest.mark.timeout(60)
def test_large_payloads_for_a_slow_server(open_memory: OpenMemory, damage: Damage) -> None:
    """More than the socket holds, sent while the server is still busy with the statement before."""
    memory = open_memory()
    memory.add({"x": np.zeros(1_000_000)})
    damage("CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(0.5); RETURN NULL; END'")
    damage("CREATE TRIGGER slow BEFORE INSERT ON episode FOR EACH STATEMENT EXECUTE FUNCTION slow()")
    with memory.transaction():
        one = memory.add({"x": np.ones(1_000_000)})
    two = memory.add({"x": np.full(1_000_000, 2.0)})
    assert [episode.payload["x"][-1] for episode in memory.get_many([one, two])] == [1.0, 2.0]
    damage("DROP TRIGGER slow ON episode")
    assert memory.check().ok


def test_a_batch_is_all_or_nothing(open_memory: OpenMemory) -> None:
    """One bad row in the middle, and none is stored."""
    memory = open_memory(signature={"x": ("f4", (None,)), "s": str})
    good = [np.zeros(3, np.float32)] * 3
    for bad in (
        {"x": [good[0], np.zeros((2, 2), np.float32), good[0]], "s": ["a", "b", "c"]},
        {"x": [good[0], np.zeros(3), good[0]], "s": ["a", "b", "c"]},
        {"x": good, "s": ["a", None, "c"]},
        {"x": good, "s": ["a", "\ud800", "c"]},
        {"x": good, "s": ["a", "b"]},
        {"x": good, "s": "abc"},
    ):
        with pytest.raises(PayloadError):
            memory.extend(bad)
    assert len(memory) == 0 and memory.stats().total_inserted == 0
    assert memory.extend({"x": good, "s": ["a", "b", "c"]}).tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    "value",
    [
        None,
        object(),
        [1, 2],
        {1: 2},
        {},
        {"": 1},
        2**64,
        -(2**63) - 1,
        np.array([None]),
        np.array([object()]),
        np.array(["text"]),
        np.array([b"raw"]),
        np.array(["2024-01-01"], "M8[D]"),
        np.array([1], "m8[s]"),
        np.zeros(2, [("a", "f4")]),
        np.ma.masked_array([1, 2], [True, False]),
        "\ud800",
        lambda: None,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_stored_is_refused(open_memory: OpenMemory, value: Any) -> None:
    """By name of the field, before anything is written; the signature is not fixed by it either."""
    memory = open_memory()
    with pytest.raises(PayloadError, match="field|key"):
        memory.add({"good": 1, "odd": value})
    assert len(memory) == 0 and memory.signature is None and memory.stats().total_inserted == 0
    with pytest.raises(PayloadError):
        memory.extend({"good": [1], "odd": [value]})
    wholes: list[Any] = [None, 3, [1, 2], {}, np.zeros(3)]
    for whole in wholes:
        with pytest.raises(PayloadError):
            memory.add(whole)
    assert memory.signature is None


def test_a_payload_that_contains_itself(open_memory: OpenMemory) -> None:
    """Is refused, not followed for ever."""
    loop: dict[str, Any] = {"x": 1}
    loop["loop"] = loop
    with pytest.raises(PayloadError, match="nested"):
        open_memory().add(loop)


# Damage


def spoil(damage: Damage, sql: Sql, one: int, how: str) -> None:
    """Change the stored payload of one episode."""
    data = bytes(sql("SELECT data FROM payload WHERE episode_id = :id", id=one)[0][0])
    spoilt = {
        "bit": data[:5] + bytes([data[5] ^ 4]) + data[6:],
        "cut": data[:-1],
        "long": data + b"\0",
        "empty": b"",
        "other": bytes(sql("SELECT data FROM payload WHERE episode_id = :id", id=one + 1)[0][0]),
        "pickle": pickle.dumps(Bomb()),
    }[how]
    damage("UPDATE payload SET data = :data WHERE episode_id = :id", data=spoilt, id=one)


class Bomb:
    """Leaves a file behind when it is unpickled."""

    trace = "unpickled"

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (Path(self.trace),)


@pytest.mark.parametrize("how", ["bit", "cut", "long", "empty", "other", "pickle"])
def test_a_damaged_payload_is_named_and_harms_no_other(
    open_memory: OpenMemory, damage: Damage, sql: Sql, how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """StoreCorrupt names the episode, wherever it is met; the others stay readable; deleting it heals the buffer."""
    monkeypatch.chdir(tmp_path)
    memory = open_memory(buffer="b", strategy="uniform")
    ids = memory.extend(rows(6), loss=1.0, tags=["t"], timestamp=5.0).tolist()
    memory.close()
    spoil(damage, sql, ids[2], how)

    memory = open_memory(buffer="b")
    for attempt in (
        lambda: memory.get(ids[2]),
        lambda: memory.get_many(ids),
        lambda: memory.sample(6),
        lambda: memory.recall_by_tags(["t"]),
        lambda: memory.recall_temporal(0, 10),
        lambda: memory.recall(np.zeros(4), on="x"),
    ):
        with pytest.raises(StoreCorrupt, match=str(ids[2])) as found:
            attempt()
        assert found.value.episode_id == ids[2]
    others = [i for i in ids if i != ids[2]]
    assert [e.payload["number"] for e in memory.get_many(others)] == [0, 1, 3, 4, 5]
    assert memory.metadata(ids[2])[0].loss == 1.0
    assert memory.update(ids, loss=2.0).updated.tolist() == ids
    report = memory.check()
    assert not report.ok and str(ids[2]) in " ".join(report.problems)

    assert memory.delete(ids[2]) == 1
    assert memory.check().ok
    assert live_ids(memory) == others
    assert not (tmp_path / Bomb.trace).exists()


def test_a_failed_draw_uses_nothing_of_the_generator(open_memory: OpenMemory, damage: Damage, sql: Sql) -> None:
    """So that a run continues after the damaged episode was deleted as if it had never tried."""
    memory = open_memory(strategy="uniform", cache_bytes=0)
    ids = memory.extend(rows(6)).tolist()
    spoil(damage, sql, ids[0], "bit")
    before = str(memory.rng.bit_generator.state)
    with pytest.raises(StoreCorrupt):
        memory.sample(6)
    assert str(memory.rng.bit_generator.state) == before


@pytest.mark.parametrize("statement", ["DELETE FROM payload WHERE episode_id = 3", "DELETE FROM payload"])
def test_a_missing_payload_is_an_error_of_the_tree(open_memory: OpenMemory, damage: Damage, statement: str) -> None:
    """Not a KeyError from inside."""
    memory = open_memory(cache_bytes=0)
    memory.extend(rows(4))
    damage(statement)
    with pytest.raises((StoreCorrupt, EpisodeNotFound), match="\\d"):
        memory.get(3)
    with pytest.raises((StoreCorrupt, EpisodeNotFound)):
        memory.sample(4)
    assert not memory.check().ok


@pytest.mark.parametrize(
    "signature",
    [
        "",
        "{",
        "null",
        "[]",
        '{"codec":1,"fields":[]}',
        '{"codec":1,"fields":[{"path":["x"],"kind":"array","dtype":"|O","shape":[]}]}',
        '{"codec":1,"fields":[{"path":["x"],"kind":"array","dtype":"|O8","shape":[]}]}',
        '{"codec":1,"fields":[{"path":["x"],"kind":"array","dtype":"<f4,<f4","shape":[]}]}',
        '{"codec":1,"fields":[{"path":["x"],"kind":"pickle","dtype":null,"shape":[]}]}',
        '{"codec":1,"fields":[{"path":["x"],"kind":"array","dtype":"<f4","shape":[-1]}]}',
        '{"codec":1,"fields":[{"path":["x"],"kind":"array","dtype":"<f4","shape":[1000000000000]}]}',
        "[" * 100_000,
    ],
    ids=range(12),
)
def test_a_planted_signature_is_refused(open_memory: OpenMemory, damage: Damage, signature: str) -> None:
    """No dtype of objects, no giant allocation, no foreign exception."""
    memory = open_memory()
    memory.extend(rows(4))
    memory.close()
    damage("UPDATE buffer SET signature = :text", text=signature)
    attempts: list[Callable[[memstore.EpisodicMemory], Any]] = [
        lambda m: m.get(1),
        lambda m: m.sample(2),
        lambda m: m.add(row(1)),
        lambda m: m.check(),
    ]
    for attempt in attempts:
        with pytest.raises(StoreCorrupt, match="signature"):
            attempt(open_memory())


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{}",
        '{"document":1,"state":{"dict":{"w":{"array":["|O",[1]]}}}}',
        '{"document":1,"state":{"dict":{"w":{"array":["<f8",[-1]]}}}}',
        '{"document":1,"state":{"dict":{"w":{"array":["<f8",[1000000000000]]}}}}',
        '{"document":1,"state":{"dict":{"w":{"pickle":"x"}}}}',
    ],
    ids=range(6),
)
def test_a_planted_checkpoint_is_refused(open_memory: OpenMemory, damage: Damage, document: str) -> None:
    """By its checksum, and by its content when the checksum was made to fit."""
    memory = open_memory()
    memory.save_checkpoint("c", {"w": np.zeros(3)})
    data, generator = b"", '{"document":1,"state":{"dict":{}}}'
    crc = zlib.crc32(generator.encode(), zlib.crc32(data, zlib.crc32(document.encode())))
    damage("UPDATE checkpoint SET document = :d", d=document)
    with pytest.raises(StoreCorrupt):
        memory.load_checkpoint("c")
    damage(
        "UPDATE checkpoint SET document = :d, data = :b, rng = :g, crc32 = :c", d=document, b=data, g=generator, c=crc
    )
    before = str(memory.rng.bit_generator.state)
    with pytest.raises(StoreCorrupt):
        memory.load_checkpoint("c")
    assert str(memory.rng.bit_generator.state) == before


def test_bytes_are_bytes(open_memory: OpenMemory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle that a user stores comes back as the bytes it is, and runs nowhere."""
    monkeypatch.chdir(tmp_path)
    memory = open_memory()
    blob = pickle.dumps(Bomb())
    one = memory.add({"raw": blob}, extra={"raw": blob.decode("latin-1").replace("\0", "")})
    memory.save_checkpoint("c", {"raw": blob})
    assert memory.get(one).payload["raw"] == blob
    assert memory.load_checkpoint("c") == {"raw": blob}
    assert not (tmp_path / Bomb.trace).exists()


# pad


def test_pad(open_memory: OpenMemory) -> None:
    """Ragged fields as one array and a mask."""
    memory = open_memory(signature={"t": ("i4", (None, None))})
    for n, m in ((1, 3), (2, 0), (0, 0)):
        memory.add({"t": np.ones((n, m), np.int32)})
    batch = memory.sample(3)
    padded, mask = memstore.pad(batch["t"])
    assert padded.shape == mask.shape == (3, 2, 3) and mask.sum() == 3 == padded.sum()
    mixtures: list[Any] = [[], [np.zeros(2), np.zeros((2, 2))], [np.zeros(2), np.zeros(2, np.int8)]]
    for bad in mixtures:
        with pytest.raises(InvalidValue):
            memstore.pad(bad)
