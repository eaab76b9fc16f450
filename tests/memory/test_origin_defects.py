"""None of the 44 defects of the code that inspired memstore (research/origin.md section 1.8), by number.

Here: those of the storage core: 1 to 12, 15 to 25, 29 to 32, 36, 37, 40 to 43. Parts of these that belong to the
learner (which id it uses, what it replays) are tested again in tests/learner, as are 26, 27, 28, 33, 34, 35, 38 and 39.

Elsewhere:

- 13 (EWC state that cannot be saved): tests/learner/test_ewc.py. Here: a checkpoint refuses a key that is not a str
  instead of losing it.
- 14 (checkpoints of the training command, ``--resume``): tests/learner/test_train.py and tests/cli/test_cli.py.
- 44 (documents that disagree with the code): tests/test_documentation.py.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memstore
from memstore import (
    CheckpointNotFound,
    ConfigError,
    DomainBalanced,
    EpisodeNotFound,
    InvalidValue,
    Mixed,
    PayloadError,
    PrioritizedLoss,
    PrioritizedRecency,
    RetentionPolicy,
    StoreCorrupt,
)
from tests.support.helpers import (
    Child,
    Damage,
    Existing,
    OpenMemory,
    Sql,
    agree,
    drawn,
    everything,
    law,
    live_ids,
    row,
    rows,
)

# Identity and lifetime


def test_defect_01_metadata_and_episode_share_one_id(open_memory: OpenMemory) -> None:
    """One id, issued by the database, names payload, domain, loss and history alike."""
    memory = open_memory()
    ids = memory.extend(rows(20), domain=[f"d{i}" for i in range(20)], loss=np.arange(20.0))
    assert [e.payload["number"] for e in memory.get_many(ids)] == list(range(20))
    for i, found in zip(ids.tolist(), memory.metadata(ids), strict=True):
        assert found.episode_id == i and found.domain == f"d{i - 1}" and found.loss == i - 1
    batch = memory.sample(20)
    for i, number, domain, loss in zip(batch.ids, batch["number"], batch.domain, batch.loss, strict=True):
        assert number == i - 1 and domain == f"d{i - 1}" and loss == i - 1
    memory.update(batch, loss=batch["number"] + 0.5)
    assert [e.loss for e in memory.get_many(ids)] == [n + 0.5 for n in range(20)]


def test_defect_02_one_eviction_rule_for_metadata_and_payload(open_memory: OpenMemory) -> None:
    """After thousands of examples every row still resolves, and consolidation keeps the hardest as eviction does."""
    memory = open_memory(capacity=100, eviction="lowest_loss")
    rng = np.random.default_rng(2)
    losses = rng.lognormal(0, 2, 3000)
    for start in range(0, 3000, 100):
        memory.extend(rows(100, start), loss=losses[start : start + 100])
    ids = live_ids(memory)
    assert len(ids) == 100
    assert [e.payload["number"] for e in memory.get_many(ids)] == [i - 1 for i in ids]
    hardest = sorted(ids, key=lambda i: losses[i - 1])[-30:]
    memory.add(row(0), loss=1e6)
    memory.consolidate(RetentionPolicy(max_episodes=31, recency=0, use=0))
    assert live_ids(memory) == [*sorted(hardest), 3001]


def test_defect_03_nothing_dangles_after_eviction(open_memory: OpenMemory, sql: Sql) -> None:
    """Episode, payload, tags and metadata leave together, with the fold. A batch is never short."""
    memory = open_memory(capacity=10)
    for i in range(50):
        memory.add(row(i), loss=float(i % 7), tags=("t", f"u{i}"), level=i)
        assert len(memory.sample(10)) == min(i + 1, 10)
    memory.fold()
    ids = live_ids(memory)
    for table, column in (
        ("episode", "id"),
        ("payload", "episode_id"),
        ("replay_metadata", "episode_id"),
        ("episode_tag", "episode_id"),
    ):
        assert [i for (i,) in sql(f"SELECT DISTINCT {column} FROM {table} ORDER BY 1")] == ids


def test_defect_04_importance_follows_the_latest_loss(open_memory: OpenMemory) -> None:
    """Consolidation, eviction and draws all use what was measured last."""
    memory = open_memory(capacity=3, eviction="lowest_loss", strategy=PrioritizedLoss(1.0), epsilon=1e-9)
    a, b, c = memory.extend(rows(3), loss=[9.0, 1.0, 1.0]).tolist()
    memory.update([a, b], loss=[0.001, 8.0])
    probability = law(memory)
    assert probability[b] == pytest.approx(8 / 9.001)
    assert memory.consolidate(RetentionPolicy(min_importance=0.1, recency=0, use=0), dry_run=True).unimportant == 1
    memory.add(row(3), loss=2.0)
    assert a not in memory and b in memory and c in memory


def test_defect_05_capacity_holds_at_every_store(open_memory: OpenMemory) -> None:
    """Without waiting for a consolidation, and for one batch larger than the memory too."""
    memory = open_memory(capacity=25)
    memory.extend(rows(400), loss=np.arange(400.0))
    assert len(memory) == 25
    for i in range(30):
        memory.add(row(i), loss=float(i))
        assert len(memory) == 25


def test_defect_06_nothing_is_lost_on_the_way(open_memory: OpenMemory) -> None:
    """Level, tags, the caller's own id and anything else come back as given, and a batch tells where it came from."""
    memory = open_memory()
    extra = {"valence": -0.25, "outcome": [1, "ok", None, True], "source": {"file": "a.txt", "line": 17}}
    one = memory.add(
        {"x": row(1)["x"], "example": "user-17"},
        domain="math",
        level=5,
        tags=("hard", "new"),
        key="ep-1",
        extra=extra,
        timestamp=1.5,
        loss=0.5,
    )
    memory.close()
    memory = open_memory()
    episode = memory.get(one)
    assert (episode.level, episode.tags, episode.key, episode.extra) == (5, ("hard", "new"), "ep-1", extra)
    assert (episode.domain, episode.timestamp, episode.loss) == ("math", 1.5, 0.5)
    assert memory.sample(1)["example"] == ["user-17"]
    bare = memory.get(memory.add({"x": row(2)["x"], "example": ""}))
    assert (bare.level, bare.tags, bare.key, bare.extra, bare.loss) == (None, (), None, None, None)


