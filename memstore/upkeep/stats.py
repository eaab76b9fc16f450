"""``stats`` gives the numbers of a buffer, in a time that does not depend on its size."""

from __future__ import annotations

import numpy as np
from sqlalchemy import text

from memstore.buffer.snapshot import Snapshot
from memstore.buffer.blocks.slots import Floats, Ints
from memstore.draws.strategies import Strategy
from memstore.sharing import leases, limiter
from memstore.storage.schema import VERSION_TABLE
from memstore.types import ReplayStats

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""``stats`` reports these quantiles of the losses."""


def stats(snapshot: Snapshot, name: str, strategy: Strategy, cache: dict[str, float], *, exact: bool) -> ReplayStats:
    """Return the numbers of the buffer from its row and its strata. ``exact`` adds one scan of the losses."""
    state, settings = snapshot.state, snapshot.settings
    strata, counters = state.strata, state.counters
    sizes = strata.sizes(len(state.domain_names)).tolist()
    if exact:
        loss = snapshot.scan().loss
        values = loss[~np.isnan(loss)]
        weights = np.ones(len(values), np.int64)
    else:  # one loss for each stratum, the mean of its rows
        values, weights = strata.mean_losses(np.arange(len(strata)), len(strata))
        values, weights = values[weights > 0], weights[weights > 0]
    return ReplayStats(
        buffer=name,
        buffer_size=strata.live,
        capacity=settings.capacity,
        total_inserted=counters.inserted,
        total_evicted=counters.inserted - strata.live,
        total_replays=counters.live_replays,
        total_events=counters.events,
        unmeasured=strata.live - int(weights.sum()),
        avg_loss=_mean(values, weights),
        max_priority=counters.top_priority,
        loss_quantiles=_quantiles(values, weights),
        loss_quantiles_exact=exact,
        loss_histogram=_histogram(values, weights),
        domain_distribution={n: size for n, size in zip(state.domain_names, sizes, strict=True) if size},
        strategy=strategy.name,
        alpha=settings.alpha,
        epsilon=settings.epsilon,
        eviction=settings.eviction.value,
        max_replays=settings.max_replays,
        leased=leases.count(snapshot),
        limiter=limiter.account(snapshot),
        signature=None if settings.signature is None else settings.signature.describe(),
        cache=cache,
        bytes_on_disk=snapshot.backend.size(snapshot.conn),
        schema_version=str(snapshot.conn.execute(text(f"SELECT version_num FROM {VERSION_TABLE}")).scalar_one()),
        revision=counters.revision,
        notes=tuple(snapshot.backend.old_readers(snapshot.conn)),
    )


def _mean(values: Floats, weights: Ints) -> float:
    # Each loss is divided before it is added, for a sum of large losses would overflow.
    return float((values * (weights / weights.sum())).sum()) if len(values) else 0.0


def _quantiles(values: Floats, weights: Ints) -> dict[str, float]:
    if not len(values):
        return {}
    order = np.argsort(values)
    mass = np.cumsum(weights[order])
    at = [int(np.searchsorted(mass, q * mass[-1])) for q in QUANTILES]
    return {f"{q:.0%}": float(values[order][min(i, len(values) - 1)]) for q, i in zip(QUANTILES, at, strict=True)}


def _histogram(values: Floats, weights: Ints, bins: int = 12) -> tuple[tuple[float, float, int], ...]:
    """Return (low, high, count) for equal steps of the logarithm of loss. Losses of zero are in the first bin."""
    positive = values[values > 0]
    if not len(positive):
        return ((0.0, 0.0, int(weights.sum())),) if len(values) else ()
    low, high = float(np.log10(positive.min())), float(np.log10(positive.max()))
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    scaled = np.log10(np.maximum(values, positive.min()))
    counts, _ = np.histogram(np.clip(scaled, edges[0], edges[-1]), edges, weights=weights)
    with np.errstate(over="ignore"):
        bounds = np.minimum(10.0**edges, np.finfo(np.float64).max)
    return tuple(
        (float(a), float(b), round(n)) for a, b, n in zip(bounds[:-1], bounds[1:], counts.tolist(), strict=True)
    )
