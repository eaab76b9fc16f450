"""Flipped bits and edited rows: what a memory then answers, and whether ``check`` knows.

A copy of one prepared file is damaged, and every public reading call is made on it, by a child that is killed when it
hangs. An outcome is ``right`` (all answers as before), ``refused`` (some were, with an error of memstore's),
``found`` (an answer is another, and ``check`` says that something is wrong); the rest must not happen.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import random
import shutil
import signal
import sqlite3
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import memstore
from memstore import col

LONGEST = 5.0
"""Seconds after which a call hangs."""

FINE = ("right", "refused", "found")
STATE = {"weights": np.arange(40.0), "step": 7, "nested": {"name": "caf\u00e9", "flags": [True, None, 2.5]}}


@dataclass(frozen=True)
class Outcome:
    """What came of one damage: its name, one of the outcomes, and the details."""

    damage: str
    kind: str
    detail: str = ""


def prepare(target: str) -> None:
    """A memory with something in every table; answers about it do not depend on the time."""
    extras = [None, {"pid": 2**60 + 1, "list": [1, None, "\u00e9"]}, {"deep": {"a": [1.5]}}]
    with memstore.open(target, capacity=60, seed=3, eviction="lowest_loss", consumer="damage") as memory:
        for turn in range(8):
            n = 12
            memory.extend(
                {"x": np.full((n, 4), turn, np.float32), "t": [np.arange(i % 4) for i in range(n)], "s": ["text"] * n},
                domain=[("math", "caf\u00e9", "code")[i % 3] for i in range(n)],
                loss=[None if i % 5 == 0 else 0.1 + i * turn % 7 for i in range(n)],
                timestamp=[1e6 + 100 * turn + i for i in range(n)],
                level=[i if i % 2 else None for i in range(n)],
                tags=[("odd", f"t{i}") if i % 2 else () for i in range(n)],
                key=[f"key-{turn}-{i}" if i % 3 == 0 else None for i in range(n)],
                extra=[extras[i % 3] for i in range(n)],
            )
            memory.update(memory.sample(12), loss=np.arange(12) / (turn + 1), step=turn)
        memory.delete(memory.sample(2, strategy="uniform").ids)
        memory.save_checkpoint("latest", STATE)
        memory.save_checkpoint("other", {"step": 1})


def prepare_file(file: Path) -> None:
    """``prepare``, in a file without a log and with small pages: more of its bits matter."""
    prepare(str(file))
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("PRAGMA page_size = 1024")
        connection.execute("VACUUM")


QUESTIONS: dict[str, Callable[[memstore.EpisodicMemory], Any]] = {
    "len": len,
    "settings": lambda m: (m.capacity, m.strategy, str(m.signature)),
    "episodes": lambda m: m.get_many(m.query().ids()),
    "metadata": lambda m: m.metadata(m.query().ids()),
    "draw": lambda m: m.sample(8),
    "uniform": lambda m: m.sample(8, strategy="uniform"),
    "balanced": lambda m: m.sample(8, strategy="domain_balanced"),
    "filtered": lambda m: m.sample(4, where=col.level > 4),
    "all": lambda m: m.sample(1000),
    "query": lambda m: m.query().all(),
    "by level": lambda m: m.query().filter(col.level > 3).select(col.id, col.loss).arrays(),
    "by extra": lambda m: m.query().filter(col.extra["pid"].is_known()).ids(),
    "history": lambda m: m.query("history").all(),
    "one history": lambda m: [m.history(episode=int(i)) for i in m.query().ids()[:10]],
    "hardest": lambda m: (m.hardest(5), m.forgotten(5), m.most_replayed(5), m.never_replayed(5)),
    "trend": lambda m: m.loss_trend(),
    "share": lambda m: m.replay_share(),
    "temporal": lambda m: m.recall_temporal(1e6, 2e6),
    "tags": lambda m: m.recall_by_tags(["odd"]),
    "keys": lambda m: m.ids_of([f"key-{turn}-{i}" for turn in range(8) for i in range(0, 12, 3)]),
    "similar": lambda m: m.recall(np.ones(4), on="x", limit=3),
    "checkpoints": lambda m: (m.checkpoints(), m.load_checkpoint("latest"), m.load_checkpoint("other")),
    "stats": lambda m: {k: v for k, v in m.stats(exact=True).to_dict().items() if k not in ("bytes_on_disk", "cache")},
}
CHANGES: dict[str, Callable[[memstore.EpisodicMemory], Any]] = {
    "add": lambda m: m.add({"x": np.zeros(4, np.float32), "t": np.arange(2), "s": "new"}, loss=1.0),
    "update": lambda m: m.update(m.sample(5), loss=2.0),
    "shrink": lambda m: m.configure(capacity=20),
}


def told(value: Any) -> str:
    """An answer as a text that is equal for equal answers."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype}{value.shape}{value.tolist()!r}"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key!r}: {told(value[key])}" for key in value) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(told, value)) + "]"
    slots = getattr(type(value), "__slots__", None)
    if slots and not isinstance(value, (np.generic, str, bytes)):
        return f"{type(value).__name__}({', '.join(told(getattr(value, name)) for name in slots)})"
    return repr(value)


