"""Two actors and a learner that share only a replay memory in a database.

    pip install 'memstore[examples]'
    python examples/actors_and_learner.py                                       # a file, cartpole.db
    python examples/actors_and_learner.py --database postgresql://user@host/db  # pip install 'memstore[postgres]'

The actors play CartPole and add their transitions. The learner, a double DQN in numpy, draws transitions by priority,
writes their new errors back and stores its networks. There is no queue, no socket and no file of weights: the actors
take the newest network from the learner's checkpoint. Every few seconds a line shows the mean return: a game brings
about 22 points at first, and at most 500.

Try this while it runs:

- ``kill -9`` any process whose number it prints. The process is started again and continues from the last commit: the
  learner with its step, networks and optimizer, the actors with the newest network. Without a learner the actors play a
  little longer and then wait, because the memory's limiter keeps them in step.
- ``kill -9`` the script itself. Its children notice that and end. Start it again with the same ``--database``.
- ``--role actor`` in another terminal, or on another machine with PostgreSQL, to help. (``--role learner`` starts only
  the learner; there should be one.)
- ``memstore stats cartpole.db --buffer transitions``, or SQL, to look into the memory at any time.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import Any

import numpy as np
from numpy.typing import NDArray

import memstore

try:
    import gymnasium
except ImportError as exc:
    raise SystemExit("this example plays CartPole: pip install 'memstore[examples]'") from exc

Array = NDArray[Any]

SIZES = (4, 64, 64, 2)  # widths of the network's layers: CartPole shows four numbers and has two actions
GAMMA = 0.99
LOOK_AHEAD = 10  # rewards that are summed before the network's value is added: faster and steadier than 1
LEARNING_RATE = 1e-3  # falls to 0 over the steps
TARGET_RATE = 0.01  # share of the online network that the target network takes over in each step
MINIBATCH, MINIBATCHES = 64, 8  # 8 minibatches are drawn together: one draw and one commit for 8 steps
CHUNK = 64  # steps that an actor plays between two commits
EXPLORE_STEPS, LAST_EPSILON = 2_000, 0.02  # the share of random actions falls from 1 over these steps of the learner
WINDOW = 50  # games over which the mean return is taken


def open_memories(database: str, seed: int | None = None) -> tuple[memstore.EpisodicMemory, memstore.EpisodicMemory]:
    """Open the buffers of transitions and of finished games. The first process makes them, with their settings."""
    transitions = memstore.open(
        database,
        buffer="transitions",
        capacity=50_000,
        strategy=memstore.PrioritizedLoss(alpha=0.6),
        eviction="fifo",
        epsilon=0.01,
        # A transition is drawn 8 times on average, on any machine, whichever process dies and for however long.
        limiter=memstore.SamplesPerInsert(8.0, min_size=1_000),
        seed=seed,
    )
    return transitions, memstore.open(database, buffer="games", capacity=10_000, strategy="uniform", eviction="fifo")


# The network. All its parameters are one vector, so that optimizer, target network and checkpoint need no loops.


def layers(theta: Array) -> list[tuple[Array, Array]]:
    """Return the weights and biases of each layer, as views of the vector."""
    views, at = [], 0
    for fan_in, fan_out in pairwise(SIZES):
        middle, end = at + fan_in * fan_out, at + (fan_in + 1) * fan_out
        views.append((theta[at:middle].reshape(fan_in, fan_out), theta[middle:end]))
        at = end
    return views


def forward(theta: Array, observations: Array) -> list[Array]:
    """Return the activations of every layer: the observations first, the values of the actions last."""
    activations = [observations]
    *hidden, (weights, biases) = layers(theta)
    for inner_weights, inner_biases in hidden:
        activations.append(np.maximum(activations[-1] @ inner_weights + inner_biases, 0))
    return [*activations, activations[-1] @ weights + biases]


def gradient(theta: Array, activations: list[Array], delta: Array) -> Array:
    """Propagate the derivative by the values of the actions back to all parameters."""
    result = np.empty_like(theta)
    pairs = list(zip(layers(theta), layers(result), activations[:-1], strict=True))
    for (weights, _), (weight_slopes, bias_slopes), inputs in reversed(pairs):
        weight_slopes[...], bias_slopes[...] = inputs.T @ delta, delta.sum(axis=0)
        delta = (delta @ weights.T) * (inputs > 0)
    return result


@dataclass
class Agent:
    """Everything on which the learner's next step depends. This is the checkpoint."""

    step: int
    online: Array
    target: Array
    slope: Array  # running means of the gradient and of its square, for Adam
    square: Array

    @classmethod
    def newest(cls, memory: memstore.EpisodicMemory, seed: int = 0) -> Agent:
        """Return the learner that the memory stored last, or a new one."""
        if "learner" in memory.checkpoints():
            return cls(**memory.load_checkpoint("learner"))
        rng = np.random.default_rng(seed)
        theta = np.zeros(sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(SIZES)), np.float32)
        for weights, _ in layers(theta):
            weights[...] = rng.standard_normal(weights.shape) * np.sqrt(2 / len(weights))
        return cls(0, theta, theta.copy(), np.zeros_like(theta), np.zeros_like(theta))

    def learn(self, rows: dict[str, Array], weight: Array, rate: float) -> Array:
        """Take one step of double DQN on a minibatch; return the absolute errors from before it."""
        each = np.arange(len(weight))
        chosen = forward(self.online, rows["next_observation"])[-1].argmax(axis=1)
        future = forward(self.target, rows["next_observation"])[-1][each, chosen]
        activations = forward(self.online, rows["observation"])
        error: Array = activations[-1][each, rows["action"]] - (rows["reward"] + rows["discount"] * future)
        delta = np.zeros_like(activations[-1])
        delta[each, rows["action"]] = weight * np.clip(error, -1, 1) / len(weight)  # derivative of Huber's loss
        slope = gradient(self.online, activations, delta)
        self.step += 1
        self.slope += 0.1 * (slope - self.slope)
        self.square += 0.001 * (slope**2 - self.square)
        mean, square = self.slope / (1 - 0.9**self.step), self.square / (1 - 0.999**self.step)
        self.online -= rate * mean / (np.sqrt(square) + 1e-8)
        self.target += TARGET_RATE * (self.online - self.target)
        return np.abs(error)


