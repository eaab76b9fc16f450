"""The copy against a dict, over random programs, on every path to the same content."""

from __future__ import annotations

import threading
from typing import NamedTuple

import numpy as np
import pytest

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import HEAD, MAX_DOMAIN, Heads
from memstore.buffer.blocks.lottery import reservoir_keys
from memstore.buffer.blocks.slots import SLOTS, Ints
from memstore.buffer.blocks.views import View
from memstore.buffer.blocks.weights import Law
from memstore.errors import ConfigError, StoreCorrupt
from tests.buffer.model import (
    OWN,
    Model,
    add,
    as_ints,
    batches,
    check,
    cold,
    leave,
    random_losses,
    rebuilt,
    replay,
    same_heads,
    slots_of,
    step,
)


class Replay(NamedTuple):
    """What an event of the log tells of an episode."""

    number: int
    loss: float
    replays: int
    event: int
    lowest: float
    at: float


def keys(ids: Ints) -> Ints:
    return reservoir_keys(7, ids)


def state(copy: Copy) -> list[bytes]:
    """Whatever a copy holds, but for its stamps."""
    columns = [copy.heads[name].tobytes() for name in HEAD.names or () if name not in ("stamp", "token")]
    return [*columns, copy.directory.order.tobytes(), *copy.open(np.arange(len(copy))).contents()]


@pytest.mark.parametrize("seed", range(8))
def test_random_programs_on_small_blocks(seed: int, small_blocks: int) -> None:
    rng = np.random.default_rng(seed)
    copy, model = Copy.of(OWN, key_of=keys if seed % 2 else None), Model()
    for _ in range(150):
        copy = step(rng, copy, model)
        check(copy, model)
        if rng.random() < 0.1:
            copy = cold(copy)
        if rng.random() < 0.1:
            copy = rebuilt(copy)


@pytest.mark.parametrize("domains", [1, 400])
def test_random_programs_on_whole_blocks(domains: int) -> None:
    rng = np.random.default_rng(domains)
    copy, model = Copy.of(OWN), Model()
    for turn in range(60):
        copy = step(rng, copy, model, domains, scale=40)
        if turn % 3 == 0:
            check(copy, model)


def test_a_copy_is_a_value(small_blocks: int) -> None:
    """A savepoint is the copy that it began with: whatever happens behind it, it stays as it was."""
    rng = np.random.default_rng(3)
    copy, model = Copy.of(OWN), Model()
    savepoints = []
    for _ in range(120):
        savepoints.append((copy, state(copy), model.copy()))
        copy = step(rng, copy, model)
        if rng.random() < 0.25:  # rolled back, by a few steps
            copy, before, model = savepoints[-int(rng.integers(1, min(len(savepoints), 6) + 1))]
            model = model.copy()
            assert state(copy) == before
        check(copy, model)
    for old, before, then in savepoints:
        assert state(old) == before
        check(old, then)


def test_what_newcomers_come_to_does_not_depend_on_batches(small_blocks: int) -> None:
    rng = np.random.default_rng(1)
    ids, domains, loss = np.arange(1, 301), rng.integers(1, 6, 300), random_losses(rng, 300)
    at_once, in_batches = Copy.of(OWN).appended(ids, domains, loss), Copy.of(OWN)
    for part in batches(rng, 300):
        in_batches = in_batches.appended(ids[part], domains[part], loss[part])
    assert state(at_once) == state(in_batches)


def test_what_newcomers_come_to_does_not_depend_on_departures(small_blocks: int) -> None:
    """Which block an episode enters follows from the adds alone, so rows of different moments can be patched."""
    rng = np.random.default_rng(2)
    ids, domains, loss = np.arange(1, 301), rng.integers(1, 4, 300), random_losses(rng, 300)
    late = Copy.of(OWN).appended(ids, domains, loss)
    gone = rng.random(300) < 0.6
    late = late.departed(late.locate(ids[gone], domains[gone]))
    early = Copy.of(OWN)
    for part in batches(rng, 300):
        early = early.appended(ids[part], domains[part], loss[part])
        leaving = part.start + np.flatnonzero(gone[part])
        early = early.departed(early.locate(ids[leaving], domains[leaving]))
    assert state(early) == state(late)


