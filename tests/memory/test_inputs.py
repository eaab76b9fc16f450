"""Arguments that are wrong, odd or hostile: a clear refusal with nothing written, or exactly what was meant."""

from __future__ import annotations

import contextlib
import datetime
import math
import re
import unicodedata
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import memstore
from memstore import (
    ConfigError,
    DomainBalanced,
    EpisodeNotFound,
    EpisodicMemory,
    EvictionPolicy,
    InvalidValue,
    MemstoreError,
    PayloadError,
    ReplayStrategy,
    RetentionPolicy,
    Uniform,
)
from memstore.storage.schema import VERSION_TABLE, metadata
from tests.support.helpers import Existing, OpenMemory, Sql, everything, live_ids, row, rows

TABLES = [*metadata.tables, VERSION_TABLE]


@pytest.fixture
def unchanged(open_memory: OpenMemory, sql: Sql) -> Iterator[EpisodicMemory]:
    """A memory of three episodes, which the test must leave exactly as it was: every row of every table."""
    memory = open_memory(capacity=10)
    memory.extend(rows(3), loss=[1.0, 2.0, None], domain=["a", "b", "b"], tags=["t"], key=["k1", "k2", "k3"])
    memory.save_checkpoint("c", {"n": 1})

    def dump() -> list[Any]:
        return [sorted(map(repr, sql(f"SELECT * FROM {table}"))) for table in TABLES]

    before, generator = dump(), str(memory.rng.bit_generator.state)
    yield memory
    assert str(memory.rng.bit_generator.state) == generator
    assert dump() == before


@contextlib.contextmanager
def refused(case: Any, kind: type[MemstoreError] = InvalidValue, match: str = "") -> Iterator[None]:
    """Many cases try one memory, which costs more to make than they do; this says which of them was not refused."""
    try:
        yield
    except kind as exc:
        assert re.search(match, str(exc)), f"{case!r:.80}: {exc}"
    else:
        pytest.fail(f"not refused: {case!r:.80}")


BAD_LOSSES: list[Any] = [
    math.nan,
    math.inf,
    -math.inf,
    -1,
    -1e-300,
    np.float32(math.nan),
    np.float16(math.inf),
    "1.0",
    b"1.0",
    True,
    np.True_,
    1j,
    Decimal("NaN"),
    Decimal("-1"),
    10**400,
    object(),
    {},
    datetime.datetime.now(datetime.UTC),
    np.array("x"),
    np.array([[1.0]]),
    [[1.0]],
    np.ma.masked_array([1.0], [True]),
]


def test_bad_losses(unchanged: EpisodicMemory) -> None:
    """On add, in a list of losses, in an update, alone and among good ones."""
    for loss in BAD_LOSSES:
        with refused(loss):
            unchanged.add(row(3), loss=loss)
        with refused(loss):
            unchanged.extend(rows(2), loss=[1.0, loss])
        with refused(loss):
            unchanged.update([1], loss=loss)
        with refused(loss):
            unchanged.update([1, 2], loss=[0.5, loss])


@pytest.mark.parametrize("on_invalid", ["raise", "skip"])
def test_an_update_needs_a_loss(unchanged: EpisodicMemory, on_invalid: Any) -> None:
    """None means never measured, which an update cannot be; skipping is for numbers."""
    losses: list[Any] = [None, [None], [1.0, None]]
    for loss in losses:
        with refused(loss):
            unchanged.update([1, 2][: len(loss or [1])], loss=loss, on_invalid=on_invalid)


def test_losses_of_the_wrong_length(unchanged: EpisodicMemory) -> None:
    """One for all, or one each; nothing is broadcast or cut."""
    losses: list[Any] = [[], [1.0], [1.0, 1.0, 1.0], np.zeros((2, 1)), np.zeros((1, 2)), np.zeros(0)]
    for loss in losses:
        with refused(loss, match="one loss per episode"):
            unchanged.extend(rows(2), loss=loss)
        with refused(loss, match="one loss per episode"):
            unchanged.update([1, 2], loss=loss)


