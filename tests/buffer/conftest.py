"""Blocks of a few episodes, so that small programs fill, split, empty and merge many of them."""

from __future__ import annotations

import pytest

from memstore.buffer.blocks import copy, heads


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Four episodes a block."""
    monkeypatch.setattr(copy, "SLOTS", 4)
    monkeypatch.setattr(heads, "SLOTS", 4)
    return 4
