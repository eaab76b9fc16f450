"""Nobody reads past the overlay what lags behind the log; and the overlay is the tables themselves after a fold."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import numpy as np

from memstore.buffer.overlay import METADATA, live_episode, replay_metadata_now
from memstore.buffer.snapshot import Snapshot
from memstore.storage.schema import episode, replay_metadata
from tests.support.helpers import OpenMemory

PACKAGE = Path(__file__).parents[2] / "memstore"
LATE = {"episode", "payload", "episode_tag", "replay_metadata"}
"""Tables that are behind the log between two folds."""

READERS = {
    "buffer/overlay.py": "the overlay itself",
    "buffer/folding.py": "the fold",
    "buffer/tail.py": "the log: rows of episode are the entries of adds",
    "buffer/facts.py": "names the row of an extra that is no JSON, for an error",
    "buffer/snapshot.py": "rows of a table as it is stored, for check",
    "buffer/blocks/rows.py": "domains by id, which never change; the upgrade, which has no log",
    "episodes/insert.py": "writes them",
    "episodes/payloads.py": "by ids that are live; all payloads through the overlay",
    "episodes/recall.py": "by ids that are live; searches through the overlay",
    "queries/sql.py": "tags, and facts joined with replay metadata, of episodes from the overlay",
    "upkeep/check.py": "compares tables, log and blocks",
    "upkeep/sealed.py": "compares tables with their checksums",
    "upkeep/window.py": "compares tables, log and blocks",
}
"""Modules that may name these tables, each with the reason."""


def test_who_reads_late_tables_says_why() -> None:
    """In SQLAlchemy's words or in SQL. A new module on this list has to read through the overlay, or by live ids."""
    found = set()
    for module in sorted(PACKAGE.rglob("*.py")):
        text = module.read_text()
        named = any(
            alias.name in LATE
            for node in ast.walk(ast.parse(text))
            if isinstance(node, ast.ImportFrom) and node.module == "memstore.storage.schema"
            for alias in node.names
        )
        written = re.search(rf"\b(FROM|JOIN|INTO|UPDATE) ({'|'.join(LATE)})\b", text)
        if named or written or re.search(rf"\bschema\.({'|'.join(LATE)})\b", text):
            found.add(str(module.relative_to(PACKAGE)))
    assert found == set(READERS)


def test_after_a_fold_the_tables_stand_for_themselves(open_memory: OpenMemory) -> None:
    memory = open_memory(capacity=10)
    memory.extend({"x": np.zeros(12)}, loss=np.arange(12.0))
    memory.fold()

    def is_plain(snapshot: Snapshot) -> tuple[bool, bool]:
        return live_episode(snapshot) is episode, replay_metadata_now(snapshot) is replay_metadata

    assert memory._session.read(is_plain) == (True, True)
    memory.add({"x": 1.0})
    assert memory._session.read(is_plain) == (False, False)


def test_all_columns_are_those_that_the_fold_writes(open_memory: OpenMemory) -> None:
    """Replayed, replayed twice, never replayed, measured at the add, new, and gone: the query, then the table."""
    memory = open_memory(capacity=12)
    memory.extend({"x": np.zeros(12)}, loss=[None, *range(1, 12)])
    memory.update([3, 4], loss=[0.5, 9.0])
    memory.fold()
    memory.update([4, 5, 4, 1], loss=[3.0, 8.0, 12.0, 2.0])
    memory.extend({"x": np.zeros(2)}, loss=[None, 0.25])
    memory.update([13, 14, 2], loss=[1.0, 0.5, 7.0])
    memory.delete([6])

    def read(snapshot: Snapshot) -> list[tuple[object, ...]]:
        now = replay_metadata_now(snapshot)
        return snapshot.backend.fetch(snapshot.conn, now.select().order_by(now.c.episode_id))

    before = memory._session.read(read)
    assert len(before) == len(memory) and len(before[0]) == len(METADATA)
    memory.fold()
    assert memory._session.read(read) == before
