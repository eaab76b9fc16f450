"""``batch.probability`` and ``batch.weight`` are the formulas, computed here from what was stored."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pytest

import memstore
from memstore import (
    Batch,
    DomainBalanced,
    EpisodicMemory,
    Mixed,
    PrioritizedLoss,
    PrioritizedRecency,
    Strategy,
    Uniform,
)
from tests.support.laws import Floats, share, weights
from tests.support.models import Model, act, payload

STORED = 0.7
EVERY_ROW = 10**6


@dataclass(frozen=True)
class Known:
    """A memory after a random history, and the model that knows what is in it."""

    memory: EpisodicMemory
    model: Model

    def probability(self, strategy: Strategy) -> Floats:
        """By id, for every live row."""
        model = self.model
        match strategy:
            case Uniform():
                return np.full(len(model.ids), 1 / len(model.ids))
            case PrioritizedLoss():
                return share(weights(model.loss, alpha=strategy.alpha, epsilon=model.epsilon, highest=model.top))
            case PrioritizedRecency():
                return share(np.power(model.age, -strategy.alpha, dtype=np.float64))
            case DomainBalanced():
                names, sizes = np.unique(model.domain, return_counts=True)
                given = strategy.weights or dict.fromkeys(names.tolist(), 1.0)
                total = sum(given.get(name, 0.0) for name in names.tolist())
                each = {n: given.get(n, 0.0) / total / size for n, size in zip(names.tolist(), sizes, strict=True)}
                return np.array([each[name] for name in model.domain])
            case Mixed():
                return np.asarray(sum(v * self.probability(part) for part, v in strategy.components.items()))
        raise AssertionError(strategy)

    def of(self, batch: Batch, values: Floats) -> Floats:
        """The values of the rows of a batch."""
        return values[np.searchsorted(self.model.ids, batch.ids)]

    def all(self, strategy: Strategy, **options: object) -> Batch:
        return self.memory.sample(EVERY_ROW, strategy=strategy, **options)  # type: ignore[arg-type]


def build(path: str, *, dense: bool) -> Known:
    memory = memstore.open(path, strategy=PrioritizedLoss(STORED), eviction="fifo", capacity=150, epsilon=0.05, seed=1)
    model = Model(capacity=150, eviction="fifo", epsilon=0.05)
    rng = np.random.default_rng(8)
    for _ in range(80):
        act(memory, model, rng, tame=True)
    losses = rng.lognormal(0, 1, 70).tolist()
    memory.extend(payload(70), domain="d0", loss=losses)
    for loss in losses:
        model.add("d0", loss)
    gone = model.ids[[3, 50, 51, -1]]
    memory.delete(gone)
    model.delete(gone.tolist())
    if dense:  # no holes among the ids
        memory.extend(payload(150), loss=[None, *np.linspace(0, 3, 149).tolist()], domain=["d0"] * 100 + ["d1"] * 50)
        for i, loss in enumerate([None, *np.linspace(0, 3, 149).tolist()]):
            model.add("d0" if i < 100 else "d1", loss)
    return Known(memory, model)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    found = build(str(tmp_path_factory.mktemp("holes") / "run.db"), dense=False)
    yield found
    found.memory.close()


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Known]:
    found = build(str(tmp_path_factory.mktemp("dense") / "run.db"), dense=True)
    yield found
    found.memory.close()


WITHOUT_SCAN: list[Strategy] = [
    Uniform(),
    PrioritizedLoss(STORED),
    PrioritizedLoss(0.0),
    DomainBalanced(),
    DomainBalanced({"d0": 3, "d1": 1, "d2": 0.5, "d3": 0.1}),
    Mixed({PrioritizedLoss(STORED): 0.4, Uniform(): 0.6}),
    Mixed({DomainBalanced(): 1, PrioritizedLoss(STORED): 2, Uniform(): 3}),
    PrioritizedLoss(1.0),
    PrioritizedLoss(2.0),
    Mixed({PrioritizedLoss(1.0): 0.5, Uniform(): 0.5}),
]
WITH_SCAN: list[Strategy] = [
    PrioritizedRecency(1.0),
    PrioritizedRecency(0.5),
    Mixed({PrioritizedRecency(2.0): 0.5, PrioritizedLoss(STORED): 0.5}),
]


@pytest.mark.parametrize("strategy", [*WITHOUT_SCAN, *WITH_SCAN], ids=str)
def test_probability_is_the_formula(known: Known, strategy: Strategy) -> None:
    expected = known.probability(strategy)
    exact = known.all(strategy, exact_probability=True)
    assert len(exact) == len(known.model.ids) and exact.probability is not None
    np.testing.assert_allclose(exact.probability, known.of(exact, expected), rtol=1e-9)
    assert exact.probability.sum() == pytest.approx(1)
    if strategy in WITH_SCAN:
        assert known.memory.sample(5, strategy=strategy).probability is None
    for plain in (known.all(strategy), known.memory.sample(5, strategy=strategy, exact_probability=True)):
        assert plain.probability is not None, "a draw of all lists all"
        np.testing.assert_allclose(plain.probability, known.of(plain, expected), rtol=1e-9)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 2.0])
def test_recency_without_holes_needs_no_scan(dense: Known, alpha: float) -> None:
    strategy = PrioritizedRecency(alpha)
    batch = dense.all(strategy)
    assert batch.probability is not None
    np.testing.assert_allclose(batch.probability, dense.of(batch, dense.probability(strategy)), rtol=1e-9)
    off_by_one = share(np.power(dense.model.age + 1, -alpha, dtype=np.float64))
    assert not np.allclose(batch.probability, dense.of(batch, off_by_one), rtol=1e-9)


def test_excluded_domains_have_no_probability(known: Known) -> None:
    strategy = DomainBalanced({"d0": 1, "d2": 3})
    batch = known.all(strategy, beta=1.0)
    assert set(batch.domain.tolist()) == {"d0", "d2"} and batch.probability is not None
    np.testing.assert_allclose(batch.probability, known.of(batch, known.probability(strategy)), rtol=1e-9)
    assert batch.probability.sum() == pytest.approx(1) and batch.weight.max() == pytest.approx(1)


@pytest.mark.parametrize("beta", [0.4, 1.0])
@pytest.mark.parametrize("strategy", [*WITHOUT_SCAN, *WITH_SCAN], ids=str)
def test_weight_is_the_formula(known: Known, strategy: Strategy, beta: float) -> None:
    probability = known.probability(strategy)
    batch = known.memory.sample(40, strategy=strategy, beta=beta, replacement=True)
    expected = known.of(batch, (probability / probability.min()) ** -beta)
    # For Mixed p_min is the share-weighted sum of minima: the true one when at most one component is not uniform.
    parts = [] if not isinstance(strategy, Mixed) else [p for p in strategy.components if p != Uniform()]
    if len(parts) <= 1:
        np.testing.assert_allclose(batch.weight, expected, rtol=1e-9)
        assert not np.allclose(batch.weight, expected**1.1) or strategy in (Uniform(), PrioritizedLoss(0.0))
    else:
        factor = batch.weight / expected
        assert np.ptp(factor) < 1e-9 and 0 < factor[0] <= 1 + 1e-9
    assert (batch.weight <= 1 + 1e-9).all() and (batch.weight > 0).all()

    batch = known.memory.sample(40, strategy=strategy, beta=beta, normalize="batch")
    drawn = known.of(batch, probability)
    np.testing.assert_allclose(batch.weight, (drawn / drawn.min()) ** -beta, rtol=1e-9)
    assert batch.weight.max() == pytest.approx(1)

    assert (known.memory.sample(40, strategy=strategy).weight == 1).all()
    assert (known.memory.sample(40, strategy=strategy, beta=0.0, normalize="batch").weight == 1).all()


@pytest.mark.parametrize(
    "strategy",
    [
        Mixed({DomainBalanced({"d0": 1}): 0.5, Uniform(): 0.5}),
        Mixed({DomainBalanced({"d0": 1, "d1": 1}): 0.5, PrioritizedLoss(STORED): 0.5}),
        Mixed({DomainBalanced({"d0": 1}): 0.5, DomainBalanced({"d1": 1, "d0": 1}): 0.5}),
    ],
    ids=str,
)
def test_weights_stay_below_one_where_a_component_leaves_rows_out(known: Known, strategy: Strategy) -> None:
    probability = known.probability(strategy)
    batch = known.memory.sample(60, strategy=strategy, beta=1.0, replacement=True)
    factor = batch.weight * known.of(batch, probability) / probability[probability > 0].min()
    assert np.ptp(factor) < 1e-9 and 0 < factor[0] <= 1 + 1e-9
    assert (batch.weight <= 1 + 1e-9).all()


def test_the_smallest_probability_counts_rows_never_measured_and_of_zero_loss(path: str) -> None:
    with memstore.open(path, strategy=PrioritizedLoss(1.0), epsilon=0.5, seed=1) as memory:
        memory.extend(payload(4), loss=[1.5, 3.5, 7.5, None])
        weight = {i: w for b in [memory.sample(9, beta=1.0)] for i, w in zip(b.ids.tolist(), b.weight, strict=True)}
        assert weight == pytest.approx({1: 1.0, 2: 0.5, 3: 0.25, 4: 0.25})
        memory.update([2], loss=0.0)
        weight = {i: w for b in [memory.sample(9, beta=1.0)] for i, w in zip(b.ids.tolist(), b.weight, strict=True)}
        assert weight == pytest.approx({1: 0.25, 2: 1.0, 3: 0.0625, 4: 0.0625})
    with memstore.open(path, buffer="unmeasured", strategy=PrioritizedLoss(1.0)) as memory:
        memory.extend(payload(4))
        assert (memory.sample(9, beta=1.0).weight == 1).all()


@pytest.mark.parametrize(
    "strategy",
    [
        PrioritizedLoss(STORED),
        PrioritizedLoss(1.0),
        PrioritizedRecency(0.8),
        DomainBalanced(),
        Mixed({PrioritizedLoss(STORED): 0.5, Uniform(): 0.5}),
    ],
    ids=str,
)
def test_weights_remove_the_bias(known: Known, strategy: Strategy) -> None:
    """E[w f] / E[w] is the mean over the buffer at beta = 1, and a biased one at beta = 0 and 0.5.

    The estimate is a ratio of means of n independent draws; its error over its standard error (delta method) is
    normal, so beyond 5 with probability 6e-7.
    """
    probability = known.probability(strategy)
    value = np.log(probability) + np.sin(np.arange(len(probability)))  # goes with the probability, and more
    batch = known.memory.sample(30_000, strategy=strategy, beta=1.0, replacement=True)
    drawn = known.of(batch, value)

    def deviation(weight: Floats) -> float:
        estimate = (weight * drawn).sum() / weight.sum()
        error = np.sqrt(((weight * (drawn - estimate)) ** 2).sum()) / weight.sum()
        return float(abs(estimate - value.mean()) / error)

    assert deviation(batch.weight) < 5
    assert deviation(np.ones(len(batch))) > 5 and deviation(batch.weight**0.5) > 5
    # And E[w] itself is n * p_min (times what p_min was taken too small).
    smallest = (batch.weight * known.of(batch, probability))[0]
    error = batch.weight.std() / np.sqrt(len(batch))
    assert abs(batch.weight.mean() - smallest * len(probability)) < 5 * error