def test_patches_may_come_twice_and_in_any_order(small_blocks: int) -> None:
    rng = np.random.default_rng(4)
    base = Copy.of(OWN).appended(np.arange(1, 61), rng.integers(1, 4, 60), random_losses(rng, 60))
    slots, domain = slots_of(base)
    domains = dict(zip(slots.ids.tolist(), domain.tolist(), strict=True))
    ids = rng.integers(1, 61, 200)
    of = as_ints(domains[number] for number in ids.tolist())
    event, count = np.arange(1, 201), np.array([(ids[: at + 1] == ids[at]).sum() for at in range(200)])
    loss = rng.lognormal(0, 1, 200)

    def after(order: Ints) -> list[bytes]:
        copy = base
        for part in batches(np.random.default_rng(int(order[0])), len(order)):
            chosen = order[part]
            copy = copy.patched(copy.locate(ids[chosen], of[chosen]), loss[chosen], count[chosen], event[chosen])
        return state(copy)

    straight = after(np.arange(200))
    assert straight == after(rng.permutation(200))
    assert straight == after(rng.permutation(np.repeat(np.arange(200), 2)))
    assert straight == after(np.concatenate([np.arange(200), np.arange(50, 150)]))


@pytest.mark.parametrize("seed", range(4))
def test_between_mergings_the_order_of_the_log_does_not_matter(seed: int, small_blocks: int) -> None:
    """A process that follows takes all newcomers, then all events in any order, then all departures."""
    rng = np.random.default_rng(seed)
    copy, model = Copy.of(OWN, key_of=keys), Model()
    for _ in range(20):
        copy = step(rng, copy, model)
    start, before = copy.merged(), model.inserted
    copy, domain_of = start, {number: e.domain for number, e in model.live.items()}
    adds, events, gone = list[tuple[int, int, float]](), list[Replay](), set[int]()
    for _ in range(40):
        was = model.copy()
        copy = rng.choice(np.array([add_some, replay_some, leave_some]))(rng, copy, model)
        for number, e in model.live.items():
            if number > was.inserted:
                adds.append((number, e.domain, e.loss))
                domain_of[number] = e.domain
            elif e.event != was.live[number].event:
                events.append(Replay(number, e.loss, e.count, e.event, e.lowest, e.at))
        gone |= was.live.keys() - model.live.keys()
    assert before < model.inserted and events and gone

    ids, of, born = (np.array(column) for column in zip(*adds, strict=True))
    follower = start.appended(ids, of, born)
    events = [events[at] for at in rng.permutation(len(events))]
    ids, *columns = (np.array(column) for column in zip(*events, strict=True))
    of = as_ints(domain_of[number] for number in ids.tolist())
    follower = follower.patched(follower.locate(ids, of), *columns)
    left = as_ints(sorted(gone))
    follower = follower.departed(follower.locate(left, as_ints(domain_of[number] for number in left.tolist())))
    assert state(follower) == state(copy)
    assert state(follower.merged()) == state(copy.merged())


def add_some(rng: np.random.Generator, copy: Copy, model: Model) -> Copy:
    return add(rng, copy, model, 9, 3)


def replay_some(rng: np.random.Generator, copy: Copy, model: Model) -> Copy:
    return replay(rng, copy, model, 12)


def leave_some(rng: np.random.Generator, copy: Copy, model: Model) -> Copy:
    return leave(rng, copy, model, 6)


def test_a_watermark_is_the_same_as_its_ids(small_blocks: int) -> None:
    rng = np.random.default_rng(6)
    ids, domains = np.arange(1, 101), rng.integers(1, 4, 100)
    copy = Copy.of(OWN, key_of=keys).appended(ids, domains, random_losses(rng, 100))
    named = ids <= 61
    assert state(copy.departed_until(61)) == state(copy.departed(copy.locate(ids[named], domains[named])))
    named &= domains == 2
    assert state(copy.departed_until(61, 2)) == state(copy.departed(copy.locate(ids[named], domains[named])))


