"""The window of the log: after how many entries blocks and tables are brought up to date with it.

No other test names the constants behind it. A child process calls ``set_window`` first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from memstore.buffer import folding

WINDOWS: tuple[tuple[object, str], ...] = (
    (folding, "SMALLEST_WINDOW"),
    (folding, "LARGEST_WINDOW"),
)
"""Each is a module, and the name of a constant in it that bounds the window from below or from above."""

ENDLESS = 10**9
"""A window that no test fills."""


def small_windows(monkeypatch: pytest.MonkeyPatch, entries: int) -> None:
    """Let the log be folded whenever it has so many entries more. It begins with the next fold."""
    for module, name in WINDOWS:
        monkeypatch.setattr(module, name, entries)


@contextmanager
def window(entries: int) -> Iterator[None]:
    """The same to the end of the block."""
    with pytest.MonkeyPatch.context() as patch:
        small_windows(patch, entries)
        yield


def set_window(entries: int) -> None:
    """The same in this process, for ever."""
    for module, name in WINDOWS:
        setattr(module, name, entries)


def small_waiting(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let the log be folded, between two ends of its window too, whenever so many bytes of new payloads wait."""
    monkeypatch.setattr(folding, "WAITING_BYTES", size)
