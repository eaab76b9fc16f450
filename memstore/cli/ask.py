"""The commands with ready-made questions: history, hardest, forgotten, domains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, fields
from typing import Any

import click

from memstore.cli.common import BUFFER, COUNT, DB, command, console, open_buffer, print_json, table_width
from memstore.cli.tables import records_table, shares_table
from memstore.cli.text import parse_moment, shown
from memstore.queries.columns import EPISODE_COLUMNS, MAX_INT
from memstore.queries.records import ReplayEvent


def _as_moment(context: click.Context, parameter: click.Parameter, text: str | None) -> float | None:
    try:
        return None if text is None else parse_moment(text)
    except ValueError as exc:
        raise click.BadParameter(str(exc), context, parameter) from None


def _as_steps(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    """Return the first and the last step. A step that is left out is the furthest that there can be."""
    if text is None:
        return None
    first, colon, last = text.partition(":")
    try:
        if not colon:
            return int(first), int(first)
        return (int(first) if first else -MAX_INT), (int(last) if last else MAX_INT)
    except ValueError:
        message = f"{shown(text)!r} is not a range of steps; give A:B, A:, :B or A"
        raise click.BadParameter(message, context, parameter) from None


@command(
    "memstore history run.db --domain math --since 10m",
    DB,
    BUFFER,
    click.option("--episode", type=int, metavar="ID", help="Only events of this episode, live or not."),
    click.option("--domain", metavar="D", help="Only events of episodes of this domain."),
    click.option("--consumer", metavar="C", help="Only replays and removals by this consumer."),
    click.option("--steps", callback=_as_steps, metavar="A:B", help="Only the trainer's steps A to B, both inclusive."),
    click.option(
        "--since",
        callback=_as_moment,
        metavar="T",
        help="Only events from T on: seconds since 1970, an ISO time (local), or an age such as 10m.",
    ),
    click.option("--until", callback=_as_moment, metavar="T", help="Only events until T, such as 2h or '3d ago'."),
    click.option("--limit", type=COUNT, default=20, show_default=True, metavar="N", help="Show the N newest events."),
)
def history(db: str, buffer: str | None, limit: int, as_json: bool, **wanted: Any) -> None:
    """Show replays and departures, the newest last.

    A replay has the loss before and after, in the trainer's unit, and a departure its reason. Times are local. In an
    age, s is seconds, m minutes, h hours, d days and w weeks.
    """
    with open_buffer(db, buffer) as memory:
        events = memory.history(**wanted, limit=limit)
    _print_answer(events, [field.name for field in fields(ReplayEvent)], as_json, "no such events")


def _print_answer(records: Sequence[Any], names: Sequence[str], as_json: bool, nothing: str) -> None:
    """Print these attributes of the records, as JSON or as a table. If there are no records, print ``nothing``."""
    if as_json:
        print_json([{name: getattr(record, name) for name in names} for record in records])
    elif records:
        out = console()
        out.print(records_table(records, names, width=table_width(out)))
    else:
        click.echo(nothing)


HOW_MANY = click.option(
    "-n", "n", type=COUNT, default=10, show_default=True, metavar="N", help="Show N episodes at most."
)
"""This option gives the number of episodes."""

EPISODE = [column.name for column in EPISODE_COLUMNS]
"""Attributes of an episode that are shown."""


@command("memstore hardest run.db -n 5", DB, BUFFER, HOW_MANY)
def hardest(db: str, buffer: str | None, n: int, as_json: bool) -> None:
    """Show the episodes with the largest losses.

    The largest is first. Losses have the trainer's unit, times are local, and ages are counted in insertions.
    """
    with open_buffer(db, buffer) as memory:
        episodes = memory.hardest(n)
    _print_answer(episodes, EPISODE, as_json, "no episode has a loss yet")


@command("memstore forgotten run.db -n 5", DB, BUFFER, HOW_MANY)
def forgotten(db: str, buffer: str | None, n: int, as_json: bool) -> None:
    """Show the episodes whose loss rose most since its lowest value.

    The one that rose most is first. Losses have the trainer's unit, times are local, and ages are counted in
    insertions.
    """
    with open_buffer(db, buffer) as memory:
        episodes = memory.forgotten(n)
    _print_answer(episodes, EPISODE, as_json, "no loss is above its lowest")


@command("memstore domains run.db", DB, BUFFER)
def domains(db: str, buffer: str | None, as_json: bool) -> None:
    """Show each domain's share of the episodes and replays.

    Beside them stands the share that the strategy aims at. Shares are in percent, losses in the trainer's unit.
    """
    with open_buffer(db, buffer) as memory:
        shares = memory.replay_share()
    if as_json:
        print_json([asdict(share) for share in shares])
    elif shares:
        out = console()
        out.print(shares_table(shares, width=table_width(out)))
    else:
        click.echo("nothing added yet")
