"""``memstore show``: one whole episode, with its payload drawn and its history."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.text import Text

from memstore.cli.common import (
    BUFFER,
    DB,
    EXIT_FOUND,
    command,
    console,
    open_buffer,
    picture_width,
    print_json,
    table_width,
)
from memstore.cli.payload import field_json, leaves, print_leaf
from memstore.cli.pictures import sparkline
from memstore.cli.tables import facts_table, records_table
from memstore.cli.text import moment, number, shown, value_text
from memstore.errors import EpisodeNotFound
from memstore.queries.records import ReplayEvent
from memstore.types import Episode

MOST_TEXT = 400
"""Tags and extra are cut after this many characters."""
LAST_EVENTS = 5
"""The newest events are shown, at most this many."""
REPLAYED = "replayed"
"""The history has this word for a replay. Events with another word are departures."""


@command("memstore show run.db 4711", DB, click.argument("episode_id", metavar="ID", type=int), BUFFER)
def show(db: str, episode_id: int, buffer: str | None, as_json: bool) -> None:
    """Show one episode whole, with its history.

    It prints the columns, the payload with pictures or curves, and the replays. Times are local, losses have the
    trainer's unit.

    If the episode has left the memory, show its history; the exit code is 1 then. In JSON, an array has a dtype, a
    shape and values; a number that is not finite is a text, a complex number a pair, and bytes are base64.
    """
    with open_buffer(db, buffer) as memory:
        try:
            episode = memory.get(episode_id)
        except EpisodeNotFound:
            episode = None
        events = memory.history(episode=episode_id)
    if as_json:
        print_json(_as_json(episode_id, episode, events))
    elif episode is not None:
        _print_episode(console(), episode, events)
    elif events:
        _print_departed(console(), episode_id, events)
    else:
        click.echo(f"memstore: no episode {episode_id} is live, and the history knows none", err=True)
    if episode is None:
        sys.exit(EXIT_FOUND)


def _print_episode(out: Console, episode: Episode, events: list[ReplayEvent]) -> None:
    replays = f"{episode.replay_count:,}"
    if episode.last_replayed_at is not None:
        replays += f", last {moment(episode.last_replayed_at)}"
    facts = {
        "domain": shown(episode.domain),
        "time": moment(episode.timestamp),
        "level": value_text(episode.level),
        "tags": value_text(", ".join(map(shown, episode.tags)) or None, most=MOST_TEXT),
        "key": value_text(episode.key),
        "extra": value_text(episode.extra, most=MOST_TEXT),
        "loss": "never measured" if episode.loss is None else number(episode.loss),
        "replays": replays,
    }
    out.print(facts_table(f"episode {episode.id}", facts))
    for leaf in leaves(episode.payload):
        print_leaf(out, leaf)
    _print_life(out, events)


def _print_departed(out: Console, episode_id: int, events: list[ReplayEvent]) -> None:
    departures = [event for event in events if event.what != REPLAYED]
    if departures:
        last = departures[-1]
        why = f" ({shown(last.reason)})" if last.reason else ""
        who = f" by {shown(last.consumer)}" if last.consumer else ""
        fate = f"{shown(last.what)}{why} at {moment(last.at)}{who}"
    else:
        fate = "when it left is not in the history"
    out.print(Text(f"episode {episode_id} is no longer live: {fate}"))
    _print_life(out, events)


def _print_life(out: Console, events: list[ReplayEvent]) -> None:
    replays = [event for event in events if event.what == REPLAYED]
    known = (*(event.loss_before for event in replays[:1]), *(event.loss_after for event in replays))
    losses = [loss for loss in known if loss is not None]
    if losses:
        ends = f"{number(losses[0])} .. {number(losses[-1])}"
        line = sparkline(np.array(losses), picture_width(out) - len(ends) - 10)
        out.print(Text(f"losses  {line}  {ends}"))
    if events:
        names = [field.name for field in dataclasses.fields(ReplayEvent)]
        title = f"the last {LAST_EVENTS} of {len(events):,} events" if len(events) > LAST_EVENTS else "history"
        out.print(records_table(events[-LAST_EVENTS:], names, title=title, width=table_width(out)))


def _as_json(episode_id: int, episode: Episode | None, events: list[ReplayEvent]) -> dict[str, Any]:
    history = [dataclasses.asdict(event) for event in events]
    if episode is None:
        return {"id": episode_id, "live": False, "history": history}
    return {
        "id": episode.id,
        "live": True,
        "domain": episode.domain,
        "timestamp": episode.timestamp,
        "level": episode.level,
        "tags": list(episode.tags),
        "key": episode.key,
        "extra": episode.extra,
        "loss": episode.loss,
        "replay_count": episode.replay_count,
        "last_replayed_at": episode.last_replayed_at,
        "payload": {leaf.name: field_json(leaf.value) for leaf in leaves(episode.payload)},
        "history": history,
    }
