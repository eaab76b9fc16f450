"""Addresses and settings are checked before anything is touched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import memstore
from memstore.config import check_float, check_int
from memstore.errors import ConfigError
from memstore.storage.address import parse_url


@pytest.mark.parametrize(
    "target",
    [
        *(None, b"run.db", 3, "", "a\0b.db", "\ud800.db", "://"),
        *(":memory:", "sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true", "file::memory:"),
    ],
)
def test_addresses_that_are_refused(target: Any) -> None:
    with pytest.raises(ConfigError):
        parse_url(target)


def test_other_databases_are_refused_without_their_password() -> None:
    with pytest.raises(ConfigError, match="no backend") as caught:
        memstore.open("mysql://user:secret@host/db")
    assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError) as caught:
        memstore.open("://user:secret@host")
    assert "secret" not in str(caught.value) and caught.value.__cause__ is None


@pytest.mark.parametrize("target", ["run.db", "/data/run.db", "sqlite:///run.db", Path("run.db")])
def test_addresses_that_are_taken(target: Any) -> None:
    assert parse_url(target).get_backend_name() == "sqlite"


@pytest.mark.parametrize("value", [True, "1", b"1", None, [1], float("nan"), float("inf"), 10**400, -1, 1 + 2j])
def test_numbers_that_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match="beta"):
        check_float("beta", value)


def test_numbers_that_are_taken() -> None:
    assert check_float("x", np.float32(0.5)) == 0.5
    assert check_int("n", np.int64(3), minimum=1) == 3
    with pytest.raises(ConfigError, match="greater than 0"):
        check_float("epsilon", 0.0, exclusive=True)
    with pytest.raises(ConfigError, match="at most 5"):
        check_float("x", 6.0, maximum=5.0)


@pytest.mark.parametrize("settings", [{"alpha": 50.1}, {"epsilon": 1e308}, {"epsilon": 0}, {"capacity": 0}])
def test_settings_beyond_use_are_refused_and_leave_no_file(path: str, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        memstore.open(path, **settings)
    assert not Path(path).exists()


def test_the_largest_settings_work(path: str) -> None:
    with memstore.open(path, alpha=50, epsilon=1e100, strategy="prioritized_loss", seed=1) as memory:
        memory.extend({"x": np.arange(40.0)}, loss=[None, 0.0, 1e300, 5e-324] * 10)
        assert len(set(memory.sample(30).ids.tolist())) == 30
        assert memory.sample(1, beta=1.0).ids.tolist()
        assert memory.check().ok
