"""``memstore plot``: losses, their trend, replays and domains as figures, on the terminal or as a PNG."""

from __future__ import annotations

import dataclasses
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np

from memstore.cli.common import BUFFER, DB, command, open_buffer, print_json
from memstore.cli.pictures import Floats
from memstore.cli.text import shown
from memstore.errors import ConfigError
from memstore.figures.figure import Figure, Series
from memstore.queries.records import LossTrend, ReplayShare

if TYPE_CHECKING:
    from memstore.memory import EpisodicMemory

MOST_LINES = 8
"""A figure has lines for at most this many domains."""
MOST_BARS = 20
"""A figure has bars for at most this many domains."""
MOST_LABEL = 30
"""A label is cut after this many characters."""
WIDE = 30
"""The axis is logarithmic if the largest loss is more than this many times the smallest."""


def losses_figure(memory: EpisodicMemory) -> Figure | None:
    """Return the number of episodes by the size of their loss; None if no loss was measured."""
    bins = memory.stats().loss_histogram
    if not bins:
        return None
    labels = tuple(f"{low:.3g} .. {high:.3g}" for low, high, _ in bins)
    counts = Series("episodes", labels, tuple(count for _, _, count in bins))
    return Figure("losses", "losses", "loss", "episodes", "bars", (counts,))


def trend_figure(memory: EpisodicMemory) -> Figure | None:
    """Return the mean loss in the course of the replays, with a line for each domain; None without replays."""
    trends = sorted(memory.loss_trend(), key=lambda trend: -int(trend.replays.sum()))
    if not trends:
        return None
    drawn = trends[:MOST_LINES]
    about = f", {MOST_LINES} domains of {len(trends)}" if len(trends) > MOST_LINES else ""
    by_step = not any(np.isnan(trend.step).any() for trend in drawn)
    start = min(float(trend.at[0]) for trend in drawn)

    def line(trend: LossTrend) -> Series:
        along = trend.step if by_step else trend.at - start
        return Series(trend.domain or "", tuple(along.tolist()), tuple(trend.loss.tolist()))

    x_label = "step" if by_step else "seconds since the first"
    title = f"mean loss of replays{about}"
    log = _spans_decades(np.concatenate([trend.loss for trend in drawn]))
    return Figure("trend", title, x_label, "loss", "lines", tuple(map(line, drawn)), log_y=log)


def _spans_decades(losses: Floats) -> bool:
    """Return True if a linear axis would show nothing but the largest losses."""
    known = losses[losses > 0]
    return len(known) > 0 and bool(known.max() > WIDE * known.min())


def replays_figure(memory: EpisodicMemory) -> Figure | None:
    """Return the number of live episodes by how often they were replayed. This scans the replay metadata."""
    from memstore.queries.aggregates import count
    from memstore.queries.columns import col

    found = memory.query().group_by(col.replay_count).aggregate(episodes=count()).arrays()
    if not len(found["episodes"]):
        return None
    # The bins are 0, 1, 2 .. 3, 4 .. 7, 8 .. 15 and so on.
    place = np.frexp(found["replay_count"].astype(np.float64))[1]
    counts = np.bincount(place, found["episodes"]).astype(int)
    series = Series("episodes", tuple(map(_bin_label, range(len(counts)))), tuple(counts.tolist()))
    return Figure("replays", "replays of live episodes", "replays", "episodes", "bars", (series,))


def _bin_label(place: int) -> str:
    if place < 2:
        return str(place)
    return f"{2 ** (place - 1)} .. {2**place - 1}"


def domains_figure(memory: EpisodicMemory) -> Figure | None:
    """Return each domain's share of the replays, beside its share of the draws under the present strategy."""
    shares = memory.replay_share()
    if not shares:
        return None
    drawn = shares[:MOST_BARS]
    about = f", {MOST_BARS} domains of {len(shares)}" if len(shares) > MOST_BARS else ""

    def bars(label: str, percent: Callable[[ReplayShare], float | None]) -> Series:
        known = [value for share in drawn if (value := percent(share)) is not None]
        return Series(label, tuple(share.domain for share in drawn), tuple(100 * value for value in known))

    series = [bars("replays", lambda share: share.replay_share)]
    if all(share.target is not None for share in drawn):
        series.append(bars("target", lambda share: share.target))
    return Figure("domains", f"share of the replays by domain{about}", "domain", "percent", "bars", tuple(series))


FIGURES: dict[str, Callable[[EpisodicMemory], Figure | None]] = {
    "losses": losses_figure,
    "trend": trend_figure,
    "replays": replays_figure,
    "domains": domains_figure,
}
"""The figures by the names that ``--what`` takes."""


@command(
    "memstore plot run.db --what trend --out trend.png",
    DB,
    BUFFER,
    click.option("--what", type=click.Choice(list(FIGURES)), help="Draw this figure.  [default: all of them]"),
    click.option("--out", metavar="FILE.png", help="Write a PNG instead of text. This needs matplotlib."),
)
def plot(db: str, buffer: str | None, what: str | None, out: str | None, as_json: bool) -> None:
    """Draw losses, their trend, replays and domains.

    losses is the number of episodes by the size of their loss, trend the mean loss of each domain in the course of the
    replays, replays the number of episodes by how often they were replayed, and domains each domain's share of the
    replays beside the share that the strategy aims at.

    Losses have the unit of the trainer, shares are in percent, and the trend runs over the trainer's steps; where
    replays have no step, it runs over seconds.
    """
    file = None if out is None else _png_file(out)
    with open_buffer(db, buffer) as memory:
        made = {name: FIGURES[name](memory) for name in ([what] if what else FIGURES)}
    figures = [figure for figure in made.values() if figure is not None]
    if file is not None:
        _write(figures, file)
    if as_json:
        print_json([dataclasses.asdict(figure) for figure in figures])
    elif file is not None:
        click.echo(f"written: {shown(str(file), 1000)}")
    else:
        click.echo("\n\n".join(f"{name}: nothing yet" if it is None else _text(it) for name, it in made.items()))


def _text(figure: Figure) -> str:
    from memstore.cli.strips import strips
    from memstore.figures import text

    if figure.kind == "bars":
        return text.figure(_cut_labels(figure))
    return strips(_cut_labels(figure), sys.stdout.encoding)


def _png_file(out: str) -> Path:
    file = Path(out)
    if file.suffix.lower() != ".png":
        raise ConfigError(f"--out writes a PNG; give a name that ends with .png, got {out!r}")
    if not file.parent.is_dir():
        raise ConfigError(f"--out {out!r}: there is no folder {str(file.parent)!r}")
    return file


def _write(figures: Sequence[Figure], file: Path) -> None:
    from memstore.figures.png import draw_panels

    if not figures:
        raise ConfigError(f"there is nothing to draw yet; {str(file)!r} was not written")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Glyph")  # the font lacks a letter, and a box is drawn in its place
            draw_panels([_cut_labels(figure) for figure in figures], file)
    except ImportError as exc:
        raise ConfigError("a PNG needs matplotlib: pip install 'memstore[plot]'; text needs nothing") from exc
    except OSError as exc:
        raise ConfigError(f"cannot write {str(file)!r}: {exc.strerror or exc}") from exc


def _cut_labels(figure: Figure) -> Figure:
    """Return the figure with labels that fit, and in which control characters are visible."""
    series = [
        dataclasses.replace(
            one,
            label=shown(one.label, MOST_LABEL),
            x=tuple(shown(x, MOST_LABEL) if isinstance(x, str) else x for x in one.x),
        )
        for one in figure.series
    ]
    return dataclasses.replace(figure, series=tuple(series))