def test_defect_07_identity_is_a_number_not_a_prefix(open_memory: OpenMemory) -> None:
    """Keys and domains that look like ids stay what they are: data."""
    memory = open_memory()
    keys = ["1", "2", "episode_1", "replay-2", "0", "-1", "1.0"]
    ids = memory.extend(rows(7), key=keys, domain=keys[::-1], tags=[[k] for k in keys])
    assert ids.tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert [e.key for e in memory.get_many(ids)] == keys
    assert [e.domain for e in memory.get_many(ids)] == keys[::-1]
    assert memory.extend(rows(7), key=keys[::-1]).tolist() == ids[::-1].tolist()
    assert [[e.id for e in memory.recall_by_tags([k])] for k in keys] == [[i] for i in ids.tolist()]


def test_defect_08_ids_are_never_renumbered_nor_reused(open_memory: OpenMemory) -> None:
    """Whatever leaves, the others keep their ids."""
    memory = open_memory()
    ids = memory.extend(rows(10)).tolist()
    memory.delete([ids[0], ids[4], ids[9]])
    assert {e.id: e.payload["number"] for e in memory.get_many(live_ids(memory))} == {
        i: i - 1 for i in ids if i not in (1, 5, 10)
    }
    assert memory.add(row(77)) == 11


# Persistence


def test_defect_09_everything_survives_a_restart(open_memory: OpenMemory) -> None:
    """Episodes, metadata, counters, the generator and whatever the trainer needs."""
    memory = open_memory(capacity=20)
    memory.extend(rows(30), loss=np.arange(30.0), domain=["a", "b", "c"] * 10)
    memory.update(memory.sample(5), loss=0.5, step=3)
    trainer = {
        "weights": [np.random.default_rng(0).normal(size=(3, 4)), np.zeros(4, np.float32)],
        "recent": [{"x": np.arange(3), "domain": "a"}],
        "fisher": {"0,1": 0.25},
        "stats": {"avg_loss": 0.1, "best": None, "count": 2**63},
        "curriculum": {"level": 3, "history": (1, 2)},
    }
    with memory.transaction():
        memory.save_checkpoint("run", trainer)
    memory.fold()  # the end of the handle would do it, and change the revision
    ids = live_ids(memory)
    facts, stats = everything(memory, ids), memory.stats().to_dict()
    memory.load_checkpoint("run")
    draws = [memory.sample(6).ids.tolist() for _ in range(4)]
    memory.close()

    memory = open_memory(seed=999)
    found = memory.load_checkpoint("run")
    assert [memory.sample(6).ids.tolist() for _ in range(4)] == draws
    assert everything(memory, ids) == facts
    again = memory.stats().to_dict()
    for changing in ("cache", "bytes_on_disk"):
        stats.pop(changing), again.pop(changing)
    assert again == stats
    for mine, theirs in zip(found.pop("weights"), trainer["weights"], strict=True):  # type: ignore[call-overload]
        assert mine.dtype == theirs.dtype and (mine == theirs).all()
    (recent,) = found.pop("recent")
    assert recent["x"].tolist() == [0, 1, 2] and recent["domain"] == "a"
    assert found == {k: trainer[k] for k in ("fisher", "stats", "curriculum")}


