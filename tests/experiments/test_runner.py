"""The runner: every finished trial is kept, a stopped or killed run continues, what does not belong is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import memstore
from experiments import runner
from experiments.__main__ import main
from experiments.experiment import EXPERIMENTS, Finding, Report, Trial, experiment_named
from experiments.runner import RESULTS, RunProgress, run_experiment
from memstore.errors import ConfigError, InvalidValue
from memstore.figures.figure import TableData

ROOT = Path(__file__).parents[2]


class Toy:
    """Two arms whose numbers follow from the trial; it logs each run, and stops or fails where it is told to."""

    title = "a toy"
    source = "nothing"

    def __init__(self, log: Path, *, name: str = "toy", stop_at: int | None = None, error: Any = None) -> None:
        self.log = log
        self.name = name
        self.stop_at = stop_at
        self.error = error

    def trials(self, *, quick: bool, seeds: int | None) -> list[Trial]:
        return [Trial(arm, seed, size=2) for seed in range(seeds or (1 if quick else 4)) for arm in ("one", "two")]

    def run(self, trial: Trial, folder: Path) -> dict[str, Any]:
        assert list(folder.iterdir()) == []
        (folder / "run.db").write_text("left behind")
        if self.stop_at == trial.seed:
            raise self.error
        with self.log.open("a") as log:
            log.write(f"{trial.arm} {trial.seed} {folder}\n")
        return {"y": trial.seed / 3, "pair": (1, 2)}

    def report(self, results: Mapping[Trial, Mapping[str, Any]]) -> Report:
        rows = tuple((trial.arm, str(trial.seed), repr(result)) for trial, result in results.items())
        return Report((TableData("all", ("arm", "seed", "result"), rows),), (), (Finding("a", "b", True),), ())


def runs_of(toy: Toy) -> list[str]:
    return [" ".join(line.split()[:2]) for line in toy.log.read_text().splitlines()]


@pytest.fixture
def toy(tmp_path: Path) -> Toy:
    return Toy(tmp_path / "log")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "out"


@pytest.fixture
def straight(tmp_path: Path) -> Report:
    """What an uninterrupted run comes to."""
    return run_experiment(Toy(tmp_path / "other log"), tmp_path / "straight")


def test_a_run_reports_all_its_trials(toy: Toy, out: Path) -> None:
    seen: list[RunProgress] = []
    report = run_experiment(toy, out, on_progress=seen.append)
    assert [row[:2] for row in report.tables[0].rows] == [
        (arm, str(seed)) for seed in range(4) for arm in ("one", "two")
    ]
    assert seen[0] == RunProgress(0, 8, None)
    assert [(progress.done, progress.total) for progress in seen[1:]] == [(done, 8) for done in range(1, 9)]
    assert seen[-1].trial == Trial("two", 3, 2)
    assert {path.name for path in out.iterdir()} == {RESULTS, "report.json", "report.txt"}
    document = json.loads((out / "report.json").read_text())
    assert document["trials"][1] == {"arm": "two", "seed": 0, "size": 2, "result": {"y": 0.0, "pair": [1, 2]}}
    assert {"python", "memstore", "numpy"} <= document["versions"].keys()
    assert not any(Path(line.split()[2]).exists() for line in toy.log.read_text().splitlines())


def test_quick_and_seeds_choose_the_trials(toy: Toy, tmp_path: Path) -> None:
    assert len(run_experiment(toy, tmp_path / "a", quick=True).tables[0].rows) == 2
    assert len(run_experiment(toy, tmp_path / "b", quick=True, seeds=3).tables[0].rows) == 6


def test_a_finished_run_is_not_repeated(toy: Toy, out: Path, straight: Report) -> None:
    run_experiment(toy, out)
    seen: list[RunProgress] = []
    assert run_experiment(toy, out, on_progress=seen.append) == straight
    assert seen == [RunProgress(8, 8, None)]
    assert len(runs_of(toy)) == 8


@pytest.mark.parametrize(
    ("error", "jobs"), [(KeyboardInterrupt(), 1), (ValueError("a bug"), 1), (ValueError("a bug"), 2)]
)
def test_a_stopped_run_continues(tmp_path: Path, out: Path, straight: Report, error: BaseException, jobs: int) -> None:
    with pytest.raises(type(error)):
        run_experiment(Toy(tmp_path / "log", stop_at=2, error=error), out, jobs=jobs)
    whole = Toy(tmp_path / "log")
    before = len((out / RESULTS).read_text().splitlines()) - 1
    assert before == 4 if jobs == 1 else 3 <= before <= 6
    assert run_experiment(whole, out) == straight
    again = runs_of(whole)[-(8 - before) :]
    assert len(set(again)) == 8 - before, "none of them twice"


def test_what_a_kill_left_of_a_line_is_dropped(toy: Toy, out: Path, straight: Report) -> None:
    run_experiment(toy, out)
    whole = (out / RESULTS).read_bytes()
    lines = whole.splitlines(keepends=True)
    header, last = len(lines[0]), len(whole) - len(lines[-1])
    for cut, left in ((0, 8), (1, 8), (header - 1, 8), (header, 8), (header + 1, 8), (last, 1), (last + 9, 1), (-1, 1)):
        (out / RESULTS).write_bytes(whole[:cut])
        before = len(runs_of(toy))
        assert run_experiment(toy, out) == straight
        assert len(runs_of(toy)) - before == left, f"cut at byte {cut}"
        assert (out / RESULTS).read_bytes() == whole


def test_other_options_are_refused(toy: Toy, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_experiment(toy, out, quick=True)
    before = {path: path.read_bytes() for path in out.iterdir()}
    for other, options, said in (
        (Toy(toy.log, name="other"), {"quick": True}, "experiment toy, this run is of other"),
        (toy, {}, "quick true, this run is of false"),
        (toy, {"quick": True, "seeds": 2}, "seeds null, this run is of 2"),
    ):
        with pytest.raises(ConfigError, match=f"{said}; choose another folder"):
            run_experiment(other, out, **options)
    for what, value in (("code", "f00"), ("versions", {"python": "2.7"})):
        with monkeypatch.context() as patch:
            patch.setattr(runner, what, lambda *_, value=value: value)
            with pytest.raises(ConfigError, match=f"results of {what} .*; choose another folder"):
                run_experiment(toy, out, quick=True)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert len(runs_of(toy)) == 2


def test_the_code_that_matters_is_more_than_its_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "memstore"
    (package / "cli").mkdir(parents=True)
    for name in ("__init__", "draws", "cli/plot"):
        (package / f"{name}.py").write_text("")
    monkeypatch.setattr(memstore, "__file__", str(package / "__init__.py"))
    first = runner.code()
    (package / "cli" / "plot.py").write_text("other = 1")
    assert runner.code() == first
    (package / "draws.py").write_text("other = 1")
    assert runner.code() != first


@pytest.mark.parametrize("damage", [b"not JSON\n", b"[1]\n", b'{"trial": {"arm": "one"}}\n', b'{"result": {}}\n'])
def test_a_damaged_file_is_refused(toy: Toy, out: Path, damage: bytes) -> None:
    run_experiment(toy, out)
    lines = (out / RESULTS).read_bytes().splitlines(keepends=True)
    (out / RESULTS).write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))
    with pytest.raises(ConfigError, match="line 3, is not of an experiment's results"):
        run_experiment(toy, out)
    (out / RESULTS).write_bytes(damage)
    with pytest.raises(ConfigError, match="choose another folder"):
        run_experiment(toy, out)


def test_a_folder_that_cannot_be_is_refused(toy: Toy, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        run_experiment(toy, tmp_path / "file")
    for options in ({"seeds": 0}, {"jobs": 0}, {"seeds": 1.5}):
        with pytest.raises(ConfigError, match="seeds|jobs"):
            run_experiment(toy, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()], ids=["nan", "inf", "object"])
def test_a_result_that_json_cannot_hold_is_refused(
    toy: Toy, out: Path, monkeypatch: pytest.MonkeyPatch, value: object
) -> None:
    monkeypatch.setattr(toy, "run", lambda trial, folder: {"y": value})
    with pytest.raises(InvalidValue, match="not plain finite JSON"):
        run_experiment(toy, out)
    assert len((out / RESULTS).read_text().splitlines()) == 1


def test_processes_come_to_the_same(toy: Toy, out: Path, straight: Report) -> None:
    assert run_experiment(toy, out, jobs=2) == straight
    assert sorted(runs_of(toy)) == sorted(f"{arm} {seed}" for seed in range(4) for arm in ("one", "two"))


KILLED = """
import sys, time
from pathlib import Path
from tests.experiments.test_runner import Toy, run_experiment

