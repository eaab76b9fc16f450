"""Q-learning on the Blind Cliffwalk, and several ways to choose the transition of each update.

Schaul et al. 2016, "Prioritized Experience Replay" (arXiv:1511.05952), section 3.1 and appendix B.1.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

import memstore

Floats = NDArray[np.float64]

STEP_SIZE = 0.25
"""Step size of Q-learning."""
CONVERGED = 1e-3
"""Mean squared error below which the values have converged."""
INITIAL_SCALE = 0.1
"""Standard deviation of the initial values."""
STEPS_PER_COMMIT = 500
"""Updates in one transaction."""
MOST_UPDATES = 1_000_000
"""Updates after which a walk is given up."""


class Transition(NamedTuple):
    """One step of a walk. The terminal state has the number after the last state."""

    state: int
    action: int
    reward: float
    next_state: int


@dataclass(frozen=True, slots=True, eq=False)
class Cliffwalk:
    """Every transition of all 2^n action sequences over n states, in random order, and the true values.

    In each state one of two actions leads to the next state, in turns the first and the second. The other action ends
    the walk. Only the last right action is rewarded, so a single one of the 2^(n+1) - 2 transitions has a reward.

    Attributes
    ----------
    transitions : list of Transition
    gamma : float
        Discount, 1 - 1/n.
    truth : float64 array, shape (n + 1, 2)
        True values by state and action; 0 in the last row, the terminal state.
    """

    transitions: list[Transition]
    gamma: float
    truth: Floats

    @classmethod
    def of(cls, n: int, rng: np.random.Generator) -> Cliffwalk:
        """Walk every sequence of n actions until it ends."""
        transitions = [step for sequence in range(2**n) for step in _walk(n, sequence)]
        gamma = 1 - 1 / n
        truth = np.zeros((n + 1, 2))
        for state in range(n):
            truth[state, state % 2] = gamma ** (n - 1 - state)
        return cls([transitions[i] for i in rng.permutation(len(transitions))], gamma, truth)

    def initial_values(self, rng: np.random.Generator) -> Floats:
        """Return values from N(0, 0.1), 0.1 being the standard deviation. Zeros would make almost all TD errors 0."""
        values = rng.normal(0.0, INITIAL_SCALE, self.truth.shape)
        values[-1] = 0.0
        return values

    def error(self, values: Floats, step: Transition) -> float:
        """Return the TD error of Q-learning."""
        target = step.reward + self.gamma * values[step.next_state].max()
        return float(target - values[step.state, step.action])

    def distance(self, values: Floats) -> float:
        """Return the mean squared error against the true values."""
        return float(np.mean(np.square(values - self.truth)[:-1]))


def _walk(n: int, sequence: int) -> Iterator[Transition]:
    for state in range(n):
        action = sequence >> state & 1
        if action != state % 2:
            yield Transition(state, action, 0.0, n)
            return
        yield Transition(state, action, float(state == n - 1), state + 1)


class Stopwatch:
    """Adds up the seconds spent inside ``with`` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._started


class Replay(Protocol):
    """A way to choose the transition of each update."""

    def commit(self) -> AbstractContextManager[None]:
        """Surround up to ``STEPS_PER_COMMIT`` updates."""
        ...

    def draw(self, values: Floats) -> Transition:
        """Return the next transition to learn from."""
        ...

    def take_error(self, error: float) -> None:
        """Record the |TD error| of the transition just drawn."""
        ...


class UniformReplay:
    """Uniform draws from the memory."""

    def __init__(self, memory: memstore.EpisodicMemory, store: Stopwatch) -> None:
        self._memory = memory
        self._store = store
        self._drawn: Iterator[Transition] = iter(())

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Draw for all the updates at once."""
        # Losses do not matter to uniform draws. So many draws with replacement follow the same law as single ones,
        # and no loss needs to be written back.
        with self._store:
            batch = self._memory.sample(STEPS_PER_COMMIT, strategy=memstore.Uniform(), replacement=True)
        self._drawn = iter(_transitions(batch))
        yield

    def draw(self, values: Floats) -> Transition:
        """Return the next drawn transition."""
        return next(self._drawn)

    def take_error(self, error: float) -> None:
        """Ignore the error."""


class ProportionalReplay:
    """Draws from the memory in proportion to |TD error| + epsilon. Each error is written back before the next draw."""

    def __init__(self, memory: memstore.EpisodicMemory, store: Stopwatch) -> None:
        self._memory = memory
        self._store = store
        self._batch: memstore.Batch

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Write the updates in one transaction. Inside it, every draw sees the errors before it."""
        with ExitStack() as stack:
            with self._store:
                stack.enter_context(self._memory.transaction())
            yield
            with self._store:
                stack.close()

    def draw(self, values: Floats) -> Transition:
        """Draw a transition."""
        with self._store:
            self._batch = self._memory.sample(1, strategy=memstore.PrioritizedLoss(1.0))
        return _transitions(self._batch)[0]

    def take_error(self, error: float) -> None:
        """Make the error the loss of the transition."""
        with self._store:
            self._memory.update(self._batch, loss=error)


class GreedyReplay:
    """The largest |TD error| measured last; transitions never measured come first. In numpy, as a reference."""

    def __init__(self, walk: Cliffwalk) -> None:
        self._walk = walk
        self._errors = np.full(len(walk.transitions), np.inf)
        self._chosen = 0

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Store nothing."""
        yield

    def draw(self, values: Floats) -> Transition:
        """Return the transition with the largest error."""
        self._chosen = int(self._errors.argmax())
        return self._walk.transitions[self._chosen]

    def take_error(self, error: float) -> None:
        """Keep the error."""
        self._errors[self._chosen] = error


class OracleReplay:
    """The transition whose update brings the values nearest to the true ones. In numpy, as a bound."""

    def __init__(self, walk: Cliffwalk) -> None:
        self._walk = walk
        # Copies of a transition have the same effect, so the oracle tries only one of each.
        self._choices = sorted(set(walk.transitions))

    @contextmanager
    def commit(self) -> Iterator[None]:
        """Store nothing."""
        yield

    def draw(self, values: Floats) -> Transition:
        """Return the transition whose update helps most."""
        return min(self._choices, key=lambda step: self._gain(values, step))

    def take_error(self, error: float) -> None:
        """Ignore the error."""

    def _gain(self, values: Floats, step: Transition) -> float:
        """Return the change of the squared error; below 0 is better."""
        before = values[step.state, step.action] - self._walk.truth[step.state, step.action]
        change = STEP_SIZE * self._walk.error(values, step)
        return float(change * (2 * before + change))


def updates_to_convergence(walk: Cliffwalk, values: Floats, replay: Replay) -> int:
    """Learn in place until the values are within ``CONVERGED``; return the updates taken, at most ``MOST_UPDATES``."""
    updates = 0
    while updates < MOST_UPDATES:
        with replay.commit():
            for _ in range(STEPS_PER_COMMIT):
                step = replay.draw(values)
                error = walk.error(values, step)
                values[step.state, step.action] += STEP_SIZE * error
                replay.take_error(abs(error))
                updates += 1
                if walk.distance(values) < CONVERGED:
                    return updates
    return updates


def _transitions(batch: memstore.Batch) -> list[Transition]:
    columns = (batch[name].tolist() for name in Transition._fields)
    return [Transition(*row) for row in zip(*columns, strict=True)]