def answers(target: str) -> dict[str, str]:
    """A digest of every answer, or the name of memstore's error; anything else is raised."""
    found: dict[str, str] = {}
    with memstore.open(target, create=False, seed=5, consumer="damage") as memory:
        for name, ask in QUESTIONS.items():
            found[name] = _asked(memory, ask)
        try:
            report = memory.check()
            found["check"] = "ok" if report.ok else f"{len(report.problems)} problems: {report.problems[0]}"
        except memstore.StoreCorrupt as exc:
            found["check"] = f"refused {exc}"
        for name, change in CHANGES.items():
            found[f"change {name}"] = _asked(memory, change, tell=False)
    return found


def _asked(memory: memstore.EpisodicMemory, ask: Callable[[Any], Any], *, tell: bool = True) -> str:
    started = time.monotonic()
    try:
        value = ask(memory)
        answer = hashlib.sha256(told(value).encode("utf-8", "surrogatepass")).hexdigest() if tell else "done"
    except memstore.MemstoreError as exc:
        if type(exc) not in REFUSALS:
            raise
        answer = f"refused {type(exc).__name__}: {exc}"
    if time.monotonic() - started > LONGEST:
        raise TimeoutError(f"{time.monotonic() - started:.1f} s")
    return answer


REFUSALS = (memstore.StoreCorrupt, memstore.SchemaTooNew, memstore.NotAMemstore, memstore.EpisodeNotFound)


@contextmanager
def _limited() -> Iterator[None]:
    """Let an alarm end what hangs."""

    def ring(_number: int, _frame: Any) -> None:
        raise TimeoutError("hung")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 4 * LONGEST)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def judged(damage: str, target: str, sound: dict[str, str]) -> Outcome:
    """What came of a damage, against the answers of the sound database."""
    try:
        with _limited():
            found = answers(target)
    except (*REFUSALS, memstore.SchemaTooOld, memstore.ConfigError) as exc:
        return Outcome(damage, "refused", f"open: {exc}")
    except TimeoutError as exc:
        return Outcome(damage, "hang", f"{exc} {traceback.format_exc()[-600:]}")
    except BaseException as exc:
        return Outcome(damage, "foreign", f"{type(exc).__name__}: {exc} {traceback.format_exc()[-1200:]}")
    wrong = [name for name in QUESTIONS if found[name] != sound[name] and not found[name].startswith("refused")]
    if wrong:
        return Outcome(damage, "unnoticed" if found["check"] == "ok" else "found", f"{wrong} {found['check']}")
    refused = [name for name, answer in found.items() if answer.startswith("refused")]
    return Outcome(damage, "refused" if refused else "right", f"{refused} {found['check']}")


def flipped(file: Path, copy: Path, rng: random.Random) -> str:
    """Copy the file with one bit changed; says where."""
    data = bytearray(file.read_bytes())
    place = rng.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    copy.write_bytes(data)
    return f"bit {place}"


def edited(file: Path, copy: Path, statements: Iterable[str]) -> None:
    """Copy the file and change it by SQL, definitions included."""
    shutil.copyfile(file, copy)
    with closing(sqlite3.connect(copy)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            connection.execute(statement)
        connection.commit()


def run_flips(folder: Path, count: int, seed: int) -> list[Outcome]:
    """So many flipped bits, each in a copy of its own, in a child that ends when memory runs out."""
    sound_file = folder / "sound.db"
    if not sound_file.exists():
        prepare_file(sound_file)
    context = multiprocessing.get_context("spawn")
    parts = [(str(sound_file), count // 2 + count % 2, 2 * seed), (str(sound_file), count // 2, 2 * seed + 1)]
    with context.Pool(2) as pool:
        return [outcome for outcomes in pool.starmap(_flips, parts) for outcome in outcomes]


def _flips(sound_file: str, count: int, seed: int) -> list[Outcome]:
    file, rng = Path(sound_file), random.Random(seed)
    copy = file.with_name(f"flipped-{seed}.db")
    shutil.copyfile(file, copy)
    sound = answers(str(copy))
    assert sound["check"] == "ok", sound
    outcomes = []
    for _ in range(count):
        forget(copy)
        outcomes.append(judged(flipped(file, copy, rng), str(copy), sound))
    forget(copy)
    return outcomes


def forget(file: Path) -> None:
    """Remove a file with its log."""
    for entry in file.parent.glob(f"{file.name}*"):
        entry.unlink()


def table(outcomes: list[Outcome]) -> str:
    """How many of each kind, and the first of those that must not be."""
    counts: dict[str, int] = {}
    for outcome in outcomes:
        counts[outcome.kind] = counts.get(outcome.kind, 0) + 1
    bad = [f"{o.kind} {o.damage}: {o.detail}" for o in outcomes if o.kind not in FINE]
    return "\n".join([json.dumps(counts), *bad])
