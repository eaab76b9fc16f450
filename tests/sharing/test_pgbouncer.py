"""Through pgbouncer in transaction mode: every transaction may meet another connection of the server.

The program comes from the system (Debian's package pgbouncer); ``MEMSTORE_REQUIRE_PGBOUNCER=1`` makes its absence a
failure.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from sqlalchemy import make_url

import memstore
from tests.support.postgres import PostgresServer

CONNECTIONS = 2
"""Of the server, fewer than the clients use at once."""

pytestmark = pytest.mark.parametrize("url", ["postgres"], indirect=True)


def program() -> str:
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
    if found is None and os.environ.get("MEMSTORE_REQUIRE_PGBOUNCER") == "1":
        pytest.fail("pgbouncer is not installed")
    if found is None:
        pytest.skip("pgbouncer is not installed")
    return found


@pytest.fixture
def pooled(url: str, postgres_server: PostgresServer) -> Iterator[str]:
    """The database's address by way of pgbouncer."""
    command = [program()]
    direct = make_url(url)
    folder = Path(tempfile.mkdtemp(prefix="memstore-pool-", dir="/tmp"))
    settings = {
        "listen_addr": "",
        "listen_port": "6432",
        "unix_socket_dir": str(folder),
        "auth_type": "any",
        "pool_mode": "transaction",
        "default_pool_size": str(CONNECTIONS),
        "logfile": str(folder / "log"),
    }
    server = " ".join(f"{name}={value}" for name, value in direct.query.items())
    text = f"[databases]\npooled = {server} dbname={direct.database} user={direct.username}\n[pgbouncer]\n"
    (folder / "ini").write_text(text + "".join(f"{name} = {value}\n" for name, value in settings.items()))
    identity: dict[str, Any] = {}
    if os.geteuid() == 0:  # which pgbouncer refuses to run as
        nobody = pwd.getpwnam("nobody")
        identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
        for path in (folder, folder / "ini"):
            os.chown(path, nobody.pw_uid, nobody.pw_gid)
    process = subprocess.Popen(
        [*command, "-q", str(folder / "ini")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **identity
    )
    address = f"postgresql://{direct.username}@/pooled?host={folder}&port=6432"
    try:
        for _ in range(200):
            try:
                psycopg.connect(address).close()
                break
            except psycopg.OperationalError:
                time.sleep(0.05)
        yield address
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def test_everything_works_through_it(pooled: str) -> None:
    with memstore.open(pooled, capacity=1000, seed=1) as memory:
        memory.extend({"x": np.arange(500)}, loss=np.arange(500.0), key=[f"k{i}" for i in range(500)])
        for step in range(20):  # a driver that prepared statements would do so by now
            batch = memory.sample(32, beta=0.5)
            with memory.transaction():
                memory.update(batch, loss=np.ones(32), step=step)
                memory.save_checkpoint("trainer", {"step": step})
        held = memory.lease(10)
        assert memory.renew(held) == memory.release(held) == 10
        assert memory.check().ok
        before = memory.stats()
    with memstore.open(pooled) as memory:
        assert memory.resumed
        assert memory.load_checkpoint("trainer") == {"step": 19}
        assert memory.stats().total_events == before.total_events == 640
    assert memstore.buffers(pooled) == ["default"]


def test_more_clients_than_connections(pooled: str, postgres_server: PostgresServer) -> None:
    """Eight memories on two connections of the server: settings and locks of one never reach another."""
    with memstore.open(pooled, capacity=10_000, durability="power") as memory:
        memory.extend({"x": np.arange(100)}, loss=1.0)

        def work(number: int) -> int:
            durability = "power" if number % 2 else "process"
            with memstore.open(pooled, durability=durability) as mine:  # type: ignore[arg-type]
                for _ in range(15):
                    mine.add({"x": number}, loss=2.0)
                    mine.update(mine.sample(16), loss=np.random.default_rng(number).random(16))
            return 15 * 16

        with ThreadPoolExecutor(8) as pool:
            replays = sum(pool.map(work, range(8)))
        assert len(memory) == 100 + 8 * 15
        assert memory.stats().total_events == replays
        assert memory.check().ok


def test_waiting_works_without_notices(pooled: str) -> None:
    """LISTEN does not outlive a transaction there; then waiters look by themselves."""
    with memstore.open(pooled) as memory, memstore.open(pooled) as other, ThreadPoolExecutor(1) as pool:
        waiter = pool.submit(lambda: memory.wait(min_size=3, wait=60))
        for x in range(3):
            other.add({"x": x})
        assert waiter.result(timeout=10) == 3
