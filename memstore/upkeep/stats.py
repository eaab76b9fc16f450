"""``stats`` gives the numbers of a buffer, in a time that does not depend on its size."""

from __future__ import annotations

import math

import numpy as np
from sqlalchemy import text

from memstore.buffer.blocks.heads import Heads
from memstore.buffer.blocks.slots import Floats
from memstore.buffer.snapshot import Snapshot
from memstore.draws.strategies import Strategy
from memstore.draws.targets import domain_sizes
from memstore.sharing import leases, limiter
from memstore.storage.schema import VERSION_TABLE
from memstore.types import ReplayStats

LOOKED_AT = 512
"""``stats`` reads the losses of at most this many blocks, some 40,000 episodes, unless it must be exact."""

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""``stats`` reports these quantiles of the losses."""


def stats(snapshot: Snapshot, name: str, strategy: Strategy, cache: dict[str, float], *, exact: bool) -> ReplayStats:
    """Return the numbers of the buffer from its row and its blocks. ``exact`` reads the losses of all blocks."""
    state, settings = snapshot.state, snapshot.settings
    counters = state.counters
    sizes = domain_sizes(snapshot).tolist()
    heads = state.blocks.heads
    values, whole = _losses(snapshot, exact=exact)
    return ReplayStats(
        buffer=name,
        buffer_size=snapshot.live,
        capacity=settings.capacity,
        total_inserted=counters.inserted,
        total_evicted=counters.departed,
        total_replays=counters.live_replays,
        total_events=counters.events,
        unmeasured=int(heads["gaps"].sum()),
        avg_loss=_mean(heads),
        max_priority=counters.top_priority,
        loss_quantiles=_quantiles(values),
        loss_quantiles_exact=whole,
        loss_histogram=_histogram(values, int((heads["live"] - heads["gaps"]).sum())),
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
        unfolded=counters.unfolded,
        unfolded_bytes=counters.waiting_bytes,
        notes=tuple(snapshot.backend.old_readers(snapshot.conn)),
    )


def _losses(snapshot: Snapshot, *, exact: bool) -> tuple[Floats, bool]:
    """Return measured losses, sorted, of all blocks or of evenly spaced ones, and True if they are all."""
    blocks = snapshot.state.blocks
    whole = exact or len(blocks) <= LOOKED_AT
    chosen = np.arange(len(blocks)) if whole else np.linspace(0, len(blocks) - 1, LOOKED_AT).astype(np.int64)
    parts = [np.empty(0), *(opened.loss[opened.loss >= 0] for opened in blocks.chunks(chosen))]
    return np.sort(np.concatenate(parts)), whole


def _mean(heads: Heads) -> float:
    measured = heads["live"] - heads["gaps"].astype(np.int64)
    # Each mean gets its share before it is added, so that no sum overflows.
    return float((heads["mean"] * (measured / max(int(measured.sum()), 1))).sum())


def _quantiles(losses: Floats) -> dict[str, float]:
    if not len(losses):
        return {}
    at = [math.ceil(q * len(losses)) - 1 for q in QUANTILES]
    return {f"{q:.0%}": float(losses[max(i, 0)]) for q, i in zip(QUANTILES, at, strict=True)}


def _histogram(values: Floats, measured: int, bins: int = 12) -> tuple[tuple[float, float, int], ...]:
    """Return (low, high, count) for equal steps of the logarithm of loss. Losses of zero are in the first bin.

    The counts are those of all ``measured`` episodes, also where ``values`` are only some of their losses.
    """
    positive = values[values > 0]
    if not len(positive):
        return ((0.0, 0.0, measured),) if len(values) else ()
    low, high = float(np.log10(positive.min())), float(np.log10(positive.max()))
    edges = np.linspace(low, high if high > low else low + 1.0, bins + 1)
    scaled = np.log10(np.maximum(values, positive.min()))
    counts, _ = np.histogram(np.clip(scaled, edges[0], edges[-1]), edges)
    counts = counts * (measured / len(values))
    with np.errstate(over="ignore"):
        bounds = np.minimum(10.0**edges, np.finfo(np.float64).max)
    return tuple(
        (float(a), float(b), round(n)) for a, b, n in zip(bounds[:-1], bounds[1:], counts.tolist(), strict=True)
    )
