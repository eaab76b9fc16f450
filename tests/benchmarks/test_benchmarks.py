"""The benchmarks run and report every case; the times are nobody's business here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.postgres import PostgresServer

ROOT = Path(__file__).parents[2]
DRAWS = [
    "memstore, payloads from SQL",
    "memstore, payloads cached",
    "ORDER BY random key",
    "numpy in memory, bisection",
    "numpy in memory, uniform",
]
HANDS = {
    "sqlite": ["by hand, SQLite's defaults", "by hand, memstore's pragmas"],
    "postgres": ["by hand, executemany", "by hand, memstore's means"],
}


def run(*arguments: str, checkout: Path = ROOT) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=checkout, capture_output=True, text=True, timeout=400)


@pytest.fixture
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a repository whose only commit holds what the benchmarks need of this checkout, which may have no git."""
    folder = tmp_path_factory.mktemp("repository")
    for name in ("memstore", "migrations", "benchmarks", "tests/support"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "tests" / "__init__.py").touch()
    as_somebody = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org")
    for arguments in (("init", "-q"), ("add", "-A"), (*as_somebody, "commit", "-q", "-m", "as it is")):
        subprocess.run(["git", *arguments], cwd=folder, check=True)
    return folder


@pytest.fixture
def report(tmp_path: Path, request: pytest.FixtureRequest) -> dict[str, Any]:
    """Of a quick run with these arguments."""
    file = tmp_path / "figures.json"
    done = run("--quick", "--json", str(file), "--folder", str(tmp_path), *request.param)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json"], "databases are removed"
    assert str(ROOT) not in done.stdout
    found: dict[str, Any] = json.loads(file.read_text())
    assert done.stdout.count("not measured") == sum(target["met"] is None for target in found["targets"]) > 0
    for timing in found["timings"]:
        assert timing["rows"] == 1000
        assert 0 < timing["median"] <= timing["p95"]
    return found


def contenders(report: dict[str, Any]) -> dict[tuple[str, str, int], list[str]]:
    found: dict[tuple[str, str, int], list[str]] = {}
    for timing in report["timings"]:
        found.setdefault((timing["database"], timing["case"], timing["batch"]), []).append(timing["contender"])
    return found


def figures(report: dict[str, Any], case: str) -> dict[tuple[str, str], float]:
    return {(fact["database"], fact["name"]): fact["value"] for fact in report["facts"] if fact["case"] == case}


def expected(database: str) -> dict[tuple[str, str, int], list[str]]:
    writes = ["memstore", *HANDS[database]]
    return {
        (database, "draw", 32): DRAWS,
        (database, "draw", 256): DRAWS,
        (database, "update", 256): writes,
        (database, "update, losses redrawn", 256): writes,
        (database, "loop", 256): ["memstore", HANDS[database][1]],
        (database, "extend", 256): writes,
        (database, "extend, never measured", 256): writes,
        (database, "extend at capacity", 256): writes,
    }


@pytest.mark.parametrize("report", [("--database", "sqlite", "--only", "open,memory")], indirect=True)
def test_a_process_of_its_own_opens_and_is_weighed(report: dict[str, Any]) -> None:
    assert contenders(report) == {}
    assert {(fact["case"], fact["name"]) for fact in report["facts"]} == {
        *(("open", name) for name in ("import", "open", "draw", "total")),
        *(("memory", name) for name in ("imported", "peak", "cache budget")),
    }


@pytest.mark.usefixtures("postgres_server")
@pytest.mark.parametrize("report", [("--only", "draw,update,loop,extend")], indirect=True)
def test_both_databases_stand_side_by_side_and_beside_their_baselines(report: dict[str, Any]) -> None:
    assert contenders(report) == expected("sqlite") | expected("postgres")
    assert [text.split()[0] for text in report["databases"]] == ["SQLite", "PostgreSQL"]
    assert "fsync=on" in report["databases"][1]


def test_a_server_of_ones_own_is_used_and_left_clean(postgres_server: PostgresServer, tmp_path: Path) -> None:
    psycopg = pytest.importorskip("psycopg")
    file = tmp_path / "figures.json"
    arguments = ("--database", "postgres", "--url", postgres_server.url(), "--only", "draw,open", "--rounds", "2")
    done = run("--quick", "--json", str(file), *arguments)
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    assert {figure["database"] for figure in found["facts"] + found["timings"]} == {"postgres"}
    with psycopg.connect(postgres_server.url().replace("+psycopg", "", 1)) as conn:
        assert not conn.execute("SELECT FROM pg_database WHERE datname LIKE 'memstore_benchmark%'").fetchall()


