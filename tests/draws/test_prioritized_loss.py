"""First draws of PrioritizedLoss: P(i) = (loss_i + epsilon) ** alpha / sum, never measured as the highest ever."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

import memstore
from memstore import EpisodicMemory, PrioritizedLoss
from tests.support.laws import Floats, Ints, must_follow, must_refute, share, weights
from tests.support.models import Model, act, payload

DRAWS = 25_000
ALPHAS = (0.0, 0.6, 1.0, 2.0)
UNMEASURED = 5


def drawn(memory: EpisodicMemory, ids: Ints, *, alpha: float | None, count: int = DRAWS) -> Ints:
    """How often each id comes up, with replacement."""
    batch = memory.sample(count, alpha=alpha, replacement=True)
    assert np.isin(batch.ids, ids).all()
    return np.bincount(np.searchsorted(ids, batch.ids), minlength=len(ids))


def losses(kind: str, count: int = 300) -> Floats:
    """Measured losses, then some never measured."""
    rng = np.random.default_rng(17)
    values = {
        "equal": np.full(count, 0.7),
        "lognormal": rng.lognormal(0, 1.5, count),
        "twelve orders": 10 ** rng.uniform(-6, 6, count),
        "zero": np.zeros(count),
        "half zero": np.where(np.arange(count) % 2, 0.0, rng.lognormal(-3, 1, count)),
    }[kind]
    values[-UNMEASURED:] = np.nan
    return values


KINDS = ("equal", "lognormal", "twelve orders", "zero", "half zero")


@pytest.mark.parametrize("kind", KINDS)
def test_every_alpha_on_fresh_losses(path: str, kind: str) -> None:
    loss, epsilon = losses(kind), 0.01
    with memstore.open(path, strategy=PrioritizedLoss(0.6), epsilon=epsilon, seed=1) as memory:
        ids = memory.extend(
            payload(len(loss)),
            loss=[None if np.isnan(x) else x for x in loss.tolist()],
            domain=[f"d{i % 3}" for i in range(len(loss))],
        )
        highest = float(np.nanmax(loss)) + epsilon
        # Alpha 0.6 uses the stored sums to choose the number of candidates, the others do not.
        for alpha in ALPHAS if kind not in ("equal", "zero") else ALPHAS[1::2]:
            counts = drawn(memory, ids, alpha=alpha)
            must_follow(counts, share(weights(loss, alpha=alpha, epsilon=epsilon, highest=highest)))
            # At larger exponents twelve orders of magnitude leave a handful of rows to draw.
            if kind not in ("equal", "zero") and (alpha <= 0.6 or kind != "twelve orders"):
                must_refute(counts, share(weights(loss, alpha=1.1 * alpha + 0.1, epsilon=epsilon, highest=highest)))


def test_before_any_measurement_all_are_equal(path: str) -> None:
    with memstore.open(path, strategy="prioritized_loss", seed=2) as memory:
        ids = memory.extend(payload(50))
        counts = drawn(memory, ids, alpha=1.0)
        must_follow(counts, np.full(50, 0.02))
        must_refute(counts, share(np.where(np.arange(50) < 25, 1.0, 1.25)))


@dataclass(frozen=True)
class Churned:
    """A memory after some hundred random writes (thousands of rows), and the dict that went the same way."""

    memory: EpisodicMemory
    model: Model

    def law(self, *, alpha: float, **wrong: float) -> Floats:
        known = {"alpha": alpha, "epsilon": self.model.epsilon, "highest": self.model.top} | wrong
        return share(weights(self.model.loss, **known))


@pytest.fixture(scope="module", params=["lowest_loss", "reservoir"])
def churned(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Churned]:
    path = str(tmp_path_factory.mktemp("churned") / "run.db")
    model = Model(capacity=250, eviction=request.param, epsilon=0.25, seed=3)
    rng = np.random.default_rng(5)
    with memstore.open(
        path, strategy=PrioritizedLoss(0.6), epsilon=0.25, capacity=250, eviction=request.param, seed=3
    ) as memory:
        for _ in range(250):
            act(memory, model, rng, tame=True)
        # The highest loss ever measured is one that no episode has any more.
        worst = model.ids[np.nanargmax(model.loss)].item()
        for loss in (2 * model.top, 0.3):
            memory.update([worst], loss=loss)
            model.update([worst], [loss])
        yield Churned(memory, model)


def test_the_history_was_hard(churned: Churned) -> None:
    model = churned.model
    measured = ~np.isnan(model.loss)
    assert model.inserted > 1500 and model.inserted > 4 * len(model.live)
    assert sum(e.replays for e in model.live.values()) > 20
    assert (~measured).sum() >= 3 and model.top > 2 * np.nanmax(model.loss)


@pytest.mark.parametrize("alpha", ALPHAS)
def test_every_alpha_after_a_long_history(churned: Churned, alpha: float) -> None:
    model = churned.model
    counts = drawn(churned.memory, model.ids, alpha=alpha)
    must_follow(counts, churned.law(alpha=alpha))
    must_refute(counts, churned.law(alpha=1.1 * alpha + 0.2))
    if alpha >= 0.6:
        # Epsilon forgotten; never measured as one, or as the highest loss that is still live; every candidate accepted.
        if model.eviction != "lowest_loss":  # which leaves no loss small enough
            must_refute(counts, churned.law(alpha=alpha, epsilon=1e-9))
        must_refute(counts, churned.law(alpha=alpha, highest=1.0))
        must_refute(counts, churned.law(alpha=alpha, highest=float(np.nanmax(model.loss)) + 0.05))
        measured = ~np.isnan(model.loss)
        half_octaves = np.exp2(np.ceil(2 * np.log2(model.loss + model.epsilon)) / 2)
        must_refute(counts, share(np.where(measured, half_octaves, model.top) ** alpha))


def test_stored_sums_follow_a_new_alpha(churned: Churned) -> None:
    memory, model = churned.memory, churned.model
    for alpha in (2.0, 1.0, 0.6):
        memory.configure(alpha=alpha)
        assert memory.strategy == PrioritizedLoss(alpha)
        batch = memory.sample(len(model.live) + 1)
        by_id = np.argsort(batch.ids)
        assert (batch.ids[by_id] == model.ids).all()
        assert batch.probability is not None
        np.testing.assert_allclose(batch.probability[by_id], churned.law(alpha=alpha), rtol=1e-9)
        must_follow(drawn(memory, model.ids, alpha=None), churned.law(alpha=alpha))


def test_one_dominating_loss(path: str) -> None:
    loss = np.full(500, 1e-3)
    loss[123] = 1e6
    with memstore.open(path, strategy=PrioritizedLoss(0.6), seed=4) as memory:
        ids = memory.extend(payload(500), loss=loss)
        for alpha in ALPHAS:
            law = share(weights(loss, alpha=alpha, epsilon=1e-6, highest=1e6))
            counts = drawn(memory, ids, alpha=alpha)
            # At alpha 1 and 2 the others come up less than once: two cells say all there is to say.
            two = np.array([counts[123], counts.sum() - counts[123]])
            if law[123] < 0.999:
                must_follow(counts, law)
                wrong = share(weights(loss, alpha=alpha + 0.05, epsilon=1e-6, highest=1e6))
                must_refute(two, np.array([wrong[123], 1 - wrong[123]]))
            else:
                assert two[1] <= 10
            # Without replacement the rest of the batch is uniform over the others.
            rest = np.concatenate([memory.sample(40, alpha=alpha).ids for _ in range(50)])
            others = np.delete(np.bincount(rest, minlength=501)[1:], 123)
            must_follow(others, np.full(499, 1 / 499))
            assert alpha == 0 or np.bincount(rest)[124] == 50
