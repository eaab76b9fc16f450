"""``EpisodicMemory``: the one public class. It checks nothing and holds no SQL: each method asks a room below."""

from __future__ import annotations

import math
import os
import socket
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, SupportsFloat, SupportsIndex

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import URL

from memstore.config import (
    DEFAULT_BUSY_TIMEOUT,
    DEFAULT_CACHE_BYTES,
    UNCHANGED,
    Durability,
    History,
    SamplesPerInsert,
    Unchanged,
    check_name,
)
from memstore.draws.batch import DrawOptions
from memstore.draws.sampler import Sampler, check_where
from memstore.draws.strategies import Strategy
from memstore.episodes import checkpoint, insert, recall, replay
from memstore.episodes.eviction import Eviction
from memstore.episodes.inputs import (
    check_count,
    check_ids,
    check_option,
)
from memstore.episodes.log import Group
from memstore.opening import Handle, Opened, open_buffer, reopen_buffer
from memstore.payload.document import pack
from memstore.payload.signature import Signature
from memstore.queries.columns import Column, Condition, Over, col
from memstore.queries.history import history
from memstore.queries.query import Query
from memstore.queries.records import LossTrend, ReplayEvent, ReplayShare
from memstore.sharing import leases
from memstore.storage.blocks import Block
from memstore.storage.statements import Trace
from memstore.types import (
    Batch,
    CheckReport,
    Each,
    Episode,
    EvictionPolicy,
    Extra,
    Ids,
    Losses,
    Match,
    Normalize,
    Payload,
    ReplayMetadata,
    ReplayStats,
    Retention,
    RetentionPolicy,
    Seconds,
    Steps,
    Tags,
    Time,
    TrainerState,
    UpdateResult,
    Vector,
)
from memstore.upkeep import removal, retention, trends
from memstore.upkeep import settings as maintenance
from memstore.upkeep import stats as health
from memstore.upkeep.check import check
from memstore.values.letting_go import held_until_done