def test_an_episode_is_found_in_its_own_domain_only() -> None:
    copy = Copy.of(OWN).appended(np.arange(1, 9), np.array([1, 2] * 4), np.ones(8))
    found = copy.locate(np.arange(1, 9), np.array([1] * 8))
    assert found.live.tolist() == [True, False] * 4
    assert not copy.locate(np.array([1, 5]), np.array([9, 0])).live.any()
    assert not Copy.of(OWN).locate(np.array([1, 5]), np.array([1, 1])).live.any()


def test_merging_keeps_episodes_and_halves_blocks(small_blocks: int) -> None:
    copy = Copy.of(OWN).appended(np.arange(1, 37), np.repeat([1, 2], [20, 16]), np.arange(36.0))
    gone = as_ints(number for number in range(1, 37) if number % 4 != 1)
    thin = copy.departed(copy.locate(gone, np.where(gone <= 20, 1, 2)))
    merged = thin.merged()
    assert merged.heads["name"].tolist() == [1, 9, 17, 21, 29]
    assert merged.heads["live"].tolist() == [2, 2, 1, 2, 2]
    assert slots_of(merged)[0].ids.tolist() == slots_of(thin)[0].ids.tolist()
    assert slots_of(merged)[0].loss.tolist() == slots_of(thin)[0].loss.tolist()
    assert merged.merged() is merged, "nothing is left to be done"
    again = merged.appended(np.arange(37, 41), np.array([2, 2, 2, 1]), np.ones(4))
    assert again.heads["name"].tolist() == [1, 9, 17, 21, 29, 39, 40], "merged blocks have room again, others not"
    emptied = thin.departed_until(20).merged()
    assert emptied.heads["name"].tolist() == [21, 29]
    assert len(emptied.departed_until(99).merged()) == 0


def test_a_domain_fills_one_block_after_the_other() -> None:
    copy = Copy.of(OWN).appended(np.arange(1, 3 * SLOTS + 2), np.ones(3 * SLOTS + 1, np.int64), np.ones(3 * SLOTS + 1))
    assert copy.heads["live"].tolist() == [SLOTS, SLOTS, SLOTS, 1]
    assert copy.heads["name"].tolist() == [1, 1 + SLOTS, 1 + 2 * SLOTS, 1 + 3 * SLOTS]


def test_a_copy_is_built_from_tables(small_blocks: int) -> None:
    rng = np.random.default_rng(18)
    copy, model = Copy.of(OWN), Model()
    for _ in range(60):
        copy = step(rng, copy, model)
    live = sorted(model.live.items())
    ids, domains = as_ints(number for number, _ in live), as_ints(e.domain for _, e in live)
    count, event = as_ints(e.count for _, e in live), as_ints(e.event for _, e in live)
    loss, lowest, at = (np.array([getattr(e, name) for _, e in live]) for name in ("loss", "lowest", "at"))
    built = Copy.of(OWN).appended(ids, domains, loss, count, event, lowest, at)
    check(built, model)
    assert (built.heads["live"][built.heads["live"] < small_blocks] < small_blocks).sum() <= 3, "blocks are full"


def test_newcomers_that_cannot_be_are_refused() -> None:
    copy = Copy.of(OWN).appended(np.array([5, 6]), np.array([1, 1]), np.ones(2))
    for ids in ([6, 7], [7, 7], [8, 7], [1, 9]):
        with pytest.raises(StoreCorrupt, match="ids ascend"):
            copy.appended(np.array(ids), np.array([1, 1]), np.ones(2))
    for domain in (MAX_DOMAIN + 1, -1):
        with pytest.raises(ConfigError):
            copy.appended(np.array([7]), np.array([domain]), np.ones(1))
    assert copy.appended(np.array([7]), np.array([MAX_DOMAIN]), np.ones(1)).live == 3
    assert copy.appended(as_ints([]), as_ints([]), np.zeros(0)) is copy


