"""``EpisodicMemory``, the one public class. It holds no checks and no SQL: each method calls a room below."""

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
from memstore.episodes.inputs import check_count, check_ids, check_option
from memstore.episodes.log import Group
from memstore.opening import Handle, Opened, open_buffer, reopen_buffer
from memstore.payload.document import pack
from memstore.payload.signature import Signature
from memstore.queries.columns import EVERY, Column, Condition, Over, col
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
from memstore.upkeep import folding, removal, retention, trends
from memstore.upkeep import settings as maintenance
from memstore.upkeep import stats as health
from memstore.upkeep.check import check
from memstore.values.letting_go import held_until_done


class EpisodicMemory:
    """A persistent experience-replay memory. ``memstore.open`` makes one.

    **Promise.** Every method that writes is one commit. It is atomic: all of it is stored, or nothing. When the call
    returns, the commit is durable as ``durability`` says, and every process sees it. Inside ``transaction()`` the
    commit comes at the end of the block. Reads see one consistent snapshot and never wait for writers. The same holds
    for draws, but under a limiter a draw is counted, and the count is a write.

    **Processes.** Any number of processes may open one buffer. A forked child gets its own connections and its own
    stream of random numbers. A pickled handle opens the same buffer again where it is unpickled.

    **Threads.** Threads and asyncio tasks may share a memory. A ``transaction()`` belongs to the thread and task that
    opened it, and so does the generator until the block ends. In that time the draws of other threads use a second
    stream from the same seed, which no checkpoint holds. Outside of blocks all threads draw from the one generator, one
    after the other. Writes of other threads wait for the end of the block. If they would wait for ever,
    ``ForeignTransaction`` is raised at once.

    **Interrupts.** An interrupt (Ctrl-C, or a signal handler that raises ``SystemExit``) comes out of the call as
    itself. The open transaction is undone, or was committed as a whole. The next call works.

    **Errors.** Arguments of a wrong type or range raise ``InvalidValue`` or ``ConfigError``. Both are a ``ValueError``.
    Nothing is written then.

    Examples
    --------
    >>> with memstore.open("run7.db", seed=1) as memory:
    ...     memory.extend({"x": x, "y": y}, domain="math")
    ...     batch = memory.sample(64, beta=0.4)
    ...     memory.update(batch, loss=train(batch["x"], batch["y"], batch.weight))
    """

    def __init__(self, opened: Opened, *, consumer: str | None = None) -> None:
        self._session = opened.session
        self._name = opened.name
        self._resumed = opened.resumed
        self._given_consumer = consumer
        self._sampler = Sampler(opened.session, opened.knowledge, opened.strategy, repr(self))

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
        """Name of this consumer in the history and in leases. The default is host name and process number."""
        return self._given_consumer or f"{socket.gethostname()}:{os.getpid()}"

    @property
    def resumed(self) -> bool:
        """True if the buffer existed before this memory was opened."""
        return self._resumed

    @property
    def rng(self) -> np.random.Generator:
        """Random generator of every draw. Every checkpoint stores its state."""
        return self._session.rng

    @property
    def capacity(self) -> int:
        """Largest number of live episodes."""
        return self._session.read(lambda s: s.settings.capacity)

    @property
    def strategy(self) -> Strategy:
        """Strategy of ``sample`` and ``lease`` calls that give none."""
        return self._session.read(self._sampler.default)

    @property
    def signature(self) -> Signature | None:
        """Fields of the payloads, with their dtypes and shapes. None before the first add."""
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

        Parameters
        ----------
        episode_id : int

        Raises
        ------
        EpisodeNotFound
            No live episode has this id. It was never added, was evicted, or was deleted.
        StoreCorrupt
            The stored data does not match its checksums. Every call that returns payloads may raise this error.
        """
        return recall.episodes(self._session, episode_id)[0]

    def get_many(self, ids: Ids) -> list[Episode]:
        """Return live episodes with their payloads, in the order of the ids, from one snapshot.

        Parameters
        ----------
        ids : int, or several

        Raises
        ------
        EpisodeNotFound
            One of the ids is not live.
        """
        return recall.episodes(self._session, ids)

    def metadata(self, ids: Ids) -> list[ReplayMetadata]:
        """Return replay metadata in the order of the ids, from one snapshot.

        Parameters
        ----------
        ids : int, or several

        Raises
        ------
        EpisodeNotFound
            One of the ids is not live.
        """
        return recall.metadata(self._session, ids)

    def ids_of(self, keys: Iterable[str]) -> list[int | None]:
        """Return the id that each key was first added with, None for a key that was never added.

        A key stays known after its episode has left.

        Parameters
        ----------
        keys : sequence of str
        """
        return recall.ids_of(self._session, keys)

    def recall_temporal(
        self, start: Time, end: Time, *, domain: str | None = None, limit: int | None = None
    ) -> list[Episode]:
        """Return the episodes with a timestamp from ``start`` to ``end``, sorted by timestamp, then by id.

        The episodes come with their payloads, from one snapshot. An index on the timestamp finds them.

        Parameters
        ----------
        start, end : float (seconds), aware datetime or datetime64
            Both inclusive.
        domain : str, optional
            Return only episodes of this domain.
        limit : int, optional
            Largest number of episodes to return. The earliest ones are returned.
        """
        return recall.between(self._session, start, end, domain, limit)

    def recall_by_tags(
        self, tags: Tags, *, match: Literal["any", "all"] = "any", limit: int | None = None
    ) -> list[Episode]:
        """Return the episodes that carry any, or all, of the tags, oldest first.

        The episodes come with their payloads, from one snapshot.

        Parameters
        ----------
        tags : sequence of str
        match : "any" or "all"
            An episode needs one of the tags, or every tag.
        limit : int, optional
            Largest number of episodes to return. The oldest ones are returned.
        """
        return recall.tagged(self._session, tags, match, limit)

    def recall(self, query: Vector, *, on: str, limit: int = 10) -> list[Match]:
        """Return the episodes nearest to ``query`` by the Euclidean distance of their field ``on``, nearest first.

        The call reads every payload once. So its time is proportional to the size of the buffer, but its use of memory
        is not.

        Parameters
        ----------
        query : array of real numbers
            As many numbers as the field holds, in any shape. All are finite.
        on : str
            Name of a field of real numbers with a fixed shape. A nested field is named like ``"obs/position"``.
        limit : int
            Largest number of episodes to return.

        Raises
        ------
        InvalidValue
            The buffer has no such field, or the query does not fit it.
        """
        return recall.nearest(self._session, query, on, limit)

    def stats(self, *, exact: bool = False) -> ReplayStats:
        """Return the size, losses, counts and settings of the buffer, from one snapshot.

        The time does not depend on the size of the buffer, unless ``exact`` is true.

        Parameters
        ----------
        exact : bool
            True computes quantiles and histogram from all losses. The default looks at the losses of 512 blocks of up
            to 120 episodes, evenly spaced, if there are more blocks than that.
        """
        return self._session.read(
            lambda s: health.stats(s, self._name, self._sampler.default(s), self._session.cache.stats(), exact=exact)
        )

    def check(self) -> CheckReport:
        """Read the whole buffer and verify every invariant: blocks, bounds, counts, sums, checksums, orphans.

        The rows are read again, and the blocks in the memory of this handle are compared with them. The call changes
        nothing. Damage is reported in ``CheckReport.problems``, and does not raise an error.
        """
        session = self._session
        number = session.committed.buffer_id
        return session.examining(lambda conn, follow: check(conn, session.database.backend, number, follow))

    # Questions

    def query(self, over: Over = "episodes") -> Query:
        """Return a query over the live episodes, or over the events of the history.

        ``memstore.col`` has the columns. In the history, the columns of an episode itself (level, extra, loss ...) are
        missing after it has left. Its id and domain stay.

        Parameters
        ----------
        over : "episodes" or "history"

        Examples
        --------
        >>> memory.query().filter(col.loss > 2).order_by(col.loss.descending).limit(10).all()
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
        """Return the recorded events: replays with the loss before and after, and departures with their reason.

        Events come in the order in which they happened. They stay when their episode leaves. Indexes find them by
        episode, by step, and by time. By domain or consumer alone, the history is scanned from the newest event on,
        until ``limit`` events are found.

        Parameters
        ----------
        episode : int, or several, optional
            Ids of episodes, live or not.
        domain, consumer : str, optional
            Return only events of this domain, or by this consumer.
        steps : int or (first, last), optional
            Steps of the trainer, both inclusive.
        since, until : float (seconds) or aware datetime, optional
            Both inclusive.
        limit : int, optional
            Largest number of events to return. The newest ones are returned.
        """
        return history(self.query("history"), episode, domain, consumer, steps, since, until, limit)

    def hardest(self, n: int = 10) -> list[Episode]:
        """Return the ``n`` episodes with the largest losses, largest first, without payloads.

        The index on loss finds them.
        """
        return self.query().filter(col.loss.is_known()).order_by(col.loss.descending).limit(check_count(n, "n")).all()

    def most_replayed(self, n: int = 10) -> list[Episode]:
        """Return the ``n`` episodes with the most loss updates, most first, without payloads.

        The call scans the replay metadata.
        """
        found = self.query().filter(col.replay_count > 0).order_by(col.replay_count.descending)
        return found.limit(check_count(n, "n")).all()

    def never_replayed(self, n: int = 10) -> list[Episode]:
        """Return the ``n`` oldest episodes that had no loss update, without payloads.

        The call scans the replay metadata until it has found ``n``.
        """
        return self.query().filter(col.replay_count == 0).limit(check_count(n, "n")).all()

    def forgotten(self, n: int = 10) -> list[Episode]:
        """Return the ``n`` episodes with the largest rise, ``loss - lowest_loss``, largest first, without payloads.

        A loss cannot have risen by more than its own size. So the call looks at the hardest episodes first, through the
        index on loss. If they do not decide the answer, it scans the replay metadata.
        """
        most = check_count(n, "n")
        return self._session.read(lambda s: trends.forgotten(s, most))

    def loss_trend(self, by: Literal["domain"] | None = "domain", *, points: int = 60) -> list[LossTrend]:
        """Return the mean loss in the course of the replays, for each domain or for all domains together.

        Each point stands for about the same number of replays. The points come from the tally, which counts every
        replay. A slot of the tally covers 1/256 of the replays so far. The tally stays when the history is pruned, and
        its size does not grow with the history.

        Parameters
        ----------
        by : "domain" or None
            None combines all domains.
        points : int
            Largest number of points for each domain.
        """
        if by is not None:
            check_option("by", by, "domain")
        most = check_count(points, "points")
        return self._session.read(lambda s: trends.loss_trend(s, most, by_domain=by is not None))

    def replay_share(self, by: Literal["domain"] = "domain") -> list[ReplayShare]:
        """Return the share of each domain in the episodes and in the replays, and the share that the strategy aims at.

        The largest share comes first. The numbers come from the blocks and the tally, so the time does not depend on
        the number of episodes and events.
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

        The draw is exact. Without replacement it is successive sampling, the Plackett-Luce law: each row is drawn in
        proportion to its weight among the rows that are not drawn yet (Efraimidis and Spirakis 2006). The draw changes
        nothing that is stored, except that a limiter counts it. A call that fails uses up no random numbers.

        Parameters
        ----------
        count : int
            Number of rows. Without replacement, which is the default, a memory with fewer live episodes returns them
            all.
        strategy, alpha : optional
            They replace those of the buffer in this call.
        beta : float
            Exponent, at least 0, of the importance weights ``(p / p_min) ** -beta`` (Schaul et al. 2016, section 3.4).
            0 makes all weights 1. With ``beta=1`` and ``replacement=True`` the weights correct the bias exactly,
            without replacement approximately.
        replacement : bool
            True if an episode may be drawn several times.
        normalize : "buffer" or "batch"
            ``p_min`` is the smallest probability of the buffer, or of the batch. For ``Mixed`` and ``"buffer"`` it is
            the share-weighted sum of the components' minima. That sum is never above the true minimum. It is equal to
            the minimum if at most one component is not uniform.
        exact_probability : bool
            True computes ``probability`` even if that needs a scan of the buffer.
        wait : float, optional
            Seconds to wait until ``count`` episodes are live. 0 does not wait, ``math.inf`` waits for as long as it
            takes. In a buffer with a limiter (``SamplesPerInsert``), the limiter decides when the draw has its turn and
            how many episodes must be live, and these are the seconds to wait for the turn. The default, None, does not
            wait and does not ask for ``count`` episodes; with a limiter it waits for as long as it takes.
        where : Condition or str, optional
            Draw only from the episodes that pass, such as ``col.domain.in_(["math"]) & (col.level >= 3)``. The text of
            the command line works too: ``"domain = 'math' and level >= 3"``. The law of the strategy holds among the
            passing episodes, and ``probability`` is that under the condition. If fewer than ``count`` episodes pass,
            each of them is drawn once.

        Returns
        -------
        Batch
            Rows in the order drawn.

        Raises
        ------
        MemoryEmpty
            No live episode can be drawn.
        WaitTimeout
            The time to wait is over.
        InvalidValue
            ``wait`` is given and ``count`` is above the capacity, or another argument is out of its range.

        Notes
        -----
        The cost of a condition: its first draw looks at all episodes, to find how many pass in each block of 120 (10 to
        20 ms for 1M episodes, and for a condition on facts a query). The process keeps these numbers for 8 conditions.
        Later draws look only at the blocks that changed. A condition with a constant that changes in every draw is new
        every time; with limits on ``col.age``, ``col.id``, the loss or the domain, blocks out of the limits are not
        looked at. If the condition is on ``lowest_loss``, ``rise`` or ``last_replayed_at``, or joins two kinds of
        columns with ``|``, each draw asks the database about the blocks that changed.

        ``normalize="buffer"`` uses the whole buffer even then, which is a constant factor.

        Examples
        --------
        >>> batch = memory.sample(64, strategy="prioritized_loss", beta=0.4, where=col.level >= 3)
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
        """Draw whole groups of episodes that share a value, such as the answers to one prompt (GRPO).

        Only groups with at least ``size`` episodes are drawn: uniformly, without replacement. Within a group, the
        episodes are drawn without replacement, by the law of the strategy. Rows come group after group, so
        ``batch.loss.reshape(-1, size)`` has one row for each group. ``batch.group`` numbers the groups.
        ``batch.probability`` is the probability of a first draw: of the group, times that of the episode in it.

        Parameters
        ----------
        groups : int
            Number of groups. If fewer have ``size`` episodes, all of those are drawn.
        size : int
            Number of episodes that are drawn of each group.
        by : Column
            A column of an episode that never changes: ``col.domain``, ``col.level``, ``col.key``,
            ``col.extra["prompt"].text``. An episode without a value in this column belongs to no group.
        where : Condition or str, optional
            As for ``sample``.
        strategy : Strategy or str
            Its probabilities in the whole buffer are restricted to the group.

        Raises
        ------
        MemoryEmpty
            No group has ``size`` episodes.
        InvalidValue
            ``by`` is no column that never changes.
        """
        return self._sampler.sample_groups(groups, size, by, where, strategy)

    def wait(self, *, min_size: int = 1, wait: Seconds = math.inf) -> int:
        """Wait until ``min_size`` episodes are live, and return the number of live episodes.

        The call returns soon after the commit that brings the last of them, from any process. PostgreSQL sends a
        notice; for SQLite the change counter of the file is polled. The wait holds no lock.

        Parameters
        ----------
        min_size : int
            Number of live episodes to wait for.
        wait : float
            Seconds to wait. 0 does not wait. ``math.inf``, the default, waits for as long as it takes.

        Raises
        ------
        WaitTimeout
            The time to wait is over.
        InvalidValue
            ``min_size`` is above the capacity.
        MemoryClosed
            Another thread closed the memory.
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
        """Draw episodes that no other consumer holds, and hold them. Each episode has one consumer at a time.

        The lease is committed when the call returns, and every process respects it from then on. It ends with
        ``update(batch, ...)`` or ``release(batch)``. Without either it ends after ``duration`` seconds: the consumer
        then counts as dead, and others may get the episodes. ``renew(batch)`` asks for more time. The draw follows the
        law of the strategy among the episodes that are not held. ``sample`` ignores leases.

        Parameters
        ----------
        count : int
            Number of rows. If fewer episodes are free, all free ones are drawn.
        duration : float > 0
            Seconds, by the clock of the database. Choose several times the duration of a training step.
        strategy, alpha, beta, normalize, exact_probability, where
            As for ``sample``. The probability is that of a draw among all episodes, held ones included.
        wait : float
            Seconds to wait while no episode is free. 0, the default, does not wait. ``math.inf`` waits for as long as
            it takes.

        Raises
        ------
        MemoryEmpty
            No episode is free, and ``wait`` is 0.
        WaitTimeout
            No episode became free in time.
        """
        asked = DrawOptions(count, strategy, alpha, beta, normalize, exact_probability, check_where(where))
        return self._sampler.lease(asked, duration, wait, self.consumer)

    def release(self, batch: Batch) -> int:
        """Give leased episodes back unused, and return the number of episodes that the lease still held.

        The change is committed when the call returns.

        Raises
        ------
        InvalidValue
            ``lease`` did not return this batch.
        """
        return leases.release(self._session, batch)

    def renew(self, batch: Batch, *, duration: Seconds = 60.0) -> int:
        """Hold leased episodes for ``duration`` seconds from now, and return the number that this lease still holds.

        The change is committed when the call returns. A number below ``len(batch)`` means that the lease had ended
        before. Others may hold the rest.

        Parameters
        ----------
        batch : Batch
        duration : float > 0
            Seconds, by the clock of the database.

        Raises
        ------
        InvalidValue
            ``lease`` did not return this batch.
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
        """Add one episode in one commit. The parameters are those of ``extend``, each with one value.

        Returns
        -------
        int
            Id of the episode. For a ``key`` that was seen before, the id of the first episode with this key.

        Raises
        ------
        PayloadError, InvalidValue, MemoryFull, WaitTimeout
            As for ``extend``.

        Examples
        --------
        >>> memory.add({"x": x, "y": 3}, domain="math", loss=0.7, tags=["algebra"], key="question-17")
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
        """Add n episodes in one commit: all of them or none. Every keyword takes one value or a sequence of n values.

        If the buffer is full, the eviction policy removes episodes in the same commit.

        Parameters
        ----------
        payload : dict
            Fields with n rows each: arrays of shape (n, ...), or lists of n arrays, numbers, str or bytes. Fields may
            be nested. Tensors are detached and copied to the CPU. The first add fixes the signature of the buffer.
        domain : str
            The task, environment or data source that the episode belongs to.
        loss : float >= 0, optional
            Loss that the trainer measured. None means never measured. Such an episode is drawn with the highest
            priority.
        timestamp : float, aware datetime or datetime64, optional
            Seconds. The default is the present. A datetime64 is read as UTC. A number above 1e11 (the year 5138) is
            refused, because it is probably in milliseconds.
        level : int, optional
            A number for the trainer's own use, such as the difficulty.
        tags : sequence of str
            Tags of all n episodes, or a sequence with the tags of each.
        key : str, optional
            Idempotency key. To add a key again does nothing and returns the first id. This holds after a crash, and
            after the episode was evicted.
        extra : JSON value, optional
            Scalars of numpy and PyTorch become numbers, and their arrays become lists. Whole numbers of any size are
            kept exactly.
        wait : float
            Seconds to wait while the limiter of the buffer (``SamplesPerInsert``) holds adds back. 0 does not wait.
            ``math.inf``, the default, waits for as long as it takes. One value holds for all episodes. Without a
            limiter no add waits.

        Returns
        -------
        int64 array, shape (n,)
            Ids in the order given. They are consecutive, except for repeated keys.

        Raises
        ------
        PayloadError, InvalidValue
            An argument is refused. Nothing was written.
        MemoryFull
            The eviction policy is ``none``, and the episodes do not all fit. Nothing was written.
        WaitTimeout
            The limiter did not admit the episodes in time. Nothing was written.

        Examples
        --------
        >>> ids = memory.extend({"x": np.zeros((2, 4)), "y": [0, 1]}, domain=["math", "code"], loss=[0.7, None])
        """
        columns = {"domain": domain, "loss": loss, "timestamp": timestamp, "level": level, "tags": tags, "key": key}
        offer = (payload, columns | {"extra": extra}, wait)
        return insert.add(self._session, *offer, self.consumer, self._sampler.standing, one=False)

    def delete(self, ids: Ids | None = None, *, where: Condition | str | None = None) -> int:
        """Remove episodes in one commit: those with these ids, or all that pass a condition.

        The keys of removed episodes stay known, and the history records each departure as ``deleted``. From the commit
        on, no process reads the episodes. The bytes of their payloads leave the file with the next fold: ``fold`` does
        that at once. (``memstore vacuum`` then gives the space back to the disk.)

        Parameters
        ----------
        ids : int or several, optional
            Ids that are not live are ignored.
        where : Condition or str, optional
            A condition in place of ids, such as ``(col.loss < 0.1) & (col.replay_count > 5)`` or ``"loss < 0.1"``.

        Returns
        -------
        int
            Number of removed episodes.

        Raises
        ------
        InvalidValue
            Neither or both of the two are given, or ``where`` is no condition on live episodes. Nothing was removed.
        """
        return removal.delete(self._session, ids, where, self.consumer)

    def clear(self) -> int:
        """Remove every live episode in one commit, and return the number of removed episodes.

        The following stay: the history (with a departure ``deleted`` for each episode), the tally behind
        ``loss_trend``, all keys ever given, checkpoints, settings and signature. The counters stay too. So no id is
        used again, the largest priority ever measured is remembered, and a reservoir continues its stream.
        """
        return self.delete(where=EVERY)

    def consolidate(self, policy: RetentionPolicy, *, dry_run: bool = False, now: Time | None = None) -> Retention:
        """Remove the episodes that the policy does not keep, in one commit.

        The search for similar payloads reads all payloads. It runs before the write lock is taken, so other writers do
        not wait for it.

        Parameters
        ----------
        policy : RetentionPolicy
        dry_run : bool
            True only counts the episodes and removes none.
        now : float (seconds), aware datetime or datetime64, optional
            Moment that ``max_age`` counts back from. The default is the present.

        Returns
        -------
        Retention
            Numbers of the removed episodes, by reason.

        Raises
        ------
        ConfigError
            A limit or a weight of the policy is out of its range. Nothing was removed.
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

        A setting that is left out, or is ``UNCHANGED``, stays as it is. None turns a setting off. Every process uses
        the new settings from its next call on.

        Parameters
        ----------
        capacity : int
            A smaller capacity evicts episodes, by the eviction policy.
        strategy, alpha
            They hold from now on for this handle too. A change of the exponent of the losses scans the buffer once.
        eviction : Eviction or str
            Another policy scans the buffer once.
        max_replays : int or None
            Number of replays after which an episode leaves. None lets it stay after any number of replays.
        limiter : SamplesPerInsert or None
            A new limiter counts from now on. With None, draws and adds never wait.
        history : History or None
            Events that the new rule need not keep are deleted at once. With None, nothing is recorded from now on.

        Returns
        -------
        int
            Number of evicted episodes.

        Raises
        ------
        ConfigError
            A value is invalid. Nothing was changed.
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
        """Write measured losses and one replay event for each, in one commit. The lease of a leased batch ends.

        Parameters
        ----------
        replayed : Batch or ids
            The episodes that the losses belong to. An id that is given twice counts as two replays, and its last loss
            stays.
        loss : array or tensor of shape (n,), or one number
            Finite and at least 0. A tensor is detached.
        step : int, optional
            Step of the trainer, for the history.
        on_invalid : "raise" or "skip"
            Treatment of losses that are NaN, infinite or negative. ``"raise"`` refuses the whole call. ``"skip"``
            writes the valid losses and reports the other ids as ``rejected``.

        Returns
        -------
        UpdateResult
            The updated ids, the missing ids, and the rejected ids.

        Raises
        ------
        InvalidValue
            A loss is refused, or the number of losses is wrong. Nothing was written.
        """
        return replay.update(self._session, replayed, loss, step, on_invalid, self.consumer)

    # Transactions, checkpoints, life

    def transaction(self) -> Block[EpisodicMemory]:
        """Return a block that makes everything inside it one commit.

        The commit covers episodes, losses, history, checkpoint, and the state of the generator. Other processes see all
        of it when the block ends, and nothing of it before. If an exception leaves the block, nothing of it remains,
        and ids that were returned inside are void. Nested blocks are savepoints.

        The block holds the write lock of the buffer from its start. So wrap the update and the checkpoint in it, not
        the training step.

        Raises
        ------
        ForeignTransaction
            Another task of this thread has a block open. Or a thread or task tries to commit a block that another one
            opened.
        TransactionDead
            The database, or an interrupt inside a call, has ended the transaction. Raised at the end of the block.

        Examples
        --------
        >>> with memory.transaction():
        ...     memory.update(batch, loss=losses)
        ...     memory.save_checkpoint("latest", {"net": net.state_dict()})
        """
        return self._session.transaction(self)

    @property
    def transaction_depth(self) -> int:
        """Number of ``transaction()`` blocks that this thread is in. 0 outside of blocks."""
        return self._session.database.transaction_depth

    def save_checkpoint(self, name: str, state: TrainerState) -> None:
        """Store the state of a trainer together with the state of the memory's generator.

        The new checkpoint replaces the one with the same name. It is atomic and durable like every write. Inside
        ``transaction()`` it commits together with the episodes and losses of the block.

        Parameters
        ----------
        name : str
            Name of the checkpoint.
        state : dict
            Nested dicts, lists and tuples of arrays, tensors, numbers, str, bytes and None. An example is ``{"net":
            net.state_dict(), "optimizer": optimizer.state_dict(), "rng": torch.get_rng_state()}``. OrderedDict and
            Counter are allowed. Keys are str, int, float, bool, None or tuples of these. Each value comes back with the
            type that it had. Two tensors that share their storage (tied weights) come back with separate storage.

        Raises
        ------
        PayloadError
            A value has another type. The message names its place. Nothing was written.
        """
        check_name("checkpoint", name)
        packed = list(pack(state))  # this runs before the lock is taken, so other writers do not wait for it
        del state
        with held_until_done(packed):
            self._session.drawing(write=True).run(lambda s, rng: checkpoint.save(s, name, packed, rng, time.time()))

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """Return the stored state, and set the generator to the state that was stored with it.

        Tensors come back on the CPU, without a graph. If PyTorch is not installed, they come back as arrays, and a
        bfloat16 tensor as float32 with the same values.

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

    def fold(self) -> int:
        """Bring the tables of the buffer to the end of the log, in one commit.

        A write appends to the log. The memory itself reads the log and the tables together, so its answers are right at
        any time. The fold makes them quick, and gives space free:

        - the replay metadata of new and of replayed episodes is written to its table;
        - the rows of departed episodes are deleted (after ``delete``, an eviction ...);
        - so are the events that the history does not record or keep.

        It never changes what is drawn. It also happens by itself: in the write with which the log has grown by four
        entries for each episode of the capacity (at least 8,192, at most 131,072 entries) since the last fold, after 64
        MiB of new payloads, when ``configure`` changes the history, and in ``close``. An add, a replay and a departure
        are one entry each.

        The call waits for the write lock like any write, and holds it for about 10 us for each entry.

        Returns
        -------
        int
            Number of log entries that the tables did not have yet. If it is 0, nothing was written.
        """
        return folding.fold(self._session)

    def close(self) -> None:
        """Close the connections. Later calls raise ``MemoryClosed``. No data waits to be written at this point.

        A handle that wrote folds first (see ``fold``), for the next process that opens the database. It does not wait
        for a lock that somebody holds. If the fold is not possible, all stays as it is, and no error is raised.
        """
        try:
            folding.fold_at_close(self._session)
        finally:
            self._session.close()

    def __enter__(self) -> EpisodicMemory:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None and not isinstance(error, Exception):
            self._session.close()  # an interrupt ends the process soon, and a fold may take a second
        else:
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
    """Open a memory. If the buffer does not exist, create it; else resume it where it was left.

    The settings marked * are stored with the buffer. Their default, ``UNCHANGED``, keeps the stored value. A new buffer
    then gets the default named below. None turns a setting off. When a buffer is resumed, a setting that differs from
    the stored one is refused; ``configure`` changes settings.

    Parameters
    ----------
    target : path or URL
        ``"run7.db"``, ``"sqlite:///run7.db"`` or ``"postgresql://user@host/database"``. A path is made absolute once,
        here. So the handle means the same file after the process changes its folder. ``"file:run7.db?mode=ro"`` only
        reads. ``?immutable=1`` reads a file that nobody changes. An option that memstore does not honour is refused.
    buffer : str
        Name of the buffer in the database.
    capacity* : int
        Largest number of live episodes, 1,000,000 by default.
    strategy* : Strategy or str
        Strategy that ``sample`` draws by, ``"mixed"`` by default. When a buffer is resumed, another strategy than the
        stored one is not refused. It then holds for this handle alone.
    alpha* : float
        Exponent of the strategy (see the strategy), 0.6 by default. When a buffer is resumed, it is treated like
        ``strategy``.
    epsilon* : float > 0
        Number that is added to a loss to make a priority, 1e-6 by default. It lets episodes with a loss of zero be
        drawn. Fixed at creation.
    eviction* : Eviction or str
        A policy such as ``Reservoir()``, or its name. The default depends on the strategy: ``lowest_loss`` with
        PrioritizedLoss and Mixed, ``largest_domain`` with DomainBalanced, else ``fifo``.
    max_replays* : int or None
        Number of loss updates after which an episode leaves. By default it never leaves for this reason.
    limiter* : SamplesPerInsert or None
        Rule that keeps draws and adds in step across all processes. By default there is none.
    history* : History or None
        Rule for the replay history. By default all events are recorded and kept for ever. None records nothing.
    signature* : mapping
        Fields of the payloads, such as ``{"tokens": ("int32", (None,)), "reward": float}``. None in a shape is a ragged
        dimension. By default the first add fixes the signature.
    seed : int, optional
        Seed of this handle's draws. When a buffer is created, it is also the seed of its reservoir. The default is
        drawn from the entropy of the system.
    cache_bytes : int
        Largest size of the cache for payloads, 256 MiB by default. Blocks of the sampling index take up to as
        much again. 0 turns both off: what is drawn stays the same.
    durability : "process" or "power"
        Event that a commit survives: the death of the process (kill -9), or also the loss of power and, on PostgreSQL,
        a crash of the server. It sets ``synchronous`` of SQLite and ``synchronous_commit`` of PostgreSQL. Neither value
        can corrupt the database.
    busy_timeout : float
        Seconds to wait for the write lock of another process, or to try again after a conflict or a lost connection.
    consumer : str, optional
        Name of this consumer in the replay history. The default is host name and process number.
    create : bool
        False refuses to create a database or buffer that does not exist.
    trace : callable
        Function that is called with a line of text for each statement of this handle, such as
        ``"0.21 ms, 256 rows: SELECT ..."``. The line holds the time that this process spent on the statement, and the
        number of rows that it returned or changed. ``trace=print`` prints the lines. Begin and commit are statements
        too. Values and passwords never appear. The function runs in the thread that ran the statement. It must not
        use the memory. If it raises, the log says so, and it is not called again. A pickled handle forgets it.

    Returns
    -------
    EpisodicMemory

    Raises
    ------
    ConfigError
        A setting is invalid, or differs from the stored one.
    NotAMemstore, SchemaTooNew, SchemaTooOld, StoreUnavailable
        This version cannot open the database, which was not changed. (A file without tables, as a killed creation
        leaves it, is filled, unless ``create`` is false.)
    StoreCorrupt
        The settings or counters of the buffer are damaged.

    Warns
    -----
    StoreWarning
        The file lies on a network file system, or has several names (hard links).

    Examples
    --------
    >>> memory = memstore.open("run7.db", capacity=100_000, strategy="prioritized_loss", seed=1)
    >>> shared = memstore.open("postgresql://trainer@db.example/replay", buffer="run7", durability="power")
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
