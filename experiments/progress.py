"""The progress bar of an experiment."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from experiments.runner import RunProgress
from memstore.cli.output import console


@contextmanager
def experiment_progress(folder: Path) -> Iterator[Callable[[RunProgress], None]]:
    """Show a progress bar of trials on stderr; yield the function to call at the start and after every trial."""
    out = console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    last: RunProgress | None = None

    def say(what: str) -> None:
        out.print(f"{folder}: {what}", soft_wrap=True)

    try:
        # Trials are long and differ, so the rate is averaged over many.
        with Progress(*columns, console=out, expand=True, speed_estimate_period=1800) as bar:
            task = bar.add_task("trials", total=None)

            def show(progress: RunProgress) -> None:
                nonlocal last
                if last is None and progress.done:
                    say(f"found {progress.done} of {progress.total} trials; continuing")
                last = progress
                name = "trials" if progress.trial is None else f"{progress.trial.arm}, seed {progress.trial.seed}"
                bar.update(task, description=name, completed=progress.done, total=progress.total)

            yield show
    except KeyboardInterrupt:
        if last is not None:
            say(f"stopped after {last.done} of {last.total} trials; the same command continues")
        raise
