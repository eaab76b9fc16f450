"""The laws of draws, and what they cost, with the window empty, half full and full, while another process writes.

What the replica says of each probability is compared with what the memory says, of every live episode, to 1e-12. Then
what was drawn is held against it: first draws and pairs by chi-square, draws from many snapshots by the probability
integral transform (as in ``tests.sharing.test_law_while_shared``). Costs are counted, not timed.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from memstore import Condition, EpisodicMemory, PrioritizedLoss, Strategy, Uniform, col
from memstore.testing import counting
from tests.engine.elsewhere import Elsewhere
from tests.engine.replica import Facts, Replica
from tests.support.helpers import OpenMemory
from tests.support.laws import Floats, Ints, must_follow, must_refute, plackett_luce, share, tally
from tests.support.windows import ENDLESS, set_window, window

STATES = ("empty", "half full", "full")
ALPHAS = (0.6, 1.0, 0.0, 5.0)
"""The first is that of the buffer, so it needs no view."""

CELLS = 40

states = pytest.mark.parametrize("state", STATES)


class Pair:
    """A memory and its replica; ``windows`` says when the log is folded."""

    def __init__(self, open_memory: OpenMemory, state: str, **settings: Any) -> None:
        self.state = state
        self.settings = {"capacity": 10**5, "eviction": "fifo", "strategy": "prioritized_loss", **settings}
        set_window(1 if state == "empty" else ENDLESS)
        self.memory = open_memory(**self.settings)
        self.replica = Replica(self.settings["capacity"], self.settings["eviction"], seed=7)
        self.count = 0

    def half(self) -> None:
        """The first half is written. From here on nothing is folded, unless everything is."""
        if self.state == "half full":
            set_window(1)
            self.extend([1.0])
            set_window(ENDLESS)
            self.extend([1.0])

    def extend(self, losses: list[float | None], by: Callable[..., Any] | None = None) -> list[int]:
        """Add episodes with these losses in four domains."""
        numbers = range(self.count, self.count + len(losses))
        self.count += len(losses)
        facts = [Facts(i % 10, float(i), i % 100, (), None) for i in numbers]
        domains = [f"d{i % 4}" for i in numbers]
        call = by or self.memory.extend
        given = {"x": np.array([[f.kind + 1.0, 1.0] for f in facts])}
        ids = call(given, domain=domains, loss=losses, level=[f.level for f in facts], timestamp=0.0)
        assert ids.tolist() == self.replica.extend(list(zip(domains, losses, facts, strict=True)))
        found: list[int] = ids.tolist()
        return found

    def update(self, ids: list[int], losses: list[float], by: Callable[..., Any] | None = None) -> None:
        """New losses."""
        (by or self.memory.update)(np.array(ids), loss=losses)
        self.replica.replay(ids, losses, None, None, None)

    def delete(self, ids: list[int]) -> None:
        """Episodes leave."""
        self.memory.delete(np.array(ids))
        self.replica.leave(ids, "deleted", None)


@pytest.fixture
def paired(open_memory: OpenMemory) -> Iterator[Callable[..., Pair]]:
    """Makes a pair. The windows are put back at the end."""
    with window(1):
        yield lambda state, **settings: Pair(open_memory, state, **settings)


# What has happened to the buffer. Each kind leaves some 40 to 50 episodes.


def extremes(pair: Pair) -> None:
    """Losses of every size that a float has, some not measured."""
    pair.extend([0.0, 1e-300, 1.0, 1e12, 1e308, None] * 4)
    pair.half()
    ids = pair.extend([None, 0.0, 5e-324, 1e12, 2.0, 3.0] * 3)
    pair.update(ids[:4], [1e308, 0.0, 1e-300, 1.0])


def spike(pair: Pair) -> None:
    """One loss of 1e12 that is replayed down, among ordinary ones. The others are worth what they are, exactly."""
    ids = pair.extend([1.0 + i / 7 for i in range(30)])
    pair.update([ids[7]], [1e12])
    pair.half()
    pair.update(ids[20:], [2.0] * 10)
    pair.update([ids[7]], [1.0])
    pair.extend([0.5] * 10)
    pair.update([ids[3]], [1e300])
    pair.update([ids[3]], [0.25])


def heavy(pair: Pair) -> None:
    """Log-normal losses of spread 3, all measured anew."""
    rng = np.random.default_rng(3)
    ids = pair.extend(rng.lognormal(0, 3, 40).tolist())
    pair.half()
    pair.update(ids[::2], rng.lognormal(0, 3, 20).tolist())


def dominated(pair: Pair) -> None:
    """One episode has 99 of a hundred parts."""
    ids = pair.extend([1.0] * 40)
    pair.half()
    pair.update(ids[:10], [1.0] * 10)
    pair.update([ids[5]], [(99 * 40.0) ** (1 / 0.6)])


def departed(pair: Pair) -> None:
    """The heaviest have just left, and the oldest by the arrival of others."""
    ids = pair.extend([1.0, 1e12, None, 4.0] * 10)
    pair.half()
    pair.delete(ids[1::4])
    pair.extend([2.0, None, 3.0] * 7)


KINDS = (extremes, spike, heavy, dominated, departed)


def probabilities(memory: EpisodicMemory, alpha: float, **options: Any) -> dict[int, float]:
    """What the memory says of each episode that may be drawn."""
    batch = memory.sample(10**6, strategy=PrioritizedLoss(alpha), exact_probability=True, **options)
    assert batch.probability is not None
    return dict(zip(batch.ids.tolist(), batch.probability.tolist(), strict=True))


def must_say(found: dict[int, float], law: dict[int, float], alpha: float) -> None:
    """Both are the same law, over the same episodes.

    The logarithm of a weight is at most ``alpha * 1024`` in absolute value, rounded to 53 bits on each side.
    """
    close = max(1e-12, alpha * 1024 * 2.0**-50)
    assert found.keys() == law.keys()
    assert math.isclose(math.fsum(found.values()), 1.0, rel_tol=close)
    ids = sorted(law)
    np.testing.assert_allclose([found[i] for i in ids], [law[i] for i in ids], rtol=close, atol=1e-307)


def conditional(law: dict[int, float], passing: set[int]) -> dict[int, float]:
    """The law among those that pass."""
    total = math.fsum(p for i, p in law.items() if i in passing)
    return {i: p / total for i, p in law.items() if i in passing}


@states
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_every_probability(paired: Callable[..., Pair], kind: Callable[[Pair], None], state: str) -> None:
    """Of every live episode, for every exponent, behind conditions, and in whatever handle asks."""
    pair = paired(state, capacity=45)
    kind(pair)
    rows = pair.replica.rows()
    conditions: dict[Condition, Callable[[dict[str, Any]], bool]] = {
        col.domain == "d1": lambda row: row["domain"] == "d1",
        col.loss > 0.9: lambda row: row["loss"] is not None and row["loss"] > 0.9,
        col.replay_count == 0: lambda row: row["replay_count"] == 0,
        col.level >= 20: lambda row: row["level"] >= 20,
    }
    for alpha in ALPHAS:
        law = pair.replica.probability(alpha)
        must_say(probabilities(pair.memory, alpha), law, alpha)
        for condition, passes in conditions.items():
            passing = {row["id"] for row in rows if passes(row)}
            must_say(probabilities(pair.memory, alpha, where=condition), conditional(law, passing), alpha)
    wrong = pair.replica.probability(0.61)
    with pytest.raises(AssertionError):
        must_say(probabilities(pair.memory, 0.6), wrong, 0.6)


@states
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: str(kind.__name__))
def test_first_draws(paired: Callable[..., Pair], kind: Callable[[Pair], None], state: str) -> None:
    pair = paired(state, capacity=45)
    kind(pair)
    for alpha in (0.6, 0.25):
        ids = pair.memory.sample(6000, strategy=PrioritizedLoss(alpha), replacement=True).ids.tolist()
        must_follow(*tally(ids, pair.replica.probability(alpha)))
        must_refute(*tally(ids, pair.replica.probability(0.0)))


@states
def test_pairs_without_replacement(paired: Callable[..., Pair], state: str) -> None:
    """Ordered pairs of six, of which one was a spike, one has nearly everything, and two have just left."""
    pair = paired(state)
    ids = pair.extend([1.0, 1e12, None, 2.0, 3.0, 0.5])
    pair.half()
    left = pair.extend([1e12, 5.0])
    pair.update([ids[1]], [1.0])
    pair.update([ids[3]], [30.0])
    pair.delete(left)
    alive = [row for row in pair.replica.rows() if row["id"] in {*ids}]
    pair.delete([row["id"] for row in pair.replica.rows() if row["id"] not in {*ids}])
    for alpha in (0.6, 0.3):
        law = pair.replica.probability(alpha)
        weight: Floats = np.array([law[row["id"]] for row in alive])
        pairs = plackett_luce(weight, 2)
        drawn = [pair.memory.sample(2, strategy=PrioritizedLoss(alpha)).ids.tolist() for _ in range(900)]
        place = {row["id"]: k for k, row in enumerate(alive)}
        seen = [(place[a], place[b]) for a, b in drawn]
        must_follow(*tally(seen, pairs))
        with_repeats = {(a, b): float(weight[a] * weight[b]) for a, b in itertools.permutations(range(6), 2)}
        total = sum(with_repeats.values())
        must_refute(*tally(seen, {two: p / total for two, p in with_repeats.items()}))


@states
def test_leased_episodes_are_out(paired: Callable[..., Pair], state: str) -> None:
    """Those that are held have no weight in a lease, and nothing else changes. Samples do not notice."""
    pair = paired(state)
    heavy(pair)
    law = pair.replica.probability(0.6)
    held = set(pair.memory.lease(5, duration=1e6).ids.tolist())
    must_say(probabilities(pair.memory, 0.6), law, 0.6)
    free = conditional(law, law.keys() - held)
    drawn = []
    for _ in range(400):
        batch = pair.memory.lease(1, duration=1e6)
        drawn += batch.ids.tolist()
        pair.memory.release(batch)
    must_follow(*tally(drawn, free))
    must_refute(*tally(drawn, {i: 1 / len(free) for i in free}))


@contextmanager
def writing(elsewhere: Elsewhere, url: str, entries: int) -> Iterator[None]:
    """The other process has the buffer open."""
    elsewhere.call("window", entries)
    elsewhere.call("open", url, seed=4)
    yield
    elsewhere.call("close")


@pytest.mark.parametrize("entries", [1, 40, ENDLESS])
def test_while_another_process_writes(
    paired: Callable[..., Pair], url: str, elsewhere: Elsewhere, entries: int
) -> None:
    """It adds, evicts, makes spikes, takes them back, and folds, between one draw and the next."""
    rng, coin = np.random.default_rng(entries % 1000), np.random.default_rng(1)
    pair = paired("full", capacity=60)
    set_window(entries)
    pair.extend(rng.lognormal(0, 2, 50).tolist())
    alphas = (0.6, 1.3)
    right: dict[float, list[Floats]] = {alpha: [] for alpha in alphas}
    wrong: dict[float, list[Floats]] = {alpha: [] for alpha in alphas}
    spiked: list[int] = []
    with writing(elsewhere, url, entries):
        for step in range(45):
            if step % 3 == 0:
                pair.extend(rng.lognormal(0, 2, 7).tolist(), lambda *a, **k: elsewhere.call("extend", *a, **k))
            else:
                ids = rng.choice([row["id"] for row in pair.replica.rows()], 12, replace=False).tolist()
                losses = rng.lognormal(0, 2, 12).tolist()
                ids, losses = [*ids, *spiked], [*losses, *(1.0 for _ in spiked)]
                spiked = ids[:1] if step % 3 == 1 else []
                losses[: len(spiked)] = [1e12] * len(spiked)
                pair.update(ids, losses, lambda *a, **k: elsewhere.call("update", *a, **k))
            for alpha in alphas:
                must_say(probabilities(pair.memory, alpha), pair.replica.probability(alpha), alpha)
                drawn = pair.memory.sample(100, strategy=PrioritizedLoss(alpha), replacement=True).ids
                right[alpha].append(transformed(drawn, pair.replica.probability(alpha), coin))
                wrong[alpha].append(transformed(drawn, pair.replica.probability(alpha + 0.3), coin))
    for alpha in alphas:
        must_follow(in_cells(right[alpha]), np.full(CELLS, 1 / CELLS))
        must_refute(in_cells(wrong[alpha]), np.full(CELLS, 1 / CELLS))


def in_cells(parts: list[Floats]) -> Ints:
    """How many of these numbers between 0 and 1 are in each of equal cells."""
    return np.bincount((np.concatenate(parts) * CELLS).astype(np.int64), minlength=CELLS)


def transformed(drawn: Any, law: dict[int, float], coin: np.random.Generator) -> Floats:
    """Uniform on [0, 1) if the ids were drawn by this law: its cumulative sum in the order of weight, randomised."""
    order = sorted(law, key=lambda i: (law[i], i))
    weight = share(np.array([law[i] for i in order]))
    place = {i: k for k, i in enumerate(order)}
    rows = np.array([place[i] for i in drawn.tolist()])
    below = np.concatenate([[0.0], np.cumsum(weight)])[rows]
    uniform: Floats = np.minimum(below + coin.random(len(rows)) * weight[rows], 1 - 1e-12)
    return uniform


# What it costs.


def grown(pair: Pair, losses: Floats) -> list[int]:
    """Thousands of episodes, half of them before the window began."""
    half = len(losses) // 2
    ids = pair.extend(losses[:half].tolist())
    pair.half()
    ids += pair.extend(losses[half:].tolist())
    pair.update(ids[::3], losses[::3].tolist())
    return ids


def spiked(pair: Pair) -> None:
    """A spike that is replayed down."""
    ids = grown(pair, np.random.default_rng(1).lognormal(0, 1, 3000))
    pair.update(ids[:3], [1e12] * 3)
    pair.update(ids[:3], [1.0] * 3)


def tailed(pair: Pair) -> None:
    """Log-normal losses of spread 3."""
    grown(pair, np.random.default_rng(2).lognormal(0, 3, 3000))


def ruled(pair: Pair) -> None:
    """One episode has 99 of a hundred parts at the buffer's exponent."""
    ids = grown(pair, np.ones(3000))
    pair.update(ids[:1], [(99 * 3000.0) ** (1 / 0.6)])


