"""Locks the tables of a PostgreSQL server for one transaction, and finds out who else uses them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from memstore.errors import StoreBusy
from memstore.storage.schema import metadata

APPLICATION = "memstore"
"""The name of memstore's sessions on the server, unless their address or PGAPPNAME gives another."""

_OTHERS = (
    "SELECT pid, usename FROM pg_stat_clear_snapshot(), pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = %s ORDER BY pid"
)
"""This query finds the other sessions of memstore in this database."""


def lock_tables(send: Callable[..., Any], where: str, patience: float, *, force: bool) -> None:
    """Lock memstore's tables until the transaction ends.

    A session outside a transaction holds no lock. But it remembers the contents of the tables, and would continue with
    them.
    So other sessions of memstore are refused even if they hold no lock.

    Parameters
    ----------
    send : callable
        Runs a statement in the transaction.
    where : str
        The database, for the message.
    patience : float
        Seconds to wait for other sessions to close.
    force : bool
        True to ignore sessions that hold no lock.

    Raises
    ------
    StoreBusy
        If sessions of memstore are still connected after ``patience`` seconds.
    """
    # The lock comes first. Who opens a memory after it has to wait, and who opened one before is seen below.
    send(f"LOCK TABLE {', '.join(metadata.tables)} IN ACCESS EXCLUSIVE MODE")
    deadline = time.monotonic() + patience
    while not force and (others := send(_OTHERS, (APPLICATION,)).fetchall()):
        if time.monotonic() > deadline:
            shown = ", ".join(f"{pid} of {user}" for pid, user in others[:5]) + (" ..." if len(others) > 5 else "")
            raise StoreBusy(
                f"{where} is open elsewhere: {len(others)} sessions of memstore ({shown}; see pg_stat_activity); "
                "nothing was changed. Close them and try again; if they use other schemas of the database, give "
                "--force, or force=True"
            )
        time.sleep(0.05)  # a session that was closed a moment ago is still listed
