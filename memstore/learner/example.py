"""One example of an online stream. It is stored as an episode, and an episode can be read as an example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memstore.config import check_name
from memstore.errors import InvalidValue
from memstore.memory import EpisodicMemory
from memstore.types import Episode

MIN_LEVEL, MAX_LEVEL = 1, 7
"""These are the lowest and the highest difficulty of an example."""


@dataclass(frozen=True, slots=True, eq=False)
class OnlineExample:
    """One example.

    The id becomes the key of its episode, so an example is stored once. If it is learned again, after a crash or in
    another pass over the data, the model trains on it. Its loss is then written to its episode, if that is still live.
    To store a second experience, give it another id or none. An id must not name two examples.

    Parameters
    ----------
    id : str
        Your name for the example. Empty for none.
    input, target : array_like
        The input of the model, and the answer that it should give. They are stored with their dtype and shape.
    domain : str
        Task or source, for balanced draws and statistics.
    level : int
        Difficulty, 1 to 7.
    last_loss : float or None
        The last measured loss. None if it was never measured.
    tags : sequence of str
        Labels by which the episode can be found.
    episode_id : int or None
        The episode that the example was read from. None for an example from elsewhere.

    Raises
    ------
    InvalidValue
        The level is outside 1 .. 7, the loss is negative or not finite, or a name is not a str.
    """

    id: str
    # Any array-like is accepted, and an array is kept.
    input: Any
    target: Any
    domain: str = "default"
    level: int = MIN_LEVEL
    last_loss: float | None = None
    tags: Sequence[str] = ()
    episode_id: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.id, str):
            raise InvalidValue(f"id must be a str, got {self.id!r}")
        check_name("domain", self.domain)
        if isinstance(self.level, bool) or self.level not in range(MIN_LEVEL, MAX_LEVEL + 1):
            raise InvalidValue(f"level must be an integer {MIN_LEVEL} .. {MAX_LEVEL}, got {self.level!r}")
        if self.last_loss is not None and not (math.isfinite(self.last_loss) and self.last_loss >= 0):
            raise InvalidValue(f"last_loss must be None or finite and >= 0, got {self.last_loss!r}")
        if isinstance(self.tags, str):
            raise InvalidValue(f"tags must be a sequence of str, got the single text {self.tags!r}")
        object.__setattr__(self, "input", np.asarray(self.input))
        object.__setattr__(self, "target", np.asarray(self.target))
        object.__setattr__(self, "level", int(self.level))
        object.__setattr__(self, "tags", tuple(self.tags))


def stack(examples: Sequence[OnlineExample]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the inputs and the targets, each stacked along a new first axis.

    Raises
    ------
    InvalidValue
        Two examples differ in shape.
    """
    stacked = []
    for name in ("input", "target"):
        arrays = [getattr(example, name) for example in examples]
        shapes = sorted({array.shape for array in arrays})
        if len(shapes) > 1:
            raise InvalidValue(f"all examples of a batch need one {name} shape, got {shapes[0]} and {shapes[1]}")
        stacked.append(np.stack(arrays))
    return stacked[0], stacked[1]


def episode_columns(examples: Sequence[OnlineExample]) -> dict[str, Any]:
    """Return the arguments of `EpisodicMemory.extend` other than payload and loss."""
    return {
        "domain": [example.domain for example in examples],
        "level": [example.level for example in examples],
        "tags": [example.tags for example in examples],
        "key": [example.id or None for example in examples],
    }


def known_episodes(memory: EpisodicMemory, examples: Sequence[OnlineExample]) -> list[int]:
    """Return the ids of episodes that already store some of these examples.

    Raises
    ------
    InvalidValue
        A live episode with an example's id has another input or target, so the example could not be stored.
    """
    named = {example.id: example for example in examples if example.id}
    known = {key: number for key, number in zip(named, memory.ids_of(list(named)), strict=True) if number is not None}
    for key, number in known.items():
        if number not in memory:
            continue
        stored, given = from_episode(memory.get(number)), named[key]
        if not (_same(stored.input, given.input) and _same(stored.target, given.target)):
            raise InvalidValue(
                f"the id {key!r} names another example already (episode {number}); give each example an id of its "
                "own, or '' for none"
            )
    return list(known.values())


def _same(one: NDArray[Any], other: NDArray[Any]) -> bool:
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind in "fc"))


def from_episode(episode: Episode) -> OnlineExample:
    """Return the example that this episode stores, with its present loss.

    Without a level the example has level 1, and without a key it has an empty id.
    """
    return OnlineExample(
        id=episode.key or "",
        input=np.asarray(episode.payload["input"]),
        target=np.asarray(episode.payload["target"]),
        domain=episode.domain,
        level=MIN_LEVEL if episode.level is None else episode.level,
        last_loss=episode.loss,
        tags=tuple(episode.tags),
        episode_id=episode.id,
    )
