"""The Fisher diagonal against its definition; the learner's use of it; what survives a restart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memstore.errors import InvalidValue
from memstore.learner import EWC, MLP, MemoryOnlineLearner, OnlineExample, OnlineLearnerConfig
from memstore.learner.models.ewc import fisher_diagonal

CONFIG = OnlineLearnerConfig(
    layers=(4, 3), learning_rate=0.1, capacity=100, ewc=True, ewc_lambda=2.0, ewc_decay=0.5, consolidation_interval=10
)


def data(count: int, seed: int = 0) -> tuple[Any, Any]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((count, 4)), rng.integers(0, 3, count)


def examples(count: int, seed: int = 0) -> list[OnlineExample]:
    return [OnlineExample(f"{seed}-{i}", x, y) for i, (x, y) in enumerate(zip(*data(count, seed), strict=True))]


def test_the_fisher_diagonal_is_the_mean_square_and_not_the_square_of_the_mean() -> None:
    """For softmax regression the gradient of one example is x (p - onehot): closed form."""
    model, (x, y) = MLP((4, 3), seed=1), data(30)
    logits = model.predict(x)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    error = p - np.eye(3)[y]
    fisher = fisher_diagonal(model, x, y)
    np.testing.assert_allclose(fisher["w0"], (x**2).T @ (error**2) / 30, rtol=1e-12)
    np.testing.assert_allclose(fisher["b0"], (error**2).mean(axis=0), rtol=1e-12)
    squared_mean = np.square(model.gradients(x, y)[1]["w0"])
    assert not np.allclose(fisher["w0"], squared_mean, rtol=0.1)


def test_online_decay_and_centre() -> None:
    model, (x, y), (u, v) = MLP((4, 3), learning_rate=0.1), data(20), data(20, 1)
    one = EWC.start(3.0, 0.25).after_consolidation(model, x, y)
    first = fisher_diagonal(model, x, y)
    model.step(x, y)
    two = one.after_consolidation(model, u, v)
    expected = fisher_diagonal(model, u, v)["w0"] + 0.25 * first["w0"]
    np.testing.assert_allclose(two.fisher["w0"], expected, rtol=1e-15)
    np.testing.assert_array_equal(two.centre["w0"], model.state_dict()["parameters"]["w0"])
    assert (two.consolidations, two.samples_used) == (2, 40)
    penalty = two.penalty()
    assert penalty is not None
    np.testing.assert_array_equal(penalty.stiffness["b0"], 3.0 * two.fisher["b0"])
    model.step(x, y)
    assert not np.array_equal(two.centre["w0"], model.state_dict()["parameters"]["w0"]), "a copy, not a view"


def test_before_the_first_consolidation_nothing_is_penalised() -> None:
    fresh = EWC.start(3.0, 0.5)
    assert fresh.penalty() is None
    assert fresh.stats().is_active is False
    assert fresh.stats().param_count == 0


def test_34_batches_feed_the_fisher(tmp_path: Path) -> None:
    """In the origin learning by batches left it empty, and said it was active."""
    with MemoryOnlineLearner.with_default_model(CONFIG, tmp_path / "m.db") as learner:
        learner.learn_batch(examples(9))
        assert learner.progress.ewc is not None and not learner.progress.ewc.stats().is_active
        learner.learn_batch(examples(9, 1))
        stats = learner.progress.ewc.stats()
        assert stats.is_active and stats.fisher_mean > 0
        # Drawn from the memory as it was before the new examples entered.
        assert (stats.consolidations, stats.samples_used, stats.param_count) == (1, 9, 15)
        assert 0 <= stats.fisher_min <= stats.fisher_mean <= stats.fisher_max


def test_the_penalty_reaches_the_step(tmp_path: Path) -> None:
    """A very strong one keeps the weights where the consolidation found them; none lets them go."""
    moved = []
    for strength in (1e12, 0.0):
        config = OnlineLearnerConfig.from_dict(CONFIG.to_dict() | {"ewc_lambda": strength})
        with MemoryOnlineLearner.with_default_model(config, tmp_path / f"{strength}.db") as learner:
            learner.learn_batch(examples(12))
            learner.consolidate()
            before = learner.model.state_dict()["parameters"]["w0"]
            learner.learn_batch(examples(5, 1))
            moved.append(float(np.abs(learner.model.state_dict()["parameters"]["w0"] - before).max()))
    assert moved[0] < 1e-9 < 1e-3 < moved[1]


def test_a_consolidation_by_hand_of_an_empty_memory_estimates_nothing(tmp_path: Path) -> None:
    with MemoryOnlineLearner.with_default_model(CONFIG, tmp_path / "m.db") as learner:
        learner.consolidate()
        assert learner.progress.ewc is not None and learner.progress.ewc.consolidations == 0
        assert learner.stats.consolidations == 1


def test_integrate_takes_extra_steps_over_an_even_sample(tmp_path: Path) -> None:
    """35: in the origin it was a counter. Domains are replayed alike, however unequal; losses are written back."""
    config = OnlineLearnerConfig.from_dict(CONFIG.to_dict() | {"integrate_steps": 4, "replay_ratio": 0.0})
    config = OnlineLearnerConfig.from_dict(config.to_dict() | {"batch_size": 6, "consolidation_interval": 1000})
    with MemoryOnlineLearner.with_default_model(config, tmp_path / "m.db") as learner:
        rare = [OnlineExample(f"r{i}", x, y, domain="rare") for i, (x, y) in enumerate(zip(*data(3, 9), strict=True))]
        learner.learn_batch(examples(57))
        learner.learn_batch(rare)
        steps = learner.stats.gradient_steps
        learner.consolidate()
        assert learner.stats.gradient_steps == steps + 4
        counts = {row.episode_id: row.replay_count for row in learner.memory.metadata(range(1, 61))}
        assert sum(counts.values()) == 24
        assert sum(counts[i] for i in range(58, 61)) == 12, "half of every draw"
        assert learner.memory.stats().total_events == 24


def test_it_survives_a_restart(tmp_path: Path) -> None:
    with MemoryOnlineLearner.with_default_model(CONFIG, tmp_path / "m.db") as learner:
        for seed in range(4):
            learner.learn_batch(examples(6, seed))
        assert learner.progress.ewc is not None
        before = learner.progress.ewc.stats()
    with MemoryOnlineLearner.with_default_model(CONFIG, tmp_path / "m.db") as learner:
        learner.load_state()
        assert learner.progress.ewc is not None
        assert learner.progress.ewc.stats() == before
        assert before.consolidations == 2


@pytest.mark.parametrize("damage", ["missing", "shape", "names", "no dict"])
def test_a_damaged_part_is_refused_whole(tmp_path: Path, damage: str) -> None:
    with MemoryOnlineLearner.with_default_model(CONFIG, tmp_path / "m.db") as learner:
        learner.learn_batch(examples(6))
        learner.learn_batch(examples(6, 1))
        state = learner.memory.load_checkpoint("latest")
        match damage:
            case "missing":
                del state["ewc"]["decay"]
            case "shape":
                state["ewc"]["fisher"]["w0"] = np.zeros((2, 2))
            case "names":
                state["ewc"]["centre"]["other"] = state["ewc"]["centre"].pop("w0")
            case _:
                state["ewc"]["fisher"] = [1, 2]
        learner.memory.save_checkpoint("bad", state)
        before = (learner.model.state_dict()["parameters"]["w0"].tobytes(), learner.progress)
        with pytest.raises(InvalidValue):
            learner.load_state("bad")
        assert (learner.model.state_dict()["parameters"]["w0"].tobytes(), learner.progress) == before


def test_a_diverged_model_is_not_consolidated() -> None:
    model, (x, _) = MLP((4, 3), head="regression"), data(3)
    with np.errstate(all="ignore"), pytest.raises(InvalidValue, match="not finite"):
        EWC.start(1.0, 1.0).after_consolidation(model, np.full_like(x, 1e200), np.zeros((3, 3)))
