"""A process of an older memstore that is still open while another one upgrades: it fails, and writes nothing."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memstore
from memstore.storage import upgrade
from tests.migrations.helpers import content, create, sql

CHECKOUT = Path(__file__).parents[2]
LAST_0003, LAST_0004 = "8ed6a6f4ada11314059d445d22a654f115a55c5f", "d0f2730c86f3afe380805c2ed3100b8f09b05c8c"
"""Commits with the schemas 0003 and 0004."""

PROGRAM = """
import json, sys
import numpy as np
import memstore

url = sys.argv[1]
memory = memstore.open(url, capacity=100, seed=1)
ids = memory.extend({"x": np.arange(60.0)}, domain=["a", "b"] * 30, loss=np.linspace(0, 5, 60))
memory.update(ids[:20], loss=2.0)
memory.save_checkpoint("before", {"step": 1})
print(json.dumps("ready"), flush=True)
sys.stdin.readline()

def block():
    with memory.transaction():
        memory.update(ids[:3], loss=1.0)

calls = {
    "len": lambda: len(memory),
    "get": lambda: memory.get(int(ids[0])),
    "sample": lambda: memory.sample(4),
    "update": lambda: memory.update(ids[:3], loss=1.0),
    "add": lambda: memory.add({"x": 1.0}, loss=1.0),
    "delete": lambda: memory.delete(ids[5]),
    "checkpoint": lambda: memory.save_checkpoint("after", {"step": 2}),
    "configure": lambda: memory.configure(capacity=10),
    "transaction": block,
    "open": lambda: memstore.open(url),
}
outcomes = {}
for name, call in calls.items():
    try:
        outcomes[name] = ["done", repr(call())]
    except memstore.MemstoreError as exc:
        outcomes[name] = [type(exc).__name__, str(exc)]
memory.close()
print(json.dumps(outcomes), flush=True)
"""


HISTORIES = """
import json, sys
import numpy as np
import memstore

url = sys.argv[1]
kinds = {
    "pruned": memstore.History(max_events=64),
    "sampled": memstore.History(record=0.4),
    "none": memstore.History(record=0.0),
    "aged": memstore.History(max_age=1e9),
    "off": memstore.History(),
    "on": memstore.History(record=0.0),
    "limited": memstore.History(record=0.7, max_events=100),
}
then = {
    "off": memstore.History(record=0.0),
    "on": memstore.History(),
    "limited": memstore.History(record=0.5, max_events=80),
}
shown = {}
for name, history in kinds.items():
    with memstore.open(url, buffer=name, capacity=40, seed=2, max_replays=9, history=history) as memory:
        for turn in range(12):
            memory.extend({"x": np.arange(6.0)}, domain=["a", "b", "c"] * 2, loss=1.0)
            batch = memory.sample(12)
            memory.update(batch, loss=np.linspace(0.25, 4, len(batch.ids)), step=turn)
            if turn == 6 and name in then:
                memory.configure(history=then[name])
        shown[name] = [[e.event, e.id, e.what, e.step, e.loss_before, e.loss_after] for e in memory.history()]
        shown[name + " counted"] = [memory.stats().total_events, memory.stats().total_replays]
