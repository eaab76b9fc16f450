"""Sentences on readers of old snapshots, which keep a database from giving back room."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from memstore.printable import visible
from memstore.storage.backends.locks import old_readers, process
from memstore.storage.backends.log import PAGE

LONG_SNAPSHOT = 60.0
"""Seconds after which a transaction on a server is told of: vacuum keeps every row that it may see."""

# Of other users' sessions the server shows this to some roles only.
ON_SERVER = (
    "SELECT pid, application_name, usename::text, state, extract(epoch FROM clock_timestamp() - xact_start)::float8 "
    "FROM pg_stat_activity WHERE backend_xmin IS NOT NULL AND pid <> pg_backend_pid() AND datname = current_database() "
    "AND backend_type = 'client backend' AND clock_timestamp() - xact_start > make_interval(secs => %s) "
    "ORDER BY xact_start LIMIT 3"
)


def of_file(database: Path, log: int, usual: int) -> Iterator[str]:
    """For a file with a log of so many bytes, which usually has so many pages; costs nothing while it is small."""
    if log <= 2 * usual * PAGE:
        return
    for reader in old_readers(database, usual):
        yield (
            f"the log, {log / 2**20:,.0f} MiB, cannot shrink while {process(reader.pid)} reads what was there "
            f"{reader.pages:,} written pages ago: let it end its transaction() or query, or end it"
        )


def of_server(rows: Iterable[tuple[int, str, str, str, float]]) -> Iterator[str]:
    """For the rows that ``ON_SERVER`` found."""
    for pid, name, user, state, seconds in rows:
        yield (
            f"deleted rows keep their room while process {pid} of the server ({visible(f'{name or user}, {state}')}) "
            f"reads what was there {seconds:,.0f} s ago: let it end its transaction, or end it"
        )