def test_good_losses(open_memory: OpenMemory) -> None:
    """Every real number that is finite and >= 0, kept as a float64 exactly; -0.0 as 0.0."""
    memory = open_memory()
    losses: list[tuple[Any, float]] = [
        (0, 0.0),
        (-0.0, 0.0),
        (3, 3.0),
        (5e-324, 5e-324),
        (1.7976931348623157e308, 1.7976931348623157e308),
        (np.float16(0.1), float(np.float16(0.1))),
        (np.float32(0.1), float(np.float32(0.1))),
        (np.uint8(200), 200.0),
        (np.array(2.5), 2.5),
        (Decimal("0.1"), 0.1),
        (Fraction(1, 4), 0.25),
        (np.longdouble(0.5), 0.5),
    ]
    for loss, stored in losses:
        one = memory.add(row(1), loss=loss)
        two = memory.extend(rows(1), loss=[loss])[0]
        three = memory.add(row(1))
        memory.update(three, loss=loss)
        for i in (one, two, three):
            found = memory.get(i).loss
            assert found == stored and math.copysign(1, found or 0.0) == 1 and type(found) is float, loss


def test_a_sequence_of_losses_may_name_the_unmeasured(open_memory: OpenMemory) -> None:
    """None in a list; a NaN in an array is refused, for it may as well be a mistake."""
    memory = open_memory()
    ids = memory.extend(rows(3), loss=[1, None, np.float32(2)])
    assert [m.loss for m in memory.metadata(ids)] == [1.0, None, 2.0]
    assert [m.loss for m in memory.metadata(memory.extend(rows(2), loss=[None, None]))] == [None, None]
    with pytest.raises(InvalidValue, match="nan"):
        memory.extend(rows(2), loss=np.array([1.0, np.nan]))
    with pytest.raises(InvalidValue):
        memory.extend(rows(2), loss=[None])
    assert len(memory) == 5


WRONG_KEYWORDS: list[dict[str, Any]] = [
    {"domain": ["a"]},
    {"domain": ["a", "b", "c"]},
    {"domain": []},
    {"timestamp": [1.0]},
    {"level": [1, 2, 3]},
    {"key": ["x"]},
    {"key": "x"},
    {"tags": [["a"]]},
    {"tags": [["a"], ["b"], ["c"]]},
    {"tags": "ab"},
    {"tags": [["a"], "b"]},
    {"tags": ["a", ["b"]]},
    {"extra": [{}]},
    {"domain": None},
    {"domain": 3},
    {"domain": b"a"},
    {"domain": ["a", None]},
    {"level": 1.5},
    {"level": "1"},
    {"level": True},
    {"level": 2**31},
    {"level": [1, 2.0]},
    {"key": [1, 2]},
    {"tags": [[1], [2]]},
    {"tags": [[""], ["a"]]},
    {"tags": 3},
    {"tags": [3, 4]},
    {"extra": [{1, 2}, None]},
    {"extra": [math.nan, None]},
    {"extra": [{"a": math.inf}, None]},
    {"extra": [b"x", None]},
    {"extra": ["\0", None]},
    {"timestamp": math.nan},
    {"timestamp": math.inf},
    {"timestamp": [1.0, -math.inf]},
    {"timestamp": "now"},
    {"timestamp": True},
    {"timestamp": datetime.datetime(2024, 1, 1)},
    {"timestamp": datetime.date(2024, 1, 1)},
    {"timestamp": 1j},
    {"timestamp": 10**400},
    {"timestamp": np.array(["2024-01-01", "NaT"], "M8[s]")},
]


def test_keywords_of_the_wrong_kind_or_length(unchanged: EpisodicMemory) -> None:
    """The message names the keyword."""
    for change in WRONG_KEYWORDS:
        with refused(change, match=next(iter(change)).rstrip("s")):
            unchanged.extend(rows(2), **change)


