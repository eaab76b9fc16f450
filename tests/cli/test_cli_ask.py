"""The commands that ask and keep: what they print agrees with the library, and nothing printed steers a terminal."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from sqlalchemy import make_url

import memstore
from memstore.cli import main
from memstore.cli.text import moment, parse_moment, shown, value_text
from memstore.queries.columns import EPISODE_COLUMNS
from tests.support.helpers import OpenMemory
from tests.support.postgres import PostgresServer

HOSTILE = "[bold]x[/] \x1b[31m\x07 [/nope] $\\frac :smile: \u202e\x9b; DROP TABLE episode; --"
LONG = "long " + "y" * 150
DOMAINS = ["math", HOSTILE, LONG, "漢字"]
LIVE, GONE = 9, 2


def _payload(count: int) -> dict[str, Any]:
    number = np.arange(count)
    curve = np.tile(np.sin(np.arange(40) / 5), (count, 1))
    curve[:, 7] = np.nan
    return {
        "digit": np.tile(np.arange(64, dtype=np.float32), (count, 1)),
        "rgb": np.full((count, 6, 5, 3), 200, np.uint8),
        "curve": curve,
        "wave": np.tile(np.array([1 + 1j, -2j, complex("nan")]), (count, 1)),
        "number": number,
        "none": np.zeros((count, 0)),
        "grid": np.arange(count * 6).reshape(count, 2, 3),
        "said": [f"{HOSTILE} {i} " + "z" * 1000 for i in range(count)],
        "raw": [b"\x00\xff" * 40] * count,
        "inner": {"flag": number % 2 == 0, "mask": np.eye(4, dtype=bool)[None].repeat(count, 0)},
    }


def _fill(url: str) -> None:
    with memstore.open(url, capacity=12, eviction="fifo", alpha=0.6, seed=3, consumer="learner") as memory:
        memory.extend(
            _payload(16),
            domain=DOMAINS * 4,
            loss=np.linspace(0.1, 3.0, 16),
            level=list(range(16)),
            tags=[["hard", HOSTILE]] * 16,
            key=[f"key-{i}" for i in range(16)],
            extra=[{"policy": {"version": i}, HOSTILE: HOSTILE} for i in range(16)],
        )
        for step in range(6):
            batch = memory.sample(8)
            memory.update(batch, loss=np.abs(np.sin(batch.ids * (step + 1.0))), step=step)
        memory.update([LIVE] * 3, loss=[0.5, 0.25, 1.5], step=6)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A filled memory, which no test here changes."""
    file = str(tmp_path_factory.mktemp("asked") / "run.db")
    _fill(file)
    return file


