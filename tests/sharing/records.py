"""What each process did to a shared buffer, written down by itself, and whether the database agrees with them all.

Every payload is a function of (writer, sequence), and every loss of (learner, turn, slot), so that a row tells who
made it. Each process appends what it is about to do, and then what was acknowledged, to a file of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool

from memstore import Batch, EpisodicMemory

Ints = NDArray[np.int64]
WIDTH = 12


def content(writer: Ints, sequence: Ints) -> NDArray[np.uint64]:
    """Twelve numbers per episode that look random and depend on both arguments (the finaliser of splitmix64)."""
    mixed: NDArray[np.uint64] = (writer.astype(np.uint64) << np.uint64(32)) + sequence.astype(np.uint64)
    mixed = mixed[:, None] * np.uint64(WIDTH) + np.arange(WIDTH, dtype=np.uint64)  # type: ignore[assignment]
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = np.multiply(mixed ^ (mixed >> np.uint64(shift)), np.uint64(factor), dtype=np.uint64)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)), np.uint64)


def domain_of(writer: int, sequence: int) -> str:
    """Five domains, shared by all writers."""
    return f"d{(writer + sequence) % 5}"


def first_loss(sequence: int) -> float | None:
    """As given to ``extend``: one in three is never measured."""
    return None if sequence % 3 == 0 else (sequence * 37 % 101) / 8 + 0.5


def new_loss(learner: int, turn: int, slots: int) -> list[float]:
    """Losses that no other (learner, turn, slot) has: an odd number each, times a power of two."""
    codes = 2 * (np.arange(slots) + 64 * (turn + 1024 * learner)) + 1
    return np.ldexp(codes.astype(np.float64), -(12 + np.arange(slots) % 9)).tolist()  # type: ignore[no-any-return]


def offer(writer: int, sequences: range) -> dict[str, Any]:
    """Arguments of ``extend`` for these episodes."""
    number = np.array(sequences)
    return {
        "payload": {
            "writer": np.full(len(number), writer),
            "sequence": number,
            "content": content(np.full(len(number), writer), number),
        },
        "domain": [domain_of(writer, i) for i in sequences],
        "loss": [first_loss(i) for i in sequences],
        "key": [f"{writer}:{i}" for i in sequences],
    }


def origin(batch: Batch) -> list[tuple[int, int]]:
    """(writer, sequence) of each row; every payload and domain must be what that writer wrote."""
    writer, sequence = batch["writer"], batch["sequence"]
    assert (batch["content"] == content(writer, sequence)).all(), "a payload is not what its writer wrote"
    made = list(zip(writer.tolist(), sequence.tolist(), strict=True))
    assert batch.domain.tolist() == [domain_of(*made_by) for made_by in made], "a domain is not its episode's"
    return made


@dataclass(frozen=True)
class Extend:
    """One ``extend``; ``ids`` is None when it was not acknowledged."""

    writer: int
    first: int
    count: int
    ids: list[int] | None = None


@dataclass(frozen=True)
class Update:
    """One batch as it was drawn, and the ``update`` that followed; ``updated`` is None when not acknowledged."""

    learner: int
    turn: int
    inserted: int
    ids: list[int]
    origin: list[tuple[int, int]]
    loss: list[float]
    replays: list[int]
    losses: list[float]
    updated: list[int] | None = None
    missing: list[int] = field(default_factory=list)


KINDS: dict[str, type[Extend] | type[Update]] = {"Extend": Extend, "Update": Update}


class Record:
    """A process's own file: one line before each operation, one after it."""

    def __init__(self, path: str) -> None:
        self._file = Path(path).open("a", buffering=1)  # noqa: SIM115

    def __enter__(self) -> Record:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def invoke(self, operation: Extend | Update) -> None:
        """What will be done now."""
        self._file.write(json.dumps([type(operation).__name__, asdict(operation)]) + "\n")

    def ok(self, **result: Any) -> None:
        """What came back."""
        self._file.write(json.dumps(["ok", result]) + "\n")


def read_record(path: Path) -> Iterator[Extend | Update]:
    """The operations in order; those without an ``ok`` are in flight or failed."""
    pending: dict[str, Any] | None = None
    kind: type[Extend] | type[Update] = Extend
    for line in path.read_text().splitlines():
        name, values = json.loads(line)
        if name == "ok":
            assert pending is not None
            yield kind(**pending | values)
            pending = None
            continue
        if pending is not None:
            yield kind(**pending)
        kind, pending = KINDS[name], values
    if pending is not None:
        yield kind(**pending)


@dataclass(frozen=True)
class Event:
    """One replay in the history."""

    id: int
    episode_id: int
    step: int
    consumer: str
    before: float | None
    after: float


