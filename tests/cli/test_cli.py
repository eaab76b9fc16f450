"""The command: what it prints, what it returns, what it does to files."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import make_url

import memstore
from memstore.cli import main
from memstore.learner import training_config
from memstore.storage.upgrade import HEAD


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), catch_exceptions=False)


@pytest.fixture
def filled(path: str) -> str:
    with memstore.open(path, capacity=100, seed=1) as memory:
        memory.extend({"x": np.arange(50.0)}, domain=["a", "b"] * 25, loss=np.linspace(0, 5, 50))
    with memstore.open(path, buffer="other"):
        pass
    return path


def test_stats_shows_every_buffer(filled: str) -> None:
    result = _run("stats", filled)
    assert result.exit_code == 0
    assert "buffer default" in result.output and "buffer other" in result.output
    assert "50 of 100" in result.output


def test_stats_as_json_is_what_the_library_says(filled: str) -> None:
    result = _run("stats", filled, "--json", "--buffer", "default", "--exact")
    (found,) = json.loads(result.output)
    with memstore.open(filled, cache_bytes=0) as memory:
        expected = json.loads(json.dumps(memory.stats(exact=True).to_dict()))
    # The files' sizes depend on when the write-ahead log was folded in.
    assert found.pop("bytes_on_disk").keys() == expected.pop("bytes_on_disk").keys()
    assert found == expected


def test_check_of_a_sound_file(filled: str) -> None:
    result = _run("check", filled)
    assert result.exit_code == 0
    assert "50 episodes, sound" in result.output


def test_check_finds_what_was_done_by_hand(filled: str) -> None:
    with sqlite3.connect(filled) as connection:
        connection.execute("UPDATE replay_metadata SET loss = 77 WHERE episode_id = 3")
        connection.execute("UPDATE payload SET data = zeroblob(8) WHERE episode_id = 4")
        connection.execute("DELETE FROM episode WHERE id = 5")
    connection.close()
    result = _run("check", filled, "--json")
    assert result.exit_code == 1
    problems = " ".join(json.loads(result.output)[0]["problems"])
    assert "1 (3) have another loss in their blocks than in the tables" in problems
    assert "checksum" in problems and "(4)" in problems
    assert "no row in table episode" in problems
    assert _run("check", filled).exit_code == 1


SPOILT = {
    "no number of slots": "UPDATE block SET data = zeroblob(99)",
    "does not match its checksum": "UPDATE block SET data = zeroblob(length(data))",
    "another loss in their blocks": "UPDATE replay_metadata SET loss = 1e9 WHERE episode_id = 7",
    "(7) have another loss": "UPDATE replay_metadata SET loss = NULL WHERE episode_id = 7",
    "infinite": "UPDATE replay_metadata SET loss = 9e999 WHERE episode_id = 7",
    "no replay metadata": "DELETE FROM replay_metadata WHERE episode_id = 7",
    "no row in table payload": "DELETE FROM payload WHERE episode_id = 7",
    "replays": "UPDATE buffer SET live_replays = 5",
    "insertion counter": "UPDATE buffer SET inserted = 1",
    "capacity": "UPDATE buffer SET capacity = 10",
    "another domain": "UPDATE episode SET domain_id = 3 - domain_id WHERE id = 7",
    "adds and departures": "UPDATE buffer SET departed = 1",
    "orphans in table episode_tag": "INSERT INTO episode_tag VALUES (1, 'lost', 999, 0)",
    "largest priority": "UPDATE buffer SET high_water = 0.5",
    "signature": "UPDATE buffer SET signature = replace(signature, '\"<f8\"', '\"<f4\"')",
}


@pytest.mark.parametrize("finding", SPOILT)
def test_check_finds_every_kind_of_damage(filled: str, finding: str) -> None:
    """Each invariant is broken by hand, so that no examination can be one that always passes."""
    with sqlite3.connect(filled) as connection:
        assert connection.execute(SPOILT[finding]).rowcount > 0
    connection.close()
    with memstore.open(filled, cache_bytes=0) as memory:
        report = memory.check()
    assert any(finding in problem for problem in report.problems), report.problems


def test_upgrade_of_an_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was done is said, and where the old file is; on a terminal a bar shows how far it is."""
    asset = Path(__file__).parents[1] / "migrations" / "assets" / "v0003.db"
    old = tmp_path / "old.db"
    old.write_bytes(asset.read_bytes())
    told: list[tuple[int, int]] = []

    @contextmanager
    def progress(what: str) -> Iterator[Any]:
        assert what == "converting"
        yield lambda done, total: told.append((done, total))

    monkeypatch.setattr("memstore.cli.keep._progress", progress)
    result = _run("upgrade", str(old))
    assert result.exit_code == 0 and result.stderr == ""
    assert result.output.splitlines() == [
        f"{old}: schema 0003 -> {HEAD}",
        f"the database as it was: {old}.schema-0003",
    ]
    assert told and told[-1][0] == told[-1][1] > 10
    assert Path(f"{old}.schema-0003").stat().st_size > 0
    assert _run("check", str(old)).exit_code == 0