@pytest.fixture(scope="module", params=["sqlite", "postgres"])
def db(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same on either database."""
    if request.param == "sqlite":
        yield request.getfixturevalue("file")
        return
    server: PostgresServer = request.getfixturevalue("postgres_server")
    name = f"memstore_asked_{os.getpid()}"
    try:
        url = server.create_database(name, request.getfixturevalue("empty_template"))
        _fill(url)
        yield url
    finally:
        server.drop_database(name)


@pytest.fixture
def memory(db: str) -> Iterator[memstore.EpisodicMemory]:
    with memstore.open(db, create=False) as memory:
        yield memory


def _run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner(env=env).invoke(main, list(arguments), catch_exceptions=False)


def _good(*arguments: str) -> str:
    result = _run(*arguments)
    assert result.exit_code == 0, result.output
    return result.stdout


def _json(*arguments: str) -> Any:
    return json.loads(_good(*arguments, "--json"))


def _records(found: list[Any]) -> Any:
    return json.loads(json.dumps([_named(record) for record in found]))


def _named(record: Any) -> dict[str, Any]:
    if isinstance(record, memstore.Episode):
        return {column.name: getattr(record, column.name) for column in EPISODE_COLUMNS}
    return asdict(record)


def test_json_is_what_the_library_says(db: str, memory: memstore.EpisodicMemory) -> None:
    assert _json("history", db, "--limit", "100") == _records(memory.history())
    assert _json("hardest", db, "-n", "3") == _records(memory.hardest(3))
    assert _json("forgotten", db) == _records(memory.forgotten())
    assert _json("domains", db) == _records(memory.replay_share())
    assert _json("query", db) == _records(memory.query().all())
    assert _json("query", db, "--history", "--limit", "5") == _records(memory.query("history").limit(5).all())
    figures = _json("plot", db)
    assert [figure["name"] for figure in figures] == ["losses", "trend", "replays", "domains"]
    assert figures[1]["series"][0]["y"] == max(memory.loss_trend(), key=lambda t: int(t.replays.sum())).loss.tolist()
    counts = figures[2]["series"][0]
    assert counts["x"][:4] == ["0", "1", "2 .. 3", "4 .. 7"] and sum(counts["y"]) == len(memory)
    replayed = [summary.replay_count for summary in memory.query().all()]
    assert counts["y"][2] == sum(2 <= count <= 3 for count in replayed)


FILTERS: list[tuple[list[str], dict[str, Any]]] = [
    (["--episode", str(LIVE)], {"episode": LIVE}),
    (["--episode", str(GONE)], {"episode": GONE}),
    (["--domain", HOSTILE], {"domain": HOSTILE}),
    (["--domain", "absent"], {"domain": "absent"}),
    (["--consumer", "learner", "--limit", "4"], {"consumer": "learner", "limit": 4}),
    (["--steps", "1:2"], {"steps": (1, 2)}),
    (["--steps", "4:"], {"steps": (4, 6)}),
    (["--steps", ":1"], {"steps": (0, 1)}),
    (["--steps", "5"], {"steps": 5}),
    (["--since", "1h"], {}),
    (["--since", "2999-01-01T00:00:00+00:00"], {"since": 2**36}),
    (["--until", "1 h ago"], {"until": 0}),
    (["--since", "0", "--until", "2999-12-31"], {}),
]


def test_history_is_filtered(db: str, memory: memstore.EpisodicMemory) -> None:
    for options, arguments in FILTERS:
        assert _json("history", db, *options) == _records(memory.history(**{"limit": 20, **arguments})), options


def test_history_shows_the_newest_last(file: str) -> None:
    found = re.findall(r"^ *(\d+) .* (?:replayed|evicted) ", _good("history", file, "--limit", "7"), re.MULTILINE)
    assert found == [str(event["event"]) for event in _json("history", file, "--limit", "100")[-7:]]
    assert _good("history", file, "--domain", "absent") == "no such events\n"


@pytest.mark.parametrize(
    "options",
    [
        ["history", "--steps", "x"],
        ["history", "--steps", "1:y"],
        ["history", "--steps", "3:1"],
        ["history", "--since", "yesterday"],
        ["history", "--since", "nan"],
        ["history", "--limit", "0"],
        ["history", "--domain", ""],
        ["hardest", "-n", "-1"],
        ["show", "x"],
        ["show", str(10**30)],
        ["query", "--order", "nonsense"],
        ["query", "--order", "tags"],
        ["query", "--select", "id,,loss"],
        ["query", "--select", "tags"],
        ["query", "--select", "loss.x"],
        ["query", "--order", "step"],
        ["query", "loss >"],
        ["query", "loss = 1; DROP TABLE episode"],
        ["query", "step > 3"],
        ["query", "--history", "nonsense = 3"],
        ["plot", "--what", "x"],
        ["plot", "--out", "plot.pdf"],
        ["plot", "--out", "no/such/folder/plot.png"],
        ["stats", "--watch", "0"],
        ["domains", "--buffer", "absent"],
    ],
)
def test_wrong_usage_is_exit_code_2(file: str, options: list[str]) -> None:
    command, *rest = options
    result = _run(command, file, *rest)
    assert result.exit_code == 2, result.output
    assert result.stdout == "" and len(result.stderr.splitlines()) < 8


def test_an_episode_is_shown_whole(db: str, memory: memstore.EpisodicMemory) -> None:
    output = _good("show", db, str(LIVE))
    events = memory.history(episode=LIVE)
    for expected in (
        f"episode {LIVE}",
        "math",
        "key-8",
        "digit  float32[64]",
        "as 8 x 8, dark 0 .. bright 63:",
        "rgb  uint8[6,5,3]",
        "as 6 x 5, dark 0 .. bright 255:",
        "curve  float64[40]",
        "(1 not finite)",
        "wave  complex128[3]",
        "magnitudes: min 1.414",
        "number  int64",
        "none  float64[0]",
        "empty",
        "grid  int64[2,3]",
        "[48, 49, 50, 51, 52, 53]",
        "inner/flag  bool",
        "inner/mask  bool[4,4]",
        "4 of 16 true",
        "raw  bytes",
        "(80 bytes)",
        f"the last 5 of {len(events)} events",
    ):
        assert expected in output, expected
    assert re.search(r"\n  @@ +\n    @@ +\n      @@ +\n        @@\n", output)
    assert re.search(r"losses  [▁-█]{4,}  ", output)
    curve = output[output.index("curve ") :].splitlines()[2]
    assert re.fullmatch(r"  [▁-█]{7} [▁-█]{32}", curve)


def test_an_episode_in_json_is_complete(db: str, memory: memstore.EpisodicMemory) -> None:
    found, episode = _json("show", db, str(LIVE)), memory.get(LIVE)
    assert found["live"] is True and found["extra"] == episode.extra and found["tags"] == list(episode.tags)
    assert found["history"] == _records(memory.history(episode=LIVE))
    payload = found["payload"]
    assert payload["said"] == episode.payload["said"]
    assert payload["inner/flag"] == {"dtype": "|b1", "shape": [], "values": bool(episode.payload["inner"]["flag"])}
    assert payload["number"]["values"] == int(episode.payload["number"])
    for name in ("digit", "rgb", "curve", "grid", "none"):
        stored = episode.payload[name]
        values = np.array(payload[name]["values"], dtype=object).astype(np.dtype(payload[name]["dtype"]))
        assert values.reshape(payload[name]["shape"]).tobytes() == stored.tobytes(), name
    assert payload["wave"]["values"] == [[1.0, 1.0], [-0.0, -2.0], ["nan", 0.0]]


def test_of_an_episode_that_left_its_end_is_shown(db: str, memory: memstore.EpisodicMemory) -> None:
    result = _run("show", db, str(GONE))
    assert result.exit_code == 1
    assert re.search(rf"episode {GONE} is no longer live: evicted \(fifo\) at \d{{4}}-.* by learner", result.stdout)
    found = _run("show", db, str(GONE), "--json")
    assert found.exit_code == 1
    history = _records(memory.history(episode=GONE))
    assert json.loads(found.stdout) == {"id": GONE, "live": False, "history": history}
    for unknown in ("999", "-5"):
        result = _run("show", db, "--", unknown)
        assert result.exit_code == 1 and result.stdout == "" and unknown in result.stderr


def test_queries(db: str, memory: memstore.EpisodicMemory) -> None:
    col = memstore.col
    asked = memory.query().filter((col.loss > 0.3) & (col.domain == "math"))
    text = "loss > 0.3 and domain = 'math'"
    assert 0 < asked.count() < len(memory)
    assert _json("query", db, text) == _records(asked.all())
    assert _good("query", db, text, "--count") == f"{asked.count()}\n"
    assert _json("query", db, text, "--count") == {"count": asked.count()}
    ordered = _json("query", db, text, "--order", "-loss", "--limit", "2", "--select", "id, loss")
    expected = asked.order_by(col.loss.descending).limit(2).all()
    assert ordered == [{"id": summary.id, "loss": summary.loss} for summary in expected]
    place = _json(
        "query", db, "--order", "-extra.policy.version", "--limit", "2", "--select", "extra.policy.version,id"
    )
    assert place == [{"extra.policy.version": 15, "id": 16}, {"extra.policy.version": 14, "id": 15}]
    assert _good("query", db, "loss > 1000") == "nothing found\n"
    assert "the first 2; --limit shows more" in _good("query", db, "--limit", "2")
    replayed = memory.query("history").filter((col.what == "replayed") & (col.step >= 5))
    assert len(_json("query", db, "what = 'replayed' and step >= 5", "--history")) == replayed.count()


def test_an_error_in_the_text_is_pointed_at(file: str) -> None:
    result = _run("query", file, "loss > 2 and nonsense = 3")
    assert result.exit_code == 2 and "nonsense" in result.stderr
    where = next(line for line in result.stderr.splitlines() if "loss > 2 and nonsense" in line)
    caret = next(line for line in result.stderr.splitlines() if line.strip().startswith("^"))
    assert caret.index("^") == where.index("nonsense")


def test_rows_as_csv_are_complete(db: str, memory: memstore.EpisodicMemory) -> None:
    rows = list(csv.DictReader(io.StringIO(_good("query", db, "--format", "csv"))))
    for row, summary in zip(rows, memory.query().all(), strict=True):
        assert (row["id"], row["domain"]) == (str(summary.id), summary.domain)
        assert json.loads(row["extra"]) == summary.extra
        assert float(row["loss"]) == summary.loss
    history = csv.DictReader(
        io.StringIO(_good("query", db, "--history", "--format", "csv", "--select", "id,step", "--limit", "999"))
    )
    assert {row["step"] for row in history} == {"", *(str(event.step) for event in memory.history()[4:])}


COMMANDS = [
    ["stats"],
    ["history"],
    ["hardest"],
    ["forgotten"],
    ["domains"],
    ["show", str(LIVE)],
    ["show", str(LIVE + 1)],
    ["query"],
    ["query", "--history"],
    ["plot"],
    ["check"],
]
NO_TERMINAL = {"FORCE_COLOR": "", "TTY_COMPATIBLE": ""}
TERMINAL = {"FORCE_COLOR": "1", "COLUMNS": "80", "COLORTERM": "truecolor", "TERM": "xterm", "NO_COLOR": ""}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_names_do_not_steer_the_terminal(file: str, command: list[str]) -> None:
    name, *rest = command
    plain = _run(name, file, *rest).stdout
    assert all(character.isprintable() or character == "\n" for character in plain)
    painted = _run(name, file, *rest, env=TERMINAL).stdout
    assert re.sub(r"\x1b\[[\d;]*m", "", painted).replace("\n", "").isprintable()
    # What our own output paints with is never what a name asked for.
    assert not re.search(r"\x1b\[31m", painted)
    if name not in ("check", "show"):
        assert shown(HOSTILE)[:20] in plain and "\\x1b" in plain and "y" * 100 not in plain


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_a_terminal_gets_what_fits_and_a_pipe_everything(file: str, command: list[str]) -> None:
    name, *rest = command
    lines = re.sub(r"\x1b\[[\d;]*m", "", _run(name, file, *rest, env=TERMINAL).stdout).splitlines()
    if name not in ("plot", "check"):
        assert max(map(len, lines)) <= 80
    if name == "history":
        assert any("no room for weight, probability" in line for line in lines)
        header, _, first, *_ = _good(name, file, *rest).strip("\n").splitlines()[1:]
        assert header.split()[-2:] == ["probability", "weight"] and len(first) > 80


def test_the_picture_is_in_colour_where_there_is_colour(file: str) -> None:
    painted = _run("show", file, str(LIVE), env=TERMINAL).stdout
    assert "\x1b[38;2;200;200;200;48;2;200;200;200m▀" in painted
    assert "▀" not in _run("show", file, str(LIVE), env={**TERMINAL, "NO_COLOR": "1"}).stdout


def test_plots_are_text_or_a_picture(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = _good("plot", file)
    for title in ("losses (episodes)", "mean loss of replays (loss)", "replays of live episodes", "share of the repl"):
        assert title in output
    only = _good("plot", file, "--what", "domains")
    assert "target" in only and "losses" not in only
    picture = tmp_path / "all.png"
    assert str(picture) in _good("plot", file, "--out", str(picture))
    assert picture.read_bytes().startswith(b"\x89PNG")
    for name in [*filter(lambda name: name.split(".")[0] == "matplotlib", sys.modules), "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    result = _run("plot", file, "--out", str(tmp_path / "other.png"))
    assert result.exit_code == 2 and "pip install 'memstore[plot]'" in result.stderr


def test_nothing_yet_is_said(path: str, tmp_path: Path) -> None:
    with memstore.open(path):
        pass
    said = {
        "history": "no such events",
        "hardest": "no episode has a loss yet",
        "forgotten": "no loss is above its lowest",
        "domains": "nothing added yet",
        "query": "nothing found",
        "plot": "losses: nothing yet",
    }
    for command, words in said.items():
        assert words in _good(command, path)
        assert _json(command, path) == []
    result = _run("plot", path, "--out", str(tmp_path / "none.png"))
    assert result.exit_code == 2 and "nothing to draw" in result.stderr
    assert not (tmp_path / "none.png").exists()


class _Clock(SimpleNamespace):
    """Time that passes only in ``sleep``, in which the memory is used; the third sleep is interrupted."""

    def __init__(self, url: str) -> None:
        self.url, self.now, self.naps = url, 0.0, 0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps += 1
        if self.naps == 3:
            raise KeyboardInterrupt
        self.now += seconds
        with memstore.open(self.url) as memory:
            ids = memory.extend({"x": np.zeros(10)})
            memory.update(ids[:4], loss=1.0)


def test_watching_shows_rates_until_it_is_interrupted(
    url: str, open_memory: OpenMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_memory(capacity=15)
    monkeypatch.setattr("memstore.cli.stats.time", _Clock(url))
    looks = [json.loads(line)[0] for line in _good("stats", url, "--json", "--watch", "2.5").splitlines()]
    assert [look["added_per_s"] for look in looks] == [None, 4.0, 4.0]
    assert [look["replayed_per_s"] for look in looks] == [None, 1.6, 1.6]
    assert looks[-1]["buffer_size"] == 15
    monkeypatch.setattr("memstore.cli.stats.time", _Clock(url))
    result = _run("stats", url, "--watch")
    assert result.exit_code == 0 and result.stderr == ""
    assert result.stdout.count("5.0 added/s, 2.0 replayed/s") == 2
    monkeypatch.setattr("memstore.cli.stats.time", _Clock(url))
    live = _run("stats", url, "--watch", env=TERMINAL)
    assert live.exit_code == 0 and "5.0 added/s" in live.stdout


def test_which_buffer_is_meant(path: str) -> None:
    with memstore.open(path, buffer="one") as memory:
        memory.update([memory.add({"x": 1.0}, domain="d")], loss=1.0)
    commands = [["history"], ["hardest"], ["forgotten"], ["domains"], ["show", "1"], ["query"], ["plot"]]
    alone = [_good(name, path, *rest) for name, *rest in commands]
    assert "seconds since the first" in alone[-1], "no step was given"
    with memstore.open(path, buffer="two"):
        pass
    for (name, *rest), output in zip(commands, alone, strict=True):
        result = _run(name, path, *rest)
        assert result.exit_code == 2 and "'one', 'two'" in result.stderr and "--buffer" in result.stderr
        assert _good(name, path, *rest, "--buffer", "one") == output
    assert len(_json("stats", path)) == len(_json("check", path)) == 2


ALL_COMMANDS = [
    *COMMANDS[:6],
    ["query"],
    ["plot"],
    ["check"],
    ["upgrade"],
    ["vacuum"],
    ["backup", "copy.db"],
    ["restore", "target.db"],
    ["stats", "--watch"],
]


@pytest.mark.parametrize("command", ALL_COMMANDS, ids=" ".join)
def test_a_missing_file_is_refused_and_not_created(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    name, *rest = command
    result = _run(name, "missing.db", *rest)
    assert result.exit_code == 3 and result.stdout == "" and "missing.db" in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("db", ["postgres"], indirect=True)
def test_no_password_is_shown(db: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    secret = "hunter2"
    plain = make_url(db)
    addresses = [
        plain.set(password=secret).render_as_string(hide_password=False),
        plain.set(password=secret, database="absent").render_as_string(hide_password=False),
        f"host=db user=u password={secret} dbname=x",
        f"postgresql:/u:{secret}@h/db",
        f"postgresql://u:p@{secret}@h/db",
    ]
    said = [_run(name, url, *rest).output for url in addresses for name, *rest in ALL_COMMANDS if "--watch" not in rest]
    said += [_run("history", url, "--buffer", "absent").output for url in addresses]
    assert all(said) and secret not in "".join(said)


def test_a_backup_is_a_memory_again(url: str, open_memory: OpenMemory, tmp_path: Path) -> None:
    copy = str(tmp_path / "copy.db")
    memory = open_memory(capacity=50)
    memory.extend({"x": np.arange(40.0)}, loss=1.0)
    result = _run("backup", url, copy)
    assert result.exit_code == 0 and result.stdout.rstrip().endswith(f"is copied to {copy}")
    assert _json("query", copy) == _json("query", url)
    assert "40 episodes, sound" in _good("check", copy)
    again = _run("backup", url, copy)
    assert again.exit_code == 2 and "exists" in again.stderr
    memory.delete(np.arange(1, 31))
    memory.close()
    assert set(_json("vacuum", copy)["after"]) == {"database", "wal"}
    assert re.search(r"^database: [\d.,]+ KiB -> [\d.,]+ KiB$", _good("vacuum", copy), re.MULTILINE)
    assert " -> " in _good("vacuum", url)
    assert _json("query", url, "--count") == {"count": 10}


def test_times_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("memstore.cli.text.time", SimpleNamespace(time=lambda: 1_000_000.0))
    assert [parse_moment(age) for age in ("10m", "2h ago", "1.5 d", "30s", "1w")] == [
        1e6 - 600,
        1e6 - 7200,
        1e6 - 129_600,
        1e6 - 30,
        1e6 - 604_800,
    ]
    assert parse_moment("12.5") == 12.5
    assert parse_moment("2026-01-31T12:00:00+00:00") == 1769860800.0
    assert parse_moment("2026-01-31 12:00") == time.mktime((2026, 1, 31, 12, 0, 0, 0, 0, -1))
    for wrong in ("", "soon", "inf", "10 y", "-5m", "2026-13-01"):
        with pytest.raises(ValueError, match="give seconds, an ISO time"):
            parse_moment(wrong)


def test_words_and_numbers_are_shown() -> None:
    assert shown("a" * 60) == "a" * 60 and shown("a" * 61) == "a" * 59 + "…"
    assert shown("a\nb\x00\x9b\u2028é√", 30) == "a\\nb\\x00\\x9b\\u2028é√"
    assert len(shown("\x00" * 10**6)) == 60
    assert (value_text(None), value_text(True), value_text(12345), value_text(0.12345)) == (
        "-",
        "true",
        "12345",
        "0.1235",
    )
    assert value_text({"a": [1, "\x1b"]}) == '{"a": [1, "\\u001b"]}'
    assert moment(5.0) == "5" and moment(1e300) == "1e+300"
    assert moment(1769860800.0).startswith("2026-01-3")