def emptied(pair: Pair) -> None:
    """A third has just left."""
    ids = grown(pair, np.random.default_rng(4).lognormal(0, 1, 3000))
    pair.delete(ids[100:1100])


ONE_PERCENT: dict[str, Any] = {"where": col.level == 7}
DRAWS: dict[str, tuple[int, Strategy, dict[str, Any]]] = {
    "by loss": (32, PrioritizedLoss(0.6), {"beta": 0.5}),
    "another exponent": (32, PrioritizedLoss(1.3), {"beta": 0.5}),
    "a domain": (16, PrioritizedLoss(0.6), {"where": col.domain == "d1"}),
    "a loss": (16, PrioritizedLoss(0.6), {"where": col.loss > 1.5}),
    "one of a hundred": (4, PrioritizedLoss(0.6), ONE_PERCENT),
    "one of a hundred, another exponent": (4, PrioritizedLoss(0.8), ONE_PERCENT),
    "uniform": (128, Uniform(), {}),
    "replayed": (32, Uniform(), {"where": col.replay_count >= 1}),
}


@states
@pytest.mark.parametrize("kind", [spiked, tailed, ruled, emptied], ids=lambda kind: str(kind.__name__))
def test_no_draw_scans(paired: Callable[..., Pair], kind: Callable[[Pair], None], state: str) -> None:
    """After the first use of a view, with changes in between: no scan, no list, and at most two rounds."""
    pair = paired(state)
    kind(pair)
    dice = np.random.default_rng(6)
    for name, (count, strategy, options) in DRAWS.items():
        if kind is ruled and "loss" in str(options.get("where", "")):
            continue  # a single episode passes
        pair.memory.sample(count, strategy=strategy, **options)
        for _ in range(4):
            ids = dice.choice([row["id"] for row in pair.replica.rows()[-500:]], 20).tolist()
            pair.update(ids, dice.lognormal(0, 0.5, 20).tolist())
            pair.extend([1.0, None])
            with counting() as counts:
                batch = pair.memory.sample(count, strategy=strategy, **options)
            assert len(batch) == count, name
            assert (counts.scans, counts.listed) == (0, 0), (name, counts)
            assert counts.rounds <= 2, (name, counts)


def test_the_counts_can_tell(open_memory: OpenMemory) -> None:
    """Where most are wanted, draws are finished from a list; and a new condition on facts is a scan."""
    memory = open_memory()
    memory.extend({"x": np.zeros(300)}, loss=1.0, level=3)
    with counting() as counts:
        memory.sample(200, strategy=PrioritizedLoss(0.6))
    assert counts.listed == 1
    with counting() as counts:
        memory.sample(3, where=col.level == 3)
    assert counts.scans == 1
