"""Blocks of a few episodes, so that small programs fill, split, empty and merge many of them."""

from __future__ import annotations

import pytest

from memstore.buffer.blocks import copy, heads, pages, views


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> int:
    """Four episodes a block."""
    for module in (copy, heads, pages, views):
        monkeypatch.setattr(module, "SLOTS", 4)
    monkeypatch.setattr(pages, "SPARE", 3)
    return 4
