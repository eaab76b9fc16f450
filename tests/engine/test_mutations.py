"""Tempting mistakes, each made on purpose in this process: the proofs of this folder notice every one of them.

Two short programs stand for the proofs here. Both pass as the library is, and fail with each mistake.
"""

from __future__ import annotations

import dataclasses
import random
import secrets
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memstore
from memstore import EpisodicMemory, MemstoreError, StoreCorrupt
from memstore.buffer import overlay
from memstore.buffer.blocks.copy import Copy, Found
from memstore.buffer.blocks.heads import Heads, own
from memstore.buffer.blocks.pages import Opened
from memstore.buffer.blocks.slots import PLACE_BITS, Floats, Ints, among
from memstore.buffer.snapshot import Snapshot
from memstore.buffer.tail import Tail
from memstore.draws.weighted import Masses
from tests.engine.answers import must_agree, told
from tests.engine.damaged_past import Past
from tests.engine.replica import Facts, Replica
from tests.engine.test_laws_in_the_window import must_say, probabilities
from tests.support.windows import window

SETTINGS: dict[str, Any] = {"capacity": 120, "eviction": "fifo", "strategy": "prioritized_loss", "seed": 1}


class Program:
    """Two handles on one file, and the replica of both. After each step both are asked everything."""

    def __init__(self, path: Path) -> None:
        self.one = memstore.open(path, **SETTINGS)
        self.other = memstore.open(path, cache_bytes=0, seed=2)
        self.replica = Replica(120, "fifo", seed=1)
        self.dice = random.Random(1)

    def close(self) -> None:
        self.one.close()
        self.other.close()

    def extend(self, memory: EpisodicMemory, losses: list[float | None]) -> None:
        facts = [Facts(self.dice.randrange(4), float(self.dice.randrange(50)), 2, (), None) for _ in losses]
        rows = [(f"d{self.dice.randrange(3)}", loss, fact) for loss, fact in zip(losses, facts, strict=True)]
        memory.extend(
            {"x": np.array([[fact.kind + 1.0, 1.0] for fact in facts])},
            domain=[domain for domain, _, _ in rows],
            loss=losses,
            timestamp=[fact.timestamp for fact in facts],
            level=2,
            extra=[{"kind": fact.kind} for fact in facts],
        )
        self.replica.extend(rows)
        self.ask()

    def update(self, memory: EpisodicMemory, replayed: Any, losses: list[float]) -> None:
        drawn = isinstance(replayed, memstore.Batch)
        ids = replayed.ids.tolist() if drawn else replayed
        result = memory.update(replayed, loss=losses)
        at = memory.metadata(result.updated[:1])[0].last_replayed_at
        strategy = replayed.strategy if drawn else None
        assert result.updated.tolist() == self.replica.replay(ids, losses, None, strategy, at)
        self.ask()

    def ask(self) -> None:
        for memory in (self.one, self.other):
            must_agree(memory, self.replica, self.dice, questions=6)
            for alpha in (0.6, 1.3):
                must_say(probabilities(memory, alpha), self.replica.probability(alpha), alpha)


def shared(path: Path) -> None:
    """Spikes that go, departures, a stale batch, a block that is undone, and the other handle always in between."""
    program = Program(path)
    one, other, replica = program.one, program.other, program.replica
    try:
        program.extend(one, [1.0, 2.0, 0.7, 0.5] * 10)
        stale = one.sample(20)
        program.update(other, [3, 5, 7, 5], [1e12, 2.0, 1e30, 4.0])
        program.update(one, [3, 7, 9, 9], [1.0, 0.5, 0.01, 3.0])
        one.delete(stale.ids[::2])
        replica.leave(stale.ids[::2].tolist(), "deleted", None)
        program.ask()
        program.update(other, stale, [0.7] * len(stale))
        # From here on the never measured have nearly all of the weight.
        program.extend(other, [None, 1.0, None])
        with pytest.raises(ZeroDivisionError), one.transaction():
            one.extend({"x": np.ones((30, 2))}, loss=9.0)
            one.update(one.query().ids(), loss=1e3)
            raise ZeroDivisionError
        program.extend(other, [0.3, None] * 50)
        program.update(one, replica.ids[::3].tolist(), [0.25] * len(replica.ids[::3]))
        program.update(other, replica.ids[::4].tolist() * 2, [0.5] * (2 * len(replica.ids[::4])))
        program.extend(one, [2.5] * 45)
    finally:
        program.close()


def forgetful(path: Path) -> None:
    """A commit that fails, and a database that forgets and comes to the same revision with other contents."""
    with memstore.open(path, **SETTINGS) as one, memstore.open(path, seed=2) as other:
        one.extend({"x": np.zeros((60, 2))}, loss=1.5, level=2)
        backend = one._session.database.backend
        driver: Any = one._session.database.in_read(lambda conn: type(backend.driver(conn)))
        with pytest.MonkeyPatch.context() as patch:

            def full(_: object) -> None:
                raise sqlite3.OperationalError("database or disk is full")

            patch.setattr(driver, "commit", full)
            with pytest.raises(MemstoreError):
                one.update([1, 2, 3], loss=50.0)
        assert told(one) == told(other)
        past = Past(f"sqlite:///{path}")
        for loss in (2.0, 3.0):
            one.update(np.arange(1, 30), loss=loss)
            told(one)
        past.come_back()
        for loss in (5.0, 6.0):
            other.update(np.arange(20, 60), loss=loss)
        with memstore.open(path) as fresh:
            assert told(one) == told(fresh)


def everywhere(patch: pytest.MonkeyPatch, honest: Any, mistaken: Any) -> None:
    """Replace a function in every module that has imported it."""
    called: str = honest.__name__
    for name, module in list(sys.modules.items()):
        if name.startswith("memstore") and vars(module).get(called) is honest:
            patch.setattr(module, called, mistaken)


