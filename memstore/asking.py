"""Questions about the episodes and about what was replayed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import numpy as np
from sqlalchemy import func, select

from memstore.buffer.snapshot import Snapshot
from memstore.config import check_name
from memstore.draws.targets import domain_targets
from memstore.episodes.inputs import check_count, check_ids, check_option
from memstore.errors import InvalidValue
from memstore.queries import Condition, col, constant_of
from memstore.queries.query import Query
from memstore.queries.records import EpisodeSummary, LossTrend, ReplayEvent, ReplayShare
from memstore.queries.sql import Over
from memstore.reader import MemoryReader
from memstore.storage.schema import UNMEASURED, first_id, replay_tally
from memstore.values.shown import shown
from memstore.values.times import check_time

_t = replay_tally.c

HARDEST = 100
"""How many of the hardest episodes ``forgotten`` looks at for each one asked for, before it scans ..."""

MOST_LOOKED_AT = 1000
"""... and at most: 1,000 look-ups cost a tenth of a scan of 1M."""


class MemoryAsker(MemoryReader):
    """The replay history and queries; no answer waits for writers, each is from one consistent snapshot."""

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
            conditions.append(col.at >= check_time("since", since))
        if until is not None:
            conditions.append(col.at <= check_time("until", until))
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
        risen = self.query().filter(col.rise > 0).order_by(col.rise.descending).limit(check_count(n))

        def work(snapshot: Snapshot) -> list[EpisodeSummary]:
            here = replace(risen, _read=lambda ask: ask(snapshot))
            hardest = (
                here.filter(col.loss.is_known())
                .order_by(col.loss.descending)
                .limit(max(n, min(HARDEST * n, MOST_LOOKED_AT)))
            )
            rows = replace(hardest, condition=col.loss.is_known()).select(col.id, col.loss, col.rise).arrays()
            best = np.lexsort((rows["id"], -rows["rise"]))[:n]
            decided = len(best) == n and rows["rise"][best[-1]] > rows["loss"][-1]
            if decided:
                here = replace(here, condition=col.id.in_(rows["id"][best].tolist()) & (col.rise > 0))
            return here.all()

        return self._session.read(work)

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

        def work(snapshot: Snapshot) -> list[LossTrend]:
            query = select(_t.slot, _t.domain_id, _t.replays, _t.loss_sum, _t.last_step, _t.last_at)
            query = query.where(_t.buffer_id == snapshot.state.buffer_id).order_by(_t.slot, _t.domain_id)
            rows = snapshot.conn.execute(query).all()
            if not rows:
                return []
            slot, domain_id, replays, losses, step, at = (np.array(column) for column in zip(*rows, strict=True))
            step = np.array([np.nan if value is None else float(value) for value in step.tolist()])
            point = (slot - 1) * most // snapshot.state.counters.events
            codes = domain_id - first_id(snapshot.state.buffer_id) if by else np.zeros(len(slot), np.int64)
            trends = []
            for code in np.unique(codes).tolist():
                own = codes == code
                found, place = np.unique(point[own], return_inverse=True)
                count = np.bincount(place, replays[own]).astype(np.int64)
                trends.append(
                    LossTrend(
                        snapshot.state.domain_names[code - 1] if by else None,
                        _last(step[own], place, len(found)),
                        _last(at[own], place, len(found)),
                        count,
                        np.bincount(place, losses[own]) / count,
                    )
                )
            return trends

        return self._session.read(work)

    def replay_share(self, by: Literal["domain"] = "domain") -> list[ReplayShare]:
        """What each domain has of the episodes and of the replays, against what the strategy aims at; largest first.

        From the strata and the tally, in time independent of the number of episodes and events.
        """
        if by != "domain":
            raise InvalidValue(f"replay_share is by 'domain', got {shown(by)}")

        def work(snapshot: Snapshot) -> list[ReplayShare]:
            names, strata = snapshot.state.domain_names, snapshot.state.strata
            query = select(_t.domain_id, func.sum(_t.replays)).where(_t.buffer_id == snapshot.state.buffer_id)
            first = first_id(snapshot.state.buffer_id) + 1
            replays = np.zeros(len(names))
            for domain_id, count in snapshot.conn.execute(query.group_by(_t.domain_id)):
                replays[domain_id - first] = count
            domain, unknown = strata.domain - 1, strata.bucket == UNMEASURED
            episodes = np.bincount(domain, strata.count, len(names))
            unmeasured = np.bincount(domain[unknown], strata.count[unknown], len(names))
            losses = strata.mean_losses(len(names))
            targets = domain_targets(self._default_strategy(snapshot), snapshot)
            shares = [
                ReplayShare(
                    domain=name,
                    episodes=int(episodes[i]),
                    episode_share=float(episodes[i] / max(episodes.sum(), 1)),
                    unmeasured=int(unmeasured[i]),
                    mean_loss=float(losses[i]) if episodes[i] > unmeasured[i] else None,
                    replays=int(replays[i]),
                    replay_share=float(replays[i] / max(replays.sum(), 1)),
                    target=None if targets is None else float(targets[i]),
                )
                for i, name in enumerate(names)
            ]
            return sorted(shares, key=lambda share: (-share.episodes, share.domain))

        return self._session.read(work)


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


def _last(values: np.ndarray[Any, np.dtype[np.float64]], place: Any, points: int) -> Any:
    largest = np.full(points, -np.inf)
    np.fmax.at(largest, place, values)
    return np.where(np.isneginf(largest), np.nan, largest)
