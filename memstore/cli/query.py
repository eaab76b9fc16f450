"""``memstore query``: any question about the episodes or the history, as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import click

from memstore.cli.common import (
    MOST,
    as_json_option,
    buffer_option,
    console,
    opened,
    print_complete,
    print_json,
    reporting,
    table_width,
)
from memstore.cli.tables import rows_table
from memstore.cli.text import shown, visible
from memstore.errors import InvalidValue
from memstore.queries.columns import EPISODE_COLUMNS, HISTORY_COLUMNS, Column, Descending, ExtraColumn, Over, col
from memstore.queries.parser import parse

QUERY_HELP = f"""Show the episodes, or events, that TEXT is true of; without TEXT all of them.

TEXT compares columns, as in  loss > 2 and (domain = 'math' or level in (3, 4)).  It is read into conditions, never
passed on as SQL. The columns of episodes are {", ".join(map(str, EPISODE_COLUMNS))}; in TEXT also tags. The
history has {", ".join(map(str, HISTORY_COLUMNS))} besides.
"""


@click.command(
    help=QUERY_HELP, epilog="""Example:  memstore query run.db "loss > 2 and domain = 'math'" --order -loss"""
)
@click.argument("db")
@click.argument("text", required=False)
@buffer_option
@click.option("--history", "over_history", is_flag=True, help="Ask for events of the history, not for episodes.")
@click.option("--order", metavar="COLUMN", help="Sort by it, with - in front the largest first; extra.a.b as numbers.")
@click.option("--limit", type=MOST, default=20, show_default=True, metavar="N", help="The first so many.")
@click.option("--count", is_flag=True, help="Print how many there are, and nothing of them.")
@click.option("--select", metavar="A,B,C", help="These columns alone; extra.a.b is a place in extra.")
@click.option(
    "--format",
    "form",
    type=click.Choice(["table", "json", "csv"]),
    default="table",
    show_default=True,
    help="How rows are printed.",
)
@as_json_option
@reporting
def query(
    db: str,
    text: str | None,
    buffer: str | None,
    over_history: bool,
    order: str | None,
    limit: int,
    count: bool,
    select: str | None,
    form: str,
    as_json: bool,
) -> None:
    """Show the episodes, or events, that a text is true of."""
    form = "json" if as_json else form
    over: Over = "history" if over_history else "episodes"
    condition = None if text is None else parse(text, over=over)
    chosen = [] if select is None else [name.strip() for name in select.split(",")]
    columns = {f"column_{i}": _column(name) for i, name in enumerate(chosen)}
    with opened(db, buffer) as memory:
        asked = memory.query(over)
        if condition is not None:
            asked = asked.filter(condition)
        if count:
            number = asked.count()
            print_json({"count": number}) if form == "json" else click.echo(number)
            return
        if order is not None:
            asked = asked.order_by(_sorting(order))
        if chosen:
            asked = asked.select(**columns)
        # One more, to tell whether there are more.
        result = asked.limit(limit + 1).result()
    names, rows = chosen or [field.name for field in result.fields], result.rows[:limit]
    if form == "json":
        print_json([dict(zip(names, row, strict=True)) for row in rows])
    elif form == "csv":
        _print_csv(names, rows)
    else:
        _print_table(names, rows, whole=bool(chosen), more=len(result.rows) > limit)


def _print_table(names: list[str], rows: list[tuple[Any, ...]], *, whole: bool, more: bool) -> None:
    if not rows:
        click.echo("nothing found")
        return
    out = console()
    out.print(rows_table(names, rows, sparse=not whole, width=table_width(out)))
    if more:
        click.echo(f"the first {len(rows)}; --limit shows more, --count says how many")


def _column(name: str) -> Column:
    """The column of this name, or the place ``extra.key.key``."""
    first, *path = name.split(".")
    found = col[first]
    for key in path:
        if not isinstance(found, ExtraColumn):
            raise InvalidValue(f"{shown(name)!r} is no column; only extra has something within")
        found = found[key]
    if isinstance(found, Column):
        return found
    raise InvalidValue(f"{first} can be asked for in the text, not selected or sorted by")


def _sorting(order: str) -> Column | Descending:
    column = _column(order.removeprefix("-"))
    if isinstance(column, ExtraColumn):
        column = column.number
    return column.descending if order.startswith("-") else column


def _print_csv(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    """Print complete values; only where a terminal would obey what is in them, as escapes."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[_csv_cell(name, value) for name, value in zip(names, row, strict=True)] for row in rows])
    print_complete(written.getvalue())


def _csv_cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.startswith("extra") or not isinstance(value, str):
        return json.dumps(value)
    return visible(value) if sys.stdout.isatty() else value
