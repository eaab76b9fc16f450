"""``with`` blocks that end with their ``with``, wherever an interrupt strikes.

A method ``__exit__`` can be interrupted before its first line, and a generator of ``contextlib`` after its ``yield``:
then nobody ends the block, and its locks stay. Here the ``with`` statement holds the only reference to a guard. However
the statement ends, Python then deletes the guard, and the guard ends the block.
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
        """Begin the block; ``as`` names the result. If this fails half-way, ``abandon`` undoes it."""

    def leave(self, *, commit: bool) -> None:
        """End the block."""

    def abandon(self) -> None:
        """Undo what is still open. May be called any number of times."""


class _Guard(Generic[T]):
    """Lives as long as the ``with`` statement."""

    def __init__(self, steps: Steps[T]) -> None:
        self.steps = steps

    def __del__(self) -> None:
        self.steps.abandon()


class _Exit:
    """Give ``with`` an ``__exit__`` that holds the only reference to the guard."""

    def __get__(self, block: Block[T] | None, kind: type) -> Callable[..., None]:
        if block is None:
            return _leave_kept  # contextlib.ExitStack asks the class
        guard = _Guard(block.steps)
        block.guard = weakref.ref(guard)
        # Not partial(_leave, guard): a variable of the function that is interrupted would keep the guard alive.
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
        if self.guard is None:  # not entered by ``with``
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
