"""Draws for one handle on a buffer: ``sample``, ``lease``, ``sample_groups``, and the waiting before them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np

from memstore.buffer.blocks.slots import Ints
from memstore.buffer.session import Session
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.draws.batch import DrawOptions, make_batch
from memstore.draws.groups import Grouping
from memstore.draws.knowledge import Knowledge
from memstore.draws.pool import Pool, Request
from memstore.draws.strategies import Strategy, as_strategy
from memstore.episodes.inputs import check_count
from memstore.errors import InvalidValue, MemoryEmpty
from memstore.queries.columns import Column, Condition
from memstore.queries.parser import as_condition
from memstore.queries.query import Query
from memstore.sharing import leases, limiter
from memstore.sharing.waiting import Patience, check_wait
from memstore.types import Batch, Seconds


def check_where(where: Condition | str | None) -> Condition | None:
    """Return the condition on episodes, parsed if it is a text. None means no condition."""
    return None if where is None else as_condition(where)


def _among(where: Condition | None) -> str:
    return "" if where is None else f" where {where!s:.200}"


class Sampler:
    """Draws batches for one handle.

    Parameters
    ----------
    session : Session
    knowledge : Knowledge
        The lists that the process keeps for conditions of earlier draws.
    own : Strategy or None
        The handle's own default. None stands for the default of the buffer.
    named : str
        The name of the memory in messages.
    """

    def __init__(self, session: Session, knowledge: Knowledge, own: Strategy | None, named: str) -> None:
        self.own = own
        self._session = session
        self._knowledge = knowledge
        self._named = named

    def default(self, snapshot: Snapshot) -> Strategy:
        """Return the strategy of a call that gives none."""
        return self.own or as_strategy(snapshot.settings.strategy)

    def standing(self) -> str:
        """Return a text with the number of live episodes, for the error of a wait that took too long."""
        return f"{self._named} {self._session.read(limiter.standing)}"

    def sample(self, options: DrawOptions, wait: Seconds | None) -> Batch:
        """Wait for the turn of the draw, and draw a batch. See ``EpisodicMemory.sample``."""
        limited = self._session.committed.settings.limiter is not None
        seconds = math.inf if wait is None else check_wait(wait)
        if wait is not None:
            self._check_reachable(options.count)
        if limited:
            self._until(lambda: self._session.aside(lambda s: limiter.charge(s, options.count)), seconds)
        elif wait is not None:
            self._until(lambda: self._live(options.where) >= options.count, seconds)
        try:
            return self._session.drawing().run(partial(self._drawn, options, None))
        except MemoryEmpty:
            if limited:
                self._session.aside(lambda s: limiter.refund(s, options.count))
            raise

    def lease(self, options: DrawOptions, duration: Seconds, wait: Seconds, consumer: str) -> Batch:
        """Draw a batch of episodes that no consumer holds, and hold them. See ``EpisodicMemory.lease``."""
        held_for, seconds = leases.check_duration(duration), check_wait(wait)

        def work(snapshot: Snapshot, rng: np.random.Generator) -> Batch:
            now = snapshot.backend.clock(snapshot.conn)
            batch = self._drawn(options, leases.held(snapshot, now), snapshot, rng)
            return leases.grant(snapshot, batch, consumer, now + held_for)

        with Patience(self._session, seconds, lambda: f"{self._named} has no episode that is free to lease") as patient:
            while True:
                try:
                    return self._session.drawing(write=True).run(work)
                except MemoryEmpty:
                    if not seconds:
                        raise
                patient.pause()

    def wait(self, min_size: int, wait: Seconds) -> int:
        """Wait until ``min_size`` episodes are live, and return the number of live episodes."""
        wanted, seconds = check_count(min_size, "min_size"), check_wait(wait)
        self._check_reachable(wanted)
        with Patience(self._session, seconds, self.standing) as patient:
            while (live := self._live(None)) < wanted:
                patient.pause()
        return live

    def sample_groups(
        self, groups: int, size: int, by: Column, where: Condition | str | None, strategy: Strategy | str
    ) -> Batch:
        """Draw whole groups; see ``EpisodicMemory.sample_groups``."""
        wanted, each = check_count(groups, "groups"), check_count(size, "size")
        grouping = Grouping(by, check_where(where))
        chosen = as_strategy(strategy)
        options = DrawOptions(wanted)

        def work(snapshot: Snapshot, rng: np.random.Generator) -> Batch:
            pool = self._pool(snapshot, None)
            drawn = grouping.draw(pool, chosen, Request(wanted, rng), each)
            if not len(drawn):
                same = f"{each} episodes with the same {by}{_among(grouping.where)}"
                raise MemoryEmpty(f"{self._named} holds no {same}; ask for smaller groups")
            batch = make_batch(pool, chosen, drawn, self._session, options)
            return replace(batch, group=np.repeat(np.arange(len(drawn) // each), each))

        return self._session.drawing().run(work)

    def _drawn(self, options: DrawOptions, leased: Rows | None, snapshot: Snapshot, rng: np.random.Generator) -> Batch:
        """Draw from one snapshot, outside the ``leased`` rows."""
        pool = self._pool(snapshot, options.where)
        taken: Ints = np.empty(0, np.int64)
        if leased is not None and len(leased):
            taken = pool.copy.locate(leased.ids, leased.domain).places
            taken = taken[pool.passing(taken)]
        chosen = self.default(snapshot) if options.strategy is None else as_strategy(options.strategy)
        if options.alpha is not None:
            chosen = chosen.with_alpha(options.alpha)
        asked = Request(options.count, rng, taken, options.replacement, options.exact, weighted=options.beta > 0)
        drawn = chosen.draw(pool, asked)
        if not len(drawn):
            why = f"{_among(options.where)}; " + (f"{len(taken)} are leased" if len(taken) else "add some first")
            raise MemoryEmpty(f"{self._named} holds no episode that {chosen.name} can draw{why}")
        return make_batch(pool, chosen, drawn, self._session, options)

    def _pool(self, snapshot: Snapshot, where: Condition | None) -> Pool:
        keep = not self._session.database.transaction_open
        return Pool.of(snapshot, where, self._knowledge, keep=keep)

    def _until(self, ready: Callable[[], bool], seconds: float) -> None:
        with Patience(self._session, seconds, self.standing) as patient:
            while not ready():
                patient.pause()

    def _live(self, where: Condition | None) -> int:
        if where is None:
            return self._session.read(lambda s: s.live)
        return Query(self._session.read, "episodes").filter(where).count()

    def _check_reachable(self, wanted: int) -> None:
        capacity = self._session.read(lambda s: s.settings.capacity)
        if wanted > capacity:
            raise InvalidValue(f"{wanted} episodes can never be there: the capacity is {capacity}; raise it")
