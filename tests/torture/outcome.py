"""What became of injected faults."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from tests.support.postgres import PostgresServer


class Lost(AssertionError):
    """Something acknowledged is not there."""


@dataclass
class Outcome:
    """Counts of one trial, or of many added up.

    ``acknowledged`` counts calls that returned. The other counts should stay 0: acknowledged calls whose effect is
    gone, wrong answers, trials that did not end in time, and errors that are not memstore's.
    """

    trials: int = 0
    faults: int = 0
    acknowledged: int = 0
    lost: int = 0
    wrong: int = 0
    hung: int = 0
    foreign: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """True if nothing was lost, wrong, hung or foreign."""
        return not (self.lost or self.wrong or self.hung or self.foreign)

    def add(self, other: Outcome) -> None:
        """Add the counts of another outcome to these."""
        for name in (item.name for item in fields(self)):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def to_dict(self) -> dict[str, Any]:
        """The counts and findings as JSON values."""
        return asdict(self)


@dataclass
class Place:
    """Where a trial works: a folder of its own, and a PostgreSQL server if there is one."""

    folder: Path
    server: PostgresServer | None = None
    _databases: list[str] = field(default_factory=list)

    @property
    def file(self) -> str:
        """Path of a database file that does not exist yet."""
        return str(self.folder / "run.db")

    def database(self) -> str:
        """Address of a new, empty database on the server."""
        assert self.server is not None
        self._databases.append(f"torture_{os.getpid()}_{len(self._databases)}")
        return self.server.create_database(self._databases[-1])

    def clear(self) -> None:
        """Remove the databases on the server."""
        for name in self._databases:
            assert self.server is not None
            self.server.drop_database(name)


Trial = Callable[[Place, int, Outcome], None]
"""Injects faults by a seed and counts them in the outcome.

It raises ``Lost`` or ``AssertionError`` for what is wrong. Any error that is not one of memstore's counts as foreign.
"""