class Slow(Toy):
    def run(self, trial, folder):
        time.sleep(0.05)
        return super().run(trial, folder)

print("ready", flush=True)
run_experiment(Slow(Path(sys.argv[1])), sys.argv[2])
"""


def test_kill_9_leaves_what_was_finished(toy: Toy, out: Path, straight: Report) -> None:
    command = [sys.executable, "-c", KILLED, str(toy.log), str(out)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.23)
        process.kill()
    finished = (out / RESULTS).read_bytes().count(b'{"trial"')
    assert 0 < finished < 8
    assert run_experiment(toy, out) == straight
    assert 8 <= len(runs_of(toy)) <= 9, "at most the trial that was killed ran twice"


def test_ctrl_c_says_how_to_go_on_and_leaves_no_process(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments", "split-digits", "--quick", "--jobs", "2", "--out", "out"]
    results = tmp_path / "out" / RESULTS
    command[-1] = str(results.parent)
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        deadline = time.monotonic() + 60
        while not (results.exists() and results.read_bytes().count(b"\n") > 1) and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "of 12 trials; the same command continues" in said and "Traceback" not in said
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_the_command_prints_what_it_wrote(toy: Toy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("experiments.__main__.experiment_named", lambda name: toy)
    arguments = ["cliffwalk", "--seeds", "2", "--out", str(tmp_path / "out")]
    printed = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert printed.exit_code == 0
    assert printed.stdout == (tmp_path / "out" / "report.txt").read_text(encoding="utf-8")
    as_json = CliRunner().invoke(main, [*arguments, "--json"], catch_exceptions=False)
    assert json.loads(as_json.stdout)["seeds"] == 2
    assert "found 4 of 4 trials" in as_json.stderr
    refused = CliRunner().invoke(main, [*arguments, "--quick"], catch_exceptions=False)
    assert refused.exit_code == 2 and "choose another folder" in refused.stderr


def test_every_experiment_has_its_name() -> None:
    for name in EXPERIMENTS:
        assert experiment_named(name).name == name
        assert experiment_named(name).trials(quick=True, seeds=1)
    with pytest.raises(ConfigError, match="one of split-digits, cliffwalk, imbalanced-digits"):
        experiment_named("mnist")
