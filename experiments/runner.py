"""Run an experiment's trials, continue where a former run stopped, and write the report."""

from __future__ import annotations

import hashlib
import os
import platform
import signal
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import active_children, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import memstore
from experiments.experiment import Experiment, Report, Trial
from experiments.report import write_report
from experiments.results import Results
from experiments.threads import one_thread
from memstore.config import check_int

Measured = tuple[Trial, dict[str, Any]]

RESULTS = "results.jsonl"
"""Name of the file of finished trials."""
MEASURING = ("numpy", "scikit-learn", "sqlalchemy")
"""Packages on whose versions a trial's numbers depend."""
REPORTING = ("scipy", "matplotlib", "torch")
"""Packages on whose versions only the report depends."""
PRESENTATION = {"cli", "figures", "__main__.py", "progress.py", "report.py", "results.py", "runner.py"}
"""Modules and packages on which no trial's numbers depend."""


@dataclass(frozen=True, slots=True)
class RunProgress:
    """How far a run has come: finished trials, also of former runs, and the last of them (None at the start)."""

    done: int
    total: int
    trial: Trial | None


def run_experiment(
    experiment: Experiment,
    out: str | os.PathLike[str],
    *,
    quick: bool = False,
    seeds: int | None = None,
    jobs: int = 1,
    on_progress: Callable[[RunProgress], None] | None = None,
) -> Report:
    """Run the remaining trials of an experiment and write its report.

    A finished trial is at once a line of ``out/results.jsonl``, so a run that was stopped or killed continues with the
    first unfinished trial. At the end ``report.txt``, ``report.json`` and, with matplotlib, a PNG of every figure are
    written beside it.

    Parameters
    ----------
    experiment : Experiment
    out : path
        Folder of the results, made if need be.
    quick : bool
        True runs the version of seconds instead of the full one.
    seeds : int, optional
        Seeds for each arm; default: the experiment's own number.
    jobs : int
        Number of trials at the same time. With more than 1, they run in processes of their own.
    on_progress : callable, optional
        Called at the start and after every trial.

    Returns
    -------
    Report

    Raises
    ------
    ConfigError
        A setting is out of range, or ``out`` holds results of another experiment, of other options, of another state
        of memstore's code, or of other versions of the packages that make the numbers.
    """
    seeds = None if seeds is None else check_int("seeds", seeds, minimum=1)
    jobs = check_int("jobs", jobs, minimum=1)
    folder = Path(out)
    trials = experiment.trials(quick=quick, seeds=seeds)
    options = {"experiment": experiment.name, "quick": quick, "seeds": seeds, "code": code()}
    header = {**options, "versions": versions(MEASURING)}
    with Results(folder / RESULTS, header) as results:
        waiting = [trial for trial in trials if trial not in results.found]

        def tell(trial: Trial | None) -> None:
            if on_progress:
                on_progress(RunProgress(sum(one in results.found for one in trials), len(trials), trial))

        tell(None)
        with closing(_measured(experiment, waiting, min(jobs, len(waiting)))) as measured:
            for trial, result in measured:
                results.add(trial, result)
                tell(trial)
    found = {trial: results.found[trial] for trial in trials}
    report = experiment.report(found)
    write_report(folder, experiment, report, found, {**options, "versions": versions(MEASURING + REPORTING)})
    return report


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of Python, of memstore, and of these packages if they are installed."""
    found = {"python": platform.python_version(), "memstore": memstore.__version__}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def code() -> str:
    """Return a digest of the part of memstore's and the experiments' source on which a trial's numbers may depend."""
    sha = hashlib.sha256()
    for package in (Path(memstore.__file__).parent, Path(__file__).parent):
        for path in sorted(package.rglob("*.py")):
            if not PRESENTATION & set(path.relative_to(package).parts):
                sha.update(path.relative_to(package).as_posix().encode() + b"\n" + path.read_bytes())
    return sha.hexdigest()[:16]


def _measured(experiment: Experiment, trials: Sequence[Trial], jobs: int) -> Generator[Measured, None, None]:
    """Run the trials, and yield each when it is finished. Closing the generator ends the running trials."""
    with TemporaryDirectory(prefix="memstore-") as scratch:
        if jobs <= 1:
            for trial in trials:
                yield trial, _measure(experiment, trial, scratch)
            return
        others = set(active_children())
        pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"), initializer=_leave_interrupts_to_the_parent)
        try:
            futures = {pool.submit(_measure, experiment, trial, scratch): trial for trial in trials}
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for worker in set(active_children()) - others:
                worker.terminate()
            raise
        finally:
            pool.shutdown()


def _measure(experiment: Experiment, trial: Trial, scratch: str) -> dict[str, Any]:
    with TemporaryDirectory(dir=scratch) as folder, one_thread():
        return experiment.run(trial, Path(folder))


def _leave_interrupts_to_the_parent() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
