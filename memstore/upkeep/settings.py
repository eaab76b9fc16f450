"""The settings of a new buffer, and changes of stored settings."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from memstore.buffer.blocks.slots import Ints
from memstore.buffer.settings import Settings, StoredStrategy
from memstore.buffer.snapshot import Snapshot
from memstore.buffer.tail import Newcomers
from memstore.config import (
    DEFAULT_CAPACITY,
    DEFAULT_EPSILON,
    MAX_EPSILON,
    UNCHANGED,
    History,
    SamplesPerInsert,
    Unchanged,
    check_float,
    check_int,
)
from memstore.draws.strategies import Strategy, as_strategy
from memstore.episodes.eviction import Eviction, Reservoir, as_eviction, default_eviction, plan
from memstore.episodes.insert import remove
from memstore.episodes.log import Group, prune
from memstore.errors import ConfigError
from memstore.payload.signature import Signature
from memstore.sharing.limiter import set_limiter
from memstore.types import EvictionPolicy
from memstore.values.shown import shown

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """The settings that a user gives to ``open`` or ``configure``. A setting that is not given is UNCHANGED."""

    capacity: int | Unchanged = UNCHANGED
    strategy: Strategy | str | Unchanged = UNCHANGED
    alpha: float | Unchanged = UNCHANGED
    epsilon: float | Unchanged = UNCHANGED
    eviction: Eviction | EvictionPolicy | str | Unchanged = UNCHANGED
    max_replays: int | Unchanged | None = UNCHANGED
    limiter: SamplesPerInsert | Unchanged | None = UNCHANGED
    history: History | Unchanged | None = UNCHANGED
    signature: Mapping[str, Any] | Unchanged = UNCHANGED

    @property
    def given(self) -> list[str]:
        """Names of the settings that are given. Strategy and alpha are left out."""
        return [name for name in CHECKS if getattr(self, name) is not UNCHANGED]

    def strategy_after(self, stored: StoredStrategy | str) -> Strategy:
        """Return the strategy after these changes of the stored one."""
        chosen = as_strategy(stored if self.strategy is UNCHANGED else self.strategy)
        return chosen if self.alpha is UNCHANGED else chosen.with_alpha(self.alpha)

    def apply_to(self, settings: Settings) -> Settings:
        """Return the settings with these changes.

        Raises
        ------
        ConfigError
            A setting is invalid. The message names it.
        """
        changes = {name: CHECKS[name](getattr(self, name)) for name in self.given}
        strategy = self.strategy_after(settings.strategy)
        if strategy.to_json() != settings.strategy.to_json():
            # The stored weight sums get the alpha of the strategy, so that ``probability`` needs no scan.
            changes |= {"strategy": strategy, "alpha": strategy.index_alpha}
        changed = replace(settings, **changes)
        rule = changed.limiter
        if rule is not None and rule.min_size > changed.capacity:
            raise ConfigError(
                f"the limiter's min_size={rule.min_size} can never be reached with a capacity of {changed.capacity}"
            )
        return changed


def _instance(name: str, kind: type[T], value: Any) -> T | None:
    if value is None or isinstance(value, kind):
        return value
    raise ConfigError(f"{name} must be a memstore.{kind.__name__}, or None for off, got {shown(value)}")


CHECKS: dict[str, Callable[[Any], Any]] = {
    "capacity": lambda value: check_int("capacity", value, minimum=1),
    "epsilon": lambda value: check_float("epsilon", value, maximum=MAX_EPSILON, exclusive=True),
    "eviction": lambda value: as_eviction(value).name,
    "max_replays": lambda value: None if value is None else check_int("max_replays", value, minimum=1),
    "limiter": lambda value: _instance("limiter", SamplesPerInsert, value),
    "history": lambda value: _instance("history", History, value) or History(record=0.0),
    "signature": Signature.from_spec,
}
"""The check of each setting returns its stored value. ``Changes.strategy_after`` checks strategy and alpha."""


def new_settings(changes: Changes, seed: int | None) -> Settings:
    """Return the settings of a new buffer: the given ones, and defaults for the others."""
    chosen = as_strategy("mixed" if changes.strategy is UNCHANGED else changes.strategy)
    defaults = Settings(
        capacity=DEFAULT_CAPACITY,
        epsilon=DEFAULT_EPSILON,
        alpha=chosen.index_alpha,
        strategy=chosen,
        eviction=default_eviction(chosen.name).name,
        seed=secrets.randbits(62) if seed is None else seed,
    )
    return changes.apply_to(defaults)


def reconfigure(snapshot: Snapshot, changes: Changes, group: Group) -> Ints:
    """Change the buffer's settings, and return the ids that left because the capacity shrank.

    ``group`` records their departure in the history. A new alpha or epsilon gives all blocks new sums, and a
    reservoir gives them keys. Then all blocks are read and written.
    """
    old, state = snapshot.settings, snapshot.state
    settings = changes.apply_to(old)
    if settings.eviction != old.eviction:
        _check_reservoir(snapshot, settings)
    state.store_settings(snapshot.conn, settings)
    if settings.limiter != old.limiter:
        set_limiter(snapshot.conn, state.buffer_id, settings.limiter, state.counters.inserted)
    if settings.history != old.history:
        prune(snapshot, settings.history, group.at)
        state.must_fold = True  # the rows of forgotten events are deleted at once
    if settings.capacity >= snapshot.live:
        return np.empty(0, np.int64)
    decision = plan(snapshot, Newcomers.none())
    state.counters.reservoir_floor = decision.reservoir_floor
    resized = group._replace(what="resized", reason=settings.eviction.value)
    leaving = snapshot.at_places(decision.leaving)
    remove(snapshot, (leaving, resized))
    return leaving.ids


def _check_reservoir(snapshot: Snapshot, settings: Settings) -> None:
    gone = snapshot.state.counters.inserted - snapshot.live
    if settings.eviction == Reservoir.name and gone:
        raise ConfigError(
            f"{gone} episodes have left under {snapshot.settings.eviction.value!r}, so the live ones are no uniform "
            "sample of everything offered and cannot become one: choose 'reservoir' for a new buffer"
        )
