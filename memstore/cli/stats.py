"""``memstore stats``: the health of a buffer, once or repeatedly."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
from rich.console import Group, RenderableType
from rich.live import Live

from memstore.cli.common import ALL_BUFFERS, DB, ask_each_buffer, command, console, print_json
from memstore.cli.tables import bars_table, facts_table
from memstore.cli.text import number, shown, size_text, visible
from memstore.types import ReplayStats

if TYPE_CHECKING:
    from memstore.memory import EpisodicMemory

MOST_DOMAINS = 20
"""At most this many domains have a bar."""


@dataclass(frozen=True, slots=True)
class Look:
    """The statistics of a buffer at one moment, and the rates since the look before; the first look has no rates."""

    stats: ReplayStats
    at: float
    added_per_s: float | None = None
    replayed_per_s: float | None = None

    def after(self, former: Look | None) -> Look:
        """Return the same look with the rates since the former one."""
        if former is None or self.at <= former.at:
            return self
        seconds = self.at - former.at
        added = self.stats.total_inserted - former.stats.total_inserted
        replayed = self.stats.total_events - former.stats.total_events
        return Look(self.stats, self.at, added / seconds, replayed / seconds)

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics and rates as plain dicts, lists and numbers."""
        return {**self.stats.to_dict(), "added_per_s": self.added_per_s, "replayed_per_s": self.replayed_per_s}


@command(
    "memstore stats run.db --watch",
    DB,
    ALL_BUFFERS,
    click.option(
        "--exact",
        is_flag=True,
        help="Read all losses. Without it, quantiles are those of 512 blocks of up to 80 episodes.",
    ),
    click.option(
        "--watch",
        "every",
        is_flag=False,
        flag_value=2.0,
        type=click.FloatRange(0.1, 86400.0),
        metavar="[SECONDS]",
        help="Look again every 2 seconds, or every SECONDS, and show rates, until Ctrl-C.",
    ),
)
def stats(db: str, buffer: str | None, exact: bool, every: float | None, as_json: bool) -> None:
    """Show the health of each buffer.

    It prints size, losses, domains, replays and disk space. Losses have the trainer's unit. Rates are per second. Sizes
    are in B, KiB, MiB or GiB (1 KiB = 1,024 bytes).
    """
    if every is None:
        found = ask_each_buffer(db, buffer, lambda memory: memory.stats(exact=exact))
        if as_json:
            print_json([item.to_dict() for item in found])
        else:
            console().print(*(stats_view(item) for item in found), sep="")
        return

    def look(memory: EpisodicMemory) -> Look:
        return Look(memory.stats(exact=exact), time.monotonic())

    looks = _looks(lambda: ask_each_buffer(db, buffer, look), every)
    try:
        if as_json:
            for seen in looks:
                print_json([one.to_dict() for one in seen], indent=None)
        else:
            _show_live(looks)
    except KeyboardInterrupt:
        return


def _looks(look: Callable[[], list[Look]], every: float) -> Iterator[list[Look]]:
    """Yield the looks at all buffers, without end."""
    former: dict[str, Look] = {}
    while True:
        seen = [one.after(former.get(one.stats.buffer)) for one in look()]
        former = {one.stats.buffer: one for one in seen}
        yield seen
        time.sleep(every)


def _show_live(looks: Iterator[list[Look]]) -> None:
    out = console()
    if not out.is_terminal:
        for seen in looks:
            out.print(_look_view(seen))
        return
    with Live(console=out, auto_refresh=False) as live:
        for seen in looks:
            live.update(_look_view(seen), refresh=True)


def _look_view(seen: list[Look]) -> RenderableType:
    return Group(*(stats_view(one.stats, rates=_rates(one)) for one in seen))


def _rates(look: Look) -> str:
    if look.added_per_s is None or look.replayed_per_s is None:
        return "from the next look on"
    return f"{look.added_per_s:,.1f} added/s, {look.replayed_per_s:,.1f} replayed/s"


def stats_view(stats: ReplayStats, *, rates: str | None = None) -> RenderableType:
    """Return one buffer as a table, with its domains and losses as bars."""
    about = "" if stats.loss_quantiles_exact else "  (of 512 blocks; --exact reads all)"
    facts = {
        "episodes": f"{stats.buffer_size:,} of {stats.capacity:,}",
        "inserted / left": f"{stats.total_inserted:,} / {stats.total_evicted:,}",
        "never measured": f"{stats.unmeasured:,}",
        "replays": f"{stats.total_replays:,} of live episodes, {stats.total_events:,} ever",
        "loss": f"mean {number(stats.avg_loss)}, largest priority ever {number(stats.max_priority)}",
        "quantiles": "  ".join(f"{q} {loss:.3g}" for q, loss in stats.loss_quantiles.items()) + about,
        "strategy": f"{stats.strategy}, alpha {stats.alpha:g}, epsilon {stats.epsilon:g}",
        "eviction": stats.eviction + (f", {stats.max_replays} replays at most" if stats.max_replays else ""),
        "leased": f"{stats.leased:,}",
        "limiter": _limiter(stats.limiter),
        "payload": shown(stats.signature, 1000) if stats.signature else "nothing added yet",
        "on disk": "  ".join(f"{part} {size_text(size)}" for part, size in stats.bytes_on_disk.items()),
        "since the fold": f"{stats.unfolded:,} entries of the log, payloads of {size_text(stats.unfolded_bytes)}",
        "schema": f"{stats.schema_version}, revision {stats.revision:,}",
    }
    facts |= {f"note {i}" if i > 1 else "note": visible(note) for i, note in enumerate(stats.notes, 1)}
    if rates is not None:
        facts = {"rates": rates, **facts}
    parts: list[RenderableType] = [facts_table(f"buffer {stats.buffer}", facts)]
    if stats.domain_distribution:
        largest = sorted(stats.domain_distribution.items(), key=lambda item: -item[1])
        parts.append(bars_table("domain", largest[:MOST_DOMAINS]))
    if stats.loss_histogram:
        bins = [(f"{low:.3g} .. {high:.3g}", count) for low, high, count in stats.loss_histogram]
        parts.append(bars_table("loss", bins))
    return Group(*parts)


def _limiter(account: dict[str, float] | None) -> str:
    return "none" if account is None else "  ".join(f"{name} {value:,g}" for name, value in account.items())
