"""Draws follow their law while other processes add, evict and update.

The law is computed with SQL, in the snapshot that is drawn from. Each draw is turned into a number that is uniform on
[0, 1) whatever the law was (the randomised probability integral transform: the law's cumulative sum below the row
drawn, plus a random part of the row's own probability); so draws from hundreds of snapshots are tested together.

Seeds are fixed, but what the other processes do in which order is not; a right library fails a comparison with
probability ``FALSE_ALARM``, 1e-6. There are about 60.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import pytest
from sqlalchemy import text

from memstore import DomainBalanced, EpisodicMemory, Mixed, PrioritizedLoss, PrioritizedRecency, Uniform
from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.views import View
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.draws.knowledge import Knowledge
from memstore.draws.laws import AgeLaw
from memstore.draws.pool import Pool, Request
from memstore.draws.strategies import Strategy
from memstore.draws.weighted import Masses
from tests.sharing.records import offer
from tests.sharing.workers import churn, varied
from tests.support.helpers import FRESH, Child, OpenMemory
from tests.support.laws import Floats, Ints, LawViolatedError, must_follow, must_refute, share, weights

EPSILON = 0.05
CAPACITY = 700
CELLS = 40
SETTINGS: dict[str, Any] = {
    "strategy": PrioritizedLoss(0.6),
    "epsilon": EPSILON,
    "capacity": CAPACITY,
    "eviction": "fifo",
}
STRATEGIES: dict[str, Strategy] = {
    "loss, stored sums": PrioritizedLoss(0.6),
    "loss, another alpha": PrioritizedLoss(1.3),
    "uniform": Uniform(),
    "recency": PrioritizedRecency(0.8),
}


def pool(snapshot: Snapshot) -> Pool:
    """The snapshot as strategies take it, without a condition."""
    return Pool.of(snapshot, None, Knowledge(), keep=False)


@dataclass(frozen=True)
class Others:
    """The processes that write meanwhile."""

    permits: Any
    committed: Any

    def wait(self, commits: int) -> None:
        """Return after this many more commits of theirs; one more is then on its way."""
        for _ in range(commits + 1):
            self.permits.release()
        for _ in range(commits):
            assert self.committed.acquire(timeout=60), "the others have stopped"
        while self.committed.acquire(block=False):
            pass


@pytest.fixture
def memory(open_memory: OpenMemory) -> EpisodicMemory:
    """Full, with measured and never-measured episodes in five domains."""
    memory = open_memory(**SETTINGS)
    memory.extend(**offer(0, range(CAPACITY)) | {"loss": varied(np.random.default_rng(1), CAPACITY)})
    return memory


@pytest.fixture
def others(memory: EpisodicMemory, url: str) -> Iterator[Others]:
    """Two processes that write until the end of the test."""
    context = FRESH
    stop, permits, committed = context.Event(), context.Semaphore(0), context.Semaphore(0)
    children = [Child(churn, url, 1 + i, stop, permits, committed) for i in range(2)]
    everyone = Others(permits, committed)
    everyone.wait(3)
    yield everyone
    stop.set()
    for _ in range(2):
        permits.release()
    assert sum(child.result() for child in children) > 80


@dataclass
class Scan:
    """Every live row of one snapshot, in id order, read with SQL alone."""

    ids: Ints
    loss: Floats
    domain: Ints
    top: float
    inserted: int

    def law(self, strategy: Strategy, **wrong: float) -> Floats:
        """Probability of each row in one draw."""
        alpha = wrong.get("alpha", getattr(strategy, "alpha", 0.0))
        if isinstance(strategy, PrioritizedLoss):
            return share(weights(self.loss, alpha=alpha, epsilon=EPSILON, highest=self.top))
        if isinstance(strategy, PrioritizedRecency):
            return share((self.inserted + 1.0 - self.ids) ** -alpha)
        assert isinstance(strategy, Uniform)
        return np.full(len(self.ids), 1 / len(self.ids)) if not wrong else share(self.ids - self.ids[0] + 300.0)

    @cached_property
    def orders(self) -> dict[str, Ints]:
        """Orders of the rows, each of which would show another mistake."""
        return {
            "by id": np.arange(len(self.ids)),
            "by loss": np.argsort(np.nan_to_num(self.loss, nan=1e300), kind="stable"),
            "by domain": np.argsort(self.domain, kind="stable"),
        }


def scan(s: Snapshot) -> Scan:
    """What the snapshot holds, past the library's own copy of it."""
    rows = s.conn.execute(
        text(
            "SELECT m.episode_id, m.loss, e.domain_id FROM live_replay_metadata m "
            "JOIN episode e ON e.id = m.episode_id ORDER BY m.episode_id"
        )
    ).all()
    ids, loss, domain = zip(*rows, strict=True)
    top, inserted = s.conn.execute(text("SELECT high_water, inserted FROM buffer")).one()
    measured = np.array([np.nan if x is None else x for x in loss])
    return Scan(np.array(ids), measured, np.array(domain), top, inserted)