class EpisodicMemory:
    """A persistent experience-replay memory; ``memstore.open`` makes one.

    Every change is committed when the call returns, unless inside ``transaction()``, and is then visible to every
    process. Reads and draws never wait for writers; under a limiter a draw is counted, which is a write. A forked child
    gets its own connections and its own random stream; a pickled handle opens the same buffer where it is unpickled.

    Threads and asyncio tasks may share a memory. A ``transaction()`` belongs to the thread and task that opened it, and
    so does the generator until the block ends. Draws of others use generators of a second stream from the same seed
    meanwhile; no checkpoint holds that stream. Outside of blocks all draw from the one generator, one after the other.
    Writes of other threads wait for the end of the block; if they would wait for ever, ``ForeignTransaction`` is raised
    at once.

    An interrupt (Ctrl-C, a signal handler that raises ``SystemExit``) comes out as itself: what was open is undone, or
    was committed as a whole, and the next call works.

    Arguments of a wrong type or range raise ``InvalidValue`` or ``ConfigError``, which are both a ``ValueError``;
    nothing is written then.
    """

    def __init__(self, opened: Opened, *, consumer: str | None = None) -> None:
        self._session = opened.session
        self._name = opened.name
        self._resumed = opened.resumed
        self._given_consumer = consumer
        self._populations = opened.populations
        self._sampler = Sampler(opened.session, opened.populations, opened.strategy, repr(self))

    # What it is

    @property
    def name(self) -> str:
        """Name of the buffer within its database."""
        return self._name

    @property
    def url(self) -> str:
        """Address of the database, with its password hidden."""
        return self._session.database.backend.describe()

    @property
    def consumer(self) -> str:
        """Name of this consumer in the history and the leases: as given to ``open``, else host and process number."""
        return self._given_consumer or f"{socket.gethostname()}:{os.getpid()}"

    @property
    def resumed(self) -> bool:
        """True if the buffer existed before this memory was opened."""
        return self._resumed

    @property
    def rng(self) -> np.random.Generator:
        """The generator behind every draw. Its state is in every checkpoint."""
        return self._session.rng

    @property
    def capacity(self) -> int:
        """Largest number of live episodes."""
        return self._session.read(lambda s: s.settings.capacity)

    @property
    def strategy(self) -> Strategy:
        """The strategy that ``sample`` uses when it is given none."""
        return self._session.read(self._sampler.default)

    @property
    def signature(self) -> Signature | None:
        """Fields of the payloads. None until the first add."""
        return self._session.read(lambda s: s.settings.signature)

    def __len__(self) -> int:
        return self._session.read(lambda s: s.live)

    def __contains__(self, episode_id: Ids) -> bool:
        return len(self._session.read(lambda s: s.find(check_ids(episode_id)))) == 1

    def __repr__(self) -> str:
        return f"<EpisodicMemory {self._name!r} at {self.url}>"

    # Episodes that are here

    def get(self, episode_id: int) -> Episode:
        """Return the live episode with this id, with its payload.

        Raises
        ------
        EpisodeNotFound
            When it was never added, was evicted or was deleted.
        StoreCorrupt
            When what is stored does not match its checksums. This holds for every call that returns payloads.
        """
        return recall.episodes(self._session, episode_id)[0]

    def get_many(self, ids: Ids) -> list[Episode]:
        """Return live episodes with their payloads, in the order of the ids, from one snapshot.

        Raises
        ------
        EpisodeNotFound
            When one of them is not live.
        """
        return recall.episodes(self._session, ids)

    def metadata(self, ids: Ids) -> list[ReplayMetadata]:
        """Return replay metadata in the order of the ids, from one snapshot; raises ``EpisodeNotFound`` as ``get``."""
        return recall.metadata(self._session, ids)

    def ids_of(self, keys: Iterable[str]) -> list[int | None]:
        """Return the ids under which these keys were first added, None for a key that was never added.

        A key stays known when its episode has left.
        """
        return recall.ids_of(self._session, keys)

    def recall_temporal(
        self, start: Time, end: Time, *, domain: str | None = None, limit: int | None = None
    ) -> list[Episode]:
        """Return the episodes whose timestamp lies in [start, end], both inclusive, by timestamp, then id.

        Parameters
        ----------
        start, end : float (seconds), aware datetime or datetime64
        domain : str, optional
            Only episodes of this domain.
        limit : int, optional
            At most so many, the earliest.
        """
        return recall.between(self._session, start, end, domain, limit)

    def recall_by_tags(
        self, tags: Tags, *, match: Literal["any", "all"] = "any", limit: int | None = None
    ) -> list[Episode]:
        """Return the episodes that carry any, or all, of the tags, oldest first; with ``limit`` at most so many."""
        return recall.tagged(self._session, tags, match, limit)

    def recall(self, query: Vector, *, on: str, limit: int = 10) -> list[Match]:
        """Return the episodes nearest to ``query`` by the Euclidean distance of their field ``on``, nearest first.

        Reads every payload once: the time is proportional to the buffer, the memory used is not.

        Parameters
        ----------
        query : array of real numbers
            As many as the field holds, in any shape.
        on : str
            Name of a field of real numbers of fixed shape; ``"obs/position"`` for a nested one.
        limit : int
            At most so many.
        """
        return recall.nearest(self._session, query, on, limit)

    def stats(self, *, exact: bool = False) -> ReplayStats:
        """Return the health of the buffer, in time independent of its size.

        ``exact=True`` scans the losses: quantiles and histogram are then those of the losses themselves. Otherwise they
        are those of the mean losses of the strata. Each stratum spans a factor of the square root of 2.
        """
        return self._session.read(
            lambda s: health.stats(s, self._name, self._sampler.default(s), self._session.cache.stats(), exact=exact)
        )

    def check(self) -> CheckReport:
        """Verify every invariant, reading the whole buffer: positions, bounds, counts, sums, checksums, orphans."""
        return self._session.read(check)

    # Questions

    def query(self, over: Over = "episodes") -> Query:
        """Return a query over the live episodes, or over the events of the ``"history"``.

        See ``memstore.col`` for the columns: ``memory.query().filter(col.loss > 2).order_by(col.loss.descending)``.
        In the history the columns of an episode itself (level, extra, loss ...) are missing once it has left; its id
        and domain stay.
        """
        check_option("over", over, "episodes", "history")
        return Query(self._session.read, over)

    def history(
        self,
        *,
        episode: Ids | None = None,
        domain: str | None = None,
        consumer: str | None = None,
        steps: Steps | None = None,
        since: Time | None = None,
        until: Time | None = None,
        limit: int | None = None,
    ) -> list[ReplayEvent]:
        """Return what was replayed, with the loss before and after, and what left and why; in the order of events.

        Events outlive their episode. They are found through indexes by episode, step and time; by domain or consumer
        alone, the history is scanned, newest first, until ``limit`` events are found.

        Parameters
        ----------
        episode : int, or several, optional
            Ids of episodes, live or not.
        domain, consumer : str, optional
        steps : int or (first, last), optional
            The trainer's steps, both inclusive.
        since, until : float (seconds) or aware datetime, optional
            Both inclusive.
        limit : int, optional
            At most so many, the newest.
        """
        return history(self.query("history"), episode, domain, consumer, steps, since, until, limit)

    def hardest(self, n: int = 10) -> list[Episode]:
        """Return the episodes with the largest losses, largest first, without payloads; by the index on loss."""
        return self.query().filter(col.loss.is_known()).order_by(col.loss.descending).limit(check_count(n, "n")).all()

    def most_replayed(self, n: int = 10) -> list[Episode]:
        """Return the episodes with the most loss updates, most first, without payloads; scans the replay metadata."""
        found = self.query().filter(col.replay_count > 0).order_by(col.replay_count.descending)
        return found.limit(check_count(n, "n")).all()

    def never_replayed(self, n: int = 10) -> list[Episode]:
        """Return the oldest episodes without a loss update, without payloads; scans until it has found ``n``."""
        return self.query().filter(col.replay_count == 0).limit(check_count(n, "n")).all()

    def forgotten(self, n: int = 10) -> list[Episode]:
        """Return the episodes whose loss has risen furthest above its lowest, furthest first, without payloads.

        No loss can have risen by more than its size. So the hardest episodes are looked at by the index on loss; where
        they do not decide it, the replay metadata is scanned.
        """
        most = check_count(n, "n")
        return self._session.read(lambda s: trends.forgotten(s, most))

    def loss_trend(self, by: Literal["domain"] | None = "domain", *, points: int = 60) -> list[LossTrend]:
        """Return mean losses in the course of the replays, for each domain, or for all together (``by=None``).

        Each point stands for about the same number of replays. They come from the tally, which counts every replay in
        slots of 1/256 of the replays so far. The tally is kept when the history is pruned, and its size does not grow
        with the history.

        Parameters
        ----------
        by : "domain" or None
        points : int
            At most so many for each domain.
        """
        if by is not None:
            check_option("by", by, "domain")
        most = check_count(points, "points")
        return self._session.read(lambda s: trends.loss_trend(s, most, by_domain=by is not None))

    def replay_share(self, by: Literal["domain"] = "domain") -> list[ReplayShare]:
        """Return each domain's share of the episodes and replays, and the share the strategy aims at; largest first.

        From the strata and the tally, in time independent of the number of episodes and events.
        """
        check_option("by", by, "domain")
        return self._session.read(lambda s: trends.replay_share(s, self._sampler.default(s)))

    # Drawing

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
        wait: Seconds | None = None,
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
        replacement : bool
            True if an episode may be drawn several times.
        normalize : "buffer" or "batch"
            ``p_min`` is the smallest probability of the buffer, or of the batch. For ``Mixed`` over the buffer it is
            the share-weighted sum of the components' minima: never above the true one, and equal to it when at most one
            component is not uniform.
        exact_probability : bool
            Compute ``probability`` even where that needs a scan of the buffer.
        wait : float, optional
            Seconds to wait until ``count`` episodes are live: 0 does not wait, ``math.inf`` waits for as long as it
            takes. In a buffer with a limiter (``SamplesPerInsert``) the limiter says when to draw, and how many
            episodes must be live: these are the seconds to wait for the draw's turn. The default, None, does not wait
            and does not ask for ``count`` episodes; with a limiter it waits for as long as it takes.
        where : Condition or str, optional
            Draw only from the episodes that pass, such as ``col.domain.in_(["math"]) & (col.level >= 3)``, or as on the
            command line ``"domain = 'math' and level >= 3"``. The strategy's law holds among them, and ``probability``
            is that under the condition. When fewer than ``count`` pass, all of them are drawn, each once.

        Returns
        -------
        Batch
            Rows in the order drawn.

        Raises
        ------
        MemoryEmpty
            When there is nothing to draw from.
        WaitTimeout
            When the time is over.
        InvalidValue
            When ``wait`` is given and ``count`` is above the capacity.

        Notes
        -----
        What a condition costs: conditions on domain and loss choose among the strata. Others are tested on the
        candidates; where few pass, a list of those that do finishes the draw. The process keeps what it reads for that
        (lists of 8 conditions, some 40 bytes for each episode that passes) and brings it up to date from the history.
        So a condition costs a scan when it is new: in its first draw if fewer than a third pass, else in its second. A
        condition with constants that change in every draw is new every time. ``col.age`` and ``col.id`` may change:
        like loss and replay count they are tested without a query. If few pass, each draw scans where the history is
        not recorded in full, for conditions on ``lowest_loss``, ``rise`` or ``last_replayed_at``, and for conditions
        that join two kinds with ``|``.

        Under a condition beyond domains that many pass, ``probability`` is None unless ``exact_probability`` asks for a
        scan. ``normalize="buffer"`` goes by the whole buffer all the same, which is a constant factor.
        """
        asked = DrawOptions(count, strategy, alpha, beta, normalize, exact_probability, check_where(where), replacement)
        return self._sampler.sample(asked, wait)

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
            A column of an episode that never changes: ``col.domain``, ``col.level``, ``col.key``,
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
        return self._sampler.sample_groups(groups, size, by, where, strategy)

    def wait(self, *, min_size: int = 1, wait: Seconds = math.inf) -> int:
        """Wait until so many episodes are live; returns how many there are.

        It ends soon after the commit that brings them, whichever process makes it: PostgreSQL notifies, SQLite's change
        counter is polled. Nothing is locked meanwhile.

        Parameters
        ----------
        min_size : int
        wait : float
            Seconds: 0 does not wait, ``math.inf``, the default, waits for as long as it takes.

        Raises
        ------
        WaitTimeout
            When the time is over.
        MemoryClosed
            When another thread closes the memory.
        """
        return self._sampler.wait(min_size, wait)

    def lease(
        self,
        count: int,
        *,
        duration: Seconds = 60.0,
        strategy: Strategy | str | None = None,
        alpha: float | None = None,
        beta: float = 0.0,
        normalize: Normalize = "buffer",
        exact_probability: bool = False,
        wait: Seconds = 0.0,
        where: Condition | str | None = None,
    ) -> Batch:
        """Draw episodes that no other consumer holds, and hold them: each has one consumer at a time.

        The lease ends with ``update(batch, ...)`` or ``release(batch)``; with neither after ``duration`` seconds, when
        the consumer counts as dead and others get the episodes. ``renew(batch)`` asks for more time. Committed on
        return; the law is that of a draw among the episodes not held. ``sample`` does not look at leases.

        Parameters
        ----------
        count : int
            When fewer are free, those.
        duration : float > 0
            Seconds, by the database's clock: choose several times what a step takes.
        strategy, alpha, beta, normalize, exact_probability, where
            As for ``sample``; the probability is that of a draw among all.
        wait : float
            Seconds to wait while none is free: 0, the default, does not wait, ``math.inf`` waits for as long as it
            takes.

        Raises
        ------
        MemoryEmpty
            When nothing is free and ``wait`` is 0.
        WaitTimeout
            When nothing became free in time.
        """
        asked = DrawOptions(count, strategy, alpha, beta, normalize, exact_probability, check_where(where))
        return self._sampler.lease(asked, duration, wait, self.consumer)

    def release(self, batch: Batch) -> int:
        """Give leased episodes back unused; returns how many of them this lease still held. Committed on return."""
        return leases.release(self._session, batch)

    def renew(self, batch: Batch, *, duration: Seconds = 60.0) -> int:
        """Hold leased episodes for ``duration`` seconds from now; returns how many this lease still holds.

        Fewer than ``len(batch)`` means that the time was over before, and others may have the rest.
        """
        return leases.renew(self._session, batch, duration)

    # Changing

    def add(
        self,
        payload: Payload,
        *,
        domain: str = "default",
        loss: SupportsFloat | None = None,
        timestamp: Time | None = None,
        level: SupportsIndex | None = None,
        tags: Tags = (),
        key: str | None = None,
        extra: Extra = None,
        wait: Seconds = math.inf,
    ) -> int:
        """Add one episode; committed on return. Parameters as for ``extend``, each of them one value.

        Returns
        -------
        int
            The episode's id; with a ``key`` that was seen before, that of the first episode with this key.
        """
        columns = {"domain": domain, "loss": loss, "timestamp": timestamp, "level": level, "tags": tags, "key": key}
        offer = (payload, columns | {"extra": extra}, wait)
        return int(insert.add(self._session, *offer, self.consumer, self._sampler.standing, one=True)[0])

    def extend(
        self,
        payload: Payload,
        *,
        domain: Each[str] = "default",
        loss: Each[SupportsFloat | None] = None,
        timestamp: Each[Time | None] = None,
        level: Each[SupportsIndex | None] = None,
        tags: Tags | Iterable[Tags | None] = (),
        key: Each[str | None] = None,
        extra: Extra = None,
        wait: Seconds = math.inf,
    ) -> NDArray[np.int64]:
        """Add n episodes in one commit: all of them or none. Every keyword takes one value or a sequence of n.

        Parameters
        ----------
        payload : dict
            Fields of n rows each: arrays of shape (n, ...), or lists of n arrays, numbers, str or bytes; may be
            nested. Tensors are detached and copied to the CPU. The first add fixes the buffer's signature.
        domain : str
            What the episode belongs to: a task, an environment, a data source.
        loss : float >= 0, optional
            As measured by the trainer. None means never measured: such an episode is drawn with the highest priority.
        timestamp : float, aware datetime or datetime64, optional
            Seconds; now by default. A datetime64 is UTC. Beyond 1e11 (the year 5138) it is refused as milliseconds.
        level : int, optional
        tags : sequence of str
        key : str, optional
            Idempotency key: adding it again is a no-op that returns the first id, also after a crash or an eviction.
        extra : JSON value, optional
            Numpy and PyTorch scalars become numbers, arrays lists; whole numbers of any size are kept exactly.
        wait : float
            Seconds to wait while the buffer's limiter (``SamplesPerInsert``) holds adds back: 0 does not wait,
            ``math.inf``, the default, waits for as long as it takes. One value for all. Without a limiter no add waits.

        Returns
        -------
        int64 array, shape (n,)
            Ids in the order given; consecutive except for repeated keys.

        Raises
        ------
        PayloadError, InvalidValue
            When anything is refused; nothing was written.
        MemoryFull
            Under eviction policy ``none``, when they do not all fit.
        WaitTimeout
            When the limiter did not admit them in time; nothing was written.
        """
        columns = {"domain": domain, "loss": loss, "timestamp": timestamp, "level": level, "tags": tags, "key": key}
        offer = (payload, columns | {"extra": extra}, wait)
        return insert.add(self._session, *offer, self.consumer, self._sampler.standing, one=False)

    def delete(self, ids: Ids | None = None, *, where: Condition | str | None = None) -> int:
        """Remove episodes in one commit: those with these ids, or all that pass a condition.

        Keys of removed episodes stay known, and the history records each departure as ``deleted``. Takes the write lock
        for as long as it works: 60 to 80 us an episode.

        Parameters
        ----------
        ids : int or several, optional
            Those that are not live are ignored.
        where : Condition or str, optional
            In place of ids, such as ``(col.loss < 0.1) & (col.replay_count > 5)`` or ``"loss < 0.1"``.

        Returns
        -------
        int
            How many were removed.

        Raises
        ------
        InvalidValue
            When neither or both are given, or ``where`` is no condition on live episodes; nothing was removed.
        """
        return removal.delete(self._session, ids, where, self.consumer)

    def clear(self) -> int:
        """Remove every live episode in one commit; returns how many there were.

        These stay: the history (with a departure ``deleted`` for each), the tally behind ``loss_trend``, the keys ever
        given, checkpoints, settings and signature. The counters stay too, so that no id is used again, the largest
        priority ever measured is remembered, and a reservoir goes on with its stream.
        """
        return removal.clear(self._session, self.consumer)

    def consolidate(self, policy: RetentionPolicy, *, dry_run: bool = False, now: Time | None = None) -> Retention:
        """Remove what the policy does not keep, in one commit; with ``dry_run`` only count it.

        Looking for similar payloads reads them all, before the write lock is taken, so that other writers do not wait
        for it.

        Parameters
        ----------
        policy : RetentionPolicy
        dry_run : bool
        now : float (seconds), aware datetime or datetime64, optional
            The moment that ``max_age`` counts back from.
        """
        return retention.consolidate(self._session, policy, now, self.consumer, dry_run=dry_run)

    def configure(
        self,
        *,
        capacity: int | Unchanged = UNCHANGED,
        strategy: Strategy | str | Unchanged = UNCHANGED,
        alpha: float | Unchanged = UNCHANGED,
        eviction: Eviction | EvictionPolicy | str | Unchanged = UNCHANGED,
        max_replays: int | Unchanged | None = UNCHANGED,
        limiter: SamplesPerInsert | Unchanged | None = UNCHANGED,
        history: History | Unchanged | None = UNCHANGED,
    ) -> int:
        """Change stored settings for every process, in one commit.

        A setting that is left out, or is ``UNCHANGED``, stays as it is. None means off.

        Parameters
        ----------
        capacity : int
            Shrinking evicts, by the eviction policy.
        strategy, alpha
            They hold from now on for this handle too. Another exponent of the losses scans the buffer once.
        eviction : Eviction or str
            Another policy scans the buffer once.
        max_replays : int or None
            None: an episode stays, however often it is replayed.
        limiter : SamplesPerInsert or None
            A new one counts from now on. None: draws and adds never wait.
        history : History or None
            What the policy need not keep is forgotten at once. None: nothing is recorded from now on.

        Returns
        -------
        int
            How many episodes were evicted.

        Raises
        ------
        ConfigError
            A value is invalid; nothing was changed.
        """
        changes = maintenance.Changes(
            capacity=capacity,
            strategy=strategy,
            alpha=alpha,
            eviction=eviction,
            max_replays=max_replays,
            limiter=limiter,
            history=history,
        )
        group = Group(time.time(), self.consumer)
        evicted = self._session.write(lambda s: maintenance.reconfigure(s, changes, group))
        if changes.strategy is not UNCHANGED or changes.alpha is not UNCHANGED:
            self._sampler.own = None
        return len(evicted)

    def update(
        self,
        replayed: Batch | Ids,
        *,
        loss: Losses,
        step: SupportsIndex | None = None,
        on_invalid: Literal["raise", "skip"] = "raise",
    ) -> UpdateResult:
        """Write losses back, and one replay event each, in one commit. A leased batch is released by it.

        Parameters
        ----------
        replayed : Batch or ids
            An id given twice counts as two replays; its last loss stays.
        loss : array or tensor of n, or one number
            Finite and >= 0. A tensor is detached.
        step : int, optional
            The trainer's step, for the history.
        on_invalid : "raise" or "skip"
            What to do with losses that are NaN, infinite or negative: refuse everything, or write the valid ones and
            report the others as ``rejected``.

        Returns
        -------
        UpdateResult
            The ids that were updated, those that were missing, and those whose loss was rejected.

        Raises
        ------
        InvalidValue
            When a loss is refused, or there is not one for each id; nothing was written.
        """
        return replay.update(self._session, replayed, loss, step, on_invalid, self.consumer)

    # Transactions, checkpoints, life

    def transaction(self) -> Block[EpisodicMemory]:
        """Make everything inside one commit: episodes, losses, history, checkpoint and the generator's state.

        It holds the buffer's write lock from the start: wrap update and checkpoint in it, not the training step. On an
        exception nothing of the block remains, and ids seen inside are void. Nested blocks are savepoints.

        Raises
        ------
        ForeignTransaction
            When another task of this thread has a block open; also of a block that is to be committed by another thread
            or task than the one that opened it.
        TransactionDead
            At the end of a block that the database, or an interrupt inside one of its calls, has ended.
        """
        return self._session.transaction(self)

    @property
    def transaction_depth(self) -> int:
        """How many ``transaction()`` blocks this thread is in: 0 outside of any."""
        return self._session.database.transaction_depth

    def save_checkpoint(self, name: str, state: TrainerState) -> None:
        """Store the state of a trainer together with the state of the memory's generator.

        It replaces the checkpoint of the same name, and is atomic and durable like every write. Inside
        ``transaction()`` it commits together with the episodes and losses of the block.

        Parameters
        ----------
        name : str
        state : dict
            Nested dicts, lists and tuples of arrays, tensors, numbers, str, bytes and None, such as ``{"net":
            net.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}``. OrderedDict and
            Counter will do; keys are str, int, float, bool, None or tuples of them. Each value comes back as the type
            it had. Two tensors that share their storage (tied weights) come back with storage of their own.

        Raises
        ------
        PayloadError
            A value is of another type; the message names its place. Nothing was written.
        """
        check_name("checkpoint", name)
        packed = list(pack(state))  # before the lock is taken, so that other writers do not wait for it
        del state
        with held_until_done(packed):
            self._session.draw(lambda s, rng: checkpoint.save(s, name, packed, rng, time.time()), write=True)

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """Return the stored state, and put the generator into its state of then.

        Tensors come back on the CPU, without a graph. Without PyTorch they come back as arrays, a bfloat16 as the
        float32 of the same values.

        Raises
        ------
        CheckpointNotFound
            No checkpoint has this name. The generator is left as it was.
        StoreCorrupt
            The checkpoint is damaged. The generator is left as it was.
        """
        check_name("checkpoint", name)
        state, generator = self._session.read(lambda s: checkpoint.load(s, name))
        self._session.restore(generator)
        return state

    def checkpoints(self) -> list[str]:
        """Return the names of the stored checkpoints, oldest first."""
        return self._session.read(checkpoint.names)

    def close(self) -> None:
        """Close the connections; later calls raise ``MemoryClosed``. Nothing needs to be flushed."""
        self._session.close()

    def __enter__(self) -> EpisodicMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        seeds = self._session.child_seeds()
        return {
            "address": self._session.database.address(),
            "name": self._name,
            "strategy": self._sampler.own and self._sampler.own.to_json(),
            "consumer": self._given_consumer,
            "cache_bytes": self._session.cache.max_bytes,
            "seeds": (seeds.entropy, seeds.spawn_key),
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(reopen_buffer(state), consumer=state["consumer"])  # type: ignore[misc]


def open(
    target: str | os.PathLike[str] | URL,
    *,
    buffer: str = "default",
    capacity: int | Unchanged = UNCHANGED,
    strategy: Strategy | str | Unchanged = UNCHANGED,
    alpha: float | Unchanged = UNCHANGED,
    epsilon: float | Unchanged = UNCHANGED,
    eviction: Eviction | EvictionPolicy | str | Unchanged = UNCHANGED,
    max_replays: int | Unchanged | None = UNCHANGED,
    limiter: SamplesPerInsert | Unchanged | None = UNCHANGED,
    history: History | Unchanged | None = UNCHANGED,
    signature: Mapping[str, Any] | Unchanged = UNCHANGED,
    seed: int | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    durability: Durability = "process",
    busy_timeout: Seconds = DEFAULT_BUSY_TIMEOUT,
    consumer: str | None = None,
    create: bool = True,
    trace: Trace | None = None,
) -> EpisodicMemory:
    """Open a memory: create it, or resume it where it was left.

    The settings marked * are stored with the buffer. ``UNCHANGED``, their default, means: as it is stored, in a new
    buffer the default below. None means off. On resuming, a setting that differs from the stored one is refused;
    ``configure`` changes it.

    Parameters
    ----------
    target : path or URL
        ``"run7.db"``, ``"sqlite:///run7.db"`` or ``"postgresql://user@host/database"``. A path is made absolute here,
        once, so the handle means the same file wherever the process goes. ``"file:run7.db?mode=ro"`` only reads,
        ``?immutable=1`` reads a file that nobody changes; an option that memstore does not honour is refused.
    buffer : str
        Which of the database's buffers.
    capacity* : int
        Largest number of live episodes, 1,000,000 by default.
    strategy* : Strategy or str
        What ``sample`` draws by, ``"mixed"`` by default. On resuming it is not refused: another strategy than the
        stored one holds for this handle.
    alpha* : float
        Exponent of the strategy (see there), 0.6 by default. On resuming like ``strategy``.
    epsilon* : float > 0
        Added to a loss to make a priority, 1e-6 by default; keeps zero losses reachable. Fixed at creation.
    eviction* : Eviction or str
        A policy such as ``Reservoir()``, or its name. The default goes with the strategy: ``lowest_loss`` with
        PrioritizedLoss and Mixed, ``largest_domain`` with DomainBalanced, else ``fifo``.
    max_replays* : int or None
        Remove an episode after this many loss updates; never by default.
    limiter* : SamplesPerInsert or None
        Keep draws and adds in step across all processes; none by default.
    history* : History or None
        What the replay history records and for how long; everything, for ever, by default. None records nothing.
    signature* : mapping
        Fields of the payloads, such as ``{"tokens": ("int32", (None,)), "reward": float}``; None is a ragged
        dimension. Fixed by the first add otherwise.
    seed : int, optional
        Of this handle's draws; of the buffer's reservoir, at creation. Drawn from the system's entropy by default.
    cache_bytes : int
        Budget for hot payloads, 256 MiB by default; 0 turns the cache off.
    durability : "process" or "power"
        What a commit survives: the death of the process (kill -9), or also power loss (and, on PostgreSQL, a crash of
        the server). SQLite's ``synchronous``, PostgreSQL's ``synchronous_commit``; neither setting can corrupt.
    busy_timeout : float
        Seconds to wait for another process's write lock, or to try again after a conflict or a lost connection.
    consumer : str, optional
        Name written into the replay history; host and process number by default.
    create : bool
        False refuses to make a missing database or buffer.
    trace : callable
        Is given a line of text for each statement of this handle, such as
        ``"0.21 ms, 256 rows: SELECT ..."``: the time that this process spent on it, the rows that it gave or changed.
        ``trace=print`` shows them. Begin and commit are statements too. Values and passwords never appear. It is called
        in the thread that ran the statement, and must not use the memory. If it raises, the log says so, and it is not
        called again. A pickled handle forgets it.

    Raises
    ------
    ConfigError
        A setting is invalid, or differs from the stored one.
    NotAMemstore, SchemaTooNew, SchemaTooOld, StoreUnavailable
        The database is not one that this version can open; it was not changed. A file without tables, as a killed
        creation leaves it, is filled, unless ``create`` is false.
    StoreCorrupt
        The buffer's settings or counters are damaged.

    Warns
    -----
    StoreWarning
        The file lies on a network file system, or has several names (hard links).
    """
    if consumer is not None:
        check_name("consumer", consumer)
    changes = maintenance.Changes(
        capacity=capacity,
        strategy=strategy,
        alpha=alpha,
        epsilon=epsilon,
        eviction=eviction,
        max_replays=max_replays,
        limiter=limiter,
        history=history,
        signature=signature,
    )
    handle = Handle(
        buffer=buffer,
        seed=seed,
        cache_bytes=cache_bytes,
        durability=durability,
        busy_timeout=busy_timeout,
        create=create,
        trace=trace,
    )
    return EpisodicMemory(open_buffer(target, changes, handle), consumer=consumer)
