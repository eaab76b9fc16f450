"""What any online learner offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

from memstore.learner.example import OnlineExample
from memstore.learner.models.model import Model
from memstore.learner.stats import LearnResult, OnlineLearnerStats


@runtime_checkable
class OnlineLearner(Protocol):
    """A model that learns from a stream, remembers, and can be saved whole; `MemoryOnlineLearner` is one."""

    @property
    def model(self) -> Model:
        """What is trained."""
        ...

    @property
    def stats(self) -> OnlineLearnerStats:
        """Counts so far, restarts included."""
        ...

    @property
    def should_consolidate(self) -> bool:
        """Whether a consolidation is due."""
        ...

    def learn_one(self, example: OnlineExample) -> LearnResult:
        """Learn one example."""
        ...

    def learn_batch(self, examples: Sequence[OnlineExample]) -> LearnResult:
        """Learn new examples."""
        ...

    def consolidate(self) -> Any:
        """Strengthen what was learned and tidy what is remembered."""
        ...

    def save_state(self, name: str = "latest") -> None:
        """Save everything the next call depends on."""
        ...

    def load_state(self, name: str = "latest") -> None:
        """Become the learner that was saved; all of it or nothing."""
        ...