def test_what_was_found_in_another_copy_changes_nothing() -> None:
    copy = Copy.of(OWN).appended(np.array([1]), np.array([1]), np.ones(1))
    found = copy.locate(np.array([1]), np.array([1]))
    later = copy.patched(found, np.array([2.0]), np.array([1]), np.array([1]))
    with pytest.raises(AssertionError, match="another copy"):
        later.patched(found, np.array([3.0]), np.array([2]), np.array([2]))
    with pytest.raises(AssertionError, match="another copy"):
        later.departed(found)


def test_contents_that_do_not_agree_with_their_heads_are_damage(small_blocks: int) -> None:
    rng = np.random.default_rng(8)
    copy, model = Copy.of(OWN), Model()
    copy = replay(rng, add(rng, copy, model, 40, 2), model, 30)
    other = leave(rng, copy, model, 9)
    for wrong in (lambda heads: [b""] * len(heads), lambda heads: cold(other).fetch(heads)):
        with pytest.raises(StoreCorrupt, match="does not agree with its head"):
            cold(copy).reading(wrong).open(np.arange(len(copy)))
    with pytest.raises(StoreCorrupt, match="and 0 were found"):
        cold(copy).reading(lambda heads: []).open(np.arange(len(copy)))
    with pytest.raises(StoreCorrupt, match="not in memory"):
        Copy.of(OWN, copy.heads).open(np.arange(2))


def test_contents_are_read_once_and_only_where_needed(small_blocks: int) -> None:
    rng = np.random.default_rng(9)
    whole = add(rng, Copy.of(OWN), Model(), 200, 3)
    copy = cold(whole)
    read: list[int] = []
    fetch = copy.fetch

    def fetching(heads: Heads) -> list[bytes]:
        read.extend(heads["name"].tolist())
        return fetch(heads)

    copy = copy.reading(fetching)
    for _ in range(2):
        copy.open(np.array([1, 5, 7]))
    copy.open(np.array([5, 8]))
    assert read == copy.heads["name"][[1, 5, 7, 8]].tolist()
    assert same_heads(copy.heads, whole.heads)


def test_contents_used_last_stay_in_memory(small_blocks: int) -> None:
    rng = np.random.default_rng(13)
    copy = cold(add(rng, Copy.of(OWN), Model(), 200, 3))
    for blocks in ([1, 5, 7], [9], [5, 6]):
        copy.open(np.array(blocks))
    assert np.flatnonzero(copy.forgotten(3).page >= 0).tolist() == [5, 6, 9]
    assert np.flatnonzero(copy.page >= 0).tolist() == [1, 5, 6, 7, 9], "a copy is a value"
    assert copy.forgotten(5) is copy
    whole = copy.open(np.arange(len(copy))).contents()
    assert copy.forgotten(0).open(np.arange(len(copy))).contents() == whole
    ids = copy.heads["first"][[2, 3]]
    changed = copy.departed(copy.locate(ids, copy.domains[[2, 3]]))
    assert np.flatnonzero(changed.forgotten(0).page >= 0).tolist() == [2, 3], "they are stored nowhere"


def test_memory_does_not_grow_where_contents_are_forgotten(small_blocks: int) -> None:
    rng = np.random.default_rng(14)
    copy = cold(add(rng, Copy.of(OWN), Model(), 4000, 3))
    for _ in range(300):
        copy.open(np.sort(rng.choice(len(copy), 8, replace=False)))
        copy = copy.forgotten(16)
    assert len(copy) > 1000
    assert len(copy.pages) < 60


