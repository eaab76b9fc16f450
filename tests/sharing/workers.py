"""What runs in processes of its own; imports little, because each of them imports it anew."""

from __future__ import annotations

from typing import Any

import numpy as np

import memstore
from tests.sharing.records import offer


def varied(rng: np.random.Generator, count: int) -> list[float | None]:
    """Losses over several octaves; one in eight never measured."""
    return [None if rng.random() < 1 / 8 else loss for loss in rng.lognormal(0, 1, count).tolist()]


def churn(url: str, number: int, stop: Any, permits: Any, committed: Any) -> int:
    """Add and update, one commit per permit, until told to stop. Returns the number of commits."""
    rng = np.random.default_rng(number)
    commits = 0
    with memstore.open(url, create=False, seed=number) as memory:
        while True:
            permits.acquire()
            if stop.is_set():
                return commits
            if commits % 3 == 0:
                memory.extend(**offer(number, range(8 * commits, 8 * commits + 8)) | {"loss": varied(rng, 8)})
            else:
                batch = memory.sample(24, strategy="uniform" if commits % 2 else None)
                memory.update(batch, loss=rng.lognormal(0, 1, len(batch)))
            commits += 1
            committed.release()
