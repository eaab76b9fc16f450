"""``with`` blocks that always end together with their ``with`` statement, even after an interrupt.

An interrupt may come before the first line of a method ``__exit__``, or after the ``yield`` of a generator of
``contextlib``. The block would then stay open, with its locks. Here the ``with`` statement holds the only reference to
a guard. Python deletes the guard when the statement ends in any way, and the guard ends the block.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Generic, Protocol, TypeVar

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Steps(Protocol[T_co]):
    """The steps of a block."""

    def enter(self) -> T_co:
        """Begin the block. ``as`` names the result. If this fails half-way, ``abandon`` undoes it."""

    def leave(self, *, commit: bool) -> None:
        """End the block, and commit or undo it."""

    def abandon(self) -> None:
        """Undo everything that is still open. It may be called any number of times."""


class _Guard(Generic[T]):
    """A guard that lives as long as the ``with`` statement."""

    def __init__(self, steps: Steps[T]) -> None:
        self.steps = steps

    def __del__(self) -> None:
        self.steps.abandon()


class _Exit:
    """A descriptor that gives ``with`` an ``__exit__`` with the only reference to the guard."""

    def __get__(self, block: Block[T] | None, kind: type) -> Callable[..., None]:
        if block is None:
            return _leave_kept  # contextlib.ExitStack looks up __exit__ on the class
        guard = _Guard(block.steps)
        block.guard = weakref.ref(guard)
        # partial(_leave, guard) would be wrong: a variable of the interrupted function would keep the guard alive.
        leave = partial(_leave, block.guard)
        leave.__dict__["guard"] = guard
        return leave


class Block(Generic[T]):
    """A ``with`` block of these steps. It can be entered once."""

    __exit__ = _Exit()

    def __init__(self, steps: Steps[T]) -> None:
        self.steps = steps
        self.guard: weakref.ref[_Guard[T]] | None = None
        self._kept: _Guard[T] | None = None

    def __enter__(self) -> T:
        if self.guard is None:  # the block was entered without ``with``
            self._kept = _Guard(self.steps)
            self.guard = weakref.ref(self._kept)
        try:
            return self.steps.enter()
        except BaseException:
            self.steps.abandon()
            raise


def _leave(
    guard: weakref.ref[_Guard[T]],
    kind: type[BaseException] | None = None,
    error: BaseException | None = None,
    trace: TracebackType | None = None,
) -> None:
    found = None
    try:
        found = guard()
        assert found is not None
        found.steps.leave(commit=kind is None)
    except BaseException:
        if found is not None:
            found.steps.abandon()
        raise
    finally:
        found = None


def _leave_kept(block: Block[T], *error: object) -> None:
    assert block.guard is not None
    _leave(block.guard, *error)  # type: ignore[arg-type]
