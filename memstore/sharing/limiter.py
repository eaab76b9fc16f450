"""The limiter, which keeps draws and adds in step across processes."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection, delete, insert, select, update

from memstore.buffer.snapshot import Snapshot
from memstore.config import SamplesPerInsert
from memstore.storage import stored
from memstore.storage.schema import limiter

_c = limiter.c


def set_limiter(conn: Connection, buffer_id: int, rule: SamplesPerInsert | None, added: int) -> None:
    """Start the account of a buffer's draws, in balance with the episodes ``added`` before. Without a rule, end it."""
    conn.execute(delete(limiter).where(_c.buffer_id == buffer_id))
    if rule is not None:
        balanced = round(rule.ratio * max(added - rule.min_size, 0))
        conn.execute(insert(limiter).values(buffer_id=buffer_id, drawn=balanced))


class OutOfStep(Exception):
    """The signal that an add has to wait. It is raised inside the transaction of the add, which is then rolled back."""


def admit_add(snapshot: Snapshot) -> None:
    """Raise ``OutOfStep`` if the next add has to wait.

    The caller holds the buffer's lock, so no other add comes between. Draws may come between. They only allow more
    adds.
    """
    rule = snapshot.settings.limiter
    if rule is not None and not rule.may_add(snapshot.live, snapshot.state.counters.inserted, _drawn(snapshot)):
        raise OutOfStep


def charge(snapshot: Snapshot, count: int) -> bool:
    """Count a draw and return True, or return False if the draw has to wait.

    One statement tests and counts. So of two draws at the same time, the second sees the first.
    """
    rule = snapshot.settings.limiter
    if rule is None:
        return True
    counters = snapshot.state.counters  # other processes may be writing, so the state has no blocks
    allowed = rule.draws_allowed(counters.live, counters.inserted)
    own = (_c.buffer_id == snapshot.state.buffer_id, _c.drawn < allowed)
    return snapshot.conn.execute(update(limiter).where(*own).values(drawn=_c.drawn + count)).rowcount == 1


def refund(snapshot: Snapshot, count: int) -> None:
    """Take back the count of a draw that found no episode."""
    own = _c.buffer_id == snapshot.state.buffer_id
    snapshot.conn.execute(update(limiter).where(own).values(drawn=_c.drawn - count))


def account(snapshot: Snapshot) -> dict[str, float] | None:
    """Return the limiter's settings, and under ``drawn`` its count of draws. None without a limiter."""
    rule = snapshot.settings.limiter
    return None if rule is None else asdict(rule) | {"drawn": _drawn(snapshot)}


def standing(snapshot: Snapshot) -> str:
    """Return a text with the number of live episodes, and with a limiter the numbers of episodes added and drawn."""
    rule = snapshot.settings.limiter
    held = f"holds {snapshot.live} episodes"
    if rule is None:
        return held
    return f"{held}, {snapshot.state.counters.inserted} were added and {_drawn(snapshot)} drawn under {rule}"


def _drawn(snapshot: Snapshot) -> int:
    found = snapshot.conn.scalars(select(_c.drawn).where(_c.buffer_id == snapshot.state.buffer_id)).one_or_none()
    return stored.whole(found, f"buffer {snapshot.state.buffer_id}: the count of its limiter", -(2**62))
