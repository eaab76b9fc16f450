"""Learning calls that commit together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TypeVar

from memstore.errors import MemstoreError
from memstore.memory import EpisodicMemory

T = TypeVar("T")


class Span:
    """One transaction of the memory, from the first write of some calls to the last.

    It holds the memory's write lock, and belongs to the thread that opened it. A process that dies in it leaves the
    database as it was before.
    """

    def __init__(self, memory: EpisodicMemory) -> None:
        self._memory = memory
        self._scope: ExitStack | None = None

    @property
    def open(self) -> bool:
        """Whether writes are waiting for `close`."""
        return self._scope is not None

    def write(self, work: Callable[[], T], *, stay_open: bool) -> T:
        """Do ``work`` whole or not at all, then commit, unless the span is to stay open."""
        if not self.open:
            if not stay_open or self._memory.transaction_depth:
                with self._memory.transaction():
                    return work()
            scope = ExitStack()
            scope.enter_context(self._memory.transaction())
            self._scope = scope
        with self._memory.transaction():
            result = work()
        # Inside a block of the caller's the commit waits for a later call: blocks end in reverse order.
        if not stay_open and self._memory.transaction_depth == 1:
            self.close()
        return result

    def abandon_if_dead(self) -> None:
        """Close a span whose transaction the database has ended: nothing of it was committed, or will be."""
        if self.open and not self._alive():
            self.abandon()

    def close(self) -> None:
        """Commit what is open; an error undoes it."""
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.close()

    def abandon(self) -> None:
        """Undo what is open."""
        scope, self._scope = self._scope, None
        if scope is not None:
            with suppress(_Abandoned), scope:
                raise _Abandoned

    def _alive(self) -> bool:
        try:
            with self._memory.transaction():
                return True
        except MemstoreError:
            return False


class _Abandoned(Exception):
    """No error: ends a block by its rollback."""