@dataclass(frozen=True)
class Departure:
    """One eviction in the history."""

    id: int
    episode_id: int
    before: float | None


def read_events(url: str) -> list[Event]:
    """The replays in order, with SQL, as anyone may."""
    columns = "event, episode_id, step, consumer, loss_before, loss_after"
    return [Event(*row) for row in _history(url, columns, "replayed")]


def read_departures(url: str) -> list[Departure]:
    """The evictions in order; nothing else makes an episode leave here."""
    return [Departure(*row) for row in _history(url, "event, episode_id, loss_before", "evicted")]


def _history(url: str, columns: str, what: str) -> list[Any]:
    query = f"SELECT {columns} FROM v_history WHERE what = '{what}' ORDER BY event"
    engine = create_engine(url, poolclass=NullPool)
    with engine.connect() as conn:
        rows = list(conn.execute(text(query)))
    engine.dispose()
    return rows


class Story:
    """All records and the database after the end, brought together; each method checks one promise."""

    def __init__(self, memory: EpisodicMemory, url: str, records: Iterable[Path]) -> None:
        self.memory = memory
        self.events, self.departures = read_events(url), read_departures(url)
        operations = {path.stem: list(read_record(path)) for path in records}
        self.extends = [op for ops in operations.values() for op in ops if isinstance(op, Extend)]
        self.updates = {
            name: found for name, ops in operations.items() if (found := [op for op in ops if isinstance(op, Update)])
        }
        self.id_of: dict[tuple[int, int], int] = {}
        self.of_episode: dict[int, list[Event]] = {}
        for event in self.events:
            self.of_episode.setdefault(event.episode_id, []).append(event)

    def check(self) -> None:
        """Everything."""
        self.everything_was_acknowledged()
        self.insertions()
        self.origin_of = {i: made for made, i in self.id_of.items()}
        self.history_is_what_was_acknowledged()
        self.losses_form_chains()
        self.final_state()
        for name in self.updates:
            self.what_a_learner_saw(name)
        report = self.memory.check()
        assert report.ok, report.problems

    def everything_was_acknowledged(self) -> None:
        """Nothing failed."""
        assert all(e.ids is not None for e in self.extends), "an extend failed"
        assert all(u.updated is not None for updates in self.updates.values() for u in updates), "an update failed"

    def insertions(self) -> None:
        """Ids are gapless, each belongs to one (writer, sequence), and a repeated key gave the first id again."""
        for extend in self.extends:
            assert extend.ids is not None
            assert extend.ids == list(range(extend.ids[0], extend.ids[0] + extend.count)), "ids with a gap"
            for i, episode_id in enumerate(extend.ids):
                made = extend.writer, extend.first + i
                assert self.id_of.setdefault(made, episode_id) == episode_id, f"{made} has two ids"
        assert sorted(self.id_of.values()) == list(range(1, len(self.id_of) + 1)), "ids are not 1 .. n, each once"
        assert self.memory.stats().total_inserted == len(self.id_of), "total_inserted is wrong"
        for writer in {writer for writer, _ in self.id_of}:
            ids = [i for (w, _), i in sorted(self.id_of.items()) if w == writer]
            assert writer == 0 or ids == sorted(ids), "a writer's ids are not in the order of its calls"

    def history_is_what_was_acknowledged(self) -> None:
        """Event numbers are gapless, each update's events stand together, and no event is without an update."""
        numbers = sorted([event.id for event in self.events] + [departure.id for departure in self.departures])
        assert numbers == list(range(1, len(numbers) + 1)), "event numbers with a gap"
        assert self.memory.stats().total_events == len(self.events), "total_events is wrong"
        self.span: dict[tuple[str, int], tuple[int, int]] = {}
        of_update: dict[tuple[str, int], list[Event]] = {}
        for event in self.events:
            of_update.setdefault((event.consumer, event.step), []).append(event)
        for name, updates in self.updates.items():
            for update in updates:
                assert update.updated is not None
                assert sorted(update.updated + update.missing) == sorted(update.ids), "ids neither updated nor missing"
                alive = set(update.updated)
                wanted = [(i, loss) for i, loss in zip(update.ids, update.losses, strict=True) if i in alive]
                mine = of_update.get((name, update.turn), [])
                assert [(event.episode_id, event.after) for event in mine] == wanted, f"{name}, turn {update.turn}"
                if mine:
                    self.span[name, update.turn] = mine[0].id, mine[-1].id
                    assert mine[-1].id - mine[0].id == len(mine) - 1, "another update's events in between"
        assert sum(last - first + 1 for first, last in self.span.values()) == len(self.events), "events of nobody"

    def losses_form_chains(self) -> None:
        """Every loss_before is the loss_after of the same episode's previous event: no update was lost."""
        for episode_id, events in self.of_episode.items():
            losses = [first_loss(self.origin_of[episode_id][1]), *(event.after for event in events)]
            assert [event.before for event in events] == losses[:-1], f"episode {episode_id} lost an update"

    def final_state(self) -> None:
        """Payload, domain, key, loss and replay count of every live episode."""
        live = self.memory.recall_temporal(0, 1e18)
        stats = self.memory.stats()
        assert len(live) == len(self.memory) == min(len(self.id_of), self.memory.capacity), "live count"
        replays = sum(len(self.of_episode.get(episode.id, [])) for episode in live)
        assert stats.total_replays == replays, f"{stats.total_replays} replays are counted, {replays} happened"
        for episode in live:
            writer, sequence = made = self.origin_of[episode.id]
            stored = episode.payload["writer"], episode.payload["sequence"], episode.domain, episode.key
            assert stored == (*made, domain_of(*made), f"{writer}:{sequence}"), f"episode {episode.id} is another's"
            right = episode.payload["content"] == content(np.array([writer]), np.array([sequence]))[0]
            assert right.all(), f"the payload of episode {episode.id} is not what its writer wrote"
            losses = [first_loss(sequence), *(event.after for event in self.of_episode.get(episode.id, []))]
            assert episode.loss == losses[-1], f"episode {episode.id} has a loss that is not its last"
            assert episode.replay_count == len(losses) - 1, f"episode {episode.id} has a wrong replay count"
        self.live = {episode.id for episode in live}
        self.departures_explain_who_is_gone()
        if stats.eviction == "fifo":
            newest = set(range(stats.total_inserted - len(live) + 1, stats.total_inserted + 1))
            assert self.live == newest, "others are live than the newest"

    def departures_explain_who_is_gone(self) -> None:
        """Whoever is not live left once, after its last replay and with the loss of that."""
        gone = [departure.episode_id for departure in self.departures]
        assert sorted(gone) == sorted(self.origin_of.keys() - self.live), "departures are not those who are gone"
        for departure in self.departures:
            events = self.of_episode.get(departure.episode_id, [])
            last = events[-1].after if events else first_loss(self.origin_of[departure.episode_id][1])
            assert departure.before == last, f"episode {departure.episode_id} left with another loss than its last"
            assert all(event.id < departure.id for event in events), f"episode {departure.episode_id} came back"

    def what_a_learner_saw(self, name: str) -> None:
        """Each batch is of one moment of the history, no earlier than the last; what was missing never came back."""
        commits = {extend.ids[-1] for extend in self.extends if extend.ids}
        inserted = reached = 0
        gone: set[int] = set()
        for update in self.updates[name]:
            origins = [tuple(made) for made in update.origin]
            assert [self.origin_of[i] for i in update.ids] == origins, "a payload came under another episode's id"
            assert update.inserted >= max(inserted, *update.ids), "an episode of the future, or a step back"
            assert update.inserted in commits, "half of an extend was seen"
            assert not gone & set(update.ids), "an episode came back"
            earliest, latest = 0, len(self.events) + len(self.departures) + 1
            for i, loss, replays in zip(update.ids, update.loss, update.replays, strict=True):
                events = self.of_episode.get(i, [])
                assert replays <= len(events), "a replay that never was"
                expected = events[replays - 1].after if replays else first_loss(self.origin_of[i][1])
                assert loss == expected or (expected is None and np.isnan(loss)), "loss and replay count disagree"
                if replays:
                    earliest = max(earliest, events[replays - 1].id)
                if replays < len(events):
                    latest = min(latest, events[replays].id)
            assert max(earliest, reached) < latest, f"{name}, turn {update.turn}: a batch of no single moment"
            inserted, reached = update.inserted, max(earliest, reached, self.span.get((name, update.turn), (0, 0))[1])
            gone |= set(update.missing)
        assert not gone & self.live, "what was missing is live"

    def was_hard(self, *, evicting: bool) -> None:
        """Learners really took turns, saw the buffer grow, and met evictions."""
        consumers = [event.consumer for event in self.events]
        turns = sum(a != b for a, b in pairwise(consumers))
        assert turns >= 4 * len(self.updates), f"the learners took turns {turns} times only"
        sizes = {update.inserted for updates in self.updates.values() for update in updates}
        assert len(sizes) >= 10, "the learners saw few of the writers' commits"
        missing = sum(len(update.missing) for updates in self.updates.values() for update in updates)
        assert (missing > 0) is evicting, f"{missing} of the drawn were evicted before their update"
