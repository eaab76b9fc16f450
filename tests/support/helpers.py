"""What the tests of the contract share."""

from __future__ import annotations

import multiprocessing
import queue
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from memstore import EpisodicMemory

FRESH: Any = multiprocessing.get_context(
    "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
)
"""Starts processes that inherit nothing of this one, from a server that has already imported what takes a second."""
if FRESH.get_start_method() == "forkserver":
    FRESH.set_forkserver_preload(
        ["memstore", "memstore.storage.backends.postgres", "memstore.storage.backends.sqlite", __name__]
    )

OpenMemory = Callable[..., EpisodicMemory]
Sql = Callable[..., list[tuple[Any, ...]]]
Damage = Callable[..., None]
Existing = Callable[[], list[str]]
Room = Callable[[int | None], None]
Payload = dict[str, Any]

sqlite_only = pytest.mark.parametrize("url", ["sqlite"], indirect=True)
"""For what only a file can do or suffer; the test does not exist on PostgreSQL, so nothing is skipped."""
postgres_only = pytest.mark.parametrize("url", ["postgres"], indirect=True)
"""For what only a server can do or suffer."""


def rows(count: int, start: int = 0) -> Payload:
    """Payloads of ``count`` episodes that tell which they are: episode i is 4 x i, and i."""
    numbers = np.arange(start, start + count)
    return {"x": np.repeat(numbers[:, None], 4, axis=1).astype(np.float32), "number": numbers}


def row(number: int) -> Payload:
    """The payload of one episode, as in ``rows``."""
    return {"x": np.full(4, number, np.float32), "number": number}


def drawn(memory: EpisodicMemory, draws: int = 20_000, **arguments: Any) -> dict[int, int]:
    """How often each live episode was drawn, with replacement."""
    ids, counts = np.unique(memory.sample(draws, replacement=True, **arguments).ids, return_counts=True)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def agree(counts: dict[int, int], probability: dict[int, float]) -> bool:
    """Whether frequencies agree with the law: chi-square, on fixed seeds, far below any plausible accident."""
    from scipy.stats import chisquare  # slow to import, and child processes import this module too

    ids = sorted(probability)
    assert set(counts) <= set(ids), "something was drawn that cannot be"
    total = sum(counts.values())
    expected = np.array([probability[i] for i in ids]) * total
    assert abs(expected.sum() - total) < 1e-6 * total, "the probabilities do not sum to 1"
    seen = np.array([counts.get(i, 0) for i in ids])
    return float(chisquare(seen, expected * total / expected.sum()).pvalue) > 1e-4


def law(memory: EpisodicMemory, **arguments: Any) -> dict[int, float]:
    """The reported probability of every live episode."""
    batch = memory.sample(len(memory), exact_probability=True, **arguments)
    assert batch.probability is not None
    return dict(zip(batch.ids.tolist(), batch.probability.tolist(), strict=True))


def everything(memory: EpisodicMemory, ids: Any) -> list[tuple[Any, ...]]:
    """All that is known of these episodes, comparable with ``==``."""
    return [
        (
            episode.id,
            {name: np.asarray(value).tolist() for name, value in episode.payload.items()},
            episode.domain,
            episode.timestamp,
            episode.level,
            episode.tags,
            episode.key,
            episode.extra,
            (episode.loss, episode.lowest_loss, episode.replay_count, episode.last_replayed_at),
        )
        for episode in memory.get_many(ids)
    ]


def live_ids(memory: EpisodicMemory) -> list[int]:
    """Every live id, ascending."""
    if not len(memory):
        return []
    return sorted(memory.sample(len(memory), strategy="uniform").ids.tolist())


def same(one: Any, other: Any) -> bool:
    """Whether two values agree in type, dtype, shape and every bit."""
    if isinstance(one, dict):
        return isinstance(other, dict) and list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, np.ndarray):
        return (
            isinstance(other, np.ndarray)
            and one.dtype == other.dtype
            and one.shape == other.shape
            and one.tobytes() == other.tobytes()
        )
    return type(one) is type(other) and bool(one == other)


def _report(results: Any, function: Callable[..., Any], arguments: Sequence[Any]) -> None:
    try:
        results.put((True, function(*arguments)))
    except BaseException:
        results.put((False, traceback.format_exc()))


class Child:
    """A function running in another process; ``result`` waits for what it returns."""

    def __init__(self, function: Callable[..., Any], *arguments: Any, method: str | None = None) -> None:
        context: Any = FRESH if method is None else multiprocessing.get_context(method)
        self._results = context.Queue()
        self._process = context.Process(target=_report, args=(self._results, function, arguments))
        self._process.start()

    def result(self, timeout: float = 120.0) -> Any:
        try:
            good, value = self._results.get(timeout=timeout)
        except queue.Empty:
            self._process.kill()
            raise AssertionError("the child hung, or died without a word") from None
        finally:
            self._results.close()
        self._process.join(timeout)
        assert self._process.exitcode == 0, self._process.exitcode
        assert good, value
        return value


def in_child(function: Callable[..., Any], *arguments: Any, method: str | None = None) -> Any:
    """What the function returns in another process."""
    return Child(function, *arguments, method=method).result()
