"""Objects that a forked child must not share with its parent. Each is called before and after a fork."""

from __future__ import annotations

import os
import weakref


class Forking:
    """An object that is called at the forks of its process, as long as it lives."""

    def __init__(self) -> None:
        _all.add(self)

    def before_fork(self) -> None:
        """Prepare for a fork by this thread."""

    def after_fork_in_parent(self) -> None:
        """Continue in the parent."""

    def after_fork(self) -> None:
        """Start again in the child."""


_all: weakref.WeakSet[Forking] = weakref.WeakSet()


def _tell(moment: str) -> None:
    for member in list(_all):
        getattr(member, moment)()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=lambda: _tell("before_fork"),
        after_in_parent=lambda: _tell("after_fork_in_parent"),
        after_in_child=lambda: _tell("after_fork"),
    )