print(json.dumps(shown))
"""


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, check=False)


def _in_history(commit: str) -> list[str]:
    try:
        return [commit] if _git("cat-file", "-e", f"{commit}:memstore").returncode == 0 else []
    except OSError:
        return []


# Where there is no history of git (an sdist), the tests of statements and of frozen files are what remains.
from_commit = partial(pytest.mark.parametrize, "commit")


@pytest.fixture
def old_package(commit: str, tmp_path: Path) -> Path:
    """A folder with memstore as it was at that commit."""
    folder = tmp_path / "old"
    archive = _git("archive", "--format=tar", commit, "memstore", "migrations")
    assert archive.returncode == 0, archive.stderr
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return folder


def _rows(url: str) -> Any:
    """All that is stored, past memstore. The files of a SQLite database change when a log is folded in."""
    if not url.startswith("sqlite"):
        return content(url)
    names = [name for (name,) in sql(url, "SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    return {name: sql(url, f'SELECT * FROM "{name}"') for name in names}


@from_commit(_in_history(LAST_0003))
def test_old_code_that_is_still_open_fails_and_writes_nothing(url: str, old_package: Path) -> None:
    """Each call begins with the row of the buffer, which the old code cannot read any more. It cannot open it again."""
    environment = os.environ | {"PYTHONPATH": str(old_package)}
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=old_package,
        env=environment,
        text=True,
    )
    with process:
        assert process.stdin is not None and process.stdout is not None
        assert json.loads(process.stdout.readline()) == "ready"
        assert upgrade.upgrade(url, backup=False).before == "0003"
        before = _rows(url)
        process.stdin.write("go on\n")
        process.stdin.flush()
        outcomes = json.loads(process.stdout.readline())
    assert process.returncode == 0
    assert _rows(url) == before
    assert "done" not in {kind for kind, _ in outcomes.values()}, outcomes
    assert outcomes.pop("open")[0] == "SchemaTooNew"
    assert len(outcomes) == 9
    with memstore.open(url, create=False) as memory:
        assert memory.check().ok
        assert len(memory) == 60 and memory.checkpoints() == ["before"]


@from_commit(_in_history(LAST_0003) + _in_history(LAST_0004))
def test_each_kind_of_history_goes_on(url: str, old_package: Path) -> None:
    """What was recorded is shown, no number is given twice, and limits hold: in the memory and in the rows."""
    environment = os.environ | {"PYTHONPATH": str(old_package)}
    done = subprocess.run(
        [sys.executable, "-c", HISTORIES, url], cwd=old_package, env=environment, capture_output=True, check=True
    )
    shown = json.loads(done.stdout)
    upgrade.upgrade(url, backup=False)
    for name in memstore.buffers(url):
        with memstore.open(url, buffer=name, create=False, seed=3) as memory:
            assert memory.check().problems == ()
            assert _history(memory) == shown[name]
            assert [memory.stats().total_events, memory.stats().total_replays] == shown[f"{name} counted"]
            largest = max([number for number, *_ in shown[name]], default=0)
            for turn in range(12):
                memory.extend({"x": np.arange(6.0)}, domain=["a", "b", "c"] * 2, loss=1.0)
                batch = memory.sample(12)
                memory.update(batch, loss=np.linspace(0.25, 4, len(batch.ids)), step=100 + turn)
            assert memory.check().problems == ()
            memory.fold()
            after = [event for event in _history(memory) if event[0] > largest]
            assert bool(after) == (name not in ("none", "off"))
            assert after == sorted(after) and len({number for number, *_ in after}) == len(after)
            if name in ("pruned", "limited"):
                assert len(_history(memory)) <= 164
            for episode in {event[1] for event in after}:
                own = [event for event in _history(memory) if event[1] == episode]
                assert [event.event for event in memory.history(episode=episode)] == [number for number, *_ in own]
            assert memory.check().problems == ()


def _history(memory: memstore.EpisodicMemory) -> list[list[Any]]:
    return [[e.event, e.id, e.what, e.step, e.loss_before, e.loss_after] for e in memory.history()]


BUFFER = (
    'SELECT t."signature", t."capacity", t."epsilon", t."alpha", t."strategy", t."eviction", t."max_replays", '
    't."limiter", t."history", t."seed", t."revision", t."inserted", t."events", t."domains", t."strata", '
    't."live_replays", t."high_water", t."reservoir_floor", t."recorded" '
    "FROM json_each('[1]') AS j CROSS JOIN buffer AS t ON t.\"id\" = j.value"
)
READ = [
    BUFFER,
    'SELECT "id", "domain_id", "bucket", "count", "weight_sum", "loss_sum" FROM stratum WHERE buffer_id = 1 AND '
    "revision > 0 ORDER BY id",
    "SELECT c.key, m.episode_id, m.loss, m.replay_count FROM json_each('[8796093022217]') AS c CROSS JOIN "
    "replay_metadata AS m ON m.stratum_id = 0 + (c.value >> 43) AND m.position = (c.value & 8796093022207)",
    'SELECT t."episode_id", t."loss", t."replay_count", t."stratum_id", t."position", t."last_event_id" '
    "FROM json_each('[3]') AS j CROSS JOIN replay_metadata AS t ON t.\"episode_id\" = j.value",
]
WRITE = [
    'UPDATE replay_metadata SET "position" = 0 WHERE "episode_id" = 3',
    'UPDATE replay_metadata SET "loss" = 2.0, "replay_count" = 1, "stratum_id" = 2, "position" = 0 '
    'WHERE "episode_id" = 3',
    'INSERT INTO replay_metadata ("episode_id", "buffer_id", "loss", "lowest_loss", "replay_count", "stratum_id", '
    '"position") VALUES (21, 1, 1.0, 1.0, 0, 1, 18)',
    'UPDATE stratum SET "count" = 18, "weight_sum" = 14.5, "loss_sum" = 12.5, "revision" = 99 WHERE "id" = 1',
    'UPDATE buffer SET "revision" = 99, "inserted" = 20, "events" = 2, "domains" = 1, "strata" = 2, '
    '"live_replays" = 2, "high_water" = 2.5, "reservoir_floor" = NULL, "recorded" = 2 WHERE "id" = 1',
]
"""Statements of the old code. Each call begins with the first. Each write ends with the last, in one transaction."""


@pytest.mark.parametrize("asset", sorted((Path(__file__).parent / "assets").glob("v000[1-4].db")), ids=lambda a: a.stem)
def test_each_statement_of_an_old_process_fails(asset: Path, path: str) -> None:
    """On a connection that was open, and had run them, before the upgrade."""
    Path(path).write_bytes(asset.read_bytes())
    known = {name for (name,) in sql(path, "SELECT name FROM pragma_table_info('buffer')")}
    statements = [s for s in READ + WRITE if "recorded" in known or ("recorded" not in s and "last_event_id" not in s)]
    if "lowest_loss" not in {name for (name,) in sql(path, "SELECT name FROM pragma_table_info('replay_metadata')")}:
        statements = [s for s in statements if "lowest_loss" not in s]
    assert len(statements) >= 5
    with closing(sqlite3.connect(path, isolation_level=None)) as old:
        for statement in statements:
            old.execute("BEGIN IMMEDIATE")
            old.execute(statement).fetchall()
            old.execute("ROLLBACK")
        upgrade.upgrade(path, backup=False)
        before = _rows(f"sqlite:///{path}")
        for statement in statements:
            with pytest.raises(sqlite3.OperationalError, match="no such (column|table)|has no column"):
                old.execute(statement)
    assert _rows(f"sqlite:///{path}") == before


def test_the_next_schema_is_refused_by_its_name(url: str) -> None:
    """By today's code, with advice; nothing is changed."""
    create(url)
    sql(url, "UPDATE memstore_version SET version_num = '0006'")
    before = content(url)
    for call in (lambda: memstore.open(url), lambda: memstore.buffers(url), lambda: upgrade.upgrade(url)):
        with pytest.raises(memstore.SchemaTooNew, match="'0006'.*pip install -U memstore"):
            call()
    assert content(url) == before
