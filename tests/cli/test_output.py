"""Every command on every kind of standard stream: no traceback, the right exit code, nothing that steers a terminal."""

from __future__ import annotations

import json
import logging
import os
import re
import shlex
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import memstore
from experiments.experiment import EXPERIMENTS
from memstore.cli import main
from memstore.cli.output import EXIT_OUTPUT, EXIT_PIPE, encodable
from memstore.printable import visible, visible_lines
from tests.support.hostile import NAMES, SURROGATE, TERMINAL
from tests.support.streams import EVERY_COMMAND, Outcome, Streams, run_all

TRAIN = "train --db run.db --dataset small.npz --capacity 20"
EXPERIMENT = "experiment cliffwalk --out small"

COMMANDS: dict[str, tuple[str, ...]] = {
    "train": (TRAIN, f"{TRAIN} --json", f"{TRAIN} --no-replay", "train --db run.db --dataset none.npz"),
    "experiment": (EXPERIMENT, f"{EXPERIMENT} --json", "experiment nothing"),
    "stats": ("stats hostile.db", "stats hostile.db --json", "stats none.db", "stats ."),
    "history": ("history hostile.db", "history hostile.db --json", "history hostile.db --domain none"),
    "hardest": ("hardest hostile.db", "hardest hostile.db --json"),
    "forgotten": ("forgotten hostile.db", "forgotten hostile.db --json"),
    "domains": ("domains hostile.db", "domains hostile.db --json"),
    "show": ("show hostile.db 1", "show hostile.db 1 --json", "show hostile.db 999"),
    "query": (
        "query hostile.db --limit 99",
        "query hostile.db --json",
        "query hostile.db --count",
        "query hostile.db 'loss >'",
    ),
    "plot": ("plot hostile.db", "plot hostile.db --json", "plot hostile.db --out nowhere/x.png"),
    "check": (
        "check hostile.db",
        "check hostile.db --json",
        "check damaged.db",
        "check broken.db",
        "check broken.db --json",
    ),
    "upgrade": ("upgrade hostile.db", "upgrade hostile.db --json", "upgrade none.db"),
    "backup": ("backup hostile.db hostile.db", "backup none.db copy.db"),
    "restore": ("restore hostile.db restored.db", "restore hostile.db restored.db --json", "restore none.db copy.db"),
    "fold": ("fold run.db", "fold run.db --json", "fold none.db"),
    "vacuum": ("vacuum run.db", "vacuum run.db --json", "vacuum none.db"),
}
"""Each command with a table, as JSON, and refused: a new command must be given lines here."""

GENERAL = ("", "--help", "--version", "nothing", "stats", "stats --help", "stats hostile.db --watch 0", "query a b c d")

LINES = [*(line for lines in COMMANDS.values() for line in lines), *GENERAL]

REFUSED = {"": 2, "nothing": 2, "stats none.db": 3, "stats .": 3, "show hostile.db 999": 1, "check damaged.db": 1}

ENCODINGS = ("ascii", "cp1252", "latin-1", "cp437", "utf-16", "koi8-r")

COLOURS = {"FORCE_COLOR": "1", "COLUMNS": "100", "COLORTERM": "truecolor", "TERM": "xterm"}


def _fill(path: str) -> None:
    names = list(NAMES.values())
    count = len(names)
    with memstore.open(path, seed=1, consumer=TERMINAL["colour"], buffer=TERMINAL["title"]) as memory:
        memory.extend(
            {
                "curve": np.sin(np.arange(40.0) / np.arange(1, count + 1)[:, None]),
                "image": np.tile(np.arange(64, dtype=np.uint8), (count, 1)),
                TERMINAL["clipboard"]: names,
                TERMINAL["markup"]: np.zeros(count),
            },
            domain=names,
            tags=[[name] for name in names],
            key=names,
            extra=[{name: name} for name in names],
            loss=np.linspace(0, 5, count),
        )
        memory.save_checkpoint(TERMINAL["link"], {"x": 1.0})
        for step in range(3):
            memory.update(memory.sample(count), loss=np.linspace(1, 6 + step, count), step=step)


