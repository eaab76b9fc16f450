"""Who holds what: a thread and an asyncio task, in a call or in a block; turns that survive an interrupt.

An interrupt (Ctrl-C, a signal turned into SystemExit) strikes between any two calls, also between the acquisition of a
lock and the note that it was acquired. So nothing here is acquired first and noted afterwards: the note is the
acquisition. Whoever finds a note of a call that is over takes it away.
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
"""Seconds after which a waiter looks again unasked."""

_threads = threading.local()


class _Thread:
    """One thread: its number may be given to another one after its end, this object never."""

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
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop runs in this thread
        return None


@dataclass(frozen=True, slots=True, eq=False)
class Scope:
    """What holds something until it ends: a running function, or a block, which has no frame and ends itself.

    A ``long`` one may wait for the database, or for its user, while it holds.
    """

    owner: Owner
    frame: FrameType | None = None
    long: bool = False

    @property
    def is_block(self) -> bool:
        """True if it is a block."""
        return self.frame is None

    def is_over(self) -> bool:
        """True if the function has ended, even if it gave nothing back."""
        if self.frame is None:
            return False
        try:
            self.frame.clear()  # refused while the function runs; afterwards its variables are of no use to anyone
        except RuntimeError:
            return False
        return True

    def waits_in_vain(self, holder: Scope) -> bool:
        """True if ``holder`` is a block that cannot end while this one waits for it, as far as can be seen."""
        return holder.is_block and (holder.owner.thread is self.owner.thread or _inside.get() is holder)


_inside: ContextVar[Scope | None] = ContextVar("memstore_block", default=None)
"""The block from within which this code was started, which another thread may run (``asyncio.to_thread``)."""


def enter_context(block: Scope | None) -> None:
    """Note that what is started from here on is started inside the block; None after its end."""
    _inside.set(block)


class Turn:
    """A turn: one scope at a time has it."""

    def __init__(self) -> None:
        self._held: dict[str, Scope] = {}
        self._bell: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._repair = threading.Lock()

    @property
    def holder(self) -> Scope | None:
        """The scope that has the turn."""
        return self._held.get("by")

    def is_of(self, owner: Owner) -> bool:
        """True if this thread and task has the turn already, in a block or a call around."""
        holder = self.holder
        return holder is not None and holder.owner == owner and not holder.is_over()

    def take(self, scope: Scope, patience: float, yields: Callable[[Scope], bool] = lambda _: False) -> Scope:
        """Take the turn, or give up: after ``patience`` seconds, or at once if ``yields`` is true of its holder.

        Returns
        -------
        Scope
            The one that has the turn now: ``scope`` if it was taken.
        """
        deadline: float | None = None
        # One step of the interpreter: either the dictionary says that the scope holds it, or another one does.
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
        """Give the turn up, if the scope has it."""
        if self._held.get("by") is scope:
            del self._held["by"]
            if self._bell.empty():
                self._bell.put(None)

    def _take_away(self, holder: Scope) -> None:
        with self._repair:  # two that find it must not both do it, the second from the next one to hold it
            self.release(holder)

    def _sleep(self, seconds: float) -> None:
        with suppress(queue.Empty):
            self._bell.get(timeout=seconds)
