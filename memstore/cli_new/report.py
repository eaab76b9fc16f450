"""What the command prints: progress, tables, histograms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from memstore.types import ReplayStats

if TYPE_CHECKING:
    from memstore.experiments.runner import RunProgress
    from memstore.learner import TrainProgress, TrainResult

BAR_WIDTH = 32


class _TrainingBar(Progress):
    """A bar with a line of its own below, so that neither is cut off at 80 columns."""

    below = ""

    def get_renderables(self) -> Iterator[RenderableType]:
        yield self.make_tasks_table(self.tasks)
        yield Text(self.below)


@contextmanager
def training_progress(db: str) -> Iterator[Callable[[TrainProgress], None]]:
    """A progress bar on stderr, so that stdout holds the result alone; yields what to call after every step."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with _TrainingBar(*columns, console=console, expand=True) as bar:
        task = bar.add_task("starting", total=None, detail="")
        started = False

        def show(progress: TrainProgress) -> None:
            nonlocal started
            if not started:
                started = True
                console.print(_found(db, progress), markup=False, highlight=False)
            loss = "" if progress.loss is None else f"loss {progress.loss:.3f}  "
            draws = ", ".join(f"{domain} {count}" for domain, count in sorted(progress.draws.items()))
            bar.below = f"buffer {progress.buffer_size}, replayed: {draws or 'nothing yet'}"
            bar.update(
                task,
                description=f"task {progress.task}",
                completed=progress.step,
                total=progress.steps,
                detail=f"{loss}accuracy so far {progress.accuracy:.1%}",
            )

        yield show


@contextmanager
def experiment_progress(folder: Path) -> Iterator[Callable[[RunProgress], None]]:
    """A progress bar of trials on stderr; yields what to call at the start and after every trial."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    last: RunProgress | None = None

    def say(what: str) -> None:
        console.print(f"{folder}: {what}", markup=False, highlight=False, soft_wrap=True)

    try:
        # Trials are long and differ: the rate is that of many.
        with Progress(*columns, console=console, expand=True, speed_estimate_period=1800) as bar:
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


def _found(db: str, progress: TrainProgress) -> str:
    if progress.step == 0:
        return f"{db}: a new run of {progress.steps} steps; every step is a commit"
    if progress.step == progress.steps:
        return f"{db}: found a finished run, nothing left to train"
    return (
        f"{db}: found a run at step {progress.step} of {progress.steps}, {progress.buffer_size} episodes in the "
        "buffer; continuing"
    )


def print_training(db: str, result: TrainResult | None, baseline: TrainResult) -> None:
    """Accuracy per task with and without replay, average, forgetting, digest."""
    from memstore.learner.metrics import FORGETTING_FORMULA

    console = Console()
    arms = [("without replay", baseline)] if result is None else [("replay", result), ("without replay", baseline)]
    table = Table(box=box.SIMPLE_HEAD, title=f"{baseline.dataset}: test accuracy")
    table.add_column("task")
    for name, _ in arms:
        table.add_column(name, justify="right")
    for domain in baseline.tasks:
        table.add_row(domain, *(f"{arm.accuracy[domain]:.1%}" for _, arm in arms))
    table.add_section()
    table.add_row("average", *(f"{arm.average:.1%}" for _, arm in arms))
    table.add_row("forgetting", *(f"{arm.forgetting:.1%}" for _, arm in arms))
    console.print(table)
    console.print(f"forgetting = {FORGETTING_FORMULA}", markup=False, highlight=False)
    if result is None:
        console.print(f"weights without replay: sha256 {baseline.digest}", highlight=False)
        return
    draws = ", ".join(f"{domain} {count}" for domain, count in sorted(result.draws.items()))
    console.print(f"replayed examples: {draws}", highlight=False)
    console.print(f"weights: sha256 {result.digest}", highlight=False, soft_wrap=True)
    console.print(f"look inside: memstore stats {db}", markup=False, highlight=False)


def print_stats(stats: ReplayStats) -> None:
    """One buffer as a table, its losses as a histogram."""
    console = Console()
    table = Table(box=box.SIMPLE, title=f"buffer {stats.buffer}", show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    about = "" if stats.loss_quantiles_exact else "  (to half an octave; --exact scans)"
    rows = {
        "episodes": f"{stats.buffer_size:,} of {stats.capacity:,}",
        "inserted / left": f"{stats.total_inserted:,} / {stats.total_evicted:,}",
        "never measured": f"{stats.unmeasured:,}",
        "replays": f"{stats.total_replays:,} of live episodes, {stats.total_events:,} in the history",
        "loss": f"mean {stats.avg_loss:.4g}, largest priority ever {stats.max_priority:.4g}",
        "quantiles": "  ".join(f"{q} {loss:.3g}" for q, loss in stats.loss_quantiles.items()) + about,
        "strategy": f"{stats.strategy}, alpha {stats.alpha:g}, epsilon {stats.epsilon:g}",
        "eviction": stats.eviction + (f", {stats.max_replays} replays at most" if stats.max_replays else ""),
        "leased": f"{stats.leased:,}",
        "limiter": _limiter(stats.limiter),
        "payload": stats.signature or "nothing added yet",
        "on disk": "  ".join(f"{part} {_size(size)}" for part, size in stats.bytes_on_disk.items()),
        "schema": f"{stats.schema_version}, revision {stats.revision:,}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    console.print(table)
    if stats.domain_distribution:
        console.print(_bars("domain", sorted(stats.domain_distribution.items(), key=lambda item: -item[1])[:20]))
    if stats.loss_histogram:
        bins = [(f"{low:.3g} .. {high:.3g}", count) for low, high, count in stats.loss_histogram]
        console.print(_bars("loss", bins))


def _limiter(account: dict[str, float] | None) -> str:
    return "none" if account is None else "  ".join(f"{name} {value:,g}" for name, value in account.items())


def _bars(title: str, counts: list[tuple[str, int]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(title)
    table.add_column("episodes", justify="right")
    table.add_column("", no_wrap=True)
    most = max(count for _, count in counts) or 1
    for name, count in counts:
        table.add_row(name, f"{count:,}", "█" * max(round(BAR_WIDTH * count / most), 1 if count else 0))
    return table


def _size(size: int) -> str:
    amount = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            break
        amount /= 1024
    return f"{amount:,.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"
