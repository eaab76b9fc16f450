"""The replay history: every loss update and every departure, for as long as the buffer's policy says."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

import memstore
from memstore import ConfigError, History, col
from memstore.episodes.log import slot_of
from tests.support.helpers import Damage, OpenMemory, Sql, in_child, rows

FACTS = ("id", "what", "reason", "step", "strategy", "loss_before", "loss_after")


def facts(events: list[memstore.ReplayEvent], *names: str) -> list[tuple[Any, ...]]:
    return [tuple(getattr(event, name) for name in names or FACTS) for event in events]


def test_a_replay_is_an_event_with_what_the_draw_knew(open_memory: OpenMemory) -> None:
    memory = open_memory(capacity=50, strategy="prioritized_loss", consumer="trainer")
    memory.extend(rows(20), domain=["a", "b"] * 10, loss=np.linspace(1, 4, 20))
    batch = memory.sample(8, beta=0.5)
    memory.update(batch, loss=batch.loss / 2, step=7)
    events = memory.history()
    assert batch.probability is not None
    assert facts(events) == [
        (i, "replayed", None, 7, "prioritized_loss", before, before / 2)
        for i, before in zip(batch.ids.tolist(), batch.loss.tolist(), strict=True)
    ]
    assert [event.probability for event in events] == batch.probability.tolist()
    assert [event.weight for event in events] == batch.weight.tolist()
    assert [event.domain for event in events] == batch.domain.tolist()
    assert {(event.consumer, event.at) for event in events} == {("trainer", events[0].at)}
    assert [event.event for event in events] == list(range(1, 9))

    memory.update([3, 3, 99, 4], loss=[0.5, 0.25, 1.0, 0.125])
    known = {event.id: event.loss_after for event in events}
    before = [known.get(i, float(np.linspace(1, 4, 20)[i - 1])) for i in (3, 4)]
    assert facts(memory.history(limit=3)) == [
        (3, "replayed", None, None, None, before[0], 0.5),
        (3, "replayed", None, None, None, 0.5, 0.25),
        (4, "replayed", None, None, None, before[1], 0.125),
    ]
    assert {(event.probability, event.weight) for event in memory.history(limit=3)} == {(None, None)}
    assert [m.loss for m in memory.metadata([3, 4])] == [0.25, 0.125]
    summary = memory.query().filter(col.id == 3).all()[0]
    assert (summary.lowest_loss, summary.rise) == (0.25, 0.0)


POLICIES = ["fifo", "lowest_loss", "largest_domain", "reservoir", "reservoir_loss"]


@pytest.mark.parametrize("policy", POLICIES)
def test_who_is_evicted_says_so(open_memory: OpenMemory, policy: str) -> None:
    """Those too who leave within the batch they came in, and those whom a reservoir turns away."""
    memory = open_memory(capacity=10, eviction=policy, seed=3)
    for count in (7, 1, 1, 5, 25, 1):
        domains = [("a", "b", "a", "a", "c")[i % 5] for i in range(count)]
        memory.extend(rows(count), loss=np.arange(count) / 3, domain=domains)
        gone = memory.history()
        live = set(memory.query().ids().tolist())
        inserted = memory.stats().total_inserted
        assert {event.id for event in gone} == set(range(1, inserted + 1)) - live
        assert len(gone) == inserted - len(live), "nobody leaves twice"
    assert {(event.what, event.reason, event.loss_after) for event in gone} == {("evicted", policy, None)}


def test_whoever_is_refused_has_no_history(open_memory: OpenMemory) -> None:
    memory = open_memory(capacity=2, eviction="none")
    memory.extend(rows(2))
    with pytest.raises(memstore.MemoryFull):
        memory.extend(rows(1))
    assert memory.history() == []


def test_every_way_to_leave_has_its_name(open_memory: OpenMemory) -> None:
    memory = open_memory(capacity=40, eviction="fifo", max_replays=2, consumer="me")
    memory.extend(rows(20), loss=np.linspace(0, 1, 20), timestamp=list(range(20)))
    memory.extend({"x": np.ones((2, 4), np.float32), "number": np.array([7, 7])}, loss=9.0, timestamp=50.0)
    memory.delete([1, 2, 2, 77])
    memory.update([3, 3], loss=[0.5, 0.6], step=4)
    policy = memstore.RetentionPolicy(
        max_age=10, min_importance=0.2, consolidate_similar=0.0, max_episodes=9, recency=0, use=0
    )
    kept = memory.consolidate(policy, now=14.5)
    memory.configure(capacity=4)
    gone = [event for event in memory.history() if event.what != "replayed"]
    assert {(event.consumer, event.loss_after, event.probability) for event in gone} == {("me", None, None)}
    reasons = ("too_old", "unimportant", "similar", "over_count")
    wanted: dict[Any, int] = {("consolidated", name): getattr(kept, name) for name in reasons if getattr(kept, name)}
    wanted |= {("deleted", None): 2, ("exhausted", "max_replays"): 1, ("resized", "fifo"): kept.kept - 4}
    assert Counter((event.what, event.reason) for event in gone) == wanted
    assert kept.too_old and kept.similar and kept.over_count
    assert facts(memory.history(episode=3), "what", "step", "loss_before", "loss_after") == [
        ("replayed", 4, pytest.approx(2 / 19), 0.5),
        ("replayed", 4, 0.5, 0.6),
        ("exhausted", 4, 0.6, None),
    ]


def _lived(handles: list[memstore.EpisodicMemory], dice: random.Random) -> list[tuple[Any, ...]]:
    """A random life by several consumers, and its events as plain Python tells them."""
    loss: dict[int, float | None] = {}
    domain: dict[int, str] = {}
    told: list[tuple[Any, ...]] = []
    for step in range(40):
        action, memory = dice.random(), dice.choice(handles)
        who = memory.consumer
        if action < 0.4 or not loss:
            count = dice.randint(1, 6)
            losses = [dice.choice([None, round(dice.random(), 2)]) for _ in range(count)]
            domains = [dice.choice("abc") for _ in range(count)]
            ids = memory.extend(rows(count), loss=losses, domain=domains).tolist()
            loss.update(zip(ids, losses, strict=True))
            domain.update(zip(ids, domains, strict=True))
            while len(loss) > 25:
                first = min(loss)
                told.append((first, domain[first], "evicted", None, loss.pop(first), None, who))
        elif action < 0.9:
            ids = dice.choices(list(loss), k=dice.randint(1, 8))
            measured = [round(dice.random(), 2) for _ in ids]
            memory.update([*ids, 10**6], loss=[*measured, 1.0], step=step)
            for i, after in zip(ids, measured, strict=True):
                told.append((i, domain[i], "replayed", step, loss[i], after, who))
                loss[i] = after
        else:
            ids = sorted(dice.sample(list(loss), min(3, len(loss))))
            memory.delete(ids)
            told += [(i, domain[i], "deleted", None, loss.pop(i), None, who) for i in ids]
    return told


def _questions(dice: random.Random, events: list[memstore.ReplayEvent]) -> dict[str, Any]:
    """Arguments of ``history`` at random, most of which some event answers."""
    one, other = dice.sample(events, 2)
    first = dice.randrange(40)
    possible: dict[str, Any] = {
        "episode": dice.choice([one.id, [one.id, other.id, 10**6], dice.sample(range(1, 300), 200)]),
        "domain": dice.choice([one.domain, "nowhere"]),
        "consumer": dice.choice([one.consumer, "nobody"]),
        "steps": dice.choice([first, (first, first + dice.randrange(15))]),
        "since": one.at + dice.choice([0.0, 1e-6]),
        "until": other.at - dice.choice([0.0, 1e-6]),
        "limit": dice.choice([1, 3, 1000]),
    }
    return {name: possible[name] for name in dice.sample(sorted(possible), dice.choice([1, 1, 2, 3]))}


def _answers(events: list[memstore.ReplayEvent], asked: dict[str, Any]) -> list[memstore.ReplayEvent]:
    """What ``history`` must answer, decided here."""
    steps = asked.get("steps", (0, 0))
    low, high = steps if isinstance(steps, tuple) else (steps, steps)
    passes: dict[str, Any] = {
        "episode": lambda event: event.id in np.atleast_1d(asked["episode"]).tolist(),
        "domain": lambda event: event.domain == asked["domain"],
        "consumer": lambda event: event.consumer == asked["consumer"],
        "steps": lambda event: event.step is not None and low <= event.step <= high,
        "since": lambda event: event.at >= asked["since"],
        "until": lambda event: event.at <= asked["until"],
        "limit": lambda event: True,
    }
    found = [event for event in events if all(passes[name](event) for name in asked)]
    return found[-asked.get("limit", len(events)) :]


def test_a_random_life_is_told_as_it_was(open_memory: OpenMemory) -> None:
    for seed in range(2):
        dice = random.Random(seed)
        settings: dict[str, Any] = {"buffer": f"life {seed}", "capacity": 25, "eviction": "fifo"}
        memory = open_memory(**settings, consumer="one")
        told = _lived([memory, open_memory(**settings, consumer="two")], dice)
        events = memory.history()
        names = ("id", "domain", "what", "step", "loss_before", "loss_after", "consumer")
        assert facts(events, *names) == told
        assert [event.event - (seed << 40) for event in events] == list(range(1, len(told) + 1))
        ids = {event.id for event in events}
        for i in [*ids, (seed << 40) + 10**6]:
            assert memory.history(episode=i) == [event for event in events if event.id == i]
        assert memory.history(episode=list(range(5000))) == [event for event in events if event.id < 5000]
        for _ in range(40):
            asked = _questions(dice, events)
            assert memory.history(**asked) == _answers(events, asked), asked
        assert memory.check().ok
        memory.close()
        assert open_memory(**settings).history() == events


def test_a_step_is_a_whole_number(open_memory: OpenMemory) -> None:
    memory = open_memory()
    memory.extend(rows(1))
    for step in range(4):
        memory.update([1], loss=1.0, step=step)
    assert [event.step for event in memory.history(steps=(1.0, 2))] == [1, 2]  # type: ignore[arg-type]
    wrong: list[Any] = [(0.5, 2), (0, 2.5), (2, 1), (1,), "1", True, (None, 2)]
    for steps in wrong:
        with pytest.raises(memstore.InvalidValue, match="steps"):
            memory.history(steps=steps)


def test_what_is_rolled_back_was_never_there(open_memory: OpenMemory) -> None:
    memory = open_memory(capacity=5, eviction="fifo")
    memory.extend(rows(5))
    with pytest.raises(RuntimeError), memory.transaction():
        memory.update([1, 2], loss=1.0)
        memory.extend(rows(2))
        assert len(memory.history()) == 4
        raise RuntimeError
    assert memory.history() == [] and memory.replay_share()[0].replays == 0
    with memory.transaction():
        memory.update([1], loss=1.0, step=1)
        with pytest.raises(RuntimeError), memory.transaction():
            memory.update([2], loss=2.0)
            raise RuntimeError
        memory.update([2], loss=3.0, step=2)
    assert facts(memory.history(), "event", "id", "loss_after") == [(1, 1, 1.0), (2, 2, 3.0)]


def _elsewhere(url: str) -> None:
    with memstore.open(url, consumer="elsewhere") as memory:
        memory.update([1], loss=5.0, step=9)
        memory.delete([2])


def test_other_processes_tell_too(url: str, open_memory: OpenMemory) -> None:
    memory = open_memory(consumer="here")
    memory.extend(rows(3))
    memory.update([1, 2], loss=1.0)
    in_child(_elsewhere, url)
    names = ("id", "what", "consumer", "loss_before")
    assert facts(memory.history(), *names) == [
        (1, "replayed", "here", None),
        (2, "replayed", "here", None),
        (1, "replayed", "elsewhere", 1.0),
        (2, "deleted", "elsewhere", 1.0),
    ]


# How much is kept


def test_a_chain_outlives_changes_of_the_policy(open_memory: OpenMemory, sql: Sql) -> None:
    """Also where the episode leaves unrecorded: of its earlier events the last one is found all the same."""
    memory = open_memory()
    memory.extend(rows(6), loss=1.0)
    memory.update([1, 2, 3, 3, 4], loss=2.0)
    memory.configure(history=None)
    memory.update([1, 5], loss=3.0)
    memory.delete([2, 3, 6])
    memory.configure(history=History(record=1e-9))
    memory.delete([4])
    memory.configure(history=History())
    memory.update([1, 5], loss=4.0)
    memory.delete([5])
    events = memory.history()
    assert facts(events, "id", "loss_before", "loss_after") == [
        (1, 1.0, 2.0),
        (2, 1.0, 2.0),
        (3, 1.0, 2.0),
        (3, 2.0, 2.0),
        (4, 1.0, 2.0),
        (1, 3.0, 4.0),
        (5, 3.0, 4.0),
        (5, 4.0, None),
    ]
    for i in range(1, 8):
        assert memory.history(episode=i) == [event for event in events if event.id == i]
    assert sql("SELECT id FROM replay_event WHERE ends = 1 ORDER BY id") == [(2,), (4,), (5,), (14,)]


def test_off_records_nothing(open_memory: OpenMemory, sql: Sql) -> None:
    memory = open_memory(capacity=10, eviction="fifo", history=None)
    memory.extend(rows(15))
    memory.update([11, 12], loss=[1.0, 2.0])
    assert memory.history() == [] and memory.loss_trend() == [] and memory.stats().total_events == 2
    memory.fold()  # until then they are in the log
    assert [sql(f"SELECT count(*) FROM {t}") for t in ("replay_event", "event_group", "replay_tally")] == [[(0,)]] * 3
    memory.configure(history=History())
    memory.update([11], loss=0.5)
    assert facts(memory.history(), "event", "loss_before") == [(8, 1.0)] and memory.check().ok


def test_a_share_of_the_episodes_is_recorded_whole(open_memory: OpenMemory) -> None:
    every, some = open_memory(buffer="all", seed=1), open_memory(buffer="some", seed=1, history=History(record=0.3))
    for memory in (every, some):
        memory.extend(rows(2000), loss=1.0)
        for step in range(3):
            memory.update(memory.query().ids(), loss=step + 1.0, step=step)
        memory.delete(memory.query().ids()[:500])
    first = int(some.query().ids()[0]) - 501
    whole = {event.id: 0 for event in some.history()}
    for event in some.history():
        whole[event.id] += 1
    assert all(count == (4 if i <= first + 500 else 3) for i, count in whole.items())
    # 2000 independent coins: five standard deviations are 5 * sqrt(2000 * 0.3 * 0.7) = 103.
    assert abs(len(whole) - 600) < 103
    shares = [memory.replay_share()[0].replays for memory in (every, some)]
    assert shares == [6000, 6000], "the tally counts all of them"
    for memory in (every, some):
        assert memory.loss_trend(points=4)[0].loss.tolist() == [1.0, 2.0, 3.0]
    some_id = next(iter(whole))
    assert [event.step for event in some.history(episode=some_id)][:3] == [0, 1, 2]
    draws = [(memory.sample(20).ids - int(memory.query().ids()[0])).tolist() for memory in (every, some)]
    assert draws[0] == draws[1], "and draws do not depend on it"


def test_a_number_of_events_is_kept(open_memory: OpenMemory) -> None:
    memory = open_memory(history=History(max_events=700))
    memory.extend(rows(100))
    ids = np.arange(1, 101)
    for step in range(40):
        memory.update(ids, loss=step + 1.0, step=step)
        events = memory.history()
        recorded = 100 * (step + 1)
        # What is there is the newest, and beyond 700 no more than what comes between two looks: a quarter, and a batch.
        assert min(700, recorded) <= len(events) <= 700 + 175 + 100
        assert [event.event for event in events] == list(range(recorded - len(events) + 1, recorded + 1))
    assert len(events) < 1000
    assert memory.history(episode=5) == [event for event in events if event.id == 5], "chains end where they are cut"
    assert memory.check().ok and memory.replay_share()[0].replays == 4000
    memory.configure(history=History(max_events=100))
    assert len(memory.history()) == 100
    memory.configure(history=History(max_events=99))
    assert len(memory.history()) == 100, "a batch goes as a whole"
    memory.update([1], loss=1.0)
    for most in (2, 1):
        memory.configure(history=History(max_events=most))
        assert len(memory.history()) == (101 if most == 2 else 1), "and no more than may go"
    memory.delete(ids)
    assert memory.history(episode=5)[-1].what == "deleted" and memory.check().ok


def test_events_grow_old(open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = open_memory(history=History(max_age=100.0))
    memory.extend(rows(1101))
    monkeypatch.setattr("time.time", lambda: 1e6 - 1)
    memory.update([1101], loss=1.0)
    for hour in range(5):
        monkeypatch.setattr("time.time", lambda hour=hour: 1e6 + 60.0 * hour)
        memory.update(np.arange(1, 1101), loss=1.0, step=hour)
    assert {event.step for event in memory.history()} == {3, 4}
    assert memory.history(episode=1101) == [] and memory.check().ok, "its last event is no longer there"
    memory.configure(history=History(max_age=30.0))
    assert {event.step for event in memory.history()} == {4}


def test_the_policy_is_stored_with_the_buffer(open_memory: OpenMemory) -> None:
    open_memory(history=History(max_events=500)).close()
    open_memory().close()
    open_memory(history=History(max_events=500)).close()
    with pytest.raises(ConfigError, match=r"configure\(history"):
        open_memory(history=History())
    open_memory(buffer="plain").close()
    open_memory(buffer="plain", history=History()).close()


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: History(record=1.5),
        lambda: History(record=-0.1),
        lambda: History(record=float("nan")),
        lambda: History(max_events=0),
        lambda: History(max_events=1.5),  # type: ignore[arg-type]
        lambda: History(max_age=0.0),
        lambda: History(max_age=float("inf")),
    ],
)
def test_a_policy_without_sense_is_refused(wrong: Any) -> None:
    with pytest.raises(ConfigError):
        wrong()


def test_no_policy_at_all_is_refused(open_memory: OpenMemory) -> None:
    for wrong in ("yes", "on", "off", True, 0.5, np.array(["on", "off"])):
        with pytest.raises(ConfigError, match="history must be"):
            open_memory(history=wrong)
    memory = open_memory(buffer="b")
    with pytest.raises(ConfigError, match="history must be"):
        memory.configure(history="off")  # type: ignore[arg-type]


# What it all comes to


def test_trends_are_the_means_of_the_replays(open_memory: OpenMemory) -> None:
    memory = open_memory(capacity=2000)
    rng = np.random.default_rng(1)
    domains = rng.choice(["a", "b", "c"], 1000).tolist()
    memory.extend(rows(1000), domain=domains)
    for step in range(60):
        memory.update(rng.integers(1, 1001, 37), loss=rng.lognormal(size=37), step=step if step % 5 else None)
    events = memory.history()
    for points in (1, 7, 60, 5000):
        for by in ("domain", None):
            for trend in memory.loss_trend(by, points=points):
                own = [event for event in events if by is None or event.domain == trend.domain]
                assert len(trend.loss) == len(trend.replays) == len(trend.step) == len(trend.at) <= points
                assert int(trend.replays.sum()) == len(own)
                start = 0
                for count, loss, step, at in zip(trend.replays, trend.loss, trend.step, trend.at, strict=True):
                    part = own[start : start + count]
                    start += count
                    losses = [event.loss_after or 0.0 for event in part]
                    assert loss == pytest.approx(np.mean(losses), rel=1e-12) and at == part[-1].at
                    steps = [event.step for event in part if event.step is not None]
                    assert step == max(steps) if steps else np.isnan(step)
    assert [trend.domain for trend in memory.loss_trend()] == list(dict.fromkeys(domains))
    assert open_memory(buffer="empty").loss_trend() == []


def test_slots_widen_and_stay_few() -> None:
    starts = {slot_of(number) for number in range(1, 200_001)}
    # One wide up to 511, then 256 to each of 8 octaves, then those 512 wide from 2**17 on.
    assert len(starts) == 511 + 256 * 8 + -(-(200_001 - 2**17) // 512)
    for number in (1, 511, 512, 513, 1023, 1024, 131_072, 199_999, 2**40 + 12345):
        width = max(1, 2 ** (number.bit_length() - 9))
        assert slot_of(number) <= number < slot_of(number) + width and slot_of(number) % width == 0


def test_batches_share_a_slot(open_memory: OpenMemory, damage: Damage) -> None:
    """As they do after many replays; 2**20 here, whose slots are 4096 wide."""
    open_memory().extend(rows(2), domain=["a", "b"])
    damage("UPDATE buffer SET events = 1048576")
    memory = open_memory()
    for loss, step in ((1.0, 5), (2.0, None), (6.0, 7)):
        memory.update([1, 2], loss=[loss, 0.5], step=step)
    memory.update([2], loss=0.5)
    trends = [(t.domain, t.replays.tolist(), t.loss.tolist(), t.step.tolist()) for t in memory.loss_trend()]
    assert trends == [("a", [3], [3.0], [7.0]), ("b", [4], [0.5], [7.0])]


def test_huge_losses_have_a_trend(open_memory: OpenMemory) -> None:
    memory = open_memory()
    memory.extend(rows(3))
    memory.update([1, 2, 3, 1], loss=[1.7e308, 1.7e308, 0.0, 5e-324])
    memory.update([1, 2], loss=[1.7e308, 5e-324])
    assert memory.loss_trend(points=1)[0].loss[0] == pytest.approx(3e290 / 6)
    assert memory.forgotten(1)[0].rise == 1.7e308


@pytest.mark.parametrize(
    "strategy",
    [
        memstore.Uniform(),
        memstore.PrioritizedLoss(0.8),
        memstore.DomainBalanced({"a": 3.0, "b": 1.0}),
        memstore.DomainBalanced(),
        memstore.Mixed({memstore.PrioritizedLoss(0.8): 0.5, memstore.DomainBalanced(): 0.5}),
    ],
    ids=lambda strategy: strategy.to_json(),
)
def test_the_target_is_what_draws_come_to(open_memory: OpenMemory, strategy: memstore.Strategy) -> None:
    memory = open_memory(capacity=500, strategy=strategy, seed=11)
    rng = np.random.default_rng(2)
    domains = rng.choice(["a", "b", "c"], 300, p=[0.6, 0.3, 0.1]).tolist()
    memory.extend(
        rows(300),
        domain=domains,
        loss=[None if i % 9 == 0 else float(v) for i, v in enumerate(rng.lognormal(size=300))],
    )
    shares = {share.domain: share for share in memory.replay_share()}
    drawn = memory.sample(6000, replacement=True).domain.tolist()
    targets = {name: share.target or 0.0 for name, share in shares.items()}
    assert sum(targets.values()) == pytest.approx(1.0)
    present = [name for name in targets if targets[name] > 0]
    assert set(drawn) <= set(present)
    if not isinstance(strategy, memstore.DomainBalanced):
        # Of balanced draws the quotas are exact, up to a slot.
        assert chisquare([drawn.count(n) for n in present], [6000 * targets[n] for n in present]).pvalue > 1e-4
    else:
        assert all(abs(drawn.count(name) - 6000 * targets[name]) <= 1 for name in present)


def test_shares_add_up(open_memory: OpenMemory) -> None:
    memory = open_memory(strategy="prioritized_recency")
    assert memory.replay_share() == []
    memory.extend(rows(10), domain=["a"] * 7 + ["b"] * 3, loss=[1.0, 3.0, None, None, *[2.0] * 6])
    memory.update([1, 8, 8], loss=[2.0, 4.0, 5.0])
    memory.delete([9, 10])
    first, second = memory.replay_share()
    assert (first.domain, first.episodes, first.episode_share, first.unmeasured) == ("a", 7, 7 / 8, 2)
    assert first.mean_loss == pytest.approx((2 + 3 + 2 + 2 + 2) / 5) and first.target is None
    assert (second.domain, second.replays, second.replay_share) == ("b", 2, 2 / 3)
    assert second.mean_loss == pytest.approx(5.0)


# What check sees of it


@pytest.mark.parametrize(
    ("statement", "finding"),
    [
        ("UPDATE replay_metadata SET lowest_loss = loss + 1 WHERE episode_id = 2", "smallest loss"),
        ("UPDATE replay_metadata SET lowest_loss = NULL WHERE episode_id = 2", "smallest loss"),
        ("UPDATE replay_metadata SET last_event_id = 3 WHERE episode_id = 2", "another last event"),
        ("UPDATE replay_metadata SET last_event_id = 9 WHERE episode_id = 5", "another last event"),
        ("DELETE FROM replay_event WHERE id = 2", "groups of events"),
        ("UPDATE event_group SET count = 3", "groups of events"),
        ("DELETE FROM event_group", "groups of events"),
        ("UPDATE buffer SET recorded = 1", "4 events were recorded, by the buffer's counter 1"),
    ],
)
def test_check_finds_damage(open_memory: OpenMemory, damage: Damage, statement: str, finding: str) -> None:
    memory = open_memory()
    memory.extend(rows(5), loss=1.0)
    memory.update([1, 2, 3, 4], loss=0.5)
    memory.fold()
    assert memory.check().ok
    damage(statement)
    report = memory.check()
    assert any(finding in problem for problem in report.problems), report.problems