def test_batches_of_the_wrong_shape(unchanged: EpisodicMemory) -> None:
    """Empty ones included: adding nothing is a mistake somewhere."""
    batches: list[dict[str, Any]] = [
        {"x": np.zeros((0, 4), np.float32), "number": np.zeros(0, np.int64)},
        {"x": [], "number": []},
        {"x": np.zeros((2, 4), np.float32), "number": np.zeros(3, np.int64)},
        {"x": np.float32(1), "number": 1},
        {"x": np.zeros((2, 5), np.float32), "number": [1, 2]},
        {"x": np.zeros((2, 4), np.float64), "number": [1, 2]},
        {"x": np.zeros((2, 4), np.float32), "number": [1, "2"]},
        {"x": np.zeros((2, 4), np.float32), "number": [1, True]},
        {"x": np.zeros((2, 4), np.float32), "number": [1, 2**63]},
        {"x": np.zeros((2, 4), np.float32)},
        {},
    ]
    for payload in batches:
        with refused(payload, PayloadError):
            unchanged.extend(payload)


def test_ids_that_are_none(unchanged: EpisodicMemory) -> None:
    """A bool or a float is no id, even where it equals one."""
    memory: Any = unchanged
    wrong: list[Any] = [1.0, [1.0], "1", ["1"], [None], True, [True], [[1, 2]], 2**63, [2**64], 1j, b"1", [1, "a"]]
    for ids in wrong:
        for attempt in (memory.get, memory.get_many, memory.metadata, memory.delete, memory.__contains__):
            with refused((ids, attempt)):
                attempt(ids)
        with refused(ids):
            memory.update(ids, loss=1.0)


@pytest.mark.parametrize("kind", [int, np.int64, np.int32, np.uint8, np.uint64, np.int16, np.array])
def test_ids_of_every_integer_type(open_memory: OpenMemory, kind: Callable[[int], Any]) -> None:
    """numpy's scalars too, which sqlite3 would bind as blobs that match nothing."""
    memory = open_memory()
    memory.extend(rows(3), loss=1.0)
    assert memory.get(kind(2)).payload["number"] == 1
    assert kind(2) in memory and kind(7) not in memory
    assert memory.metadata(kind(2))[0].episode_id == 2
    assert memory.update(kind(2), loss=np.float32(0.5)).updated.tolist() == [2]
    assert memory.update([kind(2), kind(3)], loss=[np.float16(0.5), 1]).updated.tolist() == [2, 3]
    assert memory.get(kind(2)).replay_count == 2
    assert memory.delete(kind(2)) == 1 and live_ids(memory) == [1, 3]


def test_numbers_that_are_no_live_id(unchanged: EpisodicMemory) -> None:
    """Zero, negative, huge, of another buffer: not found, and no more."""
    for one in (0, -1, 4, 2**40 + 1, 2**53, 2**62, -(2**63)):
        with pytest.raises(EpisodeNotFound):
            unchanged.get(one)
        assert one not in unchanged
        with pytest.raises(EpisodeNotFound):
            unchanged.metadata([1, one])


def test_numpy_scalars_everywhere(open_memory: OpenMemory) -> None:
    """As capacity, level, timestamp, step, count, alpha, beta: what comes back are Python's own."""
    numbers = {"capacity": np.int32(5), "alpha": np.float32(0.5), "epsilon": np.float64(0.1)}
    memory: Any = open_memory(strategy="prioritized_loss", **numbers)
    ids = memory.extend(
        rows(2), level=np.array([1, 2], np.int8), timestamp=np.array([1, 2], np.uint16), domain=np.array(["a", "b"])
    )
    found = memory.get(ids[1])
    assert (found.level, found.timestamp, found.domain) == (2, 2.0, "b")
    assert type(found.level) is int and type(found.timestamp) is float and type(found.domain) is str
    one = memory.add(row(2), level=np.int64(3), timestamp=np.float32(1.5))
    assert memory.get(one).timestamp == 1.5
    memory.update(one, loss=1.0, step=np.int64(4))
    batch = memory.sample(np.int64(2), beta=np.float32(0.5), alpha=np.float64(1.0))
    assert len(batch) == 2
    assert [e.id for e in memory.recall_temporal(np.float64(1), np.int8(2), limit=np.int16(2))] == [ids[0], one]