def test_defect_10_loading_is_all_or_nothing(open_memory: OpenMemory, damage: Damage) -> None:
    """A checkpoint that cannot be read changes nothing in the receiver, its generator included."""
    memory = open_memory()
    memory.extend(rows(10), loss=1.0)
    memory.save_checkpoint("good", {"n": 1})
    memory.sample(3)
    memory.save_checkpoint("bad", {"n": 2, "w": np.arange(10)})
    damage("UPDATE checkpoint SET data = :data WHERE name = 'bad'", data=b"\x01" * 80)
    ids = live_ids(memory)
    state, facts = str(memory.rng.bit_generator.state), everything(memory, ids)
    with pytest.raises(StoreCorrupt, match="bad"):
        memory.load_checkpoint("bad")
    with pytest.raises(CheckpointNotFound, match="'good'"):
        memory.load_checkpoint("missing")
    assert str(memory.rng.bit_generator.state) == state
    assert everything(memory, ids) == facts
    assert memory.load_checkpoint("good") == {"n": 1}


def test_defect_10_a_smaller_capacity_takes_effect_at_once(open_memory: OpenMemory) -> None:
    """For everyone who has the buffer open."""
    memory, other = open_memory(capacity=50), open_memory()
    memory.extend(rows(50), loss=np.arange(50.0))
    assert len(other) == 50
    assert memory.configure(capacity=20) == 30
    assert len(memory) == len(other) == 20 and other.capacity == 20
    other.add(row(50), loss=100.0)
    assert len(memory) == 20


def test_defect_11_the_schema_has_a_version_and_damage_is_found(
    open_memory: OpenMemory, damage: Damage, sql: Sql
) -> None:
    """Every payload has its checksum; ``check`` finds what was changed past memstore."""
    memory = open_memory()
    ids = memory.extend(rows(5), loss=1.0).tolist()
    assert memory.stats().schema_version == sql("SELECT version_num FROM memstore_version")[0][0]
    assert memory.check().ok
    damage("UPDATE payload SET data = :data WHERE episode_id = :id", data=b"\0" * 24, id=ids[2])
    memory.close()
    report = open_memory().check()
    assert not report.ok and any(str(ids[2]) in problem for problem in report.problems)


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE replay_metadata SET loss = 1000 WHERE episode_id = 3",
        "UPDATE replay_metadata SET loss = NULL WHERE episode_id = 3",
        "UPDATE replay_metadata SET loss = -1 WHERE episode_id = 3",
        "UPDATE replay_metadata SET last_event_id = 7 WHERE episode_id = 3",
        "UPDATE replay_metadata SET replay_count = 5 WHERE episode_id = 3",
        "DELETE FROM replay_metadata WHERE episode_id = 3",
        "DELETE FROM payload WHERE episode_id = 3",
        "DELETE FROM episode WHERE id = 3",
        "UPDATE buffer SET departed = departed + 1",
        "UPDATE buffer SET inserted = 2",
        "UPDATE buffer SET capacity = 2",
        "UPDATE buffer SET high_water = 0.5",
        "UPDATE buffer SET live_replays = 9",
        "UPDATE payload SET episode_id = 9 WHERE episode_id = 5",
        "UPDATE episode SET domain_id = 2 WHERE id = 3",
        "INSERT INTO episode_tag (buffer_id, tag, episode_id, ordinal) VALUES (1, 't', 77, 0)",
    ],
)
def test_defect_11_check_finds_every_broken_promise(open_memory: OpenMemory, damage: Damage, statement: str) -> None:
    """Each invariant broken once, past memstore."""
    memory = open_memory(strategy="prioritized_loss")
    memory.extend(rows(5), loss=[0.5, 1.0, 2.0, 2.1, 0.7], domain=["a", "a", "a", "a", "b"])
    memory.close()
    damage(statement)
    report = open_memory().check()
    assert not report.ok, statement