def sums_by_difference(patch: pytest.MonkeyPatch) -> None:
    """Add to the sum what has changed, ``+=``."""
    honest = Copy._set

    def set_(self: Copy, blocks: Opened, **words: bool) -> Copy:
        before = self.heads["sum"][blocks.blocks]
        done = honest(self, blocks, **words)
        self.heads["sum"][blocks.blocks] = before + (self.heads["sum"][blocks.blocks] - before)
        return done

    patch.setattr(Copy, "_set", set_)


def sums_without_the_never_measured(patch: pytest.MonkeyPatch) -> None:
    """Take the sum of the measured for the whole mass."""
    honest = Masses.of
    patch.setattr(Masses, "of", lambda view, top: honest(dataclasses.replace(view, gaps=np.zeros_like(view.gaps)), top))


def overlay_since_the_blocks(patch: pytest.MonkeyPatch) -> None:
    """Lay over the tables what the log says since the blocks were stored, not since the tables were folded."""

    def mistaken(honest: Callable[..., Any]) -> Callable[..., Any]:
        def since_the_blocks(snapshot: Snapshot, *arguments: Any, **options: Any) -> Any:
            counters = snapshot.state.counters
            counters = dataclasses.replace(
                counters, folded_inserted=counters.stored_inserted, folded_logged=counters.stored_logged
            )
            state = dataclasses.replace(snapshot.state, counters=counters)
            return honest(dataclasses.replace(snapshot, state=state), *arguments, **options)

        return since_the_blocks

    for honest in (overlay.is_live, overlay.live_episode, overlay.replay_metadata_now):
        everywhere(patch, honest, mistaken(honest))


def places_trusted(patch: pytest.MonkeyPatch) -> None:
    """Take the place where an episode should stand, whoever stands there."""
    honest = Copy.locate

    def locate(self: Copy, ids: Ints, domains: Ints) -> Found:
        places = honest(self, ids, domains).places.copy()
        block = self.directory.find(domains, ids)
        lost = (places < 0) & (block >= 0)
        lost[lost] = self.heads["live"][block[lost]] > 0
        places[lost] = block[lost] << PLACE_BITS
        return Found(self, places)

    patch.setattr(Copy, "locate", locate)


def departures_not_followed(patch: pytest.MonkeyPatch) -> None:
    """Follow adds and replays of others, and not departures."""
    honest = Tail.applied

    def applied(self: Tail, copy: Copy) -> Copy:
        events = dataclasses.replace(self.events, count=np.where(self.events.ends, -1, self.events.count))
        return honest(dataclasses.replace(self, events=events), copy)

    patch.setattr(Tail, "applied", applied)


def departures_not_counted_in_views(patch: pytest.MonkeyPatch) -> None:
    """Leave the sums of views as they were when episodes depart."""
    honest = Copy.departed

    def departed(self: Copy, found: Found) -> Copy:
        left = honest(self, found)
        left.heads["stamp"] = self.heads["stamp"]
        return left

    patch.setattr(Copy, "departed", departed)


def counts_relative(patch: pytest.MonkeyPatch) -> None:
    """Add one for each event in place of taking the count that it names."""
    honest = Copy.patched

    def patched(self: Copy, found: Found, loss: Floats, count: Ints, *rest: Any) -> Copy:
        before = np.zeros(len(count), np.int64)
        before[found.live] = found.slots.count
        return honest(self, found, loss, before + 1, *rest)

    patch.setattr(Copy, "patched", patched)


def contents_without_token(patch: pytest.MonkeyPatch) -> None:
    """Know a content in memory again by the name of its block alone."""
    honest = Copy.replaced

    def replaced(self: Copy, heads: Heads) -> Copy:
        known, at = among(heads["name"], self.heads["name"])
        mine = own(self.heads)
        mine["token"][at[known]] = heads["token"][known]
        return honest(dataclasses.replace(self, heads=mine), heads)

    patch.setattr(Copy, "replaced", replaced)


def lowest_loss_not_followed(patch: pytest.MonkeyPatch) -> None:
    """Take the last loss of a batch for its lowest."""
    honest = Copy.patched

    def patched(self: Copy, found: Found, loss: Floats, count: Ints, event: Ints, *_: Any) -> Copy:
        return honest(self, found, loss, count, event, loss, *_[1:])

    patch.setattr(Copy, "patched", patched)


def revisions_without_token(patch: pytest.MonkeyPatch) -> None:
    """Number the writes, and trust the number."""
    patch.setattr(secrets, "randbits", lambda _: 2**62)


SHARED = (
    sums_by_difference,
    sums_without_the_never_measured,
    overlay_since_the_blocks,
    places_trusted,
    departures_not_followed,
    departures_not_counted_in_views,
    counts_relative,
    contents_without_token,
    lowest_loss_not_followed,
)
CASES = [*((shared, mistake) for mistake in SHARED), (forgetful, revisions_without_token)]
WINDOW = 70


@pytest.mark.parametrize("program", [shared, forgetful], ids=lambda program: str(program.__name__))
def test_the_programs_pass(tmp_path: Path, program: Callable[[Path], None]) -> None:
    with window(WINDOW):
        program(tmp_path / "run.db")


@pytest.mark.parametrize(("program", "mistake"), CASES, ids=lambda one: str(one.__name__))
def test_every_mistake_is_noticed(
    tmp_path: Path, program: Callable[[Path], None], mistake: Callable[[pytest.MonkeyPatch], None]
) -> None:
    with window(WINDOW), pytest.MonkeyPatch.context() as patch:
        mistake(patch)
        with pytest.raises((AssertionError, StoreCorrupt)):
            program(tmp_path / "run.db")
