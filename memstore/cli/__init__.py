"""The ``memstore`` command."""

from __future__ import annotations

from typing import Any

import click

from memstore.cli import ask, keep, plot, query, show, stats
from memstore.cli.common import EXIT_CODES, command, print_json
from memstore.cli.output import CommandLine
from memstore.storage.address import shown_address
from memstore.types import EvictionPolicy, ReplayStrategy
from memstore.version import __version__


@click.group(
    cls=CommandLine,
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="memstore")
def main() -> None:
    """A persistent experience-replay memory: train through it, ask it questions, and keep it sound.

    DB is a file such as run.db, or a database URL such as postgresql://user@host/database. Each command explains
    itself: memstore COMMAND --help. Times are local, and losses have the unit of the trainer that measured them.
    """


@command(
    "memstore train --db run.db    (kill it, run it again: it continues)",
    click.option("--db", required=True, metavar="DB", help="The memory's file or URL. It is made if need be."),
    click.option(
        "--dataset",
        default="digits",
        show_default=True,
        metavar="NAME|FILE.npz",
        help="scikit-learn's digits, or an .npz file with arrays x and y, and domain if you like.",
    ),
    click.option(
        "--replay-strategy",
        type=click.Choice([s.value for s in ReplayStrategy]),
        help="How replayed episodes are drawn.  [default: uniform]",
    ),
    click.option(
        "--eviction",
        type=click.Choice([e.value for e in EvictionPolicy]),
        help="Which episodes leave at capacity.  [default: reservoir]",
    ),
    click.option("--capacity", type=int, metavar="N", help="Largest number of episodes kept.  [default: 200]"),
    click.option(
        "--priority-alpha", type=float, metavar="A", help="Exponent of the prioritized strategies.  [default: 0.6]"
    ),
    click.option(
        "--replay-ratio",
        type=float,
        metavar="R",
        help="Replayed examples per new one.  [default: 1, which is 10 and 10 in each step]",
    ),
    click.option(
        "--retrieval",
        type=click.Choice(["draw", "mir"]),
        help="draw: replay the drawn episodes. mir: draw more, and replay those that a step on the new examples would "
        "harm most.  [default: draw]",
    ),
    click.option(
        "--ewc/--no-ewc", default=None, help="Elastic weight consolidation.  [default: off; on in the preset stable]"
    ),
    click.option(
        "--preset",
        type=click.Choice(["default", "fast", "stable", "prioritized", "balanced"]),
        help="Use the replay settings of this preset. Single options override it.",
    ),
    click.option("--seed", type=int, help="Seed of the weights, the order of the stream and the draws.  [default: 0]"),
    click.option("--fresh", is_flag=True, help="Drop a former run in DB first."),
    click.option("--no-replay", is_flag=True, help="Train only without replay. DB is not touched."),
)
def train(
    db: str, dataset: str, fresh: bool, no_replay: bool, as_json: bool, preset: str | None, **settings: Any
) -> None:
    """Learn a dataset task by task, with replay through the memory.

    It takes one pass. Every step is one commit of new episodes, replayed losses and weights. You may kill the command
    at any point and start it again: it continues from the last commit and ends with the same weights, bit for bit
    (compare the sha256 that it prints). The table at the end shows the test accuracy on each task in percent, with and
    without replay.
    """
    from memstore.cli import report
    from memstore.learner import run_baseline, run_training, training_config

    where = shown_address(db)
    config = training_config(preset, **settings)
    baseline = run_baseline(config, dataset=dataset)
    if no_replay:
        result = None
    else:
        with report.training_progress(where) as on_progress:
            result = run_training(db, config, dataset=dataset, fresh=fresh, on_progress=on_progress)
    if as_json:
        print_json({"replay": result and result.to_dict(), "no_replay": baseline.to_dict()})
    else:
        report.print_training(where, result, baseline)


for each in (
    *(train, stats.stats, ask.history, ask.hardest, ask.forgotten, ask.domains, show.show, query.query, plot.plot),
    *(keep.check, keep.fold, keep.upgrade, keep.backup, keep.restore, keep.vacuum),
):
    main.add_command(each)


if __name__ == "__main__":
    main()