def test_defect_12_no_statistic_is_ever_unreadable(open_memory: OpenMemory) -> None:
    """Empty, all-zero and huge losses give finite statistics; a NaN in a checkpoint is kept, bit for bit."""
    cases: list[list[float | None]] = [[], [0.0] * 4, [1e308] * 4, [5e-324, 0.0], [None, None]]
    for i, losses in enumerate(cases):
        memory = open_memory(buffer=f"b{i}")
        if losses:
            memory.extend(rows(len(losses)), loss=losses)
        for exact in (False, True):
            stats = memory.stats(exact=exact)
            assert math.isfinite(stats.avg_loss) and math.isfinite(stats.max_priority)
            assert all(math.isfinite(q) for q in stats.loss_quantiles.values())
            assert sum(count for _, _, count in stats.loss_histogram) == len([x for x in losses if x is not None])
    memory.save_checkpoint("c", {"avg_loss": math.nan, "best": math.inf, "worst": -math.inf})
    state = memory.load_checkpoint("c")
    assert math.isnan(state["avg_loss"]) and state["best"] == math.inf and state["worst"] == -math.inf


def test_defect_13_keys_of_a_state_are_kept_or_refused(open_memory: OpenMemory) -> None:
    """A map keyed by pairs is kept as it is, and other keys are refused, instead of being lost or renamed."""
    memory = open_memory()
    memory.save_checkpoint("ewc", {"fisher": {(0, 1): 0.5, 7: 0.25}})
    assert memory.load_checkpoint("ewc") == {"fisher": {(0, 1): 0.5, 7: 0.25}}
    with pytest.raises(PayloadError, match="key"):
        memory.save_checkpoint("other", {"fisher": {frozenset({1}): 0.5}})
    assert memory.checkpoints() == ["ewc"]


def _share(url: str, start: int) -> int:
    with memstore.open(url) as memory:
        for i in range(20):
            memory.add(row(start + i), loss=1.0)
            memory.update(memory.sample(2), loss=0.5)
        return len(memory)


def test_defect_15_processes_share_one_memory(open_memory: OpenMemory, url: str) -> None:
    """Adding, drawing and updating side by side; test_lifecycle.py counts exactly."""
    memory = open_memory()
    children = [Child(_share, url, 100 * n) for n in range(2)]
    for child in children:
        child.result()
    assert len(memory) == 40
    assert memory.add(row(0)) == 41


# Hangs and crashes


@pytest.mark.parametrize("strategy", ["uniform", "prioritized_loss", "prioritized_recency", "mixed", "domain_balanced"])
def test_defect_16_asking_for_more_than_there_is_ends(open_memory: OpenMemory, strategy: str) -> None:
    """19 wanted, 13 stored; and a capacity below the count."""
    memory = open_memory(capacity=13, strategy=strategy)
    memory.extend(rows(20), domain=["a"] * 15 + ["b"] * 5, loss=np.arange(20.0))
    assert len(set(memory.sample(19).ids.tolist())) == 13


@pytest.mark.parametrize("capacity", [0, -1, 1.5, True, "10", math.nan, 2**63])
def test_defect_17_capacity_is_validated(open_memory: OpenMemory, url: str, existing: Existing, capacity: Any) -> None:
    """At opening and when changed; nothing is created."""
    before = existing()
    with pytest.raises(ConfigError, match="capacity"):
        memstore.open(url, capacity=capacity)
    assert existing() == before
    memory = open_memory(capacity=1)
    with pytest.raises(ConfigError, match="capacity"):
        memory.configure(capacity=capacity)
    assert memory.capacity == 1


@pytest.mark.parametrize("eviction", ["fifo", "lowest_loss", "largest_domain", "reservoir", "reservoir_loss"])
def test_defect_17_capacity_1_holds_one(open_memory: OpenMemory, eviction: str) -> None:
    """Never none, never two."""
    memory = open_memory(capacity=1, eviction=eviction)
    for i in range(5):
        memory.add(row(i), loss=float(i), domain=f"d{i}")
        assert len(memory) == 1 and len(memory.sample(5)) == 1


