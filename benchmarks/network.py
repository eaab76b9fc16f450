"""Draws and writes over a network with a delay, and how often each of them waits for the server."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from sqlalchemy import make_url

import memstore
from benchmarks.places import PostgresPlace
from benchmarks.proxy import proxy
from benchmarks.workload import CACHE_BYTES, extend, open_memory

if TYPE_CHECKING:
    from benchmarks.bench import Bench

DELAY = 0.0005
"""Seconds each way."""

COUNTED = 10
"""How often each operation is repeated to count its exchanges, so that a rare second round of a draw does not show."""


def network(bench: Bench) -> None:
    """Over a round trip of 1 ms; only where the server has a Unix socket, before which the proxy stands."""
    place = bench.place
    if not isinstance(place, PostgresPlace) or place.socket is None:
        return
    with proxy(place.socket, DELAY) as line:
        url = make_url(bench.address).set(host="127.0.0.1", port=line.port, query={"gssencmode": "disable"})
        address = url.render_as_string(hide_password=False)
        with (
            open_memory(address, cache_bytes=0, seed=3) as cold,
            open_memory(address, cache_bytes=CACHE_BYTES, seed=4) as memory,
        ):
            for name, work in _operations(bench, cold, memory).items():
                bench.measure(f"network, {name}", bench.batch, lambda: None, {"memstore": work})
                bench.fact("network", f"{name}: exchanges", _exchanges(line.exchanges, work), "")


def _exchanges(counter: Callable[[], int], work: Callable[[None], Any]) -> float:
    counts = []
    for _ in range(COUNTED):
        before = counter()
        work(None)
        counts.append(counter() - before)
    return float(np.median(counts))


def _operations(
    bench: Bench, cold: memstore.EpisodicMemory, memory: memstore.EpisodicMemory
) -> dict[str, Callable[[None], Any]]:
    k, workload = bench.batch, bench.workload
    generator = memory.rng.bit_generator
    before = generator.state
    batch = memory.sample(k)
    state = {"weights": np.zeros(1000, np.float32)}

    def again(_: None) -> None:
        generator.state = before  # the same draw, whose payloads are cached by now
        memory.sample(k)

    def update(_: None) -> None:
        memory.update(batch, loss=workload.drifted(batch.loss))

    def step(_: None) -> None:
        with memory.transaction():
            update(None)
            memory.save_checkpoint("network", state)

    return {
        "draw, payloads from SQL": lambda _: cold.sample(k),
        "draw, payloads cached": again,
        "update": update,
        "extend": lambda _: extend(memory, workload.episodes(k)),
        "update and checkpoint": step,
    }
