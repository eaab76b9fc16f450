"""Reading of a buffer that may be damaged: each part by itself, so that none hides the others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from sqlalchemy import Connection, select

from memstore.buffer.blocks.copy import Copy
from memstore.buffer.blocks.heads import HEAD, alike
from memstore.buffer.counters import COUNTERS, Counters, checked_counters
from memstore.buffer.settings import COLUMNS as SETTINGS
from memstore.buffer.settings import Settings, read_settings
from memstore.buffer.snapshot import Rows, Snapshot, State, law_of
from memstore.draws.strategies import strategy_from_json
from memstore.errors import StoreCorrupt
from memstore.storage import stored
from memstore.storage.backends import Backend
from memstore.storage.schema import buffer, domain, first_id
from memstore.upkeep.sealed import tell
from memstore.upkeep.window import Window

UNNAMED = "?"
"""This stands for the name of a domain that cannot be read."""


@dataclass(frozen=True)
class Loaded:
    """A buffer as far as it can be read.

    Attributes
    ----------
    snapshot : Snapshot
        Its state is as a process that opens the buffer gets it. If no process can open the buffer, it has the settings,
        and those counters and names of domains that can be read.
    problems : tuple of str
        What cannot be read.
    counted : bool
        True if the counters can be read.
    opens : bool
        True if a process can open the buffer. Only then the state has blocks.
    """

    snapshot: Snapshot
    problems: tuple[str, ...] = ()
    counted: bool = True
    opens: bool = True

    def rows(self, window: Window) -> Rows:
        """Return the live rows in id order: from the blocks, or from the tables if there are no blocks."""
        return self.snapshot.scan() if self.opens else window.rows()


def load(conn: Connection, backend: Backend, number: int) -> Loaded:
    """Read a buffer as an opening process does, or else as far as it can be read.

    Raises
    ------
    StoreCorrupt
        The settings cannot be read. Without them nothing else can be judged.
    """
    try:
        settings, values = _row(conn, number)
    except StoreCorrupt as exc:
        raise StoreCorrupt(f"nobody can open the buffer: {exc}") from exc
    try:
        return Loaded(Snapshot(conn, backend, State.load(conn, backend, number, strategy_from_json)))
    except StoreCorrupt as exc:
        problems = [str(exc)]
    counters, counted = Counters(), True
    try:
        counters = checked_counters(number, values)
    except StoreCorrupt as exc:
        problems.append(str(exc))
        counted = False
    names, lacking = _names(conn, number, counters.domains)
    none = Copy.of(law_of(settings))
    state = State(number, settings, counters, none, none.heads, strategy_from_json, names)
    return Loaded(Snapshot(conn, backend, state), (*problems, *lacking), counted, opens=False)


def _row(conn: Connection, number: int) -> tuple[Settings, list[object]]:
    """Return the settings, and the counters as they are stored."""
    columns = (buffer.c[name] for name in ("signature", *SETTINGS, *COUNTERS))
    signature, *values = conn.execute(select(*columns).where(buffer.c.id == number)).one()
    split = len(SETTINGS)
    return read_settings(number, strategy_from_json, signature, *values[:split]), values[split:]


def _names(conn: Connection, number: int, expected: int) -> tuple[list[str], list[str]]:
    """Return the names of the domains that can be read, each in its place, and what is wrong with the others."""
    names: dict[int, str] = {}
    problems = []
    for row in conn.execute(select(domain.c.id, domain.c.name).where(domain.c.buffer_id == number)):
        try:
            place = (
                stored.whole(row.id, f"domain {row.id!r:.40}: its id", low := first_id(number) + 1, low + 2**23) - low
            )
            names[place] = stored.text(row.name, f"domain {row.id}: its name")
        except StoreCorrupt as exc:
            problems.append(str(exc))
    count = max([min(expected, len(names) + 1000), *(place + 1 for place in names)])
    lacking = [str(first_id(number) + 1 + place) for place in range(count) if place not in names]
    if lacking:
        problems.append(f"the names of {len(lacking)} domains cannot be read ({', '.join(lacking[:5])})")
    return [names.get(place, UNNAMED) for place in range(count)], problems


def unlike(fresh: Snapshot, followed: Snapshot) -> Iterator[str]:
    """Compare the blocks that a handle has in memory with those that were read: slots, heads, and sums."""
    read, kept = fresh.state.blocks, followed.state.blocks
    if not np.array_equal(read.heads["name"], kept.heads["name"]):
        yield "this process has other blocks in memory than one that opens the buffer now"
        return
    exact = [name for name in HEAD.names or () if name not in ("stamp", "token", "sum", "unit")]
    for opened in read.chunks(np.arange(len(read))):
        blocks = opened.blocks
        wrong = (opened.columns != kept.open(blocks).columns).any(axis=(1, 2))
        wrong |= read.heads[blocks][exact] != kept.heads[blocks][exact]
        wrong |= ~alike(read.heads[blocks], kept.heads[blocks])
        yield from tell("blocks {} are others in the memory of this process", read.heads["name"][blocks[wrong]])


def rounded(copy: Copy) -> Iterator[str]:
    """Tell which sums are not bit for bit those that this machine computes from the contents.

    numpy's logarithm may round otherwise on another machine. Draws go by the sums of the machine that stored them.
    """
    others = [np.empty(0, np.int64)]
    for opened in copy.chunks(np.arange(len(copy))):
        steps, unit = copy.pages.weigh(opened.loss)
        heads = copy.heads[opened.blocks]
        others.append(heads["name"][(steps[:, -1] != heads["sum"]) | (unit != heads["unit"])])
    yield from tell("the sums of blocks {} were rounded by another machine in their last bits", np.concatenate(others))
