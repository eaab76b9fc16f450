"""A seeded program, in turns: what it draws must follow from its log alone, whoever writes, folds, or dies on the way.

Every turn writes, draws, and rolls something back. What another process may do in the place of this one is a call by
name, so that twins of the program can share the work differently.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np

from memstore import Batch, EpisodicMemory, PrioritizedLoss, RetentionPolicy

Call = Callable[..., Any]
Seen = list[Any]


class Undone(Exception):
    """Ends a block from inside."""


def bits(batch: Batch) -> list[Any]:
    """Everything of a batch that follows from the law, to the last bit. Ids of two buffers differ, ages do not."""
    parts = [batch.age.tolist(), batch.loss.tobytes().hex(), batch.weight.tobytes().hex()]
    probability = None if batch.probability is None else batch.probability.tobytes().hex()
    return [*parts, batch.replay_count.tolist(), batch.domain.tolist(), probability]


def newcomers(rng: np.random.Generator, count: int) -> dict[str, Any]:
    """Arguments of ``extend``."""
    loss = rng.lognormal(0, 3, count)
    odd = rng.random(count)
    loss[odd < 0.1] = rng.choice([0.0, 1e-300, 1e12, 1.0], int((odd < 0.1).sum()))
    return {
        "payload": {"x": rng.integers(0, 9, (count, 2))},
        "domain": [f"d{i}" for i in rng.integers(0, 4, count)],
        "loss": [None if rest > 0.85 else float(x) for x, rest in zip(loss, odd, strict=True)],
        "level": rng.integers(0, 5, count).tolist(),
        "timestamp": rng.integers(0, 99, count).astype(float).tolist(),
    }


def turn(memory: EpisodicMemory, number: int, seed: int, call: Call) -> Seen:
    """Do one turn, and return what was seen. ``call`` does what need not be done by ``memory`` itself."""
    rng = np.random.default_rng((seed, number))
    call("extend", **newcomers(rng, int(rng.integers(1, 60))))
    seen: Seen = [bits(memory.sample(16, beta=0.5))]
    batch = memory.sample(12, strategy=PrioritizedLoss(0.6), beta=1.0, exact_probability=True)
    memory.update(batch, loss=rng.lognormal(0, 3, len(batch)), step=number)
    seen.append(bits(batch))
    call("update", batch.ids[::-1], loss=rng.lognormal(0, 3, len(batch)))
    seen.append(bits(memory.sample(9, strategy=PrioritizedLoss(1.5), where="loss > 1", exact_probability=True)))
    try:
        with memory.transaction():
            memory.delete(memory.sample(5).ids)
            with memory.transaction():
                memory.extend(**newcomers(rng, 70))
                memory.sample(3)
            raise Undone
    except Undone:
        pass
    with memory.transaction():
        memory.delete(batch.ids[:2])
        try:
            with memory.transaction():
                memory.update(memory.sample(8), loss=1e6)
                raise Undone
        except Undone:
            pass
        seen.append(bits(memory.sample(5, strategy="prioritized_recency", exact_probability=True)))
    seen.append(bits(memory.sample(6, strategy="domain_balanced")))
    seen.append(bits(memory.sample(4, strategy="uniform", where="level >= 2")))
    if number % 7 == 3:
        call("consolidate", RetentionPolicy(max_age=70.0, consolidate_similar=True), now=99.0)
        seen.append(bits(memory.lease(3, duration=1e6)))
    if number % 11 == 5:
        call("configure", alpha=0.6 if number % 2 else 0.9)
    return [*seen, generator(memory)]


def here(memory: EpisodicMemory) -> Call:
    """What ``turn`` calls if the memory does everything itself."""
    return lambda name, *arguments, **options: getattr(memory, name)(*arguments, **options)


def generator(memory: EpisodicMemory) -> str:
    """The state of the generator."""
    return str(memory.rng.bit_generator.state["state"])


def ending(memory: EpisodicMemory) -> list[Any]:
    """What the memory has come to. It must be sound."""
    assert memory.check().problems == ()
    stats = memory.stats()
    counted = (stats.total_inserted, stats.total_evicted, stats.total_replays, stats.total_events, stats.max_priority)
    rows = [(e.age, e.domain, e.loss, e.lowest_loss, e.replay_count, e.level) for e in memory.query().all()]
    events = [(e.what, e.reason, e.step, e.loss_before, e.loss_after) for e in memory.history()]
    return [counted, rows, hashlib.sha256(repr(events).encode()).hexdigest(), generator(memory)]
