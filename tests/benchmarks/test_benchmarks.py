"""The benchmarks run and report every case; the times are nobody's business here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "benchmarks", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


def test_quick_run_reports_every_case_beside_its_baselines(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    done = run("--quick", "--json", str(file), "--folder", str(tmp_path))
    assert done.returncode == 0, done.stderr
    report = json.loads(file.read_text())

    contenders: dict[tuple[str, int], list[str]] = {}
    for timing in report["timings"]:
        assert timing["rows"] == 2000
        assert 0 < timing["median"] <= timing["p95"]
        contenders.setdefault((timing["case"], timing["batch"]), []).append(timing["contender"])
        assert timing["contender"] in done.stdout
    draws = [
        "memstore, payloads from SQL",
        "memstore, payloads cached",
        "ORDER BY random key",
        "numpy in memory, bisection",
        "numpy in memory, uniform",
    ]
    writes = ["memstore", "by hand, SQLite's defaults", "by hand, memstore's pragmas"]
    assert contenders == {
        ("draw", 32): draws,
        ("draw", 256): draws,
        ("update", 256): writes,
        ("update, losses redrawn", 256): writes,
        ("loop", 256): ["memstore", "by hand, memstore's pragmas"],
        ("extend", 256): writes,
        ("extend, never measured", 256): writes,
        ("extend at capacity", 256): writes,
    }
    assert {(fact["case"], fact["name"]) for fact in report["facts"]} == {
        *(("open", name) for name in ("import", "open", "draw", "total")),
        *(("memory", name) for name in ("imported", "peak", "cache budget")),
    }
    assert report["targets"]
    assert done.stdout.count("not measured") == sum(target["met"] is None for target in report["targets"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figures.json"], "databases are removed"
    assert str(ROOT) not in done.stdout


def test_unknown_case_and_size_are_refused_before_anything_runs() -> None:
    for arguments in (("--only", "draw,nothing"), ("--rows", "0")):
        done = run(*arguments)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
