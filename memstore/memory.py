"""``EpisodicMemory``: the one public class. It delegates, and holds no SQL."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from types import TracebackType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import URL

from memstore.buffer.snapshot import Rows, Snapshot
from memstore.config import (
    DEFAULT_BUSY_TIMEOUT,
    DEFAULT_CACHE_BYTES,
    Durability,
    check_float,
    check_int,
    check_name,
    check_seconds,
)
from memstore.draws.batch import Normalize, make_batch
from memstore.draws.filtered import Drawable
from memstore.draws.groups import Grouping
from memstore.draws.strategies import Strategy, as_strategy, strategy_from_json
from memstore.episodes import checkpoint
from memstore.episodes import insert as episodes
from memstore.episodes import losses as recording
from memstore.episodes.eviction import Eviction
from memstore.episodes.inputs import (
    as_losses,
    check_count,
    check_ids,
    check_option,
    check_texts,
    invalid_losses,
    make_offer,
    refuse_invalid,
)
from memstore.episodes.log import Group, History
from memstore.errors import InvalidValue, MemoryEmpty
from memstore.opening import Opened, open_buffer, reopen_buffer
from memstore.payload.document import pack
from memstore.payload.signature import Signature
from memstore.queries.columns import EVERY, Column, Condition, Over, col, constant_of
from memstore.queries.parser import as_condition
from memstore.queries.query import Query
from memstore.queries.records import EpisodeSummary, LossTrend, ReplayEvent, ReplayShare
from memstore.sharing import leases, limiter
from memstore.sharing.limiter import SamplesPerInsert
from memstore.sharing.waiting import check_timeout, wait_until
from memstore.storage.blocks import Block
from memstore.types import (
    Batch,
    CheckReport,
    Episode,
    EvictionPolicy,
    Match,
    ReplayMetadata,
    ReplayStats,
    Retention,
    RetentionPolicy,
    UpdateResult,
)
from memstore.upkeep import removal, retention, trends
from memstore.upkeep import settings as maintenance
from memstore.upkeep import stats as health
from memstore.upkeep.check import check
from memstore.values.foreign import numpy_payload
from memstore.values.letting_go import held_until_done
from memstore.values.shown import shown
from memstore.values.times import check_limit, check_time


class EpisodicMemory:
    """A persistent experience-replay memory; ``memstore.open`` makes one.

    Every change is committed when the call returns, unless inside ``transaction()``, and is then visible to every
    process. Reads and draws never wait for writers; under a limiter a draw is counted, which is a write. A forked child
    gets its own connections and its own random stream; a pickled handle opens the same buffer where it is unpickled.

    Threads and asyncio tasks may share a memory. A ``transaction()`` belongs to the thread and task that opened it, and
    so does the generator until its end: draws of others take generators of a second stream from the same seed, which no
    checkpoint holds. Otherwise all draw from the one generator, one after the other. Writes of other threads wait for
    the end of the block; where that would be for ever, ``ForeignTransaction`` is raised at once.

    An interrupt (Ctrl-C, a signal handler that raises ``SystemExit``) comes out as itself: what was open is undone, or
    was committed as a whole, and the next call works.
    """

    def __init__(self, opened: Opened, *, consumer: str | None = None) -> None:
        self._session = opened.session
        self._populations = opened.populations
        self._name = opened.name
        self._resumed = opened.resumed
        self._strategy = opened.strategy
        self._given_consumer = consumer

    @property
    def name(self) -> str:
        """Name of the buffer within its database."""
        return self._name

    @property
    def url(self) -> str:
        """Address of the database, its password hidden."""
        return self._session.database.backend.describe()

    @property
    def consumer(self) -> str:
        """Who replays, as the history and the leases name it: as given to ``open``, else this host and process."""
        return self._given_consumer or f"{socket.gethostname()}:{os.getpid()}"

    @property
    def resumed(self) -> bool:
        """Whether the buffer existed before this memory was opened."""
        return self._resumed

    @property
    def rng(self) -> np.random.Generator:
        """The generator behind every draw; its state is in every checkpoint."""
        return self._session.rng

    @property
    def capacity(self) -> int:
        """Largest number of live episodes."""
        return self._session.read(lambda s: s.settings.capacity)

    @property
    def strategy(self) -> Strategy:
        """What ``sample`` uses when not told otherwise."""
        return self._session.read(self._default_strategy)

    @property
    def signature(self) -> Signature | None:
        """Fields of the payloads, None until the first add."""
        return self._session.read(signature_of)

    def __len__(self) -> int:
        return self._session.read(lambda s: s.live)

    def __contains__(self, episode_id: Any) -> bool:
        return len(self._session.read(lambda s: s.find(check_ids(episode_id)))) == 1

    def __repr__(self) -> str:
        return f"<EpisodicMemory {self._name!r} at {self.url}>"

    def get(self, episode_id: int) -> Episode:
        """The live episode with this id.

        Raises
        ------
        EpisodeNotFound
            When it was never added, was evicted or was deleted.
        """
        return self.get_many(episode_id)[0]

    def get_many(self, ids: Any) -> list[Episode]:
        """Live episodes in the order of the ids, from one snapshot; raises ``EpisodeNotFound`` if one is missing."""
        wanted = check_ids(ids).tolist()
        return self._session.read(lambda s: self._episodes(s, wanted))

    def metadata(self, ids: Any) -> list[ReplayMetadata]:
        """Replay metadata in the order of the ids; raises ``EpisodeNotFound`` if one is missing."""
        wanted = check_ids(ids).tolist()
        found = self._session.read(lambda s: episodes.read_metadata(s, list(dict.fromkeys(wanted))))
        return [found[i] for i in wanted]

    def ids_of(self, keys: Sequence[str]) -> list[int | None]:
        """The ids under which these keys were first added, None where one never was.

        An id stays known when its episode has left.
        """
        wanted = check_texts("key", keys)
        known = self._session.read(lambda s: episodes.known_keys(s, wanted))
        return [known.get(key) for key in wanted]

    def recall_temporal(
        self, start: Any, end: Any, *, domain: str | None = None, limit: int | None = None
    ) -> list[Episode]:
        """Episodes whose timestamp lies in [start, end], both inclusive, by timestamp, then id."""
        if domain is not None:
            check_name("domain", domain)
        low, high = check_limit("start", start), check_limit("end", end)
        most = None if limit is None else check_count(limit)
        return self._session.read(lambda s: self._episodes(s, episodes.ids_between(s, low, high, domain, most)))

    def recall_by_tags(
        self, tags: Sequence[str], *, match: Literal["any", "all"] = "any", limit: int | None = None
    ) -> list[Episode]:
        """Episodes that carry any, or all, of the tags, oldest first."""
        wanted = check_texts("tag", tags)
        if not wanted:
            raise InvalidValue("tags must be a non-empty sequence of str, got none")
        check_option("match", match, "any", "all")
        most = None if limit is None else check_count(limit)
        return self._session.read(lambda s: self._episodes(s, episodes.ids_tagged(s, wanted, match == "all", most)))

    def recall(self, query: Any, *, on: str, limit: int = 10) -> list[Match]:
        """The episodes whose field ``on`` is nearest to ``query`` (Euclidean), nearest first.

        Reads every payload once: time is proportional to the buffer, memory is not.
        """
        most = check_count(limit)

        def work(snapshot: Snapshot) -> list[Match]:
            signature = signature_of(snapshot)
            if signature is None:
                return []
            found = episodes.nearest(snapshot, signature, on, query, most)
            whole = self._episodes(snapshot, [episode_id for episode_id, _ in found])
            return [Match(episode, distance) for episode, (_, distance) in zip(whole, found, strict=True)]

        return self._session.read(work)

    def stats(self, *, exact: bool = False) -> ReplayStats:
        """Health of the buffer, in time independent of its size.

        ``exact=True`` scans the losses: quantiles and histogram are then of the losses themselves instead of the
        strata's half-octave bounds.
        """
        return self._session.read(
            lambda s: health.stats(s, self._name, self._default_strategy(s), self._session.cache.stats(), exact=exact)
        )

    def check(self) -> CheckReport:
        """Verify every invariant, reading the whole buffer: positions, bounds, counts, sums, checksums, orphans."""
        return self._session.read(check)

    def _episodes(self, snapshot: Snapshot, ids: list[int]) -> list[Episode]:
        signature = signature_of(snapshot)
        if signature is None:
            episodes.read_metadata(snapshot, ids)
            return []
        keep = not self._session.database.transaction_open
        return episodes.read(snapshot, ids, signature, self._session.cache, keep=keep)

    def _default_strategy(self, snapshot: Snapshot) -> Strategy:
        return self._strategy or _stored_strategy(snapshot.settings.strategy)

    def query(self, over: Over = "episodes") -> Query:
        """A query over the live episodes, or over the events of the ``"history"``.

        See ``memstore.col`` for the columns: ``memory.query().filter(col.loss > 2).order_by(col.loss.descending)``.
        In the history the columns of an episode itself (level, extra, loss ...) are missing once it has left; its id
        and domain stay.
        """
        check_option("over", over, "episodes", "history")
        return Query(self._session.read, over)

    def history(
        self,
        *,
        episode: Any = None,
        domain: str | None = None,
        consumer: str | None = None,
        steps: int | tuple[int, int] | None = None,
        since: Any = None,
        until: Any = None,
        limit: int | None = None,
    ) -> list[ReplayEvent]:
        """What was replayed, with which loss before and after, and what left and why; in the order of events.

        Events outlive their episode. They are found through indexes by episode, step and time; by domain or consumer
        alone, the history is scanned, newest first, until ``limit`` events are found.

        Parameters
        ----------
        episode : int, or several, optional
            Episodes, live or not.
        domain, consumer : str, optional
        steps : int or (first, last), optional
            The trainer's steps, both inclusive.
        since, until : float (seconds) or aware datetime, optional
            Both inclusive.
        limit : int, optional
            At most so many, the newest.
        """
        conditions: list[Condition] = []
        if episode is not None:
            conditions.append(col.id.in_(check_ids(episode).tolist()))
        if domain is not None:
            conditions.append(col.domain == check_name("domain", domain))
        if consumer is not None:
            conditions.append(col.consumer == check_name("consumer", consumer))
        if steps is not None:
            conditions.append(col.step.between(*_span(steps)))
        if since is not None:
            conditions.append(col.at >= check_limit("since", since))
        if until is not None:
            conditions.append(col.at <= check_limit("until", until))
        query = self.query("history").filter(*conditions)
        if limit is None:
            return query.all()
        newest: list[ReplayEvent] = query.order_by(col.event.descending).limit(check_count(limit)).all()
        return newest[::-1]

    def hardest(self, n: int = 10) -> list[EpisodeSummary]:
        """The episodes with the largest losses, largest first; by the index on loss."""
        return self.query().filter(col.loss.is_known()).order_by(col.loss.descending).limit(check_count(n)).all()

    def most_replayed(self, n: int = 10) -> list[EpisodeSummary]:
        """The episodes with the most loss updates, most first; scans the replay metadata (see the README for times)."""
        found = self.query().filter(col.replay_count > 0).order_by(col.replay_count.descending)
        return found.limit(check_count(n)).all()

    def never_replayed(self, n: int = 10) -> list[EpisodeSummary]:
        """The oldest episodes without a loss update; scans the replay metadata until it has found ``n``."""
        return self.query().filter(col.replay_count == 0).limit(check_count(n)).all()

    def forgotten(self, n: int = 10) -> list[EpisodeSummary]:
        """The episodes whose loss has risen furthest above its lowest, furthest first.

        None can have risen by more than its loss: the hardest are looked at by the index on loss, and where they do not
        decide it, the replay metadata is scanned.
        """
        most = check_count(n)
        return self._session.read(lambda s: trends.forgotten(s, most))

    def loss_trend(self, by: Literal["domain"] | None = "domain", *, points: int = 60) -> list[LossTrend]:
        """Mean losses in the course of the replays, for each domain, or for all together (``by=None``).

        Every point stands for about the same number of replays. From the tally, which counts every replay in slots of
        1/256 of the replays so far and is kept when the history is pruned: its size does not grow with the history.

        Parameters
        ----------
        by : "domain" or None
        points : int
            At most so many for each domain.
        """
        _check_by(by)
        most = check_count(points)

        return self._session.read(lambda s: trends.loss_trend(s, most, by_domain=by is not None))

    def replay_share(self, by: Literal["domain"] = "domain") -> list[ReplayShare]:
        """What each domain has of the episodes and of the replays, against what the strategy aims at; largest first.

        From the strata and the tally, in time independent of the number of episodes and events.
        """
        if by != "domain":
            raise InvalidValue(f"replay_share is by 'domain', got {shown(by)}")

        return self._session.read(lambda s: trends.replay_share(s, self._default_strategy(s)))

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
        return Drawable.of(snapshot, where, self._populations, keep=keep)

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

    def add(
        self,
        payload: Mapping[str, Any],
        *,
        domain: str = "default",
        loss: float | None = None,
        timestamp: Any = None,
        level: int | None = None,
        tags: Sequence[str] = (),
        key: str | None = None,
        extra: Any = None,
        timeout: float | None = None,
    ) -> int:
        """Add one episode; committed on return. Parameters as for ``extend``, each of them one value.

        Returns
        -------
        int
            The episode's id; with a ``key`` that was seen before, that of the first episode with this key.
        """
        columns = {"domain": domain, "loss": loss, "timestamp": timestamp, "level": level, "tags": tags, "key": key}
        return int(self._insert(numpy_payload(payload), None, timeout, columns | {"extra": extra})[0])

    def extend(
        self,
        payload: Mapping[str, Any],
        *,
        domain: str | Sequence[str] = "default",
        loss: Any = None,
        timestamp: Any = None,
        level: Any = None,
        tags: Any = (),
        key: Any = None,
        extra: Any = None,
        timeout: float | None = None,
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
            As measured by the trainer; None means never measured: drawn with the highest priority.
        timestamp : float, aware datetime or datetime64, optional
            Seconds; now by default. A datetime64 is UTC. Beyond 1e11 (the year 5138) it is refused as milliseconds.
        level : int, optional
        tags : sequence of str
        key : str, optional
            Idempotency key: adding it again is a no-op that returns the first id, also after a crash or an eviction.
        extra : JSON value, optional
            Numpy and PyTorch scalars become numbers, arrays lists; whole numbers of any size are kept exactly.
        timeout : float, optional
            Seconds to wait while the buffer's limiter (``SamplesPerInsert``) holds adds back; by default as long as it
            takes. One value for all.

        Returns
        -------
        int64 array, shape (n,)
            Ids in the order given; consecutive but for repeated keys.

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
        payload = numpy_payload(payload)
        return self._insert(payload, Signature.batch_size(payload), timeout, columns | {"extra": extra})

    def _insert(
        self, payload: Mapping[str, Any], count: int | None, timeout: float | None, columns: dict[str, Any]
    ) -> NDArray[np.int64]:
        now = time.time()
        patience = check_timeout(timeout)

        def encode(signature: Signature) -> list[bytes]:
            return [signature.encode_one(payload)] if count is None else signature.encode(payload, count)

        # Before the lock is taken, so that other writers do not wait for it.
        assumed = stored_signature(self._session.committed.signature) or Signature.infer(payload, count)
        offer = make_offer(encode(assumed), now, one=count is None, **columns)
        group = Group(now, self.consumer)

        def work(snapshot: Snapshot) -> episodes.Inserted:
            limiter.admit_add(snapshot)
            stored = signature_of(snapshot)
            if stored is None:
                maintenance.fix_signature(snapshot, assumed.to_json())
            elif stored != assumed:
                return episodes.insert(snapshot, replace(offer, blobs=encode(stored)), group)
            return episodes.insert(snapshot, offer, group)

        def attempt() -> episodes.Inserted | None:
            try:
                return self._session.write(work, lambda result: result.blobs)
            except limiter.OutOfStep:
                return None

        with held_until_done(offer.blobs):
            inserted = wait_until(self._session, attempt, patience, self._standing)
        self._session.cache.drop(inserted.evicted.tolist())
        return inserted.ids

    def delete(self, ids: Any = None, *, where: Condition | str | None = None) -> int:
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
        if (ids is None) == (where is None):
            raise InvalidValue("delete takes either ids or where=...; clear() removes every episode")
        condition = None if where is None else as_condition(where)
        wanted = check_ids([] if ids is None else ids)
        return self._remove(lambda s: [wanted] if condition is None else removal.passing(s, condition))

    def clear(self) -> int:
        """Remove every live episode in one commit; returns how many there were.

        What stays: the history (with a departure ``deleted`` for each), the tally behind ``loss_trend``, the keys ever
        given, checkpoints, settings and signature, and the counters, so that no id is used again, the largest priority
        ever measured is remembered, and a reservoir goes on with its stream.
        """
        return self._remove(lambda s: removal.passing(s, EVERY))

    def _remove(self, which: Callable[[Snapshot], Iterable[NDArray[np.int64]]]) -> int:
        group = Group(time.time(), self.consumer, "deleted")
        removed = self._session.write(lambda s: removal.remove_all(s, which(s), group))
        self._session.cache.drop(removed.tolist())
        return len(removed)

    def consolidate(self, policy: RetentionPolicy, *, dry_run: bool = False, now: Any = None) -> Retention:
        """Remove what the policy does not keep, in one commit; with ``dry_run`` only count it.

        ``now`` (seconds, an aware datetime or a datetime64) is what ``max_age`` counts back from. Looking for similar
        payloads reads them all, before the write lock is taken, so that other writers do not wait for it.
        """
        policy = retention.checked_policy(policy)
        at = time.time() if now is None else check_time("now", now)
        twins = self._session.read(lambda s: retention.find_twins(s, signature_of(s), policy, at))
        scope = self._session.read if dry_run else self._session.write
        group = None if dry_run else Group(time.time(), self.consumer, "consolidated")
        result, rows = scope(lambda s: retention.retain(s, policy, at, twins, group))
        if not dry_run:
            self._session.cache.drop(rows.ids.tolist())
        return result

    def configure(
        self,
        *,
        capacity: int | None = None,
        strategy: Strategy | str | None = None,
        alpha: float | None = None,
        eviction: Eviction | EvictionPolicy | str | None = None,
        max_replays: int | None = None,
        limiter: SamplesPerInsert | Literal["none"] | None = None,
        history: History | Literal["on", "off"] | None = None,
    ) -> int:
        """Change stored settings for every process, in one commit; shrinking evicts. Returns how many were evicted.

        ``max_replays=0`` and ``limiter="none"`` lift those limits; a new limiter counts from now on; a history that is
        to be shorter is cut at once.
        """
        changes: dict[str, Any] = {
            "capacity": capacity,
            "strategy": strategy,
            "alpha": alpha,
            "eviction": eviction,
            "max_replays": max_replays,
            "limiter": limiter,
            "history": history,
        }
        group = Group(time.time(), self.consumer)

        def work(snapshot: Snapshot) -> NDArray[np.int64]:
            settings = maintenance.changed_settings(snapshot.settings, **changes)
            return maintenance.reconfigure(snapshot, settings, group)

        evicted = self._session.write(work)
        if strategy is not None or alpha is not None:
            self._strategy = None
        return len(evicted)

    # Learning

    def update(
        self,
        replayed: Batch | Any,
        *,
        loss: Any,
        step: int | None = None,
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
        """
        drawn = replayed if isinstance(replayed, Batch) else None
        ids = check_ids(replayed) if drawn is None else drawn.ids
        losses = as_losses(loss, len(ids))
        check_option("on_invalid", on_invalid, "raise", "skip")
        if on_invalid == "raise":
            refuse_invalid(losses, ids.tolist())
        valid = ~invalid_losses(losses)
        replay = recording.Replay(ids, losses)
        if drawn is not None:
            replay = replace(replay, probability=drawn.probability, weight=drawn.weight)
        group = Group(
            at=time.time(),
            consumer=self.consumer,
            step=None if step is None else check_int("step", step, minimum=-(2**62)),
            strategy=None if drawn is None else drawn.strategy,
        )
        if not valid.any():
            return UpdateResult(np.empty(0, np.int64), np.empty(0, np.int64), np.unique(ids))
        token = None if drawn is None else drawn.lease

        def work(snapshot: Snapshot) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
            if token is not None:
                leases.release(snapshot, token)
            return recording.update(snapshot, group, replay.take(valid))

        updated, missing = self._session.write(work)
        rejected = np.setdiff1d(ids[~valid], ids[valid])
        return UpdateResult(updated, missing, rejected)

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

    def save_checkpoint(self, name: str, state: Mapping[str, Any]) -> None:
        """Store a trainer's state with the generator's.

        Replaces the checkpoint of the same name; atomic and durable like every write. Inside ``transaction()`` it
        commits together with the episodes and losses it belongs to.

        Parameters
        ----------
        name : str
        state : dict
            Nested dicts (OrderedDict and Counter too; keys are str, int, float, bool, None or tuples of them), lists
            and tuples of arrays, tensors, numbers, str, bytes and None: ``{"net": net.state_dict(), "optimizer":
            optimizer.state_dict(), "rng": torch.get_rng_state()}``. Each comes back as the type it had. Of two tensors
            that share their storage (tied weights) each comes back with storage of its own.

        Raises
        ------
        PayloadError
            For anything else, naming its place; nothing was written.
        """
        check_name("checkpoint", name)
        packed = list(pack(state))  # before the lock is taken, so that other writers do not wait for it
        del state
        with held_until_done(packed):
            self._session.draw(lambda s, rng: checkpoint.save(s, name, packed, rng, time.time()), write=True)

    def load_checkpoint(self, name: str) -> dict[str, Any]:
        """The stored state; the generator goes on where it was then.

        Tensors come back on the CPU, without a graph; where PyTorch is not installed, as arrays (a bfloat16 as the
        float32 of the same values).

        Raises
        ------
        CheckpointNotFound, StoreCorrupt
            The generator is left as it was.
        """
        check_name("checkpoint", name)
        state, generator = self._session.read(lambda s: checkpoint.load(s, name))
        self._session.restore(generator)
        return state

    def checkpoints(self) -> list[str]:
        """Names of the stored checkpoints, oldest first."""
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
            "strategy": self._strategy and self._strategy.to_json(),
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
    capacity: int | None = None,
    strategy: Strategy | str | None = None,
    alpha: float | None = None,
    epsilon: float | None = None,
    eviction: Eviction | EvictionPolicy | str | None = None,
    max_replays: int | None = None,
    limiter: SamplesPerInsert | None = None,
    history: History | Literal["on", "off"] | None = None,
    signature: Mapping[str, Any] | None = None,
    seed: int | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    durability: Durability = "process",
    busy_timeout: float = DEFAULT_BUSY_TIMEOUT,
    consumer: str | None = None,
    create: bool = True,
) -> EpisodicMemory:
    """Open a memory: create it, or resume it where it was left.

    Settings marked * are stored with the buffer: given at creation (defaults below), and on resuming only checked.

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
    strategy : Strategy or str
        What ``sample`` draws by, ``"mixed"`` by default. Stored at creation; given on resuming, it holds for this
        handle.
    alpha : float
        Exponent of the strategy (see there); 0.6 by default.
    epsilon* : float > 0
        Added to a loss to make a priority, 1e-6 by default; keeps zero losses reachable. Fixed at creation.
    eviction* : Eviction or str
        A policy such as ``Reservoir()``, or its name.
        By default what goes with the strategy: ``lowest_loss`` with PrioritizedLoss and Mixed, ``largest_domain`` with
        DomainBalanced, else ``fifo``.
    max_replays* : int
        Remove an episode after this many loss updates; never by default.
    limiter* : SamplesPerInsert
        Keep draws and adds in step across all processes; none by default.
    history* : History, "on" or "off"
        What the replay history records and how long; everything, for ever, by default.
    signature* : mapping
        Fields of the payloads, such as ``{"tokens": ("int32", (None,)), "reward": float}``; None is a ragged
        dimension. Fixed by the first add otherwise.
    seed : int
        Of this handle's draws; of the buffer's reservoir, at creation.
    cache_bytes : int
        Budget for hot payloads, 256 MiB by default; 0 turns the cache off.
    durability : "process" or "power"
        What a commit survives: the death of the process (kill -9), or also power loss (and, on PostgreSQL, a crash of
        the server). SQLite's ``synchronous``, PostgreSQL's ``synchronous_commit``; neither setting can corrupt.
    busy_timeout : float
        Seconds to wait for another process's write lock, or to try again after a conflict or a lost connection.
    consumer : str
        Name written into the replay history; host and process number by default.
    create : bool
        Whether a missing database or buffer may be made.

    Raises
    ------
    ConfigError
        A setting is invalid, or differs from the stored one.
    NotAMemstore, SchemaTooNew, SchemaTooOld, StoreUnavailable
        The database is not one that this version can open; it was not changed. A file without tables, as a killed
        creation leaves it, is filled, unless ``create`` is false.

    Warns
    -----
    StoreWarning
        The file lies on a network file system, or has several names (hard links).
    """
    if consumer is not None:
        check_name("consumer", consumer)
    opened = open_buffer(
        target,
        buffer=buffer,
        capacity=capacity,
        strategy=strategy,
        alpha=alpha,
        epsilon=epsilon,
        eviction=eviction,
        max_replays=max_replays,
        limiter=limiter,
        history=history,
        signature=signature,
        seed=seed,
        cache_bytes=cache_bytes,
        durability=durability,
        busy_timeout=busy_timeout,
        create=create,
    )
    return EpisodicMemory(opened, consumer=consumer)


