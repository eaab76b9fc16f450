"""Training runs that are killed on the way, and resumed with or without their memory."""

from __future__ import annotations

import signal
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import memstore
from experiments.threads import one_thread
from memstore.learner.config import OnlineLearnerConfig
from memstore.learner.job.train import CHECKPOINT, TrainProgress, run_training

Accuracies = dict[int, float]
"""Test accuracy on the tasks met so far, by step."""


def train_until_killed(db: Path, config: OnlineLearnerConfig, kill_at: int) -> Accuracies:
    """Train in a process of its own and kill it, by SIGKILL, when it has reported step ``kill_at``.

    The process trains on meanwhile, so it dies at some point of that step or one of the next.

    Raises
    ------
    RuntimeError
        The process ended by itself.
    """
    context = get_context("spawn")
    reports, ours = context.Pipe(duplex=False)
    child = context.Process(target=_train, args=(db, config, ours), daemon=True)
    child.start()
    ours.close()
    seen: Accuracies = {}
    try:
        while True:
            step, accuracy = reports.recv()
            seen[step] = accuracy
            if step >= kill_at:
                child.kill()
    except (EOFError, OSError):  # the reports ended, or the kill cut one in two
        child.join()
    finally:
        child.kill()
        reports.close()
    if child.exitcode != -signal.SIGKILL:
        raise RuntimeError(f"the training process ended by itself, with exit code {child.exitcode}")
    return seen


def without_episodes(db: Path, empty: Path, config: OnlineLearnerConfig) -> Path:
    """Make ``empty``, a database with the last checkpoint of ``db`` and its weights, but no episode; return it."""
    with memstore.open(db, create=False) as whole, config.open_memory(empty) as bare:
        bare.save_checkpoint(CHECKPOINT, whole.load_checkpoint(CHECKPOINT))
    return empty


def _train(db: Path, config: OnlineLearnerConfig, reports: Connection) -> None:
    def report(progress: TrainProgress) -> None:
        reports.send((progress.step, progress.accuracy))

    with one_thread():
        run_training(db, config, on_progress=report)
