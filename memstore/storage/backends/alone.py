"""A PostgreSQL server's tables for one transaction alone, and who else uses them."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from memstore.errors import StoreBusy
from memstore.storage.schema import metadata

APPLICATION = "memstore"
"""How sessions are named on the server, unless their address or PGAPPNAME names them."""

_OTHERS = (
    "SELECT pid, usename FROM pg_stat_clear_snapshot(), pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid() AND application_name = %s ORDER BY pid"
)


def lock_tables(send: Callable[..., Any], where: str, patience: float, *, force: bool) -> None:
    """Lock memstore's tables; ``StoreBusy`` if sessions of memstore are connected for so many seconds from now on.

    A session without a transaction holds no lock. But it knows what was in the tables, and would go on from there.
    """
    # First the lock: whoever opens a memory from now on waits in front of it, whoever did before is seen.
    send(f"LOCK TABLE {', '.join(metadata.tables)} IN ACCESS EXCLUSIVE MODE")
    deadline = time.monotonic() + patience
    while not force and (others := send(_OTHERS, (APPLICATION,)).fetchall()):
        if time.monotonic() > deadline:
            shown = ", ".join(f"{pid} of {user}" for pid, user in others[:5]) + (" ..." if len(others) > 5 else "")
            raise StoreBusy(
                f"{where} is open elsewhere: {len(others)} sessions of memstore ({shown}; see pg_stat_activity); "
                "nothing was changed. Close them and run it again; if they use other schemas of the database, give "
                "--force, or force=True"
            )
        time.sleep(0.05)  # a session that was closed a moment ago is still listed
