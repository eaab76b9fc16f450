"""Network file systems, told by the table of mounts."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

import memstore
from memstore.storage.backends.filesystem import network_filesystem

MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
proc /proc proc rw 0 0
server:/export {root}/shared nfs4 rw,vers=4.2 0 0
tmpfs {root}/shared/local tmpfs rw 0 0
//nas/data {root}/with\\040space cifs rw 0 0
first:/a {root}/covered nfs rw 0 0
/dev/vdb {root}/covered ext4 rw 0 0
"""


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A table of mounts below ``tmp_path``, in place of the machine's."""
    for folder in ("shared/local", "shared/deep/er", "with space", "covered", "here"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    table = tmp_path / "mounts"
    table.write_text(MOUNTS.format(root=tmp_path))
    monkeypatch.setattr(network_filesystem, "__defaults__", (table,))
    return table


@pytest.mark.parametrize(
    ("folder", "kind"),
    [
        ("shared", "nfs4"),
        ("shared/deep/er", "nfs4"),
        ("shared/local", None),
        ("with space", "cifs"),
        ("covered", None),
        ("here", None),
    ],
)
def test_the_nearest_and_last_mount_decides(tmp_path: Path, mounts: Path, folder: str, kind: str | None) -> None:
    assert network_filesystem(tmp_path / folder / "run.db") == kind


def test_a_link_counts_as_what_it_leads_to(tmp_path: Path, mounts: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "shared")
    assert network_filesystem(tmp_path / "link" / "run.db") == "nfs4"


def test_where_nothing_can_be_told_nothing_is_said(tmp_path: Path) -> None:
    assert network_filesystem(tmp_path / "run.db", tmp_path / "no such table") is None


def test_opening_there_warns_and_check_repeats_it(tmp_path: Path, mounts: Path) -> None:
    path = tmp_path / "shared" / "run.db"
    with pytest.warns(memstore.StoreWarning, match=r"nfs4.*postgresql://"):
        memory = memstore.open(path)
    with memory:
        assert any("nfs4" in note for note in memory.check().notes)


def test_opening_elsewhere_does_not(tmp_path: Path, mounts: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memstore.open(tmp_path / "here" / "run.db").close()
