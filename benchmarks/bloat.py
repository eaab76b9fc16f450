"""How tables grow under loss updates, and how the storage settings of revision 0002 limit that; PostgreSQL only."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

import memstore
from benchmarks.places import PostgresPlace
from benchmarks.workload import Workload, fill, open_memory

if TYPE_CHECKING:
    from benchmarks.bench import Bench

ROWS = 200_000
"""Largest number of rows. There are five times as many updates."""
TURNOVER = 5
"""Updates for each row."""
WIDE = 2048
"""Number of floats in a payload of 8 KiB."""
PATIENCE = 10.0
STORAGES = ("EXTERNAL", "EXTENDED")
"""Memstore's and PostgreSQL's default, which tries to compress."""

Floats = NDArray[np.float32]

_OPTIONS = """
SELECT c.relname, split_part(o, '=', 1) FROM pg_class c, unnest(c.reloptions) o
WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace
"""
_SIZES = """
SELECT pg_table_size(relid) / 1048576.0, pg_indexes_size(relid) / 1048576.0, n_live_tup, n_dead_tup, n_tup_upd,
       n_tup_hot_upd, autovacuum_count
FROM pg_stat_user_tables WHERE relname = '{}'
"""
_OTHERS = """
SELECT pid FROM pg_stat_activity
WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'
"""
_NAMES = ("table, MiB", "indexes, MiB", "live rows", "dead rows", "updated rows", "of them HOT", "autovacuums")

VARIANTS: dict[str, Callable[[str], bool]] = {
    "memstore's": lambda option: True,
    "fillfactor only": lambda option: option == "fillfactor",
    "autovacuum only": lambda option: option != "fillfactor",
    "defaults": lambda option: False,
}
"""Which storage parameters stay."""


def bloat(bench: Bench) -> None:
    """Random loss updates under several storage settings; then payloads of 8 KiB with and without compression."""
    if not isinstance(bench.place, PostgresPlace):
        return
    for variant, stays in VARIANTS.items():
        label = f"bloat-{bench.rows}"
        try:
            _updates(bench, bench.place, label, variant, stays)
        finally:
            bench.place.drop([label])
    _wide(bench, bench.place)


def _updates(bench: Bench, place: PostgresPlace, label: str, variant: str, stays: Callable[[str], bool]) -> None:
    rows = min(bench.rows, ROWS)
    address = place.address(label)
    rng = np.random.default_rng(11)
    with open_memory(address, cache_bytes=0, capacity=4 * rows) as memory:
        for table, option in place.query(address, _OPTIONS):
            if not stays(option):
                place.query(address, f'ALTER TABLE "{table}" RESET ({option})')
        fill(memory, Workload(), rows, bench.progress)
    place.query(address, "VACUUM ANALYZE")
    before = _standing(place, address, "replay_metadata")
    steps = max(1, TURNOVER * rows // bench.batch)
    task = bench.progress.add_task(f"bloat, {variant}", total=steps)
    with open_memory(address, cache_bytes=0) as memory:
        start = time.perf_counter()
        for _ in range(steps):
            ids = rng.choice(rows, min(bench.batch, rows), replace=False) + 1
            memory.update(ids, loss=bench.workload.losses(len(ids)))
            bench.progress.advance(task)
        taken = time.perf_counter() - start
    bench.fact("bloat", f"{variant}: updates", steps * bench.batch / taken, "rows/s")
    for name in _NAMES[:2]:
        bench.fact("bloat", f"{variant}: replay_metadata, {name} before", before[name], "")
    for table in ("replay_metadata", "block", "buffer"):
        for name, value in _standing(place, address, table).items():
            bench.fact("bloat", f"{variant}: {table}, {name}", value, "")


def _standing(place: PostgresPlace, address: str, table: str) -> dict[str, float]:
    """Return sizes and counts, after the writers have left: PostgreSQL's counts are complete only then."""
    deadline = time.monotonic() + PATIENCE
    while place.query(address, _OTHERS) and time.monotonic() < deadline:
        time.sleep(0.02)
    return dict(zip(_NAMES, map(float, place.query(address, _SIZES.format(table))[0]), strict=True))


def _wide(bench: Bench, place: PostgresPlace) -> None:
    rng = np.random.default_rng(12)
    shape = (bench.batch, WIDE)

    def noise() -> Floats:
        return rng.standard_normal(shape, np.float32)

    def sparse() -> Floats:
        return noise() * (rng.random(shape) < 0.1)  # nine tenths are zeros

    for content, made in (("noise", noise), ("zeros", sparse)):
        with ExitStack() as stack:
            memories = {storage: stack.enter_context(_wide_memory(place, storage)) for storage in STORAGES}
            for what, operation in (("extend", _add), ("draw", _draw)):
                contenders = {name: functools.partial(operation, memory) for name, memory in memories.items()}
                bench.measure(f"bloat, {what}, 8 KiB of {content}", bench.batch, made, contenders, most=60)


@contextmanager
def _wide_memory(place: PostgresPlace, storage: str) -> Iterator[memstore.EpisodicMemory]:
    address = place.address(storage)
    try:
        with open_memory(address, cache_bytes=0) as memory:
            place.query(address, f"ALTER TABLE payload ALTER COLUMN data SET STORAGE {storage}")
            yield memory
    finally:
        place.drop([storage])


def _add(memory: memstore.EpisodicMemory, values: Floats) -> None:
    memory.extend({"x": values}, loss=1.0)


def _draw(memory: memstore.EpisodicMemory, values: Floats) -> None:
    memory.sample(len(values))