def test_timestamps(open_memory: OpenMemory) -> None:
    """Seconds or aware datetimes, in any time zone, before 1970 too; now by default."""
    memory = open_memory()
    zone = datetime.timezone(datetime.timedelta(hours=5, minutes=30))
    early = datetime.datetime(1960, 1, 1, tzinfo=datetime.UTC)
    times: list[Any] = [datetime.datetime(2024, 1, 1, 5, 30, tzinfo=zone), early, -7]
    ids = memory.extend(rows(3), timestamp=times)
    assert [e.timestamp for e in memory.get_many(ids)] == [1704067200.0, -315619200.0, -7.0]
    found = memory.recall_temporal(datetime.datetime(1950, 1, 1, tzinfo=datetime.UTC), 0)
    assert [e.id for e in found] == [ids[1], ids[2]]
    before = datetime.datetime.now(datetime.UTC).timestamp()
    assert before <= memory.get(memory.add(row(0))).timestamp <= before + 60
    wrong: list[Any] = [(math.nan, 1), (0, math.inf), ("a", 1), (datetime.datetime(2024, 1, 1), 2)]
    for start, end in wrong:
        with pytest.raises(InvalidValue):
            memory.recall_temporal(start, end)
    assert memory.recall_temporal(10, 5) == []


WRONG_ARGUMENTS: list[Callable[[Any], Any]] = [
    lambda m: m.sample(1, strategy="unknown"),
    lambda m: m.sample(1, strategy="Mixed"),
    lambda m: m.sample(1, strategy=""),
    lambda m: m.sample(1, strategy=3),
    lambda m: m.sample(1, strategy=Uniform),
    lambda m: m.sample(1, strategy=["uniform"]),
    lambda m: m.sample(1, strategy="uniform", alpha=0.5),
    lambda m: m.sample(1, alpha="0.5"),
    lambda m: m.sample(1, beta=-0.1),
    lambda m: m.sample(1, beta=math.nan),
    lambda m: m.sample(1, normalize="all"),
    lambda m: m.sample(1, strategy=DomainBalanced({"absent": 1.0})),
    lambda m: m.update([1], loss=1.0, on_invalid="ignore"),
    lambda m: m.update([1], loss=1.0, step="3"),
    lambda m: m.update([1], loss=1.0, step=1.5),
    lambda m: m.update([1], loss=1.0, step=2**70),
    lambda m: m.configure(capacity=0),
    lambda m: m.configure(eviction="unknown"),
    lambda m: m.configure(strategy="unknown"),
    lambda m: m.configure(strategy="uniform", alpha=0.5),
    lambda m: m.configure(max_replays=-1),
    lambda m: m.consolidate(RetentionPolicy(max_age=math.nan)),
    lambda m: m.consolidate(RetentionPolicy(max_episodes=1.5)),  # type: ignore[arg-type]
    lambda m: m.consolidate(RetentionPolicy(min_importance=1.01)),
    lambda m: m.consolidate(RetentionPolicy(max_age=1.0), now="later"),
    lambda m: m.recall_by_tags([]),
    lambda m: m.recall_by_tags("t"),
    lambda m: m.recall_by_tags(["t"], match="some"),
    lambda m: m.recall_by_tags([3]),
    lambda m: m.recall_by_tags(["t"], limit=0),
    lambda m: m.recall_temporal(0, 1, limit=-1),
    lambda m: m.recall([0, 0, 0, 0], on="absent"),
    lambda m: m.recall([0, 0, 0], on="x"),
    lambda m: m.recall("text", on="x"),
    lambda m: m.recall([0, 0, 0, math.nan], on="x"),
    lambda m: m.recall([10**400] * 4, on="x"),
    lambda m: m.recall([0, 0, 0, 0], on="x", limit=0),
    lambda m: m.save_checkpoint("", {}),
    lambda m: m.save_checkpoint("a\0b", {}),
    lambda m: m.save_checkpoint("a", None),
    lambda m: m.save_checkpoint("a", [1]),
    lambda m: m.load_checkpoint("absent"),
]


