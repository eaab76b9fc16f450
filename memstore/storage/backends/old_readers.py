"""Writes sentences on readers of old snapshots, and on room that a database cannot give back because of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from memstore.printable import visible
from memstore.storage.backends.locks import describe_process, old_readers
from memstore.storage.backends.log import PAGE

LONG_SNAPSHOT = 60.0
"""A transaction on a server is reported after this many seconds. Vacuum keeps all rows that it may see."""

ON_SERVER = (
    "SELECT pid, application_name, usename::text, state, extract(epoch FROM clock_timestamp() - xact_start)::float8 "
    "FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database() "
    "AND backend_type = 'client backend' AND clock_timestamp() - xact_start > make_interval(secs => %s) "
    "ORDER BY xact_start LIMIT 3"
)
"""This query finds the oldest transactions on a server. It shows the sessions of other users only to some roles."""


MOST_DEAD = 10_000
"""Dead rows of blocks are reported if there are more, and more than live ones. They take 4 KB each."""

DEAD_BLOCKS = (
    "SELECT n_dead_tup, n_live_tup FROM pg_stat_user_tables WHERE relid = 'block'::regclass "
    "AND n_dead_tup > greatest(%s, n_live_tup)"
)
"""This query finds the dead and the live rows of blocks on a server, if there are too many dead ones."""


def of_file(database: Path, log: int, usual: int) -> Iterator[str]:
    """Write a sentence on each old reader of a SQLite file.

    Parameters
    ----------
    log : int
        Bytes of the log. Nothing is looked up while the log is small.
    usual : int
        Pages at which the log is usually folded.
    """
    if log <= 2 * usual * PAGE:
        return
    for pid, pages in old_readers(database, usual).items():
        yield (
            f"the log, {log / 2**20:,.0f} MiB, cannot shrink while {describe_process(pid)} reads what was there "
            f"{pages:,} written pages ago: let it end its transaction() or query, or end it"
        )


def of_server(rows: Iterable[tuple[int, str, str, str, float]]) -> Iterator[str]:
    """Write a sentence on each row that ``ON_SERVER`` found."""
    for pid, name, user, state, seconds in rows:
        yield (
            f"deleted rows keep their room while process {pid} of the server ({visible(f'{name or user}, {state}')}) "
            f"reads what was there {seconds:,.0f} s ago: let it end its transaction, or end it"
        )


def of_blocks(rows: Iterable[tuple[int, int]]) -> Iterator[str]:
    """Write a sentence on the row that ``DEAD_BLOCKS`` found."""
    for dead, live in rows:
        yield (
            f"the table of blocks has {dead:,} dead rows, and {live:,} live ones: each fold leaves some, and vacuum "
            "does not keep up; end old transactions, or run VACUUM block"
        )
