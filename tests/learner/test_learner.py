"""The learner against a real memory; numbers in names are the origin's defects (research/origin.md 1.8)."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memstore
from memstore.errors import (
    CheckpointNotFound,
    ConfigError,
    EpisodeNotFound,
    InvalidValue,
    MemstoreError,
    StoreCorrupt,
)
from memstore.learner import MLP, MemoryOnlineLearner, Model, OnlineExample, OnlineLearnerConfig
from tests.learner.streams import under_former_names


def settings(**changes: Any) -> OnlineLearnerConfig:
    given: dict[str, Any] = {
        "layers": (4, 6, 3),
        "learning_rate": 0.1,
        "momentum": 0.5,
        "capacity": 50,
        "seed": 3,
    }
    return OnlineLearnerConfig(**given | changes)


def examples(count: int, seed: int = 0, domain: str = "a", **fields: Any) -> list[OnlineExample]:
    rng = np.random.default_rng(seed)
    return [
        OnlineExample(f"{domain}{seed}-{i}", rng.random(4, np.float32), rng.integers(0, 3), domain, **fields)
        for i in range(count)
    ]


def made(path: Path, **changes: Any) -> MemoryOnlineLearner:
    return MemoryOnlineLearner.with_default_model(settings(**changes), path)


@pytest.fixture
def learner(tmp_path: Path) -> Iterator[MemoryOnlineLearner]:
    with made(tmp_path / "m.db") as opened:
        yield opened


def fingerprint(learner: MemoryOnlineLearner) -> tuple[Any, ...]:
    assert isinstance(learner.model, MLP)
    ids = sorted(learner.memory.sample(10_000).ids.tolist()) if len(learner.memory) else []
    return learner.model.digest(), learner.stats, learner.memory.metadata(ids)


# examples


def test_6_an_example_comes_back_whole(learner: MemoryOnlineLearner) -> None:
    given = OnlineExample("replay_7", np.arange(4, dtype=np.float32), 2, "math", 5, tags=("hard", "new"))
    result = learner.learn_one(given)
    (back,) = learner.sample_replay(10)
    assert (back.id, back.domain, back.level, back.tags) == ("replay_7", "math", 5, ("hard", "new"))
    np.testing.assert_array_equal(back.input, given.input)
    assert back.input.dtype == np.float32
    assert back.target == 2
    assert back.last_loss == result.losses[0]
    assert (back.episode_id,) == result.ids


def test_1_the_id_is_the_one_the_database_issued(learner: MemoryOnlineLearner) -> None:
    batch = examples(5)
    result = learner.learn_batch(batch)
    for example, episode_id, loss in zip(batch, result.ids, result.losses, strict=True):
        episode = learner.memory.get(episode_id)
        np.testing.assert_array_equal(episode.payload["input"], example.input)
        assert episode.key == example.id
        assert episode.loss == loss


def test_an_example_learned_twice_is_one_episode_with_its_newest_loss(learner: MemoryOnlineLearner) -> None:
    first = learner.learn_batch(examples(2))
    second = learner.learn_batch([*examples(2)[1:], *examples(1, seed=1)])
    assert second.ids == (first.ids[1], 3)
    assert second.losses[0] != first.losses[1]
    assert learner.memory.get(first.ids[1]).loss == second.losses[0]
    assert learner.stats.examples_seen == 4
    assert len(learner.memory) == 3


def test_one_that_was_evicted_is_trained_on_and_not_stored_again(tmp_path: Path) -> None:
    with made(tmp_path / "m.db", capacity=2, eviction="fifo") as learner:
        ids = learner.learn_batch(examples(3)).ids
        again = learner.learn_one(examples(1)[0])
        assert again.ids == ids[:1]
        assert ids[0] not in learner.memory
        assert learner.memory.check().ok


def test_an_id_for_two_examples_is_refused(learner: MemoryOnlineLearner) -> None:
    learner.learn_batch(examples(2))
    before = fingerprint(learner)
    other = OnlineExample(examples(1)[0].id, np.zeros(4, np.float32), 1)
    with pytest.raises(InvalidValue, match=r"'a0-0' names another example already \(episode 1\)"):
        learner.learn_one(other)
    assert fingerprint(learner) == before


def test_examples_without_an_id_are_experiences_of_their_own(learner: MemoryOnlineLearner) -> None:
    nameless = OnlineExample("", np.zeros(4, np.float32), 1)
    first, second = learner.learn_one(nameless), learner.learn_one(nameless)
    assert first.ids != second.ids
    assert learner.sample_replay(1)[0].id == ""


def test_22_an_unmeasured_example_has_no_loss() -> None:
    assert OnlineExample("x", [1.0], 0).last_loss is None


@pytest.mark.parametrize(
    "fields",
    [
        {"level": 0},
        {"level": 8},
        {"level": 1.5},
        {"level": True},
        {"last_loss": -1.0},
        {"last_loss": math.nan},
        {"last_loss": math.inf},
        {"tags": "hard"},
        {"domain": ""},
        {"id": 3},
    ],
)
def test_an_example_is_checked(fields: dict[str, Any]) -> None:
    with pytest.raises(MemstoreError):
        OnlineExample(**{"id": "x", "input": np.zeros(2), "target": np.zeros(1)} | fields)


# learning


@pytest.mark.parametrize("ratio", [0.0, 0.5, 0.7, 1.0, 2.5])
def test_27_all_new_examples_are_learned_and_stored(tmp_path: Path, ratio: float) -> None:
    with made(tmp_path / "m.db", replay_ratio=ratio) as learner:
        for seed in range(3):
            result = learner.learn_batch(examples(10, seed))
            assert len(result.ids) == len(result.losses) == 10
        assert learner.stats.examples_seen == 30
        assert len(learner.memory) == 30
        assert result.loss is not None
        assert result.loss > 0


def test_18_replay_is_added_in_the_ratio_and_may_exceed_one(tmp_path: Path) -> None:
    with made(tmp_path / "m.db", replay_ratio=1.5) as learner:
        assert learner.learn_batch(examples(10)).replayed_ids == ()
        assert len(learner.learn_batch(examples(4, 1)).replayed_ids) == 6
        assert len(learner.learn_batch(examples(20, 2)).replayed_ids) == 14, "no more than are live"
        assert learner.stats.replay_counts == {"a": 20}


@pytest.mark.parametrize("ratio", [0.1, 0.3, 0.5, 0.75, 1.0])
def test_28_one_at_a_time_replays_in_the_ratio_too(tmp_path: Path, ratio: float) -> None:
    with made(tmp_path / "m.db", replay_ratio=ratio) as learner:
        learner.learn_one(examples(1)[0])
        replayed = [len(learner.learn_one(example).replayed_ids) for example in examples(40)]
        assert replayed[0] == 1
        assert sum(replayed) == math.ceil(40 * ratio - 1e-9)


def test_33_no_example_is_replayed_in_the_call_that_brings_it(learner: MemoryOnlineLearner) -> None:
    for seed in range(5):
        result = learner.learn_batch(examples(10, seed))
        assert not set(result.ids) & set(result.replayed_ids)
        assert len(set(result.replayed_ids)) == len(result.replayed_ids)


def test_replayed_losses_are_written_back_with_the_step(learner: MemoryOnlineLearner) -> None:
    learner.learn_batch(examples(10))
    result = learner.learn_batch(examples(10, 1))
    rows = learner.memory.metadata(result.replayed_ids)
    assert [row.loss for row in rows] == list(result.replay_losses)
    assert {row.replay_count for row in rows} == {1}
    assert {row.replay_count for row in learner.memory.metadata(result.ids)} == {0}


def test_the_step_is_one_over_new_and_replayed_together(tmp_path: Path) -> None:
    with made(tmp_path / "m.db", replay_strategy="uniform", replay_ratio=1.0, batch_size=100) as learner:
        learner.learn_batch(examples(5))
        twin = settings().default_model()
        twin.load_state_dict(learner.model.state_dict())
        new = examples(5, 1)
        result = learner.learn_batch(new)
        assert learner.stats.gradient_steps == 2
        old = learner.memory.get_many(result.replayed_ids)
        pairs = [(e.input, e.target) for e in new] + [(e.payload["input"], e.payload["target"]) for e in old]
        order = [index for pair in zip(range(5), range(5, 10), strict=True) for index in pair]
        losses = twin.step(np.stack([pairs[i][0] for i in order]), np.stack([pairs[i][1] for i in order]))
        assert isinstance(learner.model, MLP)
        assert learner.model.digest() == twin.digest()
        np.testing.assert_array_equal(losses[0::2], result.losses)


def test_importance_weights_reach_the_gradient(tmp_path: Path) -> None:
    weights: list[Any] = []

    class Spy(MLP):
        def step(self, inputs: Any, targets: Any, weight: Any = None, *, penalty: Any = None) -> Any:
            weights.append(np.asarray(weight))
            return super().step(inputs, targets, weight, penalty=penalty)

    config = settings(replay_strategy="prioritized_loss", priority_alpha=1.0, beta=1.0, replay_ratio=1.0, batch_size=20)
    with config.open_memory(tmp_path / "m.db") as memory:
        learner = MemoryOnlineLearner(memory, Spy((4, 6, 3)), config)
        learner.learn_batch(examples(10))
        losses = {row.episode_id: row.loss for row in memory.metadata(range(1, 11))}
        result = learner.learn_batch(examples(10, 1))
        replayed = weights[-1][1::2]
        priority = np.array([losses[i] for i in result.replayed_ids], float) + 1e-6
        np.testing.assert_array_equal(weights[-1][0::2], np.ones(10))
        np.testing.assert_allclose(replayed, 1 / priority / np.mean(1 / priority), rtol=1e-9)


@pytest.mark.parametrize("batch_size", [1, 7, 32])
def test_batch_size_bounds_every_gradient_step(tmp_path: Path, batch_size: int) -> None:
    with made(tmp_path / "m.db", replay_ratio=0.5, batch_size=batch_size) as learner:
        learner.learn_batch(examples(20))
        before = learner.stats.gradient_steps
        learner.learn_batch(examples(20, 1))
        assert learner.stats.gradient_steps - before == math.ceil(30 / batch_size)


def test_19_an_empty_batch_does_nothing(learner: MemoryOnlineLearner) -> None:
    learner.learn_batch(examples(3))
    before = fingerprint(learner)
    assert learner.learn_batch([]).loss is None
    assert fingerprint(learner) == before


def test_30_16_every_strategy_learns_from_a_small_memory(tmp_path: Path) -> None:
    for strategy in [None, *memstore.ReplayStrategy]:
        with made(tmp_path / f"{strategy}.db", replay_strategy=strategy, replay_ratio=2.0, capacity=7) as learner:
            for seed in range(4):
                learner.learn_batch(examples(5, seed, domain=str(seed)))
            assert len(learner.memory) == 7
            assert learner.memory.check().ok


# all or nothing


def broken(learner: MemoryOnlineLearner, batch: list[OnlineExample]) -> None:
    before, generator = fingerprint(learner), learner.memory.rng.bit_generator.state
    with pytest.raises(MemstoreError):
        learner.learn_batch(batch)
    assert learner.memory.rng.bit_generator.state == generator
    assert fingerprint(learner) == before


def test_a_refused_batch_changes_nothing(learner: MemoryOnlineLearner) -> None:
    learner.learn_batch(examples(10))
    good = examples(3, 1)
    broken(learner, [*good, OnlineExample("short", np.zeros(3, np.float32), np.int64(0))])
    broken(learner, [OnlineExample("short", np.zeros(3, np.float32), np.int64(0))])
    broken(learner, [*good, OnlineExample("class", np.zeros(4, np.float32), np.int64(3))])
    broken(learner, [*good, OnlineExample("domain", np.zeros(4, np.float32), np.int64(0), tags=("",))])
    broken(learner, [OnlineExample("dtype", np.zeros(4, np.float64), np.int64(0))])


def test_20_a_loss_that_is_not_finite_changes_nothing(learner: MemoryOnlineLearner) -> None:
    learner.learn_batch(examples(10))
    broken(learner, [OnlineExample("nan", np.full(4, np.nan, np.float32), np.int64(0))])
    assert learner.learn_batch(examples(5, 1)).loss is not None


def test_a_commit_that_fails_changes_nothing(learner: MemoryOnlineLearner, monkeypatch: pytest.MonkeyPatch) -> None:
    learner.learn_batch(examples(10))

    def full(*_: Any, **__: Any) -> Any:
        raise memstore.StoreFull("no room")

    with monkeypatch.context() as patch:
        patch.setattr(learner.memory, "extend", full)
        broken(learner, examples(5, 1))
    learner.learn_batch(examples(5, 1))


# statistics


def test_26_statistics(learner: MemoryOnlineLearner) -> None:
    assert (learner.stats.avg_loss, learner.stats.best_loss, learner.stats.current_level) == (None, None, 1)
    first = learner.learn_one(OnlineExample("x", np.zeros(4, np.float32), np.int64(0), "z", 3))
    assert learner.stats.avg_loss == pytest.approx(first.losses[0]), "no bias towards zero"
    losses = list(first.losses)
    for seed in range(15):
        losses += learner.learn_batch(examples(10, seed)).losses
    weights = 0.99 ** np.arange(len(losses))[::-1]
    assert learner.stats.avg_loss == pytest.approx(np.average(losses, weights=weights))
    averages = [np.average(losses[:n], weights=0.99 ** np.arange(n)[::-1]) for n in range(100, 152)]
    assert learner.stats.best_loss == pytest.approx(min(averages))
    assert learner.stats.domain_counts == {"z": 1, "a": 150}
    assert learner.stats.batches_trained == 16
    assert sum(learner.stats.replay_counts.values()) == learner.replay_stats().total_events


def test_26_batches_and_singles_count_alike(tmp_path: Path) -> None:
    with (
        made(tmp_path / "1.db", learning_rate=1e-12) as one,
        made(tmp_path / "2.db", learning_rate=1e-12) as two,
    ):
        batch = examples(120)
        one.learn_batch(batch)
        for example in batch:
            two.learn_one(example)
        assert one.stats.avg_loss == pytest.approx(two.stats.avg_loss)
        assert one.stats.best_loss == pytest.approx(two.stats.best_loss)


# consolidation


def test_consolidation_comes_when_due_and_removes_by_policy(tmp_path: Path) -> None:
    with made(tmp_path / "m.db", consolidation_interval=20, min_importance=0.99, replay_ratio=0.0) as learner:
        learner.learn_batch(examples(12))
        assert not learner.should_consolidate
        assert (learner.progress.scheduler.examples_since, len(learner.memory)) == (12, 12)
        learner.learn_batch(examples(12, 1))
        assert (learner.stats.consolidations, learner.progress.scheduler.examples_since) == (1, 0)
        assert len(learner.memory) == 0
        assert learner.memory.check().ok


def test_consolidate_by_hand(learner: MemoryOnlineLearner) -> None:
    learner.learn_batch(examples(12))
    assert learner.consolidate().removed == 0
    assert learner.consolidate(memstore.RetentionPolicy(max_episodes=5)).removed == 7
    assert (learner.stats.consolidations, learner.progress.scheduler.examples_since) == (2, 0)


# replay by hand


def test_sample_replay_is_bounded(learner: MemoryOnlineLearner) -> None:
    assert learner.sample_replay(5) == []
    learner.learn_batch(examples(4))
    assert len(learner.sample_replay(3)) == 3
    assert len(learner.sample_replay(9)) == 4
    assert learner.sample_replay(0) == []
    with pytest.raises(InvalidValue):
        learner.sample_replay(-1)


def test_sample_by_priority_is_successive_sampling(learner: MemoryOnlineLearner) -> None:
    weights = np.array([1.0, 0.0, 2.0, 5.0])
    draws = [tuple(learner.sample_by_priority(weights, 2).tolist()) for _ in range(20_000)]
    expected = {(i, j): weights[i] / 8 * weights[j] / (8 - weights[i]) for i in (0, 2, 3) for j in (0, 2, 3) if i != j}
    assert set(draws) == set(expected)
    chi = sum((draws.count(pair) - 20_000 * p) ** 2 / (20_000 * p) for pair, p in expected.items())
    assert chi < 20.5, "0.999 quantile for 5 degrees of freedom"


def test_sample_by_priority_edges(learner: MemoryOnlineLearner) -> None:
    assert sorted(learner.sample_by_priority([0.0, 3.0, 1.0], 9).tolist()) == [1, 2], "zero is never drawn"
    assert sorted(learner.sample_by_priority([0.0, 0.0, 0.0], 9).tolist()) == [0, 1, 2], "unless all are"
    assert sorted(learner.sample_by_priority([1e-320, 1e308, 1e-5], 3).tolist()) == [0, 1, 2]
    assert learner.sample_by_priority([], 3).tolist() == []
    for bad in ([1.0, math.nan], [1.0, math.inf], [1.0, -1.0]):
        with pytest.raises(InvalidValue):
            learner.sample_by_priority(bad, 1)
    with pytest.raises(InvalidValue):
        learner.sample_by_priority([1.0], -1)


def test_25_sample_uniform_is_uniform_and_bounded(learner: MemoryOnlineLearner) -> None:
    counts = np.bincount(np.concatenate([learner.sample_uniform(7, 3) for _ in range(7_000)]), minlength=7)
    assert np.sum((counts - 3_000) ** 2 / 3_000) < 22.5
    assert sorted(learner.sample_uniform(3, 9).tolist()) == [0, 1, 2]
    assert learner.sample_uniform(0, 3).tolist() == []
    for total, count in ((-1, 1), (1, -1), (2.5, 1), (3, True)):
        with pytest.raises(InvalidValue):
            learner.sample_uniform(total, count)  # type: ignore[arg-type]


def test_metadata_by_hand(learner: MemoryOnlineLearner) -> None:
    (one, two) = learner.learn_batch(examples(2)).ids
    assert learner.update_replay_metadata(one, 0.25)
    assert not learner.update_replay_metadata(99, 0.25)
    with pytest.raises(InvalidValue):
        learner.update_replay_metadata(one, math.nan)
    example = examples(1, last_loss=0.5)[0]
    learner.add_replay_metadata(example, two)
    learner.add_replay_metadata(examples(1)[0], one)
    assert [row.loss for row in learner.memory.metadata([one, two])] == [0.25, 0.5]
    for measured in (example, examples(1)[0]):
        with pytest.raises(EpisodeNotFound):
            learner.add_replay_metadata(measured, 99)


# state


@pytest.mark.parametrize("strategy", [strategy.value for strategy in memstore.ReplayStrategy])
def test_9_a_resumed_learner_continues_bit_identically(tmp_path: Path, strategy: str) -> None:
    changes = {"replay_strategy": strategy, "checkpoint_every": 1, "capacity": 30, "consolidation_interval": 25}
    batches = [examples(7, seed, domain=str(seed % 3)) for seed in range(12)]

    with made(tmp_path / "straight.db", **changes) as straight:
        for batch in batches:
            straight.learn_batch(batch)
        expected = fingerprint(straight)
    for start in range(0, 12, 4):
        with made(tmp_path / "stopped.db", **changes) as stopped:
            if start:
                stopped.load_state()
            for batch in batches[start : start + 4]:
                stopped.learn_batch(batch)
            stopped.memory.sample(5)  # what was not committed is forgotten
            stopped.model.step(np.ones((1, 4)), np.zeros(1, int))
    with memstore.open(tmp_path / "stopped.db") as memory:
        under_former_names(memory, "latest")
    with made(tmp_path / "stopped.db", **changes) as stopped:
        stopped.load_state()
        again = fingerprint(stopped)
    assert again[:2] == expected[:2]

    def timeless(rows: list[memstore.ReplayMetadata]) -> list[tuple[Any, ...]]:
        return [(row.episode_id, row.loss, row.domain, row.replay_count) for row in rows]

    assert timeless(again[2]) == timeless(expected[2])


def test_a_checkpoint_commits_with_its_batch(tmp_path: Path) -> None:
    with made(tmp_path / "m.db", checkpoint_every=3, checkpoint_name="own") as learner:
        for seed in range(7):
            learner.notes["at"] = seed
            learner.learn_batch(examples(2, seed))
        learner.load_state("own")
        assert learner.stats.batches_trained == 6
        assert learner.notes == {"at": 5}


def test_several_steps_in_one_transaction_commit_together(learner: MemoryOnlineLearner) -> None:
    learner.learn_batch(examples(5))
    learner.save_state()
    before = fingerprint(learner)
    with pytest.raises(KeyboardInterrupt), learner.memory.transaction():
        learner.learn_batch(examples(5, 1))
        learner.learn_batch(examples(5, 2))
        raise KeyboardInterrupt
    learner.load_state()
    assert fingerprint(learner) == before


def test_10_loading_is_all_or_nothing(learner: MemoryOnlineLearner) -> None:
    learner.learn_batch(examples(5))
    learner.save_state("good")
    good = learner.memory.load_checkpoint("good")
    other = MLP((4, 6, 2)).state_dict()
    stats = {name: value for name, value in good["stats"].items() if name != "avg_loss"}
    changes: list[Mapping[str, Any]] = [
        {"format": 99},
        {"model": other},
        {"stats": stats},
        {"config": good["config"] | {"alpha": -1.0}},
        {"config": good["config"] | {"batch_size": 5}},
        {"notes": None},
    ]
    learner.learn_batch(examples(5, 1))
    before, generator = fingerprint(learner), learner.memory.rng.bit_generator.state
    for change in changes:
        learner.memory.rng.random()
        learner.memory.save_checkpoint("bad", good | dict(change))
        learner.memory.rng.bit_generator.state = generator
        with pytest.raises(MemstoreError):
            learner.load_state("bad")
        assert learner.memory.rng.bit_generator.state == generator
    learner.memory.save_checkpoint("foreign", {"weights": np.zeros(3)})
    with pytest.raises(InvalidValue, match="foreign"):
        learner.load_state("foreign")
    with pytest.raises(CheckpointNotFound):
        learner.load_state("none")
    assert learner.memory.rng.bit_generator.state == generator
    assert fingerprint(learner) == before


def test_a_damaged_checkpoint_changes_nothing(tmp_path: Path) -> None:
    """One byte of the stored state is flipped in the file, behind memstore's back."""
    path = tmp_path / "m.db"
    with made(path, checkpoint_every=None) as learner:
        learner.learn_batch(examples(5))
        learner.save_state()
        learner.learn_batch(examples(5, 1))
        before, generator = fingerprint(learner), learner.memory.rng.bit_generator.state
        with contextlib.closing(sqlite3.connect(path)) as conn, conn:
            (data,) = conn.execute("SELECT data FROM checkpoint").fetchone()
            middle = len(data) // 2
            flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            conn.execute("UPDATE checkpoint SET data = ?", (flipped,))
        learner.memory.rng.bit_generator.state = generator
        with pytest.raises(StoreCorrupt, match="checksum"):
            learner.load_state()
        assert learner.memory.rng.bit_generator.state == generator
        assert fingerprint(learner) == before


