"""Waiting, the limiter and leases, as one process and its threads see them."""

from __future__ import annotations

import contextlib
import copy
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import numpy as np
import psycopg
import pytest

import memstore
from memstore.sharing import waiting
from tests.support.helpers import OpenMemory, Sql

SOON = 5.0
"""Seconds within which what need not wait has long happened, on a busy machine too."""


def rows(count: int, start: int = 0) -> dict[str, Any]:
    return {"x": np.arange(start, start + count)}


def in_thread(work: Callable[[], Any]) -> Future[Any]:
    pool = ThreadPoolExecutor(1)
    future = pool.submit(work)
    pool.shutdown(wait=False)
    return future


class TestWait:
    def test_returns_at_once_what_is_there(self, open_memory: OpenMemory) -> None:
        memory = open_memory()
        memory.extend(rows(3))
        assert memory.wait(min_size=3, wait=0) == 3

    def test_ends_when_another_handle_adds(self, open_memory: OpenMemory) -> None:
        memory, other = open_memory(), open_memory()
        waiter = in_thread(lambda: memory.wait(min_size=5, wait=60))
        other.extend(rows(4))
        time.sleep(0.05)
        assert not waiter.done()
        other.add({"x": 4})
        assert waiter.result(timeout=SOON) == 5

    def test_a_notice_wakes_it_long_before_it_would_look_by_itself(
        self, open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(waiting, "LONGEST_WAIT", 60.0)
        memory, other = open_memory(), open_memory()
        waiter = in_thread(lambda: memory.wait(min_size=1, wait=120))
        while threading.active_count() < 2:
            time.sleep(0.01)
        time.sleep(0.3)  # it is watching now
        other.add({"x": 1})
        assert waiter.result(timeout=SOON) == 1

    def test_time_out_says_how_things_stand(self, open_memory: OpenMemory) -> None:
        memory = open_memory(capacity=10)
        memory.extend(rows(3))
        with pytest.raises(memstore.WaitTimeout, match=r"holds 3 episodes; waited 0\.05 s") as caught:
            memory.wait(min_size=4, wait=0.05)
        assert isinstance(caught.value, TimeoutError)

    def test_ends_at_close(self, open_memory: OpenMemory) -> None:
        memory = open_memory()
        waiter = in_thread(lambda: memory.wait(min_size=1))
        time.sleep(0.1)
        memory.close()
        with pytest.raises(memstore.MemoryClosed):
            waiter.result(timeout=SOON)

    def test_what_can_never_be_there_is_refused(self, open_memory: OpenMemory) -> None:
        memory = open_memory(capacity=10)
        with pytest.raises(memstore.InvalidValue, match="11 episodes can never be there: the capacity is 10"):
            memory.wait(min_size=11)
        with pytest.raises(memstore.InvalidValue, match="can never be there"):
            memory.sample(11, wait=1)

    @pytest.mark.parametrize("wait", [-1, math.nan, -math.inf, "soon", "inf", True, [1.0]])
    def test_bad_waits_are_refused(self, open_memory: OpenMemory, wait: Any) -> None:
        memory = open_memory()
        memory.extend(rows(3))
        calls: list[Callable[..., object]] = [
            memory.wait,
            partial(memory.sample, 1),
            partial(memory.lease, 1),
            partial(memory.add, {"x": 1}),
            partial(memory.extend, rows(2)),
        ]
        for call in calls:
            with pytest.raises(memstore.ConfigError, match=r"wait must .*math\.inf"):
                call(wait=wait)
        for call in calls[:1] + calls[2:]:
            with pytest.raises(memstore.ConfigError, match="wait must be a number, got None"):
                call(wait=None)
        assert len(memory) == 3

    def test_waits_of_every_kind_of_number(self, open_memory: OpenMemory) -> None:
        memory = open_memory()
        memory.extend(rows(3))
        for wait in (0, 0.0, np.float32(1), np.float32("inf"), math.inf, timedelta(seconds=1)):
            assert memory.wait(min_size=3, wait=wait) == len(memory.sample(3, wait=wait)) == 3

    def test_not_inside_a_transaction(self, open_memory: OpenMemory) -> None:
        memory = open_memory()
        with memory.transaction(), pytest.raises(memstore.WaitTimeout, match="before the block"):
            memory.wait(min_size=1)

    def test_the_log_reminds(
        self, open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(waiting, "REMINDER", 0.05)
        monkeypatch.setattr(waiting, "LONGEST_WAIT", 0.02)
        with caplog.at_level(logging.WARNING, "memstore"), pytest.raises(memstore.WaitTimeout):
            open_memory().wait(min_size=1, wait=0.3)
        assert "holds 0 episodes; waiting for" in caplog.text

    def test_sample_waits_for_all_it_was_asked(self, open_memory: OpenMemory) -> None:
        memory, other = open_memory(), open_memory()
        other.extend(rows(7))
        waiter = in_thread(lambda: memory.sample(8, wait=60))
        time.sleep(0.05)
        assert not waiter.done()
        other.add({"x": 7})
        assert sorted(waiter.result(timeout=SOON)["x"]) == list(range(8))

    def test_sample_without_timeout_does_not_wait(self, open_memory: OpenMemory) -> None:
        memory = open_memory()
        with pytest.raises(memstore.MemoryEmpty):
            memory.sample(1)
        memory.extend(rows(2))
        assert len(memory.sample(8)) == 2

    def test_waiting_uses_up_no_randomness(self, open_memory: OpenMemory) -> None:
        memory = open_memory()
        memory.extend(rows(50))
        before = memory.rng.bit_generator.state
        with pytest.raises(memstore.WaitTimeout):
            memory.sample(60, wait=0.05)
        assert memory.rng.bit_generator.state == before


class TestLimiter:
    def test_draws_wait_for_adds_and_adds_for_draws(self, open_memory: OpenMemory) -> None:
        rule = memstore.SamplesPerInsert(ratio=2.0, min_size=10, error_buffer=20.0)
        memory = open_memory(limiter=rule)
        with pytest.raises(memstore.WaitTimeout, match="0 were added and 0 drawn"):
            memory.sample(4, wait=0.05)
        memory.extend(rows(10))
        # ahead = 20, draws wait from ahead <= 0 on
        for _ in range(5):
            memory.sample(4, wait=0)
        with pytest.raises(memstore.WaitTimeout, match="10 were added and 20 drawn"):
            memory.sample(4, wait=0.05)
        # ahead = 0, adds wait from ahead >= 40 on
        for start in range(10, 30):
            memory.add({"x": start}, wait=0)
        with pytest.raises(memstore.WaitTimeout, match="30 were added and 20 drawn"):
            memory.add({"x": 30}, wait=0.05)
        assert len(memory) == 30
        memory.sample(2, wait=0)
        memory.add({"x": 30}, wait=0)

    def test_both_sides_never_wait_at_once(self, open_memory: OpenMemory) -> None:
        """Batches far larger than the error buffer: at every moment one of the two may go on."""
        memory = open_memory(limiter=memstore.SamplesPerInsert(ratio=0.7, min_size=1, error_buffer=0.01), capacity=40)
        added = drawn = 0
        for _ in range(60):
            went_on = 0
            with contextlib.suppress(memstore.WaitTimeout):
                memory.extend(rows(13), wait=0)
                added, went_on = added + 13, went_on + 1
            with contextlib.suppress(memstore.WaitTimeout):
                memory.sample(17, wait=0)
                drawn, went_on = drawn + 17, went_on + 1
            assert went_on
            assert abs(0.7 * (added - 1) - drawn) <= 17 + 0.01

    def test_a_waiting_add_goes_on_after_a_draw_of_another_handle(self, open_memory: OpenMemory) -> None:
        memory = open_memory(limiter=memstore.SamplesPerInsert(1.0, min_size=1, error_buffer=1.0))
        other = open_memory()
        memory.extend(rows(3))
        waiter = in_thread(lambda: other.add({"x": 3}))
        time.sleep(0.05)
        assert not waiter.done()
        memory.sample(3, wait=0)
        assert waiter.result(timeout=SOON) == 4

    def test_it_is_stored_and_shared(self, open_memory: OpenMemory) -> None:
        rule = memstore.SamplesPerInsert(4.0, min_size=5)
        open_memory(limiter=rule)
        assert rule.error_buffer == 20.0
        open_memory(limiter=rule)
        with pytest.raises(memstore.ConfigError, match="limiter"):
            open_memory(limiter=memstore.SamplesPerInsert(3.0, min_size=5))
        with pytest.raises(memstore.WaitTimeout):
            open_memory().sample(1, wait=0)

    def test_configure_sets_balances_and_lifts_it(self, open_memory: OpenMemory) -> None:
        memory, other = open_memory(), open_memory()
        memory.extend(rows(100))
        memory.configure(limiter=memstore.SamplesPerInsert(1.0, min_size=10, error_buffer=5.0))
        len(other)  # it learns of it with its next look
        other.sample(5, wait=0)
        with pytest.raises(memstore.WaitTimeout):
            other.sample(1, wait=0)
        memory.configure(limiter=None)
        len(other)
        assert len(other.sample(50)) == 50
        assert len(memory.extend(rows(50))) == 50

    def test_in_a_transaction_it_counts_and_never_waits(self, open_memory: OpenMemory) -> None:
        memory = open_memory(limiter=memstore.SamplesPerInsert(1.0, min_size=1, error_buffer=1.0))
        memory.extend(rows(3))
        with pytest.raises(RuntimeError), memory.transaction():
            memory.sample(3)
            raise RuntimeError
        with memory.transaction():
            memory.sample(3)  # what the rolled-back block drew was not counted
            with pytest.raises(memstore.WaitTimeout, match="transaction"):
                memory.sample(1)

    @pytest.mark.parametrize(
        ("settings", "complaint"),
        [
            ({"ratio": 0}, "ratio"),
            ({"ratio": math.nan}, "ratio"),
            ({"ratio": -1}, "ratio"),
            ({"ratio": 1, "min_size": 0}, "min_size"),
            ({"ratio": 1, "min_size": 1.5}, "min_size"),
            ({"ratio": 1, "error_buffer": 0}, "error_buffer"),
        ],
    )
    def test_bad_settings_are_refused(self, settings: dict[str, Any], complaint: str) -> None:
        with pytest.raises(memstore.ConfigError, match=complaint):
            memstore.SamplesPerInsert(**settings)

    def test_what_can_never_be_in_step_is_refused(self, open_memory: OpenMemory) -> None:
        with pytest.raises(memstore.ConfigError, match="min_size=11 can never be reached with a capacity of 10"):
            open_memory(capacity=10, limiter=memstore.SamplesPerInsert(1.0, min_size=11))
        memory = open_memory(capacity=20, limiter=memstore.SamplesPerInsert(1.0, min_size=11))
        with pytest.raises(memstore.ConfigError, match="can never be reached"):
            memory.configure(capacity=10)
        with pytest.raises(memstore.ConfigError, match="SamplesPerInsert"):
            memory.configure(limiter="often")  # type: ignore[arg-type]


class TestLease:
    def test_each_episode_has_one_consumer(self, open_memory: OpenMemory) -> None:
        first, second = open_memory(capacity=50), open_memory()
        first.extend(rows(50), loss=1.0)
        one, two, three = first.lease(20), second.lease(20), first.lease(20)
        assert len(three) == 10
        assert sorted(np.concatenate([one.ids, two.ids, three.ids])) == list(range(1, 51))
        with pytest.raises(memstore.MemoryEmpty, match="50 are"):
            second.lease(1)
        assert len(second.sample(50)) == 50

    def test_update_returns_the_episodes(self, open_memory: OpenMemory) -> None:
        memory = open_memory()
        memory.extend(rows(4))
        batch = memory.lease(4)
        memory.update(batch, loss=1.0)
        assert memory.lease(4).lease != batch.lease

    def test_release_and_renew(self, open_memory: OpenMemory) -> None:
        memory = open_memory()
        memory.extend(rows(4))
        batch = memory.lease(3)
        assert memory.renew(batch, duration=100) == 3
        assert memory.release(batch) == 3
        assert memory.release(batch) == 0
        assert memory.renew(batch) == 0
        assert len(memory.lease(4)) == 4
        with pytest.raises(memstore.InvalidValue, match=r"lease\(\)"):
            memory.release(memory.sample(1))

    def test_the_dead_lose_theirs(self, open_memory: OpenMemory) -> None:
        memory, other = open_memory(), open_memory()
        memory.extend(rows(4))
        dead = memory.lease(4, duration=0.2)
        batch = other.lease(4, wait=60)
        assert sorted(batch.ids) == sorted(dead.ids)
        assert memory.renew(dead) == 0
        memory.update(dead, loss=1.0)  # late, but true; it takes nothing from the new holder
        with pytest.raises(memstore.MemoryEmpty):
            memory.lease(1)

    def test_waits_until_something_is_free(self, open_memory: OpenMemory) -> None:
        memory, other = open_memory(), open_memory()
        memory.extend(rows(4))
        batch = memory.lease(4)
        waiter = in_thread(lambda: other.lease(4, wait=60))
        time.sleep(0.05)
        assert not waiter.done()
        memory.release(batch)
        assert len(waiter.result(timeout=SOON)) == 4
        with pytest.raises(memstore.WaitTimeout, match="free to lease"):
            memory.lease(1, wait=0.05)

    def test_leased_episodes_may_be_evicted_and_deleted(self, open_memory: OpenMemory) -> None:
        memory = open_memory(capacity=4, eviction="fifo")
        memory.extend(rows(4))
        batch = memory.lease(4)
        memory.extend(rows(2))
        assert sorted(memory.lease(4).ids) == [5, 6]
        result = memory.update(batch, loss=1.0)
        assert sorted(result.missing) == [1, 2]

    def test_max_replays_removes_what_was_leased(self, open_memory: OpenMemory) -> None:
        memory = open_memory(max_replays=1)
        memory.extend(rows(4))
        memory.update(memory.lease(3), loss=1.0)
        assert len(memory) == 1
        assert len(memory.lease(4)) == 1

    def test_a_rolled_back_lease_holds_nothing(self, open_memory: OpenMemory) -> None:
        memory = open_memory()
        memory.extend(rows(4))
        with pytest.raises(RuntimeError), memory.transaction():
            memory.lease(4)
            raise RuntimeError
        assert len(memory.lease(4)) == 4

    def test_buffers_do_not_share_leases(self, open_memory: OpenMemory) -> None:
        memory, other = open_memory(buffer="a"), open_memory(buffer="b")
        memory.extend(rows(4))
        other.extend(rows(4))
        batch = memory.lease(4)
        assert len(other.lease(4)) == 4
        assert other.release(batch) == 0

    def test_the_law_is_that_of_the_free_episodes(self, open_memory: OpenMemory) -> None:
        """Of losses 1, 2, 4 and 8, with 8 held, the first leased is 4 with probability 4 / 7."""
        memory = open_memory(strategy=memstore.PrioritizedLoss(alpha=1.0), epsilon=1e-9)
        memory.extend(rows(4), loss=[1.0, 2.0, 4.0, 8.0])
        while True:
            held = memory.lease(1)
            if held.ids[0] == 4:
                break
            memory.release(held)
        counts = np.zeros(3)
        for _ in range(200):
            batch = memory.lease(1)
            counts[batch.ids[0] - 1] += 1
            memory.release(batch)
        expected = 200 * np.array([1, 2, 4]) / 7
        # 0.999 quantile of chi-square with 2 degrees of freedom
        assert ((counts - expected) ** 2 / expected).sum() < 13.82

    @pytest.mark.parametrize("duration", [0, -1, math.inf, math.nan, None, "soon"])
    def test_bad_durations_are_refused(self, open_memory: OpenMemory, duration: Any) -> None:
        memory = open_memory()
        memory.add({"x": 1})
        with pytest.raises(memstore.ConfigError, match="duration"):
            memory.lease(1, duration=duration)
        held = memory.lease(1)
        with pytest.raises(memstore.ConfigError, match="duration"):
            memory.renew(held, duration=duration)


class TestConsumer:
    def test_the_name_given_travels_with_the_handle(self, open_memory: OpenMemory, sql: Sql) -> None:
        memory = open_memory(consumer="trainer 3")
        memory.add({"x": 1})
        with contextlib.closing(copy.copy(memory)) as other:  # as multiprocessing would: by its pickled state
            assert other.consumer == "trainer 3"
            other.update([1], loss=1.0)
        assert sql("SELECT consumer FROM v_history") == [("trainer 3",)]

    def test_by_default_it_is_this_process(self, open_memory: OpenMemory) -> None:
        assert open_memory().consumer.endswith(f":{os.getpid()}")


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
class TestNotices:
    def test_nobody_is_notified_where_nobody_listens(self, open_memory: OpenMemory, url: str) -> None:
        """A notice makes commits queue for one lock of the whole server."""
        memory = open_memory()
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as spy:
            spy.execute("LISTEN memstore")
            memory.add({"x": 1})
            assert list(spy.notifies(timeout=0.2)) == []
            waiter = in_thread(lambda: memory.wait(min_size=3))
            while not list(spy.notifies(timeout=0.1, stop_after=1)):
                open_memory(buffer="other").add({"x": 0})  # nobody waits for that one
                memory.update([1], loss=1.0)
            memory.extend({"x": np.arange(2)})
            assert waiter.result(timeout=SOON) == 3
            assert {notice.payload for notice in spy.notifies(timeout=0.2)} == {"1"}
            memory.add({"x": 4})
            assert list(spy.notifies(timeout=0.2)) == []

    def test_a_long_writer_does_not_hold_the_waiter_up(self, open_memory: OpenMemory) -> None:
        memory, other = open_memory(), open_memory()
        with other.transaction():
            other.add({"x": 1})
            begun = time.monotonic()
            with pytest.raises(memstore.WaitTimeout):
                memory.wait(min_size=1, wait=0.3)
            assert time.monotonic() - begun < SOON
            waiter = in_thread(lambda: memory.wait(min_size=1))
            time.sleep(0.1)
        assert waiter.result(timeout=SOON) == 1
