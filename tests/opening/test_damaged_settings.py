"""A buffer whose settings are damaged: the error says which, and others of the same database are not affected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import memstore
from memstore import StoreCorrupt
from memstore.cli import main
from tests.support.helpers import Damage, OpenMemory, rows

DAMAGE = {
    "strategy": "'{'",
    "eviction": "'fifo '",
    "limiter": """'{"ratio": -1}'""",
    "history": """'{"record": 5}'""",
    "signature": "'{}'",
    "seed": "-5",
}
"""A value for each setting that the tables allow and memstore never writes."""


@pytest.fixture(params=sorted(DAMAGE))
def setting(request: pytest.FixtureRequest, url: str, open_memory: OpenMemory, damage: Damage) -> str:
    """A setting that is damaged in buffer 'bad'; 'first' and 'last' are sound."""
    for name in ("first", "bad", "last"):
        open_memory(buffer=name).extend(rows(3), loss=1.0)
    name = str(request.param)
    damage(f"UPDATE buffer SET {name} = {DAMAGE[name]} WHERE name = 'bad'")
    return name


def test_opening_names_the_buffer_the_setting_and_the_command(url: str, setting: str) -> None:
    with pytest.raises(StoreCorrupt) as caught:
        memstore.open(url, buffer="bad")
    message = str(caught.value)
    assert message.startswith("buffer 'bad' cannot be opened: ") and f"its {setting}" in message.replace(
        "the buffer's", "its"
    )
    assert message.endswith("restore a backup: memstore restore BACKUP DB") and "\n" not in message
    assert memstore.buffers(url) == ["first", "bad", "last"]
    for name in ("first", "last"):
        with memstore.open(url, buffer=name, create=False) as memory:
            assert len(memory.sample(3)) == 3 and memory.check().ok


def test_check_names_it_in_one_line_and_checks_the_others(url: str, setting: str) -> None:
    result = CliRunner().invoke(main, ["check", url])
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if "problem:" in line]
    assert "nobody can open the buffer" in line and setting in line
    assert "buffer 'first': 3 episodes, sound" in result.output
    assert "buffer 'bad': 0 episodes, 1 problem," in result.output
    assert "buffer 'last': 3 episodes, sound" in result.output
    assert CliRunner().invoke(main, ["check", url, "--buffer", "last"]).exit_code == 0
    reports = json.loads(CliRunner().invoke(main, ["check", url, "--json"]).stdout)
    assert [report["ok"] for report in reports] == [True, False, True]


def test_a_backup_with_such_a_buffer_is_refused_by_its_name(url: str, setting: str, tmp_path: Path) -> None:
    copy, target = tmp_path / "copy.db", tmp_path / "target.db"
    memstore.backup(url, copy)
    with pytest.raises(StoreCorrupt, match=f"is not sound, nothing was changed: buffer 'bad': .*{setting}"):
        memstore.restore(copy, target)
    assert not target.exists()
