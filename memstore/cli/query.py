"""``memstore query``: any question about the episodes or the history, answered as a table, JSON or CSV."""

from __future__ import annotations

import csv
import io
import json
import sys
from typing import Any

import click

from memstore.cli.common import (
    BUFFER,
    COUNT,
    DB,
    command,
    console,
    open_buffer,
    print_json,
    print_unescaped,
    table_width,
)
from memstore.cli.tables import rows_table
from memstore.cli.text import shown, visible
from memstore.errors import InvalidValue
from memstore.queries.columns import EPISODE_COLUMNS, HISTORY_COLUMNS, Column, Descending, ExtraColumn, Over, col
from memstore.queries.parser import parse

QUERY_HELP = f"""Show the episodes, or the events, for which TEXT is true. Without TEXT, show all of them.

TEXT compares columns, as in  loss > 2 and (domain = 'math' or level in (3, 4)).  It is parsed into conditions and
never passed on as SQL. The columns of episodes are {", ".join(map(str, EPISODE_COLUMNS))}; TEXT may use tags too. The
history also has {", ".join(map(str, HISTORY_COLUMNS))}. Times are seconds since 1970, ages are counted in insertions.
"""
"""The help of the command, with the names of all columns."""


@command(
    """memstore query run.db "loss > 2 and domain = 'math'" --order -loss""",
    DB,
    click.argument("text", required=False),
    BUFFER,
    click.option("--history", "over_history", is_flag=True, help="Show events of the history instead of episodes."),
    click.option(
        "--order",
        metavar="COLUMN",
        help="Sort by this column, the smallest first; with - in front, the largest first. extra.a.b sorts by numbers.",
    ),
    click.option("--limit", type=COUNT, default=20, show_default=True, metavar="N", help="Show the first N."),
    click.option("--count", is_flag=True, help="Print only how many there are."),
    click.option("--select", metavar="A,B,C", help="Show only these columns; extra.a.b is a place in extra."),
    click.option(
        "--format",
        "form",
        type=click.Choice(["table", "json", "csv"]),
        default="table",
        show_default=True,
        help="Form in which rows are printed.",
    ),
    help=QUERY_HELP,
)
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
    """Show the episodes, or the events, for which a text is true."""
    form = "json" if as_json else form
    over: Over = "history" if over_history else "episodes"
    condition = None if text is None else parse(text, over=over)
    chosen = [] if select is None else [name.strip() for name in select.split(",")]
    columns = {f"column_{i}": _column(name) for i, name in enumerate(chosen)}
    with open_buffer(db, buffer) as memory:
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
        # The query reads one row more than the limit, to see if there are more.
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
    """Return the column of this name, or the place ``extra.key.key``."""
    first, *path = name.split(".")
    found = col[first]
    for key in path:
        if not isinstance(found, ExtraColumn):
            raise InvalidValue(f"{shown(name)!r} is not a column; only extra has places within")
        found = found[key]
    if isinstance(found, Column):
        return found
    raise InvalidValue(f"{first} cannot be selected or sorted by; use it in TEXT")


def _sorting(order: str) -> Column | Descending:
    column = _column(order.removeprefix("-"))
    if isinstance(column, ExtraColumn):
        column = column.number
    return column.descending if order.startswith("-") else column


def _print_csv(names: list[str], rows: list[tuple[Any, ...]]) -> None:
    """Print complete values. On a terminal, control characters are escaped."""
    written = io.StringIO()
    writer = csv.writer(written, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[_csv_cell(name, value) for name, value in zip(names, row, strict=True)] for row in rows])
    print_unescaped(written.getvalue())


def _csv_cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if name.startswith("extra") or not isinstance(value, str):
        return json.dumps(value)
    return visible(value) if sys.stdout.isatty() else value