def test_other_arguments(unchanged: EpisodicMemory) -> None:
    """An error of memstore's tree that is also the builtin a Python user expects; nothing falls back silently."""
    for number, attempt in enumerate(WRONG_ARGUMENTS):
        try:
            attempt(unchanged)
        except MemstoreError as refusal:
            assert isinstance(refusal, (ValueError, LookupError)), number
        else:
            pytest.fail(f"not refused: number {number}")


@pytest.mark.parametrize("change", [{"strategy": "unknown"}, {"eviction": "unknown"}, {"capacity": 0}, {"buffer": ""}])
def test_nothing_is_created_by_a_refused_open(url: str, existing: Existing, change: dict[str, Any]) -> None:
    """Not even the file."""
    with pytest.raises(ConfigError, match="unknown|capacity|buffer"):
        memstore.open(url, **change)
    assert existing() == []


def test_enums_and_names_are_the_same(open_memory: OpenMemory) -> None:
    """``ReplayStrategy`` and ``EvictionPolicy`` members, their values, and objects of either kind."""
    memory = open_memory(strategy=ReplayStrategy.UNIFORM, eviction=EvictionPolicy.RESERVOIR)
    memory.extend(rows(3))
    assert memory.stats().strategy == "uniform" and memory.stats().eviction == "reservoir"
    assert memory.sample(1, strategy=ReplayStrategy.MIXED).strategy == "mixed"
    open_memory(strategy="uniform", eviction="reservoir")
    open_memory(strategy=memstore.Uniform(), eviction=memstore.Reservoir())
    with pytest.raises(ConfigError, match="created with eviction='reservoir'"):
        open_memory(eviction=memstore.Fifo())


# Names

HOSTILE = [
    "'); DROP TABLE episode; --",
    '"; DROP TABLE payload; --',
    "a' OR '1'='1",
    "100%",
    "_",
    "%s",
    ":x",
    "?1",
    "$1",
    "@x",
    "{0}",
    "\\",
    "\\' --",
    "a\nb\r\n\tc",
    "NULL",
    "null",
    "0",
    "1e5",
    "true",
    '["a"]',
    '{"a": 1}',
    " ",
    " a ",
    "A",
    "a",
    "\u00e9",
    "e\u0301",
    "\u202ereversed",
    "\u05d0\u05d1\u05d2",
    "\u200b",
    "\ufeff",
    "\U0001f600",
    "\ufffd\uffff",
    "x" * 1024,
    "\x01\x1f\x7f",
    "-- comment",
    "/* */",
]
REFUSED = ["", "\0", "a\0b", "\ud800", "a\udfffb", "x" * 1025, "x" * 10_240, "\u00e9" * 600]


def test_hostile_names_are_data(open_memory: OpenMemory, existing: Existing) -> None:
    """As domain, tag, key, buffer, checkpoint, consumer, extra, text: each comes back itself and finds itself only."""
    memory = open_memory(buffer=HOSTILE[0], consumer=HOSTILE[1])
    tables = existing()
    n = len(HOSTILE)
    ids = memory.extend(
        {"text": HOSTILE}, domain=HOSTILE, tags=[[name, "all"] for name in HOSTILE], key=HOSTILE, extra=HOSTILE
    ).tolist()
    for name, one, episode in zip(HOSTILE, ids, memory.get_many(ids), strict=True):
        assert (episode.domain, episode.tags, episode.key, episode.extra) == (name, (name, "all"), name, name)
        assert episode.payload["text"] == name
        assert [e.id for e in memory.recall_by_tags([name])] == [one]
        assert [e.id for e in memory.recall_by_tags([name, "all"], match="all")] == [one]
        assert [e.id for e in memory.recall_temporal(0, 1e12, domain=name)] == [one]
        assert memory.add({"text": "again"}, key=name) == one
        assert memory.sample(5, strategy=DomainBalanced({name: 1.0})).ids.tolist() == [one]
        memory.save_checkpoint(name, {name: name})
    assert memory.checkpoints() == HOSTILE
    assert [memory.load_checkpoint(name) for name in HOSTILE] == [{name: name} for name in HOSTILE]
    assert set(memory.sample(n).domain.tolist()) == set(HOSTILE)
    assert memory.stats().domain_distribution == dict.fromkeys(HOSTILE, 1)
    assert len(memory.recall_by_tags(HOSTILE)) == n
    memory.close()
    again = open_memory(buffer=HOSTILE[0])
    assert again.resumed and len(again) == n and again.name == HOSTILE[0]
    assert [e.domain for e in again.get_many(ids)] == HOSTILE
    assert existing() == tables