@lru_cache(maxsize=64)
def _stored_strategy(text: str) -> Strategy:
    return strategy_from_json(text)


@lru_cache(maxsize=64)
def stored_signature(text: str | None) -> Signature | None:
    """The signature stored as this text, read once."""
    return None if text is None else Signature.from_json(text)


def signature_of(snapshot: Snapshot) -> Signature | None:
    """The buffer's signature, None before the first add."""
    return stored_signature(snapshot.state.signature)


def _span(steps: Any) -> tuple[int, int]:
    ends = steps if isinstance(steps, (tuple, list)) else (steps, steps)
    if len(ends) != 2:
        raise InvalidValue(f"steps must be one step or (first, last), got {shown(steps)}")
    first, last = (constant_of("steps", "int", end) for end in ends)
    assert isinstance(first, (int, float)) and isinstance(last, (int, float))
    if first > last or int(first) != first or int(last) != last:
        raise InvalidValue(f"steps must be whole numbers (first, last) with first <= last, got {shown(steps)}")
    return int(first), int(last)


def _check_by(by: Any) -> None:
    if by is not None and not (isinstance(by, str) and by == "domain"):
        raise InvalidValue(f"by must be 'domain' or None, got {shown(by)}")


def check_where(where: Condition | str | None) -> Condition | None:
    """The condition on episodes, from itself or its text; refuse what is none."""
    return None if where is None else as_condition(where)


def _token(batch: Any) -> str:
    if not isinstance(batch, Batch) or batch.lease is None:
        raise InvalidValue(f"expected a batch that lease() returned, got {shown(batch)}")
    return batch.lease
