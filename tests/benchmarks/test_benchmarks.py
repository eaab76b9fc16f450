"""The benchmarks run and report every case; the times are nobody's business here."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.figures import Compared, table
from benchmarks.versions import SqliteLog
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
@pytest.mark.parametrize("report", [("--database", "postgres", "--only", "network")], indirect=True)
def test_a_network_is_counted(report: dict[str, Any]) -> None:
    exchanges = figures(report, "network")
    assert len(exchanges) == 5
    assert all(2 <= number <= 20 for number in exchanges.values()), exchanges
    network = [timing for timing in report["timings"] if timing["case"].startswith("network")]
    assert all(timing["median"] > 0.001 for timing in network), "a round trip takes a millisecond"


@pytest.mark.usefixtures("postgres_server")
def test_another_commit_and_this_checkout_take_turns(tmp_path: Path, repository: Path) -> None:
    file = tmp_path / "figures.json"
    arguments = ("--against", "HEAD", "--quick", "--json", str(file), "--folder", str(tmp_path))
    done = run(*arguments, checkout=repository)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["figures.json"], "databases are removed"
    compared = json.loads(file.read_text())["compared"]
    assert compared
    for one in compared:
        assert one["rows"] == 1000 and 1 <= one["rounds"] <= 9
        assert all(one[name] > 0 for name in ("other_p50", "here_p50", "better")), one
    named = {(one["database"], one["name"]) for one in compared}
    both = {name for database, name in named if database == "sqlite"} - {"SQLite's log, a loop"}
    assert both == {name for database, name in named if database == "postgres"}
    assert {"loop", "add one", "open after a kill, and first draw", "mean loss, window full"} < both
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 2 + len(compared) and {row.count(" | ") for row in rows} == {6}
    assert done.stdout.count("MISSED") + done.stdout.count("met ") == 2 * 9


def test_a_version_runs_from_its_own_code(tmp_path: Path) -> None:
    """A folder without memstore, where the process would take the installed one instead."""
    program = f"import pathlib, benchmarks.versions as v; v.Version(pathlib.Path({str(tmp_path)!r}), 'x', 9, 1)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert f"not from {tmp_path}" in done.stderr and "ended with exit code 1" in done.stderr


def test_the_log_of_a_file_is_read_while_others_write(tmp_path: Path) -> None:
    """Each transaction writes at least the page of its row, also after the log has started anew."""
    file = tmp_path / "some.db"
    program = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None); "
        "db.execute('PRAGMA journal_mode=wal'); db.execute('PRAGMA wal_autocheckpoint=3'); "
        "db.execute('CREATE TABLE t (x BLOB)'); print(flush=True); "
        "[(db.execute('INSERT INTO t VALUES (zeroblob(100000))'), print(flush=True)) for _ in sys.stdin]"
    )
    command = [sys.executable, "-c", program, str(file)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdin is not None and writer.stdout is not None
        writer.stdout.readline()
        log = SqliteLog(Path(f"{file}-shm"))
        assert log.grown() == 0
        for _ in range(3):
            writer.stdin.write("\n")
            writer.stdin.flush()
            writer.stdout.readline()
            assert 100_000 < log.grown() < 120_000
        assert log.grown() == 0
        writer.stdin.close()


def test_no_index_of_a_log_means_no_log(tmp_path: Path) -> None:
    assert SqliteLog(tmp_path / "none").grown() == 0


def test_rates_are_better_when_larger_and_times_when_smaller() -> None:
    def better(unit: str, other: tuple[float, ...]) -> float | None:
        return Compared("sqlite", 9, "figure", unit, other, (4.0, 2.0, 6.0)).better

    assert better("ms", (8.0,)) == better("KiB", (8.0,)) == 2.0
    assert better("rows/s", (8.0,)) == 0.5
    assert better("ms", ()) is None


def test_a_table_leaves_empty_what_the_other_version_lacks() -> None:
    fold = Compared("sqlite", 1000, "a full fold", "ms", (), (123.4,))
    loop = Compared("sqlite", 1000, "loop", "ms", (9.0, 10.0), (3.0, 2.0), cpu=(8.0, 2.0))
    assert list(table([fold, loop], "8ed6a6f4ada1")) == [
        "| SQLite, 1,000 rows | 8ed6a6f4: p50 | p95 | here: p50 | p95 | better | processor |",
        "|---|---|---|---|---|---|---|",
        "| a full fold, ms |  |  | 123 |  |  |  |",
        "| loop, ms | 9.50 | 9.95 | 2.50 | 2.95 | 3.80x | 4.00x |",
        "",
    ]


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
