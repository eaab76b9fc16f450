"""A server that forgot its last commits: what a process still knows of them must not be mistaken for what is stored."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import memstore
from tests.support.postgres import PostgresServer


@pytest.fixture
def server(postgres_server: PostgresServer) -> Iterator[PostgresServer]:
    """A server that no other test uses, with time enough between a commit and its way to the disk."""
    if not postgres_server.owned:
        pytest.skip("the server is someone else's, and must not crash")
    with PostgresServer(settings={"wal_writer_delay": "10s"}) as own:
        own.create_database("lost")
        yield own


def test_forgotten_episodes_are_not_served_from_the_cache(server: PostgresServer) -> None:
    with memstore.open(server.url("lost"), seed=1) as memory:
        memory.extend({"x": np.arange(10)}, loss=1.0)
        server.restart()  # an orderly one, which forgets nothing
        assert len(memory) == 10
        lost = memory.extend({"x": np.arange(100, 105)}, loss=1.0, domain="lost")
        assert memory.get(int(lost[0])).payload["x"] == 100
        server.crash()
        server.start()
        again = memory.extend({"x": np.arange(200, 205)}, loss=2.0)
        assert again.tolist() == lost.tolist(), "the commit was on disk already: nothing was tried"
        assert [episode.payload["x"] for episode in memory.get_many(again)] == list(range(200, 205))
        assert sorted(memory.sample(15)["x"]) == [*range(10), *range(200, 205)]
        assert memory.stats().domain_distribution == {"default": 15}
        assert memory.check().ok


def test_power_forgets_nothing(server: PostgresServer) -> None:
    with memstore.open(server.url("lost"), durability="power") as memory:
        for number in range(5):
            memory.add({"x": number})
            server.crash()
            server.start()
            assert len(memory) == number + 1
