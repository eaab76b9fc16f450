"""Decides how large SQLite's log grows before it is folded into the file.

At 1M rows, 41k rows/s are inserted if the log is folded every 1,000 pages, which is SQLite's default, and 111k if it is
folded every 16,384 pages. But a log of 64 MB is too much for a file of 2 MB. So the log may grow to twice the file.
With the limit at the file's own size, and at least 1,000 pages, 50,000 rows in commits of 100 took a third longer: each
folding waits for the disk twice.
"""

from __future__ import annotations

import sqlite3
from typing import Any

PAGE = 4096
"""A page of the file has this many bytes."""

LEAST_PAGES, MOST_PAGES = 4000, 16384
"""The log of a small file and that of a large file are folded at these numbers of pages."""


def usual_pages(driver: sqlite3.Connection) -> int:
    """Return the number of pages at which the log of this file is folded."""
    pages = int(driver.execute("PRAGMA page_count").fetchone()[0])
    return min(max(2 * pages, LEAST_PAGES), MOST_PAGES)


def bounds(pages: int) -> tuple[str, str]:
    """Return the pragmas that fold the log at this number of pages.

    A large commit may make the log larger. The next folding cuts the log's file back to 1.25 times ``pages``.
    """
    return f"wal_autocheckpoint = {pages}", f"journal_size_limit = {5 * pages * PAGE // 4}"


def fit(connection: Any) -> None:
    """Adapt a connection's limit of the log to the size of the file. This costs 6 us a write."""
    known = connection.log_pages
    if known == MOST_PAGES:
        return  # a file seldom shrinks
    wanted = usual_pages(connection)
    if not 0.8 * known <= wanted <= 1.25 * known:
        for pragma in bounds(wanted):
            connection.execute(f"PRAGMA {pragma}")
        connection.log_pages = wanted