def transformed(law: Floats, order: Ints, rows: Ints, part: Floats) -> Floats:
    """The integral transform of draws of ``rows``, with the law's rows taken in this order."""
    below = np.empty(len(law))
    below[order] = np.cumsum(law[order]) - law[order]
    return np.clip(below[rows] + part * law[rows], 0, np.nextafter(1, 0))


@dataclass
class Sample:
    """Transformed draws of many snapshots."""

    numbers: dict[str, list[Floats]] = field(default_factory=lambda: defaultdict(list))

    def add(self, name: str, law: Floats, at: Scan, rows: Ints, part: Floats) -> None:
        """Take up draws that should follow this law."""
        for how, order in at.orders.items():
            self.numbers[f"{name}, {how}"].append(transformed(law, order, rows, part))

    def tested(self, test: Callable[[Ints, Floats], None], name: str) -> None:
        """Hold the numbers against uniform cells."""
        for how in [key for key in self.numbers if key.startswith(f"{name}, by")]:
            numbers = np.concatenate(self.numbers[how])
            counts = np.bincount((numbers * CELLS).astype(np.int64), minlength=CELLS)
            try:
                test(counts, np.full(CELLS, 1 / CELLS))
            except LawViolatedError as exc:
                raise LawViolatedError(f"{how}: {exc}") from exc

    def names(self) -> list[str]:
        """What was taken up."""
        return list(dict.fromkeys(key.rpartition(", by")[0] for key in self.numbers))

    def must_follow(self, name: str) -> None:
        """In every order."""
        self.tested(must_follow, name)

    def must_be_refuted(self, name: str) -> None:
        """In one order at least."""
        with pytest.raises(LawViolatedError):
            self.must_follow(name)


def places(at: Scan, drawn: Rows) -> Ints:
    """Rows of the scan that were drawn; their losses must be those of the scan."""
    where = np.searchsorted(at.ids, drawn.ids)
    found: Ints = np.minimum(where, len(at.ids) - 1)
    assert (at.ids[found] == drawn.ids).all(), "drawn, but not live in the snapshot"
    np.testing.assert_array_equal(at.loss[found], drawn.loss)
    return found


def watch(memory: EpisodicMemory, others: Others, snapshots: int, draw: Callable[[Snapshot], None]) -> None:
    """Draw in many snapshots; others commit between any two of them, and while every second one is open."""
    revisions: set[int] = set()

    def work(s: Snapshot) -> None:
        if len(revisions) % 2:
            others.wait(2)
        revisions.add(s.state.counters.revision)
        draw(s)

    for _ in range(snapshots):
        others.wait(1)
        memory._session.read(work)
    assert len(revisions) > 0.9 * snapshots, "hardly anything changed meanwhile"


def test_one_snapshot_held_open(memory: EpisodicMemory, others: Others) -> None:
    """Thousands of draws from one snapshot, while what it shows is long gone for everybody else."""
    rng = np.random.default_rng(1)
    counts: dict[str, Ints] = {}

    def work(snapshot: Snapshot) -> Scan:
        before = scan(snapshot)
        for name in STRATEGIES:
            counts[name] = np.zeros(len(before.ids), np.int64)
        for _ in range(10):
            others.wait(20)
            for name, strategy in STRATEGIES.items():
                drawn = strategy.draw(pool(snapshot), Request(2500, rng, replacement=True)).episodes
                counts[name] += np.bincount(places(before, drawn), minlength=len(before.ids))
        after = scan(snapshot)
        for column in ("ids", "loss", "domain", "top", "inserted"):
            np.testing.assert_array_equal(getattr(before, column), getattr(after, column))
        return before

    then = memory._session.read(work)
    now = memory._session.read(scan)
    both = np.intersect1d(then.ids, now.ids, return_indices=True)[1:]
    assert now.inserted > then.inserted + 100
    for name, strategy in STRATEGIES.items():
        must_follow(counts[name], then.law(strategy))
        must_refute(counts[name], then.law(strategy, alpha=getattr(strategy, "alpha", 0) + 0.2))
        if isinstance(strategy, PrioritizedLoss) and len(both[0]) > 100:
            must_refute(counts[name][both[0]], share(now.law(strategy)[both[1]]))


