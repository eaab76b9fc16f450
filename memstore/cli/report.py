"""The output of ``memstore train``: progress and results."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich import box
from rich.console import RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from memstore.cli.output import console
from memstore.cli.text import shown

if TYPE_CHECKING:
    from memstore.learner import TrainProgress, TrainResult


class _TrainingBar(Progress):
    """A bar with a line of text below it, so that neither is cut off at 80 columns."""

    below = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.below)


@contextmanager
def training_progress(db: str) -> Iterator[Callable[[TrainProgress], None]]:
    """Show a progress bar on stderr, so that stdout holds only the result; yield the function to call at every step."""
    out = console(stderr=True)
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with _TrainingBar(*columns, console=out, expand=True) as bar:
        task = bar.add_task("starting", total=None, detail="")
        started = False

        def show(progress: TrainProgress) -> None:
            nonlocal started
            if not started:
                started = True
                out.print(_describe_start(db, progress))
            loss = "" if progress.loss is None else f"loss {progress.loss:.3f}  "
            draws = ", ".join(f"{domain} {count}" for domain, count in sorted(progress.draws.items()))
            bar.below = f"buffer {progress.buffer_size}, replayed: {draws or 'nothing yet'}"
            bar.update(
                task,
                description=f"task {shown(progress.task)}",
                completed=progress.step,
                total=progress.steps,
                detail=f"{loss}accuracy so far {progress.accuracy:.1%}",
            )

        yield show


def _describe_start(db: str, progress: TrainProgress) -> str:
    if progress.step == 0:
        return f"{db}: a new run of {progress.steps} steps; every step is a commit"
    if progress.step == progress.steps:
        return f"{db}: found a finished run, nothing left to train"
    return (
        f"{db}: found a run at step {progress.step} of {progress.steps}, {progress.buffer_size} episodes in the "
        "buffer; continuing"
    )


def print_training(db: str, result: TrainResult | None, baseline: TrainResult) -> None:
    """Print the accuracy on each task with and without replay, the average, the forgetting, and the digest."""
    from memstore.learner.job.metrics import FORGETTING_FORMULA

    out = console()
    arms = [("without replay", baseline)] if result is None else [("replay", result), ("without replay", baseline)]
    table = Table(box=box.SIMPLE_HEAD, title=f"{shown(baseline.dataset)}: test accuracy")
    table.add_column("task")
    for name, _ in arms:
        table.add_column(name, justify="right")
    for domain in baseline.tasks:
        table.add_row(shown(domain), *(f"{arm.accuracy[domain]:.1%}" for _, arm in arms))
    table.add_section()
    table.add_row("average", *(f"{arm.average:.1%}" for _, arm in arms))
    table.add_row("forgetting", *(f"{arm.forgetting:.1%}" for _, arm in arms))
    out.print(table)
    out.print(f"forgetting = {FORGETTING_FORMULA}")
    if result is None:
        out.print(f"weights without replay: sha256 {baseline.digest}")
        return
    draws = ", ".join(f"{shown(domain)} {count}" for domain, count in sorted(result.draws.items()))
    out.print(f"replayed examples: {draws}")
    out.print(f"weights: sha256 {result.digest}", soft_wrap=True)
    out.print(f"look inside: memstore stats {db}")
