"""``python -m experiments NAME``: repeat a published experiment."""

from __future__ import annotations

from pathlib import Path

import click

from experiments.experiment import EXPERIMENTS, experiment_named
from experiments.progress import experiment_progress
from experiments.report import JSON, TEXT
from experiments.runner import run_experiment
from memstore.cli.common import EXIT_CODES, as_json_option, report_errors
from memstore.cli.output import safe_streams


@click.command(
    epilog=f"Example:  python -m experiments split-digits --quick   {EXIT_CODES}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("name", metavar="NAME", type=click.Choice(list(EXPERIMENTS)))
@click.option("--out", metavar="DIR", help="Folder of the results and the report.  [default: NAME, or NAME-quick]")
@click.option("--quick", is_flag=True, help="Run a version of seconds, with fewer arms and seeds.")
@click.option("--seeds", type=int, metavar="N", help="Seeds for each arm.  [default: the experiment's own number]")
@click.option("--jobs", type=int, default=1, show_default=True, metavar="N", help="Run N trials at the same time.")
@as_json_option
@report_errors
def main(name: str, out: str | None, quick: bool, seeds: int | None, jobs: int, as_json: bool) -> None:
    """Repeat a published experiment through the memory, and print the report. NAME is one of

    \b
    split-digits       how much of earlier tasks replay keeps, and what a crash costs
    cliffwalk          how many updates prioritized draws save, and how biased they are
    imbalanced-digits  what draws do for rare classes, and for wrong labels

    Tables, figures and findings, whether they hold or not, are written to DIR as report.txt and report.json. With
    matplotlib installed, figures are written as PNG too. Every finished trial is kept: after a stop or a kill, the same
    command continues.
    """
    folder = Path(out or (f"{name}-quick" if quick else name))
    with experiment_progress(folder) as on_progress:
        run_experiment(experiment_named(name), folder, quick=quick, seeds=seeds, jobs=jobs, on_progress=on_progress)
    click.echo((folder / (JSON if as_json else TEXT)).read_text(encoding="utf-8"), nl=False)


if __name__ == "__main__":
    with safe_streams():
        main()