def test_the_default_model_is_a_model(learner: MemoryOnlineLearner) -> None:
    assert isinstance(learner.model, Model)
    assert not issubclass(memstore.EpisodicMemory, Model)


def test_another_configuration_is_refused_by_name_or_accepted_on_request(
    learner: MemoryOnlineLearner,
) -> None:
    learner.learn_batch(examples(5))
    learner.save_state()
    other = MemoryOnlineLearner(learner.memory, settings().default_model(), settings(replay_ratio=0.9))
    with pytest.raises(ConfigError, match=r"replay_ratio \(stored 0.5, given 0.9\)"):
        other.load_state()
    other.load_state(strict=False)
    assert other.stats == learner.stats
    assert other.config.replay_ratio == 0.9


def test_a_checkpoint_of_another_run_is_not_overwritten(tmp_path: Path) -> None:
    """A script run again that forgets load_state() would replace what it learned by a beginner."""
    with made(tmp_path / "m.db") as learner:
        learner.learn_batch(examples(3))
        trained = fingerprint(learner)
    with made(tmp_path / "m.db") as forgetful:
        for learn in (lambda: forgetful.learn_batch(examples(3, 1)), forgetful.consolidate):
            with pytest.raises(ConfigError, match=r"resume\(\) to go on"):
                learn()
        assert forgetful.resume()
        assert fingerprint(forgetful)[:2] == trained[:2]
        forgetful.learn_batch(examples(3, 1))
    with made(tmp_path / "m.db", checkpoint_name="other") as second:
        assert not second.resume()
        second.learn_batch(examples(3, 2))
        assert second.memory.checkpoints() == ["latest", "other"]
    with made(tmp_path / "m.db", checkpoint_every=None) as third:
        third.learn_batch(examples(3, 3))
        third.save_state()  # said in so many words


def test_a_memory_handed_over_stays_open(tmp_path: Path) -> None:
    with memstore.open(tmp_path / "m.db", strategy=memstore.Uniform()) as memory:
        with MemoryOnlineLearner.with_default_model(settings(replay_strategy=None), memory) as learner:
            learner.learn_batch(examples(3))
            learner.learn_batch(examples(3, seed=1))
        assert len(memory) == 6


def test_regression_learns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((4, 2))
    with made(tmp_path / "m.db", head="regression", layers=(4, 32, 2), learning_rate=0.05) as learner:
        for _ in range(60):
            x = rng.standard_normal((8, 4))
            learner.learn_batch([OnlineExample("", row, row @ weights) for row in x])
        assert learner.stats.avg_loss is not None
        x = rng.standard_normal((50, 4))
        assert learner.model.loss(x, x @ weights).mean() < 0.1 * (x @ weights).var()