def test_every_hostile_name_names_a_buffer(open_memory: OpenMemory, url: str) -> None:
    """And none is another."""
    for number, name in enumerate(HOSTILE):
        open_memory(buffer=name).add(row(number))
    assert memstore.buffers(url) == HOSTILE
    for number, name in enumerate(HOSTILE):
        memory = open_memory(buffer=name, create=False)
        assert memory.resumed and memory.sample(1)["number"].tolist() == [number]


def test_normal_forms_are_not_mixed_up(open_memory: OpenMemory) -> None:
    """NFC and NFD of one text are two domains, tags and keys: memstore compares bytes, as both databases do."""
    memory = open_memory()
    composed, decomposed = unicodedata.normalize("NFC", "caf\u00e9"), unicodedata.normalize("NFD", "caf\u00e9")
    ids = memory.extend(
        rows(2), domain=[composed, decomposed], key=[composed, decomposed], tags=[[composed], [decomposed]]
    )
    assert ids.tolist() == [1, 2]
    assert len(memory.stats().domain_distribution) == 2
    assert [e.id for e in memory.recall_by_tags([decomposed])] == [2]


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: f"{name[:3]!a} {len(name)}")
def test_names_that_are_refused(unchanged: EpisodicMemory, open_memory: OpenMemory, name: str) -> None:
    """Empty, NUL, lone surrogates, beyond 1,024 bytes: the same on every database."""
    changes: list[tuple[str, Any, Any]] = [("domain", name, "fine"), ("tags", [name], ["fine"]), ("key", name, "fine")]
    for keyword, bad, good in changes:
        one: dict[str, Any] = {keyword: bad}
        both: dict[str, Any] = {keyword: [bad, good]}
        with pytest.raises(InvalidValue, match=keyword.rstrip("s")):
            unchanged.add(row(0), **one)
        with pytest.raises(InvalidValue, match=keyword.rstrip("s")):
            unchanged.extend(rows(2), **both)
    with pytest.raises(ConfigError, match="buffer"):
        open_memory(buffer=name)
    for attempt in (
        lambda: unchanged.recall_by_tags([name]),
        lambda: unchanged.save_checkpoint(name, {}),
        lambda: DomainBalanced({name: 1.0}),
    ):
        with pytest.raises(ConfigError):
            attempt()


@pytest.mark.parametrize("name", REFUSED, ids=lambda name: f"{name[:3]!a} {len(name)}")
def test_names_that_cannot_exist_are_not_found(unchanged: EpisodicMemory, name: str) -> None:
    """As a filter they match nothing or are refused; no error of the driver comes out."""
    with contextlib.suppress(MemstoreError):
        assert unchanged.recall_temporal(0, 1e12, domain=name) == []
    with pytest.raises(MemstoreError):
        unchanged.load_checkpoint(name)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.text(max_size=60), other=st.text(max_size=60))
def test_any_text_is_kept_or_refused(open_memory: OpenMemory, name: str, other: str) -> None:
    """Never changed, whatever it is."""
    memory = open_memory()
    try:
        try:
            one = memory.add({"text": other}, domain=name, tags=(name,), extra={other: name})
        except MemstoreError:
            clean = name.replace("\0", "").encode(errors="ignore").decode() == name and name != ""
            both = (name + other).replace("\0", "").encode(errors="ignore").decode() == name + other
            assert not clean or not both, (name, other)
            return
        episode = memory.get(one)
        assert (episode.domain, episode.tags, episode.extra) == (name, (name,), {other: name})
        assert episode.payload["text"] == other
        assert one in [e.id for e in memory.recall_by_tags([name])]
    finally:
        memory.close()


