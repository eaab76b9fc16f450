"""The commands with ready-made questions: what was replayed, what is hard, what was forgotten, whose turn it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from memstore.cli.common import (
    MOST,
    as_json_option,
    buffer_option,
    console,
    opened,
    print_records,
    reporting,
    table_width,
)
from memstore.cli.tables import records_table, shares_table
from memstore.cli.text import parse_moment, shown
from memstore.queries.columns import MAX_INT
from memstore.queries.records import EpisodeSummary, ReplayEvent


def _as_moment(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    try:
        return None if text is None else parse_moment(text)
    except ValueError as exc:
        raise click.BadParameter(str(exc), context, parameter) from None


def _as_steps(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """First and last step, as far away as there are any where one is left out."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    try:
        if not colon:
            return int(first), int(first)
        return (int(first) if first else -MAX_INT), (int(last) if last else MAX_INT)
    except ValueError:
        message = f"{shown(text)!r} is no range of steps; give A:B, A:, :B or A"
        raise click.BadParameter(message, context, parameter) from None


@click.command(epilog="Example:  memstore history run.db --domain math --since 10m")
@click.argument("db")
@buffer_option
@click.option("--episode", type=int, metavar="ID", help="Of this episode, live or not.")
@click.option("--domain", metavar="D", help="Of episodes of this domain.")
@click.option("--consumer", metavar="C", help="What this consumer replayed or removed.")
@click.option("--steps", callback=_as_steps, metavar="A:B", help="In these steps of the trainer, both inclusive.")
@click.option("--since", callback=_as_moment, metavar="T", help="From T on: seconds, an ISO time, or an age (10m).")
@click.option("--until", callback=_as_moment, metavar="T", help="Until T, likewise (2h, '3d ago').")
@click.option("--limit", type=MOST, default=20, show_default=True, metavar="N", help="The newest so many.")
@as_json_option
@reporting
def history(db: str, buffer: str | None, limit: int, as_json: bool, **wanted: Any) -> None:
    """Show what was replayed, with the loss before and after, and what left and why; the newest last."""
    with opened(db, buffer) as memory:
        events = memory.history(**wanted, limit=limit)
    if as_json:
        print_records(events)
    elif events:
        _print_table(events, ReplayEvent)
    else:
        click.echo("no such events")


def _print_table(records: Sequence[Any], kind: type) -> None:
    out = console()
    out.print(records_table(records, kind, width=table_width(out)))


how_many_option = click.option(
    "-n", "n", type=MOST, default=10, show_default=True, metavar="N", help="At most so many episodes."
)


@click.command(epilog="Example:  memstore hardest run.db -n 5")
@click.argument("db")
@buffer_option
@how_many_option
@as_json_option
@reporting
def hardest(db: str, buffer: str | None, n: int, as_json: bool) -> None:
    """Show the episodes with the largest losses, largest first."""
    with opened(db, buffer) as memory:
        episodes = memory.hardest(n)
    _print_episodes(episodes, as_json, "no episode has a loss yet")


@click.command(epilog="Example:  memstore forgotten run.db -n 5")
@click.argument("db")
@buffer_option
@how_many_option
@as_json_option
@reporting
def forgotten(db: str, buffer: str | None, n: int, as_json: bool) -> None:
    """Show the episodes whose loss has risen furthest above its lowest, furthest first."""
    with opened(db, buffer) as memory:
        episodes = memory.forgotten(n)
    _print_episodes(episodes, as_json, "no loss is above its lowest")


def _print_episodes(episodes: list[EpisodeSummary], as_json: bool, nothing: str) -> None:
    if as_json:
        print_records(episodes)
    elif episodes:
        _print_table(episodes, EpisodeSummary)
    else:
        click.echo(nothing)


@click.command(epilog="Example:  memstore domains run.db")
@click.argument("db")
@buffer_option
@as_json_option
@reporting
def domains(db: str, buffer: str | None, as_json: bool) -> None:
    """Show what each domain has of the episodes and of the replays, against what the strategy aims at."""
    with opened(db, buffer) as memory:
        shares = memory.replay_share()
    if as_json:
        print_records(shares)
    elif shares:
        out = console()
        out.print(shares_table(shares, width=table_width(out)))
    else:
        click.echo("nothing added yet")
