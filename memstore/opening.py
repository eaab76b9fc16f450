"""Find or create a buffer, and give back a session on it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from sqlalchemy import URL, Connection

from memstore.buffer.counters import buffer_id, buffer_names, create_buffer, drop_buffer
from memstore.buffer.session import Session
from memstore.buffer.settings import Settings
from memstore.buffer.snapshot import Snapshot, State
from memstore.config import Durability, check_durability, check_int, check_name, check_seconds
from memstore.draws.knowledge import Knowledge
from memstore.draws.strategies import Strategy, strategy_from_json
from memstore.errors import ConfigError, StoreCorrupt
from memstore.payload.cache import PayloadCache
from memstore.payload.signature import Signature
from memstore.sharing.limiter import set_limiter
from memstore.storage.address import parse_url
from memstore.storage.database import Database
from memstore.storage.statements import Trace
from memstore.storage.upgrade import ensure_schema
from memstore.types import CheckReport, Seconds
from memstore.upkeep.check import check
from memstore.upkeep.settings import Changes, new_settings
from memstore.values.shown import listed, shown
from memstore.version import __version__

WAYS = {
    "capacity": "memory.configure(capacity=...), shrinking evicts",
    "epsilon": "it is fixed at creation; leave it out, or start another buffer with buffer='...'",
}
"""Advice for the settings that cannot be changed by a plain call of ``configure``."""


@dataclass(frozen=True, slots=True)
class Handle:
    """The parameters of ``memstore.open`` that hold for this handle alone.

    They are not stored. Only the seed of a new buffer is stored too, because it seeds the reservoir.
    """

    buffer: str
    seed: int | None
    cache_bytes: int
    durability: Durability
    busy_timeout: Seconds
    create: bool
    trace: Trace | None = None


@dataclass(frozen=True, slots=True)
class Opened:
    """A buffer that was found or created.

    Attributes
    ----------
    session : Session
    knowledge : Knowledge
        The lists of episodes that pass conditions, which the process keeps for later draws.
    name : str
    resumed : bool
        True if the buffer existed before.
    strategy : Strategy or None
        The strategy of this handle alone. None stands for the stored one.
    """

    session: Session
    knowledge: Knowledge
    name: str
    resumed: bool
    strategy: Strategy | None


def open_buffer(target: str | os.PathLike[str] | URL, changes: Changes, handle: Handle) -> Opened:
    """Find or create a buffer. The errors are those of ``memstore.open``."""
    check_name("buffer", handle.buffer)
    if handle.trace is not None and not callable(handle.trace):
        raise ConfigError(f"trace must be callable with one line of text, such as print, got {shown(handle.trace)}")
    seed = None if handle.seed is None else check_int("seed", handle.seed, minimum=0)
    fresh = new_settings(changes, seed)
    cache = PayloadCache(check_int("cache_bytes", handle.cache_bytes, minimum=0))
    database = Database(
        parse_url(target),
        durability=check_durability(handle.durability),
        busy_timeout=check_seconds("busy_timeout", handle.busy_timeout),
        trace=handle.trace,
    )
    try:
        ensure_schema(database, create=handle.create)
        number, resumed = _find_or_create(database, handle, fresh)
        session, knowledge = _session(database, number, handle.buffer, np.random.SeedSequence(seed), cache)
        if resumed:
            _refuse_different(handle.buffer, session.committed.settings, fresh, changes.given)
        if fresh.signature is not None and session.committed.settings.signature is None:
            signature = fresh.signature
            # No episode was added yet. The signature holds from now on, unless another process fixes one first.
            session.write(partial(_fix_signature, signature))
            _refuse_different(handle.buffer, session.committed.settings, fresh, ["signature"])
    except BaseException:
        database.close()
        raise
    own = _own_strategy(session.committed.settings, changes) if resumed else None
    return Opened(session, knowledge, handle.buffer, resumed, own)


def _fix_signature(signature: Signature, snapshot: Snapshot) -> None:
    if snapshot.settings.signature is None:
        snapshot.state.store_settings(snapshot.conn, replace(snapshot.settings, signature=signature))


def reopen_buffer(state: Mapping[str, Any]) -> Opened:
    """Find the buffer of a handle that was pickled as ``state``, and make new connections to it."""
    database = Database(**state["address"])
    try:
        ensure_schema(database, create=False)
        number = database.in_read(lambda conn: buffer_id(conn, state["name"]))
        if number is None:
            raise ConfigError(f"{database.backend.describe()} no longer holds a buffer {state['name']!r}")
        entropy, spawn_key = state["seeds"]
        seeds = np.random.SeedSequence(entropy, spawn_key=spawn_key)
        session, knowledge = _session(database, number, state["name"], seeds, PayloadCache(state["cache_bytes"]))
    except BaseException:
        database.close()
        raise
    strategy = strategy_from_json(state["strategy"]) if state["strategy"] else None
    return Opened(session, knowledge, state["name"], True, strategy)


def buffers(target: str | os.PathLike[str] | URL) -> list[str]:
    """Return the names of the buffers in a database, in the order of creation. Nothing is created.

    Raises
    ------
    NotAMemstore, SchemaTooNew, SchemaTooOld, StoreUnavailable
        As for ``open``.
    """
    with closing(Database(parse_url(target))) as database:
        ensure_schema(database, create=False)
        return database.in_read(buffer_names)


def examine(target: str | os.PathLike[str] | URL, buffer: str) -> CheckReport:
    """Check a buffer, also one that is too damaged to be opened. Nothing is created.

    Raises
    ------
    ConfigError
        The database has no such buffer.
    NotAMemstore, SchemaTooNew, SchemaTooOld, StoreUnavailable
        As for ``open``.
    """
    with closing(Database(parse_url(target))) as database:
        ensure_schema(database, create=False)

        def work(conn: Connection) -> CheckReport:
            number = buffer_id(conn, buffer)
            if number is None:
                raise _unknown(conn, database, buffer)
            return check(conn, database.backend, number)

        return database.in_read(work)


def drop(target: str | os.PathLike[str] | URL, buffer: str = "default") -> bool:
    """Delete a buffer, its history and its checkpoints, in one commit. Other buffers stay. There is no way back.

    Open handles on the buffer raise ``StoreCorrupt`` from then on.

    Returns
    -------
    bool
        False if the database holds no such buffer.

    Raises
    ------
    NotAMemstore, SchemaTooNew, SchemaTooOld, StoreUnavailable
        As for ``open``.
    """
    with closing(Database(parse_url(target))) as database:
        ensure_schema(database, create=False)
        backend = database.backend

        def work(conn: Connection) -> bool:
            number = buffer_id(conn, buffer)
            if number is None:
                return False
            backend.lock_buffer(conn, number)
            drop_buffer(conn, number)
            return True

        return database.in_write(work)


def _find_or_create(database: Database, handle: Handle, settings: Settings) -> tuple[int, bool]:
    """Return the buffer's number, and True if the buffer existed before."""
    number = database.in_read(lambda conn: buffer_id(conn, handle.buffer))
    if number is not None:
        return number, True

    def make(conn: Connection) -> tuple[int, bool]:
        database.backend.lock_schema(conn)
        existing = buffer_id(conn, handle.buffer)  # another process may have been faster
        if existing is not None:
            return existing, True
        if not handle.create:
            raise _unknown(conn, database, handle.buffer)
        number = create_buffer(conn, handle.buffer, settings, time.time(), __version__)
        set_limiter(conn, number, settings.limiter, added=0)
        return number, False

    return database.in_write(make) if handle.create else database.in_read(make)