@pytest.mark.parametrize("command", ["stats", "check", "upgrade"])
def test_missing_file_is_refused_and_not_created(tmp_path: Path, command: str) -> None:
    missing = tmp_path / "missing.db"
    result = _run(command, str(missing))
    assert result.exit_code == 3
    assert not missing.exists()


def test_foreign_file_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "notes.txt"
    foreign.write_text("not a database " * 100)
    result = _run("check", str(foreign))
    assert result.exit_code == 3
    assert foreign.read_text() == "not a database " * 100


def test_unknown_buffer_is_wrong_usage(filled: str) -> None:
    result = CliRunner().invoke(main, ["stats", filled, "--buffer", "nope"])
    assert result.exit_code == 2
    assert "'default', 'other'" in result.output


def test_upgrade_of_a_current_file_says_so(filled: str) -> None:
    result = _run("upgrade", filled)
    assert result.exit_code == 0
    assert "up to date" in result.output


@pytest.fixture
def small(tmp_path: Path) -> str:
    """A dataset of five tasks that is learned in a second."""
    rng = np.random.default_rng(0)
    domain = np.repeat([f"task {i}" for i in range(5)], 80)
    y = np.repeat(np.arange(10), 40)
    np.savez(tmp_path / "small.npz", x=rng.normal(y[:, None] % 4, 1.0, (400, 8)), y=y, domain=domain)
    return str(tmp_path / "small.npz")