def test_long_sequences_of_names(open_memory: OpenMemory) -> None:
    """Thousands of domains, tags and keys in one call: no limit on bound parameters shows."""
    memory = open_memory()
    names = [f"n{i}" for i in range(6000)]
    ids = memory.extend(rows(6000), domain=names, key=names, tags=[[name] for name in names], loss=1.0)
    assert memory.extend(rows(6000), key=names).tolist() == ids.tolist()
    assert len(memory.recall_by_tags(names)) == 6000
    assert len(memory.get_many(ids)) == 6000 and len(memory.metadata(ids)) == 6000
    assert memory.update(ids, loss=0.5).updated.tolist() == ids.tolist()
    assert memory.delete(ids) == 6000
    many = memory.add(row(0), tags=names[:3000])
    assert len(memory.get(many).tags) == 3000


def test_extra_is_json(open_memory: OpenMemory) -> None:
    """Any depth of it, numbers of any size that JSON has, and text that only looks like an escape."""
    memory = open_memory()
    values: list[Any] = ["\\u0000", "\\\\u0000", ["\\"], "", [], {}, [[[[{}]]]]]
    for extra in (*values, 2**70, -0.0, 1e-300, False, 0):
        found = memory.get(memory.extend(rows(1), extra=[extra])[0]).extra
        assert found == extra and type(found) is type(extra)
    assert memory.get(memory.extend(rows(1), extra=[{1: "a", None: {True: 2}}])[0]).extra == {
        "1": "a",
        "null": {"true": 2},
    }
    deep: Any = []
    for _ in range(100_000):
        deep = [deep]
    twice = {1: "a", "1": "b"}
    before = len(memory)
    numbers = (10**5000, [10**5000], 1j, math.nan)
    texts = ("\0", "\\\0", {"a\0": 1}, {"": "\ud800"})
    for bad in (deep, twice, [{"a": [twice]}], {1, 2}, object(), *numbers, *texts):
        with pytest.raises(InvalidValue, match="extra"):
            memory.extend(rows(1), extra=[bad])
    assert len(memory) == before


@pytest.mark.parametrize("consumer", ["", "a\0b", "\ud800", 7, b"x", "x" * 1025])
def test_a_consumer_is_a_name(url: str, existing: Existing, consumer: Any) -> None:
    """It is refused when it is given, and not at the first update."""
    with pytest.raises(ConfigError, match="consumer"):
        memstore.open(url, consumer=consumer)
    assert existing() == []


def test_numpys_str_is_stored_as_str(open_memory: OpenMemory, sql: Sql) -> None:
    """Drivers do not know it."""
    memory = open_memory()
    name = np.str_("n")
    one = memory.add({"text": name}, domain=name, tags=[name], key=name)
    two = memory.extend({"text": [name, "m"]}, domain=[name, "m"], tags=[[name], ["m"]], key=[np.str_("o"), "m"])[1]
    for i in (one, two):
        found = memory.get(i)
        assert {type(x) for x in (found.domain, found.key, *found.tags, found.payload["text"])} == {str}
    assert sql("SELECT name FROM domain ORDER BY id") == [("n",), ("m",)]


def test_repeated_tags_count_once(open_memory: OpenMemory) -> None:
    """In the order of their first appearance."""
    memory = open_memory()
    one = memory.add(row(0), tags=["b", "a", "b"])
    assert memory.get(one).tags == ("b", "a")
    assert [e.id for e in memory.recall_by_tags(["a", "a", "b"], match="all")] == [one]


def test_a_dry_run_and_every_look_write_nothing(unchanged: EpisodicMemory) -> None:
    """What only reads leaves no trace."""
    unchanged.consolidate(RetentionPolicy(max_age=0.0, max_episodes=0, min_importance=1.0), dry_run=True)
    unchanged.stats(exact=True)
    unchanged.check()
    unchanged.recall([0, 0, 0, 0], on="x")
    assert everything(unchanged, [1, 2, 3])
    assert len(unchanged) == 3 and unchanged.capacity == 10 and unchanged.strategy.name == "mixed"
    assert unchanged.signature is not None and "number" in unchanged.signature.describe()
    assert unchanged.checkpoints() == ["c"]
