"""A history of schema 0002, one flat table of replays, is found whole in what came after it."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import Connection, MetaData, Table, create_engine, inspect, text

import memstore
from memstore.storage import upgrade
from memstore.storage.schema import SEQUENCE_BITS, VERSION_TABLE
from tests.migrations.helpers import Another, create

HOSTILE = "'; DROP TABLE buffer; -- caf\u00e9"
GONE = {"buffer": {"strata": 0}, "replay_metadata": {"stratum_id": 1, "position": 0}}
"""Columns that no database has any more. An upgrade does not read them."""

LOSSES = (0.0, 0.25, 1.0, 7.5, 1e300)
# Few values, so that neighbours often agree in all of them, or in all but one.
FACTS: dict[str, list[Any]] = {
    "at": [1_000_000.0, 1_000_000.5],
    "step": [None, 3, 4],
    "consumer": [None, "a"],
    "strategy": [None, "uniform"],
}


@contextmanager
def connected(url: str) -> Iterator[Connection]:
    engine = create_engine(url)
    with engine.begin() as conn:
        yield conn
    engine.dispose()


def live_through(url: str, rng: np.random.Generator) -> None:
    """Buffers that episodes leave in every way, one without events, and a number that is not used."""
    memstore.open(url, buffer="dropped").close()
    memstore.drop(url, "dropped")
    memstore.open(url, buffer="empty").close()
    buffers: dict[str, dict[str, Any]] = {"evicting": {"capacity": 20}, HOSTILE: {"capacity": 60, "max_replays": 6}}
    replays = {"evicting": 120, HOSTILE: 6}  # from event 512 on slots of the tally are wider than one
    for name, settings in buffers.items():
        with memstore.open(url, buffer=name, seed=1, **settings) as memory:
            for _turn in range(8):
                domains = rng.choice(["math", HOSTILE, "code"], 5).tolist()
                losses = [None if rng.random() < 0.4 else float(rng.choice(LOSSES)) for _ in domains]
                memory.extend({"x": np.arange(5)}, domain=domains, loss=losses)
                drawn = memory.sample(replays[name], replacement=True, strategy="uniform").ids
                memory.update(drawn, loss=rng.choice(LOSSES, len(drawn)))
                if rng.random() < 0.3:
                    memory.delete(memory.sample(2).ids)


def flat_history(conn: Connection, rng: np.random.Generator) -> list[dict[str, Any]]:
    """The replays, numbered without gaps in each buffer as they once were, with other facts; ordered by number."""
    counts: dict[int, itertools.count[int]] = defaultdict(lambda: itertools.count(1))
    replays = conn.execute(text("SELECT * FROM v_history WHERE what = 'replayed' ORDER BY event")).mappings()
    facts: dict[str, Any] = {}
    events = []
    for replay in replays:
        if not facts or rng.random() < 0.4:
            facts = {name: values[rng.integers(len(values))] for name, values in FACTS.items()}
        first = (replay["event"] - 1) >> SEQUENCE_BITS << SEQUENCE_BITS
        kept = {name: replay[name] for name in ("episode_id", "loss_before", "loss_after")}
        events.append({"id": first + next(counts[first]), **kept, **facts})
    return events


def write_old(url: str, source: Connection, events: list[dict[str, Any]]) -> None:
    """Tables of schema 0002 with all that these know of the database of today."""
    with pytest.MonkeyPatch.context() as past:
        past.setattr(upgrade, "REVISIONS", ("0001", "0002"))
        past.setattr(upgrade, "HEAD", "0002")
        create(url)
    last = {event["episode_id"]: event["at"] for event in events}
    with connected(url) as conn:
        for name in inspect(conn).get_table_names():
            if name == VERSION_TABLE:
                continue
            table = Table(name, MetaData(), autoload_with=conn)
            rows = events
            if name != "replay_event":
                kept = {column["name"] for column in inspect(source).get_columns(name)} if name != "stratum" else set()
                columns = ", ".join(f'"{column.name}"' for column in table.columns if column.name in kept)
                found: Any = source.execute(text(f"SELECT {columns} FROM {name}")).mappings() if kept else []
                rows = [dict(row) | GONE.get(name, {}) for row in found]
            if name == "replay_metadata":
                rows = [row | {"last_replayed_at": last.get(row["episode_id"])} for row in rows]
            if rows:
                conn.execute(table.insert(), rows)


def buffer_of(event: dict[str, Any]) -> int:
    return int(event["id"] - 1 >> SEQUENCE_BITS) + 1


def runs(events: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Neighbours that agree in all facts; ids of different buffers are never neighbours."""
    key = lambda event: (buffer_of(event), *(event[name] for name in FACTS))  # noqa: E731
    return [list(run) for _, run in itertools.groupby(events, key)]


def tally(events: list[dict[str, Any]], domain_of: dict[int, int]) -> dict[tuple[int, int, int], list[Any]]:
    """(buffer, slot, domain) to replays, sum of losses, last step and time; by the definition of a slot."""
    tallies: dict[tuple[int, int, int], list[Any]] = {}
    for run in runs(events):
        number = run[0]["id"] - (buffer_of(run[0]) - 1 << SEQUENCE_BITS)
        width = 1
        while number >= 512 * width:
            width *= 2
        for event in run:
            if event["episode_id"] in domain_of:
                place = buffer_of(event), number // width * width, domain_of[event["episode_id"]]
                so_far = tallies.setdefault(place, [0, 0.0, None, 0.0])
                so_far[0] += 1
                so_far[1] += min(event["loss_after"], 1e290)
                so_far[2] = so_far[2] if event["step"] is None else event["step"]
                so_far[3] = event["at"]
    return tallies


