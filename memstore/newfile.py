"""A file that is there as a whole or not at all, and never in the place of another."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memstore.errors import ConfigError


def check_free(file: Path) -> None:
    """Refuse a name at which no new file can be."""
    if file.exists():
        raise ConfigError(f"{file} exists, and a backup never overwrites; give another name")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"{file} cannot be written: there is no folder {file.absolute().parent}; make it first")


@contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """A name of nobody else's to write under. At the end the file gets its own, and survives a loss of power.

    What fails leaves nothing. Of several that write the same file at once the first to end has it, and the others
    raise ``ConfigError``.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}-{secrets.token_hex(4)}.partial")
    try:
        yield partial
        _settle(partial)
        _publish(partial, file)
        _settle(file.parent)
    finally:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{partial}{suffix}").unlink(missing_ok=True)


def _publish(partial: Path, file: Path) -> None:
    try:
        os.link(partial, file)
    except OSError:  # it exists, or a file system without links
        check_free(file)
        partial.rename(file)


def _settle(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