@pytest.mark.parametrize(
    "attempt",
    [
        lambda: PrioritizedLoss(math.nan),
        lambda: PrioritizedLoss(math.inf),
        lambda: PrioritizedRecency(-1),
        lambda: Mixed({}),
        lambda: Mixed({"uniform": -0.5, "prioritized_loss": 1.5}),
        lambda: Mixed({"uniform": 0.0}),
        lambda: Mixed({"uniform": math.nan}),
        lambda: DomainBalanced({}),
        lambda: DomainBalanced({"a": -1.0}),
        lambda: DomainBalanced({"a": 0.0}),
        lambda: memstore.open("unused.db", epsilon=0.0),
        lambda: memstore.open("unused.db", epsilon=-1.0),
        lambda: memstore.open("unused.db", epsilon=math.nan),
        lambda: memstore.open("unused.db", cache_bytes=-1),
        lambda: memstore.open("unused.db", max_replays=-1),
        lambda: memstore.open("unused.db", busy_timeout=-1.0),
        lambda: memstore.open("unused.db", durability="maybe"),  # type: ignore[arg-type]
        lambda: memstore.open("unused.db", seed=-1),
        lambda: memstore.open(""),
        lambda: memstore.open("sqlite://"),
    ],
)
def test_defect_18_every_setting_is_validated(
    attempt: Callable[[], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is touched."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError):
        attempt()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("count", [0, -1, -5, 2**32, 1.5, math.nan, "3", None, True])
def test_defect_18_a_count_is_validated(memory: memstore.EpisodicMemory, count: Any) -> None:
    """No underflow, no huge take."""
    memory.add(row(0), loss=1.0)
    with pytest.raises(InvalidValue):
        memory.sample(count)


def test_defect_19_an_empty_batch_divides_nothing(open_memory: OpenMemory) -> None:
    """Updating nothing is nothing; adding nothing is refused; the average stays a number."""
    memory = open_memory()
    assert repr(memory.update([], loss=[])) == "UpdateResult(updated=0, missing=0, rejected=0)"
    with pytest.raises(PayloadError):
        memory.extend({"x": np.zeros((0, 4), np.float32), "number": np.zeros(0, np.int64)})
    assert memory.delete([]) == 0
    assert memory.get_many([]) == [] and memory.metadata([]) == []
    assert math.isfinite(memory.stats().avg_loss)
    memory.extend(rows(3), loss=2.0)
    memory.update([], loss=[])
    assert memory.delete([]) == 0
    assert memory.get_many([]) == []
    assert memory.stats().avg_loss == pytest.approx(2.0)
    assert memory.stats(exact=True).avg_loss == 2.0


# Numerical


def test_defect_20_a_nan_loss_never_silences_the_draws(open_memory: OpenMemory) -> None:
    """It is refused on both ways in, and what was drawn before is drawn after."""
    memory = open_memory(strategy="prioritized_loss")
    ids = memory.extend(rows(4), loss=[1.0, 2.0, 3.0, 4.0])
    probability = law(memory)
    for attempt in (lambda: memory.add(row(9), loss=math.nan), lambda: memory.update(ids, loss=math.nan)):
        with pytest.raises(InvalidValue, match="nan"):
            attempt()
    result = memory.update(ids, loss=[math.nan] * 4, on_invalid="skip")
    assert result.rejected.tolist() == ids.tolist()
    assert law(memory) == probability
    assert agree(drawn(memory), probability)


def test_defect_21_losses_are_finite_and_not_negative(open_memory: OpenMemory) -> None:
    """So no weight is NaN under any alpha, and the average is finite even where a sum of losses would not be."""
    memory = open_memory(strategy=PrioritizedLoss(0.5))
    for loss in (math.inf, -math.inf, -1.0, -1e-300):
        with pytest.raises(InvalidValue):
            memory.add(row(0), loss=loss)
    memory.extend(rows(5), loss=[1e308] * 4 + [1.0])
    assert memory.stats().avg_loss == pytest.approx(8e307)
    for alpha in (0.0, 0.5, 1.0, 2.0, 50.0):
        probability = law(memory, alpha=alpha)
        assert sum(probability.values()) == pytest.approx(1.0)
        assert agree(drawn(memory, 2000, alpha=alpha), {k: v for k, v in probability.items() if v > 1e-300})


def test_defect_22_never_measured_is_null_with_a_rule(open_memory: OpenMemory, sql: Sql) -> None:
    """No sentinel: NULL in the table, None and NaN outside, the highest priority in a draw, no part of averages."""
    memory = open_memory(strategy=PrioritizedLoss(1.0))
    ids = memory.extend(rows(4), loss=[None, None, None, 1.0]).tolist()
    assert sql("SELECT loss FROM replay_metadata ORDER BY episode_id") == [(None,), (None,), (None,), (1.0,)]
    assert memory.get(ids[0]).loss is None
    assert np.isnan(memory.sample(4).loss).sum() == 3
    assert law(memory) == pytest.approx(dict.fromkeys(ids, 0.25))
    stats = memory.stats(exact=True)
    assert stats.avg_loss == 1.0 and stats.unmeasured == 3
    assert memory.consolidate(RetentionPolicy(min_importance=0.9, recency=0, use=0), dry_run=True).unimportant == 1


def test_defect_23_solved_examples_are_revisited(open_memory: OpenMemory) -> None:
    """A zero loss keeps a positive probability, so that forgetting shows."""
    memory = open_memory(strategy=PrioritizedLoss(0.6), epsilon=1e-3)
    solved, hard = memory.extend(rows(2), loss=[0.0, 1.0]).tolist()
    counts = drawn(memory, 5000)
    assert counts[solved] > 20 and counts[hard] > counts[solved]
    default = open_memory(buffer="default epsilon", strategy=PrioritizedLoss(0.6))
    default.extend(rows(2), loss=[0.0, 1.0])
    assert min(law(default).values()) > 1e-4


def test_defect_24_recency_counts_insertions_not_milliseconds(open_memory: OpenMemory) -> None:
    """p ~ age ** -alpha whatever the clocks say, backwards included."""
    laws = []
    for i, times in enumerate((np.arange(10.0), np.full(10, 1e9), -np.arange(10.0) * 1e6)):
        memory = open_memory(buffer=f"b{i}", strategy=PrioritizedRecency(1.0))
        ids = memory.extend(rows(10), timestamp=times.tolist()).tolist()
        probability = law(memory)
        assert agree(drawn(memory), probability)
        assert memory.sample(10, strategy="uniform").age.max() == 10
        laws.append([probability[i] for i in ids])
    harmonic = sum(1 / age for age in range(1, 11))
    assert laws[0] == laws[1] == laws[2] == pytest.approx([1 / age / harmonic for age in range(10, 0, -1)])


def test_defect_25_sums_are_exact_after_thousands_of_updates(open_memory: OpenMemory) -> None:
    """float64, per stratum: the reported probability agrees with the losses as they are now."""
    memory = open_memory(strategy=PrioritizedLoss(1.0), epsilon=1e-9)
    ids = memory.extend(rows(50), loss=1.0)
    rng = np.random.default_rng(25)
    for turn in range(200):
        memory.update(ids, loss=rng.lognormal(0, 6, 50) * (1e12 if turn % 2 else 1.0))
    losses = rng.random(50) * 1e-3
    memory.update(ids, loss=losses)
    expected = (losses + 1e-9) / (losses + 1e-9).sum()
    probability = law(memory)
    assert [probability[i] for i in ids.tolist()] == pytest.approx(expected.tolist(), rel=1e-9)


# Method


@pytest.mark.parametrize("strategy", ["uniform", "prioritized_loss", "prioritized_recency", "mixed", "domain_balanced"])
def test_defect_29_a_batch_brings_what_corrects_its_bias(open_memory: OpenMemory, strategy: str) -> None:
    """Probabilities, and importance weights that make the weighted mean unbiased: sum of p * w is constant."""
    memory = open_memory(strategy=strategy)
    memory.extend(rows(12), loss=np.arange(12.0), domain=["a", "b", "b"] * 4)
    batch = memory.sample(12, beta=1.0, exact_probability=True)
    assert batch.probability is not None and batch.probability.sum() == pytest.approx(1)
    product = batch.probability * batch.weight
    assert product == pytest.approx(np.full(12, product[0]))
    assert batch.weight.max() <= 1 + 1e-9


def test_defect_30_the_age_of_a_measurement_is_kept(open_memory: OpenMemory) -> None:
    """When it was last replayed, how often, and every loss before and after, with the step."""
    memory = open_memory()
    ids = memory.extend(rows(2), loss=1.0)
    start = time.time()
    memory.update(ids[:1], loss=0.5, step=12)
    old, new = memory.metadata(ids[1])[0], memory.metadata(ids[0])[0]
    assert old.last_replayed_at is None and old.replay_count == 0
    assert new.last_replayed_at is not None and start - 1 <= new.last_replayed_at <= time.time() + 1


def test_defect_30_the_history_has_every_replay(open_memory: OpenMemory, sql: Sql) -> None:
    """Numbered in the order given; an id given twice has two events, the second going on from the first."""
    memory = open_memory(consumer="learner-1", strategy="uniform")
    a, b = memory.extend(rows(2), loss=[1.0, None]).tolist()
    memory.update([b, a, b], loss=[3.0, 2.0, 4.0], step=12)
    memory.update(memory.sample(2), loss=0.5)
    columns = "episode_id, step, consumer, strategy, loss_before, loss_after"
    found = sql(f"SELECT {columns} FROM v_history ORDER BY event")
    assert found[:3] == [
        (b, 12, "learner-1", None, None, 3.0),
        (a, 12, "learner-1", None, 1.0, 2.0),
        (b, 12, "learner-1", None, 3.0, 4.0),
    ]
    assert sorted(found[3:]) == [
        (a, None, "learner-1", "uniform", 2.0, 0.5),
        (b, None, "learner-1", "uniform", 4.0, 0.5),
    ]
    assert memory.stats().total_events == 5


def test_defect_31_there_is_a_reservoir_and_rare_domains_can_be_protected(open_memory: OpenMemory) -> None:
    """Early tasks survive under ``reservoir``; a rare domain survives under what goes with DomainBalanced."""
    reservoir = open_memory(buffer="r", capacity=100, eviction="reservoir", strategy="uniform")
    for task in range(10):
        reservoir.extend(rows(500), domain=f"task{task}")
    share = reservoir.stats().domain_distribution
    assert len(share) == 10 and min(share.values()) >= 2
    balanced = open_memory(buffer="b", capacity=100, strategy="domain_balanced")
    assert balanced.stats().eviction == "largest_domain"
    balanced.extend(rows(20), domain="rare")
    balanced.extend(rows(1000), domain="common")
    assert balanced.stats().domain_distribution == {"rare": 20, "common": 80}


def test_defect_32_fewer_slots_than_domains_favour_nobody(open_memory: OpenMemory) -> None:
    """Remainder slots go to a fresh random subset; a scarce domain's shortfall is spread evenly."""
    memory = open_memory(strategy="domain_balanced")
    sizes = [1, 2, 5, 30, 200]
    memory.extend(rows(sum(sizes)), domain=[f"d{d}" for d, n in enumerate(sizes) for _ in range(n)])
    seen = np.zeros(5)
    for _ in range(300):
        batch = memory.sample(2)
        assert len(set(batch.domain.tolist())) == 2
        for name in batch.domain:
            seen[int(name[1:])] += 1
    assert abs(seen - 120).max() < 45  # binomial, 300 x 2/5: sigma 8.5
    names, counts = np.unique(memory.sample(50).domain, return_counts=True)
    assert dict(zip(names.tolist(), counts.tolist(), strict=True)) == {"d0": 1, "d1": 2, "d2": 5, "d3": 21, "d4": 21}


def test_defect_36_every_limit_of_a_retention_policy_works(open_memory: OpenMemory) -> None:
    """max_age, min_importance and max_episodes each remove what they say, once, and a dry run only counts."""
    memory = open_memory()
    ids = memory.extend(
        rows(8), timestamp=[0, 0, 90, 90, 90, 90, 90, 90], loss=[9, 0.01, 0.01, 0.1, 1, 2, None, 3]
    ).tolist()
    policy = RetentionPolicy(max_age=50, min_importance=0.05, max_episodes=3, recency=0, use=0)
    planned = memory.consolidate(policy, dry_run=True, now=100)
    assert len(memory) == 8 and planned.dry_run
    done = memory.consolidate(policy, now=100)
    assert (planned.too_old, planned.unimportant, planned.over_count, planned.kept) == (2, 1, 2, 3)
    assert (done.too_old, done.unimportant, done.over_count, done.kept, done.removed) == (2, 1, 2, 3, 5)
    assert live_ids(memory) == [ids[5], ids[6], ids[7]]
    assert memory.consolidate(RetentionPolicy()).removed == 0
    for bad in (RetentionPolicy(max_age=-1), RetentionPolicy(max_episodes=-1), RetentionPolicy(min_importance=1.5)):
        with pytest.raises(ConfigError):
            memory.consolidate(bad)
    assert len(memory) == 3


def test_defect_37_recall_orders_by_its_rule(open_memory: OpenMemory) -> None:
    """By time, then id; tags oldest first; similarity by distance, signs told apart; also after consolidation."""
    memory = open_memory()
    values = np.array([[3.0], [-3.0], [-1.0], [1.0], [-3.0]])
    ids = memory.extend(
        {"x": values}, timestamp=[5, 4, 4, 3, 9], loss=[1, 9, 5, 3, 2], tags=[["a"], ["a", "b"], ["b"], ["a"], ["a"]]
    ).tolist()
    a, b, c, d, e = ids
    for _ in range(2):
        assert [x.id for x in memory.recall_temporal(4, 5)] == [i for i in (b, c, a) if i in memory]
        assert [x.id for x in memory.recall_by_tags(["a"])] == [i for i in (a, b, d, e) if i in memory]
        assert [x.id for x in memory.recall_by_tags(["a", "b"], match="all")] == [b]
        matches = memory.recall([-3.0], on="x", limit=3)
        assert matches[0].episode.id == b and matches[0].distance == 0.0
        assert [m.distance for m in matches] == sorted(m.distance for m in matches)
        memory.consolidate(RetentionPolicy(max_episodes=3, recency=0, use=0))
    assert live_ids(memory) == [b, c, d]


# Scaling and reproducibility


def test_defect_40_a_draw_reads_few_rows(open_memory: OpenMemory) -> None:
    """The time of a draw and of an update does not grow with the memory (with a wide margin: benchmarks measure)."""
    took = {}
    for size in (500, 20_000):
        memory = open_memory(buffer=f"{size}", strategy="prioritized_loss")
        memory.extend(rows(size), loss=np.random.default_rng(0).lognormal(size=size))
        batch = memory.sample(32)
        samples = []
        for _ in range(15):
            start = time.perf_counter()
            batch = memory.sample(32)
            memory.update(batch, loss=batch.loss)
            samples.append(time.perf_counter() - start)
        took[size] = min(samples)
    assert took[20_000] < 6 * took[500] + 0.005, took


def test_defect_41_payloads_are_contiguous_and_small(open_memory: OpenMemory, sql: Sql) -> None:
    """An episode of 24 bytes takes 24 bytes, without a header."""
    memory = open_memory()
    memory.extend(rows(5))
    assert {length for (length,) in sql("SELECT length(data) FROM payload")} == {4 * 4 + 8}


def test_defect_42_the_same_seed_gives_the_same_batches(open_memory: OpenMemory) -> None:
    """On two memories filled alike; another seed gives others; insertion order breaks every tie of the clock."""
    draws = []
    for i, seed in enumerate((7, 7, 8)):
        memory = open_memory(buffer=f"b{i}", seed=seed, capacity=40, eviction="fifo")
        memory.extend(rows(60), domain=[f"d{i % 7}" for i in range(60)], loss=np.arange(60.0), timestamp=5.0)
        first = (i) << 40
        one = [
            (memory.sample(8, strategy=s).ids - first).tolist()
            for s in ("uniform", "prioritized_loss", "prioritized_recency", "mixed", "domain_balanced")
        ]
        draws.append(one)
        assert [e.id - first for e in memory.recall_temporal(0, 10)] == list(range(21, 61))
    assert draws[0] == draws[1] != draws[2]


def test_defect_43_what_is_drawn_is_checked(open_memory: OpenMemory) -> None:
    """A draw never yields what left, and always the payload that belongs to the id."""
    memory = open_memory(capacity=30, cache_bytes=2000)
    alive: set[int] = set()
    for turn in range(40):
        alive |= set(memory.extend(rows(3, 3 * turn), loss=[0.1, 1.0, 2.0]).tolist())
        batch = memory.sample(20)
        memory.update(batch, loss=np.linspace(0, 1, len(batch)))
        assert (batch["number"] == batch.ids - 1).all()
        assert (batch["x"] == (batch.ids - 1)[:, None]).all()
        assert set(batch.ids.tolist()) <= alive
        memory.delete(batch.ids[:1])
        alive -= {int(batch.ids[0])}
        assert batch.ids[0] not in memory
    with pytest.raises(EpisodeNotFound):
        memory.get(1)
