"""Draws: at once, when enough is there, or for one consumer alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from memstore.asking import MemoryAsker
from memstore.buffer.snapshot import Rows, Snapshot
from memstore.config import check_float, check_seconds
from memstore.draws.batch import Normalize, make_batch
from memstore.draws.filtered import Drawable
from memstore.draws.groups import Grouping
from memstore.draws.strategies import Strategy, as_strategy
from memstore.episodes.inputs import check_count, check_option
from memstore.errors import InvalidValue, MemoryEmpty
from memstore.queries import Column, Condition, col
from memstore.queries.parser import as_condition
from memstore.reader import signature_of
from memstore.sharing import leases, limiter
from memstore.sharing.waiting import check_timeout, wait_until
from memstore.types import Batch
from memstore.values.shown import shown


class MemoryDrawer(MemoryAsker):
    """What takes batches out of a memory, and waits for them."""

    def sample(
        self,
        count: int,
        *,
        strategy: Strategy | str | None = None,
        alpha: float | None = None,
        beta: float = 0.0,
        replacement: bool = False,
        normalize: Normalize = "buffer",
        exact_probability: bool = False,
        timeout: float | None = None,
        where: Condition | str | None = None,
    ) -> Batch:
        """Draw episodes from one consistent snapshot, with their payloads.

        Parameters
        ----------
        count : int
            Without replacement, the default, a memory that holds fewer returns them all.
        strategy, alpha : optional
            In place of the buffer's, for this call.
        beta : float
            Exponent of the importance weights ``(p / p_min) ** -beta`` (Schaul et al. 2016, section 3.4); 0 gives
            ones. They correct the bias exactly at ``beta=1`` with ``replacement=True``, approximately without.
        normalize : "buffer" or "batch"
            What ``p_min`` is taken over. For ``Mixed`` over the buffer it is the share-weighted sum of the components'
            minima: never above the true one, and equal to it when at most one component is not uniform.
        exact_probability : bool
            Compute ``probability`` even where that needs a scan of the buffer.
        timeout : float, optional
            Seconds to wait until ``count`` episodes are live, ``math.inf`` for as long as it takes; by default it does
            not wait. In a buffer with a limiter (``SamplesPerInsert``) that says when to draw, and how many must be
            live: seconds to wait for its turn, by default as long as it takes.
        where : Condition or str, optional
            Draw only from the episodes that pass, such as ``col.domain.in_(["math"]) & (col.level >= 3)``, or as on the
            command line ``"domain = 'math' and level >= 3"``: the strategy's law among them, and ``probability`` is
            that under the condition. When fewer than ``count`` pass,
            all of them, each once. Conditions on domain and loss choose among the strata. Others are tested on the
            candidates; where few pass, a list of those that do finishes the draw. The process keeps what it reads for
            that (lists of 8 conditions, some 40 bytes an episode that passes) and brings it up to date from the
            history. So a condition costs a scan when it is new: in its first draw where fewer than a third pass, else
            in its second. A condition whose constants change in every draw is new every time; ``col.age`` and
            ``col.id`` are not: like loss and replay count they are tested without a query. A scan in every draw is what
            few passing cost where the history is not recorded in full, and for conditions on ``lowest_loss``, ``rise``
            or ``last_replayed_at``, or on two kinds at once with ``|``. ``probability`` is None where many pass a
            condition beyond domains, unless ``exact_probability`` asks for a scan.
            ``normalize="buffer"`` goes by the whole buffer all the same, a constant factor.

        Raises
        ------
        MemoryEmpty
            When there is nothing to draw from, and no ``timeout`` or limiter.
        WaitTimeout
            When the time is over.
        """
        wanted, where = check_count(count), check_where(where)
        work = self._draw(wanted, strategy, alpha, beta, replacement, normalize, exact_probability, where)
        limit = check_timeout(timeout)
        if timeout is not None:
            self._check_reachable(wanted)
        limited = self._session.committed.settings.limiter is not None
        if limited or timeout is not None:
            turn = partial(self._charge, wanted) if limited else partial(self._turn, wanted, where)
            wait_until(self._session, turn, limit, self._standing)
        try:
            return self._session.draw(partial(work, Rows.none()))
        except MemoryEmpty:
            if limited:
                self._session.aside(lambda s: limiter.refund(s, wanted))
            raise

    def sample_groups(
        self,
        groups: int,
        size: int,
        *,
        by: Column = col.domain,
        where: Condition | str | None = None,
        strategy: Strategy | str = "uniform",
    ) -> Batch:
        """Draw whole groups: episodes that share a value, such as the answers to one prompt (GRPO).

        Groups are drawn uniformly, without replacement, among those with at least ``size`` episodes; the episodes of
        each without replacement, by the strategy's law within the group. Rows come group after group, so that
        ``batch.loss.reshape(-1, size)`` has a row for each; ``batch.group`` numbers them, ``probability`` is that of
        the first episode of one group.

        Parameters
        ----------
        groups : int
            When fewer are complete, those.
        size : int
            Episodes of each group, exactly.
        by : Column
            What never changes of an episode: ``col.domain``, ``col.level``, ``col.key``,
            ``col.extra["prompt"].text``. Episodes that have no value there belong to no group.
        where : Condition or str, optional
            As for ``sample``.
        strategy : Strategy or str
            Its probabilities are those in the whole buffer, restricted to the group.

        Raises
        ------
        MemoryEmpty
            When no group is complete.
        """
        wanted, each, grouping = check_count(groups), check_count(size), Grouping(by, check_where(where))
        chosen = as_strategy(strategy)

        def work(snapshot: Snapshot, rng: np.random.Generator) -> Batch:
            drawn_from = self._filtered(snapshot, None)
            found = grouping.draw(drawn_from, rng, chosen, wanted, each)
            if not len(found.rows):
                among = "" if where is None else f" where {where!s:.200}"
                raise MemoryEmpty(
                    f"{self!r} holds no {each} episodes with the same {by}{among}; ask for smaller groups"
                )
            batch = self._batch(drawn_from, chosen, found.rows, 0.0, "batch", exact=False)
            return replace(batch, group=found.group, probability=np.exp2(found.log2_probability))

        return self._session.draw(work)

    def wait(self, *, min_size: int = 1, timeout: float | None = None) -> int:
        """Wait until so many episodes are live; returns how many there are.

        It ends soon after the commit that brings them, whichever process makes it: PostgreSQL notifies, SQLite's change
        counter is polled. Nothing is locked meanwhile.

        Parameters
        ----------
        min_size : int
        timeout : float, optional
            Seconds; by default as long as it takes.

        Raises
        ------
        WaitTimeout
            When the time is over.
        MemoryClosed
            When another thread closes the memory.
        """
        wanted = check_count(min_size)
        limit = check_timeout(timeout)
        self._check_reachable(wanted)
        return wait_until(self._session, partial(self._turn, wanted), limit, self._standing)

    def lease(
        self,
        count: int,
        timeout: float = 60.0,
        *,
        strategy: Strategy | str | None = None,
        alpha: float | None = None,
        beta: float = 0.0,
        normalize: Normalize = "buffer",
        exact_probability: bool = False,
        wait: float = 0.0,
        where: Condition | str | None = None,
    ) -> Batch:
        """Draw episodes that no other consumer holds, and hold them: each has one consumer at a time.

        The lease ends with ``update(batch, ...)`` or ``release(batch)``; with neither after ``timeout`` seconds, when
        the consumer counts as dead and others get the episodes. ``renew(batch)`` asks for more time. Committed on
        return; the law is that of a draw among the episodes not held. ``sample`` does not look at leases.

        Parameters
        ----------
        count : int
            When fewer are free, those.
        timeout : float > 0
            Seconds, by the database's clock: choose several times what a step takes.
        strategy, alpha, beta, normalize, exact_probability, where
            As for ``sample``; the probability is that of a draw among all.
        wait : float
            Seconds to wait while none is free, ``math.inf`` for as long as it takes.

        Raises
        ------
        MemoryEmpty
            When nothing is free and ``wait`` is 0.
        WaitTimeout
            When nothing became free in time.
        """
        wanted = check_count(count)
        seconds = check_seconds("timeout", timeout, exclusive=True)
        patience = check_timeout(wait)
        draw = self._draw(wanted, strategy, alpha, beta, False, normalize, exact_probability, check_where(where))

        def work(snapshot: Snapshot, rng: np.random.Generator) -> Batch:
            now = snapshot.backend.clock(snapshot.conn)
            batch = draw(leases.held(snapshot, now), snapshot, rng)
            return leases.grant(snapshot, batch, self.consumer, now + seconds)

        def attempt() -> Batch | None:
            try:
                return self._session.draw(work, write=True)
            except MemoryEmpty:
                return None

        if not patience:
            return self._session.draw(work, write=True)
        return wait_until(self._session, attempt, patience, lambda: f"{self!r} has no episode that is free to lease")

    def release(self, batch: Batch) -> int:
        """Give leased episodes back unused; returns how many of them this lease still held. Committed on return."""
        token = _token(batch)
        return self._session.write(lambda s: leases.release(s, token))

    def renew(self, batch: Batch, timeout: float = 60.0) -> int:
        """Hold leased episodes for ``timeout`` seconds from now; returns how many this lease still holds.

        Fewer than ``len(batch)`` means that time was over before, and others may have the rest.
        """
        token, seconds = _token(batch), check_seconds("timeout", timeout, exclusive=True)
        return self._session.write(lambda s: leases.renew(s, token, seconds))

    def _draw(
        self,
        wanted: int,
        strategy: Strategy | str | None,
        alpha: float | None,
        beta: float,
        replacement: bool,
        normalize: Normalize,
        exact: bool,
        where: Condition | None,
    ) -> Callable[[Rows, Snapshot, np.random.Generator], Batch]:
        """A draw as a function of the rows it must not touch, snapshot and generator; arguments are checked here."""
        beta = check_float("beta", beta)
        check_option("normalize", normalize, "buffer", "batch")

        def work(taken: Rows, committed: Snapshot, rng: np.random.Generator) -> Batch:
            snapshot = self._filtered(committed, where)
            taken = taken.take(snapshot.passing(taken))
            chosen = self._default_strategy(snapshot) if strategy is None else as_strategy(strategy)
            if alpha is not None:
                chosen = chosen.with_alpha(alpha)
            rows = Rows.none()
            if snapshot.live > len(taken):
                rows = chosen.draw(snapshot, rng, wanted, taken, replacement=replacement)
            if not len(rows):
                among = "" if where is None else f" where {where!s:.200}"
                held = f"; {len(taken)} are leased" if len(taken) else "; add some first"
                raise MemoryEmpty(f"{self!r} holds no episode that {chosen.name} can draw{among}{held}")
            return self._batch(snapshot, chosen, rows, beta, normalize, exact=exact)

        return work

    def _batch(
        self,
        snapshot: Drawable,
        strategy: Strategy,
        rows: Rows,
        beta: float,
        normalize: Normalize,
        *,
        exact: bool,
    ) -> Batch:
        signature = signature_of(snapshot)
        assert signature is not None
        keep = not self._session.database.transaction_open
        cache = self._session.cache
        return make_batch(
            snapshot, strategy, rows, signature, cache, keep=keep, beta=beta, normalize=normalize, exact=exact
        )

    def _filtered(self, snapshot: Snapshot, where: Condition | None) -> Drawable:
        keep = not self._session.database.transaction_open
        return Drawable.of(snapshot, where, self._session.populations, keep=keep)

    def _turn(self, wanted: int, where: Condition | None = None) -> int | None:
        live = len(self) if where is None else self.query().filter(where).count()
        return live if live >= wanted else None

    def _charge(self, count: int) -> int | None:
        return count if self._session.aside(lambda s: limiter.charge(s, count)) else None

    def _check_reachable(self, wanted: int) -> None:
        if wanted > (capacity := self.capacity):
            raise InvalidValue(f"{wanted} episodes can never be there: the capacity is {capacity}")

    def _standing(self) -> str:
        return self._session.read(lambda s: f"{self!r} holds {s.live} episodes{limiter.standing(s)}")


def check_where(where: Condition | str | None) -> Condition | None:
    """The condition on episodes, from itself or its text; refuse what is none."""
    return None if where is None else as_condition(where)


def _token(batch: Any) -> str:
    if not isinstance(batch, Batch) or batch.lease is None:
        raise InvalidValue(f"expected a batch that lease() returned, got {shown(batch)}")
    return batch.lease