@pytest.mark.parametrize("report", [("--database", "sqlite", "--only", "sharing")], indirect=True)
def test_processes_share_a_database(report: dict[str, Any]) -> None:
    found = figures(report, "sharing")
    # Each alone, a writer beside 1, 2 and 4 learners with both rates, and 1, 2, 4 and 8 writers in two ways.
    assert len(found) == 1 + 3 * 2 + 4 * 2
    assert all(rate >= 0 for rate in found.values())
    assert found["sqlite", "added by 8 writers to one buffer"] > 0


@pytest.mark.parametrize("report", [("--database", "sqlite", "--only", "learning,history")], indirect=True)
def test_a_learner_by_how_often_it_checkpoints_and_the_history_by_what_it_costs(report: dict[str, Any]) -> None:
    ways = ["a checkpoint in every call", "a checkpoint in the last of ten", "a commit in every call, no checkpoint"]
    found = contenders(report)
    assert found.pop(("sqlite", "history, update", 256)) == ["update, history off", "update and its history"]
    assert len(found.pop(("sqlite", "history, draw", 256))) == 4
    assert len(found.pop(("sqlite", "history, answer", 1))) == 9
    assert found == {("sqlite", case, 100): [*ways, "the training alone, in memory"] for _, case, _ in found}
    assert len(found) == 2


@pytest.mark.usefixtures("postgres_server")
@pytest.mark.parametrize("report", [("--database", "postgres", "--only", "network,bloat")], indirect=True)
def test_a_network_is_counted_and_bloat_is_measured(report: dict[str, Any]) -> None:
    exchanges = figures(report, "network")
    assert len(exchanges) == 5
    assert all(2 <= number <= 20 for number in exchanges.values()), exchanges
    network = [timing for timing in report["timings"] if timing["case"].startswith("network")]
    assert all(timing["median"] > 0.001 for timing in network), "a round trip takes a millisecond"

    bloat = figures(report, "bloat")
    for variant in ("memstore's", "fillfactor only", "autovacuum only", "defaults"):
        assert bloat["postgres", f"{variant}: replay_metadata, live rows"] == 1000
        assert bloat["postgres", f"{variant}: replay_metadata, updated rows"] >= 5 * 1000 - 256
    wide = [timing["case"] for timing in report["timings"] if "8 KiB" in timing["case"]]
    assert len(wide) == 2 * 2 * 2


@pytest.mark.usefixtures("postgres_server")
def test_another_commit_and_this_checkout_take_turns(tmp_path: Path, repository: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ("--against", "HEAD", "--quick", "--json", str(file), "--folder", str(tmp_path))
    done = run(*arguments, checkout=repository)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"], "databases are removed"
    compared = json.loads(file.read_text())["compared"]
    assert [(one["database"], one["call"]) for one in compared] == [
        (database, call) for database in ("sqlite", "postgres") for call in ("loop", "add 32", "draw 256", "update 256")
    ]
    for one in compared:
        assert one["rows"] == 1000 and len(one["seconds"]) == one["rounds"] == 3
        assert all(one[name] > 0 for name in ("median_here", "p95_here", "cpu_here", "median_ratio", "p95_ratio"))


def test_a_version_runs_from_its_own_code(tmp_path: Path) -> None:
    """A folder without memstore, where the process would take the installed one instead."""
    program = f"import pathlib, benchmarks.against as a; a.Version(pathlib.Path({str(tmp_path)!r}), 'x', 9)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert f"not from {tmp_path}" in done.stderr and "ended with exit code 1" in done.stderr


def test_a_commit_that_git_does_not_know_is_named() -> None:
    done = run("--against", "nothing", "--quick", "--database", "sqlite")
    assert done.returncode == 1 and "'nothing'" in done.stderr and "Traceback" not in done.stderr


def test_unknown_case_and_size_are_refused_before_anything_runs() -> None:
    for arguments in (("--only", "draw,nothing"), ("--rows", "0"), ("--database", "oracle")):
        done = run(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr


def test_what_was_asked_for_and_cannot_be_had_is_an_error() -> None:
    address = "postgresql+psycopg://nobody@127.0.0.1:1/nothing"
    done = run("--quick", "--database", "postgres", "--url", address, "--only", "open")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
