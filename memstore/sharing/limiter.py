"""Draws and adds in step, across processes."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from memstore.buffer.snapshot import Snapshot
from memstore.config import Settings, check_float, check_int
from memstore.errors import ConfigError
from memstore.storage import stored
from memstore.storage.schema import limiter
from memstore.values.shown import shown

_c = limiter.c


@dataclass(frozen=True)
class SamplesPerInsert:
    """Keep the number of episodes drawn near ``ratio`` times the number added, as Reverb's limiter does.

    With ``ahead = ratio * added - drawn``, draws wait while ``ahead <= ratio * min_size - error_buffer``, adds while
    ``ahead >= ratio * min_size + error_buffer``. Both look before they count their batch, so either may overshoot by
    one; and the two sides never wait for each other at the same time, whatever the sizes of their batches. (Cassirer
    et al. 2021, "Reverb: a framework for experience replay"; its ``SampleToInsertRatio`` counts before it looks.)

    Parameters
    ----------
    ratio : float > 0
        Draws per episode added, on average.
    min_size : int
        Nothing is drawn while fewer episodes are live, and no add waits.
    error_buffer : float > 0, optional
        How far either side may be ahead; ``ratio * min_size`` by default: never more draws than ``ratio`` per episode.
    """

    ratio: float
    min_size: int = 1
    error_buffer: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "ratio", check_float("ratio", self.ratio, exclusive=True))
        object.__setattr__(self, "min_size", check_int("min_size", self.min_size, minimum=1))
        buffer = self.ratio * self.min_size if self.error_buffer is None else self.error_buffer
        object.__setattr__(self, "error_buffer", check_float("error_buffer", buffer, exclusive=True))

    def draws_allowed(self, live: int, added: int) -> float:
        """The count of draws from which on the next one waits."""
        assert self.error_buffer is not None
        return self.ratio * (added - self.min_size) + self.error_buffer if live >= self.min_size else 0.0

    def may_add(self, live: int, added: int, drawn: int) -> bool:
        """Whether the next add need not wait."""
        assert self.error_buffer is not None
        return live < self.min_size or self.ratio * (added - self.min_size) - drawn < self.error_buffer

    def to_json(self) -> str:
        """As stored in the ``buffer`` row."""
        return json.dumps(asdict(self), sort_keys=True)


def limiter_to_json(value: Any) -> str:
    """A limiter as stored."""
    if not isinstance(value, SamplesPerInsert):
        raise ConfigError(f"limiter must be a memstore.SamplesPerInsert, got {shown(value)}")
    return value.to_json()


def limiter_of(settings: Settings) -> SamplesPerInsert | None:
    """The limiter among a buffer's settings, if it has one."""
    if settings.limiter is None:
        return None
    return stored.built("the buffer's limiter", settings.limiter, lambda document: SamplesPerInsert(**document))


def check_limiter(settings: Settings) -> None:
    """Refuse a limiter that the buffer's capacity can never satisfy."""
    rule = limiter_of(settings)
    if rule is not None and rule.min_size > settings.capacity:
        raise ConfigError(
            f"the limiter's min_size={rule.min_size} can never be reached with a capacity of {settings.capacity}"
        )


def set_limiter(conn: Connection, buffer_id: int, settings: Settings, added: int) -> None:
    """Keep the account of a buffer's draws from now on, in balance with what was added before, or keep none."""
    conn.execute(delete(limiter).where(_c.buffer_id == buffer_id))
    rule = limiter_of(settings)
    if rule is not None:
        balanced = round(rule.ratio * max(added - rule.min_size, 0))
        conn.execute(insert(limiter).values(buffer_id=buffer_id, drawn=balanced))


class OutOfStep(Exception):
    """An add has to wait. Raised inside its transaction, which is rolled back: nothing of it may be committed."""


def admit_add(snapshot: Snapshot) -> None:
    """Raise ``OutOfStep`` if the next add has to wait.

    The caller holds the buffer's lock, so no other add comes between. Draws may: they only allow more adds.
    """
    rule = limiter_of(snapshot.settings)
    if rule is not None and not rule.may_add(snapshot.live, snapshot.state.counters.inserted, _drawn(snapshot)):
        raise OutOfStep


def charge(snapshot: Snapshot, count: int) -> bool:
    """Count a draw if it need not wait; returns False if it has to.

    One statement looks and counts: of two draws at once, the second sees the first.
    """
    rule = limiter_of(snapshot.settings)
    if rule is None:
        return True
    allowed = rule.draws_allowed(snapshot.live, snapshot.state.counters.inserted)
    own = (_c.buffer_id == snapshot.state.buffer_id, _c.drawn < allowed)
    return snapshot.conn.execute(update(limiter).where(*own).values(drawn=_c.drawn + count)).rowcount == 1


def refund(snapshot: Snapshot, count: int) -> None:
    """Take back the count of a draw that found no episode."""
    own = _c.buffer_id == snapshot.state.buffer_id
    snapshot.conn.execute(update(limiter).where(own).values(drawn=_c.drawn - count))


def account(snapshot: Snapshot) -> dict[str, float] | None:
    """Return the limiter's settings, and under ``drawn`` how many draws it has counted. None without a limiter."""
    rule = limiter_of(snapshot.settings)
    return None if rule is None else asdict(rule) | {"drawn": _drawn(snapshot)}


def standing(snapshot: Snapshot) -> str:
    """Say how many episodes are live, and with a limiter how many were added and drawn."""
    rule = limiter_of(snapshot.settings)
    held = f"holds {snapshot.live} episodes"
    if rule is None:
        return held
    return f"{held}, {snapshot.state.counters.inserted} were added and {_drawn(snapshot)} drawn under {rule}"


def _drawn(snapshot: Snapshot) -> int:
    found = snapshot.conn.scalars(select(_c.drawn).where(_c.buffer_id == snapshot.state.buffer_id)).one_or_none()
    return stored.whole(found, f"buffer {snapshot.state.buffer_id}: the count of its limiter", -(2**62))
