"""What every way to draw answers."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from memstore.buffer.snapshot import Rows
from memstore.buffer.strata import Floats
from memstore.draws.filtered import Drawable
from memstore.errors import ConfigError

DEFAULT_ALPHA = 0.6


class Strategy(ABC):
    """A way to draw episodes; values are immutable, comparable, and stored with the buffer as JSON.

    A *scan* is a query over all episodes of the buffer. No draw makes more than one. What it found is kept by the
    process and brought up to date from the history, so later draws with the same condition need none. Where the history
    is not recorded in full, each draw after a change scans again.

    Every strategy scans for a draw of more than a quarter of what is live, where few episodes pass a condition, and
    where ``exact_probability`` asks for a probability that nothing stored tells.
    """

    name: ClassVar[str]

    @abstractmethod
    def draw(self, snapshot: Drawable, rng: np.random.Generator, count: int, taken: Rows, *, replacement: bool) -> Rows:
        """Draw ``count`` rows outside ``taken``, or all that are left when fewer are."""

    @abstractmethod
    def log2_probability(self, snapshot: Drawable, rows: Rows, *, exact: bool) -> Floats | None:
        """Of the first draw; None where it needs a scan and ``exact`` does not ask for one."""

    @abstractmethod
    def log2_importance(self, snapshot: Drawable, rows: Rows) -> tuple[Floats, float]:
        """Probability up to a common factor, and the smallest such value over the buffer; ``Mixed`` may scan."""

    @abstractmethod
    def parameters(self) -> dict[str, Any]:
        """What ``strategy_from_json`` needs to build it again."""

    @property
    def index_alpha(self) -> float:
        """Exponent that the stored weight sums should have for this strategy."""
        return DEFAULT_ALPHA

    def with_alpha(self, alpha: float) -> Strategy:
        """The same strategy with another exponent."""
        raise ConfigError(f"strategy {self.name!r} has no alpha")

    def to_json(self) -> str:
        """As stored in the ``buffer`` row."""
        return json.dumps({"name": self.name, **self.parameters()}, sort_keys=True)