def test_readers_of_old_copies_are_not_disturbed(small_blocks: int) -> None:
    """Threads read copies of every age while others are made and dropped: what they read never changes."""
    rng = np.random.default_rng(16)
    copy, model = add(rng, Copy.of(OWN), Model(), 300, 3), Model()
    model.inserted = 300
    current = [copy]
    done, failed = threading.Event(), list[str]()

    def read(seed: int) -> None:
        own = np.random.default_rng(seed)
        while not done.is_set():
            mine = current[0]
            blocks = np.sort(own.choice(len(mine), 10, replace=False))
            sums = mine.heads["sum"][blocks].tolist()
            for _ in range(5):
                steps, start, count = View.of(mine, OWN).steps_in(mine, blocks)
                found = [
                    float(steps[a + n - 1]) if n else 0.0 for a, n in zip(start.tolist(), count.tolist(), strict=True)
                ]
                loss = np.nanmin(np.where(mine.open(blocks).used, mine.open(blocks).loss, np.inf), axis=1)
                if found != sums or loss.tolist() != mine.heads["least"][blocks].tolist():
                    failed.append("what a copy held has changed")
                    return

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(3)]
    for thread in threads:
        thread.start()
    slots, domains = slots_of(copy)
    for event in range(1, 600):
        chosen = rng.choice(300, 40, replace=False)
        found = current[0].locate(slots.ids[chosen], domains[chosen])
        whole = np.full(40, event)
        current[0] = current[0].patched(found, rng.lognormal(0, 1, 40), whole, whole)
    done.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert len(copy.pages) < 2000


def test_readers_of_the_same_missing_contents_do_not_disturb_each_other(small_blocks: int) -> None:
    rng = np.random.default_rng(19)
    whole = add(rng, Copy.of(OWN), Model(), 400, 3)
    contents = whole.open(np.arange(len(whole))).contents()
    failed = list[str]()

    def read(copy: Copy, seed: int) -> None:
        own = np.random.default_rng(seed)
        for _ in range(40):
            blocks = np.sort(own.choice(len(copy), 9, replace=False))
            if copy.open(blocks).contents() != [contents[block] for block in blocks.tolist()]:
                failed.append("another content")

    copy = cold(whole)
    for _ in range(12):
        threads = [threading.Thread(target=read, args=(copy, seed)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        copy = copy.forgotten(4)
    assert not failed
    assert len(copy.pages) < 3 * len(copy)


def test_another_law_weighs_all_anew(small_blocks: int) -> None:
    rng = np.random.default_rng(15)
    copy, model = Copy.of(OWN, key_of=keys), Model()
    for _ in range(40):
        copy = step(rng, copy, model)
    before = state(copy)
    law = Law(2.0, 1e-3)
    other = cold(copy).configured(law, keys)
    assert other.heads["sum"].tobytes() == View.of(copy, law).sums.tobytes()
    check(other, model)
    assert state(other.configured(OWN, keys)) == before == state(copy)
    assert set(other.configured(OWN, None).heads["key"].tolist()) == {2**63 - 1}
    assert state(other.configured(law, None).configured(OWN, keys)) == before


def test_sums_of_another_machine_are_accepted(small_blocks: int) -> None:
    """Its numpy may round the last bit of a weight otherwise, and so find another unit; more is damage."""
    rng = np.random.default_rng(17)
    copy = add(rng, Copy.of(OWN), Model(), 200, 3)
    every = np.arange(len(copy))
    for factor, accepted in ((1 + 2.0**-50, True), (1 - 2.0**-40, True), (1 + 1e-6, False), (0.5, False)):
        other = cold(copy)
        other.heads["sum"] *= factor
        if accepted:
            other.heads["sum"] = np.ldexp(other.heads["sum"], -512)
            other.heads["unit"] += 512
            assert other.open(every).contents() == copy.open(every).contents()
        else:
            with pytest.raises(StoreCorrupt, match="does not agree"):
                other.open(every)


def test_keys_are_those_of_the_generator() -> None:
    sequence = np.concatenate([np.arange(1, 50), [2**20, 2**33 + 5, 2**40]])
    for seed in (0, 1, 2**62, 2**100 + 17):
        expected = [
            int(np.random.Philox(key=seed, counter=number).random_raw(1)[0] >> np.uint64(1))
            for number in sequence.tolist()
        ]
        assert reservoir_keys(seed, sequence).tolist() == expected
