"""Owners and turns. An owner is a thread and an asyncio task. A turn is held by a call or a block of an owner.

An interrupt (Ctrl-C, or a signal that becomes SystemExit) may come between any two calls. It may also come between the
acquisition of a lock and the note that it was acquired. So here the note is the acquisition. If a call has ended and
its note remains, the next waiter removes the note.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import FrameType
from typing import Any

LONGEST_SLEEP = 0.05
"""A waiter looks again after at most this many seconds."""

_threads = threading.local()


class _Thread:
    """The identity of one thread. The number of a thread may be given to another thread later, but not this object."""

    def __init__(self) -> None:
        self.name = threading.current_thread().name


@dataclass(frozen=True, slots=True)
class Owner:
    """A thread, and the asyncio task that it runs, if any."""

    thread: _Thread
    task: Any

    def __str__(self) -> str:
        task = "" if self.task is None else f"task {self.task.get_name()!r} in "
        return f"{task}thread {self.thread.name!r}"


def this_owner() -> Owner:
    """Return the thread and task that run this."""
    try:
        thread = _threads.mark
    except AttributeError:
        thread = _threads.mark = _Thread()
    return Owner(thread, _this_task())


def _this_task() -> Any:
    return asyncio.current_task() if asyncio._get_running_loop() else None


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """The holder of a turn or a connection, until it ends: a running function, or a block.

    A block has no frame, and ends itself. A ``long`` scope may wait for the database, or for its user, while it holds a
    turn.
    """

    owner: Owner
    frame: FrameType | None = None
    long: bool = False

    @property
    def is_block(self) -> bool:
        """True if the scope is a block."""
        return self.frame is None

    def is_over(self) -> bool:
        """True if the function has ended, even if it gave nothing back."""
        if self.frame is None:
            return False
        try:
            self.frame.clear()  # Python refuses this while the function runs; afterwards its variables are not needed
        except RuntimeError:
            return False
        return True

    def waits_in_vain(self, holder: Scope) -> bool:
        """True if ``holder`` is a block that cannot end while this scope waits for it."""
        return holder.is_block and (holder.owner.thread is self.owner.thread or _inside.get() is holder)


_inside: ContextVar[Scope | None] = ContextVar("memstore_block", default=None)
"""This code was started inside this block, possibly by another thread (``asyncio.to_thread``)."""


def enter_context(block: Scope | None) -> None:
    """Note that code which is started from here on is started inside the block. None after the end of the block."""
    _inside.set(block)


class Turn:
    """A turn. One scope at a time has it."""

    def __init__(self) -> None:
        self._held: dict[str, Scope] = {}
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._repair = threading.Lock()

    @property
    def holder(self) -> Scope | None:
        """Scope that has the turn. None if no scope has it."""
        return self._held.get("by")

    def is_of(self, owner: Owner) -> bool:
        """True if this thread and task has the turn already, in a block or a call around."""
        holder = self.holder
        return holder is not None and holder.owner == owner and not holder.is_over()

    def take(self, scope: Scope, patience: float, yields: Callable[[Scope], bool] = lambda _: False) -> Scope:
        """Take the turn. Give up after ``patience`` seconds, or at once if ``yields`` is true for the holder.

        Returns
        -------
        Scope
            The scope that has the turn now. It is ``scope`` if the turn was taken.
        """
        deadline: float | None = None
        # This is one step of the interpreter. After it, the dictionary names this scope or another one as the holder.
        while (holder := self._held.setdefault("by", scope)) is not scope:
            if holder.is_over():
                self._take_away(holder)
                continue
            now = time.monotonic()
            deadline = now + patience if deadline is None else deadline
            if now >= deadline or yields(holder):
                return holder
            self._sleep(min(LONGEST_SLEEP, deadline - now))
        return scope

    def release(self, scope: Scope) -> None:
        """Release the turn, if the scope has it."""
        if self._held.get("by") is scope:
            del self._held["by"]
            if self._bell.empty():
                self._bell.put(None)

    def _take_away(self, holder: Scope) -> None:
        with self._repair:  # two waiters must not both do it, because the second would take it from the next holder
            self.release(holder)

    def _sleep(self, seconds: float) -> None:
        with suppress(queue.Empty):
            self._bell.get(timeout=seconds)
