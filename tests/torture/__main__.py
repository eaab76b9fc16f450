"""``python -m tests.torture``: injected faults for a time, and a table of what came of them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import click
from rich.console import Console
from rich.progress import Progress

from tests.support.binaries import NoPostgres
from tests.support.postgres import PostgresServer, find_server
from tests.torture.outcome import Outcome
from tests.torture.program import Kind, Program
from tests.torture.trials import damage, files, interrupts, kills, processes

KINDS: dict[str, Kind] = {
    "kill": Kind(kills.killed_while_working, share=2.0),
    "kill-on-server": Kind(kills.killed_while_working_on_a_server, needs_server=True),
    "kill-creating": Kind(kills.killed_while_creating),
    "kill-creating-on-server": Kind(kills.killed_while_creating_on_a_server, needs_server=True),
    "cut-connections": Kind(kills.connections_cut, needs_server=True),
    "crash-server": Kind(kills.server_killed, needs_server=True),
    "torn-log": Kind(files.torn_log, share=2.0),
    "flipped-bits": Kind(damage.flipped_bits, share=2.0),
    "hostile-files": Kind(damage.hostile_files),
    "full-disk": Kind(files.full_disk),
    "interrupt": Kind(interrupts.interrupted),
    "interrupt-on-server": Kind(interrupts.interrupted_on_a_server, needs_server=True),
    "processes": Kind(processes.mixed_on_a_file, share=1.5),
    "processes-on-server": Kind(processes.mixed_on_a_server, needs_server=True),
}

COUNTS = ("trials", "faults", "acknowledged", "lost", "wrong", "hung", "foreign")

console = Console()


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0, min_open=True), default=10.0, show_default=True)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the whole run, or with --one of one trial.")
@click.option("--jobs", type=click.IntRange(min=1), default=2, show_default=True, help="Trials side by side.")
@click.option("--only", multiple=True, type=click.Choice(sorted(KINDS)), help="Only this kind; may be repeated.")
@click.option("--one", type=click.Choice(sorted(KINDS)), help="One trial of this kind, as a finding names it.")
def main(minutes: float, seed: int, jobs: int, only: tuple[str, ...], one: str | None) -> None:
    """Inject faults into memstore for a time, and tell what came of them.

    Processes are killed, logs torn, bits flipped, disks filled, calls interrupted, hostile files opened, and many
    processes share one buffer, in proportion. Each finding names the command that repeats its trial. The exit code is 1
    if anything was lost, wrong, hung, or ended in an error that is not memstore's.
    """
    names = [one] if one else list(only) or list(KINDS)
    with _server(any(KINDS[name].needs_server for name in names)) as server:
        if server is None:
            names = [name for name in names if not KINDS[name].needs_server]
        program = Program({name: KINDS[name] for name in names}, server, jobs)
        if one:
            program.start(one, seed)
            while not program.outcomes[one].trials:
                program.collect(0.2)
        else:
            with _progress(minutes) as told:
                program.run(60 * minutes, seed, told)
    sys.exit(0 if _report(program.outcomes, seed) else 1)


@contextmanager
def _server(wanted: bool) -> Iterator[PostgresServer | None]:
    try:
        server = find_server() if wanted else None
    except NoPostgres as exc:
        console.print(f"without PostgreSQL: {exc}", markup=False)
        server = None
    with server or nullcontext():
        yield server


@contextmanager
def _progress(minutes: float) -> Iterator[Callable[[float], None]]:
    with Progress(console=console, disable=not console.is_terminal, transient=True) as bar:
        task = bar.add_task(f"{minutes:g} minutes", total=60 * minutes)
        yield lambda elapsed: bar.update(task, completed=elapsed)


def _report(outcomes: dict[str, Outcome], seed: int) -> bool:
    widths = [max(map(len, outcomes)), *(max(len(name), 7) for name in COUNTS)]
    total = Outcome()
    for outcome in outcomes.values():
        total.add(outcome)
    _print_row(widths, f"seed {seed}", COUNTS)
    for kind, outcome in [*outcomes.items(), ("all", total)]:
        _print_row(widths, kind, [f"{getattr(outcome, name):,}" for name in COUNTS])
    for finding in total.findings:
        console.print(finding, markup=False, soft_wrap=True)
    # In the words that runners of tests close with.
    failed = total.lost + total.wrong + total.hung + total.foreign
    console.print(f"torture: {total.trials - failed} passed, {failed} failed", highlight=False)
    return total.sound


def _print_row(widths: Sequence[int], first: str, rest: Sequence[str]) -> None:
    cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True))]
    console.print("  ".join(cells), markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