def test_a_moving_buffer(memory: EpisodicMemory, others: Others) -> None:
    """Draws of every strategy in each of many snapshots, and the probabilities they report.

    With replacement; without it (successive sampling: each in proportion to weight among those left by earlier draws);
    by domains (quotas differ by one, the odd slot favours nobody, uniform inside); mixed (each part its own law).
    """
    rng, coin = np.random.default_rng(2), np.random.default_rng(3)
    right, wrong = Sample(), Sample()
    odd = np.zeros(5, np.int64)
    parts: list[Strategy] = [PrioritizedLoss(1.3), PrioritizedRecency(0.8), Uniform()]
    mixed = Mixed(dict.fromkeys(parts, 1 / 3))

    def draw(snapshot: Snapshot) -> None:
        at = scan(snapshot)
        for name, strategy in STRATEGIES.items():
            alpha = getattr(strategy, "alpha", 0.0)
            law, steeper = at.law(strategy), at.law(strategy, alpha=alpha + 0.15)
            drawn = strategy.draw(pool(snapshot), Request(160, rng, replacement=True, exact=True))
            rows, part = places(at, drawn.episodes), coin.random(160)
            right.add(name, law, at, rows, part)
            wrong.add(name, steeper, at, rows, part)
            probability = drawn.odds.log2_probability
            assert probability is not None
            np.testing.assert_allclose(np.exp2(probability), law[rows], rtol=1e-9)

            rows = places(at, strategy.draw(pool(snapshot), Request(16, rng)).episodes)
            assert len(np.unique(rows)) == 16
            steeper = at.law(strategy, alpha=alpha + 0.8)
            wrong.add(f"{name}, no repeats", steeper, at, rows, coin.random(16))
            for k in range(16):
                right.add(f"{name}, no repeats", law / law.sum(), at, rows[k : k + 1], coin.random(1))
                law[rows[k]] = 0.0

        request = Request(96, rng, replacement=True)
        rows, part = places(at, mixed.draw(pool(snapshot), request).episodes), coin.random(96)
        for k, component in enumerate(parts):
            mine = slice(32 * k, 32 * k + 32)
            right.add(f"part {k}", at.law(component), at, rows[mine], part[mine])
            wrong.add(f"part {k}", at.law(parts[k - 1]), at, rows[mine], part[mine])

        rows, part = places(at, DomainBalanced().draw(pool(snapshot), request).episodes), coin.random(96)
        domain = np.unique(at.domain, return_inverse=True)[1]
        quotas = np.bincount(domain[rows], minlength=5)
        assert sorted(quotas.tolist()) == [19, 19, 19, 19, 20]
        odd[quotas == 20] += 1
        for d in range(5):
            inside, of_rows = domain == d, domain[rows] == d
            right.add("domains", share(inside * 1.0), at, rows[of_rows], part[of_rows])
            newer = inside * (at.ids - at.ids[0] + 400.0)
            wrong.add("domains", share(newer), at, rows[of_rows], part[of_rows])

    watch(memory, others, 120, draw)
    must_follow(odd, np.full(5, 0.2))
    for name in wrong.names():
        wrong.must_be_refuted(name)
    for name in right.names():
        right.must_follow(name)
    assert len(right.names()) == 2 * len(STRATEGIES) + len(parts) + 1


def old_counts(patch: pytest.MonkeyPatch) -> None:
    """Every second block seems nearly empty."""
    of = View.of

    def doubled(copy: Copy, law: Any, test: Any = None) -> View:
        view = of(copy, law, test)
        return replace(view, live=np.where(np.arange(len(view.live)) % 2, view.live, np.minimum(view.live, 3)))

    patch.setattr(View, "of", doubled)


def old_sums(patch: pytest.MonkeyPatch) -> None:
    """Every block weighs as much as any other."""
    of = Masses.of

    def level(view: View, top: float) -> Masses:
        masses = of(view, top)
        some = np.diff(masses.ends, prepend=0.0) > 0
        return replace(masses, ends=np.cumsum(some) * (masses.measured / some.sum()))

    patch.setattr(Masses, "of", level)


def old_ages(patch: pytest.MonkeyPatch) -> None:
    """Ages counted from where the buffer stood forty insertions ago."""
    of = AgeLaw.of
    patch.setattr(AgeLaw, "of", lambda s, alpha: replace(of(s, alpha), newest=of(s, alpha).newest + 40))


MISTAKES = {old_counts: "uniform", old_sums: "loss, another alpha", old_ages: "recency"}


def test_the_checks_can_fail(memory: EpisodicMemory, others: Others) -> None:
    """With a broken library in this process the same draws are refuted."""
    rng, coin = np.random.default_rng(8), np.random.default_rng(9)
    for mistake, name in MISTAKES.items():
        broken = Sample()

        def draw(snapshot: Snapshot, name: str = name, broken: Sample = broken) -> None:
            strategy, at = STRATEGIES[name], scan(snapshot)
            drawn = strategy.draw(pool(snapshot), Request(256, rng, replacement=True)).episodes
            broken.add(name, at.law(strategy), at, places(at, drawn), coin.random(256))

        with pytest.MonkeyPatch.context() as patch:
            mistake(patch)
            watch(memory, others, 80, draw)
        broken.must_be_refuted(name)