def _unknown(conn: Connection, database: Database, name: str) -> ConfigError:
    names = listed(buffer_names(conn), 5)
    return ConfigError(f"{database.backend.describe()} holds no buffer {shown(name)} (there are: {names})")


def _session(
    database: Database, number: int, name: str, seeds: np.random.SeedSequence, cache: PayloadCache
) -> tuple[Session, Knowledge]:
    try:
        state = database.in_read(lambda conn: State.load(conn, database.backend, number, strategy_from_json))
    except StoreCorrupt as exc:
        raise StoreCorrupt(f"buffer {name!r:.60} cannot be opened: {exc}", episode_id=exc.episode_id) from exc
    knowledge = Knowledge()
    return Session(database, state, seeds, cache, [knowledge]), knowledge


def _refuse_different(name: str, stored: Settings, given: Settings, names: list[str]) -> None:
    """Raise ``ConfigError`` for the first of these settings with a given value that differs from the stored one."""
    for setting in names:
        old, new = getattr(stored, setting), getattr(given, setting)
        if setting == "signature":
            if old is not None and set(old.fields) != set(new.fields):
                raise ConfigError(
                    f"buffer {name!r:.60} stores payloads of {old.summary(3)}, and open() was given "
                    f"{new.summary(3)}; a signature is fixed: start another buffer with buffer='...'"
                )
        elif old != new:
            raise ConfigError(
                f"buffer {name!r} was created with {setting}={_plain(old)!r}, and open() was given {_plain(new)!r}; "
                f"leave it out to keep the stored one. To change it: "
                f"{WAYS.get(setting, f'memory.configure({setting}=...)')}"
            )


def _plain(value: Any) -> Any:
    return getattr(value, "value", value)


def _own_strategy(stored: Settings, changes: Changes) -> Strategy | None:
    chosen = changes.strategy_after(stored.strategy)
    return None if chosen.to_json() == stored.strategy.to_json() else chosen