def _damage(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA writable_schema = ON")
    connection.execute(statement)
    connection.commit()
    connection.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The working folder of all commands: databases of hostile names, one damaged, one whose schema is no SQL."""
    folder = tmp_path_factory.mktemp("streams")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setitem(EXPERIMENTS, "cliffwalk", ("tests.support.small_experiment", "SmallExperiment"))
        _fill("hostile.db")
        with memstore.open("large.db") as memory:
            memory.extend({"x": np.zeros(5000)})
        for name in ("damaged.db", "broken.db"):
            (folder / name).write_bytes((folder / "hostile.db").read_bytes())
        _damage(folder / "damaged.db", "UPDATE replay_metadata SET loss = 77 WHERE episode_id = 3")
        planted = (
            f"INSERT INTO sqlite_schema VALUES ('table', '{TERMINAL['title']}', 'x', 0, 'CREATE {TERMINAL['colour']}')"
        )
        _damage(folder / "broken.db", planted)
        y = np.repeat(np.arange(4), 10)
        domain = np.repeat([TERMINAL["colour"], TERMINAL["markup"]], 20)
        np.savez(folder / "small.npz", x=np.eye(4)[y], y=y, domain=domain)
        for line in (TRAIN, EXPERIMENT):
            assert CliRunner().invoke(EVERY_COMMAND, shlex.split(line)).exit_code == 0
        yield folder


def _all(streams: Streams, folder: Path) -> dict[str, Outcome]:
    return dict(zip(LINES, run_all([shlex.split(line) for line in LINES], streams, folder), strict=True))


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, Outcome]:
    """Each line of the commands on streams that take everything."""
    return _all(Streams(), folder)


def test_every_command_is_tried() -> None:
    assert set(COMMANDS) == {*main.commands, "experiment"}
    assert all(line.split()[0] == name for name, lines in COMMANDS.items() for line in lines)


def _is_printable(text: str) -> bool:
    return text.replace("\n", "").isprintable()


def _timeless(report: bytes | str) -> Any:
    """What a command printed as JSON, without the time it took and the time in the name of what was replaced."""
    text = report.decode() if isinstance(report, bytes) else report
    text = re.sub(r"\.replaced-\d{8}-\d{6}(-\d+)?", ".replaced-TIME", text)
    return json.loads(text, object_hook=lambda found: {name: found[name] for name in found if name != "seconds"})


def test_nothing_hostile_is_printed(plain: dict[str, Outcome]) -> None:
    for line, outcome in plain.items():
        for text in (outcome.out.decode(), outcome.err.decode()):
            assert _is_printable(text), (line, text)
            assert "Traceback" not in text, (line, text)
        if "--json" in line and outcome.out:
            json.loads(outcome.out)
    for line, code in REFUSED.items():
        assert plain[line].code == code, (line, plain[line])
    # What names try arrives as escapes, and markup as it was written.
    assert rb"\x1b[31mred" in plain["history hostile.db"].out
    assert b"[link=http://evil.example]" in plain["domains hostile.db"].out
    assert rb"\x1b" in plain["check broken.db"].err, "SQLite repeats what is in the file"


def test_refusals_are_one_line(plain: dict[str, Outcome]) -> None:
    refused = [
        outcome
        for outcome in plain.values()
        if outcome.err.startswith(b"memstore: ") and b"^" not in outcome.err  # a mark below the place in a query
    ]
    assert len(refused) >= 8
    assert all(outcome.err.count(b"\n") == 1 for outcome in refused), refused


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_any_encoding(folder: Path, plain: dict[str, Outcome], encoding: str) -> None:
    for line, outcome in _all(Streams(encoding=encoding), folder).items():
        out, err = outcome.out.decode(encoding), outcome.err.decode(encoding)
        assert outcome.code == plain[line].code, (line, outcome)
        assert _is_printable(out) and _is_printable(err), (line, out, err)
        if "--json" in line and "vacuum" not in line and plain[line].out:
            assert _timeless(out) == _timeless(plain[line].out), line


def test_a_terminal_is_given_only_escape_sequences_of_its_own(folder: Path, plain: dict[str, Outcome]) -> None:
    for line, outcome in _all(Streams(environment=COLOURS), folder).items():
        text = outcome.out.decode() + outcome.err.decode()
        text = re.sub(r"\x1b\[[0-9;]*m", "", text)  # colours
        assert "\x1b[31m" not in outcome.out.decode()
        text = re.sub(r"\x1b\[(\?25[lh]|\d*[AK])|\r", "", text)  # a bar that is drawn anew
        assert _is_printable(text), (line, text)
        assert outcome.code == plain[line].code, (line, outcome)


@pytest.mark.parametrize("kind", ["full", "closed", "unread"])
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_any_broken_stream(folder: Path, plain: dict[str, Outcome], kind: Any, stream: str) -> None:
    streams = Streams(stdout=kind) if stream == "stdout" else Streams(stderr=kind)
    for line, outcome in _all(streams, folder).items():
        usual = plain[line]
        if stream == "stderr" or not usual.out:
            assert outcome.code == usual.code, (line, outcome)
            assert not usual.out or outcome.out, line
        elif kind == "unread":
            assert outcome.code == EXIT_PIPE, (line, outcome)
            assert b"annot write" not in outcome.err and b"Traceback" not in outcome.err, (line, outcome)
        else:
            assert outcome.code == EXIT_OUTPUT, (line, outcome)
            last = outcome.err.decode().splitlines()[-1]
            assert last.startswith("memstore: cannot write to standard output: "), (line, outcome)
            assert "Traceback" not in outcome.err.decode()


def test_both_broken(folder: Path) -> None:
    assert {outcome.code for outcome in _all(Streams("full", "full"), folder).values()} <= {1, 2, 3, EXIT_OUTPUT}
    assert {outcome.code for outcome in _all(Streams("unread", "unread"), folder).values()} <= {1, 2, 3, EXIT_PIPE}


def _shell(line: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = f'memstore() {{ {shlex.quote(sys.executable)} -m memstore "$@"; }}; set -o pipefail; {line}'
    known = {**os.environ, "PYTHONPATH": str(Path(memstore.__file__).parents[1]), **environment}
    return subprocess.run(["bash", "-c", command], cwd=folder, env=known, capture_output=True, timeout=60)


@pytest.mark.parametrize(
    "line, code",
    [
        ("memstore history hostile.db | true", EXIT_PIPE),
        ("memstore query large.db --format csv --limit 99999 | head -1", EXIT_PIPE),
        ("PYTHONUNBUFFERED=1 memstore query large.db --limit 99999 | head -1", EXIT_PIPE),
        ("PYTHONUNBUFFERED=1 memstore stats hostile.db > /dev/full", EXIT_OUTPUT),
        ("memstore stats hostile.db >&-", EXIT_OUTPUT),
        ("memstore check hostile.db <&- 2>&- >/dev/null", 0),
        ("PYTHONIOENCODING=cp1252 memstore stats hostile.db", 0),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 memstore stats hostile.db", 0),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 memstore stats données.db", 2),
    ],
)
def test_as_processes(folder: Path, line: str, code: int) -> None:
    done = _shell(line, folder)
    assert done.returncode == code, done
    assert b"Traceback" not in done.stderr and b"Exception ignored" not in done.stderr, done
    if code == EXIT_PIPE:
        assert done.stderr == b""


def test_characters_that_an_encoding_lacks() -> None:
    assert encodable("▁▂▃▄▅▆▇█", "ascii") == "12345678"
    assert encodable("▁▂▃▄▅▆▇█", "cp437") == "12345678", "not half of them"
    assert encodable("a ███ 3", "latin-1") == "a ### 3"
    assert encodable("a ███ 3", "cp437") == "a ███ 3"
    assert encodable("├──┤ …", "ascii") == "+--+ ..."
    assert encodable("2 ± 1 données 数", "cp1252") == "2 ± 1 données \\u6570"
    assert encodable("▁█ 数", "utf-8") == "▁█ 数"
    assert encodable(SURROGATE, "utf-8") == "\\udcff\\ud83d"


@pytest.mark.parametrize("name", [*NAMES.values(), SURROGATE])
def test_visible(name: str) -> None:
    assert visible(name).isprintable()
    assert visible(visible(name)) == visible(name)
    assert [visible(line) for line in name.split("\n")] == visible_lines(name).split("\n")
    if name.isprintable():
        assert visible(name) == name


@pytest.mark.parametrize("what", TERMINAL)
def test_what_a_user_typed_is_not_obeyed_either(folder: Path, what: str) -> None:
    name = TERMINAL[what]
    lines = [
        ["stats", name],
        ["stats", "hostile.db", "--buffer", f"{name}?"],
        ["stats", "hostile.db", f"--{name}"],
        ["query", "hostile.db", name],
        ["query", "hostile.db", "--order", name],
        ["query", "hostile.db", "--select", name],
        ["history", "hostile.db", "--limit", name],
        ["plot", "hostile.db", "--out", name],
        [name],
    ]
    for line in lines:
        done = CliRunner().invoke(main, line, catch_exceptions=False)
        assert done.exit_code in (2, 3), (line, done.output)
        assert _is_printable(done.output), (line, done.output)


def test_an_empty_buffer_name_is_refused(folder: Path) -> None:
    done = CliRunner().invoke(main, ["stats", "hostile.db", "--buffer", ""])
    assert done.exit_code == 2 and done.stderr.count("\n") == 1


def test_there_is_one_way_to_a_terminal() -> None:
    """A console of rich's own would write through the stream that makes its escape sequences visible."""
    folder = Path(memstore.__file__).parent / "cli"
    makers = {file.name for file in folder.glob("*.py") if re.search(r"\bConsole\(", file.read_text(encoding="utf-8"))}
    assert makers == set(), "take console() of memstore.cli.output"


def test_exit_codes_are_in_the_help() -> None:
    told = " ".join(CliRunner().invoke(main, ["--help"]).output.split())
    assert "4 standard output cannot be written, 130 interrupted, 141 nobody reads the output" in told


def test_warnings_do_not_steer_a_terminal(tmp_path: Path) -> None:
    memstore.open(tmp_path / "run.db").close()
    other = tmp_path / TERMINAL["colour"]
    os.link(tmp_path / "run.db", other)
    with pytest.warns(memstore.StoreWarning) as caught:
        memstore.open(other).close()
    told = str(caught[0].message)
    assert "red" in told and told.isprintable()


def test_the_log_does_not_steer_a_terminal(path: str, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    monkeypatch.setattr("memstore.sharing.waiting.REMINDER", 0.0)
    limiter = memstore.SamplesPerInsert(1.0, min_size=5)
    with (
        memstore.open(path, buffer=TERMINAL["title"], limiter=limiter, strategy="uniform") as memory,
        caplog.at_level(logging.WARNING, "memstore"),
        pytest.raises(memstore.WaitTimeout),
    ):
        memory.add({"x": 1.0})
        memory.sample(1, wait=0.05)
    assert caplog.messages and all(message.isprintable() for message in caplog.messages)