def _results(*arguments: str) -> Any:
    result = _run("train", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_train_learns_and_remembers(path: str) -> None:
    """The main job: replay keeps the early classes, which no replay forgets."""
    first = _results("--db", path, "--seed", "3")
    assert first["replay"]["average"] > 0.6
    assert first["no_replay"]["average"] < 0.35
    assert first["replay"]["forgetting"] < first["no_replay"]["forgetting"]
    again = _results("--db", path, "--seed", "3")
    assert again["replay"]["digest"] == first["replay"]["digest"]
    assert again["replay"]["resumed_at"] == again["replay"]["steps"]
    fresh = _results("--db", path, "--seed", "3", "--fresh")
    assert fresh["replay"]["digest"] == first["replay"]["digest"]
    assert fresh["replay"]["resumed_at"] == 0


def test_train_prints_a_table_and_a_digest(path: str, small: str) -> None:
    result = _run("train", "--db", path, "--dataset", small, "--retrieval", "mir", "--ewc")
    assert result.exit_code == 0
    for expected in ("without replay", "average", "forgetting =", "sha256", "memstore stats"):
        assert expected in result.stdout


def test_train_refuses_other_options_than_the_run_found(path: str, small: str) -> None:
    _results("--db", path, "--dataset", small, "--seed", "3")
    result = CliRunner().invoke(main, ["train", "--db", path, "--dataset", small, "--seed", "4"])
    assert result.exit_code == 2
    assert "seed" in result.output and "--fresh" in result.output


def test_no_replay_touches_no_database(path: str, small: str) -> None:
    result = _results("--db", path, "--dataset", small, "--no-replay")
    assert result["replay"] is None
    assert not Path(path).exists()


def test_defaults_named_in_the_help_are_the_real_ones() -> None:
    config = training_config()
    output = " ".join(_run("train", "--help").output.split())
    for option, value in (
        ("capacity", config.capacity),
        ("replay-strategy", config.replay_strategy),
        ("eviction", config.eviction),
        ("priority-alpha", training_config("default").priority_alpha),
        ("seed", config.seed),
        ("retrieval", config.retrieval),
        ("replay-ratio", f"{config.replay_ratio:g}"),
    ):
        section = output[output.index(f"--{option} ") :]
        assert section[section.index("[default: ") :].startswith(f"[default: {value}"), option


def test_commands_on_either_database(url: str) -> None:
    with memstore.open(url, capacity=100, seed=1) as memory:
        memory.extend({"x": np.arange(50.0)}, loss=np.linspace(0, 5, 50))
        memory.lease(7)
    stats = _run("stats", url)
    assert "50 of 100" in stats.output and re.search(r"leased +7", stats.output)
    assert "50 episodes, sound" in _run("check", url).output
    assert "is up to date" in _run("upgrade", url).output


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_a_run_is_the_same_on_either_database(url: str, tmp_path: Path, small: str) -> None:
    """The seed decides, not the database: weights and draws agree to the bit."""
    options = ("--dataset", small, "--capacity", "60", "--replay-strategy", "prioritized_loss")
    here = _results("--db", url, *options)
    there = _results("--db", str(tmp_path / "other.db"), *options)
    assert here["replay"]["steps"] >= 20
    assert here["replay"]["digest"] == there["replay"]["digest"]
    assert here["replay"]["draws"] == there["replay"]["draws"]


@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_no_password_is_ever_shown(url: str, small: str, caplog: pytest.LogCaptureFixture) -> None:
    secret = "hunter2"  # the server trusts everyone, so any will do
    plain = make_url(url)
    addresses = [
        plain.set(password=secret).render_as_string(hide_password=False),
        plain.update_query_dict({"password": secret}).render_as_string(hide_password=False),
        plain.set(password=secret, database="absent").render_as_string(hide_password=False),
        plain.set(password=secret, drivername="postgresql+psycopg2").render_as_string(hide_password=False),
        plain.update_query_dict({"sslpassword": secret}).render_as_string(hide_password=False),
        f"postgresql://user:{secret}@[broken/database",
        plain.update_query_dict({"options": f"-capp.secret={secret}"}).render_as_string(hide_password=False),
        plain.update_query_dict({"pasword": secret}).render_as_string(hide_password=False),
        f"host=db user=u password={secret} dbname=x",
        f"postgresql:/u:{secret}@h/db",
        f"postgres:u:{secret}@h/db",
        f"Postgresql://u:{secret}@h/db",
        f"postgresql://u:p@{secret}@h/db",
    ]
    everywhere = (addresses[0], addresses[2], *addresses[5:])
    shown = [caplog.text]
    for address in addresses:
        commands = [["stats"], ["check"], ["upgrade"], ["history"], ["domains"], ["vacuum"]]
        if address in everywhere:
            commands.append(["train", "--dataset", small, "--fresh", "--db"])
        shown += [_run(*command, address).output for command in commands]
        try:
            with memstore.open(address) as memory:
                shown += [repr(memory), memory.url, str(memory.stats())]
        except memstore.MemstoreError as error:
            shown += [str(error), repr(error)]
    assert len(shown) > len(addresses) * 5
    assert secret not in "".join(shown) + caplog.text


def test_wrong_usage_does_not_repeat_a_password(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An address in the wrong place, or taken apart by the shell, is repeated without it."""
    monkeypatch.chdir(tmp_path)
    address = "postgresql://user:hunter2@host/database"
    for words in (
        [address],
        ["stats", "host=db", "user=u", "password=hunter2"],
        ["stats", "run.db", address],
        ["train", address],
        ["train", "--db", "run.db", "--capacity", address],
    ):
        result = _run(*words)
        assert result.exit_code == 2 and "hunter2" not in result.output
    assert list(tmp_path.iterdir()) == []


def _behind(path: str) -> list[int]:
    with sqlite3.connect(path) as connection:
        query = "SELECT inserted + logged - folded_inserted - folded_logged FROM buffer ORDER BY id"
        return [behind for (behind,) in connection.execute(query)]


def test_fold(filled: str) -> None:
    """All buffers, or those that are named; what was done is said."""
    with memstore.open(filled) as memory, memstore.open(filled, buffer="other") as other:
        for each in (memory, other):
            each.extend({"x": np.arange(3.0)}, loss=1.0)
            each.delete(each.sample(1).ids)
        assert _behind(filled)[0] == 4
        result = _run("fold", filled, "--buffer", "default")
        assert result.exit_code == 0 and result.output.startswith("buffer 'default': 4 log entries folded in ")
        assert _behind(filled)[0] == 0 and _behind(filled)[1] > 0
        (done,) = json.loads(_run("fold", filled, "--buffer", "other", "--json").output)
        assert done["buffer"] == "other" and done["entries"] > 0 and _behind(filled) == [0, 0]
    result = _run("fold", filled)
    assert result.output.splitlines() == [
        f"buffer {name!r}: the tables are at the end of the log already" for name in ("default", "other")
    ]
    assert _run("fold", filled, "--buffer", "none").exit_code == 2
