"""The fastest that memory alone could be. Code that one would write by hand is in ``by_hand``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from benchmarks.workload import ALPHA, EPSILON, Episodes


class InMemory:
    """Arrays in RAM, neither shared nor durable: the speed of light."""

    def __init__(self, episodes: Episodes, seed: int = 3) -> None:
        self._inputs, self._targets, self._loss = episodes.inputs, episodes.targets, episodes.loss
        self._cumulative = np.cumsum((episodes.loss + EPSILON) ** ALPHA)
        self._rng = np.random.default_rng(seed)

    def draw_uniform(self, count: int) -> dict[str, NDArray[np.float32]]:
        """Draw with replacement, with equal chances."""
        return self._gather(self._rng.integers(0, len(self._loss), count))

    def draw_prioritized(self, count: int) -> dict[str, NDArray[np.float32]]:
        """Draw with replacement, by bisection of a cumulative sum that no update ever changes."""
        at = np.searchsorted(self._cumulative, self._rng.random(count) * self._cumulative[-1])
        return self._gather(np.minimum(at, len(self._loss) - 1))

    def _gather(self, at: NDArray[np.int64]) -> dict[str, NDArray[np.float32]]:
        return {"input": self._inputs[at], "target": self._targets[at]}
