"""The costs of a process that has just started; run as ``python -m benchmarks.fresh open|memory BATCH DRAWS``.

The address comes on standard input, since it may hold a password. It prints one JSON object. Nothing is imported
before the clock starts, memstore included.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

CACHE_BYTES = 16 * 2**20
"""Cache budget of the memory case, in bytes; it is small."""


def first_draw(address: str, batch: int) -> dict[str, float]:
    """Return the seconds to import memstore, to open the database and to draw the first batch."""
    start = time.perf_counter()
    import memstore

    imported = time.perf_counter()
    with memstore.open(address, create=False) as memory:
        opened = time.perf_counter()
        assert len(memory.sample(batch)) == batch
        drawn = time.perf_counter()
    return {"import": imported - start, "open": opened - imported, "draw": drawn - opened, "total": drawn - imported}


def memory_use(address: str, batch: int, draws: int) -> dict[str, float]:
    """Return the peak resident bytes before the database is opened and after many draws with a small cache."""
    import memstore

    imported = _peak_bytes()
    with memstore.open(address, create=False, cache_bytes=CACHE_BYTES) as memory:
        for _ in range(draws):
            memory.sample(batch)
    return {"imported": imported, "peak": _peak_bytes()}


def _peak_bytes() -> float:
    # getrusage is the second choice, because on Linux a child's maximum starts from its parent's size at the fork.
    try:
        with Path("/proc/self/status").open() as status:
            return next(int(line.split()[1]) * 1024.0 for line in status if line.startswith("VmHWM"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1.0 if sys.platform == "darwin" else 1024.0)


def in_fresh_process(what: str, address: str, batch: int, draws: int = 0) -> dict[str, float]:
    """Run one of the above in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.fresh", what, str(batch), str(draws)]
    root = Path(__file__).parents[1]
    output = subprocess.run(command, cwd=root, check=True, input=address, stdout=subprocess.PIPE, text=True).stdout
    measured: dict[str, float] = json.loads(output)
    return measured


def main() -> None:
    """Measure in this process."""
    what, batch, draws = sys.argv[1:]
    address = sys.stdin.read()
    measured = first_draw(address, int(batch)) if what == "open" else memory_use(address, int(batch), int(draws))
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
