"""Counts of the work behind a call, for tests. They replace patches into internals.

>>> with memstore.testing.counting() as counts:
...     memory.sample(256)
>>> assert counts.scans == 0
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """The work of this process, in all its threads, since the counting began."""

    scans: int = 0
    """Number of queries of draws over all episodes of a buffer. A draw makes one to know all passing episodes."""

    rounds: int = 0
    """Number of rounds of candidates that draws proposed."""

    listed: int = 0
    """Number of draws that were made, or finished, from a list of all rows that may be drawn."""

    folds: int = 0
    """Number of folds: writes that brought all tables to the end of the log."""

    statements: int = 0
    """Number of statements sent to databases.

    BEGIN, COMMIT and savepoints count. One statement for many rows is one.
    """

    exchanges: int = 0
    """Number of times that this process waited for the answer of a database.

    On PostgreSQL, an exchange is a round trip to the server. Statements that are sent together, and awaited together,
    are one exchange. SQLite has no server: each statement is an exchange.
    """


_counting: list[Counts] = []


@contextmanager
def counting() -> Iterator[Counts]:
    """Count from here to the end of the block. Blocks may be nested. Outside of blocks, counting costs nothing."""
    counts = Counts()
    _counting.append(counts)
    try:
        yield counts
    finally:
        # Compare by identity: two objects with equal counts are still two.
        _counting[:] = [other for other in _counting if other is not counts]


def is_counting() -> bool:
    """True inside a block of ``counting``."""
    return bool(_counting)


def count(what: str) -> None:
    """Add one to this field of the counts of every open block."""
    for counts in _counting:
        setattr(counts, what, getattr(counts, what) + 1)