@pytest.mark.parametrize("seed", range(2))
def test_a_flat_history_is_upgraded(url: str, another: Another, seed: int) -> None:
    rng = np.random.default_rng(seed)
    live_through(url, rng)
    old = another()
    with connected(url) as source:
        events = flat_history(source, rng)
        write_old(old, source, events)
    assert len(events) > 900 and len(runs(events)) < len(events)
    upgrade.upgrade(old, backup=False)
    check_tables(old, events)
    check_memories(old, events)


def test_a_backup_of_an_older_schema_is_upgraded_as_it_is_restored(
    url: str, another: Another, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the copy; onto either database."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    live_through(url, rng)
    old = tmp_path / "old.db"
    with connected(url) as source:
        events = flat_history(source, rng)
        write_old(f"sqlite:///{old}", source, events)
    before, target = old.read_bytes(), another()
    done = memstore.restore(old, target)
    assert done.upgraded_from == "0002" and old.read_bytes() == before
    check_tables(target, events)
    check_memories(target, events)


def check_tables(url: str, events: list[dict[str, Any]]) -> None:
    with connected(url) as conn:

        def rows(statement: str) -> list[tuple[Any, ...]]:
            return [tuple(row) for row in conn.execute(text(statement))]

        buffers: dict[int, str] = dict(rows("SELECT id, name FROM buffer"))
        domain_of: dict[int, int] = dict(rows("SELECT id, domain_id FROM episode"))
        names: dict[int, str] = dict(rows("SELECT id, name FROM domain"))
        assert {event["episode_id"] for event in events} - domain_of.keys(), "nothing has left"

        columns = "event, buffer, episode_id, domain, what, reason, at, step, consumer, strategy"
        columns += ", loss_before, loss_after, probability, weight"
        assert rows(f"SELECT {columns} FROM v_history ORDER BY event") == [
            (
                *(event["id"], buffers[buffer_of(event)], event["episode_id"]),
                names[domain_of[event["episode_id"]]] if event["episode_id"] in domain_of else None,
                *("replayed", None, *(event[name] for name in FACTS)),
                *(event["loss_before"], event["loss_after"], None, None),
            )
            for event in events
        ]
        columns = ", ".join(f'"{name}"' for name in ("id", "buffer_id", "what", "count", *FACTS))
        assert rows(f"SELECT {columns} FROM event_group ORDER BY id") == [
            (run[0]["id"], buffer_of(run[0]), "replayed", len(run), *(run[0][name] for name in FACTS))
            for run in runs(events)
        ]

        measured: dict[int, list[float]] = defaultdict(list)
        for event in events:
            measured[event["episode_id"]] += [event["loss_before"], event["loss_after"]]
        lowest = {}
        for episode, loss in rows("SELECT episode_id, loss FROM v_episode"):
            lowest[episode] = min((known for known in [*measured[episode], loss] if known is not None), default=None)
        assert dict(rows("SELECT episode_id, lowest_loss FROM v_episode")) == lowest
        assert None in lowest.values() and 0.0 in lowest.values()

        columns = "buffer_id, slot, domain_id, replays, loss_sum, last_step, last_at"
        found = {row[:3]: row[3:] for row in rows(f"SELECT {columns} FROM replay_tally")}
        expected = tally(events, domain_of)
        assert found.keys() == expected.keys()
        for place, (replays, losses, step, at) in found.items():
            # Few nonnegative terms, added in another order.
            assert [replays, pytest.approx(losses, rel=1e-13), step, at] == expected[place]
        assert rows("SELECT id FROM buffer WHERE recorded <> events") == []
        ended = [episode for (episode,) in rows("SELECT episode_id FROM replay_event WHERE ends IS NOT NULL")]
        assert sorted(ended) == sorted({event["episode_id"] for event in events} - domain_of.keys())


def check_memories(url: str, events: list[dict[str, Any]]) -> None:
    """The library finds each episode's own events, live or not, and goes on where they end."""
    with connected(url) as conn:
        numbers = {name: number for number, name in conn.execute(text("SELECT id, name FROM buffer"))}
    for name, number in numbers.items():
        with memstore.open(url, buffer=name, create=False) as memory:
            mine = [event for event in events if buffer_of(event) == number]
            assert [event.event for event in memory.history()] == [event["id"] for event in mine]
            for episode in {event["episode_id"] for event in mine}:
                own = [(event["id"], event["loss_after"]) for event in mine if event["episode_id"] == episode]
                assert [(event.event, event.loss_after) for event in memory.history(episode=episode)] == own
            assert memory.stats().total_events == len(mine)
            assert memory.check().ok

            memory.extend({"x": np.arange(3)}, loss=2.0)
            replayed = memory.update(memory.sample(2, strategy="uniform"), loss=[0.125, 0.5]).updated
            after = memory.history()
            first = (number - 1 << SEQUENCE_BITS) + 1
            assert [event.event for event in after] == list(range(first, first + len(after)))
            assert [event.what for event in after[len(mine) :]].count("replayed") == 2
            for episode in replayed.tolist():
                assert memory.history(episode=episode) == [event for event in after if event.id == episode]
            assert memory.check().ok
