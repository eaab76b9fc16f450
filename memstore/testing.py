"""What tests may count of the work behind a call, in place of patches into internals.

with memstore.testing.counting() as counts:
    memory.sample(256)
assert counts.scans == 0
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(slots=True)
class Counts:
    """Work done by this process, in all its threads, since the counting began."""

    scans: int = 0
    """Queries over all episodes of a buffer that a draw made, to know all that pass or all weights."""

    followed: int = 0
    """How often the history brought such knowledge up to date in place of a scan."""

    rounds: int = 0
    """Rounds of candidates."""

    listed: int = 0
    """Draws, or ends of draws, from a list of all that may be drawn."""

    completed: int = 0
    """Those of ``listed`` that ended a draw of which candidates had given a part."""

    statements: int = 0
    """Statements sent to databases, BEGIN, COMMIT and savepoints included; one for many rows is one."""

    exchanges: int = 0
    """Times that this process waited for the answer of a database.

    PostgreSQL: round trips to the server; statements that are sent together, and awaited together, are one exchange.
    SQLite has no server: each statement is an exchange.
    """


_counting: list[Counts] = []


@contextmanager
def counting() -> Iterator[Counts]:
    """Count from here to the end of the block; blocks may be nested. Outside of them counting costs nothing."""
    counts = Counts()
    _counting.append(counts)
    try:
        yield counts
    finally:
        # By identity: counts that are equal so far are not the same.
        _counting[:] = [other for other in _counting if other is not counts]


def is_counting() -> bool:
    """True inside a block of ``counting``."""
    return bool(_counting)


def count(what: str) -> None:
    """Add one to this field of all that count."""
    for counts in _counting:
        setattr(counts, what, getattr(counts, what) + 1)
