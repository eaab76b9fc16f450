"""Fixtures for all tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A database file that does not exist yet, alone in its folder."""
    return str(tmp_path / "run.db")
