"""``python -m experiments NAME``: repeat an experiment whose outcome is published."""

from __future__ import annotations

from pathlib import Path

import click

from experiments.experiment import EXPERIMENTS, experiment_named
from experiments.progress import experiment_progress
from experiments.report import JSON, TEXT
from experiments.runner import run_experiment
from memstore.cli.common import EXIT_CODES, as_json_option, reporting
from memstore.cli.output import safe_streams


@click.command(
    epilog=f"Example:  python -m experiments split-digits --quick   {EXIT_CODES}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.argument("name", metavar="NAME", type=click.Choice(list(EXPERIMENTS)))
@click.option("--out", metavar="DIR", help="Where results and report go.  [default: NAME, or NAME-quick]")
@click.option("--quick", is_flag=True, help="The version of seconds: fewer arms and seeds.")
@click.option("--seeds", type=int, metavar="N", help="Seeds for each arm.  [default: the experiment's own number]")
@click.option("--jobs", type=int, default=1, show_default=True, metavar="N", help="Trials at a time.")
@as_json_option
@reporting
def main(name: str, out: str | None, quick: bool, seeds: int | None, jobs: int, as_json: bool) -> None:
    """Repeat an experiment whose outcome is published, through the memory, and print what comes of it. NAME is one of

    \b
    split-digits       what replay keeps of earlier tasks, and what a crash costs
    cliffwalk          how many updates prioritized draws save, and their bias
    imbalanced-digits  what draws do for rare classes, and for wrong labels

    Tables, figures and findings, whether they hold or not, go to DIR as report.txt and report.json, figures also as
    PNG where matplotlib is installed. Every finished trial is kept: stopped or killed, the same command continues.
    """
    folder = Path(out or (f"{name}-quick" if quick else name))
    with experiment_progress(folder) as on_progress:
        run_experiment(experiment_named(name), folder, quick=quick, seeds=seeds, jobs=jobs, on_progress=on_progress)
    click.echo((folder / (JSON if as_json else TEXT)).read_text(encoding="utf-8"), nl=False)


if __name__ == "__main__":
    with safe_streams():
        main()
