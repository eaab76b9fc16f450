"""The hand-written baseline on psycopg."""

from __future__ import annotations

from typing import Any

import numpy as np
import psycopg
from numpy.typing import NDArray

from benchmarks.by_hand import EVICT, INDEXES, REPLAYED_AT, ByHand, Drawn, Floats, as_arrays
from benchmarks.workload import ALPHA, EPSILON, Episodes

_SCHEMA = f"""
CREATE TABLE IF NOT EXISTS episode (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, domain text NOT NULL, timestamp float8 NOT NULL, loss float8,
    replay_count bigint NOT NULL, last_replayed_at float8, payload bytea NOT NULL
);
{INDEXES.replace("CREATE INDEX", "CREATE INDEX IF NOT EXISTS")}
"""
_COLUMNS = "INSERT INTO episode (domain, timestamp, loss, payload, replay_count) "
_INSERT = _COLUMNS + "VALUES (%s, %s, %s, %s, 0)"
_INSERT_ARRAYS = (
    _COLUMNS + "SELECT *, 0 FROM unnest(%b::text[], %b::float8[], %b::float8[], %b::bytea[])"  # %b: binary
)
_SET = "UPDATE episode e SET replay_count = replay_count + 1, loss = {}, last_replayed_at = {} "
_UPDATE = _SET.format("%s", "%s") + "WHERE id = %s"
_UPDATE_ARRAYS = (
    _SET.format("c.loss", "c.at")
    + "FROM unnest(%b::float8[], %b::float8[], %b::int8[]) AS c(loss, at, id) WHERE e.id = c.id"
)
# As on SQLite: the smallest Exp(1) / weight keys.
_DRAW = """
SELECT id, loss, payload FROM episode
ORDER BY ln(1.0 - random()) / power(coalesce(loss, %s) + %s, %s) DESC LIMIT %s
"""


class ByHandPostgres(ByHand):
    """The hand-written baseline on PostgreSQL.

    Parameters
    ----------
    url : str
        Address in the form that memstore accepts.
    tuned : bool
        True uses memstore's means: arrays, one statement for a batch, commits that do not wait for the disk. False uses
        ``executemany``, which psycopg pipelines, and commits that wait.
    """

    def __init__(self, url: str, *, tuned: bool) -> None:
        self.name = "by hand, memstore's means" if tuned else "by hand, executemany"
        self._tuned = tuned
        self._connection = psycopg.connect(url.replace("+psycopg", "", 1), autocommit=True)
        self._connection.execute(f"SET synchronous_commit = {'off' if tuned else 'on'}")
        with self._connection.transaction():
            self._connection.execute(_SCHEMA)

    def extend(self, episodes: Episodes) -> None:
        with self._connection.transaction():
            self._insert(episodes)

    def replace_easiest(self, episodes: Episodes) -> None:
        with self._connection.transaction():
            self._connection.execute(EVICT.format("%s").encode(), (len(episodes),))
            self._insert(episodes)

    def _insert(self, episodes: Episodes) -> None:
        columns = [episodes.domain, episodes.timestamp.tolist(), episodes.losses, episodes.blobs]
        self._write(_INSERT, _INSERT_ARRAYS, columns)

    def draw(self, count: int) -> Drawn:
        return as_arrays(self._connection.execute(_DRAW, (1.0, EPSILON, ALPHA, count), binary=True).fetchall())

    def update(self, ids: NDArray[np.int64], loss: Floats) -> None:
        with self._connection.transaction():
            self._write(_UPDATE, _UPDATE_ARRAYS, [loss.tolist(), [REPLAYED_AT] * len(ids), ids.tolist()])

    def _write(self, one: str, many: str, columns: list[list[Any]]) -> None:
        with self._connection.cursor() as cursor:
            if self._tuned:
                cursor.execute(many.encode(), columns)
            else:
                cursor.executemany(one.encode(), list(zip(*columns, strict=True)))

    def close(self) -> None:
        self._connection.close()
