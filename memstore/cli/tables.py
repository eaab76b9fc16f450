"""Rows as rich tables. All cells are text, never markup."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich import box
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from memstore.cli.text import MISSING, shown, value_text
from memstore.queries.columns import NAMES, col
from memstore.queries.records import ReplayShare

BAR_WIDTH = 32
"""The longest bar has this many characters."""

DISPENSABLE = (
    "weight",
    "probability",
    "consumer",
    "strategy",
    "last_replayed_at",
    "key",
    "extra",
    "age",
    "level",
    "timestamp",
)
"""A narrow terminal leaves out these columns, in this order."""


def rows_table(
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    *,
    title: str = "",
    sparse: bool = False,
    width: int | None = None,
) -> Table:
    """Return rows under the names of their columns, numbers to the right.

    ``sparse`` leaves out columns without a value. If ``width`` is given, the width of the terminal, it also leaves out
    columns of ``DISPENSABLE`` for which there is no room.
    """
    columns = [_TextColumn.of(name, [row[i] for row in rows], width is not None) for i, name in enumerate(names)]
    left_out: list[str] = []
    if sparse:
        columns = [column for column in columns if column.is_known]
        left_out = _columns_without_room(columns, width)
    table = _table(title)
    if left_out:
        table.caption = Text(f"no room for {', '.join(left_out)}; --json shows all")
    kept = [column for column in columns if column.name not in left_out]
    for column in kept:
        table.add_column(Text(column.header), justify="right" if column.is_number else "left", overflow="fold")
    for row in zip(*(column.cells for column in kept), strict=True):
        table.add_row(*map(Text, row))
    return table


@dataclass(frozen=True, slots=True)
class _TextColumn:
    """A column as texts."""

    name: str
    header: str
    cells: list[str]
    is_number: bool
    is_known: bool

    @classmethod
    def of(cls, name: str, values: Sequence[Any], narrow: bool) -> _TextColumn:
        is_time = name in NAMES and getattr(getattr(col, name), "is_time", False)
        cells = [value_text(value, is_time=is_time) for value in values]
        if is_time and narrow:
            today = f"{datetime.now():%Y-%m-%d} "
            if all(cell.startswith(today) or cell == MISSING for cell in cells):
                cells = [cell.removeprefix(today) for cell in cells]
        is_number = not is_time and all(isinstance(value, (int, float, type(None))) for value in values)
        header = shown(name).replace("_", "\n") if narrow else shown(name)
        return cls(name, header, cells, is_number, any(value is not None for value in values))

    @property
    def width(self) -> int:
        return max(map(cell_len, [*self.header.split("\n"), *self.cells])) + 2


def _columns_without_room(columns: Sequence[_TextColumn], width: int | None) -> list[str]:
    left_out: list[str] = []
    needed = {column.name: column.width for column in columns}
    for name in DISPENSABLE:
        if width is None or sum(needed.values()) <= width:
            break
        if needed.pop(name, None) is not None:
            left_out.append(name)
    return left_out


def _table(title: str = "") -> Table:
    return Table(box=box.SIMPLE_HEAD, title=Text(shown(title)) if title else None, padding=(0, 1, 0, 0), pad_edge=False)


def records_table(records: Sequence[Any], names: Sequence[str], *, title: str = "", width: int | None = None) -> Table:
    """Return these attributes of records as a table, without the columns in which no record has a value."""
    rows = [[getattr(record, name) for name in names] for record in records]
    return rows_table(names, rows, title=title, sparse=True, width=width)


def shares_table(shares: Sequence[ReplayShare], *, width: int | None = None) -> Table:
    """Return each domain's share of the episodes and of the replays as a table."""
    table = _table()
    table.add_column("domain", overflow="fold")
    for header in ("episodes", "share", "never measured", "mean loss", "replays", "share of replays", "target share"):
        table.add_column(header if width is None else header.replace(" ", "\n"), justify="right", overflow="fold")
    for share in shares:
        table.add_row(
            Text(shown(share.domain)),
            f"{share.episodes:,}",
            f"{share.episode_share:.1%}",
            f"{share.unmeasured:,}",
            value_text(share.mean_loss),
            f"{share.replays:,}",
            f"{share.replay_share:.1%}",
            MISSING if share.target is None else f"{share.target:.1%}",
        )
    return table


def bars_table(title: str, counts: Sequence[tuple[str, int]]) -> Table:
    """Return counts as a table, with a bar for each."""
    table = _table()
    table.add_column(title, overflow="fold")
    table.add_column("episodes", justify="right")
    table.add_column("", no_wrap=True)
    most = max(count for _, count in counts) or 1
    for name, count in counts:
        bar = "█" * max(round(BAR_WIDTH * count / most), 1 if count else 0)
        table.add_row(Text(shown(name)), f"{count:,}", bar)
    return table


def facts_table(title: str, facts: dict[str, str]) -> Table:
    """Return names and texts as a table of two columns."""
    table = Table(box=box.SIMPLE, title=Text(shown(title)), show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, fact in facts.items():
        table.add_row(name, Text(fact))
    return table
