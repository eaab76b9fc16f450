"""A process of its own with a handle on the same buffer. It does what it is told, one call after the other."""

from __future__ import annotations

import traceback
from typing import Any

import memstore
from tests.support.helpers import FRESH
from tests.support.windows import set_window

PATIENCE = 60.0


def _serve(calls: Any) -> None:
    memory: memstore.EpisodicMemory | None = None
    while (told := calls.recv()) is not None:
        name, arguments, options = told
        try:
            if name in ("open", "window", "close"):
                if memory is not None and name != "window":
                    memory.close()
                    memory = None
                if name == "open":
                    memory = memstore.open(*arguments, **options)
                elif name == "window":
                    set_window(*arguments)
                calls.send((True, None))
            else:
                calls.send((True, getattr(memory, name)(*arguments, **options)))
        except BaseException:
            calls.send((False, traceback.format_exc()))
    if memory is not None:
        memory.close()


class Elsewhere:
    """The other process. ``call("extend", ...)`` is what ``memory.extend(...)`` would be there."""

    def __init__(self) -> None:
        self._calls, theirs = FRESH.Pipe()
        self._process = FRESH.Process(target=_serve, args=(theirs,))
        self._process.start()
        theirs.close()

    def call(self, name: str, *arguments: Any, **options: Any) -> Any:
        """Do it there, and return what it returned. ``open``, ``window`` and ``close`` concern the handle itself."""
        self._calls.send((name, arguments, options))
        assert self._calls.poll(PATIENCE), f"{name} did not end"
        good, value = self._calls.recv()
        assert good, value
        return value

    def end(self) -> None:
        """End the process."""
        self._calls.send(None)
        self._process.join(PATIENCE)
        assert self._process.exitcode == 0
        self._calls.close()