# The processes


def learner(options: argparse.Namespace) -> None:
    """Continue where the last learner stopped, and train until the steps are done."""
    memory, _ = open_memories(options.database, options.seed)
    agent = Agent.newest(memory, options.seed)
    while agent.step < options.steps:
        done = agent.step / options.steps
        batch = memory.sample(MINIBATCH * MINIBATCHES, beta=0.4 + 0.6 * done, normalize="batch")  # waits for its turn
        minibatches = (batch.take(rows) for rows in np.array_split(np.arange(len(batch)), MINIBATCHES))
        errors = [agent.learn(dict(each), each.weight, LEARNING_RATE * (1 - done)) for each in minibatches]
        with memory.transaction():  # both or none: after a crash, losses and networks belong to the same step
            memory.update(batch, loss=np.concatenate(errors), step=agent.step)
            memory.save_checkpoint("learner", asdict(agent))


def actor(options: argparse.Namespace, number: int) -> None:
    """Play without end, with the newest network."""
    memory, games = open_memories(options.database)
    # The last of these seeds changes, so that an actor that is started again plays other games.
    rng = np.random.default_rng([options.seed, number, memory.stats().total_inserted])
    env = gymnasium.make("CartPole-v1")
    observation, _ = env.reset(seed=int(rng.integers(2**31)))
    points, recent = 0.0, deque[tuple[Array, int, float]]()
    while True:
        agent = Agent.newest(memory)
        epsilon = max(LAST_EPSILON, 1 - agent.step / EXPLORE_STEPS)
        transitions: list[dict[str, Any]] = []
        finished: list[float] = []
        for _ in range(CHUNK):
            explores = rng.random() < epsilon
            action = int(rng.integers(SIZES[-1]) if explores else forward(agent.online, observation)[-1].argmax())
            following, reward, terminated, truncated, _ = env.step(action)
            recent.append((observation, action, float(reward)))
            observation, points, over = following, points + float(reward), terminated or truncated
            while len(recent) == LOOK_AHEAD or (over and recent):
                first, chosen, _ = recent[0]
                transition = {"observation": first, "action": chosen, "next_observation": following}
                transition["reward"] = np.float32(sum(GAMMA**i * gain for i, (_, _, gain) in enumerate(recent)))
                transition["discount"] = np.float32(0 if terminated else GAMMA ** len(recent))
                transitions.append(transition)
                recent.popleft()
            if over:
                finished.append(points)
                observation, points = env.reset()[0], 0.0
        memory.extend({name: np.array([row[name] for row in transitions]) for name in transitions[0]})
        if finished:
            games.extend({"return": np.array(finished), "step": np.full(len(finished), agent.step)})


