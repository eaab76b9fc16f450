"""Whatever is done in whatever order, with folds everywhere: every answer is that of a dict and a list."""

from __future__ import annotations

import itertools
import os
import random
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import memstore
from memstore import Batch, ConfigError, EpisodicMemory, History, MemoryEmpty, MemoryFull, RetentionPolicy, col
from tests.engine.answers import must_agree, must_see
from tests.engine.elsewhere import Elsewhere
from tests.engine.replica import Facts, Replica
from tests.support.windows import set_window, window

FULL = os.environ.get("MEMSTORE_TORTURE") == "full"
EXAMPLES = {"sqlite": 400 if FULL else 10, "postgres": 200 if FULL else 4}
STEPS = 80 if FULL else 40

POLICIES = ("fifo", "lowest_loss", "largest_domain", "reservoir", "reservoir_loss", "none")
STRATEGIES = ("uniform", "prioritized_loss", "prioritized_recency", "domain_balanced", "mixed")
HISTORIES = (History(), None, History(record=0.5), History(max_events=5), History(record=0.7, max_events=70))
LOSSES = (None, None, 0.0, 1e-300, 0.25, 0.25, 1.0, 3.5, 1e12, 1e308)

seeds = st.integers(0, 2**20)
_names = itertools.count(1)


class Boom(Exception):
    """Ends a block from inside."""


def newcomers(dice: random.Random, count: int) -> list[tuple[str, float | None, Facts]]:
    """Episodes to add. Their losses have ties and extremes, and some keys come again."""
    return [
        (
            f"d{dice.choice((0, 0, 0, 1, 1, 2, 3, dice.randrange(9)))}",
            dice.choice((*LOSSES, round(dice.expovariate(1.0), 3))),
            Facts(
                kind=dice.randrange(4),
                timestamp=float(dice.randrange(50)),
                level=dice.choice((None, 1, 2, 3)),
                tags=dice.choice(((), ("odd",), ("even",), ("odd", "even"))),
                key=dice.choice((None, None, f"k{dice.randrange(60)}")),
            ),
        )
        for _ in range(count)
    ]


def columns(rows: list[tuple[str, float | None, Facts]]) -> dict[str, Any]:
    """The same as arguments of ``extend``."""
    facts = [f for _, _, f in rows]
    return {
        "payload": {"x": np.array([[f.kind + 1.0, 1.0] for f in facts])},
        "domain": [domain for domain, _, _ in rows],
        "loss": [loss for _, loss, _ in rows],
        "timestamp": [f.timestamp for f in facts],
        "level": [f.level for f in facts],
        "tags": [f.tags for f in facts],
        "key": [f.key for f in facts],
        "extra": [{"kind": f.kind} for f in facts],
    }


