"""A real PostgreSQL server for tests and benchmarks: on a Unix socket, without fsync, gone when its user is gone.

Only binaries are taken from wherever they are; nothing of the machine is changed outside one folder in /tmp.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url

from tests.support.binaries import NoPostgres, copied, find_binaries, memory_folder, open_to_others

PATIENCE = 60.0
SETTINGS = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "100",
    "shared_buffers": "32MB",
    "max_wal_size": "128MB",
}

GUARD = Path(__file__).with_name("guard.py")


class PostgresServer:
    """A server of one's own, or with ``admin`` one that runs already at this address.

    ``settings`` overrides those of the configuration: a benchmark wants ``fsync`` back.
    """

    def __init__(self, *, admin: str | None = None, settings: Mapping[str, str] | None = None) -> None:
        self.owned = admin is None
        self._admin = make_url(admin).set(drivername="postgresql+psycopg") if admin else None
        self._binaries = find_binaries() if self.owned else Path()
        self._settings = SETTINGS | dict(settings or {})
        self._folder: Path | None = None
        self._data = Path()
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: subprocess.Popen[bytes] | None = None
        self._identity: dict[str, Any] = {}

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start, on the data of an earlier start if there was one, and wait until connections are accepted."""
        if not self.owned or self._process is not None:
            return
        try:
            if self._folder is None:
                self._initialise()
            deadline = time.monotonic() + PATIENCE
            # After a kill the first attempts may find the orphans of the last postmaster still on their way out.
            while not self._launch():
                if time.monotonic() > deadline:
                    raise RuntimeError(f"PostgreSQL does not start:\n{self._log()}")
                time.sleep(0.05)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server and remove its data."""
        self._end(signal.SIGQUIT)
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            self._guard.wait(PATIENCE)
        self._guard = self._folder = None

    def crash(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Every connection breaks at once, and the next start recovers; after SIGKILL statements may still end."""
        self._need_own()
        self._end(how)

    def restart(self) -> None:
        """Start again; if the server runs, everyone is disconnected first."""
        self._need_own()
        self._end(signal.SIGINT)
        self.start()

    def url(self, database: str | None = None) -> str:
        """Address of a database, as memstore takes it; by default the administrator's."""
        url = self._admin
        if url is None:
            assert self._folder is not None, "the server was not started"
            query = {"host": str(self._folder), "port": "5432"}
            url = URL.create("postgresql+psycopg", "memstore", database="postgres", query=query)
        return url.set(database=database or url.database).render_as_string(hide_password=False)

    def create_database(self, name: str, template: str | None = None) -> str:
        """Make a database, empty or as ``template`` is; returns its address."""
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template or "template0"}"')
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Remove a database, whoever is connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def execute(self, statement: str) -> None:
        """Run a statement as administrator, outside a transaction."""
        import psycopg

        with psycopg.connect(self.url().replace("+psycopg", "", 1), autocommit=True) as conn:
            conn.execute(statement.encode())

    def _initialise(self) -> None:
        # Not the default folder for temporary files: the path of a socket has room for about 100 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="memstore-pg-", dir="/tmp"))
        memory = memory_folder() if self._settings["fsync"] == "off" else None
        self._data = Path(tempfile.mkdtemp(prefix="memstore-pg-", dir=memory or self._folder))
        command = [sys.executable, "-I", str(GUARD), str(self._folder), str(self._data)]
        self._guard = subprocess.Popen(command, stdin=subprocess.PIPE, cwd="/", start_new_session=True)
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            import pwd

            nobody = pwd.getpwnam("nobody")
            for folder in (self._folder, self._data):
                os.chown(folder, nobody.pw_uid, nobody.pw_gid)
            self._identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
            if not open_to_others(self._binaries / "postgres"):
                self._binaries = copied(self._binaries, self._folder / "copy", nobody.pw_uid, nobody.pw_gid)
        options = ["-A", "trust", "-U", "memstore", "--no-sync", "--locale=C", "--encoding=UTF8"]
        if self._run("initdb", "-D", f"{self._data}", *options).wait(PATIENCE):
            raise RuntimeError(f"initdb failed:\n{self._log()}")

    def _launch(self) -> bool:
        import psycopg

        settings = [f"--{name}={value}" for name, value in (self._settings | {"listen_addresses": ""}).items()]
        self._process = self._run("postgres", "-D", f"{self._data}", "-k", f"{self._folder}", *settings)
        self._tell_guard(self._process.pid)
        deadline = time.monotonic() + PATIENCE
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                self.execute("SELECT 1")
                return True
            except psycopg.OperationalError:
                time.sleep(0.02)
        self._end(signal.SIGQUIT)
        return False

    def _run(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        assert self._folder is not None
        command = [str(self._binaries / program), *arguments]
        variables = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                env=variables,
                start_new_session=True,
                **self._identity,
            )

    def _end(self, how: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE)
            self._process = None
            self._tell_guard(0)

    def _need_own(self) -> None:
        if not self.owned:
            raise NoPostgres("the server is someone else's and goes on")

    def _tell_guard(self, server: int) -> None:
        assert self._guard is not None and self._guard.stdin is not None
        self._guard.stdin.write(f"{server}\n".encode())
        self._guard.stdin.flush()

    def _log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:] if self._folder else ""


def find_server() -> PostgresServer:
    """The server that tests use, not started; ``NoPostgres`` says why there is none."""
    if importlib.util.find_spec("psycopg") is None:
        raise NoPostgres("psycopg is not installed: pip install 'memstore[postgres]'")
    return PostgresServer(admin=os.environ.get("MEMSTORE_TEST_PG_URL"))