def child(role: Callable[..., None], *arguments: Any) -> None:
    """Play a role until it ends or the supervisor is gone, also by ``kill -9``, so that a restart doubles nobody."""
    supervisor = multiprocessing.parent_process()
    assert supervisor is not None

    def follow() -> None:
        supervisor.join()
        os._exit(1)  # safe at any point: an unfinished commit is undone

    threading.Thread(target=follow, daemon=True).start()
    try:
        role(*arguments)
    except memstore.MemstoreError as exc:  # the server is gone, say: the next process may find it again
        raise SystemExit(f"{type(exc).__name__}: {exc}") from None


def returns(games: memstore.EpisodicMemory) -> list[float]:
    """Return the returns of all finished games, the oldest first."""
    day = 86_400.0  # the clocks of other machines may differ from this machine's
    return [float(game.payload["return"]) for game in games.recall_temporal(0, time.time() + day)]


def supervise(options: argparse.Namespace) -> None:
    """Keep the learner and the actors running until the learner is done, and print the mean return."""
    memory, games = open_memories(options.database)
    begun, first = time.monotonic(), memory.stats()

    def report() -> None:
        seconds, stats, last = time.monotonic() - begun, memory.stats(), returns(games)[-WINDOW:]
        added, replayed = stats.total_inserted, stats.total_events
        rates = [(added - first.total_inserted) / seconds, (replayed - first.total_events) / seconds]
        print(
            f"{seconds:5.0f} s  step {Agent.newest(memory).step:5d}  added {added:6d} ({rates[0]:4.0f}/s)  "
            f"replayed {replayed:7d} ({rates[1]:5.0f}/s)  return {np.mean(last or [0]):5.1f}",
            flush=True,
        )

    jobs: dict[str, tuple[Any, ...]] = {"learner": (learner, options)}
    jobs |= {f"actor {number}": (actor, options, number) for number in range(options.actors)}
    spawn = multiprocessing.get_context("spawn")
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # for the children: the matrices are too small for more threads
    running: dict[str, BaseProcess] = {}
    due = begun + options.every
    while "learner" not in running or running["learner"].exitcode != 0:
        for name, job in jobs.items():
            last = running.get(name)
            if last is None or last.exitcode is not None:
                running[name] = spawn.Process(target=child, args=job, daemon=True)  # ends with this process
                handler = signal.signal(
                    signal.SIGINT, signal.SIG_IGN
                )  # inherited by the child: Ctrl-C is for this process
                running[name].start()
                signal.signal(signal.SIGINT, handler)
                reason = "" if last is None else f" (the last one ended with {last.exitcode})"
                print(f"{name} is process {running[name].pid}{reason}", flush=True)
        wait([process.sentinel for process in running.values()], max(0.0, due - time.monotonic()))
        if time.monotonic() >= due:
            report()
            due = time.monotonic() + options.every
    for process in running.values():
        process.kill()  # safe at any time
        process.join()
    report()
    means = [float(np.mean(part or [0])) for part in (returns(games)[:WINDOW], returns(games)[-WINDOW:])]
    print(f"mean return of the first {WINDOW} games {means[0]:.1f}, of the last {WINDOW} {means[1]:.1f}", flush=True)


def main() -> None:
    """Read the options and start the processes that they ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--database", default="cartpole.db", help="file or postgresql:// address (%(default)s)")
    parser.add_argument("--steps", type=int, default=6_000, help="of the learner, in all (%(default)s)")
    parser.add_argument("--actors", type=int, default=2, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two lines (%(default)s)")
    parser.add_argument("--role", choices=("all", "actor", "learner"), default="all", help="(%(default)s)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        if options.role == "learner":
            learner(options)
        elif options.role == "actor":
            actor(options, os.getpid())
        else:
            supervise(options)
    except KeyboardInterrupt:
        raise SystemExit("stopped; start it again to go on") from None
    except memstore.MemstoreError as exc:
        raise SystemExit(f"{type(exc).__name__}: {exc}") from None


if __name__ == "__main__":
    main()
