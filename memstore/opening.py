"""Find or create a buffer, and give back a session on it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from sqlalchemy import URL, Connection

from memstore.buffer.counters import buffer_id, buffer_names, create_buffer
from memstore.buffer.session import Session
from memstore.buffer.snapshot import State
from memstore.config import (
    DEFAULT_BUSY_TIMEOUT,
    DEFAULT_CACHE_BYTES,
    Durability,
    Settings,
    check_durability,
    check_int,
    check_name,
    check_seconds,
)
from memstore.draws.knowledge import Populations
from memstore.draws.strategies import Strategy, as_strategy, strategy_from_json
from memstore.episodes.eviction import Eviction
from memstore.episodes.log import History
from memstore.errors import ConfigError
from memstore.payload.cache import PayloadCache
from memstore.payload.signature import Signature
from memstore.sharing.limiter import SamplesPerInsert, set_limiter
from memstore.storage.address import parse_url
from memstore.storage.database import Database
from memstore.storage.upgrade import ensure_schema
from memstore.types import EvictionPolicy
from memstore.upkeep.settings import drop_buffer, fix_signature, new_settings
from memstore.values.shown import listed, shown
from memstore.version import __version__


@dataclass(frozen=True, slots=True)
class Opened:
    """A buffer that was found or made: a session on it, and what the process will know of its episodes.

    ``strategy`` is what ``open`` was given in place of the stored one.
    """

    session: Session
    populations: Populations
    name: str
    resumed: bool
    strategy: Strategy | None


def open_buffer(
    target: str | os.PathLike[str] | URL,
    *,
    buffer: str = "default",
    capacity: int | None = None,
    strategy: Strategy | str | None = None,
    alpha: float | None = None,
    epsilon: float | None = None,
    eviction: Eviction | EvictionPolicy | str | None = None,
    max_replays: int | None = None,
    limiter: SamplesPerInsert | None = None,
    history: History | Literal["on", "off"] | None = None,
    signature: Mapping[str, Any] | None = None,
    seed: int | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    durability: Durability = "process",
    busy_timeout: float = DEFAULT_BUSY_TIMEOUT,
    create: bool = True,
) -> Opened:
    """Find or create a buffer; parameters and errors as those of ``memstore.open``."""
    check_name("buffer", buffer)
    if seed is not None:
        check_int("seed", seed, minimum=0)
    fields = None if signature is None else Signature.from_spec(signature).to_json()
    given: dict[str, Any] = {"capacity": capacity, "epsilon": epsilon, "eviction": eviction}
    given |= {"max_replays": max_replays, "limiter": limiter, "history": history}
    settings = new_settings(strategy=strategy, alpha=alpha, seed=seed, **given)
    cache = PayloadCache(check_int("cache_bytes", cache_bytes, minimum=0))
    database = Database(
        parse_url(target),
        durability=check_durability(durability),
        busy_timeout=check_seconds("busy_timeout", busy_timeout),
    )
    try:
        ensure_schema(database, create=create)
        number, resumed = _find_or_create(database, buffer, settings, fields, create)
        state = database.in_read(lambda conn: State.load(conn, database.backend, number))
        if resumed:
            wanted = {name for name, value in given.items() if value is not None}
            _compare(buffer, settings, state, wanted, fields)
        populations = Populations()
        session = Session(database, state, np.random.SeedSequence(seed), cache, [populations])
        if fields is not None and state.signature is None:
            # Nothing was added yet: the signature binds from now on, unless another process is faster.
            session.write(lambda s: None if s.state.signature else fix_signature(s, fields))
            _compare(buffer, settings, session.committed, set(), fields)
    except BaseException:
        database.close()
        raise
    override = _override(state, strategy, alpha) if resumed else None
    return Opened(session, populations, buffer, resumed, override)


def buffers(target: str | os.PathLike[str] | URL) -> list[str]:
    """Names of the buffers in a database, in order of creation; nothing is created.

    Raises
    ------
    NotAMemstore, SchemaTooNew, SchemaTooOld, StoreUnavailable
        As ``open``.
    """
    database = Database(parse_url(target))
    try:
        ensure_schema(database, create=False)
        return database.in_read(buffer_names)
    finally:
        database.close()


def drop(target: str | os.PathLike[str] | URL, buffer: str = "default") -> bool:
    """Delete a buffer, its history and its checkpoints, in one commit; other buffers stay. There is no way back.

    Handles that are open on it raise ``StoreCorrupt`` from then on.

    Returns
    -------
    bool
        False when the database holds no such buffer.
    """
    database = Database(parse_url(target))

    def work(conn: Connection) -> bool:
        number = buffer_id(conn, buffer)
        if number is None:
            return False
        database.backend.lock_buffer(conn, number)
        drop_buffer(conn, number)
        return True

    try:
        ensure_schema(database, create=False)
        return database.in_write(work)
    finally:
        database.close()


def reopen_buffer(state: Mapping[str, Any]) -> Opened:
    """Find the buffer of a handle that was pickled as ``state``, with connections of this process."""
    database = Database(**state["address"])
    try:
        ensure_schema(database, create=False)
        number = database.in_read(lambda conn: buffer_id(conn, state["name"]))
        if number is None:
            raise ConfigError(f"{database.backend.describe()} no longer holds a buffer {state['name']!r}")
        stored = database.in_read(lambda conn: State.load(conn, database.backend, number))
    except BaseException:
        database.close()
        raise
    entropy, spawn_key = state["seeds"]
    seeds = np.random.SeedSequence(entropy, spawn_key=spawn_key)
    populations = Populations()
    session = Session(database, stored, seeds, PayloadCache(state["cache_bytes"]), [populations])
    strategy = strategy_from_json(state["strategy"]) if state["strategy"] else None
    return Opened(session, populations, state["name"], True, strategy)


def _find_or_create(
    database: Database, name: str, settings: Settings, signature: str | None, create: bool
) -> tuple[int, bool]:
    number = database.in_read(lambda conn: buffer_id(conn, name))
    if number is not None:
        return number, True

    def make(conn: Connection) -> tuple[int, bool]:
        database.backend.lock_schema(conn)
        existing = buffer_id(conn, name)  # another process may have been faster
        if existing is not None:
            return existing, True
        if not create:
            names = listed(buffer_names(conn), 5)
            raise ConfigError(f"{database.backend.describe()} holds no buffer {shown(name)} (there are: {names})")
        number = create_buffer(conn, name, settings, signature, time.time(), __version__)
        set_limiter(conn, number, settings, added=0)
        return number, False

    return database.in_write(make) if create else database.in_read(make)


def _compare(name: str, settings: Settings, state: State, wanted: set[str], signature: str | None) -> None:
    ways = {
        "capacity": "memory.configure(capacity=...), shrinking evicts",
        "eviction": "memory.configure(eviction=...)",
        "max_replays": "memory.configure(max_replays=...)",
        "limiter": "memory.configure(limiter=...)",
        "history": "memory.configure(history=...)",
        "epsilon": "it is fixed at creation; leave it out, or start another buffer with buffer='...'",
    }
    for setting in sorted(wanted):
        given, stored = getattr(settings, setting), getattr(state.settings, setting)
        if given != stored:
            raise ConfigError(
                f"buffer {name!r} was created with {setting}={stored!r}, and open() was given {given!r}; leave it out "
                f"to keep the stored one. To change it: {ways[setting]}"
            )
    if signature is None or state.signature is None:
        return
    stored_fields, given_fields = Signature.from_json(state.signature), Signature.from_json(signature)
    if set(stored_fields.fields) != set(given_fields.fields):
        raise ConfigError(
            f"buffer {name!r:.60} stores payloads of {stored_fields.summary(3)}, and open() was given "
            f"{given_fields.summary(3)}; a signature is fixed: start another buffer with buffer='...'"
        )


def _override(state: State, strategy: Strategy | str | None, alpha: float | None) -> Strategy | None:
    if strategy is None and alpha is None:
        return None
    chosen = strategy_from_json(state.settings.strategy) if strategy is None else as_strategy(strategy)
    if alpha is not None:
        chosen = chosen.with_alpha(alpha)
    return None if chosen.to_json() == state.settings.strategy else chosen
