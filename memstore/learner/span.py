"""Spans of learning calls that commit together."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from typing import TypeVar

from memstore.errors import MemstoreError
from memstore.memory import EpisodicMemory

T = TypeVar("T")


class Span:
    """One transaction of the memory around the writes of several calls.

    It holds the memory's write lock and belongs to the thread that opened it. If the process dies before the commit,
    the database stays as it was before the first write.
    """

    def __init__(self, memory: EpisodicMemory) -> None:
        self._memory = memory
        self._scope: ExitStack | None = None

    @property
    def open(self) -> bool:
        """True if writes are waiting for `close`."""
        return self._scope is not None

    def write(self, work: Callable[[], T], *, stay_open: bool) -> T:
        """Do all of ``work`` or nothing. Then commit, unless ``stay_open`` is true."""
        if not self.open:
            if not stay_open or self._memory.transaction_depth:
                with self._memory.transaction():
                    return work()
            scope = ExitStack()
            scope.enter_context(self._memory.transaction())
            self._scope = scope
        with self._memory.transaction():
            result = work()
        # Inside a block of the caller, the commit waits for a later call, because blocks end in reverse order.
        if not stay_open and self._memory.transaction_depth == 1:
            self.close()
        return result

    def abandon_if_dead(self) -> None:
        """Give up the span if the database has ended its transaction. None of its writes is, or will be, committed."""
        if self.open and not self._is_alive():
            self.abandon()

    def close(self) -> None:
        """Commit the open writes. An error undoes them."""
        scope, self._scope = self._scope, None
        if scope is not None:
            scope.close()

    def abandon(self) -> None:
        """Undo the open writes."""
        scope, self._scope = self._scope, None
        if scope is not None:
            with suppress(_Abandoned), scope:
                raise _Abandoned

    def _is_alive(self) -> bool:
        try:
            with self._memory.transaction():
                return True
        except MemstoreError:
            return False


class _Abandoned(Exception):
    """The exception that makes a block end with a rollback. It never leaves this module."""