class Machine(RuleBasedStateMachine):
    """Two handles and another process on one buffer, and what must be true of it."""

    url = ""
    folder = Path()
    elsewhere: Elsewhere

    def __init__(self) -> None:
        super().__init__()
        self.number = next(_names)
        self.handles: list[EpisodicMemory] = []
        self.blocks: list[tuple[ExitStack, Replica]] = []
        self.batches: list[Batch] = []
        self.replica = Replica(1, "fifo")
        self.acting = 0
        self.backups = 0
        self.cache = 0

    @initialize(
        entries=st.sampled_from((8, 13, 24, 64)),
        policy=st.sampled_from(POLICIES),
        capacity=st.integers(15, 70),
        cache=st.sampled_from((0, 50_000, 2**26)),
        strategy=st.sampled_from(STRATEGIES),
        max_replays=st.sampled_from((None, None, 3)),
        history=st.sampled_from((*HISTORIES, History(), History())),
    )
    def open(self, entries: int, policy: str, history: History | None, **options: Any) -> None:
        """Make the buffer."""
        set_window(entries)
        self.elsewhere.call("window", entries)
        self.cache = options.pop("cache")
        chosen = {"eviction": policy, "history": history, **options}
        self.handles = [self.opened(**chosen), self.opened()]
        first = self._first_id()
        self.replica = Replica(options["capacity"], policy, seed=11, first=first, max_replays=options["max_replays"])
        self._remember(history)
        self.elsewhere.call("open", self.url, buffer=f"{self.number}", seed=12, consumer="it")
        rows = newcomers(random.Random(options["capacity"]), 15)  # never more than fit
        assert self.memory.extend(**columns(rows)).tolist() == self.replica.extend(rows)

    def opened(self, **chosen: Any) -> EpisodicMemory:
        """One more handle."""
        return memstore.open(
            self.url, buffer=f"{self.number}", seed=11, cache_bytes=self.cache, consumer="me", **chosen
        )

    def _first_id(self) -> int:
        probe = self.handles[0]
        with suppress(Boom), probe.transaction():
            first = probe.add({"x": np.zeros(2)}) - 1
            raise Boom
        return first

    def _remember(self, history: History | None) -> None:
        self.replica.record = 0.0 if history is None else history.record
        self.replica.max_events = None if history is None else history.max_events

    @property
    def memory(self) -> EpisodicMemory:
        """The handle that acts. An open block belongs to the first."""
        return self.handles[0 if self.blocks else self.acting]

    def call(self, there: bool, name: str, *arguments: Any, **options: Any) -> Any:
        """Do it here, or in the other process if there is no block."""
        if there and not self.blocks:
            return self.elsewhere.call(name, *arguments, **options)
        return getattr(self.memory, name)(*arguments, **options)

    # Coming

    @rule(seed=seeds, count=st.sampled_from((1, 1, 2, 5, 9, 30, 90)), there=st.booleans(), acting=st.integers(0, 1))
    def extend(self, seed: int, count: int, there: bool, acting: int) -> None:
        self.acting = acting
        rows = newcomers(random.Random(seed), count)
        known = {facts.key for _, _, facts in rows} - {None} - self.replica.by_key.keys()
        new = len(known) + sum(facts.key is None for _, _, facts in rows)
        if self.replica.eviction == "none" and len(self.replica.live) + new > self.replica.capacity:
            if new:
                with pytest.raises(MemoryFull):
                    self.memory.extend(**columns(rows))
            return
        ids = self.call(there, "extend", **columns(rows))
        assert ids.tolist() == self.replica.extend(rows)

    # Changing

    def update(self, replayed: Any, ids: list[int], losses: list[float], step: int, there: bool = False) -> None:
        """Update both, and let the replica know what the memory says of the time."""
        live = {number for number in ids if number - self.replica.first in self.replica.live}
        result = self.call(there, "update", replayed, loss=losses, step=step)
        assert result.updated.tolist() == sorted(live)
        assert result.missing.tolist() == sorted(set(ids) - live)
        strategy = replayed.strategy if isinstance(replayed, Batch) else None
        self.replica.replay(ids, losses, step, strategy, self._moment(sorted(live)))

    def _moment(self, ids: list[int]) -> float | None:
        here = [number for number in ids if number in self.memory]
        if here:
            told = {m.last_replayed_at for m in self.memory.metadata(here)}
            assert len(told) == 1
            return told.pop()
        events = self.memory.history(episode=ids, limit=1) if ids else []
        return events[0].at if events else None

    def some(self, dice: random.Random, most: int) -> list[int]:
        """Ids: live ones mostly, some twice, some that left or never were."""
        live = [i + self.replica.first for i in self.replica.live]
        chosen = dice.choices(live, k=dice.randint(1, most)) if live else []
        strangers = dice.choices(range(self.replica.inserted + 3), k=2)
        return [*chosen, *(i + self.replica.first + 1 for i in strangers), *chosen[:1]]

    @rule(seed=seeds, most=st.sampled_from((2, 8, 40)), there=st.booleans(), acting=st.integers(0, 1))
    def update_ids(self, seed: int, most: int, there: bool, acting: int) -> None:
        self.acting = acting
        dice = random.Random(seed)
        ids = self.some(dice, most)
        dice.shuffle(ids)
        losses = [float(dice.choice((0.0, 1e-9, 0.5, 2.0, 1e12, dice.expovariate(1.0)))) for _ in ids]
        self.update(np.array(ids), ids, losses, dice.randrange(100), there)

    @rule(seed=seeds, count=st.sampled_from((1, 5, 20)), lease=st.booleans(), strategy=st.sampled_from(STRATEGIES))
    def draw(self, seed: int, count: int, lease: bool, strategy: str) -> None:
        where = random.Random(seed).choice((None, None, None, col.loss > 0.4, col.domain == "d0", col.level >= 2))
        memory, replica = self.memory, self.replica
        try:
            if lease:
                batch = memory.lease(count, strategy=strategy, where=where, duration=1e6)
            else:
                batch = memory.sample(count, strategy=strategy, where=where)
        except MemoryEmpty:
            return
        rows = {row["id"]: row for row in replica.rows()}
        ids = batch.ids.tolist()
        assert len(set(ids)) == len(ids) and set(ids) <= rows.keys()
        assert [None if x != x else x for x in batch.loss.tolist()] == [rows[i]["loss"] for i in ids]
        for name, column in (("domain", batch.domain), ("age", batch.age), ("replay_count", batch.replay_count)):
            assert column.tolist() == [rows[i][name] for i in ids]
        assert batch["x"][:, 0].tolist() == [rows[i]["extra"]["kind"] + 1.0 for i in ids]
        if strategy == "prioritized_loss" and where is None and batch.probability is not None:
            law = replica.probability(0.6)
            np.testing.assert_allclose(batch.probability, [law[i] for i in ids], rtol=1e-9)
        if batch.lease is not None:
            assert not {i - replica.first for i in ids} & replica.held.keys()
            replica.held |= {i - replica.first: batch.lease for i in ids}
        self.batches = [*self.batches[-9:], batch]

    @precondition(lambda self: self.batches)
    @rule(seed=seeds, there=st.booleans())
    def update_batch(self, seed: int, there: bool) -> None:
        """Of now, or of several folds ago; a part; with arrays that the caller has written to."""
        dice = random.Random(seed)
        batch = self.batches.pop(dice.randrange(len(self.batches)))
        how = dice.randrange(4)
        if how == 0:
            batch = batch.take([dice.randrange(len(batch)) for _ in range(3)])
        elif how == 1:
            batch.loss[:] = dice.choice((0.0, 1e300, np.nan))
            batch.age[:] = 1
            batch.replay_count[:] = 99
            batch.domain[:] = "d1"
            batch.payload["x"][:] = 0
        ids = batch.ids.tolist()
        losses = [round(dice.expovariate(0.5), 2) for _ in ids]
        held = {i: token for i, token in self.replica.held.items() if token != batch.lease}
        self.update(batch, ids, losses, 7, there)
        self.replica.held = {i: token for i, token in held.items() if i in self.replica.live}

    # Leaving

    @rule(seed=seeds, most=st.sampled_from((1, 6, 30)), there=st.booleans())
    def delete(self, seed: int, most: int, there: bool) -> None:
        ids = self.some(random.Random(seed), most)
        gone = self.replica.leave([number - self.replica.first for number in ids], "deleted", None)
        assert self.call(there, "delete", np.array(ids)) == len(gone)

    @rule(limit=st.sampled_from((0.0, 0.3, 2.0)), by=st.sampled_from(("loss", "lowest_loss", "level", "tag", "all")))
    def delete_where(self, limit: float, by: str) -> None:
        rows = self.replica.rows()
        if by == "all":
            passing = rows if limit == 0.0 else []
            done = self.memory.clear() if limit == 0.0 else 0
        elif by == "tag":
            passing = [row for row in rows if set(row["tags"]) == {"odd", "even"}]
            done = self.memory.delete(where=col.tags.has("odd") & col.tags.has("even"))
        else:
            passing = [row for row in rows if row[by] is not None and row[by] <= limit]
            done = self.memory.delete(where=f"{by} <= {limit}")
        gone = self.replica.leave([row["id"] - self.replica.first for row in passing], "deleted", None)
        assert done == len(gone) == len(passing)

    @rule(
        age=st.sampled_from((None, 30.0)),
        keep=st.sampled_from((None, 10, 25)),
        least=st.sampled_from((None, 0.2)),
        similar=st.sampled_from((None, True)),
        there=st.booleans(),
    )
    def consolidate(self, age: float | None, keep: int | None, there: bool, **limits: Any) -> None:
        policy = RetentionPolicy(
            max_age=age, max_episodes=keep, min_importance=limits["least"], consolidate_similar=limits["similar"]
        )
        done = self.call(there, "consolidate", policy, now=50.0)
        expected = self.replica.consolidate(policy, 50.0)
        assert {reason: getattr(done, reason) for reason in expected} == expected
        assert done.kept == len(self.replica.live)

    # Settings

    @rule(capacity=st.integers(10, 80), there=st.booleans())
    def resize(self, capacity: int, there: bool) -> None:
        if self.replica.eviction == "none" and capacity < len(self.replica.live):
            with pytest.raises(ConfigError):
                self.memory.configure(capacity=capacity)
            return
        assert self.call(there, "configure", capacity=capacity) == self.replica.shrink(capacity)

    @rule(policy=st.sampled_from(POLICIES), alpha=st.sampled_from((0.6, 1.0, 2.5)), there=st.booleans())
    def configure(self, policy: str, alpha: float, there: bool) -> None:
        reservoir = policy == "reservoir" and self.replica.inserted > len(self.replica.live)
        chosen = {} if reservoir else {"eviction": policy}
        self.call(there, "configure", strategy=memstore.PrioritizedLoss(alpha), **chosen)
        self.replica.eviction = self.replica.eviction if reservoir else policy

    @rule(history=st.sampled_from(HISTORIES), max_replays=st.sampled_from((None, None, 2, 5)), there=st.booleans())
    def keep_less(self, history: History | None, max_replays: int | None, there: bool) -> None:
        self.call(there, "configure", history=history, max_replays=max_replays)
        self.replica.max_replays = max_replays
        self._remember(history)

    # Transactions

    @precondition(lambda self: len(self.blocks) < 3)
    @rule()
    def begin(self) -> None:
        stack = ExitStack()
        stack.enter_context(self.handles[0].transaction())
        self.blocks.append((stack, self.replica.copy()))

    @precondition(lambda self: self.blocks)
    @rule(fails=st.booleans())
    def end(self, fails: bool) -> None:
        stack, before = self.blocks.pop()
        if not fails:
            stack.close()
            return
        with pytest.raises(Boom), stack:
            raise Boom
        self.replica = before

    # Life

    @precondition(lambda self: not self.blocks)
    @rule(which=st.integers(0, 1), cache=st.sampled_from((0, 2**26)))
    def reopen(self, which: int, cache: int) -> None:
        self.handles[which].close()
        self.cache = cache
        self.handles[which] = self.opened()

    @precondition(lambda self: not self.blocks)
    @rule(there=st.booleans())
    def fold(self, there: bool) -> None:
        self.call(there, "fold")

    @precondition(lambda self: not self.blocks and self.backups < 2)
    @rule()
    def back_up(self) -> None:
        """A backup is the memory of this moment. On a file it then takes the place of the file."""
        self.backups += 1
        target = self.folder / f"backup{next(_names)}.db"
        memstore.backup(self.url, target)
        with memstore.open(target, buffer=f"{self.number}", seed=3, consumer="me") as copied:
            must_agree(copied, self.replica.copy(), random.Random(1))
        if self.url.startswith("sqlite"):
            for memory in self.handles:
                memory.close()
            self.elsewhere.call("close")
            memstore.restore(target, self.url, force=True)
            self.handles = [self.opened(), self.opened()]
            self.elsewhere.call("open", self.url, buffer=f"{self.number}", seed=12, consumer="it")
            for old in self.folder.glob("*.replaced-*"):
                old.unlink()
        target.unlink()

    @invariant()
    def everything_agrees(self) -> None:
        """What acts sees its own changes; the others see what is committed."""
        if not self.handles:
            return
        dice = random.Random(self.replica.inserted + self.replica.replays)
        must_agree(self.memory, self.replica, dice)
        committed = self.blocks[0][1] if self.blocks else self.replica
        must_see(self.handles[1 if self.blocks else 1 - self.acting], committed)

    def teardown(self) -> None:
        """Close, and look once more from the outside."""
        while self.blocks:
            self.end(fails=True)
        for memory in self.handles:
            memory.close()
        self.elsewhere.call("close")
        if self.handles:
            with self.opened() as memory:
                must_agree(memory, self.replica, random.Random(2))
            memstore.drop(self.url, buffer=f"{self.number}")


def machine(url: str, folder: Path, elsewhere: Elsewhere) -> type[Machine]:
    """The machine on this database."""
    return type("Machine", (Machine,), {"url": url, "folder": folder, "elsewhere": elsewhere})


def test_every_answer_is_that_of_a_dict_and_a_list(url: str, tmp_path: Path, elsewhere: Elsewhere) -> None:
    kind = "sqlite" if url.startswith("sqlite") else "postgres"
    memstore.open(url).close()
    rules = settings(
        max_examples=EXAMPLES[kind],
        stateful_step_count=STEPS,
        deadline=None,
        derandomize=not FULL,
        database=None,
        suppress_health_check=list(HealthCheck),
        # A failing program repeats by itself. To make it shorter takes minutes.
        phases=(Phase.generate, Phase.shrink) if FULL else (Phase.generate,),
    )
    with window(8):  # so that the end restores what each machine sets
        run_state_machine_as_test(machine(url, tmp_path, elsewhere), settings=rules)
