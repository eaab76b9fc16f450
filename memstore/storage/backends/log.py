"""How large SQLite's log grows before it is folded into the file.

At 1M rows, 41k rows/s are inserted where that happens every 1,000 pages, which is SQLite's default, and 111k where it
happens every 16,384. But a file of 2 MB does not want a log of 64 MB. So the log may grow to twice the file.
Where it might grow to the file's own size, from 1,000 pages on, 50,000 rows in commits of 100 took a third longer: each
folding waits for the disk twice.
"""

from __future__ import annotations

import sqlite3
from typing import Any

PAGE = 4096
LEAST_PAGES, MOST_PAGES = 4000, 16384

_KNOWN = "memstore_log_pages"


def usual_pages(driver: sqlite3.Connection) -> int:
    """Pages of the log after which it is folded into a file as large as this one."""
    pages = int(driver.execute("PRAGMA page_count").fetchone()[0])
    return min(max(2 * pages, LEAST_PAGES), MOST_PAGES)


def bounds(pages: int) -> tuple[str, str]:
    """Pragmas for a log of so many pages; what a large commit made of it is cut back to a quarter more."""
    return f"wal_autocheckpoint = {pages}", f"journal_size_limit = {5 * pages * PAGE // 4}"


def fit(driver: sqlite3.Connection, info: dict[Any, Any]) -> None:
    """Let the connection's log grow with the file, 6 us a write; ``info`` is where the connection remembers."""
    wanted, known = usual_pages(driver), info.get(_KNOWN, LEAST_PAGES)
    if not 0.8 * known <= wanted <= 1.25 * known:
        for pragma in bounds(wanted):
            driver.execute(f"PRAGMA {pragma}")
        info[_KNOWN] = wanted
