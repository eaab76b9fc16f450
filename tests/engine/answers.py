"""Everything that a memory answers, compared with the replica."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from memstore import EpisodeNotFound, EpisodicMemory, PrioritizedLoss, ReplayEvent, col, count, maximum, mean, minimum
from memstore.queries.columns import Condition
from tests.engine.replica import Event, Replica
from tests.support.asking import holds

Row = dict[str, Any]

CONDITIONS: tuple[Condition, ...] = (
    col.loss > 1,
    col.loss <= 0.5,
    col.loss.is_missing(),
    col.lowest_loss < 0.3,
    col.rise > 0,
    col.replay_count == 0,
    col.replay_count >= 2,
    col.last_replayed_at.is_known(),
    col.domain == "d1",
    col.level >= 2,
    col.tags.has("even"),
    col.age <= 20,
    (col.domain == "d0") & (col.loss > 0.5) | ~(col.replay_count >= 1),
    col.key.is_known() & (col.lowest_loss >= 0.1),
)
ORDERS = ("loss", "lowest_loss", "rise", "replay_count", "timestamp", "age", "last_replayed_at")


def must_agree(memory: EpisodicMemory, replica: Replica, dice: random.Random, *, questions: int = 3) -> None:
    """Compare all that a memory tells. Of the questions that are dear, the dice choose some."""
    rows = replica.rows()
    assert len(memory) == len(rows)
    _episodes(memory, replica, rows, dice)
    _history(memory, replica, dice)
    _stats(memory, replica, rows)
    for ask in dice.sample(QUESTIONS, questions):
        ask(memory, replica, rows, dice)
    report = memory.check()
    assert report.problems == () and report.episodes == len(rows)


def must_see(memory: EpisodicMemory, replica: Replica) -> None:
    """Compare what a look from the side tells: episodes with their metadata, and the history."""
    rows = replica.rows()
    assert len(memory) == len(rows)
    assert [_row(episode) for episode in memory.query().all()] == rows
    _history(memory, replica, random.Random(1))


def _row(episode: Any) -> Row:
    names = ("id", "domain", "timestamp", "level", "key", "extra", "age", "loss", "lowest_loss", "rise")
    return {name: getattr(episode, name) for name in (*names, "replay_count", "last_replayed_at", "tags")}


def _episodes(memory: EpisodicMemory, replica: Replica, rows: list[Row], dice: random.Random) -> None:
    assert [_row(episode) for episode in memory.query().all()] == rows
    some = dice.sample(rows, min(6, len(rows)))
    found = memory.get_many([row["id"] for row in some])
    assert [_row(episode) for episode in found] == some
    for episode in found:
        assert episode.payload["x"].tolist() == [episode.extra["kind"] + 1.0, 1.0]
    told = memory.metadata([row["id"] for row in some])
    names = ("loss", "domain", "timestamp", "replay_count", "last_replayed_at")
    assert [[getattr(m, name) for name in names] for m in told] == [[row[name] for name in names] for row in some]
    gone = [i + replica.first for i in replica.facts if i not in replica.live]
    for number in [*dice.sample(gone, min(2, len(gone))), replica.first + replica.inserted + 1]:
        assert number not in memory
        with pytest.raises(EpisodeNotFound):
            memory.get(number)
        with pytest.raises(EpisodeNotFound):
            memory.metadata([number])


def _event(event: ReplayEvent) -> Event:
    at = event.at if event.what == "replayed" else None
    shared = (event.id, event.domain or "", event.what, event.reason, event.step, event.strategy)
    return Event(*shared, event.loss_before, event.loss_after, at)


def _history(memory: EpisodicMemory, replica: Replica, dice: random.Random) -> None:
    found = memory.history()
    replica.settle([_event(event) for event in found])
    expected = replica.events
    numbers = [event.event for event in found]
    assert numbers == sorted(set(numbers))
    wanted = [i + replica.first for i in dice.sample(sorted(replica.facts), min(3, len(replica.facts)))]
    assert [_event(event) for event in memory.history(episode=wanted)] == [e for e in expected if e.id in wanted]
    assert [_event(event) for event in memory.history(limit=5)] == expected[-5:]


def _stats(memory: EpisodicMemory, replica: Replica, rows: list[Row]) -> None:
    stats = memory.stats(exact=True)
    losses = sorted(row["loss"] for row in rows if row["loss"] is not None)
    assert (stats.buffer_size, stats.capacity, stats.eviction) == (len(rows), replica.capacity, replica.eviction)
    assert (stats.total_inserted, stats.total_evicted) == (replica.inserted, replica.inserted - len(rows))
    assert stats.total_replays == sum(row["replay_count"] for row in rows)
    assert (stats.total_events, stats.unmeasured) == (replica.replays, len(rows) - len(losses))
    assert stats.avg_loss == pytest.approx(sum(x / len(losses) for x in losses), rel=1e-9, abs=1e-300)
    assert stats.max_priority == replica.top
    assert stats.loss_quantiles_exact and stats.loss_quantiles == {
        f"{q:.0%}": losses[max(math.ceil(q * len(losses)) - 1, 0)] for q in (0.05, 0.25, 0.5, 0.75, 0.95) if losses
    }
    assert sum(n for _, _, n in stats.loss_histogram) == len(losses)
    domains = [row["domain"] for row in rows]
    assert stats.domain_distribution == {name: domains.count(name) for name in set(domains)}
    assert stats.leased == len(replica.held)


def _filtered(memory: EpisodicMemory, replica: Replica, rows: list[Row], dice: random.Random) -> None:
    for condition in dice.sample(CONDITIONS, 2):
        passing = [row["id"] for row in rows if holds(condition, row)]
        assert memory.query().filter(condition).ids().tolist() == passing, str(condition)
        assert memory.query().filter(condition).count() == len(passing)


def _ordered(memory: EpisodicMemory, replica: Replica, rows: list[Row], dice: random.Random) -> None:
    name = dice.choice(ORDERS)
    known = [row for row in rows if row[name] is not None]
    missing = [row["id"] for row in rows if row[name] is None]
    ascending = [row["id"] for row in sorted(known, key=lambda row: row[name])] + missing
    falling = [row["id"] for row in sorted(known, key=lambda row: -row[name])] + missing
    most = dice.choice((3, 10**6))
    assert memory.query().order_by(name).limit(most).ids().tolist() == ascending[:most], name
    assert memory.query().order_by(f"-{name}").limit(most).ids().tolist() == falling[:most], name


def _grouped(memory: EpisodicMemory, replica: Replica, rows: list[Row], dice: random.Random) -> None:
    asked = (
        memory.query()
        .group_by(col.domain)
        .aggregate(n=count(), least=minimum(col.lowest_loss), most=maximum(col.loss), replays=mean(col.replay_count))
    )
    expected = []
    for name in sorted({row["domain"] for row in rows}):
        own = [row for row in rows if row["domain"] == name]
        known = [row for row in own if row["loss"] is not None]
        least = min((row["lowest_loss"] for row in known), default=None)
        most = max((row["loss"] for row in known), default=None)
        expected.append((name, len(own), least, most, pytest.approx(sum(r["replay_count"] for r in own) / len(own))))
    assert [(g.domain, g.n, g.least, g.most, g.replays) for g in asked.all()] == expected


def _recalled(memory: EpisodicMemory, replica: Replica, rows: list[Row], dice: random.Random) -> None:
    low = float(dice.randrange(40))
    between = [row for row in rows if low <= row["timestamp"] <= low + 9]
    found = memory.recall_temporal(low, low + 9)
    assert [_row(episode) for episode in found] == sorted(between, key=lambda row: (row["timestamp"], row["id"]))
    tagged = [row for row in rows if "odd" in row["tags"]]
    assert [_row(episode) for episode in memory.recall_by_tags(["odd"])] == tagged
    if rows:
        nearest = memory.recall(np.array([1.0, 1.0]), on="x", limit=4)
        distance = [float(row["extra"]["kind"]) for row in rows]
        assert [match.distance for match in nearest] == sorted(distance)[:4]
        assert {match.episode.id for match in nearest} <= {row["id"] for row in rows}
    keys = [*replica.by_key, "unknown"]
    assert memory.ids_of(keys) == [*replica.by_key.values(), None]


def _events(memory: EpisodicMemory, replica: Replica, rows: list[Row], dice: random.Random) -> None:
    what = dice.choice(("replayed", "evicted", "deleted", "consolidated", "exhausted", "resized"))
    expected = [event.id for event in replica.events if event.what == what]
    assert [event.id for event in memory.query("history").filter(col.what == what).all()] == expected
    asked = memory.query("history").group_by(col.what).aggregate(n=count())
    kinds = [event.what for event in replica.events]
    assert {g.what: g.n for g in asked.all()} == {kind: kinds.count(kind) for kind in set(kinds)}
    live = {row["id"]: row for row in rows}
    asked = memory.query("history").filter(col.replay_count >= 2)
    expected = [e.id for e in replica.events if e.id in live and live[e.id]["replay_count"] >= 2]
    assert [event.id for event in asked.all()] == expected


def _trends(memory: EpisodicMemory, replica: Replica, rows: list[Row], dice: random.Random) -> None:
    shares = memory.replay_share()
    assert {s.domain: s.replays for s in shares if s.replays} == dict(replica.tally)
    assert {s.domain: s.episodes for s in shares if s.episodes} == memory.stats().domain_distribution
    targets = [share.target for share in shares if share.target is not None]
    assert len(targets) in (0, len(shares)) and math.isclose(
        sum(targets), 1.0 if rows and targets else 0.0, abs_tol=1e-9
    )
    assert sum(int(trend.replays.sum()) for trend in memory.loss_trend()) == replica.tally.total()
    for found, name in ((memory.hardest(3), "loss"), (memory.most_replayed(3), "replay_count")):
        best = sorted((row for row in rows if row[name]), key=lambda row: (-row[name], row["id"]))
        assert [e.id for e in found if getattr(e, name)] == [row["id"] for row in best[:3]]
    never = [row["id"] for row in rows if row["replay_count"] == 0]
    assert [episode.id for episode in memory.never_replayed(3)] == never[:3]
    rises = sorted((row["rise"] for row in rows if row["rise"]), reverse=True)
    assert [episode.rise for episode in memory.forgotten(3)] == rises[:3]


def _law(memory: EpisodicMemory, replica: Replica, rows: list[Row], dice: random.Random) -> None:
    if not rows:
        return
    alpha = dice.choice((0.6, 1.0, 1.7))
    batch = memory.sample(10**6, strategy=PrioritizedLoss(alpha), exact_probability=True)
    assert batch.probability is not None and math.isclose(math.fsum(batch.probability.tolist()), 1.0, rel_tol=1e-9)
    law = replica.probability(alpha)
    np.testing.assert_allclose(batch.probability, [law[i] for i in batch.ids.tolist()], rtol=1e-9, atol=1e-307)
    assert sorted(batch.ids.tolist()) == [row["id"] for row in rows]


QUESTIONS: tuple[Callable[[EpisodicMemory, Replica, list[Row], random.Random], None], ...] = (
    _filtered,
    _ordered,
    _grouped,
    _recalled,
    _events,
    _trends,
    _law,
)
"""Which questions are asked of a memory after a step."""


def told(memory: EpisodicMemory) -> list[Any]:
    """All that a memory tells, to the last bit, comparable with that of another handle. It must be sound."""
    assert memory.check().problems == ()
    stats = memory.stats(exact=True)
    names = ("buffer_size", "capacity", "eviction", "total_inserted", "total_evicted", "total_replays", "total_events")
    counted = [getattr(stats, name) for name in (*names, "unmeasured", "avg_loss", "max_priority", "loss_quantiles")]
    found: list[Any] = [counted, stats.domain_distribution, stats.leased, stats.revision]
    episodes = memory.query().all()
    found += [[_row(episode) for episode in episodes], memory.history(), memory.replay_share()]
    ids = [episode.id for episode in episodes]
    found += [memory.metadata(ids), [_row(episode) for episode in memory.get_many(ids)]]
    for options in VIEWS:
        batch = memory.sample(10**6, strategy="prioritized_loss", exact_probability=True, **options)
        order = np.argsort(batch.ids)
        assert batch.probability is not None
        found.append([batch.ids[order].tolist(), batch.probability[order].tobytes(), batch.loss[order].tobytes()])
    return found


VIEWS: tuple[dict[str, Any], ...] = (
    {"alpha": 0.6},
    {"alpha": 1.3},
    {"alpha": 1.3, "where": "loss > 1"},
    {"alpha": 0.6, "where": "level >= 2"},
)
"""Draws of which a handle keeps something for the next: sums, and lists of what passes."""
